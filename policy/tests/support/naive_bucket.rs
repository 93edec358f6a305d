//! A token bucket as the documentation tells it, in 128 bits, and what I2 allows of it.

use sluice_policy::bucket::Rate;

#[derive(Clone, Debug)]
pub(crate) struct NaiveBucket {
    rate: Rate,
    /// In units × window milliseconds.
    level: i128,
    at: u64,
    window: Window,
}

impl NaiveBucket {
    pub(crate) fn full(rate: Rate, now: u64) -> Self {
        Self { rate, level: i128::from(rate.burst) * i128::from(rate.window.0), at: now, window: Window::begin(now) }
    }

    /// What was drawn of the burst, in whole units, stays drawn; and a rate that stays changes nothing.
    pub(crate) fn changed(old: Option<Self>, rate: Option<Rate>, now: u64) -> Option<Self> {
        let rate = rate?;
        let mut new = Self::full(rate, now);
        if let Some(mut old) = old {
            if old.rate == rate {
                return Some(old);
            }
            let drawn = i128::from(old.rate.burst) - i128::from(old.units(now));
            new.level -= drawn * i128::from(rate.window.0);
        }
        Some(new)
    }

    pub(crate) fn rate(&self) -> Rate {
        self.rate
    }

    pub(crate) fn units(&mut self, now: u64) -> i64 {
        self.refill(now);
        self.level.div_euclid(i128::from(self.rate.window.0)) as i64
    }

    pub(crate) fn allows(&mut self, amount: u64, now: u64) -> bool {
        self.refill(now);
        self.level >= i128::from(amount.min(self.rate.burst)) * i128::from(self.rate.window.0)
    }

    /// Takes the amount for a call that begins, and checks I2.
    pub(crate) fn begin(&mut self, amount: u64, now: u64) -> Result<(), String> {
        self.refill(now);
        self.level -= i128::from(amount) * i128::from(self.rate.window.0);
        self.window.add(i128::from(amount), self.rate, now);
        self.window.largest = self.window.largest.max(amount);
        self.window.check(self.rate)
    }

    pub(crate) fn take_more(&mut self, amount: u64, now: u64) {
        self.refill(now);
        self.level -= i128::from(amount) * i128::from(self.rate.window.0);
        self.window.add(i128::from(amount), self.rate, now);
    }

    pub(crate) fn give_back(&mut self, amount: u64, now: u64) {
        self.refill(now);
        self.level = (self.level + i128::from(amount) * i128::from(self.rate.window.0)).min(self.most());
        self.window.add(-i128::from(amount), self.rate, now);
    }

    pub(crate) fn correct(&mut self, reserved: u64, actual: u64, now: u64) {
        if actual > reserved {
            self.take_more(actual - reserved, now);
        } else {
            self.give_back(reserved - actual, now);
        }
    }

    fn most(&self) -> i128 {
        i128::from(self.rate.burst) * i128::from(self.rate.window.0)
    }

    fn refill(&mut self, now: u64) {
        self.level = (self.level + i128::from(now - self.at) * i128::from(self.rate.amount)).min(self.most());
        self.at = now;
    }
}

/// I2: charged in any window T ≤ burst + rate·T + one largest request, when a call begins. What corrections take
/// beyond it is paid back before the next one begins.
#[derive(Clone, Debug)]
struct Window {
    since: u64,
    /// Charged since the rate holds, × the rate's window, less what was refilled: its rise over any window counts.
    ahead: i128,
    lowest: i128,
    charged: i128,
    largest: u64,
}

impl Window {
    fn begin(now: u64) -> Self {
        Self { since: now, ahead: 0, lowest: 0, charged: 0, largest: 0 }
    }

    fn add(&mut self, amount: i128, rate: Rate, now: u64) {
        // The window may open just before this charge.
        let refilled = i128::from(now - self.since) * i128::from(rate.amount);
        self.lowest = self.lowest.min(self.charged * i128::from(rate.window.0) - refilled);
        self.charged += amount;
        self.ahead = self.charged * i128::from(rate.window.0) - refilled;
        self.lowest = self.lowest.min(self.ahead);
    }

    fn check(&self, rate: Rate) -> Result<(), String> {
        let allowed = i128::from(rate.burst + self.largest) * i128::from(rate.window.0);
        if self.ahead - self.lowest > allowed {
            return Err(format!("I2: {} was charged in a window where {allowed} may be", self.ahead - self.lowest));
        }
        Ok(())
    }
}
