//! The contexts that Envoy creates: a root per worker and configuration, and a stream per request. They move data
//! between the host and the state machine, and decide nothing.

mod incoming;
mod root;
mod stream;

pub(crate) use root::Root;

use incoming::Incoming;

use crate::config::Config;
use crate::host::{self, Callout};
use crate::worker::Worker;
use sluice_policy::wire;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// What a root shares with its streams. The worker is borrowed for pure calls only, never across a call into the
/// host, which could come back into this VM.
#[derive(Clone)]
struct Shared {
    config: Rc<Config>,
    worker: Rc<RefCell<Worker>>,
    incoming: Rc<RefCell<Incoming>>,
}

impl Shared {
    /// Sends a JSON body to the quota service; `None` when it did not leave.
    fn post(&self, path: &str, body: &[u8], timeout: Duration) -> Option<u32> {
        let service = &self.config.service;
        let secret = service.secret.as_deref();
        host::dispatch(&Callout { cluster: &service.cluster, path, secret, body, timeout })
    }
}

/// Whether the callout's reply that is at hand comes from the service itself, and its status.
fn reply_head() -> (bool, u16) {
    let headers = host::headers(host::Map::CalloutReply);
    let status = headers.text(":status").and_then(|status| status.parse().ok()).unwrap_or(0);
    (headers.first(wire::DECIDED_HEADER).is_some(), status)
}
