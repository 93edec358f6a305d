//! Admit, queue, reject, settle: the four things that happen to a call, and the only place that does them.
//!
//! The core is driven by events (a request, a settlement, a lease, the passing of time) and returns what to tell
//! whom; it never waits and never looks at a clock.
//!
//! Invariants: every live admission is in exactly one pool, queued or running; a pool's `running` counts its
//! running ones and its orphans; a tenant's account has charged each live admission once (I6), and counts its orphans; a settled or cancelled id that is
//! not known leaves a tombstone, so that a request overtaken by its own cancellation does not start.

mod adoption;
mod applicants;
mod arrival;
mod endings;
mod explain;
mod hashed;
mod live;
mod names;
mod orphans;
mod pace;
mod pool;
mod pools;
mod refusals;
mod routes;
mod starts;
mod successors;
mod tenants;
mod view;
mod waiting;
mod yields;

pub use adoption::Replaced;
pub use explain::{Explanation, Fate, Place};
pub use refusals::{Limit, LimitName};
pub use view::PoolView;
pub use waiting::Waiting;

use crate::account::Clocks;
use crate::config::Config;
use crate::holder::{Replica, Servers};
use crate::ledger::Version;
use crate::queue::{Branch, Shares, TenantIndex};
use crate::schedule::{PoolSettings, Settings, UnixMillis};
use crate::units::{AdmissionId, Millis, ModelName, PoolName, TenantId};
use crate::wire::{Grant, RateStatus, Refusal, Usage};
use adoption::Adoption;
use explain::Explanations;
use live::{Live, LiveKey, LiveTable, PoolIndex, State};
use orphans::Orphans;
use pool::PoolState;
use pools::Pools;
use refusals::{RefusalRates, Refused};
use routes::Routes;
use std::collections::BTreeSet;
use std::sync::Arc;
use successors::Successors;
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
    config: Arc<Config>,
    tenants: Tenants,
    adoption: Adoption,
    pools: Pools,
    routes: Routes,
    live: LiveTable,
    orphans: Orphans,
    successors: Successors,
    explanations: Explanations,
    refusal_rates: RefusalRates,
    /// What waits, as the latest newcomer found it; kept for its memory.
    branches: Vec<Branch>,
    /// Request bytes of everyone who waits.
    waiting_bytes: u64,
    replica: Replica,
    /// The ledger's.
    servers: Servers,
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
            config: Arc::new(Config::empty()),
            tenants: Tenants::default(),
            adoption: Adoption::default(),
            pools: Pools::default(),
            routes: Routes::default(),
            live: LiveTable::default(),
            orphans: Orphans::default(),
            successors: Successors::default(),
            explanations: Explanations::default(),
            refusal_rates: RefusalRates::default(),
            branches: Vec::new(),
            waiting_bytes: 0,
            replica: replica.clone(),
            servers: Servers::default(),
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

    /// Takes over a configuration: pools at once, each tenant when it calls next, and the others as
    /// [`Admission::advance`] is called. Calls that wait or run stay, under the new limits and weights; call
    /// [`Admission::apply`] after it, where rules or an overlay are in force. Weights are the configured ones
    /// again. What it gives back is large; a caller with a lock drops it after the lock.
    ///
    /// `since` is when it was read: of two replicas with files of the same revision, what was read later counts.
    pub fn configure(&mut self, mut config: Config, since: UnixMillis, now: Millis) -> Replaced {
        config.keep_group_indices(&self.config.groups);
        let version = Version { file: config.revision, overlay: 0, since: u64::try_from(since.0).unwrap_or(0) };
        for (name, settings) in &config.pools {
            match self.pools.named_mut(name) {
                Some(pool) => pool.configure(settings, &config.queue),
                None => self.pools.add(PoolState::new(name, settings, &config.queue, &self.replica)),
            }
        }
        for (name, model) in &config.models {
            let index = self.tenants.model_index(name);
            if let Some(pool) = self.pools.named_mut(&model.pool) {
                pool.set_charge(index, model.charge);
            }
        }
        self.routes = Routes::new(&config, &self.pools, &mut self.tenants);
        let config = std::mem::replace(&mut self.config, Arc::new(config));
        self.apply(&self.config.settings(), version, now);
        Replaced(config, self.adopt_config(version, Clocks { now, wall: since }))
    }

    /// Puts weights, shares and capacities in force, as time rules and operators change them; nobody loses a place.
    /// Of what replicas tell the ledger the latest version counts.
    pub fn apply(&mut self, settings: &Settings, version: Version, now: Millis) {
        for pool in self.pools.iter_mut() {
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

    /// Starts whoever can start and gives up on whoever has waited too long. Call it after every other method.
    pub fn advance(&mut self, now: Millis) -> Vec<Event> {
        let mut events = Vec::new();
        self.advance_into(now, &mut events);
        events
    }

    /// As [`Admission::advance`], for callers that keep a list for it: whatever is in it stays.
    pub fn advance_into(&mut self, now: Millis, events: &mut Vec<Event>) {
        self.adopt_some(now);
        events.append(&mut self.news);
        while let Some(orphan) = self.orphans.take_due(now) {
            self.end_orphan(orphan, now);
        }
        self.time_out(now, events);
        self.hear_successors(now);
        self.time_out_successors(now, events);
        events.append(&mut self.news);
        while let Some(index) = self.pools.first_stirred() {
            while let Some(event) = self.start_next(index, now) {
                events.push(event);
            }
            self.pools.is_still(index);
        }
    }

    /// When [`Admission::advance`] has something to do by time alone.
    #[must_use]
    pub fn next_wake(&self) -> Option<Millis> {
        let (pools, adopts) = (self.pools.next_wake(), self.next_slice());
        pools
            .into_iter()
            .chain(adopts)
            .chain(self.live.next_expiry())
            .chain(self.orphans.next_end())
            .chain(self.successors.next_end())
            .min()
    }

    /// From now on everything is refused; whoever waits is told.
    pub fn drain(&mut self, now: Millis) -> Vec<Event> {
        self.draining = true;
        let everyone = |pool: &PoolState| {
            pool.queue.waiters().map(|(_, waiter)| LiveKey::from_bits(waiter.key)).collect::<Vec<_>>()
        };
        let mut waiting: Vec<LiveKey> = self.pools.iter().flat_map(everyone).collect();
        waiting.extend(self.applicants());
        waiting.extend(self.successors.keys());
        waiting.sort_unstable();
        let refuse = |key| self.give_up(key, refusals::shutting_down().into(), now);
        waiting.into_iter().filter_map(refuse).collect()
    }

    fn start_next(&mut self, index: PoolIndex, now: Millis) -> Option<Event> {
        let pool = self.pools.get_mut(index)?;
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
        let granted = grant(live, tenant, &self.pools.get(index)?.name, rates, now);
        self.explanations.turn(live.explained, Fate::Running { since: now });
        Some(Event::Started(live.id.clone(), granted))
    }

    fn time_out(&mut self, now: Millis, events: &mut Vec<Event>) {
        for index in self.pools.take_woken(now) {
            let Some(pool) = self.pools.get(index) else { break };
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
        self.end_overdue(now);
    }

    /// Takes a waiter out, gives back what it was charged, and tells why.
    fn give_up(&mut self, key: LiveKey, refused: Refused, now: Millis) -> Option<Event> {
        let live = self.live.get(key)?;
        let (state, index, arrived, draw) =
            (live.state, live.flow.tenant, live.arrived, live.draw(self.routes.price(live.model)));
        if let State::Queued(ticket) = state {
            let waiter = self.pools.get_mut(live.pool)?.leave(ticket)?;
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
        if let State::Succeeding(turn) = live.state {
            self.successors.remove(live.flow.tenant, turn);
        }
        let rates = self.tenants.get(live.flow.tenant)?.account.rates(now);
        let refusal = Refusal { waited_ms: now.since(live.arrived), rates, ..refusal };
        let fate = Fate::Refused { at: now, reason: refusal.reason, message: refusal.message.clone(), limit };
        match live.state {
            State::Applying | State::Succeeding(_) => drop(self.explanations.add(&live, place, fate)),
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

#[cfg(test)]
mod tests;
