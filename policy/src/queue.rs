//! The fair queue of one pool: who is next.
//!
//! Behind the choice stands a walk down a tree of virtual counters: *level*, then *tenant inside the level*, the
//! smallest counter first at each step. A counter grows by charge / weight when a call starts and is corrected when
//! it settles; a branch that returns from idle is lifted to the smallest active counter beside it, so that nobody
//! claims the past. (Start-time fair queueing, Goyal et al. 1996, with charges known only afterwards.)
//!
//! Invariants: a flow stands in its level's `order` exactly when it has waiters; `depth` and `bytes` are the sums
//! over all waiters; a ticket stands in `places` exactly when it waits.

use crate::units::{Millis, Priority, TenantId, Tokens};
use std::collections::{BTreeMap, BTreeSet};

/// Names a waiter inside one admission core; grows with arrival, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// How levels share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharePolicy {
    /// The better level always first.
    Strict,
    /// All levels by weight.
    Wfq,
    /// P0 always first, P1 to P9 by weight.
    Hybrid,
}

/// Bounds and shares of a pool's queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    pub policy: SharePolicy,
    /// Per level, 1 to 1,000,000.
    pub weights: [u64; Priority::COUNT],
    /// The longest anyone waits.
    pub timeout: Millis,
    pub depth_per_level: usize,
    pub depth_per_tenant: usize,
    /// Request bytes that Envoy holds for all waiters together.
    pub bytes: u64,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            policy: SharePolicy::Hybrid,
            weights: [256, 128, 64, 32, 16, 8, 4, 2, 1, 1],
            timeout: Millis(60_000),
            depth_per_level: 10_000,
            depth_per_tenant: 1_000,
            bytes: 256 << 20,
        }
    }
}

/// Why a queue took nobody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Level,
    Tenant,
    Bytes,
}

/// Who joins the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter {
    pub ticket: Ticket,
    pub tenant: TenantId,
    pub priority: Priority,
    /// What its start will cost its level and its tenant.
    pub charge: Tokens,
    pub bytes: u64,
    /// When it gives up.
    pub deadline: Millis,
}

/// Virtual counters are scaled, so that a charge of one token still moves a counter of the largest weight.
const COUNTER_SCALE: u128 = 1 << 20;

#[derive(Clone, Debug, Default)]
struct Level {
    counter: u128,
    depth: usize,
    flows: BTreeMap<TenantId, Flow>,
    /// Flows that have waiters, the next one first.
    order: BTreeSet<(u128, TenantId)>,
}

/// One tenant inside a level. It outlives its waiters, to remember what it has had.
#[derive(Clone, Debug, Default)]
struct Flow {
    counter: u128,
    waiting: BTreeMap<Ticket, Waiter>,
}

#[derive(Clone, Debug)]
pub struct FairQueue {
    settings: QueueSettings,
    levels: [Level; Priority::COUNT],
    places: BTreeMap<Ticket, (Priority, TenantId)>,
    deadlines: BTreeSet<(Millis, Ticket)>,
    bytes: u64,
}

impl FairQueue {
    #[must_use]
    pub fn new(settings: QueueSettings) -> Self {
        Self { settings, levels: Default::default(), places: BTreeMap::new(), deadlines: BTreeSet::new(), bytes: 0 }
    }

    /// Takes a waiter in, behind the others of its flow.
    ///
    /// # Errors
    /// The bound that it would exceed; nothing has changed then.
    pub fn join(&mut self, waiter: Waiter) -> Result<(), Full> {
        if self.bytes.saturating_add(waiter.bytes) > self.settings.bytes {
            return Err(Full::Bytes);
        }
        let lowest_active_level = self.lowest_active_level();
        let level = &mut self.levels[waiter.priority.index()];
        if level.depth >= self.settings.depth_per_level {
            return Err(Full::Level);
        }
        let lowest_active_flow = level.order.first().map(|(counter, _)| *counter);
        let flow = level.flows.entry(waiter.tenant.clone()).or_default();
        if flow.waiting.len() >= self.settings.depth_per_tenant {
            return Err(Full::Tenant);
        }
        if level.depth == 0 {
            level.counter = level.counter.max(lowest_active_level.unwrap_or(0));
        }
        if flow.waiting.is_empty() {
            flow.counter = flow.counter.max(lowest_active_flow.unwrap_or(0));
            level.order.insert((flow.counter, waiter.tenant.clone()));
        }
        level.depth += 1;
        self.bytes += waiter.bytes;
        self.places.insert(waiter.ticket, (waiter.priority, waiter.tenant.clone()));
        self.deadlines.insert((waiter.deadline, waiter.ticket));
        flow.waiting.insert(waiter.ticket, waiter);
        Ok(())
    }

