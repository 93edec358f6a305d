//! A day in an e-commerce company, made up from a seed: departments that are busy by day, customers by night.

use super::random::SplitMix64;
use super::trace::{Arrival, Trace};
use crate::config::Config;
use crate::units::{Millis, ModelName, TenantId, Tokens};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Who calls, when and how much. Every tenant of the configuration calls every model it may use; tenants of the first
/// group, the third and so on are busy from 08:00 to 20:00 of the scene's clock, those of the second and fourth at the
/// other hours, those without a group always the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scene {
    pub seed: u64,
    /// 1 to 8,784 (a leap year). The scene begins at midnight.
    pub hours: u64,
    /// What is asked for at the busiest hour, in percent of what all slots together can serve; 1 to 10,000.
    pub load_percent: u64,
    /// The scene ends early once it has so many calls.
    pub most_calls: usize,
}

impl Default for Scene {
    fn default() -> Self {
        Self { seed: 1, hours: 24, load_percent: 120, most_calls: 10_000_000 }
    }
}

const HOUR_US: u64 = 3_600_000_000;
/// Seldom is anyone wholly quiet: calls of a tenant in its busy hours, in all hours, in the quiet ones.
const BUSY: u64 = 8;
const STEADY: u64 = 4;
const QUIET: u64 = 1;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rhythm {
    Day,
    Night,
    Steady,
}

impl Rhythm {
    fn of_group(group: u16) -> Self {
        match group {
            0 => Rhythm::Steady,
            odd if odd % 2 == 1 => Rhythm::Day,
            _ => Rhythm::Night,
        }
    }

    fn activity(self, hour: u64) -> u64 {
        let day = (8..20).contains(&(hour % 24));
        match (self, day) {
            (Rhythm::Steady, _) => STEADY,
            (Rhythm::Day, true) | (Rhythm::Night, false) => BUSY,
            (Rhythm::Day, false) | (Rhythm::Night, true) => QUIET,
        }
    }
}

struct Caller {
    rhythm: Rhythm,
    /// Models it may use, by their place in the trace's table.
    models: Vec<usize>,
}

