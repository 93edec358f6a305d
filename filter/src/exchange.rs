//! One request and its reply as a state machine that knows nothing of the proxy: what happens goes in, what to do
//! comes out as a [`Step`].
//!
//! The stages of a call that goes well: its headers are accepted ([`Stage::Reading`]), its body is read and the
//! service is asked ([`Stage::Asking`]), it goes upstream and its reply is metered ([`Stage::Passed`]), it is
//! settled ([`Stage::Over`]).
//!
//! **Invariant**: from the moment an admission was asked for until the service rejects it, exactly one settlement
//! is owed for its id, and every way out of [`Stage::Asking`] and [`Stage::Passed`] but a rejection goes through
//! [`Exchange::settle`], which leaves the stage.

mod accept;
mod answer;
mod passed;

use crate::caller::CallerKey;
use crate::config::{Config, Mode, Route};
use crate::dialect::{Call, Dialect};
use crate::headers::{HeaderEdit, Headers};
use crate::refusal::{self, LocalReply};
use crate::verified::Tags;
use crate::worker::Worker;
pub(crate) use answer::Answer;
pub(crate) use passed::Ended;
use passed::Passed;
use sluice_policy::units::{AdmissionId, Millis, Priority, Tokens};
use sluice_policy::wire::{AdmissionRequest, Outcome, Reason, Refusal, Settlement, Usage, WIRE_VERSION};
use std::rc::Rc;

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Hold the request; there is more to come.
    Hold,
    /// Hold the request and ask the service. Before that, replace the body if there is a new one.
    Ask { request: Box<AdmissionRequest>, body: Option<Vec<u8>>, tags: LogTags },
    /// Let the request go upstream, changed and tagged like this.
    Forward { edits: Vec<HeaderEdit>, tags: LogTags },
    /// Answer the client.
    Reply { reply: LocalReply, tags: LogTags },
}

