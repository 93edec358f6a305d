//! Admit, queue, reject, settle: the four things that happen to a call, and the only place that does them.
//!
//! The core is driven by events (a request, a settlement, a lease, the passing of time) and returns what to tell
//! whom; it never waits and never looks at a clock.
//!
//! Invariants: every live admission is in exactly one pool, queued or running; a pool's `running` counts its
//! running ones; a tenant's account has charged each live admission once (I6); a settled or cancelled id that is
//! not known leaves a tombstone, so that a request overtaken by its own cancellation does not start.

mod applicants;
mod arrival;
mod explain;
mod hashed;
mod live;
mod names;
mod pace;
mod pool;
mod refusals;
mod routes;
mod starts;
mod tenants;
mod waiting;
mod yields;

pub use explain::{Explanation, Fate, Place};
pub use refusals::{Limit, LimitName};
pub use waiting::Waiting;

use crate::account::Clocks;
use crate::adaptive::Served;
use crate::config::Config;
use crate::holder::Replica;
use crate::ledger::{Draw, MeterName, Version};
use crate::queue::{Branch, Shares, TenantIndex};
use crate::schedule::{PoolSettings, Settings, UnixMillis};
use crate::units::{AdmissionId, Millis, ModelName, PoolName, Priority, TenantId, Tokens};
use crate::wire::{Grant, Outcome, RateStatus, Refusal, Settlement, Usage, UsageSource};
use explain::{Explanations, Parties};
use live::{Live, LiveKey, LiveTable, PoolIndex, Removed, State};
use pool::PoolState;
use refusals::Refused;
use routes::Routes;
use std::collections::{BTreeMap, BTreeSet};
use tenants::Tenants;

/// What a request is told on arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Admitted(Grant),
    Rejected(Refusal),
    /// Nothing yet: an [`Event`] with this id follows, at the latest at the queue's timeout.
    Queued,
}

/// News for a call that was queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Started(AdmissionId, Grant),
    Refused(AdmissionId, Refusal),
}

impl Event {
    /// A refusal with the place that the call would have if it came again, and when that may help.
    fn at(self, place: Option<(u64, Millis)>) -> Self {
        match (self, place) {
            (Event::Refused(id, refusal), Some((position, wait))) => Event::Refused(id, refusal.at(position, wait)),
            (event, _) => event,
        }
    }
}

/// What a settlement did, for the meters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    pub tenant: TenantId,
    pub pool: PoolName,
    pub model: ModelName,
    /// What was charged: the upstream's own numbers, unless they cannot be true.
    pub usage: Usage,
}

pub struct Admission {
    config: Config,
    tenants: Tenants,
    /// Never shrinks: a pool that a reload takes away serves its last calls, and refuses new ones.
    pools: Vec<PoolState>,
    routes: Routes,
    live: LiveTable,
    explanations: Explanations,
    /// What waits, as the latest newcomer found it; kept for its memory.
    branches: Vec<Branch>,
    /// Request bytes of everyone who waits.
    waiting_bytes: u64,
    replica: Replica,
    /// When the ledger is to be asked for which tenant; those of pools are few and asked.
    tenant_calls: BTreeSet<(Millis, TenantIndex)>,
    /// What the ledger's answers have done, until [`Admission::advance`] tells.
    news: Vec<Event>,
    draining: bool,
}

impl Admission {
    #[must_use]
    pub fn new(config: Config, replica: &Replica, now: Millis) -> Self {
        let mut core = Self {
            config: Config::empty(),
            tenants: Tenants::default(),
            pools: Vec::new(),
            routes: Routes::default(),
            live: LiveTable::default(),
            explanations: Explanations::default(),
            branches: Vec::new(),
            waiting_bytes: 0,
            replica: replica.clone(),
            tenant_calls: BTreeSet::new(),
            news: Vec::new(),
            draining: false,
        };
        let since = UnixMillis(i64::try_from(replica.incarnation).unwrap_or(i64::MAX));
        core.configure(config, since, now);
        core
    }

    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Takes over a configuration. Whoever waits or runs stays, under the new limits and weights; call
    /// [`Admission::apply`] after it, where rules or an overlay are in force.
    ///
    /// `since` is when it was read: of two replicas with files of the same revision, what was read later counts.
    pub fn configure(&mut self, mut config: Config, since: UnixMillis, now: Millis) {
        config.keep_group_indices(&self.config.groups);
        let version = Version { file: config.revision, overlay: 0, since: u64::try_from(since.0).unwrap_or(0) };
        self.tenants.configure(&config, &self.replica, version, Clocks { now, wall: since });
        for (name, settings) in &config.pools {
            match self.pools.iter_mut().find(|pool| pool.name == *name) {
                Some(pool) => pool.configure(settings, &config.queue),
                None => self.pools.push(PoolState::new(name, settings, &config.queue, &self.replica)),
            }
        }
        for (name, model) in &config.models {
            let index = self.tenants.model_index(name);
            if let Some(pool) = self.pools.iter_mut().find(|pool| pool.name == model.pool) {
                pool.set_charge(index, model.charge);
            }
        }
        self.routes = Routes::new(&config, &self.pools, &mut self.tenants);
        self.config = config;
        self.apply(&self.config.settings(), version, now);
        self.weigh_tenants(&BTreeMap::new());
        let tenants: Vec<TenantIndex> = self.tenants.iter().map(|(index, _)| index).collect();
        for index in tenants {
            self.schedule(index, now);
        }
    }

