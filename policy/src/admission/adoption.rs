//! Tenants take over a configuration, weights and a calendar day one by one: each when it calls next, the others in
//! slices. So no change holds the core for longer than a slice takes, however many tenants there are, and a tenant that
//! has never called has no state at all.
//!
//! Invariant: a call is decided by a tenant that is up to date.

use super::Admission;
use super::live::PoolIndex;
use crate::account::Clocks;
use crate::budget::Days;
use crate::config::Config;
use crate::ledger::Version;
use crate::queue::TenantIndex;
use crate::schedule::UnixMillis;
use crate::units::{Millis, TenantId, Tokens};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Tenants that are brought up to date at once, in well under a millisecond.
const SLICE: u32 = 128;
/// Between two slices, for the calls that come meanwhile.
const PAUSE: Millis = Millis(1);
/// A wall clock that has moved beside ours by more than this was set.
const CLOCK_WAS_SET_MS: i64 = 1_000;

/// Each tenant's weight beside others of its level, where it is not the configured one.
type Weights = Arc<BTreeMap<TenantId, u64>>;

/// A configuration that is in force no more, with the weights beside it. As large as there are tenants.
#[derive(Debug)]
pub struct Replaced(
    #[expect(dead_code, reason = "is there to be dropped")] pub(super) Arc<Config>,
    #[expect(dead_code, reason = "is there to be dropped")] pub(super) Weights,
);

/// What tenants go by, and which of them have yet to follow.
#[derive(Debug, Default)]
pub(super) struct Adoption {
    version: Version,
    clocks: Clocks,
    days: Days,
    weights: Weights,
    /// Counts what tenants have to take over. At one change a second it lasts for a century.
    latest: u32,
    /// The latest change that was a configuration.
    configured: u32,
    /// Every tenant before it is up to date.
    next: u32,
    /// When the latest slice of this change was; `None` before the first.
    sliced_at: Option<Millis>,
}

impl Adoption {
    /// The ledger's version of what tenants are configured by, and the moment on both clocks.
    pub(super) fn terms_at(&self, now: Millis) -> (Version, Clocks) {
        let passed = i64::try_from(now.since(self.clocks.now).0).unwrap_or(i64::MAX);
        (self.version, Clocks { now, wall: UnixMillis(self.clocks.wall.0.saturating_add(passed)) })
    }

    /// The weight of a tenant beside others of its level.
    pub(super) fn weight(&self, id: &TenantId, configured: u64) -> u32 {
        u32::try_from(self.weights.get(id).copied().unwrap_or(configured)).unwrap_or(u32::MAX)
    }

    /// The number of the latest change, for a tenant that has taken over all of them.
    pub(super) fn latest(&self) -> u32 {
        self.latest
    }

    /// Whether a tenant has the configuration that it is to go by, whatever else has changed.
    pub(super) fn has_config(&self, adopted: u32) -> bool {
        adopted >= self.configured
    }

    fn begin(&mut self) {
        self.latest = self.latest.saturating_add(1);
        self.next = 0;
        self.sliced_at = None;
    }
}

impl Admission {
    /// From now on tenants are configured by another file. Gives the weights before.
    pub(super) fn adopt_config(&mut self, version: Version, clocks: Clocks) -> Weights {
        self.adoption.version = version;
        self.adoption.clocks = clocks;
        self.adoption.days = self.config.days(clocks.wall);
        self.adoption.begin();
        self.adoption.configured = self.adoption.latest;
        std::mem::take(&mut self.adoption.weights)
    }

    /// Sets tenants' weights beside others of their level; those that are not named have the configured one. Takes effect as
    /// [`Admission::advance`] is called, for a tenant that calls at once. Gives the weights before, which a caller with a
    /// lock drops after it.
    pub fn weigh_tenants(&mut self, weights: Weights) -> Weights {
        if weights.is_empty() && self.adoption.weights.is_empty() {
            return weights;
        }
        self.adoption.begin();
        std::mem::replace(&mut self.adoption.weights, weights)
    }

    /// Begins the budgets of the day and the month that it is; to be called when a day ends somewhere (see
    /// [`crate::config::Config::next_turn`]), and as often as one likes. Takes effect as [`Admission::weigh_tenants`] does.
    pub fn turn_budgets(&mut self, wall: UnixMillis, now: Millis) {
        let (_, expected) = self.adoption.terms_at(now);
        let days = self.config.days(wall);
        let was_set = wall.0.abs_diff(expected.wall.0) > CLOCK_WAS_SET_MS.unsigned_abs();
        self.adoption.clocks = Clocks { now, wall };
        if was_set || days != self.adoption.days {
            self.adoption.days = days;
            self.adoption.begin();
        }
    }

    /// What calls have cost since the start, of at most so many tenants that have called, from the one with this number
    /// on; none after the last. In parts, so that nobody waits for all of them.
    #[must_use]
    pub fn costs(&self, first: usize, most: usize) -> Vec<(TenantId, Tokens)> {
        self.tenants.iter().skip(first).take(most).map(|(_, tenant)| (tenant.id.clone(), tenant.served)).collect()
    }

    /// A configured tenant that calls, up to date.
    pub(super) fn welcome(&mut self, id: &TenantId, now: Millis) -> Option<TenantIndex> {
        if let Some(index) = self.tenants.index(id) {
            self.bring_up_to_date(index, now);
            return Some(index);
        }
        let settings = self.config.tenants.get(id)?;
        let (version, clocks) = self.adoption.terms_at(now);
        let index = self.tenants.add(id, settings, &self.replica, (version, clocks), &self.adoption);
        self.schedule(index, now);
        Some(index)
    }

    /// Brings the next tenants up to date that are not: a slice a millisecond. A ledger in this process answers what a
    /// slice asks at once, and without the pause the whole change would be one call of [`Admission::advance`] after the
    /// other under one lock.
    pub(super) fn adopt_some(&mut self, now: Millis) {
        if self.next_slice().is_none_or(|at| at > now) {
            return;
        }
        self.adoption.sliced_at = Some(now);
        let end = self.tenants.len().min(self.adoption.next.saturating_add(SLICE));
        while self.adoption.next < end {
            self.bring_up_to_date(TenantIndex(self.adoption.next), now);
            self.adoption.next += 1;
        }
    }

    /// When the next tenants are to be brought up to date; `None` when all are.
    pub(super) fn next_slice(&self) -> Option<Millis> {
        let at = self.adoption.sliced_at.map_or(Millis::ZERO, |at| at.plus(PAUSE));
        (self.adoption.next < self.tenants.len()).then_some(at)
    }

    /// A pool hears of a tenant's weight when a call of the tenant comes there.
    pub(super) fn weigh_in(&mut self, pool: PoolIndex, tenant: TenantIndex) {
        let weight = self.tenants.get(tenant).map_or(1, |tenant| u64::from(tenant.weight));
        if self.pools.get(pool).is_some_and(|pool| pool.queue.weight(tenant) != weight)
            && let Some(pool) = self.pools.get_mut(pool)
        {
            pool.queue.set_weight(tenant, weight);
        }
    }

    /// Does nothing for a tenant that has taken over everything.
    pub(super) fn bring_up_to_date(&mut self, index: TenantIndex, now: Millis) {
        let (version, clocks) = self.adoption.terms_at(now);
        let adopted = self.tenants.adopt(index, &self.config, &self.replica, (version, clocks), &self.adoption);
        if let Some(weight) = adopted {
            self.pools.weigh(index, u64::from(weight));
            self.schedule(index, now);
        }
    }
}
