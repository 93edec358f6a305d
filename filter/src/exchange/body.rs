//! The request's body while it comes.

use super::{Caller, Ended, Exchange, Stage, Step, accept};
use crate::config::Config;
use crate::dialect::{Call, Fault, Parse, Reads, grpc};
use crate::refusal::{self, Style};
use crate::worker::Worker;
use sluice_policy::units::Millis;
use sluice_policy::wire::{Outcome, Reason, Refusal, Usage};
use std::borrow::Cow;

/// What a call needs to see of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    /// All of it, once it is complete.
    Whole,
    /// Its length.
    Length,
    /// Each piece, until it is complete.
    Pieces,
    /// Each piece, and to keep it: messages go on one by one.
    Messages,
    /// Nothing: it stays, or it passes.
    Nothing,
}

impl Exchange {
    pub(crate) fn wants(&self) -> Wants {
        match &self.stage {
            Stage::New | Stage::Over => Wants::Nothing,
            _ if self.pipe.is_some() => Wants::Messages,
            Stage::Reading(caller) => match caller.route.dialect.reads() {
                Reads::Json(_) => Wants::Whole,
                Reads::Messages { .. } => Wants::Pieces,
                Reads::Length | Reads::Models => Wants::Length,
            },
            Stage::Listing(_) | Stage::Asking(_) | Stage::Passed(_) | Stage::Idle(_) => Wants::Nothing,
        }
    }

    /// Whether the body is still being read.
    pub(crate) fn reads_body(&self) -> bool {
        matches!(self.stage, Stage::Reading(_))
    }

    /// Whether the body may begin whenever its client likes: a stream of messages that was opened for later.
    pub(crate) fn may_idle(&self) -> bool {
        matches!(&self.stage, Stage::Reading(caller) if is_stream(caller))
    }

    /// Envoy holds so many bytes of the body by now, and more may follow.
    pub(crate) fn request_body_grew(&mut self, total_bytes: u64, worker: &mut Worker, now: Millis) -> Step {
        if !self.holds_request() {
            return Step::Hold;
        }
        if let Err(refusal) = accept::check_length(total_bytes, self.config.body_max_bytes) {
            return self.break_off(&refusal, worker, now);
        }
        match self.hold(total_bytes, worker) {
            Err(refusal) => self.break_off(&refusal, worker, now),
            Ok(()) => Step::Hold,
        }
    }

    /// The body is complete. `body` is empty where the call wants its length only.
    pub(crate) fn request_body_ended(
        &mut self,
        body: &[u8],
        total_bytes: u64,
        worker: &mut Worker,
        now: Millis,
    ) -> Step {
        if !self.reads_body() {
            return Step::Hold;
        }
        let grown = self.request_body_grew(total_bytes, worker, now);
        let Some(caller) = self.take_reading() else { return grown };
        let (style, reads) = (caller.style, caller.route.dialect.reads());
        match reads {
            Reads::Json(parse) => match read_call(parse, body, &caller, &self.config) {
                Ok(call) => self.ask(caller, Some(call), total_bytes, worker),
                Err(fault) => {
                    let mut refusal = refusal::own(Reason::InvalidBody, fault.message);
                    refusal.param = fault.param.map(Cow::into_owned);
                    self.refuse(&refusal, style, None, worker, now)
                }
            },
            Reads::Length | Reads::Models | Reads::Messages { .. } => self.ask(caller, None, total_bytes, worker),
        }
    }

    /// The next bytes of a body whose pieces are wanted. `held_bytes`: what Envoy holds of it, these included.
    pub(crate) fn request_body_piece(
        &mut self,
        piece: &[u8],
        held_bytes: u64,
        is_end: bool,
        worker: &mut Worker,
        now: Millis,
    ) -> Step {
        if let step @ Step::Reply { .. } = self.request_body_grew(held_bytes, worker, now) {
            return step;
        }
        let Some(frames) = &mut self.frames else { return Step::Hold };
        let read = frames.push(piece).and_then(|()| if is_end { frames.end() } else { Ok(()) });
        let wrong = match (read, frames.complete()) {
            (Err(wrong), _) => Some(wrong),
            (Ok(()), 0) if is_end => Some(grpc::Wrong::CutOff),
            (Ok(()), 0 | 1) => None,
            (Ok(()), _) => Some(grpc::Wrong::Several),
        };
        match wrong {
            Some(wrong) => self.break_off(&wrong.refusal(), worker, now),
            None if is_end => match self.take_reading() {
                Some(caller) => self.ask(caller, None, held_bytes, worker),
                None => Step::Hold,
            },
            None => Step::Hold,
        }
    }

    /// Ends a call in the middle of its request, wherever it has come.
    pub(super) fn break_off(&mut self, refusal: &Refusal, worker: &mut Worker, now: Millis) -> Step {
        let (style, id) = match &self.stage {
            Stage::Reading(caller) | Stage::Listing(caller) | Stage::Idle(caller) => (caller.style, None),
            Stage::Asking(asked) => (asked.caller.style, Some(asked.id.clone())),
            Stage::Passed(passed) => (passed.style, Some(passed.id.clone())),
            Stage::New | Stage::Over => (Style::Plain, None),
        };
        match &self.stage {
            Stage::New | Stage::Over => return Step::Hold,
            Stage::Reading(_) | Stage::Listing(_) | Stage::Idle(_) => {}
            Stage::Asking(_) => self.settle(Outcome::Cancelled, Usage::default(), None, worker),
            Stage::Passed(_) => self.abandoned(Ended::ByClient, worker, now),
        }
        self.refuse(refusal, style, id.as_ref(), worker, now)
    }
}

/// Reads a body. A model server obeys the path's model or the body's, so the two must be one.
fn read_call(parse: Parse, body: &[u8], caller: &Caller, config: &Config) -> Result<Call, Fault> {
    let of_path = caller.path_model.as_ref().map(|of_path| of_path.model.as_str());
    let mut call = parse(body, config.rules(&caller.route, of_path.is_some()))?;
    if !caller.route.splice_usage {
        call.usage_request = None;
    }
    match (call.model.as_deref(), of_path) {
        (Some(of_body), Some(of_path)) if of_body != of_path => {
            Err(Fault::field("model", "must be the one that the path names, or be left out"))
        }
        _ => Ok(call),
    }
}

/// Whether messages come one by one, each when its client likes.
pub(super) fn is_stream(caller: &Caller) -> bool {
    matches!(caller.route.dialect.reads(), Reads::Messages { is_stream: true })
}