    /// Puts weights, shares and capacities in force, as time rules and operators change them; nobody loses a place.
    /// Of what replicas tell the ledger the latest version counts.
    pub fn apply(&mut self, settings: &Settings, version: Version, now: Millis) {
        for pool in &mut self.pools {
            if let Some(of_pool) = settings.pools.get(&pool.name) {
                let shares = Shares {
                    policy: self.config.queue.shares.policy,
                    levels: settings.weights,
                    groups: group_shares(&self.config, of_pool),
                };
                pool.apply(of_pool, shares, version, now);
            }
        }
    }

    /// Sets tenants' weights beside others of their level; those that are not named have the configured one.
    pub fn weigh_tenants(&mut self, weights: &BTreeMap<TenantId, u64>) {
        for (index, tenant) in self.tenants.iter() {
            let configured = tenant.terms.as_ref().map_or(1, |terms| terms.weight);
            let weight = weights.get(&tenant.id).copied().unwrap_or(configured);
            for pool in &mut self.pools {
                pool.set_tenant_weight(index, weight);
            }
        }
    }

    /// Each tenant's configured weight, and what its calls have cost since the start.
    #[must_use]
    pub fn served(&self) -> Served {
        let served = |(_, tenant): (_, &tenants::TenantState)| {
            Some((tenant.id.clone(), (tenant.terms.as_ref()?.weight, tenant.served)))
        };
        self.tenants.iter().filter_map(served).collect()
    }

    /// Ends a call, and tells what it was charged; `None` for an id that is not (or no longer) live.
    pub fn settle(&mut self, settlement: &Settlement, now: Millis) -> Option<Settled> {
        let live = match self.live.remove(&settlement.id, now) {
            Removed::Live(live) => live,
            Removed::Before => return None,
            Removed::Unknown => return self.charge_afterwards(settlement, now),
        };
        let pool = self.pools.get_mut(live.pool.0)?;
        let tenant = self.tenants.get_mut(live.flow.tenant)?;
        let believed =
            believable(settlement.usage, pool.context_length(), u32::from(live.prompts), u32::from(live.sequences));
        let usage = believed.unwrap_or_else(|| estimated(&live));
        let price = self.routes.price(live.model);
        let draw = live.draw(price);
        match live.state {
            State::Applying => {}
            State::Queued(ticket) => {
                let bytes = pool.leave(ticket).map_or(0, |waiter| waiter.bytes);
                tenant.account.release(draw, live.arrived);
                self.count_waiting(live.flow.tenant, 0, bytes);
            }
            State::Running { since, by } => {
                tenant.has_ended(since);
                let (actual, charge) = (usage.input.plus(usage.output), pool.charge_weights(live.model).of(&usage));
                pool.end(&live, by, charge, now.since(since));
                tenant.served = tenant.served.plus(charge);
                match (settlement.outcome, usage.source) {
                    (Outcome::Cancelled, UsageSource::None) => tenant.account.release(draw, live.arrived),
                    _ => tenant.account.settle(draw, Draw { tokens: actual, money: price.of(&usage) }, live.arrived),
                }
            }
        }
        // A fixed charge tells nothing of what a model yields.
        let is_counted = usage.source != UsageSource::Fixed;
        if is_counted
            && let (Outcome::Completed, Some(tenant)) = (settlement.outcome, self.tenants.get_mut(live.flow.tenant))
        {
            tenant.yields.learn(live.model, Tokens(usage.output.0 / u64::from(live.sequences)));
        }
        self.schedule(live.flow.tenant, now);
        let fate = Fate::Ended { at: now, outcome: settlement.outcome, usage };
        if live.state == State::Applying {
            self.explanations.add(&live, None, fate);
        } else {
            self.explanations.turn(live.explained, fate);
        }
        let model = self.tenants.model(live.model)?.clone();
        let tenant = self.tenants.get(live.flow.tenant)?.id.clone();
        Some(Settled { tenant, pool: self.pools.get(live.pool.0)?.name.clone(), model, usage })
    }

