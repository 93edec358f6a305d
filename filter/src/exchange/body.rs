//! The request's body while it comes.

use super::{Caller, Ended, Exchange, Stage, Step, accept};
use crate::dialect::{Reads, grpc};
use crate::refusal::{self, Style};
use crate::worker::Worker;
use sluice_policy::units::Millis;
use sluice_policy::wire::{Outcome, Reason, Refusal, Usage};

/// What a call needs to see of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    /// All of it, once it is complete.
    Whole,
    /// Its length.
    Length,
    /// Each piece, before and after the call was admitted.
    Pieces,
    /// Nothing: it stays, or it passes.
    Nothing,
}

impl Exchange {
    pub(crate) fn wants(&self) -> Wants {
        match &self.stage {
            _ if self.frames.is_some() && self.stage.is_live() => Wants::Pieces,
            Stage::Reading(caller) => match caller.route.dialect.reads() {
                Reads::Json(_) => Wants::Whole,
                Reads::Messages { .. } => Wants::Pieces,
                Reads::Length | Reads::Models => Wants::Length,
            },
            Stage::New | Stage::Listing(_) | Stage::Asking(_) | Stage::Passed(_) | Stage::Over => Wants::Nothing,
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
        let fits = accept::check_length(total_bytes, self.config.body_max_bytes);
        match fits.and_then(|()| self.hold(total_bytes, worker)) {
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
            Reads::Json(parse) => match parse(body, self.config.sequences_max) {
                Ok(call) => self.ask(caller, Some(call), total_bytes, worker),
                Err(fault) => {
                    let mut refusal = refusal::own(Reason::InvalidBody, fault.message);
                    refusal.param = fault.param.map(str::to_owned);
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
        if self.holds_request()
            && let step @ Step::Reply { .. } = self.request_body_grew(held_bytes, worker, now)
        {
            return step;
        }
        let Some(frames) = &mut self.frames else { return Step::Hold };
        let read = frames.push(piece).and_then(|()| if is_end { frames.end() } else { Ok(()) });
        let complete = frames.complete();
        let read = match read {
            Ok(()) if is_end && complete == 0 => Err(grpc::Wrong::CutOff),
            other => other,
        };
        if let Err(wrong) = read {
            return self.break_off(&wrong.refusal(), worker, now);
        }
        match self.take_reading() {
            Some(caller) if is_end || (complete > 0 && is_stream(&caller)) => {
                self.ask(caller, None, held_bytes, worker)
            }
            Some(caller) => {
                self.stage = Stage::Reading(caller);
                Step::Hold
            }
            None if self.holds_request() => Step::Hold,
            None => Step::Continue,
        }
    }

    /// Whether the messages of an admitted call must name another model upstream.
    pub(crate) fn renames(&self) -> bool {
        self.rename.is_some()
    }

    /// What goes upstream instead of the next bytes of the body.
    pub(crate) fn renamed(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.rename.as_mut().map_or_else(|| bytes.to_vec(), |rename| rename.pass(bytes))
    }

    /// Ends a call in the middle of its request, wherever it has come.
    fn break_off(&mut self, refusal: &Refusal, worker: &mut Worker, now: Millis) -> Step {
        let (style, id) = match &self.stage {
            Stage::Reading(caller) | Stage::Listing(caller) => (caller.style, None),
            Stage::Asking(asked) => (asked.caller.style, Some(asked.id.clone())),
            Stage::Passed(passed) => (passed.style, Some(passed.id.clone())),
            Stage::New | Stage::Over => (Style::Plain, None),
        };
        match &self.stage {
            Stage::New | Stage::Over => return Step::Hold,
            Stage::Reading(_) | Stage::Listing(_) => {}
            Stage::Asking(_) => self.settle(Outcome::Cancelled, Usage::default(), None, worker),
            Stage::Passed(passed) => {
                let (outcome, usage) = passed.account_broken(Ended::ByClient, self.messages());
                let timing = passed.timing(now);
                self.settle(outcome, usage, timing, worker);
            }
        }
        self.refuse(refusal, style, id.as_ref(), worker, now)
    }

    /// Counts what Envoy holds for this call, if the worker has room for it.
    fn hold(&mut self, total_bytes: u64, worker: &mut Worker) -> Result<(), Refusal> {
        let more = total_bytes.saturating_sub(self.held_bytes);
        let held = worker.paused_bytes.saturating_add(more);
        if more > 0 && held > self.config.paused_max_bytes {
            return Err(refusal::worker_full());
        }
        worker.paused_bytes = held;
        self.held_bytes = self.held_bytes.saturating_add(more);
        Ok(())
    }
}

/// Whether more messages may follow the first, so that nothing is gained by waiting for the end.
fn is_stream(caller: &Caller) -> bool {
    matches!(caller.route.dialect.reads(), Reads::Messages { is_stream: true })
}

impl Stage {
    /// Neither new nor over.
    fn is_live(&self) -> bool {
        !matches!(self, Stage::New | Stage::Over)
    }
}