    /// Who starts next, if it can.
    #[must_use]
    pub fn head(&self) -> Option<&Waiter> {
        let level = &self.levels[self.next_level()?.index()];
        let (_, tenant) = level.order.first()?;
        level.flows.get(tenant)?.waiting.values().next()
    }

    /// Takes a waiter out: it starts elsewhere, gave up, or left.
    pub fn leave(&mut self, ticket: Ticket) -> Option<Waiter> {
        let (priority, tenant) = self.places.remove(&ticket)?;
        let level = &mut self.levels[priority.index()];
        let flow = level.flows.get_mut(&tenant)?;
        let waiter = flow.waiting.remove(&ticket)?;
        if flow.waiting.is_empty() {
            level.order.remove(&(flow.counter, tenant));
        }
        level.depth -= 1;
        self.bytes -= waiter.bytes;
        self.deadlines.remove(&(waiter.deadline, ticket));
        Some(waiter)
    }

    /// A call of this flow starts, from the queue or past an empty one: it is charged to its level and its tenant.
    pub fn charge(&mut self, priority: Priority, tenant: &TenantId, charge: Tokens) {
        self.adjust(priority, tenant, |counter, weight| counter.saturating_add(scaled(charge, weight)));
    }

    /// A call settled for `actual` where `reserved` had been charged.
    pub fn correct(&mut self, priority: Priority, tenant: &TenantId, reserved: Tokens, actual: Tokens) {
        self.adjust(priority, tenant, |counter, weight| {
            counter.saturating_add(scaled(actual, weight)).saturating_sub(scaled(reserved, weight))
        });
    }

    /// Waiters whose deadline has come.
    #[must_use]
    pub fn overdue(&self, now: Millis) -> Vec<Ticket> {
        let due = self.deadlines.iter().take_while(|(deadline, _)| *deadline <= now);
        due.map(|(_, ticket)| *ticket).collect()
    }

    #[must_use]
    pub fn next_deadline(&self) -> Option<Millis> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    #[must_use]
    pub fn depth(&self, priority: Priority) -> usize {
        self.levels[priority.index()].depth
    }

    #[must_use]
    pub fn settings(&self) -> &QueueSettings {
        &self.settings
    }

    /// Everyone who waits, in order of arrival.
    pub fn tickets(&self) -> impl Iterator<Item = Ticket> {
        self.places.keys().copied()
    }

    fn next_level(&self) -> Option<Priority> {
        let mut waiting = Priority::all().filter(|level| self.depth(*level) > 0);
        let best = waiting.next()?;
        match self.settings.policy {
            SharePolicy::Strict => Some(best),
            SharePolicy::Hybrid if best == Priority::FIRST => Some(best),
            SharePolicy::Hybrid | SharePolicy::Wfq => {
                std::iter::once(best).chain(waiting).min_by_key(|level| self.levels[level.index()].counter)
            }
        }
    }

    fn lowest_active_level(&self) -> Option<u128> {
        self.levels.iter().filter(|level| level.depth > 0).map(|level| level.counter).min()
    }

    /// Moves the counters of a level and of a flow inside it; a flow's weight is 1.
    fn adjust(&mut self, priority: Priority, tenant: &TenantId, change: impl Fn(u128, u64) -> u128) {
        let weight = self.settings.weights[priority.index()];
        let level = &mut self.levels[priority.index()];
        level.counter = change(level.counter, weight);
        let flow = level.flows.entry(tenant.clone()).or_default();
        let waits = !flow.waiting.is_empty();
        if waits {
            level.order.remove(&(flow.counter, tenant.clone()));
        }
        flow.counter = change(flow.counter, 1);
        if waits {
            level.order.insert((flow.counter, tenant.clone()));
        }
    }
}

fn scaled(charge: Tokens, weight: u64) -> u128 {
    u128::from(charge.0) * COUNTER_SCALE / u128::from(weight.max(1))
}

#[cfg(test)]
mod tests;