    /// The settlements of calls that have ended, though nobody told how: what had started is charged what it reserved.
    /// Looks at every call, so it is for now and then.
    pub fn settlements_of(&self, is_over: impl Fn(&AdmissionId) -> bool) -> Vec<Settlement> {
        let ended = self.live.iter().filter(|live| is_over(&live.id));
        let settlement = |live: &Live| {
            let (outcome, usage) = match live.state {
                State::Running { .. } => (Outcome::Failed, estimated(live)),
                State::Applying | State::Queued(_) => (Outcome::Cancelled, Usage::default()),
            };
            Settlement { id: live.id.clone(), outcome, usage, charge_to: None, timing: None }
        };
        ended.map(settlement).collect()
    }

    /// Starts whoever can start and gives up on whoever has waited too long. Call it after every other method.
    pub fn advance(&mut self, now: Millis) -> Vec<Event> {
        let mut events = Vec::new();
        self.advance_into(now, &mut events);
        events
    }

    /// As [`Admission::advance`], for callers that keep a list for it: whatever is in it stays.
    pub fn advance_into(&mut self, now: Millis, events: &mut Vec<Event>) {
        events.append(&mut self.news);
        self.time_out(now, events);
        for index in 0..self.pools.len() {
            while let Some(event) = self.start_next(PoolIndex(index), now) {
                events.push(event);
            }
        }
    }

    /// When [`Admission::advance`] has something to do by time alone.
    #[must_use]
    pub fn next_wake(&self) -> Option<Millis> {
        let pools = self.pools.iter().filter_map(PoolState::next_wake);
        pools.chain(self.live.next_expiry()).min()
    }

    /// From now on everything is refused; whoever waits is told.
    pub fn drain(&mut self, now: Millis) -> Vec<Event> {
        self.draining = true;
        let everyone = |pool: &PoolState| {
            pool.queue.waiters().map(|(_, waiter)| LiveKey::from_bits(waiter.key)).collect::<Vec<_>>()
        };
        let mut waiting: Vec<LiveKey> = self.pools.iter().flat_map(everyone).collect();
        waiting.extend(self.applicants());
        waiting.sort_unstable();
        let refuse = |key| self.give_up(key, refusals::shutting_down().into(), now);
        waiting.into_iter().filter_map(refuse).collect()
    }

    /// Why a recent call was admitted, queued or refused; the most recent 10,000 are known.
    #[must_use]
    pub fn explain(&self, id: &AdmissionId) -> Option<Explanation> {
        let (record, queued_at) = self.explanations.get(id)?;
        let (tenant, model, pool) = match record.parties.clone() {
            Parties::Named { tenant, model, pool } => (tenant, model, pool),
            Parties::Known { tenant, model, pool } => (
                Some(self.tenants.get(tenant)?.id.clone()),
                self.tenants.model(model).cloned(),
                self.pools.get(pool.0).map(|pool| pool.name.clone()),
            ),
        };
        let (level, reserved, charge) = (record.level, record.reserved, record.charge);
        let (arrived, fate) = (record.arrived, record.fate.clone());
        Some(Explanation { tenant, model, pool, level, reserved, charge, arrived, queued_at, fate })
    }

