//! At whose expense Envoy holds a call: its tenant's where the worker knows the key, and else a stranger's, until the
//! service has said whose it is.

use super::body::is_stream;
use super::{Caller, Exchange, Step};
use crate::caller::Digest;
use crate::config::Mode;
use crate::dialect::Reads;
use crate::headers::{self, HeaderEdit, Headers};
use crate::holdings::{Full, HoldingId};
use crate::refusal::{self, Style};
use crate::worker::Worker;
use sluice_policy::units::Millis;
use sluice_policy::wire::{CallerRequest, Refusal, WIRE_VERSION};

/// So much of a stranger's body may come before the service is asked about it without delay. Smaller bodies are mostly
/// complete at once, and the admission says whose they are.
const TRUSTED_BYTES: u64 = 64 << 10;

/// A question to the service, and the key that it is about.
pub(crate) type Question = (Digest, CallerRequest);

impl Exchange {
    /// Finds room for a call whose headers are accepted.
    pub(super) fn enter(
        &mut self,
        caller: &Caller,
        headers: &Headers,
        is_end: bool,
        worker: &mut Worker,
        now: Millis,
    ) -> Result<(), Full> {
        let has_body =
            !is_end && self.config.mode == Mode::Body && !matches!(caller.route.dialect.reads(), Reads::Models);
        let is_idle = has_body && is_stream(caller);
        let tenant = worker.verified.tenant(caller.key.digest(), now, self.config.verified_ttl);
        let holding = match tenant {
            Some(_) if !has_body => return Ok(()),
            Some(tenant) => worker.holdings.of_tenant(tenant, is_idle)?,
            None => {
                let source = (worker.locate)();
                worker.holdings.of_stranger(&caller.key, source, headers.bytes(), is_idle, now)?
            }
        };
        self.holding = Some(holding);
        Ok(())
    }

    /// What is held for this call, which says whether its caller is a stranger.
    pub(crate) fn holding(&self) -> Option<HoldingId> {
        self.holding
    }

    /// What to ask the service at once, where much of a stranger's body is held.
    pub(crate) fn question(&self, worker: &mut Worker, now: Millis) -> Option<Question> {
        let holding = self.holding.filter(|_| self.reads_body())?;
        if worker.holdings.body_bytes(holding) <= TRUSTED_BYTES {
            return None;
        }
        let key = worker.holdings.question(holding, now)?;
        Some((key.digest(), CallerRequest { version: WIRE_VERSION, key: key.proof() }))
    }

    /// Trailers go on as they are but for names that are not a client's to set.
    pub(crate) fn request_trailers(&self, trailers: &Headers) -> Vec<HeaderEdit> {
        let key_headers = &self.config.key_headers;
        trailers.removals(|name| headers::is_forged_by_client(name) || key_headers.iter().any(|key| key == name))
    }

    pub(super) fn refuse_full(&mut self, full: Full, style: Style, worker: &mut Worker, now: Millis) -> Step {
        worker.counters.strangers_refused += u64::from(full == Full::Strangers);
        self.refuse(&refusal::full(full), style, None, worker, now)
    }

    /// Counts what is held for this call by now, if there is room for it.
    pub(super) fn hold(&mut self, total_bytes: u64, worker: &mut Worker) -> Result<(), Refusal> {
        let Some(holding) = self.holding else { return Ok(()) };
        worker.holdings.hold(holding, total_bytes).map_err(|full| {
            worker.counters.strangers_refused += u64::from(full == Full::Strangers);
            refusal::full(full)
        })
    }
}
