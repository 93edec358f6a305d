//! Usage from a JSON reply: a bounded copy is kept and read when the reply is complete.

use super::{Reading, report, tokens_of};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Replies beyond this are metered by their length. A long completion is some 100 KB.
const COPY_MAX_BYTES: usize = 4 << 20;

#[derive(Default)]
pub(crate) struct JsonMeter {
    copy: Vec<u8>,
    bytes: u64,
}

/// Replies are tenants' data: `Debug` shows the length only.
impl std::fmt::Debug for JsonMeter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JsonMeter({} bytes)", self.bytes)
    }
}

#[derive(Deserialize)]
struct Reply<'a> {
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
}

impl JsonMeter {
    pub(super) fn read(&mut self, piece: &[u8]) {
        self.bytes = self.bytes.saturating_add(piece.len() as u64);
        if self.is_whole_after(piece.len()) {
            self.copy.extend_from_slice(piece);
        } else {
            self.copy = Vec::new();
        }
    }

    pub(super) fn reading(&self) -> Reading {
        let is_whole = self.bytes == self.copy.len() as u64;
        let reply: Option<Reply<'_>> = if is_whole { serde_json::from_slice(&self.copy).ok() } else { None };
        let usage = reply.and_then(|reply| reply.usage);
        Reading { reported: usage.and_then(|usage| report::believe(usage.get())), counted: tokens_of(self.bytes) }
    }

    /// Whether the copy can stay complete with `more` bytes, all counted already.
    fn is_whole_after(&self, more: usize) -> bool {
        let length = self.copy.len().saturating_add(more);
        length <= COPY_MAX_BYTES && length as u64 == self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sluice_policy::units::Tokens;

    const REPLY: &[u8] =
        br#"{"choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":9,"completion_tokens":4}}"#;

    fn read(pieces: &[&[u8]]) -> Reading {
        let mut meter = JsonMeter::default();
        pieces.iter().for_each(|piece| meter.read(piece));
        meter.reading()
    }

    #[test]
    fn usage_is_the_same_wherever_the_reply_is_cut() {
        for at in 0..=REPLY.len() {
            let (head, tail) = REPLY.split_at(at);
            assert_eq!(read(&[head, tail]).reported.unwrap().output, Tokens(4));
        }
    }

    #[test]
    fn a_reply_without_usage_is_estimated() {
        assert_eq!(read(&[b"{\"a\":1}"]), Reading { reported: None, counted: Tokens(2) });
        assert_eq!(read(&[b"{\"usage\":null}"]).reported, None);
        assert_eq!(read(&[]).counted, Tokens(0));
    }

    #[test]
    fn a_reply_beyond_the_bound_is_let_go_for_good() {
        let large = vec![b' '; COPY_MAX_BYTES];
        let reading = read(&[&large, b" ", REPLY]);
        assert_eq!(reading.reported, None);
        assert!(reading.counted > Tokens(COPY_MAX_BYTES as u64 / 4));
    }

    proptest! {
        #[test]
        fn any_reply_is_read_without_a_panic(pieces: Vec<Vec<u8>>) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            read(&pieces);
        }
    }
}
