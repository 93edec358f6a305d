//! Calls whose body has not come in full. Nobody has admitted them yet and Envoy holds every byte that came, so they
//! must not stay for ever, whether their clients are slow, dead or hostile.
//!
//! A gRPC stream may be opened long before its first message: Triton's clients do that when they start. It holds no bytes
//! until then, and Envoy's `stream_idle_timeout` and `max_stream_duration` end it, so its time begins with its first byte.
//! Nobody has looked at its key until then: how many may stand so is for Envoy's limits on connections to say.
//!
//! There is a second reason: when Envoy lacks `allow_on_headers_stop_iteration`, which the filter cannot see, no body
//! ever comes in mode body. Of gRPC streams this is not found out.

use crate::refusal::{self, Style};
use log::error;
use sluice_policy::units::Millis;
use sluice_policy::wire::{Reason, Refusal};
use std::collections::BTreeMap;

/// From the head of a request to the first byte of its body; clients send both at once.
const FIRST_BYTE: Millis = Millis(10_000);

#[derive(Debug)]
pub(super) struct Incoming {
    /// From the head of a request to the end of its body; of a gRPC stream from its first byte to the end of its first
    /// message.
    whole_body: Millis,
    /// By the stream's context.
    streams: BTreeMap<u32, Body>,
    has_complained: bool,
}

#[derive(Debug)]
struct Body {
    /// How its client reads errors.
    style: Style,
    /// When its time began.
    since: Millis,
    has_begun: bool,
    /// Its time begins with its first byte, and not with its head.
    may_idle: bool,
}

impl Incoming {
    pub(super) fn new(whole_body: Millis) -> Self {
        Self { whole_body, streams: BTreeMap::new(), has_complained: false }
    }

    /// A request's head has come, and its body is to follow: at once, unless it `may_idle`.
    pub(super) fn expect(&mut self, stream: u32, style: Style, may_idle: bool, now: Millis) {
        self.streams.insert(stream, Body { style, since: now, has_begun: false, may_idle });
    }

    /// The first byte of the body has come.
    pub(super) fn begins(&mut self, stream: u32, now: Millis) {
        if let Some(body) = self.streams.get_mut(&stream) {
            body.has_begun = true;
            if body.may_idle {
                body.since = now;
            }
        }
    }

    /// The body is complete, or the call is over.
    pub(super) fn ends(&mut self, stream: u32) {
        self.streams.remove(&stream);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Takes out the streams that are too slow, each with what to tell its client, and in which words.
    pub(super) fn expired(&mut self, now: Millis) -> Vec<(u32, Refusal, Style)> {
        let whole_body = self.whole_body;
        let late = self.streams.extract_if(.., |_, body| {
            let elapsed = now.since(body.since);
            match (body.has_begun, body.may_idle) {
                (true, _) => elapsed >= whole_body,
                (false, false) => elapsed >= whole_body.min(FIRST_BYTE),
                (false, true) => false,
            }
        });
        let late: Vec<(u32, Body)> = late.collect();
        if late.iter().any(|(_, body)| !body.has_begun) && !std::mem::replace(&mut self.has_complained, true) {
            error!(
                "no byte of a request's body came in time; if no call gets through, Envoy's wasm filter lacks \
                 `allow_on_headers_stop_iteration: true`, which mode body needs"
            );
        }
        late.iter().map(|(stream, body)| (*stream, too_slow(body, whole_body), body.style)).collect()
    }
}

fn too_slow(body: &Body, whole_body: Millis) -> Refusal {
    let message = if body.has_begun {
        format!("The request body did not come in full within {whole_body}.")
    } else {
        format!("No byte of the request body came for {}.", whole_body.min(FIRST_BYTE))
    };
    refusal::own(Reason::RequestTimeout, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE_BODY: Millis = Millis(30_000);

    fn expired(incoming: &mut Incoming, now: u64) -> Vec<u32> {
        incoming.expired(Millis(now)).into_iter().map(|(stream, ..)| stream).collect()
    }

    #[test]
    fn streams_without_a_first_byte_expire_and_only_once() {
        let mut incoming = Incoming::new(WHOLE_BODY);
        incoming.expect(1, Style::OpenAi, false, Millis(0));
        incoming.expect(2, Style::OpenAi, false, Millis(0));
        incoming.expect(3, Style::OpenAi, false, Millis(5));
        incoming.ends(2);
        assert!(expired(&mut incoming, 9_999).is_empty());
        assert_eq!(expired(&mut incoming, 10_000), [1]);
        assert!(expired(&mut incoming, 10_001).is_empty());
        assert_eq!(expired(&mut incoming, 10_005), [3]);
        assert!(incoming.is_empty());
    }

    #[test]
    fn a_body_that_has_begun_must_also_end() {
        let mut incoming = Incoming::new(WHOLE_BODY);
        incoming.expect(1, Style::OpenAi, false, Millis(0));
        incoming.begins(1, Millis(5));
        assert!(expired(&mut incoming, 29_999).is_empty());
        let late = incoming.expired(Millis(30_000));
        assert_eq!(late.iter().map(|(stream, refusal, _)| (*stream, refusal.status)).collect::<Vec<_>>(), [(1, 408)]);
        assert!(incoming.is_empty());
    }

    #[test]
    fn a_stream_that_may_idle_has_its_time_from_its_first_byte_on() {
        let mut incoming = Incoming::new(WHOLE_BODY);
        incoming.expect(1, Style::Grpc, true, Millis(0));
        assert!(expired(&mut incoming, 200_000).is_empty() && !incoming.is_empty());
        incoming.begins(1, Millis(200_000));
        assert!(expired(&mut incoming, 229_999).is_empty());
        assert_eq!(expired(&mut incoming, 230_000), [1]);
    }

    #[test]
    fn a_whole_body_has_no_more_time_than_its_first_byte_where_less_is_configured() {
        let mut incoming = Incoming::new(Millis(500));
        incoming.expect(1, Style::OpenAi, false, Millis(0));
        assert_eq!(expired(&mut incoming, 500), [1]);
    }

    #[test]
    fn a_stream_that_is_not_expected_any_more_does_not_begin() {
        let mut incoming = Incoming::new(WHOLE_BODY);
        incoming.expect(1, Style::OpenAi, false, Millis(0));
        incoming.ends(1);
        incoming.begins(1, Millis(5));
        assert!(incoming.is_empty());
    }
}
