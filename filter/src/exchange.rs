//! One request and its reply as a state machine that knows nothing of the proxy: what happens goes in, what to do
//! comes out as a [`Step`].
//!
//! The stages of a call that goes well: its headers are accepted ([`Stage::Reading`]), its body is read and the
//! service is asked ([`Stage::Asking`]), it goes upstream and its reply is metered ([`Stage::Passed`]), it is
//! settled ([`Stage::Over`]). A list of models is asked for and answered ([`Stage::Listing`]), and nothing goes upstream.
//! A stream of messages goes from asking to its end once a message, and is [`Stage::Idle`] in between (`exchange/pipe.rs`).
//!
//! **Invariant**: from the moment an admission was asked for until the service rejects it, exactly one settlement
//! is owed for its id, and every way out of [`Stage::Asking`] and [`Stage::Passed`] but a rejection goes through
//! [`Exchange::settle`], which leaves the stage.
//!
//! **Invariant**: the worker counts what Envoy or a [`Pipe`] holds for this call exactly while it does, as the call's `holding`.

mod accept;
mod answer;
mod ask;
mod body;
mod ending;
mod enter;
mod passed;
mod pipe;

use crate::caller::CallerKey;
use crate::config::{Config, Mode};
use crate::dialect::{BodyEdit, Limits, Reads, Turn, UsageRequest, grpc};
use crate::headers::{HeaderEdit, Headers};
use crate::holdings::HoldingId;
use crate::refusal::{self, LocalReply, Style};
use crate::route::{Pattern, Route};
use crate::verified::Tags;
use crate::worker::Worker;
use accept::Refused;
pub(crate) use answer::Answer;
pub(crate) use body::Wants;
pub(crate) use ending::Ended;
use passed::Passed;
pub(crate) use passed::is_failure;
use pipe::Pipe;
pub(crate) use pipe::idle_too_long;
use sluice_policy::units::{AdmissionId, Millis, Priority, Tokens};
use sluice_policy::wire::{AdmissionRequest, ModelsRequest, Outcome, Refusal, Settlement, Timing, Usage};
use std::ops::Range;
use std::rc::Rc;

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Hold the request; there is more to come.
    Hold,
    /// Hold the request and ask the service.
    Ask { request: Box<AdmissionRequest>, tags: LogTags },
    /// Hold the request and ask the service what there is.
    List { request: Box<ModelsRequest> },
    /// Let the request go upstream, changed and tagged like this. If its body cannot be changed,
    /// [`Exchange::body_was_not_changed`] tells what to do instead.
    Forward { edits: Vec<HeaderEdit>, body: Vec<BodyEdit>, tags: LogTags },
    /// Nothing: what came may go on.
    Continue,
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
    /// The messages of a gRPC call, which go on coming after it was admitted.
    frames: Option<grpc::Frames>,
    /// The field by which they name their model's other name upstream.
    rename: Option<Vec<u8>>,
    /// Where they are a stream.
    pipe: Option<Pipe>,
    /// What is held for this call until it goes on, and for a stream as long as it lives.
    holding: Option<HoldingId>,
}

#[derive(Debug)]
enum Stage {
    New,
    Reading(Caller),
    Listing(Caller),
    Asking(Asked),
    Passed(Passed),
    /// A stream of messages between two of them.
    Idle(Caller),
    /// Refused, or settled: nothing is owed any more.
    Over,
}

/// What the headers told.
#[derive(Debug)]
struct Caller {
    route: Rc<Route>,
    /// How its errors and rate headers are written.
    style: Style,
    path_model: Option<PathModel>,
    /// What goes upstream instead of the path and query that came.
    path: Option<String>,
    key: CallerKey,
    priority: Option<Priority>,
    /// How long the client is willing to wait in the queue.
    deadline: Option<Millis>,
    /// The request tells its body's length in a header.
    has_length: bool,
    /// The content type goes upstream as it is.
    says_json: bool,
    /// The client's headers that must not go upstream.
    removals: Vec<HeaderEdit>,
}

/// A model that the path names, and how to name another one there.
#[derive(Debug)]
struct PathModel {
    pattern: Pattern,
    /// With what goes upstream of its query.
    path: String,
    model: String,
}

/// A call that the service has been asked about.
#[derive(Debug)]
struct Asked {
    caller: Caller,
    id: AdmissionId,
    model: Option<String>,
    input_tokens: Tokens,
    prompts: u32,
    sequences: u32,
    n: u32,
    /// In dialects that do not count tokens: what each message costs.
    fixed: Option<Tokens>,
    /// The client asked for a stream of events.
    streams: bool,
    max_tokens: Option<Tokens>,
    turns: u32,
    echoes: bool,
    body_bytes: usize,
    usage_request: Option<UsageRequest>,
    model_place: Option<Range<usize>>,
    limits: Limits,
    turn: Option<Turn>,
}

impl Exchange {
    pub(crate) fn new(config: Rc<Config>) -> Self {
        Self { config, stage: Stage::New, frames: None, rename: None, pipe: None, holding: None }
    }

