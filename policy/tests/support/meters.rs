//! Buckets, tenants' accounts and yields, each against the arithmetic of its documentation.

use crate::chance::cases;
use crate::naive_bucket::NaiveBucket;
use proptest::prelude::*;
use sluice_policy::account::{Limits, TenantAccount};
use sluice_policy::bucket::{Bucket, Rate};
use sluice_policy::config::ChargeWeights;
use sluice_policy::estimate::Yield;
use sluice_policy::units::{Millis, Tokens};
use sluice_policy::wire::{Reason, Usage};

#[derive(Clone, Debug)]
enum Turn {
    Draw(u64),
    Correct(u64, u64),
    Change(Rate),
}

fn rate() -> impl Strategy<Value = Rate> {
    prop_oneof![
        (1_u64..10_000, 1_u64..30_000).prop_map(|(amount, burst)| Rate::per_second(amount, burst)),
        (1_u64..100_000).prop_map(Rate::per_minute),
    ]
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        5 => (1_u64..50_000).prop_map(Turn::Draw),
        2 => (0_u64..50_000, 0_u64..50_000).prop_map(|(reserved, actual)| Turn::Correct(reserved, actual)),
        1 => rate().prop_map(Turn::Change),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    let some = |most: u64| prop::option::of(1..most);
    (prop::option::of(1_u32..9), some(20), some(60), some(5_000)).prop_map(|(concurrent, per_s, per_min, tokens)| {
        Limits {
            concurrent,
            requests_per_s: per_s.map(|amount| Rate::per_second(amount, amount)),
            requests_per_min: per_min.map(Rate::per_minute),
            tokens_per_min: tokens.map(Rate::per_minute),
        }
    })
}

