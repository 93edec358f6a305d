//! A call that went upstream: its reply is marked, metered and settled.

use super::pipe::Pipe;
use super::{Caller, Ended, Exchange, Stage};
use crate::headers::{self, HeaderEdit, Headers};
use crate::rates;
use crate::refusal::Style;
use crate::usage::{Head, Meter, Passage, Sequences, Shape};
use crate::worker::Worker;
use sluice_policy::units::{AdmissionId, Millis, Priority, Tokens};
use sluice_policy::wire::{ChargeTo, Outcome, RateStatus, Timing, Usage, UsageSource};

/// A call on its way. It owes one settlement.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) id: AdmissionId,
    /// Of a stream, for its next message.
    pub(super) caller: Option<Caller>,
    pub(super) style: Style,
    pub(super) shape: Shape,
    /// Goes with the settlement: the service may not know the id, because the route failed open or because it has
    /// restarted meanwhile.
    pub(super) charge_to: ChargeTo,
    pub(super) waited: Millis,
    pub(super) priority: Priority,
    pub(super) rates: Vec<RateStatus>,
    pub(super) sequences: Sequences,
    pub(super) input_estimate: Tokens,
    /// What a message costs where no tokens are counted.
    pub(super) fixed: Option<Tokens>,
    /// The most output that the request allows, over all sequences and turns.
    pub(super) asked_for: Option<Tokens>,
    /// The reply may repeat the prompt.
    pub(super) echoes: bool,
    /// We asked for a usage event that the client must not see.
    pub(super) hides_usage: bool,
    /// What the service reserved; `None` for a call that failed open.
    pub(super) reserved: Option<Tokens>,
    /// The client asked for a stream.
    pub(super) streams: bool,
    pub(super) sent_at: Millis,
    /// When the first byte of the reply's body came that bore output.
    pub(super) first_output_at: Option<Millis>,
    pub(super) upstream: Upstream,
    /// Its reply is Envoy's own.
    pub(super) is_envoys: bool,
    /// It has ended, or its reply is Envoy's own, while the model server may work on.
    pub(super) is_abandoned: bool,
}

/// How far the reply has come.
#[derive(Debug)]
pub(super) enum Upstream {
    Silent,
    Replying { is_success: bool, meter: Meter },
}

impl Exchange {
    /// The reply's headers. Replies that the filter gave itself come by here too, and stay as they are.
    pub(crate) fn reply_headers(
        &mut self,
        headers: &Headers,
        is_end: bool,
        worker: &mut Worker,
        now: Millis,
    ) -> Vec<HeaderEdit> {
        let Stage::Passed(passed) = &mut self.stage else { return Vec::new() };
        let status = headers.text(":status").and_then(|status| status.parse::<u16>().ok());
        let failure = grpc_failure(headers);
        let is_success = status.is_some_and(|status| is_success(status, passed.shape)) && failure.is_none();
        let head = Head {
            content_type: headers.text("content-type"),
            content_encoding: headers.text("content-encoding"),
            has_length: !is_success || headers.first("content-length").is_some(),
            metadata: headers.text("metadata"),
        };
        let meter = Meter::for_reply(passed.shape, head, passed.hides_usage, passed.sequences);
        // What Envoy says itself stays: its configuration has written it.
        let is_forged = |name: &str| !passed.is_envoys && headers::is_forged_by_upstream(name);
        let mut edits = headers.removals(is_forged);
        if meter.may_shorten() {
            edits.push(HeaderEdit::Remove("content-length".to_owned()));
        }
        edits.push(HeaderEdit::Set(headers::ADMISSION, passed.id.to_string()));
        edits.push(HeaderEdit::Set(headers::QUEUE_WAIT, passed.waited.0.to_string()));
        edits.push(HeaderEdit::Set(headers::GRANTED_PRIORITY, u8::from(passed.priority).to_string()));
        edits.extend(rates::edits(&passed.rates, passed.style, now));
        if is_end && failure.is_some_and(is_of_client) {
            self.abandoned(Ended::ByClient, worker, now);
            return edits;
        }
        passed.upstream = Upstream::Replying { is_success, meter };
        self.note_reply(false, worker, now);
        if is_end {
            self.reply_ended(worker, now);
        }
        edits
    }

    /// The reply to come is not the model server's but Envoy's own, about a call that ended so. One to a client's fault
    /// ends the call as its leaving does.
    pub(crate) fn envoy_replies(&mut self, ended: Ended, worker: &mut Worker, now: Millis) {
        let Stage::Passed(passed) = &mut self.stage else { return };
        match ended {
            Ended::ByClient => self.abandoned(ended, worker, now),
            Ended::ByEnvoy | Ended::ByUpstream => {
                passed.is_envoys = true;
                passed.is_abandoned = ended.may_run_on();
            }
        }
    }