    /// The request's headers, all of them.
    pub(crate) fn request_headers(
        &mut self,
        headers: &Headers,
        is_end: bool,
        worker: &mut Worker,
        now: Millis,
    ) -> Step {
        let (caller, content_length) = match accept::accept(&self.config, headers, is_end) {
            Ok(accepted) => accepted,
            Err(refused) => {
                let Refused { refusal, style, allow } = *refused;
                let mut step = self.refuse(&refusal, style, None, worker, now);
                if let (Step::Reply { reply, .. }, Some(allow)) = (&mut step, allow) {
                    reply.headers.push(("allow", allow));
                }
                return step;
            }
        };
        if let Err(full) = self.enter(&caller, headers, is_end, worker, now) {
            return self.refuse_full(full, caller.style, worker, now);
        }
        match (caller.route.dialect.reads(), self.config.mode) {
            (Reads::Models, _) => self.list(caller),
            (_, Mode::Headers) => {
                let bytes = content_length.unwrap_or(accept::UNKNOWN_LENGTH_BYTES);
                self.ask(caller, None, if is_end { 0 } else { bytes }, worker)
            }
            (_, Mode::Body) if is_end => self.ask(caller, None, 0, worker),
            (reads, Mode::Body) => {
                if let Reads::Messages { is_stream } = reads {
                    self.frames = Some(grpc::Frames::new(self.config.body_max_bytes));
                    self.pipe = is_stream.then(Pipe::default);
                }
                self.stage = Stage::Reading(caller);
                Step::Hold
            }
        }
    }

    /// Whether the request must stay where it is.
    pub(crate) fn holds_request(&self) -> bool {
        matches!(self.stage, Stage::Reading(_) | Stage::Listing(_) | Stage::Asking(_))
    }

    /// How errors are to be written for this caller, while its body is read.
    pub(crate) fn style_while_reading(&self) -> Option<Style> {
        match &self.stage {
            Stage::Reading(caller) => Some(caller.style),
            Stage::New | Stage::Listing(_) | Stage::Asking(_) | Stage::Passed(_) | Stage::Idle(_) | Stage::Over => None,
        }
    }

    /// Whether a settlement is still to come.
    pub(crate) fn owes_settlement(&self) -> bool {
        matches!(self.stage, Stage::Asking(_) | Stage::Passed(_))
    }

    /// The client left, or the stream ended in some other way than by the end of its reply.
    pub(crate) fn abandoned(&mut self, ended: Ended, worker: &mut Worker, now: Millis) {
        self.release(worker);
        match &mut self.stage {
            Stage::New | Stage::Reading(_) | Stage::Listing(_) | Stage::Idle(_) | Stage::Over => {}
            Stage::Asking(_) => self.settle(Outcome::Cancelled, Usage::default(), None, worker),
            // OpenAI's own client closes its connection at `[DONE]`, before the server can end its reply.
            Stage::Passed(passed) if passed.is_whole() => drop(self.reply_ended(worker, now)),
            Stage::Passed(passed) => {
                passed.is_abandoned = ended.may_run_on();
                let (outcome, usage) = passed.account_broken(ended);
                let timing = passed.timing(now);
                self.settle(outcome, usage, timing, worker);
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

    /// Leaves [`Stage::Listing`]; any other stage stays.
    fn take_listing(&mut self) -> Option<Caller> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Listing(caller) => Some(caller),
            other => {
                self.stage = other;
                None
            }
        }
    }

    /// Reports the end of an admission, once: it leaves the stage that owes the settlement.
    fn settle(&mut self, outcome: Outcome, usage: Usage, timing: Option<Timing>, worker: &mut Worker) {
        let (id, charge_to, abandoned) = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Asking(asked) => (asked.id, None, false),
            Stage::Passed(passed) => (passed.id, Some(passed.charge_to), passed.is_abandoned),
            Stage::New | Stage::Reading(_) | Stage::Listing(_) | Stage::Idle(_) | Stage::Over => return,
        };
        worker.settle(Settlement { id, outcome, usage, charge_to, timing, abandoned });
    }

    fn refuse(
        &mut self,
        refusal: &Refusal,
        style: Style,
        id: Option<&AdmissionId>,
        worker: &mut Worker,
        now: Millis,
    ) -> Step {
        self.release(worker);
        self.stage = Stage::Over;
        Step::Reply { reply: refusal::reply(refusal, style, id, now), tags: tags_of_refusal(refusal) }
    }

    /// Nothing is held for this call any more.
    fn release(&mut self, worker: &mut Worker) {
        if let Some(holding) = self.holding.take() {
            worker.holdings.end(holding);
        }
    }
}

/// The reply and the tags of a call that is refused from outside of its exchange while nothing is owed for it.
pub(crate) fn refused_while_reading(refusal: &Refusal, style: Style, now: Millis) -> (LocalReply, LogTags) {
    (refusal::reply(refusal, style, None, now), tags_of_refusal(refusal))
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