    /// Whether traffic may be sent here: every pool has had a lease, and nobody has said to stop. A lease that has
    /// ended does not count against it: all replicas share one ledger, so another one would refuse as well.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.draining && self.pools.iter().all(|pool| pool.holder.has_been_leased())
    }

    /// Whether nothing is queued and nothing runs.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.live.is_empty()
    }

    /// What is left of a tenant's rates and budgets, as far as this replica knows.
    #[must_use]
    pub fn levels(&self, tenant: &TenantId, now: Millis) -> BTreeMap<MeterName, i64> {
        let state = self.tenants.index(tenant).and_then(|index| self.tenants.get(index));
        state.map(|state| state.account.levels(now)).unwrap_or_default()
    }

    /// The same of a pool.
    #[must_use]
    pub fn pool_levels(&self, pool: &PoolName, now: Millis) -> BTreeMap<MeterName, i64> {
        self.pool(pool).map(|pool| pool.holder.levels(now)).unwrap_or_default()
    }

    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What a pool is limited to now, with rules and overlay applied.
    #[must_use]
    pub fn capacity(&self, pool: &PoolName) -> u32 {
        self.pool(pool).map_or(0, |pool| pool.holder.capacity())
    }

    /// Of every pool: its name, the slots in use, and how many there are.
    pub fn slots(&self) -> impl Iterator<Item = (&PoolName, u32, u32)> {
        self.pools.iter().map(|pool| (&pool.name, pool.running, pool.holder.capacity()))
    }

    #[must_use]
    pub fn running(&self, pool: &PoolName) -> u32 {
        self.pool(pool).map_or(0, |pool| pool.running)
    }

    /// Slots of a pool that this replica may use now.
    #[must_use]
    pub fn held(&self, pool: &PoolName, now: Millis) -> u32 {
        self.pool(pool).map_or(0, |pool| pool.holder.usable(now))
    }

    #[must_use]
    pub fn queue_depth(&self, pool: &PoolName, level: Priority) -> usize {
        self.pool(pool).map_or(0, |pool| pool.queue.depth(level))
    }

    /// A tenant's calls, queued or running.
    #[must_use]
    pub fn in_flight(&self, tenant: &TenantId) -> u32 {
        let state = self.tenants.index(tenant).and_then(|index| self.tenants.get(index));
        state.map_or(0, |state| state.account.in_flight())
    }

    fn pool(&self, name: &PoolName) -> Option<&PoolState> {
        self.pools.iter().find(|pool| pool.name == *name)
    }

    fn start_next(&mut self, index: PoolIndex, now: Millis) -> Option<Event> {
        let pool = self.pools.get_mut(index.0)?;
        let (ticket, waiter) = pool.next_to_start(now)?;
        let (key, ends) = (LiveKey::from_bits(waiter.key), now.plus(self.replica.lease.longest_request));
        // The call's own state and its tenant's lie where no cache holds them. Asked for before the queue is changed,
        // they arrive together.
        let live = self.live.start(key, ends)?;
        let tenant = self.tenants.get_mut(waiter.flow.tenant)?;
        tenant.has_started(now);
        live.state = State::Running { since: now, by: pool.start_waiter(ticket, now)? };
        tenant.waiting_bytes = tenant.waiting_bytes.saturating_sub(waiter.bytes);
        self.waiting_bytes = self.waiting_bytes.saturating_sub(waiter.bytes);
        let rates = tenant.account.rates(now);
        let granted = grant(live, tenant, &self.pools.get(index.0)?.name, rates, now);
        self.explanations.turn(live.explained, Fate::Running { since: now });
        Some(Event::Started(live.id.clone(), granted))
    }

    /// A call that this process did not admit is charged to its tenant all the same: it was admitted before a restart,
    /// or passed while the service was away.
    fn charge_afterwards(&mut self, settlement: &Settlement, now: Millis) -> Option<Settled> {
        let charge_to = settlement.charge_to.as_ref().filter(|_| settlement.usage.source != UsageSource::None)?;
        let pool = self.pool(&charge_to.pool)?;
        let usage = believable(settlement.usage, pool.context_length(), charge_to.prompts, charge_to.sequences)?;
        let model = ModelName::from(charge_to.model.as_deref().unwrap_or(charge_to.pool.as_str()));
        let index = self.tenants.index(&charge_to.tenant)?;
        let tenant = self.tenants.get_mut(index)?;
        let price = self.config.models.get(&model).map(|model| model.price).unwrap_or_default();
        tenant.account.charge_afterwards(Draw { tokens: usage.input.plus(usage.output), money: price.of(&usage) }, now);
        self.schedule(index, now);
        Some(Settled { tenant: charge_to.tenant.clone(), pool: charge_to.pool.clone(), model, usage })
    }

    fn time_out(&mut self, now: Millis, events: &mut Vec<Event>) {
        for index in 0..self.pools.len() {
            let Some(pool) = self.pools.get(index) else { break };
            if pool.queue.next_deadline().is_none_or(|next| next > now) {
                continue;
            }
            let is_cut_off = pool.holder.is_cut_off(now);
            for ticket in pool.queue.overdue(now) {
                let waiter = self.pools.get(index).and_then(|pool| pool.queue.get(ticket)).copied();
                let Some(waiter) = waiter else { continue };
                let why = if is_cut_off { refusals::ledger_unavailable() } else { refusals::timed_out() };
                let told = self.give_up(LiveKey::from_bits(waiter.key), why.into(), now);
                // Told in turn, so that those who give up together come back one after the other, as places come free.
                let pool = self.pools.get(index).filter(|_| !is_cut_off);
                let place = pool.map(|pool| pool.place(&pool.queue.standing(waiter.flow), waiter.charge, now));
                events.extend(told.map(|event| event.at(place)));
            }
        }
        // A call that outlived the longest stream Envoy allows has ended, though nobody told us how.
        for key in self.live.overdue(now) {
            let Some(live) = self.live.remove_key(key, now) else { continue };
            let State::Running { since, by } = live.state else { continue };
            if let Some(pool) = self.pools.get_mut(live.pool.0) {
                pool.end(&live, by, live.charge, self.replica.lease.longest_request);
            }
            if let Some(tenant) = self.tenants.get_mut(live.flow.tenant) {
                tenant.has_ended(since);
                let draw = live.draw(self.routes.price(live.model));
                tenant.account.settle(draw, draw, live.arrived);
            }
            let usage = estimated(&live);
            self.explanations.turn(live.explained, Fate::Ended { at: now, outcome: Outcome::Failed, usage });
        }
    }

    /// Takes a waiter out, gives back what it was charged, and tells why.
    fn give_up(&mut self, key: LiveKey, refused: Refused, now: Millis) -> Option<Event> {
        let live = self.live.get(key)?;
        let (state, index, arrived, draw) =
            (live.state, live.flow.tenant, live.arrived, live.draw(self.routes.price(live.model)));
        if let State::Queued(ticket) = state {
            let waiter = self.pools.get_mut(live.pool.0)?.leave(ticket)?;
            self.count_waiting(index, 0, waiter.bytes);
            self.tenants.get_mut(index)?.account.release(draw, arrived);
            self.schedule(index, now);
        }
        self.turn_away(key, refused, now)
    }

    /// Takes out a call that is charged nothing (any more), and tells why.
    fn turn_away(&mut self, key: LiveKey, refused: Refused, now: Millis) -> Option<Event> {
        let place = refused.place().map(|(position, wait)| (position, wait, &*self.branches));
        let Refused { refusal, limit } = refused;
        let live = self.live.remove_key(key, now)?;
        let rates = self.tenants.get(live.flow.tenant)?.account.rates(now);
        let refusal = Refusal { waited_ms: now.since(live.arrived), rates, ..refusal };
        let fate = Fate::Refused { at: now, reason: refusal.reason, message: refusal.message.clone(), limit };
        match live.state {
            State::Applying => drop(self.explanations.add(&live, place, fate)),
            State::Queued(_) | State::Running { .. } => self.explanations.turn(live.explained, fate),
        }
        Some(Event::Refused(live.id, refusal))
    }
}

