//! The service's answer to an admission, or the lack of one.

use super::passed::{Passed, Upstream};
use super::{Asked, Caller, Exchange, LogTags, Stage, Step, tag, tags_of};
use crate::dialect::{BodyEdit, Levels, grpc, length_after, models_body};
use crate::headers::{self, HeaderEdit};
use crate::refusal::{self, LocalReply};
use crate::route::OnUnavailable;
use crate::usage::{Sequences, Shape};
use crate::verified::Tags;
use crate::worker::Worker;
use serde::Deserialize;
use sluice_policy::units::{AdmissionId, Millis, ModelName, Priority, Tokens};
use sluice_policy::wire::{AdmissionReply, ChargeTo, Grant, ModelsReply, Outcome, RateStatus, Reason, Refusal, Usage};

/// What came back from a callout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// It bears the header that only the service sets.
    pub(crate) is_decided: bool,
    pub(crate) body: Vec<u8>,
}

/// What the service granted beside the tags; nothing of it to a call that fails open.
#[derive(Debug, Default)]
struct Granted {
    waited: Millis,
    rates: Vec<RateStatus>,
    reserved: Option<Tokens>,
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
                worker.is_over(&asked.id);
                if refusal.status == 404 {
                    worker.verified.forget(asked.caller.key.digest(), target(&asked));
                }
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
        self.release(worker);
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
        let key = asked.caller.key.digest();
        worker.verified.admitted(key, target(&asked), tags.clone(), now);
        worker.holdings.verified(key, &tags.tenant);
        let granted = Granted { waited: grant.waited_ms, rates: grant.rates, reserved: Some(grant.reserved) };
        self.forward(asked, &tags, granted, worker, now)
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
        // A service of the release before tells the two apart.
        self.refuse(&refusal.clone().for_client(), caller.style, id, worker, now)
    }

    /// `may_be_granted`: the service may have admitted the call and only its answer was lost.
    fn without_answer(&mut self, asked: Asked, may_be_granted: bool, worker: &mut Worker, now: Millis) -> Step {
        worker.admissions.failed();
        if let Some(tags) = self.tags_without_service(&asked, worker, now) {
            worker.counters.failed_open += 1;
            let mut step = self.forward(asked, &tags, Granted::default(), worker, now);
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
            worker.is_over(&id);
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

    fn forward(&mut self, mut asked: Asked, tags: &Tags, granted: Granted, worker: &mut Worker, now: Millis) -> Step {
        let Granted { waited, rates, reserved } = granted;
        if self.frames.is_some() {
            self.rename = tags.upstream_model.as_ref().map(|model| grpc::model_name(model.as_str()));
        }
        let is_first = self.pipe.as_ref().is_none_or(|pipe| !pipe.is_open());
        let upstream = self.send_message(worker).unwrap_or_else(|| {
            self.release(worker);
            Upstream::Silent
        });
        let hides_usage = asked.usage_request.as_ref().is_some_and(|request| request.hides_event);
        let body = body_edits(&mut asked, tags, self.config.levels_of(&tags.pool));
        let edits = if is_first { self.request_edits(&mut asked, tags, &body) } else { Vec::new() };
        let Asked {
            caller,
            id,
            model,
            input_tokens,
            prompts,
            sequences,
            n,
            fixed,
            streams,
            max_tokens,
            turns,
            echoes,
            ..
        } = asked;
        let (style, shape) = (caller.style, caller.route.dialect.reply());
        self.stage = Stage::Passed(Passed {
            id,
            caller: self.caller_to_keep(caller),
            style,
            shape,
            charge_to: ChargeTo {
                tenant: tags.tenant.clone(),
                pool: tags.pool.clone(),
                model,
                prompts,
                sequences,
                turns,
            },
            waited,
            priority: tags.priority,
            rates,
            sequences: Sequences::of(prompts, sequences).numbered(n),
            input_estimate: input_tokens,
            fixed,
            asked_for: max_tokens.map(|most| most.times(u64::from(sequences) * u64::from(turns))),
            echoes,
            hides_usage,
            reserved,
            streams,
            sent_at: now,
            first_output_at: None,
            upstream,
            is_envoys: false,
            is_abandoned: false,
        });
        let tags = if is_first { tags_of(tags, waited) } else { LogTags::new() };
        Step::Forward { edits, body, tags }
    }

    fn request_edits(&self, asked: &mut Asked, tags: &Tags, body: &[BodyEdit]) -> Vec<HeaderEdit> {
        let mut edits = header_edits(asked, tags, body);
        edits.extend(self.config.route_secret.clone().map(|secret| HeaderEdit::SetSecret(headers::ROUTE, secret)));
        if self.rename.is_some() || self.pipe.is_some() {
            // Messages get longer, and how many there will be is not known.
            edits.push(HeaderEdit::Remove("content-length".to_owned()));
        }
        if self.pipe.is_some() {
            // Of a packed reply nothing says whether it is the last of its message.
            edits.push(HeaderEdit::Remove("grpc-accept-encoding".to_owned()));
        }
        edits
    }
}

/// What must change in the body: the wish for a usage event, the model's name, bounds above the tenant's ceiling, and the
/// turn in the server's own queue.
fn body_edits(asked: &mut Asked, tags: &Tags, levels: Option<Levels>) -> Vec<BodyEdit> {
    let mut edits: Vec<BodyEdit> = asked.usage_request.take().map(|request| request.edit).into_iter().collect();
    if let (Some(model), Some(place)) = (&tags.upstream_model, asked.model_place.take()) {
        edits.push(BodyEdit::rename(place, model.as_str()));
    }
    if let Some(ceiling) = tags.max_tokens {
        edits.extend(asked.limits.clamp(ceiling));
    }
    // What is charged by the request is not generated in a queue of that kind.
    let levels = levels.filter(|_| asked.fixed.is_none());
    if let Some(turn) = asked.turn.take() {
        turn.add_to(&mut edits, levels, tags.priority);
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
    if !caller.says_json {
        edits.push(HeaderEdit::Set("content-type", "application/json".to_owned()));
    }
    let renamed = tags.upstream_model.as_ref().zip(caller.path_model.as_ref());
    let renamed = renamed.and_then(|(model, of_path)| of_path.pattern.rename(&of_path.path, model.as_str()));
    edits.extend(renamed.or_else(|| caller.path.take()).map(|path| HeaderEdit::Set(":path", path)));
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
    pub(crate) fn read<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        let text = std::str::from_utf8(&self.body).ok().filter(|_| self.is_decided)?;
        serde_json::from_str(text).ok()
    }
}

/// What the call is about, as the cache of verified keys names it.
fn target(asked: &Asked) -> &str {
    asked.model.as_deref().unwrap_or(asked.caller.route.name())
}
