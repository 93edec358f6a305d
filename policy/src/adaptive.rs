//! Adaptive weights: off by default, they move a tenant's weight towards those that used less than their share.
//!
//! Once a window, each tenant's part of what was charged is compared with its part of the configured weights. Who used
//! less gains a step, who used more loses one, and nobody leaves the bounds. A step is a tenth of the configured
//! weight, so the bounds are reached in some windows and not in one.

use crate::config::reader::Section;
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
    pub fn adapt(
        &self,
        tenants: &BTreeMap<TenantId, (u64, Tokens)>,
        before: &BTreeMap<TenantId, Adapted>,
    ) -> BTreeMap<TenantId, Adapted> {
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

/// A configured weight under a percentage, in hundredths, so that a weight of 1 can be adapted too.
#[must_use]
pub fn in_hundredths(weight: u64, percent: u64) -> u64 {
    weight.saturating_mul(percent).max(1)
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
