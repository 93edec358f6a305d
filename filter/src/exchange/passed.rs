//! A call that went upstream: its reply is marked, metered and settled.

use super::{Exchange, Stage};
use crate::headers::{self, HeaderEdit, Headers};
use crate::rates;
use crate::refusal::Style;
use crate::usage::{Meter, Passage, Sequences, Shape};
use crate::worker::Worker;
use sluice_policy::units::{AdmissionId, Millis, Tokens};
use sluice_policy::wire::{ChargeTo, Outcome, RateStatus, Timing, Usage, UsageSource};

/// A call on its way. It owes one settlement.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) id: AdmissionId,
    pub(super) style: Style,
    pub(super) shape: Shape,
    /// Goes with the settlement: the service may not know the id, because the route failed open or because it has
    /// restarted meanwhile.
    pub(super) charge_to: ChargeTo,
    pub(super) waited: Millis,
    pub(super) rates: Vec<RateStatus>,
    pub(super) sequences: Sequences,
    pub(super) input_estimate: Tokens,
    /// What a message costs where no tokens are counted.
    pub(super) fixed: Option<Tokens>,
    /// We asked for a usage event that the client must not see.
    pub(super) hides_usage: bool,
    pub(super) sent_at: Millis,
    /// When the first byte of the reply's body came that bore output.
    pub(super) first_output_at: Option<Millis>,
    pub(super) upstream: Upstream,
}

/// How far the reply has come.
#[derive(Debug)]
pub(super) enum Upstream {
    Silent,
    Replying { is_success: bool, meter: Meter },
}

/// How a stream ended that did not end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The client left.
    ByClient,
    /// The upstream, or a time limit.
    ByUpstream,
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
        let (kind, encoding) = (headers.text("content-type"), headers.text("content-encoding"));
        let meter = Meter::for_reply(passed.shape, kind, encoding, passed.hides_usage, passed.sequences);
        let mut edits = headers.removals(headers::is_forged_by_upstream);
        if meter.may_shorten() {
            edits.push(HeaderEdit::Remove("content-length".to_owned()));
        }
        edits.push(HeaderEdit::Set(headers::ADMISSION, passed.id.to_string()));
        edits.push(HeaderEdit::Set(headers::QUEUE_WAIT, passed.waited.0.to_string()));
        edits.extend(rates::edits(&passed.rates, passed.style, now));
        let is_success = status.is_some_and(|status| (200..400).contains(&status)) && !tells_grpc_failure(headers);
        passed.upstream = Upstream::Replying { is_success, meter };
        if is_end {
            self.reply_ended(worker, now);
        }
        edits
    }

    /// The trailers that end a reply: of gRPC they tell whether it was one. A failure behind answers, such as a deadline
    /// that the client itself had set, makes them no cheaper than if the reply had broken off there.
    pub(crate) fn reply_trailers(&mut self, trailers: &Headers, worker: &mut Worker, now: Millis) {
        if tells_grpc_failure(trailers)
            && let Stage::Passed(passed) = &mut self.stage
            && let Upstream::Replying { is_success, .. } = &mut passed.upstream
        {
            if *is_success && passed.first_output_at.is_some() {
                return self.abandoned(Ended::ByUpstream, worker, now);
            }
            *is_success = false;
        }
        self.reply_ended(worker, now);
    }

    /// Whether the reply is the upstream's and not settled yet, so that its bytes are wanted.
    pub(crate) fn meters_reply(&self) -> bool {
        matches!(&self.stage, Stage::Passed(_))
    }

    /// Whether the bytes themselves are wanted, and not only their end.
    pub(crate) fn reads_reply(&self) -> bool {
        match &self.stage {
            Stage::Passed(Passed { upstream: Upstream::Replying { meter, .. }, first_output_at, .. }) => {
                first_output_at.is_none() || !matches!(meter, Meter::Fixed)
            }
            _ => false,
        }
    }

    /// The next piece of the reply. At its end the call is settled, and what was held goes on as well.
    pub(crate) fn reply_body(&mut self, piece: &[u8], is_end: bool, worker: &mut Worker, now: Millis) -> Passage {
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
    fn reply_ended(&mut self, worker: &mut Worker, now: Millis) -> Vec<u8> {
        let messages = self.messages();
        let Stage::Passed(passed) = &mut self.stage else { return Vec::new() };
        let held = match &mut passed.upstream {
            Upstream::Replying { meter, .. } => meter.finish(),
            Upstream::Silent => Vec::new(),
        };
        let (outcome, usage) = passed.account_complete(messages);
        let timing = passed.timing(now);
        if usage.source == UsageSource::Estimated {
            worker.counters.usage_estimated += 1;
        }
        self.settle(outcome, usage, timing, worker);
        held
    }
}

fn tells_grpc_failure(headers: &Headers) -> bool {
    headers.text("grpc-status").is_some_and(|status| status != "0")
}

impl Passed {
    /// A complete reply costs what it reports, or our estimate; an error costs what it reports, or nothing.
    fn account_complete(&self, messages: u64) -> (Outcome, Usage) {
        match &self.upstream {
            Upstream::Replying { is_success: true, meter } => (Outcome::Completed, self.usage_of(meter, messages)),
            Upstream::Replying { is_success: false, meter } => {
                let usage = self.usage_of(meter, messages);
                let is_reported = usage.source == UsageSource::Reported;
                (Outcome::Failed, if is_reported { usage } else { Usage::default() })
            }
            Upstream::Silent => (Outcome::Failed, Usage::default()),
        }
    }

    /// A reply that broke off costs what had come of it. A client that left before it began has still made the
    /// model read the prompt; an upstream that broke before it began has not earned anything.
    pub(super) fn account_broken(&self, ended: Ended, messages: u64) -> (Outcome, Usage) {
        let outcome = match ended {
            Ended::ByClient => Outcome::Aborted,
            Ended::ByUpstream => Outcome::Failed,
        };
        let usage = match (&self.upstream, ended) {
            (Upstream::Silent, Ended::ByUpstream) => Usage::default(),
            (Upstream::Silent, Ended::ByClient) => self.estimate(Tokens::ZERO, messages),
            (Upstream::Replying { is_success: true, meter }, _) => self.usage_of(meter, messages),
            (Upstream::Replying { is_success: false, .. }, _) => Usage::default(),
        };
        (outcome, usage)
    }

    /// How long the upstream has taken, if it has answered at all.
    pub(super) fn timing(&self, now: Millis) -> Option<Timing> {
        let Upstream::Replying { is_success: true, meter } = &self.upstream else { return None };
        Some(Timing {
            first_token_ms: self.first_output_at?.since(self.sent_at),
            duration_ms: now.since(self.sent_at),
            streamed: meter.is_stream(),
        })
    }

    fn usage_of(&self, meter: &Meter, messages: u64) -> Usage {
        let reading = meter.reading();
        match reading.reported {
            None => self.estimate(reading.counted, messages),
            Some(counts) => Usage {
                // What came after the last report is our count.
                source: if reading.counted == Tokens::ZERO { UsageSource::Reported } else { UsageSource::Estimated },
                input: counts.input,
                output: counts.output.plus(reading.counted),
                cached: counts.cached,
                reasoning: counts.reasoning,
            },
        }
    }

    fn estimate(&self, output: Tokens, messages: u64) -> Usage {
        match self.fixed {
            Some(charge) => Usage { source: UsageSource::Fixed, input: charge.times(messages), ..Usage::default() },
            None => Usage { source: UsageSource::Estimated, input: self.input_estimate, output, ..Usage::default() },
        }
    }
}