    /// The trailers that end a reply: of gRPC they tell whether it was one. A failure behind answers makes them no cheaper
    /// than if the reply had broken off there, and one that the client has made itself, such as its own deadline, makes
    /// nothing cheaper.
    pub(crate) fn reply_trailers(&mut self, trailers: &Headers, worker: &mut Worker, now: Millis) {
        if let Some(failure) = grpc_failure(trailers)
            && let Stage::Passed(passed) = &mut self.stage
            && let Upstream::Replying { is_success, .. } = &mut passed.upstream
        {
            match *is_success {
                true if is_of_client(failure) => return self.abandoned(Ended::ByClient, worker, now),
                true if passed.first_output_at.is_some() => return self.abandoned(Ended::ByUpstream, worker, now),
                _ => *is_success = false,
            }
        }
        self.reply_ended(worker, now);
    }

    /// Whether the reply is the upstream's and not settled yet, so that its bytes are wanted.
    pub(crate) fn meters_reply(&self) -> bool {
        match &self.stage {
            Stage::Passed(_) | Stage::Idle(_) => true,
            Stage::Asking(_) => self.pipe.as_ref().is_some_and(Pipe::is_open),
            Stage::New | Stage::Reading(_) | Stage::Listing(_) | Stage::Over => false,
        }
    }

    /// Whether the bytes themselves are wanted, and not only their end.
    pub(crate) fn reads_reply(&self) -> bool {
        match &self.stage {
            _ if self.pipe.is_some() => true,
            Stage::Passed(Passed { upstream: Upstream::Replying { meter, .. }, first_output_at, .. }) => {
                first_output_at.is_none() || !matches!(meter, Meter::Fixed)
            }
            _ => false,
        }
    }

    /// The next piece of the reply. At its end the call is settled, and what was held goes on as well.
    pub(crate) fn reply_body(&mut self, piece: &[u8], is_end: bool, worker: &mut Worker, now: Millis) -> Passage {
        if self.pipe.is_some() {
            return self.message_replies(piece, is_end, worker, now);
        }
        let mut passage = match &mut self.stage {
            Stage::Passed(Passed { upstream: Upstream::Replying { meter, .. }, first_output_at, .. }) => {
                let passage = meter.read(piece);
                if first_output_at.is_none() && !piece.is_empty() && meter.has_output() {
                    *first_output_at = Some(now);
                }
                passage
            }
            _ => Passage::Unchanged,
        };
        if is_end {
            let held = self.reply_ended(worker, now);
            if let Passage::Replaced(bytes) = &mut passage {
                bytes.extend(held);
            }
        }
        passage
    }

    /// The reply is complete; settles the call and returns what was still held.
    pub(super) fn reply_ended(&mut self, worker: &mut Worker, now: Millis) -> Vec<u8> {
        let Stage::Passed(passed) = &mut self.stage else {
            self.note_reply(true, worker, now);
            return Vec::new();
        };
        let held = match &mut passed.upstream {
            Upstream::Replying { meter, .. } => meter.finish(),
            Upstream::Silent => Vec::new(),
        };
        self.settle_complete(worker, now);
        self.release(worker);
        held
    }

    /// The call has the whole of its reply.
    pub(super) fn settle_complete(&mut self, worker: &mut Worker, now: Millis) {
        let Stage::Passed(passed) = &self.stage else { return };
        let (outcome, usage) = passed.account_complete();
        let timing = passed.timing(now);
        if usage.source == UsageSource::Estimated {
            worker.counters.usage_estimated += 1;
        }
        self.settle(outcome, usage, timing, worker);
    }
}

/// Whether a reply's headers are an error's. Those of gRPC say so by a status of its own, also where Envoy answers.
pub(crate) fn is_failure(headers: &Headers) -> bool {
    headers.text(":status").is_some_and(|status| status.starts_with(['4', '5'])) || grpc_failure(headers).is_some()
}

/// Whether a status says that the model server has done what it was asked for. Of a redirect or a reply without content no
/// model has written anything; what is charged by the request may well have none.
fn is_success(status: u16, shape: Shape) -> bool {
    const WITHOUT_CONTENT: [u16; 2] = [204, 205];
    (200..300).contains(&status) && (shape == Shape::Fixed || !WITHOUT_CONTENT.contains(&status))
}

/// The status of a gRPC call that failed.
fn grpc_failure(headers: &Headers) -> Option<&str> {
    headers.text("grpc-status").filter(|status| *status != "0")
}

/// Whether a failure is the client's own doing: it cancelled, or its own deadline passed.
fn is_of_client(grpc_status: &str) -> bool {
    const CANCELLED: &str = "1";
    const DEADLINE_EXCEEDED: &str = "4";
    [CANCELLED, DEADLINE_EXCEEDED].contains(&grpc_status)
}

impl Passed {
    /// Whether the client has had its whole reply, though the stream goes on.
    pub(super) fn is_whole(&self) -> bool {
        matches!(&self.upstream, Upstream::Replying { meter, .. } if meter.is_whole())
    }

