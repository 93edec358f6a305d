//! The service's answer to an admission, or the lack of one.

use super::passed::{Passed, Upstream};
use super::{Asked, Caller, Exchange, LogTags, Stage, Step, tag, tags_of};
use crate::dialect::{BodyEdit, grpc, length_after, models_body};
use crate::headers::{self, HeaderEdit};
use crate::refusal::{self, LocalReply};
use crate::route::OnUnavailable;
use crate::usage::{Sequences, Shape};
use crate::verified::Tags;
use crate::worker::Worker;
use serde::Deserialize;
use sluice_policy::units::{AdmissionId, Millis, ModelName, Priority};
use sluice_policy::wire::{AdmissionReply, ChargeTo, Grant, ModelsReply, Outcome, RateStatus, Reason, Refusal, Usage};

/// What came back from a callout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// It bears the header that only the service sets.
    pub(crate) is_decided: bool,
    pub(crate) body: Vec<u8>,
}

impl Exchange {
    /// The callout ended: with the service's word, or with some proxy's.
    pub(crate) fn answered(&mut self, answer: &Answer, worker: &mut Worker, now: Millis) -> Step {
        if let Some(caller) = self.take_listing() {
            return self.listed(&caller, answer, worker, now);
        }
        let Some(asked) = self.take_asking() else { return Step::Hold };
        match answer.read() {
            Some(AdmissionReply::Admitted(grant)) => {
                worker.admissions.answered();
                self.admit(asked, grant, worker, now)
            }
            Some(AdmissionReply::Rejected(refusal)) => {
                worker.admissions.answered();
                worker.ids.is_over(&asked.id);
                self.reject(&asked.caller, &refusal, Some(&asked.id), worker, now)
            }
            None => self.without_answer(asked, true, worker, now),
        }
    }

    /// The callout never left.
    pub(crate) fn could_not_ask(&mut self, worker: &mut Worker, now: Millis) -> Step {
        if let Some(caller) = self.take_listing() {
            return self.listed(&caller, &Answer::default(), worker, now);
        }
        match self.take_asking() {
            Some(asked) => self.without_answer(asked, false, worker, now),
            None => Step::Hold,
        }
    }

    /// Envoy would not change the request's body, so it must not go on as it is: it might ask for another model or for
    /// more than its tenant may have.
    pub(crate) fn body_was_not_changed(&mut self, worker: &mut Worker, now: Millis) -> Step {
        let Stage::Passed(passed) = &self.stage else { return Step::Hold };
        let (style, id) = (passed.style, passed.id.clone());
        self.settle(Outcome::Cancelled, Usage::default(), None, worker);
        self.refuse(&refusal::unavailable(), style, Some(&id), worker, now)
    }

    fn listed(&mut self, caller: &Caller, answer: &Answer, worker: &mut Worker, now: Millis) -> Step {
        let models = match answer.read() {
            Some(ModelsReply::Listed { models }) => models,
            Some(ModelsReply::Rejected(refusal)) => return self.reject(caller, &refusal, None, worker, now),
            None => {
                worker.counters.failed_closed += 1;
                return self.refuse(&refusal::unavailable(), caller.style, None, worker, now);
            }
        };
        let only = caller.path_model.as_ref().map(|of_path| ModelName::from(of_path.model.as_str()));
        if let Some(model) = only.as_ref().filter(|model| !models.contains(model)) {
            let refusal = refusal::own(Reason::ModelNotFound, format!("The model \"{model}\" does not exist."));
            return self.refuse(&refusal, caller.style, None, worker, now);
        }
        let reply = LocalReply {
            status: 200,
            details: "models_listed",
            headers: vec![("content-type", "application/json".to_owned())],
            body: models_body(&models, only.as_ref(), caller.style),
            grpc_status: None,
        };
        Step::Reply { reply, tags: LogTags::new() }
    }

    fn admit(&mut self, asked: Asked, grant: Grant, worker: &mut Worker, now: Millis) -> Step {
        let tags = Tags::from(&grant);
        worker.verified.admitted(asked.caller.key.digest(), target(&asked), tags.clone(), now);
        self.forward(asked, &tags, grant.waited_ms, grant.rates, worker, now)
    }

    fn reject(
        &mut self,
        caller: &Caller,
        refusal: &Refusal,
        id: Option<&AdmissionId>,
        worker: &mut Worker,
        now: Millis,
    ) -> Step {
        if matches!(refusal.status, 401 | 403) {
            worker.verified.evict(caller.key.digest());
        }
        self.refuse(refusal, caller.style, id, worker, now)
    }

