//! Streams of messages that have none under way. They hold no slot and owe nothing, but a stream of HTTP/2 at the client,
//! here and at the server, so they must not stay for ever.

use crate::exchange::idle_too_long;
use sluice_policy::units::Millis;
use sluice_policy::wire::Refusal;
use std::collections::BTreeMap;

#[derive(Debug)]
pub(super) struct Idle {
    /// Between two messages.
    limit: Millis,
    /// From the first byte of a message to its last.
    whole_message: Millis,
    /// By the stream's context.
    streams: BTreeMap<u32, Pause>,
}

#[derive(Debug)]
struct Pause {
    since: Millis,
    /// The next message has begun to come.
    has_begun: bool,
}

impl Idle {
    pub(super) fn new(limit: Millis, whole_message: Millis) -> Self {
        Self { limit, whole_message, streams: BTreeMap::new() }
    }

    /// A stream has a message under way, or none: then it says whether the next one has begun to come.
    pub(super) fn note(&mut self, stream: u32, idles: Option<bool>, now: impl FnOnce() -> Millis) {
        match (idles, self.streams.get(&stream)) {
            (None, None) => {}
            (None, Some(_)) => {
                self.streams.remove(&stream);
            }
            (Some(has_begun), Some(pause)) if pause.has_begun == has_begun => {}
            (Some(has_begun), _) => {
                self.streams.insert(stream, Pause { since: now(), has_begun });
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Takes out the streams that have idled for too long, each with what ends it.
    pub(super) fn expired(&mut self, now: Millis) -> Vec<(u32, Refusal)> {
        let (limit, whole_message) = (self.limit, self.whole_message);
        let limit_of = |pause: &Pause| if pause.has_begun { whole_message } else { limit };
        let late = self.streams.extract_if(.., |_, pause| now.since(pause.since) >= limit_of(pause));
        late.map(|(stream, pause)| (stream, idle_too_long(limit_of(&pause)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expired(idle: &mut Idle, now: u64) -> Vec<u32> {
        idle.expired(Millis(now)).into_iter().map(|(stream, _)| stream).collect()
    }

    #[test]
    fn a_stream_idles_from_the_end_of_one_message_to_the_whole_of_the_next() {
        let mut idle = Idle::new(Millis(10), Millis(30));
        idle.note(1, Some(false), || Millis(0));
        idle.note(2, Some(false), || Millis(0));
        idle.note(3, Some(false), || Millis(0));
        idle.note(1, Some(false), || Millis(5));
        idle.note(2, None, || Millis(5));
        idle.note(3, Some(true), || Millis(5));
        assert!(expired(&mut idle, 9).is_empty());
        assert_eq!(expired(&mut idle, 10), [1], "its time began when it was idle first");
        assert!(expired(&mut idle, 34).is_empty());
        assert_eq!(expired(&mut idle, 35), [3], "a message that has begun has the time of a body");
        assert!(idle.is_empty());
    }
}
