//! Calls whose body has not come in full. Nobody has admitted them yet and Envoy holds every byte that came, so they
//! must not stay for ever, whether their clients are slow, dead or hostile.
//!
//! A gRPC stream may be opened long before its first message: Triton's clients do that when they start. A *known* caller's
//! holds no bytes until then and counts against its tenant's bound of idle streams; Envoy's `stream_idle_timeout` and
//! `max_stream_duration` end it, so its time begins with its first byte. A *stranger's* has no more time than its first
//! byte may take: the service says whose key it is long before.
//!
//! There is a second reason: when Envoy lacks `allow_on_headers_stop_iteration`, which the filter cannot see, no body
//! ever comes in mode body. Of gRPC streams this is not found out.

use crate::caller::Digest;
use crate::holdings::{HoldingId, Holdings};
use crate::refusal::{self, Style};
use log::error;
use sluice_policy::units::Millis;
use sluice_policy::wire::{Reason, Refusal};
use std::collections::{BTreeMap, HashMap};

/// Refused in one go; the others follow on the next ticks. A flood ends at once, and a thousand replies together would make
/// every other call of the worker wait for them.
const AT_ONCE: usize = 32;
/// From the head of a request to the first byte of its body; clients send both at once.
const FIRST_BYTE: Millis = Millis(10_000);

#[derive(Debug)]
pub(super) struct Incoming {
    /// From the head of a request to the end of its body; of a gRPC stream from its first byte to the end of its first
    /// message.
    whole_body: Millis,
    /// From the head of a stranger's request to the first byte of its body.
    stranger_idle: Millis,
    /// By the stream's context.
    streams: BTreeMap<u32, Body>,
    /// Keys that the service has refused, while streams of theirs may still wait to be refused.
    rejected: HashMap<Digest, Refusal>,
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
    /// What is held for it, which says whether its caller is a stranger.
    holding: Option<HoldingId>,
}

impl Incoming {
    pub(super) fn new(whole_body: Millis, stranger_idle: Millis) -> Self {
        Self { whole_body, stranger_idle, streams: BTreeMap::new(), rejected: HashMap::new(), has_complained: false }
    }

    /// A request's head has come, and its body is to follow: at once, unless it `may_idle`.
    pub(super) fn expect(
        &mut self,
        stream: u32,
        style: Style,
        may_idle: bool,
        holding: Option<HoldingId>,
        now: Millis,
    ) {
        self.streams.insert(stream, Body { style, since: now, has_begun: false, may_idle, holding });
    }

    /// The service has refused this key, and so its streams are to be.
    pub(super) fn reject(&mut self, key: Digest, refusal: Refusal) {
        self.rejected.insert(key, refusal);
    }

    /// Takes out streams whose keys the service has refused, each with what to tell its client, and in which words.
    pub(super) fn refused(&mut self, holdings: &Holdings) -> Vec<(u32, Refusal, Style)> {
        if self.rejected.is_empty() {
            return Vec::new();
        }
        let refusal = |body: &Body| self.rejected.get(&body.stranger(holdings)?).cloned();
        let bodies = self.streams.extract_if(.., |_, body| refusal(body).is_some()).take(AT_ONCE);
        let refused: Vec<_> = bodies.filter_map(|(stream, body)| Some((stream, refusal(&body)?, body.style))).collect();
        if refused.len() < AT_ONCE {
            self.rejected.clear();
        }
        refused
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
    pub(super) fn expired(&mut self, now: Millis, holdings: &Holdings) -> Vec<(u32, Refusal, Style)> {
        let (whole_body, stranger_idle) = (self.whole_body, self.stranger_idle);
        let late = self.streams.extract_if(.., |_, body| {
            let time = body.time(whole_body, stranger_idle, holdings);
            time.is_some_and(|time| now.since(body.since) >= time)
        });
        let late: Vec<(u32, Body)> = late.take(AT_ONCE).collect();
        if late.iter().any(|(_, body)| !body.has_begun) && !std::mem::replace(&mut self.has_complained, true) {
            error!(
                "no byte of a request's body came in time; if no call gets through, Envoy's wasm filter lacks \
                 `allow_on_headers_stop_iteration: true`, which mode body needs"
            );
        }
        let refusal = |body: &Body| {
            too_slow(body.has_begun, body.time(whole_body, stranger_idle, holdings).unwrap_or(whole_body))
        };
        late.iter().map(|(stream, body)| (*stream, refusal(body), body.style)).collect()
    }
}

impl Body {
    /// How long it may take to begin, or to end once it has begun. `None`: as long as Envoy lets it.
    fn time(&self, whole_body: Millis, stranger_idle: Millis, holdings: &Holdings) -> Option<Millis> {
        let first_byte = whole_body.min(FIRST_BYTE);
        match self.has_begun {
            true => Some(whole_body),
            false if self.stranger(holdings).is_some() => Some(first_byte.min(stranger_idle)),
            false if self.may_idle => None,
            false => Some(first_byte),
        }
    }

