//! The walk group → level → tenant, done by looking at everyone who waits, every time.
//!
//! Counters are finer than the crate's, so its rounding shows as a small difference and not as a wrong choice: of
//! branches that lie closer together than [`NEAR`], any may be next.

use sluice_policy::queue::SharePolicy;
use std::collections::{BTreeMap, BTreeSet};

/// Counter units of one token at weight 1.
pub(crate) const TOKEN: i128 = 1 << 40;
/// A hundredth of a token: a thousand roundings to the crate's 2^-20 tokens add up to a tenth of that.
const NEAR: i128 = TOKEN / 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flow {
    pub(crate) pool: usize,
    pub(crate) group: usize,
    pub(crate) level: u8,
    pub(crate) tenant: usize,
}

/// A group of a pool, a level of it, or a tenant at that level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Branch {
    pub(crate) pool: usize,
    pub(crate) group: usize,
    pub(crate) level: Option<u8>,
    pub(crate) tenant: Option<usize>,
}

impl Flow {
    /// From the top down.
    pub(crate) fn branches(self) -> [Branch; 3] {
        let group = Branch { pool: self.pool, group: self.group, level: None, tenant: None };
        let level = Branch { level: Some(self.level), ..group };
        [group, level, Branch { tenant: Some(self.tenant), ..level }]
    }
}

impl Branch {
    pub(crate) fn is_beside(self, other: Branch) -> bool {
        match (self.level, self.tenant) {
            (None, _) => self.pool == other.pool && other.level.is_none(),
            (Some(_), None) => {
                (self.pool, self.group) == (other.pool, other.group) && other.level.is_some() && other.tenant.is_none()
            }
            (Some(_), Some(_)) => {
                (self.pool, self.group, self.level) == (other.pool, other.group, other.level) && other.tenant.is_some()
            }
        }
    }
}

/// What is in force.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    pub(crate) policy: SharePolicy,
    pub(crate) levels: [u64; 10],
    /// By pool and group; a group beyond the end has 1.
    pub(crate) groups: Vec<Vec<u64>>,
    pub(crate) tenants: Vec<u64>,
}

impl Weights {
    /// Of a flow's branches, from the top down.
    pub(crate) fn above(&self, flow: Flow) -> [i128; 3] {
        flow.branches().map(|branch| self.of(branch))
    }

