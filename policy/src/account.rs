//! A tenant's account: what it may use, what it has in flight, and what it has left.
//!
//! A tenant's account is charged *on arrival*, before the call may queue, so that nothing ineligible ever stands in
//! a pool's queue. All dimensions are charged together or not at all.

use crate::bucket::{Bucket, Rate};
use crate::units::{Millis, Tokens};
use crate::wire::{RateKind, RateStatus, Reason};
use std::collections::BTreeMap;

/// The limits of one tenant; an absent one does not limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Calls queued and running at once.
    pub concurrent: Option<u32>,
    pub requests_per_s: Option<Rate>,
    pub requests_per_min: Option<Rate>,
    pub tokens_per_min: Option<Rate>,
}

/// A limit that was hit, and when trying again may help; `None` when only another call's end can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    pub reason: Reason,
    /// Calls, or units per window.
    pub most: u64,
    pub wait: Option<Millis>,
}

/// Invariant: `in_flight` is the number of this tenant's live admissions, queued or running.
#[derive(Clone, Debug)]
pub struct TenantAccount {
    concurrent: Option<u32>,
    in_flight: u32,
    /// In the order in which limits are tried and refused.
    buckets: Box<[Metered]>,
}

#[derive(Clone, Debug)]
struct Metered {
    kind: RateKind,
    /// What a refusal by this bucket is called; its text also names the bucket in the ledger.
    reason: Reason,
    bucket: Bucket,
}

impl Metered {
    fn amount(&self, tokens: Tokens) -> u64 {
        match self.kind {
            RateKind::Requests => 1,
            RateKind::Tokens => tokens.0,
        }
    }
}

impl TenantAccount {
    #[must_use]
    pub fn new(limits: &Limits, now: Millis) -> Self {
        Self { concurrent: limits.concurrent, in_flight: 0, buckets: buckets(limits, now) }
    }

    /// Changes the limits: what has been drawn stays drawn, and a limit that is new begins full.
    pub fn set_limits(&mut self, limits: &Limits, now: Millis) {
        self.concurrent = limits.concurrent;
        let old = std::mem::replace(&mut self.buckets, buckets(limits, now));
        for metered in &mut self.buckets {
            if let Some(before) = old.iter().find(|before| before.reason == metered.reason) {
                metered.bucket = before.bucket.clone().with_rate(metered.bucket.rate(), now);
            }
        }
    }

    /// Charges one call that reserves `tokens`, or changes nothing.
    ///
    /// # Errors
    /// The first limit that is hit.
    pub fn charge(&mut self, tokens: Tokens, now: Millis) -> Result<(), Limited> {
        if let Some(limit) = self.concurrent.filter(|limit| self.in_flight >= *limit) {
            return Err(Limited { reason: Reason::TenantConcurrency, most: u64::from(limit), wait: None });
        }
        for metered in &mut self.buckets {
            let amount = metered.amount(tokens);
            if !metered.bucket.allows(amount, now) {
                let wait = Some(metered.bucket.wait_for(amount, now));
                return Err(Limited { reason: metered.reason, most: metered.bucket.rate().amount, wait });
            }
        }
        for metered in &mut self.buckets {
            metered.bucket.draw(metered.amount(tokens), now);
        }
        self.in_flight += 1;
        Ok(())
    }

    /// Gives everything back: the call never reached a model.
    pub fn release(&mut self, tokens: Tokens, now: Millis) {
        for metered in &mut self.buckets {
            metered.bucket.give_back(metered.amount(tokens), now);
        }
        self.leave();
    }

    /// Replaces the reservation by what was really used.
    pub fn settle(&mut self, reserved: Tokens, actual: Tokens, now: Millis) {
        self.correct(reserved, actual, now);
        self.leave();
    }

    /// Charges tokens that nobody reserved: a call that passed while the service was away.
    pub fn charge_afterwards(&mut self, actual: Tokens, now: Millis) {
        self.correct(Tokens::ZERO, actual, now);
    }

    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// What the rate headers show: for each kind the limit that has the least left, relative to its size.
    pub fn rates(&mut self, now: Millis) -> Vec<RateStatus> {
        if self.buckets.is_empty() {
            return Vec::new();
        }
        [RateKind::Requests, RateKind::Tokens].into_iter().filter_map(|kind| self.tightest(kind, now)).collect()
    }

    /// Every bucket's level in whole units, by the name it has in the ledger.
    pub fn levels(&mut self, now: Millis) -> BTreeMap<String, i64> {
        let level = |metered: &mut Metered| (metered.reason.as_str().to_owned(), metered.bucket.level(now));
        self.buckets.iter_mut().map(level).collect()
    }

    /// Takes over the levels that the ledger kept from before a restart, `age` old; what was drawn since stays
    /// drawn.
    pub fn restore(&mut self, levels: &BTreeMap<String, i64>, age: Millis, now: Millis) {
        for metered in &mut self.buckets {
            let Some(&level) = levels.get(metered.reason.as_str()) else { continue };
            let rate = metered.bucket.rate();
            let full = i64::try_from(rate.burst).unwrap_or(i64::MAX);
            let drawn = full.saturating_sub(metered.bucket.level(now));
            metered.bucket = Bucket::restored(rate, level, age, now);
            metered.bucket.draw(u64::try_from(drawn).unwrap_or(0), now);
        }
    }

