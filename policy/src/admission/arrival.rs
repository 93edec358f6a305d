//! A call arrives: whose it is, where it goes, what it may cost, and whether it starts, waits or is refused.

use super::explain::{Fate, Parties, Seen};
use super::live::{Live, LiveKey, PoolIndex, State};
use super::names::Names;
use super::pool::PoolState;
use super::refusals::{
    LimitName, Refused, full_of_bytes, ledger_unavailable, queue_full, shutting_down, too_late, too_many_refusals,
};
use super::routes::Route;
use super::successors::Successor;
use super::tenants::{ModelIndex, Terms};
use super::{Admission, Decision, grant};
use crate::account::Charge;
use crate::queue::{Flow, GroupIndex, QueueSettings, Standing, TenantIndex, Waiter};
use crate::units::{Millis, ModelName, Priority, TenantId, Tokens};
use crate::wire::{AdmissionRequest, Grant, Reason, Refusal};

/// Where a call goes and what it will be charged.
struct Plan {
    model: ModelIndex,
    pool: PoolIndex,
    flow: Flow,
    reserved: Tokens,
    /// The part of `reserved` that the prompt was estimated at.
    input: Tokens,
    charge: Tokens,
    /// The flow as it stands before the call.
    standing: Standing,
    /// Request bytes that Envoy holds for the tenant's waiting calls.
    held: u64,
}

/// How a call would wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Of its body, which Envoy holds.
    pub(super) bytes: u64,
    pub(super) deadline: Option<Millis>,
}

/// How a call would stand in the queue.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) patience: Patience,
    /// Its flow before it.
    pub(super) standing: Standing,
    /// Request bytes that Envoy holds for waiting calls of the same tenant.
    pub(super) held: u64,
}

impl Admission {
    /// Decides about a call of a tenant that has been identified. `granted` is the level that the key's own rule
    /// gives, if one does.
    pub fn request(
        &mut self,
        tenant: &TenantId,
        granted: Option<Priority>,
        request: &AdmissionRequest,
        now: Millis,
    ) -> Decision {
        let mut seen = Seen::default();
        match self.try_request(tenant, granted, request, &mut seen, now) {
            Ok(decision) => decision,
            Err(refused) => Decision::Rejected(self.refuse(tenant, request, &seen, refused, now)),
        }
    }

    /// The answer to a call that is refused on arrival, with an explanation unless its tenant is refused too often for
    /// what it asks.
    fn refuse(
        &mut self,
        tenant: &TenantId,
        request: &AdmissionRequest,
        seen: &Seen,
        mut refused: Refused,
        now: Millis,
    ) -> Refusal {
        let index = self.tenants.index(tenant);
        if let Some(index) = index.filter(|_| refused.is_before_limits())
            && let Err(wait) = self.refusal_rates.count(index, now)
        {
            return too_many_refusals(tenant, wait);
        }
        if let Some(state) = index.and_then(|index| self.tenants.get_mut(index)) {
            refused.refusal.rates = state.account.rates(now);
        }
        // A repeated id must not overwrite why the first call of that id was decided as it was.
        if refused.refusal.reason != Reason::DuplicateAdmission {
            let named = self.named(Some(tenant.clone()), request);
            let queued_at = refused.place().map(|(position, wait)| (position, wait, &*self.branches));
            self.explanations.refused(request, named, seen, &refused, queued_at, now);
        }
        refused.refusal
    }

    /// Keeps why a call was refused whose key nobody knows: there was no tenant to decide for.
    pub fn refused_stranger(&mut self, request: &AdmissionRequest, refusal: &Refusal, now: Millis) {
        let named = self.named(None, request);
        self.explanations.refused_stranger(request, named, refusal, now);
    }

    /// Whom a call was from and for, as far as that is configured.
    fn named(&self, tenant: Option<TenantId>, request: &AdmissionRequest) -> Parties {
        Parties::Named { tenant, route: self.route(request).map(|route| (route.model, route.pool)) }
    }

    fn route(&self, request: &AdmissionRequest) -> Option<Route> {
        match (&request.model, &request.pool) {
            (Some(model), _) => self.routes.to_model(model),
            (None, Some(pool)) => self.routes.to_pool(pool),
            (None, None) => None,
        }
    }