/// Shares by group index; empty where groups do not matter. A group without one has 1.
fn group_shares(config: &Config, pool: &PoolSettings) -> Vec<u64> {
    if pool.shares.is_empty() {
        return Vec::new();
    }
    let last = config.groups.values().map(|index| usize::from(index.0)).max().unwrap_or(0);
    let mut shares = vec![1; last + 1];
    for (name, index) in &config.groups {
        let given = pool.shares.get(name.as_str());
        if let (Some(share), Some(slot)) = (given, shares.get_mut(usize::from(index.0))) {
            *slot = *share;
        }
    }
    shares
}

fn grant(live: &Live, tenant: &tenants::TenantState, pool: &PoolName, rates: Vec<RateStatus>, now: Millis) -> Grant {
    let terms = tenant.terms.as_ref();
    Grant {
        tenant: tenant.id.clone(),
        namespace: terms.map(|terms| terms.namespace.clone()).unwrap_or_default(),
        tier: terms.map(|terms| terms.tier.clone()).unwrap_or_default(),
        priority: live.flow.level,
        pool: pool.clone(),
        reserved: live.reserved,
        waited_ms: now.since(live.arrived),
        rates,
        upstream_model: None,
        max_tokens: None,
    }
}

/// Usage that the model's context allows to so many prompts and sequences; what exceeds it cannot be true.
fn believable(usage: Usage, context: Option<Tokens>, prompts: u32, sequences: u32) -> Option<Usage> {
    if usage.source == UsageSource::Fixed {
        // A fixed charge is configured and not a count of anything that a context could hold.
        return Some(usage);
    }
    let fits = |context: Tokens| {
        usage.input <= context.times(u64::from(prompts)) && usage.output <= context.times(u64::from(sequences))
    };
    context.is_none_or(fits).then_some(usage)
}

/// In place of usage that cannot be true: what was reserved.
fn estimated(live: &Live) -> Usage {
    let output = Tokens(live.reserved.0.saturating_sub(live.input.0));
    Usage { source: UsageSource::Estimated, input: live.input, output, cached: Tokens::ZERO, reasoning: Tokens::ZERO }
}

#[cfg(test)]
mod tests;