    /// Its key, while nobody has said whose it is.
    fn stranger(&self, holdings: &Holdings) -> Option<Digest> {
        holdings.stranger(self.holding?)
    }
}

fn too_slow(has_begun: bool, time: Millis) -> Refusal {
    let message = if has_begun {
        format!("The request body did not come in full within {time}.")
    } else {
        format!("No byte of the request body came for {time}.")
    };
    refusal::own(Reason::RequestTimeout, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::caller_key;
    use crate::holdings::{Amount, Limits};
    use crate::source::Source;

    const WHOLE_BODY: Millis = Millis(30_000);
    const STRANGER_IDLE: Millis = Millis(5_000);

    const AMOUNT: Amount = Amount { calls: 10, header_bytes: 10, body_bytes: 10 };
    const LIMITS: Limits =
        Limits { paused_bytes: 10, tenant_bytes: 10, tenant_idle_streams: 10, strangers: AMOUNT, source: AMOUNT };

    fn holdings() -> Holdings {
        Holdings::new(LIMITS)
    }

    fn unknown() -> Refusal {
        refusal::own(Reason::UnknownKey, "The key is unknown.")
    }

    fn stranger(holdings: &mut Holdings, name: &str) -> Option<HoldingId> {
        holdings.of_stranger(&caller_key(name), Source::UNKNOWN, 0, true, Millis(0)).ok()
    }

    fn expired_of(incoming: &mut Incoming, now: u64, holdings: &Holdings) -> Vec<u32> {
        incoming.expired(Millis(now), holdings).into_iter().map(|(stream, ..)| stream).collect()
    }

    fn expired(incoming: &mut Incoming, now: u64) -> Vec<u32> {
        expired_of(incoming, now, &holdings())
    }

    #[test]
    fn streams_without_a_first_byte_expire_and_only_once() {
        let mut incoming = Incoming::new(WHOLE_BODY, STRANGER_IDLE);
        incoming.expect(1, Style::OpenAi, false, None, Millis(0));
        incoming.expect(2, Style::OpenAi, false, None, Millis(0));
        incoming.expect(3, Style::OpenAi, false, None, Millis(5));
        incoming.ends(2);
        assert!(expired(&mut incoming, 9_999).is_empty());
        assert_eq!(expired(&mut incoming, 10_000), [1]);
        assert!(expired(&mut incoming, 10_001).is_empty());
        assert_eq!(expired(&mut incoming, 10_005), [3]);
        assert!(incoming.is_empty());
    }

    #[test]
    fn a_body_that_has_begun_must_also_end() {
        let mut incoming = Incoming::new(WHOLE_BODY, STRANGER_IDLE);
        incoming.expect(1, Style::OpenAi, false, None, Millis(0));
        incoming.begins(1, Millis(5));
        assert!(expired(&mut incoming, 29_999).is_empty());
        let late = incoming.expired(Millis(30_000), &holdings());
        assert_eq!(late.iter().map(|(stream, refusal, _)| (*stream, refusal.status)).collect::<Vec<_>>(), [(1, 408)]);
        assert!(incoming.is_empty());
    }

    #[test]
    fn a_stream_that_may_idle_has_its_time_from_its_first_byte_on() {
        let mut incoming = Incoming::new(WHOLE_BODY, STRANGER_IDLE);
        incoming.expect(1, Style::Grpc, true, None, Millis(0));
        assert!(expired(&mut incoming, 200_000).is_empty() && !incoming.is_empty());
        incoming.begins(1, Millis(200_000));
        assert!(expired(&mut incoming, 229_999).is_empty());
        assert_eq!(expired(&mut incoming, 230_000), [1]);
    }

    #[test]
    fn a_whole_body_has_no_more_time_than_its_first_byte_where_less_is_configured() {
        let mut incoming = Incoming::new(Millis(500), STRANGER_IDLE);
        incoming.expect(1, Style::OpenAi, false, None, Millis(0));
        assert_eq!(expired(&mut incoming, 500), [1]);
    }

    #[test]
    fn a_stream_that_is_not_expected_any_more_does_not_begin() {
        let mut incoming = Incoming::new(WHOLE_BODY, STRANGER_IDLE);
        incoming.expect(1, Style::OpenAi, false, None, Millis(0));
        incoming.ends(1);
        incoming.begins(1, Millis(5));
        assert!(incoming.is_empty());
    }

    #[test]
    fn a_stranger_s_stream_may_not_idle_until_its_key_is_known_if_only_by_another_call_s_admission() {
        let (mut incoming, mut holdings) = (Incoming::new(WHOLE_BODY, STRANGER_IDLE), holdings());
        for (stream, name) in [(1, "sk-1"), (2, "sk-2"), (3, "sk-1")] {
            incoming.expect(stream, Style::Grpc, true, stranger(&mut holdings, name), Millis(0));
        }
        incoming.expect(4, Style::OpenAi, false, stranger(&mut holdings, "sk-2"), Millis(0));
        holdings.verified(caller_key("sk-1").digest(), &"a".into());
        assert_eq!(expired_of(&mut incoming, 5_000, &holdings), [2, 4]);
        assert!(expired_of(&mut incoming, 200_000, &holdings).is_empty(), "a known caller's may");
    }

    #[test]
    fn a_key_that_the_service_refused_ends_all_its_streams_and_no_others() {
        let (mut incoming, mut holdings) = (Incoming::new(WHOLE_BODY, STRANGER_IDLE), holdings());
        for (stream, name) in [(1, "sk-1"), (2, "sk-2"), (3, "sk-1")] {
            incoming.expect(stream, Style::Grpc, true, stranger(&mut holdings, name), Millis(0));
        }
        incoming.expect(4, Style::Grpc, true, None, Millis(0));
        incoming.reject(caller_key("sk-1").digest(), unknown());
        let refused = incoming.refused(&holdings);
        assert_eq!(refused, [(1, unknown(), Style::Grpc), (3, unknown(), Style::Grpc)]);
        incoming.expect(5, Style::Grpc, true, stranger(&mut holdings, "sk-1"), Millis(0));
        assert!(
            incoming.refused(&holdings).is_empty(),
            "a later stream may have been let in since: it is asked about anew"
        );
        assert_eq!(incoming.streams.len(), 3);
    }

    #[test]
    fn a_flood_is_ended_a_few_streams_at_a_time_whatever_ends_it() {
        let mut incoming = Incoming::new(WHOLE_BODY, STRANGER_IDLE);
        let many = Amount { calls: 1_000, ..AMOUNT };
        let mut holdings = Holdings::new(Limits { strangers: many, source: many, ..LIMITS });
        let streams = 2 * u32::try_from(AT_ONCE).unwrap() + 3;
        for stream in 0..streams {
            incoming.expect(stream, Style::Grpc, true, stranger(&mut holdings, "sk-1"), Millis(0));
            incoming.expect(streams + stream, Style::OpenAi, false, None, Millis(0));
        }
        incoming.reject(caller_key("sk-1").digest(), unknown());
        let counts = |next: &mut dyn FnMut() -> usize| [next(), next(), next(), next()];
        assert_eq!(counts(&mut || incoming.refused(&holdings).len()), [AT_ONCE, AT_ONCE, 3, 0]);
        assert_eq!(counts(&mut || expired(&mut incoming, 10_000).len()), [AT_ONCE, AT_ONCE, 3, 0]);
    }
}
