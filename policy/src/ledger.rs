//! The ledger's half of `sync`: the one place that knows a pool's slots in total.
//!
//! State, not increments: a call that is repeated, late or lost changes nothing twice. A slot is free only when
//! nobody can still be using it: the share of a holder that stopped renewing, or that restarted, becomes a *zombie*
//! for the longest time a call may run (DESIGN.md, "The ledger protocol", 1, 2 and 6; rows, picks, chunks and the
//! freeze after a failover are added there with the second replica).
//!
//! Invariant (I1): Σ granted + Σ zombies ≤ the largest capacity in force since those slots were granted.
//!
//! `quota-service/src/ledger/sync.lua` is the translation of [`AccountLedger::sync`]; both answer the same.

use crate::units::{HolderId, Millis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a holder tells the ledger about one account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRequest {
    pub holder: HolderId,
    /// Grows with every start of the holder.
    pub incarnation: u64,
    /// Grows with every call of this incarnation.
    pub seq: u64,
    /// Slots that the holder keeps of those it was granted; it has lowered itself to this before it asks.
    pub keep: u32,
    /// Slots that it would like to hold in all.
    pub want: u32,
    pub capacity: u32,
    pub lease: Millis,
    /// How long a call may run at most.
    pub longest_request: Millis,
    /// Tokens charged by this incarnation so far.
    pub spent: u64,
    /// Levels of the account's buckets in whole units, by name; negative is debt.
    pub levels: BTreeMap<String, i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncReply {
    /// The latest number this ledger has seen from the holder; any other than the one just sent is no answer.
    pub seq: u64,
    pub granted: u32,
    /// Slots of the vanished that nobody may use yet.
    pub zombies: u32,
    /// The ledger's clock.
    pub now: Millis,
    /// The levels as they stood before this call, and how long ago; only to the first call of an incarnation.
    pub restored: Option<Restored>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    pub levels: BTreeMap<String, i64>,
    pub age: Millis,
}

/// Invariant: `granted` and `zombies` are never both above zero.
#[derive(Clone, Debug, Default)]
struct Share {
    incarnation: u64,
    seq: u64,
    granted: u32,
    /// What was granted when the lease ended. The same incarnation may take them up again: it knows what runs.
    zombies: u32,
    zombies_until: Millis,
    renewed_at: Millis,
    lease: Millis,
    spent: u64,
}

/// One account as the ledger knows it.
#[derive(Clone, Debug, Default)]
pub struct AccountLedger {
    shares: BTreeMap<HolderId, Share>,
    /// Slots of incarnations that are gone, by the moment they come free.
    zombies: BTreeMap<Millis, u32>,
    /// Tokens spent by incarnations that are gone.
    spent_before: u64,
    levels: BTreeMap<String, i64>,
    levels_at: Millis,
}

impl AccountLedger {
    /// Answers one call. `now` is the ledger's clock.
    pub fn sync(&mut self, request: &SyncRequest, now: Millis) -> SyncReply {
        self.expire(&request.holder, request.longest_request, now);
        let known = self.shares.get(&request.holder).map(|share| (share.incarnation, share.seq));
        if let Some((incarnation, seq)) = known {
            let stale = (request.incarnation, request.seq) <= (incarnation, seq);
            if stale {
                return self.reply(&request.holder, None, now);
            }
        }
        let is_new = known.is_none_or(|(incarnation, _)| incarnation < request.incarnation);
        if is_new {
            self.bury(&request.holder, request.longest_request, now);
        }
        let restored = (is_new && !self.levels.is_empty())
            .then(|| Restored { levels: self.levels.clone(), age: now.since(self.levels_at) });
        // Of an expired lease only what became a zombie: a `keep` that was sent before must not create slots.
        let held = self.shares.get(&request.holder).map_or(0, |share| share.granted.max(share.zombies));
        let kept = held.min(request.keep);
        let share = Share {
            incarnation: request.incarnation,
            seq: request.seq,
            granted: kept,
            zombies: 0,
            zombies_until: Millis::ZERO,
            renewed_at: now,
            lease: request.lease,
            spent: request.spent,
        };
        self.shares.insert(request.holder.clone(), share);
        let free = request.capacity.saturating_sub(self.granted().saturating_add(self.zombies()));
        if let Some(share) = self.shares.get_mut(&request.holder) {
            share.granted += request.want.saturating_sub(kept).min(free);
        }
        if restored.is_none() {
            self.levels.clone_from(&request.levels);
            self.levels_at = now;
        }
        self.reply(&request.holder, restored, now)
    }

    #[must_use]
    pub fn granted(&self) -> u32 {
        self.shares.values().fold(0, |sum, share| sum.saturating_add(share.granted))
    }

    #[must_use]
    pub fn zombies(&self) -> u32 {
        let own = self.shares.values().map(|share| share.zombies);
        self.zombies.values().copied().chain(own).fold(0, u32::saturating_add)
    }

    /// Tokens charged to this account by all incarnations of all holders.
    #[must_use]
    pub fn spent(&self) -> u64 {
        self.shares.values().fold(self.spent_before, |sum, share| sum.saturating_add(share.spent))
    }

    fn reply(&self, holder: &HolderId, restored: Option<Restored>, now: Millis) -> SyncReply {
        let (seq, granted) = self.shares.get(holder).map_or((0, 0), |share| (share.seq, share.granted));
        SyncReply { seq, granted, zombies: self.zombies(), now, restored }
    }

    fn expire(&mut self, caller: &HolderId, longest_request: Millis, now: Millis) {
        self.zombies.retain(|free_at, _| *free_at > now);
        // Pods come and go under ever new names: who was silent for longer than a call runs is forgotten.
        let spent_before = &mut self.spent_before;
        self.shares.retain(|holder, share| {
            let silent_since = share.renewed_at.plus(share.lease).plus(longest_request);
            let is_gone = holder != caller && share.granted == 0 && share.zombies_until <= now && silent_since <= now;
            if is_gone {
                *spent_before = spent_before.saturating_add(share.spent);
            }
            !is_gone
        });
        for share in self.shares.values_mut() {
            if share.zombies_until <= now {
                share.zombies = 0;
            }
            if share.granted > 0 && share.renewed_at.plus(share.lease) <= now {
                share.zombies = std::mem::take(&mut share.granted);
                share.zombies_until = now.plus(longest_request);
            }
        }
    }

    /// Ends an old incarnation: whatever it was granted may still be running.
    fn bury(&mut self, holder: &HolderId, longest_request: Millis, now: Millis) {
        if let Some(old) = self.shares.remove(holder) {
            self.spent_before = self.spent_before.saturating_add(old.spent);
            let slots = old.granted.max(old.zombies);
            if slots > 0 {
                let sum = self.zombies.entry(now.plus(longest_request)).or_default();
                *sum = sum.saturating_add(slots);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(incarnation: u64, seq: u64, keep: u32, want: u32) -> SyncRequest {
        SyncRequest {
            holder: "gate-0".into(),
            incarnation,
            seq,
            keep,
            want,
            capacity: 10,
            lease: Millis(2_000),
            longest_request: Millis(60_000),
            spent: 0,
            levels: BTreeMap::new(),
        }
    }

    #[test]
    fn a_repeated_or_late_call_changes_nothing() {
        let mut ledger = AccountLedger::default();
        let first = ledger.sync(&request(1, 1, 0, 4), Millis(0));
        let again = ledger.sync(&request(1, 1, 0, 9), Millis(1));
        assert_eq!(again, SyncReply { now: Millis(1), ..first });
        ledger.sync(&request(1, 2, 4, 6), Millis(2));
        assert_eq!(ledger.sync(&request(1, 1, 0, 0), Millis(3)).granted, 6);
    }

    #[test]
    fn the_slots_of_an_old_incarnation_come_free_after_the_longest_request() {
        let mut ledger = AccountLedger::default();
        ledger.sync(&request(1, 1, 0, 7), Millis(0));
        let restarted = ledger.sync(&request(2, 1, 0, 10), Millis(100));
        assert_eq!((restarted.granted, restarted.zombies), (3, 7));
        let mut seq = 1;
        for now in (1_000..60_000).step_by(1_000) {
            seq += 1;
            assert_eq!(ledger.sync(&request(2, seq, 3, 10), Millis(now)).granted, 3);
        }
        assert_eq!(ledger.sync(&request(2, 99, 3, 10), Millis(60_100)).granted, 10);
    }

    #[test]
    fn a_holder_that_slept_takes_its_slots_up_again_and_nobody_else_had_them() {
        let mut ledger = AccountLedger::default();
        ledger.sync(&request(1, 1, 0, 7), Millis(0));
        let other = SyncRequest { holder: "gate-1".into(), ..request(1, 1, 0, 10) };
        let other = ledger.sync(&other, Millis(2_000));
        assert_eq!((other.granted, other.zombies), (3, 7));
        let back = ledger.sync(&request(1, 2, 7, 7), Millis(3_000));
        assert_eq!((back.granted, back.zombies), (7, 0));
    }

    #[test]
    fn a_holder_that_slept_longer_than_any_call_runs_keeps_nothing() {
        let mut ledger = AccountLedger::default();
        ledger.sync(&request(1, 1, 0, 7), Millis(0));
        let other = SyncRequest { holder: "gate-1".into(), ..request(1, 1, 0, 10) };
        ledger.sync(&other, Millis(2_000));
        let other = SyncRequest { holder: "gate-1".into(), ..request(1, 2, 3, 10) };
        assert_eq!(ledger.sync(&other, Millis(62_000)).granted, 10);
        assert_eq!(ledger.sync(&request(1, 2, 7, 7), Millis(62_001)).granted, 0);
    }

    #[test]
    fn a_holder_that_is_gone_for_good_is_forgotten_and_what_it_spent_is_not() {
        let mut ledger = AccountLedger::default();
        let gone = SyncRequest { holder: "pod-1".into(), spent: 70, ..request(1, 1, 0, 2) };
        ledger.sync(&gone, Millis(0));
        ledger.sync(&request(1, 1, 0, 1), Millis(2_000));
        assert_eq!(ledger.shares.len(), 2);
        ledger.sync(&request(1, 2, 1, 1), Millis(62_000));
        assert_eq!((ledger.shares.len(), ledger.spent()), (1, 70));
    }

    #[test]
    fn levels_return_to_the_first_call_of_an_incarnation_only() {
        let mut ledger = AccountLedger::default();
        let levels = BTreeMap::from([("tokens".to_owned(), -5)]);
        let told = SyncRequest { levels: levels.clone(), ..request(1, 1, 0, 0) };
        assert_eq!(ledger.sync(&told, Millis(0)).restored, None);
        let fresh = SyncRequest { levels: BTreeMap::from([("tokens".to_owned(), 99)]), ..request(2, 1, 0, 0) };
        let restored = ledger.sync(&fresh, Millis(700)).restored;
        assert_eq!(restored, Some(Restored { levels, age: Millis(700) }));
        assert_eq!(ledger.sync(&request(2, 2, 0, 0), Millis(800)).restored, None);
    }

    proptest! {
        /// I1 at the ledger, for any order of calls by three holders with restarts, delays and repetitions.
        #[test]
        fn granted_and_zombies_never_exceed_the_capacity(
            calls in prop::collection::vec((0_u8..3, 0_u64..3, 0_u64..9, 0_u32..12, 0_u32..12, 0_u64..3_000), 1..80),
        ) {
            let mut ledger = AccountLedger::default();
            let mut now = 0;
            for (holder, incarnation, seq, keep, want, pause) in calls {
                now += pause;
                let holder = HolderId::from(format!("gate-{holder}"));
                ledger.sync(&SyncRequest { holder, ..request(incarnation, seq, keep, want) }, Millis(now));
                prop_assert!(ledger.granted() + ledger.zombies() <= 10);
            }
        }
    }
}
