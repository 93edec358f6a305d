//! A token bucket that may go into debt, in exact integers.
//!
//! A draw needs `level ≥ min(amount, burst)` and takes the whole amount, so a request larger than the burst is
//! served when the bucket is full and pays the rest back by waiting. (Debt instead of splitting: DESIGN.md, "The
//! ledger protocol", 5.)

use crate::units::Millis;
use serde::{Deserialize, Serialize};

/// A limit: `amount` units (requests or tokens) per `window`, saved up to `burst` units.
///
/// Ranges, kept by the configuration: amount and burst 1 to 10^12, window 1 ms to one minute. So a level fits
/// 64 bits with room to spare, and the arithmetic saturates only on nonsense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rate {
    pub amount: u64,
    pub window: Millis,
    pub burst: u64,
}

impl Rate {
    /// `amount` a second, with a burst of its own.
    #[must_use]
    pub fn per_second(amount: u64, burst: u64) -> Self {
        Self { amount, window: Millis(1_000), burst }
    }

    /// `amount` a minute; a whole minute's worth may be used at once.
    #[must_use]
    pub fn per_minute(amount: u64) -> Self {
        Self { amount, window: Millis(60_000), burst: amount }
    }
}

/// The bucket itself. Invariant: `level ≤ burst · window`, in units of 1/window-in-ms; negative is debt.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: Rate,
    /// In units × window milliseconds, so that one millisecond refills exactly `rate.amount`.
    level: i64,
    refilled_at: Millis,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn full(rate: Rate, now: Millis) -> Self {
        let mut bucket = Self { rate, level: 0, refilled_at: now };
        bucket.level = bucket.scale(rate.burst);
        bucket
    }

    /// A bucket as it was left `age` ago with `level` units (negative: debt).
    #[must_use]
    pub fn restored(rate: Rate, level: i64, age: Millis, now: Millis) -> Self {
        let mut bucket = Self::full(rate, now);
        let refilled = signed(age.0).saturating_mul(signed(rate.amount));
        let left = level.saturating_mul(signed(rate.window.0)).saturating_add(refilled);
        bucket.level = bucket.level.min(left);
        bucket
    }

    /// The bucket under another rate: what has been drawn of the burst, or is owed, stays drawn and owed.
    #[must_use]
    pub fn with_rate(mut self, rate: Rate, now: Millis) -> Self {
        if rate == self.rate {
            return self;
        }
        let full = i64::try_from(self.rate.burst).unwrap_or(i64::MAX);
        let drawn = full.saturating_sub(self.level(now));
        let mut changed = Self::full(rate, now);
        changed.draw(u64::try_from(drawn).unwrap_or(0), now);
        changed
    }

    /// Whether `amount` may be drawn now.
    pub fn allows(&mut self, amount: u64, now: Millis) -> bool {
        self.missing(amount, now) == 0
    }

    /// Takes the whole amount, into debt if need be. Ask [`Bucket::allows`] first.
    pub fn draw(&mut self, amount: u64, now: Millis) {
        self.refill(now);
        self.level = self.level.saturating_sub(self.scale(amount));
    }

    /// Puts back what was drawn and not used; what exceeds the burst is lost.
    pub fn give_back(&mut self, amount: u64, now: Millis) {
        self.refill(now);
        self.level = self.level.saturating_add(self.scale(amount)).min(self.scale(self.rate.burst));
    }

    /// Corrects a draw of `reserved` to `actual`: a refund, or more debt.
    pub fn correct(&mut self, reserved: u64, actual: u64, now: Millis) {
        if actual > reserved {
            self.draw(actual - reserved, now);
        } else {
            self.give_back(reserved - actual, now);
        }
    }

    /// How long until `amount` may be drawn, if nobody else draws before.
    pub fn wait_for(&mut self, amount: u64, now: Millis) -> Millis {
        Millis(self.missing(amount, now).div_ceil(self.rate.amount.max(1)))
    }

    /// How long until `amount` may be drawn behind others that draw `drawn` as soon as they can; at least, since the
    /// bucket may stand full while they have other reasons to wait.
    #[must_use]
    pub fn wait_behind(&self, drawn: u64, amount: u64, now: Millis) -> Millis {
        let needed = self.scale(drawn).saturating_add(self.scale(amount.min(self.rate.burst)));
        let missing = u64::try_from(needed.saturating_sub(self.level_at(now))).unwrap_or(0);
        Millis(missing.div_ceil(self.rate.amount.max(1)))
    }

    /// How long it takes to gain so many units.
    #[must_use]
    pub fn time_to_gain(&self, amount: u64) -> Millis {
        Millis(u64::try_from(self.scale(amount)).unwrap_or(0).div_ceil(self.rate.amount.max(1)))
    }

    /// Whole units left; negative is debt.
    pub fn level(&mut self, now: Millis) -> i64 {
        self.refill(now);
        self.level.div_euclid(signed(self.rate.window.0))
    }

    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    fn missing(&mut self, amount: u64, now: Millis) -> u64 {
        self.refill(now);
        let needed = self.scale(amount.min(self.rate.burst));
        u64::try_from(needed.saturating_sub(self.level)).unwrap_or(0)
    }

    fn refill(&mut self, now: Millis) {
        self.level = self.level_at(now);
        self.refilled_at = self.refilled_at.max(now);
    }

    fn level_at(&self, now: Millis) -> i64 {
        let elapsed = signed(now.since(self.refilled_at).0);
        let gained = elapsed.saturating_mul(signed(self.rate.amount));
        self.level.saturating_add(gained).min(self.scale(self.rate.burst))
    }

    fn scale(&self, amount: u64) -> i64 {
        signed(amount).saturating_mul(signed(self.rate.window.0))
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_large_draw_waits_for_a_full_bucket_and_leaves_a_debt() {
        let mut bucket = Bucket::full(Rate::per_second(10, 20), Millis(0));
        assert!(bucket.allows(50, Millis(0)));
        bucket.draw(50, Millis(0));
        assert_eq!(bucket.level(Millis(0)), -30);
        assert_eq!(bucket.wait_for(1, Millis(0)), Millis(3_100));
        assert!(!bucket.allows(1, Millis(3_099)));
        assert!(bucket.allows(1, Millis(3_100)));
    }

    #[test]
    fn a_bucket_remembers_its_level_over_a_restart() {
        let mut bucket = Bucket::restored(Rate::per_minute(60), -10, Millis(5_000), Millis(7));
        assert_eq!(bucket.level(Millis(7)), -5);
        let mut old = Bucket::restored(Rate::per_minute(60), -10, Millis(u64::MAX), Millis(7));
        assert_eq!(old.level(Millis(7)), 60);
    }

    proptest! {
        /// I2 for one bucket: what is drawn in any window is at most burst + rate·T + one largest request.
        #[test]
        fn no_window_draws_more_than_burst_and_rate_and_one_request(
            amount in 1_u64..1_000, burst in 1_u64..1_000,
            steps in prop::collection::vec((0_u64..500, 1_u64..2_000), 1..60),
        ) {
            let mut bucket = Bucket::full(Rate::per_second(amount, burst), Millis(0));
            let (mut now, mut drawn, mut largest) = (0, 0, 0);
            for (pause, size) in steps {
                now += pause;
                if bucket.allows(size, Millis(now)) {
                    bucket.draw(size, Millis(now));
                    drawn += size;
                    largest = largest.max(size);
                }
                prop_assert!(drawn * 1_000 <= (burst + largest) * 1_000 + amount * now);
            }
        }

        /// The wait that a refusal promises is honest: true to the millisecond, when nobody else draws.
        #[test]
        fn the_promised_wait_is_exact(
            amount in 1_u64..1_000, burst in 1_u64..1_000, debt in 0_u64..5_000, size in 1_u64..2_000,
        ) {
            let mut bucket = Bucket::full(Rate::per_minute(amount), Millis(0));
            bucket.rate.burst = burst;
            bucket.draw(debt, Millis(0));
            let wait = bucket.wait_for(size, Millis(0));
            prop_assert!(bucket.clone().allows(size, wait));
            if wait.0 > 0 {
                prop_assert!(!bucket.allows(size, Millis(wait.0 - 1)));
            }
        }

        /// A line before a bucket that is drawn from as soon as it allows: the wait of its last one, to the millisecond.
        #[test]
        fn the_wait_behind_others_is_what_it_takes_to_serve_them(
            amount in 1_u64..1_000, burst in 1_u64..1_000, debt in 0_u64..5_000,
            ahead in prop::collection::vec(1_u64..1_000, 0..20), size in 1_u64..2_000,
        ) {
            let mut bucket = Bucket::full(Rate::per_second(amount, burst), Millis(0));
            bucket.draw(debt, Millis(0));
            let told = bucket.wait_behind(ahead.iter().sum(), size, Millis(7));
            let mut now = Millis(7);
            for call in ahead {
                now = now.plus(bucket.wait_for(call, now));
                bucket.draw(call, now);
            }
            now = now.plus(bucket.wait_for(size, now));
            prop_assert!(now.since(Millis(7)) >= told, "{now} of {told}");
            // Whoever waits for a millisecond to end loses what is left of it.
            prop_assert!(now.since(Millis(7)).0 <= told.0 + 20, "{now} of {told}");
        }

        #[test]
        fn no_input_overflows(level: i64, age: u64, amount: u64, draw: u64, now: u64) {
            let rate = Rate { amount, window: Millis(60_000), burst: amount };
            let mut bucket = Bucket::restored(rate, level, Millis(age), Millis(0));
            bucket.draw(draw, Millis(now));
            bucket.give_back(draw, Millis(u64::MAX));
            bucket.wait_for(draw, Millis(now));
        }
    }
}