    fn of(&self, branch: Branch) -> i128 {
        i128::from(match (branch.level, branch.tenant) {
            (_, Some(tenant)) => self.tenants[tenant],
            (Some(level), None) => self.levels[usize::from(level)],
            (None, None) => self.groups[branch.pool].get(branch.group).copied().unwrap_or(1),
        })
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct NaiveTree {
    counters: BTreeMap<Branch, i128>,
    /// The virtual time of what stands side by side, named by any one branch of it with its own place left out: as far
    /// as the starts have got, but not past anyone who waited then.
    times: BTreeMap<Storey, i128>,
}

/// The pool's groups, a group's levels, or a level's tenants.
type Storey = (usize, Option<usize>, Option<u8>);

fn storey(branch: Branch) -> Storey {
    match (branch.level, branch.tenant) {
        (None, _) => (branch.pool, None, None),
        (Some(_), None) => (branch.pool, Some(branch.group), None),
        (Some(level), Some(_)) => (branch.pool, Some(branch.group), Some(level)),
    }
}

/// Of those who wait, the flows that compete: where levels share by weight, a tenant's best one in each group.
pub(crate) fn competing(waiting: &[Flow], policy: SharePolicy) -> Vec<Flow> {
    let shares = |flow: &Flow| policy == SharePolicy::Wfq || policy == SharePolicy::Hybrid && flow.level > 0;
    let stands_behind = |flow: &Flow, other: &Flow| {
        let is_own = (other.pool, other.group, other.tenant) == (flow.pool, flow.group, flow.tenant);
        is_own && other.level < flow.level && shares(flow) && shares(other)
    };
    waiting.iter().filter(|flow| !waiting.iter().any(|other| stands_behind(flow, other))).copied().collect()
}

impl NaiveTree {
    /// Others wait than before: what competes now and did not is lifted.
    pub(crate) fn changed(&mut self, before: &[Flow], after: &[Flow], policy: SharePolicy) {
        let before = competing(before, policy);
        for flow in competing(after, policy).into_iter().filter(|flow| !before.contains(flow)) {
            self.lift(&before, flow);
        }
    }

    /// Levels share by another rule: other flows compete.
    pub(crate) fn ruled(&mut self, waiting: &[Flow], before: SharePolicy, after: SharePolicy) {
        let before = competing(waiting, before);
        for flow in competing(waiting, after).into_iter().filter(|flow| !before.contains(flow)) {
            self.lift(&before, flow);
        }
    }

    fn counter(&self, branch: Branch) -> i128 {
        self.counters.get(&branch).copied().unwrap_or(0)
    }

    /// Nobody of an idle branch claims the past: when it wakes or starts something, it has had as much as the others.
    fn lift(&mut self, competing: &[Flow], flow: Flow) {
        for branch in flow.branches() {
            if !competing.iter().any(|other| other.branches().contains(&branch)) {
                let time = self.times.get(&storey(branch)).copied().unwrap_or(0);
                self.counters.insert(branch, self.counter(branch).max(time));
            }
        }
    }

    /// A call starts, past `waiting` of its pool: virtual time runs on, and the call is charged.
    pub(crate) fn start(
        &mut self,
        waiting: &[Flow],
        flow: Flow,
        charge: u64,
        weights: &Weights,
    ) -> Vec<(Branch, i128)> {
        let competing = competing(waiting, weights.policy);
        self.lift(&competing, flow);
        let active: BTreeSet<Branch> = competing.iter().flat_map(|flow| flow.branches()).collect();
        // P0's turn is no matter of counters.
        let counted = |branch: &Branch| weights.policy != SharePolicy::Hybrid || branch.level != Some(0);
        for branch in flow.branches() {
            let of_levels = branch.level.is_some() && branch.tenant.is_none();
            if of_levels && !counted(&branch) {
                continue;
            }
            let beside = active.iter().filter(|other| other.is_beside(branch) && (!of_levels || counted(other)));
            let reached = beside.map(|other| self.counter(*other)).fold(self.counter(branch), i128::min);
            let time = self.times.entry(storey(branch)).or_insert(0);
            *time = reached.max(*time);
        }
        let mut moved = self.adjust(flow, charge, 0, weights.above(flow));
        moved.extend(self.count_above(waiting, flow, i128::from(charge), weights));
        moved
    }

    /// A call has cost so much and not what it was charged.
    pub(crate) fn correct(
        &mut self,
        waiting: &[Flow],
        flow: Flow,
        (actual, reserved): (u64, u64),
        by: [i128; 3],
        weights: &Weights,
    ) -> Vec<(Branch, i128)> {
        let mut moved = self.adjust(flow, actual, reserved, by);
        moved.extend(self.count_above(waiting, flow, i128::from(actual) - i128::from(reserved), weights));
        moved
    }

    /// A charge counts at each better level that the tenant has used, too: at its own branch where others compete, at the
    /// level where none does. At most 16 such charges ahead of what starts there.
    fn count_above(&mut self, waiting: &[Flow], flow: Flow, charge: i128, weights: &Weights) -> Vec<(Branch, i128)> {
        let mut moved = Vec::new();
        let first = match weights.policy {
            SharePolicy::Strict => return moved,
            SharePolicy::Hybrid => 1,
            SharePolicy::Wfq => 0,
        };
        let competing = competing(waiting, weights.policy);
        for level in first..flow.level {
            let better = Flow { level, ..flow };
            let [_, of_level, of_tenant] = better.branches();
            if self.counter(of_tenant) == 0 {
                continue;
            }
            let contended =
                competing.iter().any(|other| other.branches()[1] == of_level && other.tenant != flow.tenant);
            let branch = if contended { of_tenant } else { of_level };
            let (counter, time) = (self.counter(branch), self.times.get(&storey(branch)).copied().unwrap_or(0));
            let scaled = charge * TOKEN / weights.of(branch);
            let (before, after) = if charge < 0 {
                (counter, (counter + scaled).max(counter.min(time)))
            } else {
                let lifted = counter.max(time);
                (lifted, lifted.max((lifted + scaled).min(time + 16 * scaled)))
            };
            self.counters.insert(branch, after);
            moved.push((branch, after - before));
        }
        moved
    }

    /// Adds a charge, or takes off what was too much, by the weights of when the call was charged, and tells by how much
    /// each branch moved.
    fn adjust(&mut self, flow: Flow, plus: u64, minus: u64, weights: [i128; 3]) -> Vec<(Branch, i128)> {
        let [group, level, tenant] = flow.branches();
        let [of_group, of_level, of_tenant] = weights;
        let adjust = |(branch, weight): (Branch, i128)| {
            let before = self.counter(branch);
            let after = (before + i128::from(plus) * TOKEN / weight - i128::from(minus) * TOKEN / weight).max(0);
            self.counters.insert(branch, after);
            (branch, after - before)
        };
        [(group, of_group), (level, of_level), (tenant, of_tenant)].map(adjust).to_vec()
    }

    /// The flows that may be next: one, unless counters lie very close together.
    pub(crate) fn next(&self, waiting: &[Flow], weights: &Weights) -> Vec<Flow> {
        let waiting = &competing(waiting, weights.policy)[..];
        let urgent: Vec<Flow> = waiting.iter().filter(|flow| flow.level == 0).copied().collect();
        let waiting = if weights.policy == SharePolicy::Hybrid && !urgent.is_empty() { &urgent } else { waiting };
        let mut next = Vec::new();
        for group in self.smallest(waiting.iter().map(|flow| flow.branches()[0])) {
            let of_group: Vec<Flow> = waiting.iter().filter(|flow| flow.branches()[0] == group).copied().collect();
            let levels = of_group.iter().map(|flow| flow.branches()[1]);
            let levels = match weights.policy {
                SharePolicy::Strict => levels.min().into_iter().collect(),
                SharePolicy::Wfq | SharePolicy::Hybrid => self.smallest(levels),
            };
            for level in levels {
                let of_level = of_group.iter().filter(|flow| flow.branches()[1] == level);
                let tenants = self.smallest(of_level.map(|flow| flow.branches()[2]));
                next.extend(of_group.iter().filter(|flow| tenants.contains(&flow.branches()[2])));
            }
        }
        next.sort_unstable();
        next.dedup();
        next
    }

    fn smallest(&self, branches: impl Iterator<Item = Branch>) -> BTreeSet<Branch> {
        let mut branches: BTreeSet<Branch> = branches.collect();
        let lowest = branches.iter().map(|branch| self.counter(*branch)).min().unwrap_or(0);
        branches.retain(|branch| self.counter(*branch) <= lowest + NEAR);
        branches
    }
}
