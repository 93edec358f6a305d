//! What an upstream saw: how many calls at once, and each of them in the order of arrival.

use super::record::{Record, Span};
use super::usage::Usage;
use hyper::HeaderMap;
use hyper::body::Bytes;
use hyper::http::request::Parts;
use serde_json::Value;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// The trailers of a request, beside its headers.
#[derive(Clone, Default)]
pub(super) struct Trailers(pub(super) HeaderMap);

/// One call as it arrived, and as it ended.
#[derive(Clone, Debug)]
pub struct Call {
    pub path: String,
    pub query: Option<String>,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// What came behind the body.
    pub trailers: HeaderMap,
    /// What the upstream told its client; `None` until it has, or when it did not.
    pub usage: Option<Usage>,
    pub ended: bool,
}

impl Call {
    /// A header's value, when it is there exactly once.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        let first = values.next()?.to_str().ok()?;
        values.next().is_none().then_some(first)
    }

    /// The body as JSON; null when it is not.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// A handle on the log; clones share it.
#[derive(Clone)]
pub struct CallLog {
    state: Arc<Mutex<State>>,
    gate: Arc<watch::Sender<Gate>>,
}

/// Who may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    /// To so many.
    Held(usize),
}

impl Gate {
    /// Lets one through, if it may go on.
    fn pass(&mut self) -> bool {
        match self {
            Self::Open => true,
            Self::Held(passes) => {
                let passed = *passes > 0;
                *passes -= usize::from(passed);
                passed
            }
        }
    }
}

#[derive(Default)]
struct State {
    running: usize,
    max_running: usize,
    /// In the order of arrival, as all that follows.
    spans: Vec<Span>,
    /// As long as [`CallLog::only_times`] was not called.
    calls: Vec<Call>,
    without_calls: bool,
}

impl Default for CallLog {
    fn default() -> Self {
        Self { state: Arc::default(), gate: Arc::new(watch::Sender::new(Gate::Open)) }
    }
}

impl CallLog {
    /// Calls that have arrived and not ended.
    #[must_use]
    pub fn running(&self) -> usize {
        self.state().running
    }

    /// The most that ever ran at once.
    #[must_use]
    pub fn max_running(&self) -> usize {
        self.state().max_running
    }

    /// The most that ran at once since the last time this was asked.
    pub fn take_max_running(&self) -> usize {
        let mut state = self.state();
        let running = state.running;
        std::mem::replace(&mut state.max_running, running)
    }

    /// Who ran when, so far.
    #[must_use]
    pub fn record(&self) -> Record {
        Record::new(self.state().spans.clone())
    }

    /// From now on only the times of calls are kept: of a hundred thousand calls the rest is a lot.
    pub fn only_times(&self) {
        self.state().without_calls = true;
    }

    /// Counts a call that something else runs than one of our servers. It ends when the ticket is dropped.
    #[must_use]
    pub fn enter(&self, tenant: &str, level: u8) -> Ticket {
        self.add(Span::begun(tenant, Some(level)), || None)
    }

    /// All calls so far, in the order of arrival.
    #[must_use]
    pub fn all(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.state().spans.len()
    }

    #[must_use]
    pub fn last(&self) -> Option<Call> {
        self.state().calls.last().cloned()
    }

    /// From now on every call stops, running, before its answer, until [`CallLog::release`].
    pub fn hold(&self) {
        self.gate.send_replace(Gate::Held(0));
    }

    /// Lets one of the calls that are held go on, or the next one to come.
    pub fn release_one(&self) {
        self.gate.send_modify(|gate| {
            if let Gate::Held(passes) = gate {
                *passes += 1;
            }
        });
    }

    pub fn release(&self) {
        self.gate.send_replace(Gate::Open);
    }

    /// Records an arrival, and waits while calls are held.
    pub(super) async fn begin(&self, parts: &Parts, body: Bytes) -> Ticket {
        let header = |name: &str| parts.headers.get(name)?.to_str().ok();
        let level = header("x-priority").and_then(|level| level.parse().ok());
        let ticket = self.add(Span::begun(header("x-tenant-id").unwrap_or_default(), level), || {
            let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().map(str::to_owned));
            let headers = parts.headers.clone();
            let Trailers(trailers) = parts.extensions.get().cloned().unwrap_or_default();
            Some(Call { path, query, headers, body, trailers, usage: None, ended: false })
        });
        let mut gate = self.gate.subscribe();
        while !self.passes() {
            // Fails only when the sender is gone, and `self` holds it.
            let _ = gate.changed().await;
        }
        ticket
    }

    fn passes(&self) -> bool {
        let mut passes = false;
        // Nobody need be woken: whoever waits sees no more than before.
        self.gate.send_if_modified(|gate| {
            passes = gate.pass();
            false
        });
        passes
    }

    fn add(&self, span: Span, call: impl FnOnce() -> Option<Call>) -> Ticket {
        let mut state = self.state();
        state.running += 1;
        state.max_running = state.max_running.max(state.running);
        // Not before the lock: spans are in the order in which they began.
        state.spans.push(Span { began: Instant::now(), ..span });
        if !state.without_calls {
            state.calls.extend(call());
        }
        Ticket { log: self.clone(), index: state.spans.len() - 1, ended: false }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running call. Dropping it (the client left) ends it as well.
pub struct Ticket {
    log: CallLog,
    index: usize,
    ended: bool,
}

impl Ticket {
    /// Counts the call as ended. Call this before its last byte is handed on.
    pub(super) fn end(&mut self, usage: Option<Usage>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let mut state = self.log.state();
        state.running -= 1;
        state.spans[self.index].ended = Some(Instant::now());
        if let Some(call) = state.calls.get_mut(self.index) {
            call.usage = usage;
            call.ended = true;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.ended {
            self.log.state().spans[self.index].was_cut = true;
        }
        self.end(None);
    }
}
