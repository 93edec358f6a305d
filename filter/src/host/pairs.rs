//! The ABI's form of a header map: a count, all lengths, then all names and values, each ended by a zero byte.

/// Reads a map as far as it is well formed. Names that are not UTF-8 cannot come from Envoy's codecs, which allow
/// tokens only; they are skipped.
pub(super) fn decode(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let Some((count, rest)) = take_u32(bytes) else { return Vec::new() };
    let Some((mut lengths, mut data)) = count.checked_mul(8).and_then(|length| rest.split_at_checked(length)) else {
        return Vec::new();
    };
    let mut pairs = Vec::with_capacity(count);
    while let Some((name_length, after)) = take_u32(lengths) {
        let Some((value_length, after)) = take_u32(after) else { break };
        let Some((name, after_name)) = take_text(data, name_length) else { break };
        let Some((value, after_value)) = take_text(after_name, value_length) else { break };
        (lengths, data) = (after, after_value);
        if let Ok(name) = std::str::from_utf8(name) {
            pairs.push((name.to_owned(), value.to_owned()));
        }
    }
    pairs
}

/// Writes a map.
pub(super) fn encode<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Vec<u8> {
    let mut bytes = length_of(pairs.clone().count()).to_vec();
    for (name, value) in pairs.clone() {
        bytes.extend(length_of(name.len()));
        bytes.extend(length_of(value.len()));
    }
    for (name, value) in pairs {
        for text in [name, value] {
            bytes.extend_from_slice(text.as_bytes());
            bytes.push(0);
        }
    }
    bytes
}

fn length_of(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()
}

fn take_u32(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((usize::try_from(u32::from_le_bytes(*number)).ok()?, rest))
}

/// A text of this length and the zero byte after it.
fn take_text(bytes: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
    let (text, rest) = bytes.split_at_checked(length)?;
    Some((text, rest.get(1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(pairs: Vec<(String, String)>) {
            let borrowed = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let expected: Vec<(String, Vec<u8>)> =
                pairs.iter().map(|(name, value)| (name.clone(), value.clone().into_bytes())).collect();
            prop_assert_eq!(decode(&encode(borrowed)), expected);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            decode(&bytes);
        }
    }

    #[test]
    fn a_count_beyond_the_bytes_reads_as_nothing() {
        assert!(decode(&u32::MAX.to_le_bytes()).is_empty());
    }
}
