//! The holder's half of `sync`: what this replica may run, and when it must ask.
//!
//! A lease counts from *sending*, on the holder's own clock, so a slow answer makes it shorter, never longer.
//!
//! Invariant (I1): running ≤ hold ≤ what the ledger has granted, as long as the lease lasts; after that nothing new
//! starts.

use crate::ledger::{SyncReply, SyncRequest};
use crate::units::{HolderId, Millis};
use std::collections::BTreeMap;

/// What a holder needs to know to talk to the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseTerms {
    pub lease: Millis,
    pub longest_request: Millis,
}

/// One account as a replica holds it.
#[derive(Clone, Debug)]
pub struct Holder {
    id: HolderId,
    incarnation: u64,
    terms: LeaseTerms,
    capacity: u32,
    hold: u32,
    seq: u64,
    lease_ends: Millis,
    /// The call that has no answer yet, and when it went out. At most one.
    outstanding: Option<Millis>,
    last_sent: Option<Millis>,
    /// The demand that the latest call told; a larger one is worth a call at once.
    told_demand: u32,
}

/// Of a lease, this fraction is not used: clocks of two machines drift apart.
const DRIFT_DIVISOR: u64 = 50;
/// Slots held beyond the demand, as a fraction of the capacity: enough to start calls without asking, few enough
/// that a crash does not cost the whole pool.
const HEADROOM_DIVISOR: u32 = 4;

impl Holder {
    #[must_use]
    pub fn new(id: HolderId, incarnation: u64, terms: LeaseTerms, capacity: u32) -> Self {
        Self {
            id,
            incarnation,
            terms,
            capacity,
            hold: 0,
            seq: 0,
            lease_ends: Millis::ZERO,
            outstanding: None,
            last_sent: None,
            told_demand: 0,
        }
    }

    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Changes the pool's capacity. What runs beyond it is kept until it ends, so that nobody else is granted its slots.
    pub fn set_capacity(&mut self, capacity: u32) {
        self.capacity = capacity;
        self.told_demand = 0;
    }

    /// Slots that may be in use now.
    #[must_use]
    pub fn usable(&self, now: Millis) -> u32 {
        if self.is_leased(now) { self.hold.min(self.capacity) } else { 0 }
    }

    /// Whether the ledger has answered lately enough to start anything.
    #[must_use]
    pub fn is_leased(&self, now: Millis) -> bool {
        now < self.lease_ends
    }

    /// Whether the ledger has ever answered.
    #[must_use]
    pub fn has_been_leased(&self) -> bool {
        self.lease_ends > Millis::ZERO
    }

    /// Whether it is time to ask: at once when a demand that the ledger does not know of exceeds the hold, soon again
    /// while it does, else every third of a lease.
    #[must_use]
    pub fn is_due(&self, demand: u32, now: Millis) -> bool {
        if self.outstanding.is_some() {
            return false;
        }
        let starving = demand.min(self.capacity) > self.usable(now);
        match self.last_sent {
            None => true,
            Some(sent) if starving => demand > self.told_demand || now.since(sent) >= Self::RETRY,
            Some(_) => now >= self.next_renewal(),
        }
    }

    /// The next moment at which [`Holder::is_due`] turns true by time alone, for the caller's timer.
    #[must_use]
    pub fn next_sync(&self, demand: u32, now: Millis) -> Millis {
        let starving = demand.min(self.capacity) > self.usable(now);
        match (self.outstanding, self.last_sent) {
            (Some(_), Some(sent)) => sent.plus(self.terms.lease),
            (None, Some(_)) if starving && demand > self.told_demand => now,
            (None, Some(sent)) if starving => sent.plus(Self::RETRY),
            _ => self.next_renewal(),
        }
    }

    /// Makes the next call: `running` slots are in use, `demand` would be with everyone who waits. Lowers the hold
    /// *before* the call goes out.
    pub fn ask(
        &mut self,
        running: u32,
        demand: u32,
        spent: u64,
        levels: BTreeMap<String, i64>,
        now: Millis,
    ) -> SyncRequest {
        let headroom = (self.capacity / HEADROOM_DIVISOR).max(1);
        let want = demand.saturating_add(headroom).min(self.capacity);
        self.told_demand = demand;
        self.call(want.max(running), want, spent, levels, now)
    }

    /// Makes the last call of an incarnation that ends in order: it keeps what still runs and wants nothing.
    pub fn give_back(&mut self, running: u32, spent: u64, levels: BTreeMap<String, i64>, now: Millis) -> SyncRequest {
        self.call(running, 0, spent, levels, now)
    }

