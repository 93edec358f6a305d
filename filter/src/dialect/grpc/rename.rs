//! Another model's name in the messages of a gRPC call, wherever the network cuts them.
//!
//! A message gets one more `model_name` at its end: protobuf takes the last of a field that stands twice, so nothing else of
//! the message has to be found or moved, and its new length is known as soon as its old one is.

/// Field 1, a text.
const MODEL_NAME_KEY: u8 = 0x0a;
const HEAD_BYTES: usize = 5;

#[derive(Clone, Debug)]
pub(crate) struct Rename {
    /// The field that each message gets.
    field: Vec<u8>,
    /// The head of a frame while it comes. It is held, because its length changes.
    head: Vec<u8>,
    /// Bytes of the current message that have not come.
    left: u32,
}

impl Rename {
    pub(crate) fn to(model: &str) -> Self {
        let mut field = vec![MODEL_NAME_KEY];
        let mut length = model.len();
        while length >= 0x80 {
            // The low seven bits, and that more follow.
            field.push(0x80 | (length & 0x7f) as u8);
            length >>= 7;
        }
        field.push(length as u8);
        field.extend_from_slice(model.as_bytes());
        Self { field, head: Vec::new(), left: 0 }
    }

    /// What goes upstream instead of the next bytes of the body, whose frames are known to be right.
    pub(crate) fn pass(&mut self, mut piece: &[u8]) -> Vec<u8> {
        let mut passed = Vec::with_capacity(piece.len() + self.field.len());
        while let Some((first, rest)) = piece.split_first() {
            if self.left == 0 {
                self.head.push(*first);
                piece = rest;
                self.begin_message(&mut passed);
                continue;
            }
            let left = usize::try_from(self.left).unwrap_or(usize::MAX);
            let (message, after) = piece.split_at_checked(left).unwrap_or((piece, &[]));
            passed.extend_from_slice(message);
            self.left = self.left.saturating_sub(u32::try_from(message.len()).unwrap_or(u32::MAX));
            piece = after;
            if self.left == 0 {
                passed.extend_from_slice(&self.field);
            }
        }
        passed
    }

    fn begin_message(&mut self, passed: &mut Vec<u8>) {
        let Ok([flag, length @ ..]) = <[u8; HEAD_BYTES]>::try_from(self.head.as_slice()) else { return };
        self.head.clear();
        self.left = u32::from_be_bytes(length);
        let longer = self.left.saturating_add(u32::try_from(self.field.len()).unwrap_or(u32::MAX));
        passed.push(flag);
        passed.extend(longer.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::message;
    use super::*;

    /// A message whose name stands twice, as the one that is expected.
    fn renamed(model: &str, rest: &[u8], to: &[u8]) -> Vec<u8> {
        message(model, &[rest, to].concat())
    }

    #[test]
    fn every_message_names_the_other_model_last_wherever_it_is_cut() {
        let rest = [0x1a, 0x02, b'i', b'd'];
        let whole = [message("alias", &rest), message("alias", &[])].concat();
        let real = [&[MODEL_NAME_KEY, 4][..], b"real"].concat();
        let expected = [renamed("alias", &rest, &real), renamed("alias", &[], &real)].concat();
        for at in 0..=whole.len() {
            let (head, tail) = whole.split_at(at);
            let mut rename = Rename::to("real");
            assert_eq!([rename.pass(head), rename.pass(tail)].concat(), expected, "cut at {at}");
        }
        let mut rename = Rename::to("real");
        assert_eq!(whole.chunks(1).flat_map(|byte| rename.pass(byte)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_long_name_has_a_length_of_two_bytes_and_changes_every_byte_of_a_frames_length() {
        let name = "n".repeat(200);
        let mut rename = Rename::to(&name);
        let passed = rename.pass(&message("a", &[]));
        assert_eq!(passed[..5], [0, 0, 0, 0, 3 + 203]);
        assert_eq!(passed[8..11], [MODEL_NAME_KEY, 0x80 | 72, 1]);
        assert_eq!(&passed[11..], name.as_bytes());
    }
}