proptest! {
    #![proptest_config(cases(400))]

    /// I2, with corrections and changes of the rate under way.
    #[test]
    fn a_bucket_agrees_with_wider_arithmetic_and_keeps_to_its_rate(
        first in rate(), turns in prop::collection::vec((0_u64..3_000, turn()), 1..80),
    ) {
        let (mut bucket, mut naive) = (Bucket::full(first, Millis(0)), NaiveBucket::full(first, 0));
        let mut now = 0;
        for (pause, turn) in turns {
            now += pause;
            match turn {
                Turn::Draw(amount) => {
                    let allowed = bucket.allows(amount, Millis(now));
                    prop_assert_eq!(allowed, naive.allows(amount, now));
                    if allowed {
                        bucket.draw(amount, Millis(now));
                        prop_assert_eq!(naive.begin(amount, now), Ok(()));
                    }
                }
                Turn::Correct(reserved, actual) => {
                    bucket.correct(reserved, actual, Millis(now));
                    naive.correct(reserved, actual, now);
                }
                Turn::Change(rate) => {
                    bucket = bucket.with_rate(rate, Millis(now));
                    naive = NaiveBucket::changed(Some(naive), Some(rate), now).unwrap();
                }
            }
            prop_assert_eq!(bucket.level(Millis(now)), naive.units(now));
        }
    }

    /// Debt of a large request is paid back at the rate, and nothing else: waiting as long as it says suffices, and
    /// the bucket is never fuller than its burst.
    #[test]
    fn a_request_larger_than_the_burst_passes_a_full_bucket_once_per_its_own_size(
        rate in rate(), factor in 2_u64..20,
    ) {
        let mut bucket = Bucket::full(rate, Millis(0));
        let size = rate.burst * factor;
        prop_assert!(bucket.allows(size, Millis(0)));
        bucket.draw(size, Millis(0));
        let again = bucket.wait_for(size, Millis(0));
        prop_assert_eq!(again, Millis((size * rate.window.0).div_ceil(rate.amount)));
        prop_assert!(bucket.allows(size, again));
        prop_assert_eq!(bucket.level(Millis(again.0 * 10)), i64::try_from(rate.burst).unwrap());
    }

    /// A charge is all or nothing, no limit is ever exceeded, and what a refusal promises about time is true.
    #[test]
    fn an_account_charges_every_limit_or_none_and_waits_are_honest(
        limits in limits(), calls in prop::collection::vec((0_u64..4_000, 1_u64..3_000, any::<bool>()), 1..60),
    ) {
        let mut account = TenantAccount::new(&limits, Millis(0));
        let (mut now, mut open) = (Millis(0), Vec::new());
        for (pause, tokens, ends) in calls {
            now = now.plus(Millis(pause));
            let before = (account.levels(now), account.in_flight());
            match account.charge(Tokens(tokens), now) {
                Ok(()) => open.push(tokens),
                Err(limited) => {
                    prop_assert_eq!((account.levels(now), account.in_flight()), before);
                    prop_assert_eq!(limited.wait.is_none(), limited.reason == Reason::TenantConcurrency);
                    let later = limited.wait.map(|wait| account.clone().charge(Tokens(tokens), now.plus(wait)));
                    prop_assert!(!matches!(later, Some(Err(again)) if again.reason == limited.reason));
                }
            }
            prop_assert_eq!(account.in_flight() as usize, open.len());
            prop_assert!(limits.concurrent.is_none_or(|limit| account.in_flight() <= limit));
            if ends && let Some(reserved) = open.pop() {
                account.settle(Tokens(reserved), Tokens(reserved / 2), now);
            }
        }
    }

    /// Whatever happened in between, whoever gets everything back stands where it stood, a minute later at the latest.
    #[test]
    fn an_account_returns_to_full_when_everything_was_released(
        limits in limits(), calls in prop::collection::vec(1_u64..3_000, 1..30),
    ) {
        let mut account = TenantAccount::new(&limits, Millis(0));
        let full = account.levels(Millis(0));
        let fits = |tokens: &u64| account.charge(Tokens(*tokens), Millis(0)).is_ok();
        for tokens in calls.into_iter().filter(fits).collect::<Vec<_>>() {
            account.release(Tokens(tokens), Millis(0));
        }
        prop_assert_eq!((account.levels(Millis(0)), account.in_flight()), (full, 0));
    }

    /// A restart gives nobody a fresh minute: what the old process had drawn and the new one draws are both gone.
    #[test]
    fn a_restored_account_has_no_more_than_the_ledger_knew(
        limits in limits(), before in 1_u64..5_000, since in 1_u64..5_000, age in 0_u64..90_000,
    ) {
        let mut old = TenantAccount::new(&limits, Millis(0));
        let _ = old.charge(Tokens(before), Millis(0));
        let mut new = TenantAccount::new(&limits, Millis(0));
        let drawn = new.charge(Tokens(since), Millis(0)).is_ok();
        new.restore(&old.levels(Millis(0)), Millis(age), Millis(0));
        for (name, level) in new.levels(Millis(0)) {
            let taken = match (drawn, name.as_str()) {
                (false, _) => 0,
                (true, "tenant_tokens_per_minute") => since,
                (true, _) => 1,
            };
            prop_assert_eq!(level, old.levels(Millis(age))[&name] - i64::try_from(taken).unwrap());
        }
    }

    /// A reservation lies between the least and what the client and the context allow, and the average between the
    /// smallest and the largest sample.
    #[test]
    fn a_yield_stays_between_its_samples_and_within_the_clients_limit(
        samples in prop::collection::vec(0_u64..100_000, 1..100),
        max in prop::option::of(1_u64..50_000), left in 0_u64..50_000,
    ) {
        let mut average = Yield::default();
        for sample in &samples {
            average.learn(Tokens(*sample));
        }
        let free = average.reservation(None, Tokens(u64::MAX)).0;
        let (least, most) = (*samples.iter().min().unwrap(), *samples.iter().max().unwrap());
        prop_assert!(free >= Yield::LEAST.0 && free <= most.max(Yield::LEAST.0) + 1, "{free} of {least} to {most}");
        // An eighth is cut off at each step, so the average may lie under the smallest sample by as much.
        prop_assert!(free + 1 >= least, "{free} of {least} to {most}");
        let bound = average.reservation(max.map(Tokens), Tokens(left)).0;
        prop_assert_eq!(bound, free.min(max.unwrap_or(u64::MAX)).min(left));
    }

    /// Charges are rounded up once, never negative, and cached input is at most all input.
    #[test]
    fn a_charge_is_the_weighted_sum_rounded_up(
        input in 0_u64..1_000_000, output in 0_u64..1_000_000, cached in 0_u64..2_000_000,
        weights in (0_u64..100_000, 0_u64..100_000, 0_u64..100_000),
    ) {
        let weights = ChargeWeights { input: weights.0, output: weights.1, cached: weights.2 };
        let usage = Usage { input: Tokens(input), output: Tokens(output), cached: Tokens(cached), ..Usage::default() };
        let taken = u128::from(cached.min(input));
        let hundredths = (u128::from(input) - taken) * u128::from(weights.input) + taken * u128::from(weights.cached)
            + u128::from(output) * u128::from(weights.output);
        prop_assert_eq!(u128::from(weights.of(&usage).0), hundredths.div_ceil(100));
    }
}
