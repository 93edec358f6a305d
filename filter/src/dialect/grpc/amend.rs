//! Fields that are put behind a message: protobuf takes the last of a field that stands twice, so nothing of the message has
//! to be found or moved.

/// Field 1 of a request, a text.
const MODEL_NAME_KEY: u8 = 0x0a;
const HEAD_BYTES: usize = 5;

/// The field that names this model.
pub(crate) fn model_name(model: &str) -> Vec<u8> {
    let mut field = vec![MODEL_NAME_KEY];
    let mut length = model.len();
    while length >= 0x80 {
        // The low seven bits, and that more follow.
        field.push(0x80 | (length & 0x7f) as u8);
        length >>= 7;
    }
    field.push(length as u8);
    field.extend_from_slice(model.as_bytes());
    field
}

/// The frame of a message with more fields behind it. A frame that is none stays as it is.
pub(crate) fn amended(frame: &[u8], fields: &[u8]) -> Vec<u8> {
    let Some(([flag, ..], message)) = frame.split_first_chunk::<HEAD_BYTES>() else { return frame.to_vec() };
    let length = u32::try_from(message.len().saturating_add(fields.len())).unwrap_or(u32::MAX);
    let mut amended = Vec::with_capacity(frame.len().saturating_add(fields.len()));
    amended.push(*flag);
    amended.extend(length.to_be_bytes());
    amended.extend_from_slice(message);
    amended.extend_from_slice(fields);
    amended
}

#[cfg(test)]
mod tests {
    use super::super::frames::message;
    use super::*;

    #[test]
    fn a_message_names_the_other_model_last() {
        let rest = [0x1a, 0x02, b'i', b'd'];
        let real = [&[MODEL_NAME_KEY, 4][..], b"real"].concat();
        assert_eq!(model_name("real"), real);
        assert_eq!(amended(&message("alias", &rest), &real), message("alias", &[&rest[..], &real].concat()));
        assert_eq!(amended(&[0, 0], &real), [0, 0]);
    }

    #[test]
    fn a_long_name_has_a_length_of_two_bytes_and_changes_every_byte_of_a_frames_length() {
        let name = "n".repeat(200);
        let amended = amended(&message("a", &[]), &model_name(&name));
        assert_eq!(amended[..5], [0, 0, 0, 0, 3 + 203]);
        assert_eq!(amended[8..11], [MODEL_NAME_KEY, 0x80 | 72, 1]);
        assert_eq!(&amended[11..], name.as_bytes());
    }
}
