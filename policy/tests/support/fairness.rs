//! I4: two backlogged flows' served charge per weight differs by at most (K+1) of their largest charges, K = slots,
//! plus the error of estimates in flight. Checked for every two branches that wait side by side, over every window in
//! which both never stopped waiting.

use crate::naive_tree::{Branch, Flow, Weights};
use sluice_policy::queue::SharePolicy;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Default)]
pub(crate) struct Fairness {
    /// Largest charge and largest wrong estimate per weight, of each branch.
    largest: BTreeMap<Branch, Extremes>,
    pairs: BTreeMap<(Branch, Branch), Race>,
    pub(crate) compared: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Extremes {
    charge: i128,
    error: i128,
}

/// How far the first of a pair is ahead since both wait: now, at least and at most.
#[derive(Clone, Copy, Debug, Default)]
struct Race {
    ahead: i128,
    least: i128,
    most: i128,
}

impl Fairness {
    /// Weights or capacities have changed: every race begins anew.
    pub(crate) fn begin_anew(&mut self) {
        self.pairs.clear();
    }

    /// Of a pool these flows compete now: races with branches that do not are over.
    pub(crate) fn fell_asleep(&mut self, pool: usize, competing: &[Flow]) {
        let active: BTreeSet<Branch> = competing.iter().flat_map(|flow| flow.branches()).collect();
        self.pairs.retain(|(one, other), _| one.pool != pool || active.contains(one) && active.contains(other));
    }

    /// All that compete side by side now race from now on.
    pub(crate) fn note_waiting(&mut self, competing: &[Flow], weights: &Weights) {
        let active: BTreeSet<Branch> = competing.iter().flat_map(|flow| flow.branches()).collect();
        for one in &active {
            for other in active.range(one..).skip(1).filter(|other| one.is_beside(**other)) {
                let of_levels = one.level.is_some() && one.tenant.is_none();
                let by_weight = match weights.policy {
                    SharePolicy::Strict => !of_levels,
                    SharePolicy::Hybrid => !of_levels || one.level != Some(0),
                    SharePolicy::Wfq => true,
                };
                if by_weight {
                    self.pairs.entry((*one, *other)).or_default();
                }
            }
        }
    }

    /// A call has started; `moved` is what it was charged at each branch. P0 starts whatever its group has had.
    pub(crate) fn started(&mut self, moved: &[(Branch, i128)], slots: u32, policy: SharePolicy) -> Result<(), String> {
        let [(group, _), (level, _), ..] = *moved else { return Err("a call that nothing was charged for".into()) };
        if policy == SharePolicy::Hybrid && level.level == Some(0) {
            self.pairs.retain(|(one, other), _| *one != group && *other != group);
        }
        for (branch, by) in moved.iter().copied() {
            let extremes = self.largest.entry(branch).or_default();
            extremes.charge = extremes.charge.max(by);
            self.moved(branch, by, slots)?;
        }
        Ok(())
    }

    pub(crate) fn corrected(&mut self, moved: &[(Branch, i128)], slots: u32) -> Result<(), String> {
        for (branch, by) in moved.iter().copied() {
            let extremes = self.largest.entry(branch).or_default();
            extremes.error = extremes.error.max(by.abs());
            self.moved(branch, by, slots)?;
        }
        Ok(())
    }

    fn moved(&mut self, branch: Branch, by: i128, slots: u32) -> Result<(), String> {
        for ((one, other), race) in &mut self.pairs {
            let first = *one == branch;
            if !first && *other != branch {
                continue;
            }
            race.ahead += if first { by } else { -by };
            (race.least, race.most) = (race.least.min(race.ahead), race.most.max(race.ahead));
            let of = |branch| self.largest.get(branch).copied().unwrap_or_default();
            let (a, b) = (of(one), of(other));
            let slots = i128::from(slots);
            let bound = (slots + 1) * a.charge.max(b.charge) + 2 * slots * a.error.max(b.error);
            self.compared += u32::from(race.most > race.least);
            if race.most - race.least > bound {
                return Err(format!("I4: {one:?} and {other:?} drifted {} apart of {bound}", race.most - race.least));
            }
        }
        Ok(())
    }
}