    fn call(&mut self, keep: u32, want: u32, spent: u64, levels: BTreeMap<String, i64>, now: Millis) -> SyncRequest {
        self.hold = self.hold.min(keep);
        self.seq += 1;
        self.outstanding = Some(now);
        self.last_sent = Some(now);
        SyncRequest {
            holder: self.id.clone(),
            incarnation: self.incarnation,
            seq: self.seq,
            keep: self.hold,
            want,
            capacity: self.capacity,
            lease: self.terms.lease,
            longest_request: self.terms.longest_request,
            spent,
            levels,
        }
    }

    /// Takes the answer to the latest call; anything else is ignored. Tells whether it was taken.
    pub fn answered(&mut self, reply: &SyncReply) -> bool {
        let Some(sent) = self.outstanding.filter(|_| reply.seq == self.seq) else { return false };
        let drift = Millis(self.terms.lease.0 / DRIFT_DIVISOR);
        self.hold = reply.granted;
        self.lease_ends = sent.plus(Millis(self.terms.lease.0 - drift.0));
        self.outstanding = None;
        true
    }

    /// The latest call got no answer; it may or may not have been applied, which the next one repairs.
    pub fn failed(&mut self) {
        self.outstanding = None;
    }

    /// Between two calls that ask for what the ledger did not have.
    const RETRY: Millis = Millis(100);

    fn next_renewal(&self) -> Millis {
        self.last_sent.map_or(Millis::ZERO, |sent| sent.plus(Millis(self.terms.lease.0 / 3)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::AccountLedger;
    use proptest::prelude::*;

    fn holder(capacity: u32) -> Holder {
        let terms = LeaseTerms { lease: Millis(2_000), longest_request: Millis(60_000) };
        Holder::new("gate-0".into(), 1, terms, capacity)
    }

    #[test]
    fn a_lease_counts_from_sending_less_the_drift() {
        let (mut holder, mut ledger) = (holder(8), AccountLedger::default());
        let request = holder.ask(0, 0, 0, BTreeMap::new(), Millis(1_000));
        assert!(holder.answered(&ledger.sync(&request, Millis(1_900))));
        assert_eq!(holder.usable(Millis(2_959)), 2);
        assert_eq!(holder.usable(Millis(2_960)), 0);
    }

    #[test]
    fn a_smaller_capacity_holds_at_once_and_gives_away_no_slot_that_is_in_use() {
        let (mut holder, mut ledger) = (holder(8), AccountLedger::default());
        let outstanding = holder.ask(5, 8, 0, BTreeMap::new(), Millis(0));
        holder.set_capacity(1);
        holder.answered(&ledger.sync(&outstanding, Millis(0)));
        assert_eq!(holder.usable(Millis(1)), 1);
        let next = holder.ask(5, 5, 0, BTreeMap::new(), Millis(1));
        assert_eq!((next.keep, next.want, next.capacity), (5, 1, 1));
    }

    #[test]
    fn only_the_answer_to_the_latest_call_counts() {
        let (mut holder, mut ledger) = (holder(8), AccountLedger::default());
        let first = holder.ask(0, 4, 0, BTreeMap::new(), Millis(0));
        let late = ledger.sync(&first, Millis(1));
        holder.failed();
        let second = holder.ask(0, 0, 0, BTreeMap::new(), Millis(200));
        assert!(!holder.answered(&late));
        assert!(holder.answered(&ledger.sync(&second, Millis(201))));
        assert!(!holder.answered(&ledger.sync(&second, Millis(202))));
    }

    #[test]
    fn it_asks_at_once_when_a_new_demand_exceeds_the_hold() {
        let (mut holder, mut ledger) = (holder(8), AccountLedger::default());
        let request = holder.ask(0, 0, 0, BTreeMap::new(), Millis(0));
        holder.answered(&ledger.sync(&request, Millis(0)));
        assert!(!holder.is_due(2, Millis(1)));
        assert!(holder.is_due(3, Millis(1)));
        assert!(holder.is_due(0, Millis(667)));
    }

    proptest! {
        /// I1 between the halves: whatever is lost or late, a holder never uses more than the ledger has granted.
        #[test]
        fn a_holder_never_exceeds_its_grant(
            steps in prop::collection::vec((0_u32..12, 0_u64..1_500, any::<bool>(), any::<bool>()), 1..60),
        ) {
            let (mut holder, mut ledger) = (holder(8), AccountLedger::default());
            let (mut now, mut running) = (Millis(0), 0_u32);
            for (demand, pause, applied, answered) in steps {
                now = now.plus(Millis(pause));
                running = running.min(demand);
                let request = holder.ask(running, demand, 0, BTreeMap::new(), now);
                let reply = applied.then(|| ledger.sync(&request, now));
                match reply.filter(|_| answered) {
                    Some(reply) => { holder.answered(&reply); }
                    None => holder.failed(),
                }
                running = running.max(demand.min(holder.usable(now)));
                prop_assert!(holder.usable(now) <= ledger.granted() || !holder.is_leased(now));
                prop_assert!(holder.usable(now) <= 8);
            }
        }
    }
}