    fn try_request(
        &mut self,
        tenant_id: &TenantId,
        granted: Option<Priority>,
        request: &AdmissionRequest,
        seen: &mut Seen,
        now: Millis,
    ) -> Result<Decision, Refused> {
        if self.draining {
            return Err(shutting_down().into());
        }
        if self.live.knows(&request.id, now) {
            return Err(Refusal::new(Reason::DuplicateAdmission, "this admission was asked for before").into());
        }
        let tenant = self.welcome(tenant_id, now);
        if let (Some(tenant), Some(route)) = (tenant, self.route(request)) {
            self.weigh_in(route.pool, tenant);
        }
        let (index, terms) = self.terms(tenant_id, tenant)?;
        let level = request.priority.or(granted).unwrap_or(terms.default_priority);
        // A key's own level is its ceiling too: a rule that puts a key at P7 keeps it there.
        let level = level.at_most(granted.unwrap_or(terms.ceiling));
        seen.level = Some(level);
        let plan = self.plan(index, terms, level, request, seen)?;
        (seen.reserved, seen.charge) = (plan.reserved, plan.charge);
        self.decide(plan, request, now)
    }

    fn terms(&self, id: &TenantId, index: Option<TenantIndex>) -> Result<(TenantIndex, &Terms), Refusal> {
        let terms = index.and_then(|index| self.tenants.get(index)?.terms.as_ref());
        let (Some(index), Some(terms)) = (index, terms) else {
            return Err(Refusal::new(Reason::UnknownKey, "this API key belongs to nobody"));
        };
        if terms.disabled {
            return Err(Refusal::new(Reason::TenantDisabled, format!("the tenant {id} is disabled")));
        }
        Ok((index, terms))
    }

    /// What the call is booked under, the pool that serves it, and what is reserved.
    fn plan(
        &self,
        tenant: TenantIndex,
        terms: &Terms,
        level: Priority,
        request: &AdmissionRequest,
        seen: &mut Seen,
    ) -> Result<Plan, Refused> {
        let Some((route, pool)) = self.route(request).and_then(|route| Some((route, self.pools.get(route.pool)?)))
        else {
            return Err(not_found(request).into());
        };
        if request.pool.as_ref().is_some_and(|named| *named != pool.name) {
            return Err(Refusal::new(Reason::ModelNotFound, "this route does not serve that model")
                .about("model")
                .into());
        }
        seen.known = Some((tenant, route.model, route.pool));
        let group = if pool.has_shares() { terms.group } else { GroupIndex::default() };
        let flow = Flow { group, tenant, level };
        // Both lie where no cache holds them, and are needed late. Asked for here, beside the tenant's terms, they arrive
        // with them.
        let standing = pool.queue.standing(flow);
        let held = self.tenants.get(tenant).map_or(0, |tenant| tenant.waiting_bytes);
        let of_pool = self.config.models.iter().filter(|(_, model)| model.pool == pool.name);
        let model = request.model.as_ref().and_then(|_| self.tenants.model(route.model));
        if !terms.allow(model, of_pool) {
            let what = model.map_or("every model of this route", ModelName::as_str);
            let message = format!("this API key may not use {what}");
            return Err(Refusal::new(Reason::ModelNotAllowed, message).about("model").into());
        }
        let (input, output) = self.reservation(tenant, route.model, pool, request)?;
        Ok(Plan {
            model: route.model,
            pool: route.pool,
            flow,
            reserved: input.plus(output),
            input,
            charge: route.charge.of_reservation(input, output),
            standing,
            held,
        })
    }

