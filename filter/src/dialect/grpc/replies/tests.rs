use super::*;
use crate::dialect::grpc::message;

fn tagged(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![tag];
    let mut length = bytes.len();
    while length >= 0x80 {
        field.push(0x80 | (length & 0x7f) as u8);
        length >>= 7;
    }
    field.push(u8::try_from(length).unwrap());
    field.extend_from_slice(bytes);
    field
}

fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, message].concat()
}

/// A reply with this parameter, if any, and an output of so many bytes.
fn reply(is_final: Option<bool>, output_bytes: usize) -> Vec<u8> {
    let mut inner = tagged(0x0a, b"model");
    if let Some(is_final) = is_final {
        let entry = [tagged(0x0a, IS_FINAL.as_bytes()), tagged(0x12, &[8, u8::from(is_final)])].concat();
        inner.extend(tagged(0x22, &entry));
    }
    if output_bytes > 0 {
        inner.extend(tagged(0x32, &vec![7; output_bytes]));
    }
    frame(&tagged(0x12, &inner))
}

/// What passes, and how many messages end, of a stream that is cut there.
fn run(stream: &[u8], at: usize, hides_final: bool) -> (Vec<u8>, u64) {
    let mut replies = Replies::default();
    let (mut passed, mut ended) = (Vec::new(), 0);
    let (head, tail) = stream.split_at(at);
    for piece in [head, tail] {
        let (bytes, more) = replies.read(piece, hides_final);
        passed.extend(bytes);
        ended += more;
    }
    passed.extend(replies.finish());
    (passed, ended)
}

#[test]
fn a_reply_ends_its_message_unless_it_says_that_more_will_come() {
    let long = [tagged(0x0a, b"model"), tagged(0x1a, &vec![b'i'; 5000])].concat();
    for (frames, ended) in [
        (reply(None, 3), 1),
        (reply(Some(true), 3), 1),
        (reply(Some(false), 3), 0),
        (reply(Some(false), 10_000), 0),
        (reply(None, 10_000), 1),
        (frame(&tagged(0x0a, b"it failed")), 1),
        (frame(&[]), 1),
        (frame(&tagged(0x12, &long)), 0),
        ([reply(Some(false), 3), reply(Some(false), 3), reply(Some(true), 0)].concat(), 1),
        ([reply(None, 3), reply(None, 3)].concat(), 2),
    ] {
        for at in (0..=frames.len()).step_by(1 + frames.len() / 300) {
            assert_eq!(run(&frames, at, false), (frames.clone(), ended), "cut at {at}");
        }
    }
}

#[test]
fn an_empty_final_reply_that_was_our_wish_is_taken_out_and_nothing_else() {
    let large = reply(Some(false), 9000);
    let kept = [large.clone(), reply(Some(false), 3), reply(Some(true), 3), frame(&tagged(0x0a, b"error"))].concat();
    let sent = [large, reply(Some(false), 3), reply(Some(true), 0), reply(Some(true), 3)].concat();
    let sent = [sent, frame(&tagged(0x0a, b"error"))].concat();
    for at in (0..=sent.len()).step_by(7) {
        assert_eq!(run(&sent, at, true), (kept.clone(), 3), "cut at {at}");
        assert_eq!(run(&sent, at, false).0, sent);
    }
}

#[test]
fn a_message_that_asks_is_known_and_the_wish_can_be_put_behind_one_that_does_not() {
    let plain = message("model", &[]);
    assert!(!has_asked_for_final(&plain[5..]));
    let asks = [&plain[5..], &asks_for_final()].concat();
    assert!(has_asked_for_final(&asks));
    let no = [tagged(0x0a, ASKS_FOR_FINAL.as_bytes()), tagged(0x12, &[8, 0])].concat();
    let refuses = [&asks, &tagged(0x22, &no)[..]].concat();
    assert!(!has_asked_for_final(&refuses), "the last one holds");
}