/// Names under `wasm.` in the filter state, and their values.
pub(crate) type LogTags = Vec<(&'static str, String)>;

/// The names of the filter state under `wasm.`, for access logs; the table is in the crate's documentation.
mod tag {
    pub(super) const TENANT: &str = "sluice.tenant";
    pub(super) const POOL: &str = "sluice.pool";
    pub(super) const PRIORITY: &str = "sluice.priority";
    pub(super) const ADMISSION: &str = "sluice.admission_id";
    pub(super) const WAIT: &str = "sluice.wait_ms";
    pub(super) const REASON: &str = "sluice.reason";
}

#[derive(Debug)]
pub(crate) struct Exchange {
    config: Rc<Config>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    New,
    Reading(Caller),
    Asking(Asked),
    Passed(Passed),
    /// Refused, or settled: nothing is owed any more.
    Over,
}

/// What the headers told.
#[derive(Debug)]
struct Caller {
    route: Rc<Route>,
    key: CallerKey,
    priority: Option<Priority>,
    /// How long the client is willing to wait in the queue.
    deadline: Option<Millis>,
    /// The request tells its body's length in a header.
    has_length: bool,
    /// The client's headers that must not go upstream.
    removals: Vec<HeaderEdit>,
}

/// A call that the service has been asked about.
#[derive(Debug)]
struct Asked {
    caller: Caller,
    id: AdmissionId,
    model: Option<String>,
    input_tokens: Tokens,
    /// The length of the body after it was changed to ask for a usage event; `None`: it was not.
    injected_bytes: Option<usize>,
}

impl Exchange {
    pub(crate) fn new(config: Rc<Config>) -> Self {
        Self { config, stage: Stage::New }
    }

    /// The request's headers, all of them.
    pub(crate) fn request_headers(&mut self, headers: &Headers, is_end: bool, worker: &mut Worker) -> Step {
        let accepted = accept::accept(&self.config, headers, is_end);
        match accepted {
            Err((refusal, dialect)) => self.refuse(&refusal, dialect, None),
            Ok((caller, content_length)) => match self.config.mode {
                Mode::Body => {
                    self.stage = Stage::Reading(caller);
                    Step::Hold
                }
                Mode::Headers => {
                    let bytes = content_length.unwrap_or(accept::UNKNOWN_LENGTH_BYTES);
                    self.ask(caller, None, bytes, worker)
                }
            },
        }
    }

    /// Whether the request must stay where it is.
    pub(crate) fn holds_request(&self) -> bool {
        matches!(self.stage, Stage::Reading(_) | Stage::Asking(_))
    }

    /// Whether the body is still being read.
    pub(crate) fn reads_body(&self) -> bool {
        matches!(self.stage, Stage::Reading(_))
    }

    /// So many bytes of the body have come by now, and more may follow.
    pub(crate) fn request_body_grew(&mut self, total_bytes: u64) -> Step {
        let dialect = self.dialect();
        match accept::check_length(total_bytes, self.config.body_max_bytes) {
            Err(refusal) if self.reads_body() => self.refuse(&refusal, dialect, None),
            _ => Step::Hold,
        }
    }

    /// The body is complete.
    pub(crate) fn request_body_ended(&mut self, body: &[u8], worker: &mut Worker) -> Step {
        let Some(caller) = self.take_reading() else { return Step::Hold };
        let dialect = caller.route.dialect;
        if let Err(refusal) = accept::check_length(body.len() as u64, self.config.body_max_bytes) {
            return self.refuse(&refusal, dialect, None);
        }
        match dialect.parse(body, self.config.sequences_max) {
            Ok(call) => self.ask(caller, Some((call, body)), body.len() as u64, worker),
            Err(fault) => {
                let mut refusal = refusal::own(Reason::InvalidBody, fault.message);
                refusal.param = fault.param.map(str::to_owned);
                self.refuse(&refusal, dialect, None)
            }
        }
    }

    fn ask(&mut self, caller: Caller, call: Option<(Call, &[u8])>, body_bytes: u64, worker: &mut Worker) -> Step {
        let (call, original) = call.unzip();
        let guess = Tokens(body_bytes.div_ceil(4));
        let body = call
            .as_ref()
            .zip(original)
            .and_then(|(call, original)| call.usage_request.as_ref().and_then(|edit| edit.apply(original)));
        let id = worker.ids.mint();
        let tags = vec![(tag::ADMISSION, id.to_string())];
        let request = AdmissionRequest {
            version: WIRE_VERSION,
            id: id.clone(),
            key: caller.key.proof(),
            model: call.as_ref().map(|call| call.model.clone()),
            pool: caller.route.pool.clone(),
            input_tokens: call.as_ref().map_or(guess, |call| call.input_tokens),
            max_tokens: call.as_ref().and_then(|call| call.max_tokens),
            sequences: call.as_ref().map_or(1, |call| call.sequences),
            stream: call.as_ref().is_some_and(|call| call.stream),
            body_bytes,
            priority: caller.priority,
            deadline_ms: caller.deadline,
        };
        self.stage = Stage::Asking(Asked {
            caller,
            id,
            model: request.model.clone(),
            input_tokens: request.input_tokens,
            injected_bytes: body.as_ref().map(Vec::len),
        });
        Step::Ask { request: Box::new(request), body, tags }
    }

    /// The body could not be replaced, so the reply will be what the client asked for.
    pub(crate) fn body_was_not_replaced(&mut self) {
        if let Stage::Asking(asked) = &mut self.stage {
            asked.injected_bytes = None;
        }
    }

    /// Whether a settlement is still to come.
    pub(crate) fn owes_settlement(&self) -> bool {
        matches!(self.stage, Stage::Asking(_) | Stage::Passed(_))
    }

    /// The client left, or the stream ended in some other way than by the end of its reply.
    pub(crate) fn abandoned(&mut self, ended: Ended, worker: &mut Worker) {
        match &self.stage {
            Stage::New | Stage::Reading(_) | Stage::Over => {}
            Stage::Asking(_) => self.settle(Outcome::Cancelled, Usage::default(), worker),
            Stage::Passed(passed) => {
                let (outcome, usage) = passed.account_broken(ended);
                self.settle(outcome, usage, worker);
            }
        }
    }

    /// Leaves [`Stage::Reading`]; any other stage stays, whatever arrives out of turn.
    fn take_reading(&mut self) -> Option<Caller> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Reading(caller) => Some(caller),
            other => {
                self.stage = other;
                None
            }
        }
    }

    /// Leaves [`Stage::Asking`]; any other stage stays. The caller answers for the settlement.
    fn take_asking(&mut self) -> Option<Asked> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Asking(asked) => Some(asked),
            other => {
                self.stage = other;
                None
            }
        }
    }

    /// Reports the end of an admission, once: it leaves the stage that owes the settlement.
    fn settle(&mut self, outcome: Outcome, usage: Usage, worker: &mut Worker) {
        let (id, charge_to) = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Asking(asked) => (asked.id, None),
            Stage::Passed(passed) => (passed.id, Some(passed.charge_to)),
            Stage::New | Stage::Reading(_) | Stage::Over => return,
        };
        worker.settle(Settlement { id, outcome, usage, charge_to });
    }

    fn refuse(&mut self, refusal: &Refusal, dialect: Dialect, id: Option<&AdmissionId>) -> Step {
        self.stage = Stage::Over;
        Step::Reply { reply: refusal::reply(refusal, dialect, id), tags: tags_of_refusal(refusal) }
    }

    fn dialect(&self) -> Dialect {
        match &self.stage {
            Stage::Reading(caller) => caller.route.dialect,
            Stage::Asking(asked) => asked.caller.route.dialect,
            Stage::New | Stage::Passed(_) | Stage::Over => Dialect::OpenAiChat,
        }
    }
}

/// The reply and the tags of a call that is refused from outside of its exchange, while its body is read: nothing is
/// owed for it.
pub(crate) fn refused_while_reading(refusal: &Refusal) -> (LocalReply, LogTags) {
    (refusal::reply(refusal, Dialect::OpenAiChat, None), tags_of_refusal(refusal))
}

fn tags_of_refusal(refusal: &Refusal) -> LogTags {
    let mut tags = vec![(tag::REASON, refusal.reason.as_str().to_owned())];
    if refusal.waited_ms > Millis::ZERO {
        tags.push((tag::WAIT, refusal.waited_ms.0.to_string()));
    }
    tags
}

/// The access-log tags of a call that goes upstream.
fn tags_of(tags: &Tags, waited: Millis) -> LogTags {
    vec![
        (tag::TENANT, tags.tenant.to_string()),
        (tag::POOL, tags.pool.to_string()),
        (tag::PRIORITY, u8::from(tags.priority).to_string()),
        (tag::WAIT, waited.0.to_string()),
    ]
}

#[cfg(test)]
mod tests;