    fn reservation(
        &self,
        tenant: TenantIndex,
        model: ModelIndex,
        pool: &PoolState,
        request: &AdmissionRequest,
    ) -> Result<(Tokens, Tokens), Refused> {
        let prompts = u64::from(request.prompts);
        let context = pool.context_length().filter(|_| prompts > 0);
        // The prompts are estimates, so only what is certain is refused here; the model server counts exactly.
        let bound = request.max_tokens.unwrap_or(Tokens(1)).times(prompts);
        let certain = Tokens(request.input_tokens.0 / 4).plus(bound);
        if let Some(context) = context.filter(|context| certain > context.times(prompts)) {
            let message =
                format!("this model's context is {context}; the prompt and max_tokens ask for more than that");
            let refusal = Refusal::new(Reason::ContextLengthExceeded, message).about("messages");
            return Err(refusal.by(LimitName::ContextLength, context.0));
        }
        let most = context.map_or(Tokens(u64::MAX), |context| context.times(prompts));
        let input = request.input_tokens.min(most);
        // Beside a prompt of the average length.
        let left = |context: Tokens| Tokens(context.0.saturating_sub(input.0 / prompts.max(1)).max(1));
        let unbounded =
            || self.tenants.most_yielded(model).map_or(pool.reserve_at_most(), |most| most.min(pool.reserve_at_most()));
        let left = context.map_or_else(unbounded, left);
        let state = self.tenants.get(tenant);
        let output = state.map(|state| state.yields.reservation(model, request.max_tokens, left));
        let output = output.unwrap_or_default().times(u64::from(request.sequences.max(1)));
        Ok((input, output))
    }

    /// Charges the tenant, then starts the call, queues it, or gives everything back. Where the ledger must be asked
    /// for the tenant first, the call applies.
    fn decide(&mut self, plan: Plan, request: &AdmissionRequest, now: Millis) -> Result<Decision, Refused> {
        let (Some(pool), Some(tenant)) = (self.pools.get_mut(plan.pool), self.tenants.get_mut(plan.flow.tenant)) else {
            return Err(Refusal::new(Reason::ModelNotFound, "no pool serves this model").about("model").into());
        };
        if !pool.holder.is_open(now) {
            return Err(ledger_unavailable().into());
        }
        let patience = Patience { bytes: request.body_bytes, deadline: request.deadline_ms };
        let (live, turn) = (live_of(&plan, request, now), self.successors.next_turn());
        // Nobody overtakes who waits for the same slots.
        let charge = match self.successors.count(live.flow.tenant) {
            0 => tenant.charge(live.draw(self.routes.price(live.model)), now),
            _ => Charge::Refused(tenant.account.too_many()),
        };
        match charge {
            Charge::Charged => self.enter_anew(live, Line { patience, standing: plan.standing, held: plan.held }, now),
            Charge::Ask => self.apply_for(live, turn, patience, now),
            Charge::Refused(limited) => match self.may_succeed(&live, patience, limited, now) {
                Some(until) => {
                    let tenant = live.flow.tenant;
                    let live = Live { state: State::Succeeding(turn), ..live };
                    let key = self.live.insert(live);
                    self.successors.add(tenant, turn, Successor { key, patience, until });
                    Ok(Decision::Queued)
                }
                None => Err(self.over_limit(&live, limited, now)),
            },
        }
    }

    /// Takes in a call that its tenant has been charged for; a refusal gives the charge back.
    fn enter_anew(&mut self, mut live: Live, line: Line, now: Millis) -> Result<Decision, Refused> {
        let entered = self.enter(&mut live, self.live.next_key(), line, now);
        if entered.is_err()
            && let Some(tenant) = self.tenants.get_mut(live.flow.tenant)
        {
            tenant.account.release(live.draw(self.routes.price(live.model)), live.arrived);
        }
        self.schedule(live.flow.tenant, now);
        let granted = entered?;
        let state = live.state;
        let key = self.live.insert(live);
        self.note_running(key, state, now);
        Ok(granted.map_or(Decision::Queued, Decision::Admitted))
    }

    /// Starts a call past an empty queue, or lets it join the queue; its state and its explanation are set.
    pub(super) fn enter(
        &mut self,
        live: &mut Live,
        key: LiveKey,
        line: Line,
        now: Millis,
    ) -> Result<Option<Grant>, Refused> {
        let Some(pool) = self.pools.get_mut(live.pool) else { return Err(shutting_down().into()) };
        if !pool.holder.is_open(now) {
            // The lease has ended while the tenant's account was asked for.
            return Err(ledger_unavailable().into());
        }
        if !pool.can_start_past_queue(live.flow, live.charge, now) {
            return self.join(live, key, line, now).map(|()| None);
        }
        let by = pool.start(live.flow, live.charge, now);
        live.state = State::Running { since: now, by };
        live.explained = self.explanations.add(live, None, Fate::Running { since: now });
        let (Some(tenant), Some(pool)) = (self.tenants.get_mut(live.flow.tenant), self.pools.get(live.pool)) else {
            return Err(shutting_down().into());
        };
        tenant.has_started(now);
        let rates = tenant.account.rates(now);
        Ok(Some(grant(live, tenant, &pool.name, rates, now)))
    }

