use super::*;
use proptest::prelude::*;

/// An id, a fixed64, a fixed32, a varint of field 15, and raw tensor bytes.
const REST: &[u8] =
    &[0x1a, 0x02, b'i', b'd', 0x51, 1, 2, 3, 4, 5, 6, 7, 8, 0x5d, 1, 2, 3, 4, 0x78, 0xff, 0x7f, 0x3a, 0x03, 9, 9, 9];

fn read(pieces: &[&[u8]]) -> Result<Frames, Wrong> {
    let mut frames = Frames::new(1000);
    pieces.iter().try_for_each(|piece| frames.push(piece))?;
    Ok(frames)
}

fn wrong(bytes: &[u8]) -> Wrong {
    read(&[bytes]).map(|frames| frames.end()).map_or_else(|wrong| wrong, |ended| ended.unwrap_err())
}

#[test]
fn the_model_is_found_wherever_the_message_is_cut() {
    let whole = [message("simple", REST), message("simple", &[])].concat();
    for at in 0..=whole.len() {
        let (head, tail) = whole.split_at(at);
        let frames = read(&[head, tail]).unwrap();
        assert_eq!((frames.model(), frames.complete(), frames.end()), (Some("simple"), 2, Ok(())), "cut at {at}");
    }
    let bytes: Vec<&[u8]> = whole.chunks(1).collect();
    assert_eq!(read(&bytes).unwrap().complete(), 2);
}

#[test]
fn a_message_counts_once_it_is_complete() {
    let whole = message("simple", REST);
    let frames = read(&[&whole[..whole.len() - 1]]).unwrap();
    assert_eq!((frames.complete(), frames.end()), (0, Err(Wrong::CutOff)));
}

#[test]
fn one_call_has_one_model() {
    assert_eq!(wrong(&[message("a", &[]), message("b", &[])].concat()), Wrong::OtherModel);
    assert_eq!(wrong(&message("a", &[0x0a, 1, b'b'])), Wrong::OtherModel);
    assert!(read(&[&message("a", &[0x0a, 1, b'a'])]).is_ok());
}

#[test]
fn what_cannot_be_read_as_the_upstream_reads_it_is_refused() {
    for (bytes, expected) in [
        (&[1, 0, 0, 0, 0][..], Wrong::Compressed),
        (&[2, 0, 0, 0, 0], Wrong::NotProtobuf),
        (&[0, 0, 0, 0, 0], Wrong::NoModel),
        (&[0, 0, 0, 4, 0], Wrong::TooLarge),
        (&[0, 0, 0, 0, 2, 0x0a, 0x00], Wrong::NoModel),
        (&[0, 0, 0, 0, 3, 0x0a, 0x05, b'a'], Wrong::NotProtobuf),
        (&[0, 0, 0, 0, 2, 0x08, 0x01], Wrong::NotProtobuf),
        (&[0, 0, 0, 0, 2, 0x00, 0x01], Wrong::NotProtobuf),
        (&[0, 0, 0, 0, 2, 0x1b, 0x1c], Wrong::NotProtobuf),
        (&[0, 0, 0, 0, 3, 0x0a, 0x01, 0xff], Wrong::NotProtobuf),
        (&[0, 0, 0, 0, 1, 0x9a], Wrong::NotProtobuf),
        (&[0, 0, 0, 0, 2, 0x51, 0x01], Wrong::NotProtobuf),
        (&[0, 0, 0], Wrong::CutOff),
    ] {
        assert_eq!(wrong(bytes), expected, "{bytes:?}");
    }
    let endless = [&[0, 0, 0, 0, 20][..], &[0xff; 20]].concat();
    assert_eq!(wrong(&endless), Wrong::NotProtobuf);
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_are_read_alike_and_without_a_panic(bytes: Vec<u8>, size in 1usize..9) {
        let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
        let seen = |frames: Result<Frames, Wrong>| frames.map(|frames| (frames.model.clone(), frames.complete, frames.end()));
        prop_assert_eq!(seen(read(&pieces)), seen(read(&[&bytes])));
    }
}
