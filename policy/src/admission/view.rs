//! What others are shown of the core.

use super::Admission;
use super::explain::{Explanation, Parties};
use super::pool::PoolState;
use crate::config::Config;
use crate::ledger::MeterName;
use crate::units::{AdmissionId, Millis, PoolName, Priority, TenantId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One pool at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolView {
    pub name: PoolName,
    /// What it is limited to now, with rules and overlay applied.
    pub capacity: u32,
    /// Slots that this replica may use.
    pub held: u32,
    /// Calls that have a slot, orphans too.
    pub running: u32,
    /// Of these, abandoned calls that keep their slot for a while.
    pub orphaned: u32,
    /// Waiting calls by level.
    pub depths: [usize; Priority::COUNT],
}

impl Admission {
    /// Why a recent call was admitted, queued or refused; the most recent 10,000 are known.
    #[must_use]
    pub fn explain(&self, id: &AdmissionId) -> Option<Explanation> {
        let (record, queued_at) = self.explanations.get(id)?;
        let (tenant, route) = match record.parties.clone() {
            Parties::Named { tenant, route } => (tenant, route),
            Parties::Known { tenant, model, pool } => (Some(self.tenants.get(tenant)?.id.clone()), Some((model, pool))),
        };
        let model = route.and_then(|(model, _)| self.tenants.model(model).cloned());
        let pool = route.and_then(|(_, pool)| self.pools.get(pool)).map(|pool| pool.name.clone());
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

    /// Whether nothing is queued, nothing runs, and nothing keeps a slot.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.live.is_empty() && self.orphans.is_empty()
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
    pub fn config(&self) -> &Arc<Config> {
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

    /// What stands where now in every pool that is or was configured.
    pub fn pool_views(&self, now: Millis) -> impl Iterator<Item = PoolView> {
        self.pools.iter().map(move |pool| {
            let mut depths = [0; Priority::COUNT];
            for (depth, level) in depths.iter_mut().zip(Priority::all()) {
                *depth = pool.queue.depth(level);
            }
            PoolView {
                name: pool.name.clone(),
                capacity: pool.holder.capacity(),
                held: pool.holder.usable(now),
                running: pool.running,
                orphaned: pool.orphaned,
                depths,
            }
        })
    }

    /// Slots in use, by calls that run and by orphans.
    #[must_use]
    pub fn running(&self, pool: &PoolName) -> u32 {
        self.pool(pool).map_or(0, |pool| pool.running)
    }

    /// Of the running calls those that were abandoned and keep their slot for a while.
    #[must_use]
    pub fn orphaned(&self, pool: &PoolName) -> u32 {
        self.pool(pool).map_or(0, |pool| pool.orphaned)
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

    pub(super) fn pool(&self, name: &PoolName) -> Option<&PoolState> {
        self.pools.named(name)
    }
}