    fn correct(&mut self, reserved: Tokens, actual: Tokens, now: Millis) {
        for metered in self.buckets.iter_mut().filter(|metered| metered.kind == RateKind::Tokens) {
            metered.bucket.correct(reserved.0, actual.0, now);
        }
    }

    fn leave(&mut self) {
        debug_assert!(self.in_flight > 0, "a call left that never came");
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    fn tightest(&mut self, kind: RateKind, now: Millis) -> Option<RateStatus> {
        let statuses = self.buckets.iter_mut().filter(|metered| metered.kind == kind);
        let status = |metered: &mut Metered| {
            let rate = metered.bucket.rate();
            RateStatus {
                kind,
                limit: rate.amount,
                remaining: u64::try_from(metered.bucket.level(now)).unwrap_or(0),
                reset_ms: metered.bucket.wait_for(rate.burst, now),
            }
        };
        // remaining/limit compared without division: a/b < c/d exactly when a·d < c·b.
        statuses.map(status).min_by(|a, b| {
            let left = u128::from(a.remaining) * u128::from(b.limit);
            left.cmp(&(u128::from(b.remaining) * u128::from(a.limit)))
        })
    }
}

fn buckets(limits: &Limits, now: Millis) -> Box<[Metered]> {
    let metered =
        |kind, reason, rate: Option<Rate>| rate.map(|rate| Metered { kind, reason, bucket: Bucket::full(rate, now) });
    let buckets = [
        metered(RateKind::Requests, Reason::TenantRequestsPerSecond, limits.requests_per_s),
        metered(RateKind::Requests, Reason::TenantRequestsPerMinute, limits.requests_per_min),
        metered(RateKind::Tokens, Reason::TenantTokensPerMinute, limits.tokens_per_min),
    ];
    buckets.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits() -> Limits {
        Limits {
            concurrent: Some(3),
            requests_per_s: Some(Rate::per_second(5, 5)),
            requests_per_min: Some(Rate::per_minute(60)),
            tokens_per_min: Some(Rate::per_minute(1_000)),
        }
    }

    #[test]
    fn the_fourth_of_three_concurrent_calls_is_refused_until_one_ends() {
        let mut account = TenantAccount::new(&limits(), Millis(0));
        for _ in 0..3 {
            account.charge(Tokens(10), Millis(0)).unwrap();
        }
        let refused = account.charge(Tokens(10), Millis(0));
        assert_eq!(refused, Err(Limited { reason: Reason::TenantConcurrency, most: 3, wait: None }));
        account.settle(Tokens(10), Tokens(10), Millis(1));
        assert_eq!(account.charge(Tokens(10), Millis(1)), Ok(()));
    }

    #[test]
    fn a_refusal_charges_nothing() {
        let mut account = TenantAccount::new(&limits(), Millis(0));
        account.charge(Tokens(900), Millis(0)).unwrap();
        let before = account.levels(Millis(0));
        let refused = account.charge(Tokens(200), Millis(0)).unwrap_err();
        assert_eq!(refused.reason, Reason::TenantTokensPerMinute);
        assert_eq!(refused.wait, Some(Millis(6_000)));
        assert_eq!(account.levels(Millis(0)), before);
    }

    #[test]
    fn settlement_refunds_or_indebts_by_the_difference() {
        let mut account = TenantAccount::new(&limits(), Millis(0));
        account.charge(Tokens(100), Millis(0)).unwrap();
        account.settle(Tokens(100), Tokens(1_500), Millis(0));
        assert_eq!(account.levels(Millis(0))["tenant_tokens_per_minute"], -500);
    }

    #[test]
    fn a_restart_does_not_refill_a_minute() {
        let mut old = TenantAccount::new(&limits(), Millis(0));
        old.charge(Tokens(900), Millis(0)).unwrap();
        let mut new = TenantAccount::new(&limits(), Millis(0));
        new.charge(Tokens(50), Millis(0)).unwrap();
        new.restore(&old.levels(Millis(0)), Millis(0), Millis(0));
        assert_eq!(new.levels(Millis(0))["tenant_tokens_per_minute"], 50);
    }

    proptest! {
        /// A call that was refused a model gets everything back, whatever happened beside it.
        #[test]
        fn charge_and_release_leave_no_trace(reserve in 0_u64..1_000, others in 0_usize..3) {
            let mut account = TenantAccount::new(&limits(), Millis(0));
            for _ in 0..others {
                let _ = account.charge(Tokens(1), Millis(0));
            }
            let before = (account.levels(Millis(0)), account.in_flight());
            if account.charge(Tokens(reserve), Millis(0)).is_ok() {
                account.release(Tokens(reserve), Millis(0));
            }
            prop_assert_eq!((account.levels(Millis(0)), account.in_flight()), before);
        }
    }
}
