//! A call that went upstream: its reply is marked, metered and settled.

use super::{Exchange, Stage};
use crate::headers::{self, HeaderEdit, Headers};
use crate::rates;
use crate::usage::{Meter, Passage};
use crate::worker::Worker;
use sluice_policy::units::{AdmissionId, Millis, Tokens};
use sluice_policy::wire::{ChargeTo, Outcome, RateStatus, Usage, UsageSource};

/// A call on its way. It owes one settlement.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) id: AdmissionId,
    /// Goes with the settlement: the service may not know the id, because the route failed open or because it has
    /// restarted meanwhile.
    pub(super) charge_to: ChargeTo,
    pub(super) waited: Millis,
    pub(super) rates: Vec<RateStatus>,
    pub(super) input_estimate: Tokens,
    /// We asked for a usage event that the client must not see.
    pub(super) injected: bool,
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
    pub(crate) fn reply_headers(&mut self, headers: &Headers, is_end: bool, worker: &mut Worker) -> Vec<HeaderEdit> {
        let Stage::Passed(passed) = &mut self.stage else { return Vec::new() };
        let status = headers.text(":status").and_then(|status| status.parse::<u16>().ok());
        let meter = Meter::for_reply(headers.text("content-type"), headers.text("content-encoding"), passed.injected);
        let mut edits = headers.removals(headers::is_forged_by_upstream);
        if meter.may_shorten() {
            edits.push(HeaderEdit::Remove("content-length".to_owned()));
        }
        edits.push(HeaderEdit::Set(headers::ADMISSION, passed.id.to_string()));
        edits.push(HeaderEdit::Set(headers::QUEUE_WAIT, passed.waited.0.to_string()));
        edits.extend(rates::edits(&passed.rates));
        let is_success = status.is_some_and(|status| (200..400).contains(&status));
        passed.upstream = Upstream::Replying { is_success, meter };
        if is_end {
            self.reply_ended(worker);
        }
        edits
    }

    /// Whether the reply is the upstream's and not settled yet, so that its bytes are wanted.
    pub(crate) fn meters_reply(&self) -> bool {
        matches!(&self.stage, Stage::Passed(_))
    }

    /// The next piece of the reply. At its end the call is settled, and what was held goes on as well.
    pub(crate) fn reply_body(&mut self, piece: &[u8], is_end: bool, worker: &mut Worker) -> Passage {
        let mut passage = match &mut self.stage {
            Stage::Passed(Passed { upstream: Upstream::Replying { meter, .. }, .. }) => meter.read(piece),
            _ => Passage::Unchanged,
        };
        if is_end {
            let held = self.reply_ended(worker);
            if let Passage::Replaced(bytes) = &mut passage {
                bytes.extend(held);
            }
        }
        passage
    }

    /// The reply is complete; settles the call and returns what was still held.
    pub(crate) fn reply_ended(&mut self, worker: &mut Worker) -> Vec<u8> {
        let Stage::Passed(passed) = &mut self.stage else { return Vec::new() };
        let held = match &mut passed.upstream {
            Upstream::Replying { meter, .. } => meter.finish(),
            Upstream::Silent => Vec::new(),
        };
        let (outcome, usage) = passed.account_complete();
        if usage.source == UsageSource::Estimated {
            worker.counters.usage_estimated += 1;
        }
        self.settle(outcome, usage, worker);
        held
    }
}

impl Passed {
    /// A complete reply costs what it reports, or our estimate; an error costs what it reports, or nothing.
    fn account_complete(&self) -> (Outcome, Usage) {
        match &self.upstream {
            Upstream::Replying { is_success: true, meter } => (Outcome::Completed, self.usage_of(meter)),
            Upstream::Replying { is_success: false, meter } => {
                let usage = self.usage_of(meter);
                let is_reported = usage.source == UsageSource::Reported;
                (Outcome::Failed, if is_reported { usage } else { Usage::default() })
            }
            Upstream::Silent => (Outcome::Failed, Usage::default()),
        }
    }

    /// A reply that broke off costs what had come of it. A client that left before it began has still made the
    /// model read the prompt; an upstream that broke before it began has not earned anything.
    pub(super) fn account_broken(&self, ended: Ended) -> (Outcome, Usage) {
        let outcome = match ended {
            Ended::ByClient => Outcome::Aborted,
            Ended::ByUpstream => Outcome::Failed,
        };
        let usage = match (&self.upstream, ended) {
            (Upstream::Silent, Ended::ByUpstream) => Usage::default(),
            (Upstream::Silent, Ended::ByClient) => self.estimate(Tokens::ZERO),
            (Upstream::Replying { is_success: true, meter }, _) => self.usage_of(meter),
            (Upstream::Replying { is_success: false, .. }, _) => Usage::default(),
        };
        (outcome, usage)
    }

    fn usage_of(&self, meter: &Meter) -> Usage {
        let reading = meter.reading();
        match reading.reported {
            Some(counts) => Usage {
                source: UsageSource::Reported,
                input: counts.input,
                output: counts.output,
                cached: counts.cached,
            },
            None => self.estimate(reading.counted),
        }
    }

    fn estimate(&self, output: Tokens) -> Usage {
        let input = self.input_estimate;
        Usage { source: UsageSource::Estimated, input, output, cached: Tokens::ZERO }
    }
}