    /// `may_be_granted`: the service may have admitted the call and only its answer was lost.
    fn without_answer(&mut self, asked: Asked, may_be_granted: bool, worker: &mut Worker, now: Millis) -> Step {
        worker.admissions.failed();
        if let Some(tags) = self.tags_without_service(&asked, worker, now) {
            worker.counters.failed_open += 1;
            let mut step = self.forward(asked, &tags, Millis::ZERO, Vec::new(), worker, now);
            if let Step::Forward { tags, .. } = &mut step {
                tags.push((tag::REASON, Reason::ServiceUnavailable.as_str().to_owned()));
            }
            return step;
        }
        worker.counters.failed_closed += 1;
        let (style, id) = (asked.caller.style, asked.id.clone());
        if may_be_granted {
            self.stage = Stage::Asking(asked);
            self.settle(Outcome::Cancelled, Usage::default(), None, worker);
        } else {
            worker.ids.is_over(&id);
        }
        self.refuse(&refusal::unavailable(), style, Some(&id), worker, now)
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

    fn forward(
        &mut self,
        mut asked: Asked,
        tags: &Tags,
        waited: Millis,
        rates: Vec<RateStatus>,
        worker: &mut Worker,
        now: Millis,
    ) -> Step {
        self.release(worker);
        if self.frames.is_some() {
            self.rename = tags.upstream_model.as_ref().map(|model| grpc::Rename::to(model.as_str()));
        }
        let hides_usage = asked.usage_request.as_ref().is_some_and(|request| request.hides_event);
        let body = body_edits(&mut asked, tags);
        let mut edits = header_edits(&mut asked, tags, &body);
        if self.rename.is_some() {
            // Every message gets longer, and how many there will be is not known.
            edits.push(HeaderEdit::Remove("content-length".to_owned()));
        }
        let Asked { caller, id, model, input_tokens, prompts, sequences, n, fixed, .. } = asked;
        self.stage = Stage::Passed(Passed {
            id,
            style: caller.style,
            shape: caller.route.dialect.reply(),
            charge_to: ChargeTo { tenant: tags.tenant.clone(), pool: tags.pool.clone(), model, prompts, sequences },
            waited,
            rates,
            sequences: Sequences::of(prompts, sequences).numbered(n),
            input_estimate: input_tokens,
            fixed,
            hides_usage,
            sent_at: now,
            first_output_at: None,
            upstream: Upstream::Silent,
        });
        Step::Forward { edits, body, tags: tags_of(tags, waited) }
    }
}

/// What must change in the body: the wish for a usage event, the model's name, and bounds above the tenant's ceiling.
fn body_edits(asked: &mut Asked, tags: &Tags) -> Vec<BodyEdit> {
    let mut edits: Vec<BodyEdit> = asked.usage_request.take().map(|request| request.edit).into_iter().collect();
    if let (Some(model), Some(place)) = (&tags.upstream_model, asked.model_place.take()) {
        edits.push(BodyEdit::rename(place, model.as_str()));
    }
    if let Some(ceiling) = tags.max_tokens {
        edits.extend(asked.limits.clamp(ceiling));
    }
    edits
}

fn header_edits(asked: &mut Asked, tags: &Tags, body: &[BodyEdit]) -> Vec<HeaderEdit> {
    let caller = &mut asked.caller;
    let mut edits = std::mem::take(&mut caller.removals);
    if !body.is_empty() && caller.has_length {
        // A stale length would hang the upstream; none at all is more than some model servers can read.
        edits.push(HeaderEdit::Set("content-length", length_after(asked.body_bytes, body).to_string()));
    }
    if let (Some(model), Some(of_path)) = (&tags.upstream_model, &caller.path_model) {
        let renamed = of_path.pattern.rename(&of_path.path, model.as_str());
        edits.extend(renamed.map(|path| HeaderEdit::Set(":path", path)));
    }
    if caller.route.dialect.reply() != Shape::Fixed {
        // Said outright: without a word some servers compress as they like.
        edits.push(HeaderEdit::Set("accept-encoding", "identity".to_owned()));
    }
    edits.extend([
        HeaderEdit::Set(headers::TENANT, tags.tenant.to_string()),
        HeaderEdit::Set(headers::NAMESPACE, tags.namespace.to_string()),
        HeaderEdit::Set(headers::TIER, tags.tier.to_string()),
        HeaderEdit::Set(headers::PRIORITY, u8::from(tags.priority).to_string()),
        HeaderEdit::Set(headers::POOL, tags.pool.to_string()),
        HeaderEdit::Set(headers::ADMISSION, asked.id.to_string()),
    ]);
    edits
}

impl Answer {
    /// What the service said; `None` when it was not the service, or not a word of ours.
    fn read<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        Some(&self.body).filter(|_| self.is_decided).and_then(|body| serde_json::from_slice(body).ok())
    }
}

/// What the call is about, as the cache of verified keys names it.
fn target(asked: &Asked) -> &str {
    asked.model.as_deref().unwrap_or(asked.caller.route.name())
}
