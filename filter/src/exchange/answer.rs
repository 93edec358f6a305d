//! The service's answer to an admission, or the lack of one.

use super::passed::{Passed, Upstream};
use super::{Asked, Exchange, Stage, Step, tag, tags_of};
use crate::config::OnUnavailable;
use crate::headers::{self, HeaderEdit};
use crate::refusal;
use crate::verified::Tags;
use crate::worker::Worker;
use sluice_policy::units::{Millis, Priority};
use sluice_policy::wire::{AdmissionReply, ChargeTo, Grant, Outcome, RateStatus, Reason, Refusal, Usage};

/// What came back from a callout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// It bears the header that only the service sets.
    pub(crate) is_decided: bool,
    pub(crate) body: Vec<u8>,
}

impl Exchange {
    /// The callout ended: with the service's word, or with some proxy's.
    pub(crate) fn answered(&mut self, answer: &Answer, worker: &mut Worker, now: Millis) -> Step {
        let Some(asked) = self.take_asking() else { return Step::Hold };
        let reply = Some(&answer.body)
            .filter(|_| answer.is_decided)
            .and_then(|body| serde_json::from_slice::<AdmissionReply>(body).ok());
        match reply {
            Some(AdmissionReply::Admitted(grant)) => {
                worker.admissions.answered();
                self.admit(asked, grant, worker, now)
            }
            Some(AdmissionReply::Rejected(refusal)) => {
                worker.admissions.answered();
                self.reject(&asked, &refusal, worker)
            }
            None => self.without_answer(asked, true, worker, now),
        }
    }

    /// The callout never left.
    pub(crate) fn could_not_ask(&mut self, worker: &mut Worker, now: Millis) -> Step {
        match self.take_asking() {
            Some(asked) => self.without_answer(asked, false, worker, now),
            None => Step::Hold,
        }
    }

    fn admit(&mut self, asked: Asked, grant: Grant, worker: &mut Worker, now: Millis) -> Step {
        let tags = Tags::from(&grant);
        worker.verified.admitted(asked.caller.key.digest(), target(&asked), tags.clone(), now);
        self.forward(asked, &tags, grant.waited_ms, grant.rates)
    }

    fn reject(&mut self, asked: &Asked, refusal: &Refusal, worker: &mut Worker) -> Step {
        if matches!(refusal.status, 401 | 403) {
            worker.verified.evict(asked.caller.key.digest());
        }
        self.refuse(refusal, asked.caller.route.dialect, Some(&asked.id))
    }

    /// `may_be_granted`: the service may have admitted the call and only its answer was lost.
    fn without_answer(&mut self, asked: Asked, may_be_granted: bool, worker: &mut Worker, now: Millis) -> Step {
        worker.admissions.failed();
        if let Some(tags) = self.tags_without_service(&asked, worker, now) {
            worker.counters.failed_open += 1;
            let mut step = self.forward(asked, &tags, Millis::ZERO, Vec::new());
            if let Step::Forward { tags, .. } = &mut step {
                tags.push((tag::REASON, Reason::ServiceUnavailable.as_str().to_owned()));
            }
            return step;
        }
        worker.counters.failed_closed += 1;
        let (dialect, id) = (asked.caller.route.dialect, asked.id.clone());
        if may_be_granted {
            self.stage = Stage::Asking(asked);
            self.settle(Outcome::Cancelled, Usage::default(), worker);
        }
        self.refuse(&refusal::unavailable(), dialect, Some(&id))
    }

    /// How to tag a call that fails open: as this key was tagged lately, and never better.
    fn tags_without_service(&self, asked: &Asked, worker: &Worker, now: Millis) -> Option<Tags> {
        let ttl = self.config.verified_ttl;
        match asked.caller.route.on_unavailable {
            OnUnavailable::Closed => None,
            OnUnavailable::Open => {
                let key = asked.caller.key.digest();
                let mut tags = worker.verified.find(key, target(asked), now, ttl)?.clone();
                let wish = asked.caller.priority.unwrap_or(Priority::FIRST);
                tags.priority = wish.at_most(tags.priority);
                Some(tags)
            }
        }
    }

    fn forward(&mut self, asked: Asked, tags: &Tags, waited: Millis, rates: Vec<RateStatus>) -> Step {
        let mut edits = asked.caller.removals;
        if let Some(bytes) = asked.injected_bytes.filter(|_| asked.caller.has_length) {
            // A stale length would hang the upstream; none at all is more than some model servers can read.
            edits.push(HeaderEdit::Set("content-length", bytes.to_string()));
        }
        edits.extend([
            HeaderEdit::Set(headers::TENANT, tags.tenant.to_string()),
            HeaderEdit::Set(headers::NAMESPACE, tags.namespace.to_string()),
            HeaderEdit::Set(headers::TIER, tags.tier.to_string()),
            HeaderEdit::Set(headers::PRIORITY, u8::from(tags.priority).to_string()),
            HeaderEdit::Set(headers::POOL, tags.pool.to_string()),
            HeaderEdit::Set(headers::ADMISSION, asked.id.to_string()),
        ]);
        self.stage = Stage::Passed(Passed {
            id: asked.id,
            charge_to: ChargeTo { tenant: tags.tenant.clone(), pool: tags.pool.clone(), model: asked.model },
            waited,
            rates,
            input_estimate: asked.input_tokens,
            injected: asked.injected_bytes.is_some(),
            upstream: Upstream::Silent,
        });
        Step::Forward { edits, tags: tags_of(tags, waited) }
    }
}

/// What the call is about, as the cache of verified keys names it.
fn target(asked: &Asked) -> &str {
    asked.model.as_deref().unwrap_or(&asked.caller.route.path)
}
