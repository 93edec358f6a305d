//! Who is named on the page: those among the busiest for whom there is room, until they have been idle for an hour.
//!
//! Invariants: no more are named than there is room for; what was counted under a name stays with it, so that a tenant that
//! loses its series and is named again goes on where it was, and no counter ever decreases.

use sluice_policy::units::TenantId;
use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A tenant keeps its name for so long without a call.
const KEPT: Duration = Duration::from_secs(3_600);
/// Room is given to those who called most in a time of this length.
const REVIEW_EVERY: Duration = Duration::from_secs(10);
/// So many tenants without a name compete for it in one review. The busiest call early.
const MOST_CANDIDATES: usize = 4_096;

pub(super) struct Roll<C> {
    named: HashMap<TenantId, Entry<C>>,
    /// Counts of tenants that had a name; at most as many as the configuration has or had.
    retired: HashMap<TenantId, Arc<C>>,
    /// Of everyone who has no name.
    other: Arc<C>,
    room: usize,
    tenants: usize,
    /// Calls of those without a name since the last review.
    candidates: HashMap<TenantId, u64>,
    reviewed: Instant,
}

struct Entry<C> {
    counted: Arc<C>,
    last_call: Instant,
}

impl<C: Default> Roll<C> {
    pub(super) fn new(room: usize, now: Instant) -> Self {
        Self {
            named: HashMap::new(),
            retired: HashMap::new(),
            other: Arc::default(),
            room,
            tenants: 0,
            candidates: HashMap::new(),
            reviewed: now,
        }
    }

    pub(super) fn set_tenants(&mut self, count: usize) {
        self.tenants = count;
    }

    /// Where a tenant's call is counted now.
    pub(super) fn of(&mut self, tenant: &TenantId, now: Instant) -> Arc<C> {
        if now.saturating_duration_since(self.reviewed) >= REVIEW_EVERY {
            self.review(now);
        }
        if let Some(entry) = self.named.get_mut(tenant) {
            entry.last_call = now;
            return Arc::clone(&entry.counted);
        }
        if self.tenants <= self.room && self.named.len() < self.room {
            return self.name(tenant.clone(), now);
        }
        if let Some(calls) = self.candidates.get_mut(tenant) {
            *calls += 1;
        } else if self.candidates.len() < MOST_CANDIDATES {
            self.candidates.insert(tenant.clone(), 1);
        }
        Arc::clone(&self.other)
    }

    /// Everyone who is named, and all others together.
    pub(super) fn named(&self) -> (Vec<(TenantId, Arc<C>)>, Arc<C>) {
        let named = self.named.iter().map(|(id, entry)| (id.clone(), Arc::clone(&entry.counted)));
        (named.collect(), Arc::clone(&self.other))
    }

    /// Takes names from those who do not call any more, and gives them to those who called most.
    fn review(&mut self, now: Instant) {
        self.reviewed = now;
        let is_idle = |entry: &Entry<C>| now.saturating_duration_since(entry.last_call) >= KEPT;
        let retired = self.named.extract_if(|_, entry| is_idle(entry)).map(|(id, entry)| (id, entry.counted));
        self.retired.extend(retired);
        let mut candidates: Vec<_> = mem::take(&mut self.candidates).into_iter().collect();
        candidates.sort_by(|(one, calls), (other, more)| more.cmp(calls).then_with(|| one.cmp(other)));
        candidates.truncate(self.room.saturating_sub(self.named.len()));
        for (id, _) in candidates {
            self.name(id, now);
        }
    }

    fn name(&mut self, tenant: TenantId, now: Instant) -> Arc<C> {
        let counted = self.retired.remove(&tenant).unwrap_or_default();
        self.named.insert(tenant, Entry { counted: Arc::clone(&counted), last_call: now });
        counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    type Calls = AtomicU64;

    fn call(roll: &mut Roll<Calls>, tenant: &str, now: Instant) {
        roll.of(&tenant.into(), now).fetch_add(1, Ordering::Relaxed);
    }

    /// Of those who are named, by name; then of all others.
    fn page(roll: &Roll<Calls>) -> (Vec<(String, u64)>, u64) {
        let (named, other) = roll.named();
        let mut named: Vec<_> =
            named.iter().map(|(id, calls)| (id.to_string(), calls.load(Ordering::Relaxed))).collect();
        named.sort();
        (named, other.load(Ordering::Relaxed))
    }

    fn named(names: &[(&str, u64)]) -> Vec<(String, u64)> {
        names.iter().map(|(name, calls)| ((*name).to_owned(), *calls)).collect()
    }

    #[test]
    fn where_all_tenants_have_room_each_is_named_at_its_first_call() {
        let now = Instant::now();
        let mut roll = Roll::new(2, now);
        roll.set_tenants(2);
        call(&mut roll, "a", now);
        call(&mut roll, "b", now);
        assert_eq!(page(&roll), (named(&[("a", 1), ("b", 1)]), 0));
    }

    #[test]
    fn room_goes_to_those_who_called_most_and_is_free_again_after_an_idle_hour() {
        let now = Instant::now();
        let mut roll = Roll::new(2, now);
        roll.set_tenants(4);
        for (tenant, calls) in [("a", 1), ("b", 3), ("c", 2), ("d", 1)] {
            (0..calls).for_each(|_| call(&mut roll, tenant, now));
        }
        assert_eq!(page(&roll), (vec![], 7), "until the first review nobody is known to be busy");
        let later = now + REVIEW_EVERY;
        call(&mut roll, "c", later);
        call(&mut roll, "a", later);
        assert_eq!(page(&roll), (named(&[("b", 0), ("c", 1)]), 8));
        let hour = later + KEPT;
        call(&mut roll, "a", hour - Duration::from_secs(1));
        assert_eq!(page(&roll), (named(&[("b", 0), ("c", 1)]), 9), "both have their name still");
        call(&mut roll, "c", hour - Duration::from_secs(1));
        call(&mut roll, "a", hour + REVIEW_EVERY);
        assert_eq!(page(&roll), (named(&[("a", 1), ("c", 2)]), 9), "b was idle for an hour");
    }

    #[test]
    fn a_tenant_that_is_named_again_goes_on_where_it_was() {
        let now = Instant::now();
        let mut roll = Roll::new(1, now);
        roll.set_tenants(1);
        call(&mut roll, "a", now);
        roll.set_tenants(2);
        let idle = now + KEPT;
        call(&mut roll, "b", idle);
        call(&mut roll, "a", idle);
        assert_eq!(page(&roll), (vec![], 2));
        call(&mut roll, "a", idle + REVIEW_EVERY);
        let (names, other) = page(&roll);
        assert_eq!((names, other), (named(&[("a", 2)]), 2));
    }
}
