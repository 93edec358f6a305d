//! The contexts that Envoy creates: a root per worker and configuration, and a stream per request. They move data
//! between the host and the state machine, and decide nothing.

mod idle;
mod incoming;
mod root;
mod stream;
mod vm;

pub(crate) use root::Root;

use idle::Idle;
use incoming::Incoming;

use crate::caller::Digest;
use crate::config::{Config, Service};
use crate::exchange::{self, Answer};
use crate::host::{self, Bell, Buffer, Callout};
use crate::refusal::Style;
use crate::secret::Secret;
use crate::worker::Worker;
use sluice_policy::units::Millis;
use sluice_policy::wire::{self, CallerReply, CallerRequest, Refusal};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// What a root shares with its streams. The worker is borrowed for pure calls only, never across a call into the
/// host, which could come back into this VM.
#[derive(Clone)]
struct Shared {
    config: Rc<Config>,
    worker: Rc<RefCell<Worker>>,
    incoming: Rc<RefCell<Incoming>>,
    idle: Rc<RefCell<Idle>>,
    /// Wakes the root; absent before its first tick.
    bell: Rc<Cell<Option<Bell>>>,
}

impl Shared {
    /// Has the root send settlements that were added.
    fn ring(&self) {
        if let Some(bell) = self.bell.get()
            && self.worker.borrow_mut().must_ring()
        {
            bell.ring();
        }
    }

    /// Sends a JSON body to the quota service; `None` when it did not leave.
    fn post(&self, path: &str, body: &[u8], timeout: Duration) -> Option<u32> {
        post(&self.config.service, path, body, timeout)
    }
}

fn post(service: &Service, path: &str, body: &[u8], timeout: Duration) -> Option<u32> {
    let secret = service.secret.as_ref().map(Secret::expose);
    host::dispatch(&Callout { cluster: &service.cluster, path, secret, body, timeout })
}

/// A question whose key it is, once the service has answered or not.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(1);

impl Shared {
    /// Asks the service whose key this is; gives the callout's token.
    fn ask_whose(&self, question: &CallerRequest) -> Option<u32> {
        // A request of plain texts and numbers always serialises.
        let body = serde_json::to_vec(question).unwrap_or_default();
        self.post(wire::CALLERS_PATH, &body, QUESTION_TIMEOUT)
    }

    /// Takes the answer. Calls that wait for their bodies are refused where the service does not know their key; the others
    /// are refused by their own admission. Without an answer they stay strangers, and the service is asked again. `own` is
    /// the context that the host is in.
    fn learn_whose(&self, key: Digest, answer: &Answer, own: u32) {
        let now = host::now();
        match answer.read() {
            Some(CallerReply::Known { tenant }) => {
                self.worker.borrow_mut().belongs(key, &tenant, now);
            }
            Some(CallerReply::Rejected(refusal)) => {
                self.worker.borrow_mut().verified.evict(key);
                self.incoming.borrow_mut().reject(key, refusal);
                self.refuse_rejected(now, own);
            }
            None => {}
        }
    }

    /// Refuses calls that wait for their bodies and whose keys the service has refused, some of them at a time.
    fn refuse_rejected(&self, now: Millis, own: u32) {
        let refused = self.incoming.borrow_mut().refused(&self.worker.borrow().holdings);
        Self::refuse_all(&refused, now, own);
    }

    fn refuse_all(refused: &[(u32, Refusal, Style)], now: Millis, own: u32) {
        for (stream, refusal, style) in refused {
            let (reply, tags) = exchange::refused_while_reading(refusal, *style, now);
            host::reply_for(*stream, &reply, &tags, own);
        }
    }
}

/// The service's answer to the callout whose reply is at hand.
fn answer_at_hand(headers: usize, size: usize) -> Answer {
    let is_decided = headers > 0 && reply_head().0;
    let body = if is_decided { host::bytes(Buffer::CalloutReply, 0, size) } else { Vec::new() };
    Answer { is_decided, body }
}

/// Whether the callout's reply that is at hand comes from the service itself, and its status.
fn reply_head() -> (bool, u16) {
    let headers = host::headers(host::Map::CalloutReply);
    let status = headers.text(":status").and_then(|status| status.parse().ok()).unwrap_or(0);
    (headers.first(wire::DECIDED_HEADER).is_some(), status)
}
