//! Calls whose body has not begun to come. They must not wait for ever: when Envoy lacks
//! `allow_on_headers_stop_iteration`, which the filter cannot see, no body ever comes in mode body.

use crate::dialect::Dialect;
use crate::refusal::{self, LocalReply};
use log::error;
use sluice_policy::units::Millis;
use sluice_policy::wire::Reason;
use std::collections::BTreeMap;

/// From the head of a request to the first byte of its body; clients send both at once.
const PATIENCE: Millis = Millis(10_000);

#[derive(Debug, Default)]
pub(super) struct Bodiless {
    /// By the stream's context.
    since: BTreeMap<u32, Millis>,
    has_complained: bool,
}

impl Bodiless {
    pub(super) fn begins(&mut self, stream: u32, now: Millis) {
        self.since.insert(stream, now);
    }

    /// The body has come, or the call is over.
    pub(super) fn ends(&mut self, stream: u32) {
        self.since.remove(&stream);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    /// Takes out the streams that have waited for too long.
    pub(super) fn expired(&mut self, now: Millis) -> Vec<u32> {
        let is_expired = |since: &Millis| now.since(*since) >= PATIENCE;
        let expired: Vec<u32> = self.since.iter().filter(|(_, since)| is_expired(since)).map(|(id, _)| *id).collect();
        self.since.retain(|_, since| !is_expired(since));
        if !expired.is_empty() && !std::mem::replace(&mut self.has_complained, true) {
            error!(
                "no byte of a request's body came for {PATIENCE}; if no call gets through, Envoy's wasm filter lacks \
                 `allow_on_headers_stop_iteration: true`, which mode body needs"
            );
        }
        expired
    }
}

pub(super) fn reply() -> LocalReply {
    let message = format!("No byte of the request body came for {PATIENCE}.");
    refusal::reply(&refusal::own(Reason::RequestTimeout, message), Dialect::OpenAiChat, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_streams_without_a_body_expire_and_only_once() {
        let mut bodiless = Bodiless::default();
        bodiless.begins(1, Millis(0));
        bodiless.begins(2, Millis(0));
        bodiless.begins(3, Millis(5));
        bodiless.ends(2);
        assert!(bodiless.expired(Millis(9_999)).is_empty());
        assert_eq!(bodiless.expired(Millis(10_000)), [1]);
        assert!(bodiless.expired(Millis(10_001)).is_empty());
        assert_eq!(bodiless.expired(Millis(10_005)), [3]);
        assert!(bodiless.is_empty());
        assert_eq!(reply().status, 408);
    }
}
