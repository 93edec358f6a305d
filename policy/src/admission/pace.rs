//! How fast a pool starts calls, as far as it has shown.

use crate::units::{Millis, Tokens};

/// Moving averages, each by an eighth of the distance. Those that are read alone are scaled by 8.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// How long a call holds its slot; `None` until one has ended.
    service_ms_scaled: Option<u64>,
    /// The time between two starts while somebody waits for a slot; `None` before the second start.
    start_gap_ms_scaled: Option<u64>,
    last_start: Option<Millis>,
    /// Since the last start somebody had a slot and had to wait for tokens or requests.
    was_short: bool,
    /// What calls had reserved, and what they cost in the end; for their proportion.
    reserved: u64,
    cost: u64,
}

/// The slots by which those who wait will start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots {
    pub(super) fewest: u32,
    pub(super) most: u32,
    pub(super) all_taken: bool,
}

/// Assumed until a call has ended.
const UNKNOWN_SERVICE: Millis = Millis(2_000);

impl Pace {
    /// A call has started. Starts past an empty queue say nothing about the pace of slots, and neither do those that
    /// waited for something else.
    pub(super) fn has_started(&mut self, others_wait: bool, now: Millis) {
        let was_short = std::mem::take(&mut self.was_short);
        if let (Some(last), true, false) = (self.last_start, others_wait, was_short) {
            learn(&mut self.start_gap_ms_scaled, now.since(last).0);
        }
        self.last_start = Some(now);
    }

    pub(super) fn was_short(&mut self) {
        self.was_short = true;
    }

    pub(super) fn has_ended(&mut self, service: Millis, reserved: Tokens, cost: Tokens) {
        learn(&mut self.service_ms_scaled, service.0);
        // Both by the same steps, so that their proportion is that of late. In 16ths, not to lose small ones.
        let step = |average: &mut u64, sample: u64| {
            *average = average.saturating_sub(*average / 8).saturating_add(sample.saturating_mul(16) / 8);
        };
        step(&mut self.reserved, reserved.0);
        step(&mut self.cost, cost.0);
    }

    /// Whether its estimates rest on anything it has seen.
    pub(super) fn is_known(&self) -> bool {
        self.service_ms_scaled.is_some() || self.start_gap_ms_scaled.is_some()
    }

    /// How long a call usually holds its slot; at least a millisecond.
    pub(super) fn typical_service(&self) -> Millis {
        self.service_ms_scaled.map_or(UNKNOWN_SERVICE, |average| Millis((average / 8).max(1)))
    }

    /// About how long it takes until this many starts have found a slot: at the pace of late while all slots are taken,
    /// as far as it can be believed, and else at the one that the slots and the length of calls allow.
    pub(super) fn time_for(&self, starts: u64, slots: Slots) -> Millis {
        let by = |slots: u32| self.typical_service().0.saturating_mul(8).div_ceil(u64::from(slots.max(1)));
        let gap_scaled = match (self.start_gap_ms_scaled, self.service_ms_scaled) {
            (Some(gap), None) => gap,
            // Calls that end together start others together, so a few gaps may say anything.
            (Some(gap), Some(_)) if slots.all_taken && !self.was_short => {
                gap.clamp(by(slots.most) / 2, by(slots.fewest).saturating_mul(2))
            }
            (Some(_) | None, _) => by(slots.most),
        };
        Millis(gap_scaled.saturating_mul(starts).div_ceil(8).max(1))
    }

    /// A wait for tokens, with what comes back meanwhile. `wait` is how long the bucket alone would take for what will be
    /// drawn, `running` for what the calls that run have drawn. They give back, or owe, their part over as long as a call
    /// takes; after that, those that start meanwhile do.
    pub(super) fn with_refunds(&self, wait: Millis, running: Millis) -> Millis {
        let service = i128::from(self.typical_service().0);
        let (wait, back) = (i128::from(wait.0), i128::from(running.0) - i128::from(self.cost_of(running.0)));
        let gained = service.saturating_add(back);
        let time = if wait <= gained {
            wait.saturating_mul(service) / gained.max(1)
        } else {
            let rest = u64::try_from(wait.saturating_sub(gained)).unwrap_or(u64::MAX);
            service.saturating_add(i128::from(self.cost_of(rest)))
        };
        Millis(u64::try_from(time).unwrap_or(u64::MAX))
    }

    /// What calls that reserved so much probably cost in the end.
    fn cost_of(&self, reserved: u64) -> u64 {
        if self.reserved == 0 {
            return reserved;
        }
        let cost = u128::from(reserved) * u128::from(self.cost) / u128::from(self.reserved);
        u64::try_from(cost).unwrap_or(u64::MAX)
    }
}

fn learn(average: &mut Option<u64>, sample: u64) {
    *average = Some(match *average {
        None => sample.saturating_mul(8),
        Some(average) => average.saturating_sub(average / 8).saturating_add(sample),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_expected_to_cost_what_their_like_have_cost_of_late() {
        let mut pace = Pace::default();
        assert_eq!(pace.cost_of(1_000), 1_000);
        for reserved in [10, 100, 1_000, 50] {
            pace.has_ended(Millis(1), Tokens(reserved), Tokens(reserved / 2));
        }
        assert_eq!(pace.cost_of(1_000), 500);
        for _ in 0..50 {
            pace.has_ended(Millis(1), Tokens(100), Tokens(300));
        }
        let cost = pace.cost_of(1_000);
        assert!((2_900..=3_000).contains(&cost), "{cost}");
    }

    #[test]
    fn starts_that_waited_for_tokens_say_nothing_about_slots() {
        let mut pace = Pace::default();
        for start in [0, 100, 200] {
            pace.has_started(true, Millis(start));
        }
        pace.was_short();
        pace.has_started(true, Millis(90_000));
        assert_eq!(pace.time_for(10, slots(1, 1)), Millis(1_000));
    }

    fn slots(fewest: u32, most: u32) -> Slots {
        Slots { fewest, most, all_taken: true }
    }

    #[test]
    fn while_slots_change_hands_only_the_pace_of_late_tells_how_many_will_come() {
        let mut pace = Pace::default();
        pace.has_ended(Millis(1_000), Tokens(1), Tokens(1));
        assert_eq!(pace.time_for(40, slots(1, 20)), Millis(2_000));
        for start in 0..100 {
            pace.has_started(true, Millis(start * 150));
        }
        let expected = pace.time_for(40, slots(1, 20));
        assert!((5_900..=6_100).contains(&expected.0), "{expected}");
        // With slots of its own, of which it has one, it would be believed only so far.
        assert_eq!(pace.time_for(40, slots(1, 1)), Millis(20_000));
    }
}
