//! Buckets, tenants' accounts and yields, each against the arithmetic of its documentation.

use crate::chance::cases;
use crate::naive_bucket::NaiveBucket;
use proptest::prelude::*;
use sluice_policy::bucket::{Bucket, Rate};
use sluice_policy::config::ChargeWeights;
use sluice_policy::estimate::Yield;
use sluice_policy::units::{Millis, Tokens};
use sluice_policy::wire::Usage;

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