    /// A complete reply costs what it reports, or our estimate.
    fn account_complete(&self) -> (Outcome, Usage) {
        match &self.upstream {
            Upstream::Replying { is_success: true, meter } if !meter.has_failed() => {
                (Outcome::Completed, self.usage_of(meter))
            }
            Upstream::Replying { is_success, meter } => (Outcome::Failed, self.usage_of_failure(meter, *is_success)),
            Upstream::Silent => (Outcome::Failed, Usage::default()),
        }
    }

    /// An error costs what it reports, or nothing. One that came behind a success's head costs the text before it as well.
    fn usage_of_failure(&self, meter: &Meter, is_success: bool) -> Usage {
        let usage = self.usage_of(meter);
        let has_earned = usage.source == UsageSource::Reported || (is_success && meter.has_text());
        if has_earned { usage } else { Usage::default() }
    }

    /// A reply that broke off costs what had come of it. A client that left before it began has still made the
    /// model read the prompt; an upstream that broke before it began has not earned anything.
    ///
    /// Of a document nothing comes before the model has written all of it, so a client that leaves one pays at least
    /// what was reserved for it: how much the model had written by then is not known here.
    pub(super) fn account_broken(&self, ended: Ended) -> (Outcome, Usage) {
        let outcome = match ended {
            Ended::ByClient => Outcome::Aborted,
            Ended::ByEnvoy | Ended::ByUpstream => Outcome::Failed,
        };
        let usage = match (&self.upstream, ended) {
            (Upstream::Silent, Ended::ByEnvoy | Ended::ByUpstream) => Usage::default(),
            (Upstream::Silent, Ended::ByClient) if self.streams => self.estimate(Tokens::ZERO),
            (Upstream::Silent, Ended::ByClient) => self.reserved_at_least(self.estimate(Tokens::ZERO)),
            (Upstream::Replying { is_success: true, meter }, _) if meter.has_failed() => {
                return (Outcome::Failed, self.usage_of_failure(meter, true));
            }
            (Upstream::Replying { is_success: true, meter }, Ended::ByClient) if !meter.is_stream() => {
                self.reserved_at_least(self.usage_of(meter))
            }
            (Upstream::Replying { is_success: true, meter }, _) => self.usage_of(meter),
            (Upstream::Replying { is_success: false, .. }, _) => Usage::default(),
        };
        (outcome, usage)
    }

    /// An estimate of a document that its client left, by what was reserved for it.
    fn reserved_at_least(&self, usage: Usage) -> Usage {
        match (usage.source, self.reserved) {
            (UsageSource::Estimated, Some(reserved)) => {
                let output = Tokens(reserved.0.saturating_sub(self.input_estimate.0));
                Usage { output: usage.output.max(output), ..usage }
            }
            _ => usage,
        }
    }

    /// How long the upstream has taken, if it has answered at all.
    pub(super) fn timing(&self, now: Millis) -> Option<Timing> {
        let Upstream::Replying { is_success: true, meter } = &self.upstream else { return None };
        if meter.has_failed() {
            return None;
        }
        Some(Timing {
            first_token_ms: self.first_output_at?.since(self.sent_at),
            duration_ms: now.since(self.sent_at),
            streamed: meter.is_stream(),
        })
    }

    fn usage_of(&self, meter: &Meter) -> Usage {
        let reading = meter.reading();
        let Some(counts) = reading.reported else { return self.estimate(self.at_most_asked(reading.counted, meter)) };
        let input = self.input_of(counts.input, meter);
        let told = counts.output.plus(reading.counted);
        let output = self.at_most_asked(told, meter).max(counts.output.min(told));
        // What came after the last report is our count.
        let is_reported = reading.counted == Tokens::ZERO && (input, output) == (counts.input, counts.output);
        Usage {
            source: if is_reported { UsageSource::Reported } else { UsageSource::Estimated },
            input,
            output,
            cached: counts.cached,
            reasoning: counts.reasoning,
        }
    }

    /// No estimate is of more than was asked for, unless so much has come that its server cannot have obeyed. Where the
    /// prompt is repeated in the reply, its length tells nothing.
    fn at_most_asked(&self, output: Tokens, meter: &Meter) -> Tokens {
        let Some(asked) = self.asked_for else { return output };
        let least = if self.echoes { Tokens::ZERO } else { meter.least_output() };
        output.min(asked.max(least))
    }

    /// A prompt is not nothing. And a list of prompts costs no less than our estimate of them where the report is of the
    /// first alone, or of so little that it must be: the estimate of a list may be off, but not by half of it.
    fn input_of(&self, reported: Tokens, meter: &Meter) -> Tokens {
        if reported == Tokens::ZERO {
            return self.input_estimate;
        }
        let is_list = self.charge_to.prompts > 1;
        let is_of_few = reported.times(2) <= self.input_estimate || meter.reports_first_alone();
        if is_list && is_of_few { reported.max(self.input_estimate) } else { reported }
    }

    fn estimate(&self, output: Tokens) -> Usage {
        match self.fixed {
            Some(charge) => Usage { source: UsageSource::Fixed, input: charge, ..Usage::default() },
            None => Usage { source: UsageSource::Estimated, input: self.input_estimate, output, ..Usage::default() },
        }
    }
}