    fn join(&mut self, live: &mut Live, key: LiveKey, line: Line, now: Millis) -> Result<(), Refused> {
        let (queue, flow, patience) = (&self.config.queue, live.flow, line.patience);
        let deadline = patience.deadline.or(queue.deadline).unwrap_or(queue.timeout).min(queue.timeout);
        let waiter = Waiter {
            key: key.to_bits(),
            flow,
            charge: live.charge,
            bytes: patience.bytes,
            deadline: live.arrived.plus(deadline),
        };
        let is_heavy = line.held.saturating_add(waiter.bytes) > queue.bytes_per_tenant;
        let is_full = self.waiting_bytes.saturating_add(waiter.bytes) > queue.bytes;
        let Some(pool) = self.pools.get_mut(live.pool) else { return Err(shutting_down().into()) };
        self.branches.clear();
        pool.queue.list_branches(&mut self.branches);
        let needs_only_the_ledger = pool.needs_only_the_ledger(live.charge, now);
        let (position, wait) = match needs_only_the_ledger {
            true => (1, Millis::ZERO),
            false => pool.place(&line.standing, live.charge, now),
        };
        let ticket = if needs_only_the_ledger {
            pool.queue.join_anyway(waiter).map_err(|full| queue_full(full, &pool.name, flow.level, queue))
        } else if pool.pace.is_known() && wait > deadline {
            Err(too_late(wait, deadline, deadline_set_by(deadline, patience, queue)))
        } else if is_heavy {
            Err(full_of_bytes(&pool.name).by(LimitName::QueueBytesPerTenant, queue.bytes_per_tenant))
        } else if is_full {
            Err(full_of_bytes(&pool.name).by(LimitName::QueueBytes, queue.bytes))
        } else {
            pool.queue.join(waiter).map_err(|full| queue_full(full, &pool.name, flow.level, queue))
        };
        let ticket = ticket.map_err(|refused| refused.at(position, wait))?;
        pool.joined(flow, &Names { tenants: &self.tenants, groups: &self.config.groups });
        self.count_waiting(flow.tenant, waiter.bytes, 0);
        live.state = State::Queued(ticket);
        live.explained = self.explanations.add(live, Some((position, wait, &self.branches)), Fate::Waiting);
        Ok(())
    }

    /// Request bytes that Envoy holds, `more` of them and `less`.
    pub(super) fn count_waiting(&mut self, tenant: TenantIndex, more: u64, less: u64) {
        self.waiting_bytes = self.waiting_bytes.saturating_add(more).saturating_sub(less);
        if let Some(tenant) = self.tenants.get_mut(tenant) {
            tenant.waiting_bytes = tenant.waiting_bytes.saturating_add(more).saturating_sub(less);
        }
    }
}

fn live_of(plan: &Plan, request: &AdmissionRequest, now: Millis) -> Live {
    Live {
        id: request.id.clone(),
        pool: plan.pool,
        flow: plan.flow,
        model: plan.model,
        reserved: plan.reserved,
        charge: plan.charge,
        input: plan.input,
        prompts: u16::try_from(request.prompts).unwrap_or(u16::MAX),
        sequences: u16::try_from(request.sequences.max(1)).unwrap_or(u16::MAX),
        streams: request.stream,
        arrived: now,
        explained: 0,
        state: State::Applying,
    }
}

fn deadline_set_by(deadline: Millis, patience: Patience, queue: &QueueSettings) -> LimitName {
    match patience.deadline {
        _ if deadline == queue.timeout => LimitName::QueueTimeout,
        Some(_) => LimitName::Deadline,
        None => LimitName::QueueDeadline,
    }
}

/// In words of our own only: they are kept, and the client has chosen the name.
fn not_found(request: &AdmissionRequest) -> Refusal {
    let message = match (&request.model, &request.pool) {
        (Some(_), _) => "the model that the call names does not exist, or no pool serves it",
        (None, Some(_)) => "the route names a pool that does not exist",
        (None, None) => "the request names no model and its route no pool",
    };
    Refusal::new(Reason::ModelNotFound, message).about("model")
}
