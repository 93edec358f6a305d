//! Adaptive weights: off by default, they move a tenant's weight towards those that used less than their share.
//!
//! Once a window, each tenant's part of what was charged is compared with its part of the configured weights. Who used
//! less gains a step, who used more loses one, and nobody leaves the bounds. A step is a tenth of the configured
//! weight, so the bounds are reached in some windows and not in one.

use crate::config::reader::Section;
use crate::config::{Config, Tenant};
use crate::units::{Millis, TenantId, Tokens};
use std::collections::BTreeMap;

/// How far and how fast weights may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adaptive {
    pub enabled: bool,
    /// 1 s to a day.
    pub window: Millis,
    /// Of the configured weight, 10 to 100.
    pub least_percent: u64,
    /// Of the configured weight, 100 to 1,000.
    pub most_percent: u64,
}

impl Default for Adaptive {
    fn default() -> Self {
        Self { enabled: false, window: Millis(300_000), least_percent: 50, most_percent: 200 }
    }
}

/// One tenant's weight as it was adapted, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapted {
    /// Of the configured weight.
    pub percent: u64,
    /// In the last window.
    pub used: Tokens,
    /// What its weight entitled it to, of all that was used in the last window.
    pub share: Tokens,
}

const STEP_PERCENT: u64 = 10;

impl Adaptive {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let default = Self::default();
        let percent = |name, range, default| section.integer(name, range).unwrap_or(default);
        let adaptive = Self {
            enabled: section.boolean("enabled").unwrap_or(default.enabled),
            window: section.integer("window_ms", 1_000..=86_400_000).map_or(default.window, Millis),
            least_percent: percent("least_percent", 10..=100, default.least_percent),
            most_percent: percent("most_percent", 100..=1_000, default.most_percent),
        };
        section.finish();
        adaptive
    }

    /// The next window's weights, from what tenants used in the last one and the percentages it had.
    ///
    /// `tenants` maps each to its configured weight and what it was charged in the window.
    #[must_use]
    pub fn adapt(&self, tenants: &Served, before: &BTreeMap<TenantId, Adapted>) -> BTreeMap<TenantId, Adapted> {
        let used: u128 = tenants.values().map(|(_, used)| u128::from(used.0)).sum();
        let weights: u128 = tenants.values().map(|(weight, _)| u128::from(*weight)).sum();
        let adapt = |(id, (weight, own)): (&TenantId, &(u64, Tokens))| {
            let share = used * u128::from(*weight) / weights.max(1);
            let share = Tokens(u64::try_from(share).unwrap_or(u64::MAX));
            let percent = before.get(id).map_or(100, |before| before.percent);
            let percent = match own.cmp(&share) {
                std::cmp::Ordering::Less => percent.saturating_add(STEP_PERCENT),
                std::cmp::Ordering::Equal => percent,
                std::cmp::Ordering::Greater => percent.saturating_sub(STEP_PERCENT),
            };
            let percent = percent.clamp(self.least_percent, self.most_percent);
            (id.clone(), Adapted { percent, used: *own, share })
        };
        tenants.iter().map(adapt).collect()
    }
}

/// Each tenant's configured weight, and what its calls have cost since some beginning.
pub type Served = BTreeMap<TenantId, (u64, Tokens)>;

/// What the calls of tenants have cost, beside their weights; those that have not called have cost nothing.
#[must_use]
pub fn served(config: &Config, costs: &BTreeMap<TenantId, Tokens>) -> Served {
    let served =
        |(id, tenant): (&TenantId, &Tenant)| (id.clone(), (tenant.weight, costs.get(id).copied().unwrap_or_default()));
    config.tenants.iter().map(served).collect()
}

/// Follows window after window.
#[derive(Clone, Debug, Default)]
pub struct Adapting {
    adapted: BTreeMap<TenantId, Adapted>,
    /// What each tenant had been charged when the window began.
    before: BTreeMap<TenantId, Tokens>,
    began: Option<Millis>,
}

impl Adapting {
    /// Ends the window if it has lasted long enough, or all of it where adapting has been turned off. `served` is asked
    /// for only when a window begins or ends. What is returned are the weights to put in force, as
    /// [`Adapting::weights`] tells them; `None` leaves them as they are.
    pub fn pass(
        &mut self,
        adaptive: &Adaptive,
        served: impl FnOnce() -> Served,
        now: Millis,
    ) -> Option<BTreeMap<TenantId, u64>> {
        if !adaptive.enabled {
            let had = !std::mem::take(self).adapted.is_empty();
            return had.then(BTreeMap::new);
        }
        if self.next(adaptive).is_some_and(|end| end > now) {
            return None;
        }
        let served = served();
        let weights = self.began.is_some().then(|| {
            let in_window = served.iter().map(|(id, (weight, total))| {
                let before = self.before.get(id).copied().unwrap_or_default();
                (id.clone(), (*weight, Tokens(total.0.saturating_sub(before.0))))
            });
            self.adapted = adaptive.adapt(&in_window.collect(), &self.adapted);
            self.weigh(served.iter().map(|(id, (weight, _))| (id, *weight)))
        });
        self.began = Some(now);
        self.before = served.into_iter().map(|(id, (_, total))| (id, total)).collect();
        weights
    }