impl Scene {
    /// Reads `SEED`, `SEED,hours=24`, `SEED,hours=24,load=120`, in any order after the seed.
    ///
    /// # Errors
    /// What a scene looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("a scene is SEED[,hours=1..8784][,load=1..10000 percent][,calls=N], found {text:?}");
        let mut parts = text.split(',');
        let mut scene =
            Self { seed: parts.next().and_then(|seed| seed.parse().ok()).ok_or_else(wrong)?, ..Self::default() };
        for part in parts {
            let (name, value) = part.split_once('=').ok_or_else(wrong)?;
            let value: u64 = value.parse().map_err(|_| wrong())?;
            match name {
                "hours" if (1..=8_784).contains(&value) => scene.hours = value,
                "load" if (1..=10_000).contains(&value) => scene.load_percent = value,
                "calls" => scene.most_calls = usize::try_from(value).unwrap_or(usize::MAX),
                _ => return Err(wrong()),
            }
        }
        Ok(scene)
    }

    /// The scene's calls under a configuration: by its tenants, for its models, against its slots.
    #[must_use]
    pub fn trace(&self, config: &Config) -> Trace {
        let models: Vec<&ModelName> = config.models.keys().collect();
        let tenants: Vec<TenantId> = config.tenants.keys().cloned().collect();
        let callers: Vec<Caller> = config
            .tenants
            .values()
            .map(|tenant| {
                let may = |model: &ModelName| tenant.models.as_ref().is_none_or(|allowed| allowed.contains(model));
                let models = models.iter().enumerate().filter(|(_, model)| may(model)).map(|(index, _)| index);
                Caller { rhythm: Rhythm::of_group(tenant.group.0), models: models.collect() }
            })
            .collect();
        let gap_us = self.busy_gap_us(config, &callers);
        let mut random = SplitMix64::new(self.seed);
        let mut randoms: Vec<SplitMix64> = callers.iter().map(|_| SplitMix64::new(random.bits())).collect();
        let mut next: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
        for (tenant, (caller, own)) in callers.iter().zip(&mut randoms).enumerate() {
            next.extend(self.next_call(caller, 0, gap_us, own).map(|at_us| Reverse((at_us, tenant))));
        }
        let mut arrivals = Vec::new();
        while let Some(Reverse((at_us, tenant))) = next.pop() {
            let (Some(caller), Some(own)) = (callers.get(tenant), randoms.get_mut(tenant)) else { continue };
            if arrivals.len() >= self.most_calls {
                break;
            }
            arrivals.push(call(tenant, caller, at_us / 1_000, own));
            next.extend(self.next_call(caller, at_us, gap_us, own).map(|at_us| Reverse((at_us, tenant))));
        }
        Trace::new(tenants, models.iter().map(|model| model.to_string()).collect(), arrivals)
    }

    /// Microseconds between two calls of a tenant with activity 1, so that the busiest hour asks for the load.
    fn busy_gap_us(&self, config: &Config, callers: &[Caller]) -> u64 {
        let slots: u64 = config.pools.values().map(|pool| u64::from(pool.concurrent)).sum();
        let activity = |hour| callers.iter().map(|caller| caller.rhythm.activity(hour)).sum::<u64>();
        let busiest = (0..24).map(activity).max().unwrap_or(1);
        let gap = MEAN_SERVICE_MS * 1_000 * 100 * busiest / (slots * self.load_percent).max(1);
        gap.max(1)
    }

    /// When a tenant calls again; `None` when it does not before the scene ends.
    fn next_call(&self, caller: &Caller, after_us: u64, gap_us: u64, random: &mut SplitMix64) -> Option<u64> {
        if caller.models.is_empty() {
            return None;
        }
        let mut at_us = after_us;
        loop {
            let hour = at_us / HOUR_US;
            if hour >= self.hours {
                return None;
            }
            // The gap forgets the past, so one that leads into another hour is drawn anew from its beginning.
            let next = at_us.saturating_add(random.exponential(gap_us / caller.rhythm.activity(hour)));
            if next / HOUR_US == hour {
                return Some(next);
            }
            at_us = (hour + 1) * HOUR_US;
        }
    }
}

/// About what [`call`] makes on average; measured, and checked by a test.
const MEAN_SERVICE_MS: u64 = 3_150;

/// Prompts of 64 to 8,191 tokens and replies of 16 to 1,023, at the pace of a middling GPU.
fn call(tenant: usize, caller: &Caller, at_ms: u64, random: &mut SplitMix64) -> Arrival {
    let pick = random.below(u64::try_from(caller.models.len()).unwrap_or(1));
    let model = usize::try_from(pick).ok().and_then(|pick| caller.models.get(pick)).copied().unwrap_or(0);
    let (input, output) = (random.log_uniform(6, 13), random.log_uniform(4, 10));
    Arrival {
        at: Millis(at_ms),
        tenant,
        model,
        level: None,
        input: Tokens(input),
        output: Tokens(output),
        cached: Tokens(if random.chance(30) { input / 2 } else { 0 }),
        max_tokens: random.chance(50).then_some(Tokens(1_024)),
        service: Millis(50 + input / 16 + output * 12),
        cancel_after: random.chance(5).then(|| Millis(random.exponential(20_000))),
        deadline: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_hold_their_slot_about_as_long_as_the_load_is_reckoned_by() {
        let caller = Caller { rhythm: Rhythm::Steady, models: vec![0] };
        let mut random = SplitMix64::new(3);
        let total: u64 = (0..20_000).map(|_| call(0, &caller, 0, &mut random).service.0).sum();
        let mean = total / 20_000;
        assert!(mean.abs_diff(MEAN_SERVICE_MS) < MEAN_SERVICE_MS / 20, "{mean}");
    }

    #[test]
    fn a_scene_is_read_from_its_command_line_form() {
        let scene = Scene::parse("7,load=150,hours=2").unwrap();
        assert_eq!((scene.seed, scene.hours, scene.load_percent), (7, 2, 150));
        for wrong in ["", "x", "1,hours=0", "1,load", "1,size=3", "1,load=-1"] {
            assert!(Scene::parse(wrong).is_err(), "{wrong}");
        }
    }
}
