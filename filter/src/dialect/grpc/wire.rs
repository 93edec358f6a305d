//! Protobuf fields of a message that is at hand, as far as it goes.

/// The fields of a message. A field that is cut off is the last one, with what there is of it.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a fixed length, and not looked at.
    Fixed,
}

pub(super) fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message }
}

/// The truth of a parameter, where this entry of a map of `inference.InferParameter` is the one of that name.
pub(super) fn parameter(entry: &[u8], name: &str) -> Option<bool> {
    let (mut is_named, mut value) = (false, None);
    for field in fields(entry) {
        match field {
            (1, Value::Bytes(key)) => is_named = key == name.as_bytes(),
            (2, Value::Bytes(parameter)) => {
                value = fields(parameter).find_map(|field| match field {
                    (1, Value::Number(number)) => Some(number != 0),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    // Protobuf leaves out what is false.
    is_named.then_some(value.unwrap_or(false))
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.skip(8)?,
            2 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                let (value, rest) = self.rest.split_at_checked(length).unwrap_or((self.rest, &[]));
                self.rest = rest;
                Value::Bytes(value)
            }
            5 => self.skip(4)?,
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let (mut value, mut shift) = (0_u64, 0);
        loop {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
            shift += 7;
        }
    }

    fn skip(&mut self, bytes: usize) -> Option<Value<'a>> {
        self.rest = self.rest.get(bytes..)?;
        Some(Value::Fixed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_far_as_they_go() {
        let message = [0x08, 0x96, 0x01, 0x12, 3, b'a', b'b', b'c', 0x1d, 1, 2, 3, 4, 0x22, 9, b'x'];
        let all = vec![(1, Value::Number(150)), (2, Value::Bytes(b"abc")), (3, Value::Fixed), (4, Value::Bytes(b"x"))];
        assert_eq!(fields(&message).collect::<Vec<_>>(), all);
        assert_eq!(fields(&message[..7]).collect::<Vec<_>>(), [(1, Value::Number(150)), (2, Value::Bytes(b"ab"))]);
        assert_eq!(fields(&[0x80; 20]).count(), 0, "a number without an end");
        assert_eq!(fields(&[0x0b]).count(), 0, "a group");
    }

    #[test]
    fn a_parameter_is_true_only_where_it_says_so() {
        for (value, expected) in
            [(&[0x12, 2, 8, 1][..], true), (&[0x12, 2, 8, 0], false), (&[0x12, 0], false), (&[], false)]
        {
            let entry = [&[0x0a, 1, b'p'][..], value].concat();
            assert_eq!(parameter(&entry, "p"), Some(expected));
            assert_eq!(parameter(&entry, "q"), None);
        }
    }
}
