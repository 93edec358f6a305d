//! Every pool, by index and by name, and which of them need a look.
//!
//! A call costs the same however many pools there are: nothing walks all of them for it. A pool that was handed out to be
//! changed is *stirred*, something may start there; time alone changes only those whose timer is due.
//!
//! Invariant: a pool that is not in `untimed` has its timers set for the state it is in; a pool outside of `stirred` and
//! without a timer that is due has nobody to start.

use super::live::PoolIndex;
use super::pool::PoolState;
use crate::queue::TenantIndex;
use crate::units::{Millis, PoolName};
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;

/// Never shrinks: a pool that a reload takes away serves its last calls, and refuses new ones.
#[derive(Default)]
pub(super) struct Pools {
    states: Vec<PoolState>,
    by_name: FxHashMap<PoolName, PoolIndex>,
    stirred: BTreeSet<PoolIndex>,
    /// Changed since their timers were set.
    untimed: BTreeSet<PoolIndex>,
    /// When the ledger is to be asked.
    calls: Timers,
    /// When a deadline passes, or a lease ends that was in the way.
    wakes: Timers,
    /// When timers were last set.
    timed_at: Millis,
    /// How often a pool was looked at, for tests.
    #[cfg(test)]
    pub(super) looks: u64,
}

impl Pools {
    pub(super) fn add(&mut self, pool: PoolState) {
        let index = PoolIndex::new(self.states.len());
        self.by_name.insert(pool.name.clone(), index);
        self.states.push(pool);
        self.stir(index);
    }

    pub(super) fn index(&self, name: &PoolName) -> Option<PoolIndex> {
        self.by_name.get(name).copied()
    }

    pub(super) fn get(&self, index: PoolIndex) -> Option<&PoolState> {
        self.states.get(index.at())
    }

    /// A pool to be changed.
    pub(super) fn get_mut(&mut self, index: PoolIndex) -> Option<&mut PoolState> {
        self.stir(index);
        self.states.get_mut(index.at())
    }

    pub(super) fn named(&self, name: &PoolName) -> Option<&PoolState> {
        self.get(self.index(name)?)
    }

    pub(super) fn named_mut(&mut self, name: &PoolName) -> Option<&mut PoolState> {
        self.get_mut(self.index(name)?)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &PoolState> {
        self.states.iter()
    }

    /// Sets a tenant's weight in every pool that has calls of it, or had.
    pub(super) fn weigh(&mut self, tenant: TenantIndex, weight: u64) {
        for at in 0..self.states.len() {
            let Some(pool) = self.states.get_mut(at) else { continue };
            if pool.queue.knows(tenant) && pool.queue.weight(tenant) != weight {
                pool.queue.set_weight(tenant, weight);
                self.stir(PoolIndex::new(at));
            }
        }
    }

    /// All of them, for what changes all: a configuration, a farewell.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut PoolState> {
        (0..self.states.len()).map(PoolIndex::new).for_each(|index| self.stir(index));
        self.states.iter_mut()
    }

    /// The next pool in which something may start. It counts as looked at when [`Pools::is_still`] says so.
    pub(super) fn first_stirred(&self) -> Option<PoolIndex> {
        self.stirred.first().copied()
    }

    /// Nobody more can start in a pool as it is.
    pub(super) fn is_still(&mut self, index: PoolIndex) {
        self.stirred.remove(&index);
    }

    /// The pools, by index, that time alone has changed.
    pub(super) fn take_woken(&mut self, now: Millis) -> BTreeSet<PoolIndex> {
        self.set_timers(now);
        let mut woken = BTreeSet::new();
        while let Some(index) = self.wakes.take_due(now) {
            self.stir(index);
            woken.insert(index);
        }
        woken
    }

    /// A pool whose call to the ledger is due.
    pub(super) fn take_due_call(&mut self, now: Millis) -> Option<PoolIndex> {
        self.set_timers(now);
        self.calls.take_due(now).inspect(|index| self.stir(*index))
    }

    /// When time alone changes a pool.
    pub(super) fn next_wake(&self) -> Option<Millis> {
        self.next(&self.wakes, |pool| pool.next_wake(self.timed_at))
    }

    /// When the ledger is to be asked for a pool.
    pub(super) fn next_call(&self, now: Millis) -> Option<Millis> {
        self.next(&self.calls, |pool| pool.next_ledger_call(now))
    }

    fn next(&self, timers: &Timers, of: impl Fn(&PoolState) -> Option<Millis>) -> Option<Millis> {
        let timed = timers.first_but(&self.untimed);
        self.untimed.iter().filter_map(|index| of(self.get(*index)?)).chain(timed).min()
    }

    fn stir(&mut self, index: PoolIndex) {
        #[cfg(test)]
        {
            self.looks += 1;
        }
        self.stirred.insert(index);
        self.untimed.insert(index);
    }

    fn set_timers(&mut self, now: Millis) {
        self.timed_at = now;
        while let Some(index) = self.untimed.pop_first() {
            let Some(pool) = self.states.get(index.at()) else { continue };
            self.calls.set(index, pool.next_ledger_call(now));
            self.wakes.set(index, pool.next_wake(now));
        }
    }
}

/// One moment for each pool that has one.
#[derive(Debug, Default)]
struct Timers {
    /// By pool.
    set: Vec<Option<Millis>>,
    order: BTreeSet<(Millis, PoolIndex)>,
}

impl Timers {
    fn set(&mut self, index: PoolIndex, at: Option<Millis>) {
        if self.set.len() <= index.at() {
            self.set.resize(index.at() + 1, None);
        }
        let Some(slot) = self.set.get_mut(index.at()).filter(|slot| **slot != at) else { return };
        if let Some(before) = std::mem::replace(slot, at) {
            self.order.remove(&(before, index));
        }
        self.order.extend(at.map(|at| (at, index)));
    }

    fn take_due(&mut self, now: Millis) -> Option<PoolIndex> {
        let (_, index) = self.order.first().copied().filter(|(at, _)| *at <= now)?;
        self.set(index, None);
        Some(index)
    }

    fn first_but(&self, others: &BTreeSet<PoolIndex>) -> Option<Millis> {
        self.order.iter().find(|(_, index)| !others.contains(index)).map(|(at, _)| *at)
    }
}