    /// When [`Adapting::pass`] has something to do; `None` before the first window.
    #[must_use]
    pub fn next(&self, adaptive: &Adaptive) -> Option<Millis> {
        self.began.map(|began| began.plus(adaptive.window))
    }

    /// Every tenant's weight on one scale, hundredths, so that a weight of 1 can be adapted too; empty while nothing is
    /// adapted, which means the configured ones.
    #[must_use]
    pub fn weights(&self, config: &Config) -> BTreeMap<TenantId, u64> {
        self.weigh(config.tenants.iter().map(|(id, tenant)| (id, tenant.weight)))
    }

    /// The last window's result; `None` while adapting is off.
    #[must_use]
    pub fn adapted(&self) -> Option<&BTreeMap<TenantId, Adapted>> {
        self.began.map(|_| &self.adapted)
    }

    fn weigh<'a>(&self, configured: impl Iterator<Item = (&'a TenantId, u64)>) -> BTreeMap<TenantId, u64> {
        if self.adapted.is_empty() {
            return BTreeMap::new();
        }
        let weight = |(id, weight): (&TenantId, u64)| {
            let percent = self.adapted.get(id).map_or(100, |adapted| adapted.percent);
            (id.clone(), weight.saturating_mul(percent).max(1))
        };
        configured.map(weight).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tenants(used: &[(&str, u64, u64)]) -> BTreeMap<TenantId, (u64, Tokens)> {
        used.iter().map(|(id, weight, used)| (TenantId::from(*id), (*weight, Tokens(*used)))).collect()
    }

    #[test]
    fn who_used_less_than_its_share_gains_and_who_used_more_loses() {
        let adapted = Adaptive::default().adapt(&tenants(&[("a", 1, 900), ("b", 1, 100)]), &BTreeMap::new());
        let percent = |id: &str| adapted[&TenantId::from(id)].percent;
        assert_eq!((percent("a"), percent("b")), (90, 110));
        assert_eq!(adapted[&TenantId::from("b")].share, Tokens(500));
    }

    #[test]
    fn a_window_in_which_nobody_called_changes_nothing() {
        let adapted = Adaptive::default().adapt(&tenants(&[("a", 1, 0), ("b", 3, 0)]), &BTreeMap::new());
        assert!(adapted.values().all(|adapted| adapted.percent == 100));
    }

    #[test]
    fn windows_follow_each_other_and_end_when_adapting_is_turned_off() {
        let on = Adaptive { enabled: true, ..Adaptive::default() };
        let (mut adapting, window) = (Adapting::default(), on.window);
        let used = |a, b| move || tenants(&[("a", 3, a), ("b", 1, b)]);
        assert_eq!(adapting.pass(&on, used(70, 0), Millis(5)), None, "a window begins, and nothing is known yet");
        assert_eq!(adapting.next(&on), Some(window.plus(Millis(5))));
        assert_eq!(adapting.pass(&on, || panic!("nobody asks"), window), None);
        // Of 400 in this window, 300 would be the share of `a`.
        let weights = adapting.pass(&on, used(170, 300), window.plus(Millis(5))).unwrap();
        assert_eq!(weights.into_values().collect::<Vec<_>>(), [330, 90]);
        assert_eq!(adapting.adapted().unwrap()[&TenantId::from("a")].used, Tokens(100));
        let off = Adaptive::default();
        assert_eq!(adapting.pass(&off, || panic!("nobody asks"), window), Some(BTreeMap::new()));
        assert_eq!((adapting.pass(&off, || panic!("nobody asks"), window), adapting.next(&off)), (None, None));
    }

    proptest! {
        #[test]
        fn weights_never_leave_their_bounds(
            windows in prop::collection::vec((0_u64..1_000_000, 0_u64..1_000_000), 1..50),
        ) {
            let adaptive = Adaptive::default();
            let mut adapted = BTreeMap::new();
            for (a, b) in windows {
                adapted = adaptive.adapt(&tenants(&[("a", 2, a), ("b", 1, b)]), &adapted);
                prop_assert!(adapted.values().all(|one| (50..=200).contains(&one.percent)));
            }
        }
    }
}
