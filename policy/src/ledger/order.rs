//! Whose turn it is, over all holders: the walk of the fair queue (`queue.rs`), on rows instead of waiters.
//!
//! Counters are charged tokens × 1,024 / weight, rounded up, so that they stay integers in Lua too. A branch that nobody
//! waits at, and that is not ahead of its storey's virtual time, need not be remembered: when it wakes it is lifted to
//! that time anyway.

use super::message::{FlowName, Terms};
use crate::queue::{MOST_BEHIND, SharePolicy};
use crate::units::{GroupName, HolderId, Millis, Priority};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const COUNTER_SCALE: u64 = 1024;
/// Charges beyond it are counted as this much, so that a scaled one stays exact in Lua.
const MOST_CHARGE: u64 = 1 << 30;
/// When a storey's virtual time reaches this, its counters are set back by half of it: Lua's numbers are exact up to
/// 2^53.
const REBASE_AT: u64 = 1 << 50;
/// Where a counter stops: it runs far ahead of its storey's virtual time when nobody compares it, as P0's own under
/// `hybrid`.
const MOST_COUNTER: u64 = 1 << 52;

/// A group or a level: its counter, and the virtual time of the branches below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Storey {
    counter: u64,
    time: u64,
}

/// The tree of counters. Branches that are missing stand at zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Order {
    /// The virtual time of the groups.
    time: u64,
    groups: BTreeMap<GroupName, Storey>,
    #[serde(with = "as_pairs")]
    levels: BTreeMap<(GroupName, Priority), Storey>,
    flows: BTreeMap<FlowName, u64>,
}

/// A row that competes: a flow that waits at a holder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) flow: &'a FlowName,
    pub(super) holder: &'a HolderId,
    /// Since when its first call waits.
    pub(super) since: Millis,
}

impl Order {
    /// Lifts what is idle of a flow's branches to the virtual time, so that nobody claims the past. `rivals` are the
    /// flows that compete.
    pub(super) fn wake<'a>(&mut self, flow: &FlowName, rivals: impl Iterator<Item = &'a FlowName> + Clone) {
        let in_group = rivals.filter(|other| other.group == flow.group);
        let group_time = {
            let group = self.groups.entry(flow.group.clone()).or_default();
            if in_group.clone().next().is_none() {
                group.counter = group.counter.max(self.time);
            }
            group.time
        };
        let level = self.levels.entry((flow.group.clone(), flow.level)).or_default();
        let mut at_level = in_group.filter(|other| other.level == flow.level);
        if at_level.clone().next().is_none() {
            level.counter = level.counter.max(group_time);
        }
        if at_level.all(|other| other != flow) {
            let counter = self.flows.entry(flow.clone()).or_default();
            *counter = (*counter).max(level.time);
        }
    }

    /// Charges a start to every branch above a flow, which has been woken, and lets virtual time run: to the counter of
    /// what starts, but not past anyone who competes.
    pub(super) fn charge<'a>(
        &mut self,
        flow: &FlowName,
        weight: u64,
        charge: u64,
        terms: &Terms,
        rivals: impl Iterator<Item = &'a FlowName> + Clone,
    ) {
        self.run_time(flow, terms, rivals.clone());
        self.adjust(flow, weight, terms, |counter, weight| {
            counter.saturating_add(scaled(charge, weight)).min(MOST_COUNTER)
        });
        self.adjust_better(flow, weight, terms, rivals, |counter, time, weight| {
            let (charge, counter) = (scaled(charge, weight), counter.max(time));
            let most = time.saturating_add(charge.saturating_mul(u64::from(MOST_BEHIND)));
            counter.max(counter.saturating_add(charge).min(most)).min(MOST_COUNTER)
        });
    }

    /// Takes a charge back: the call never started, or cost less.
    pub(super) fn uncharge<'a>(
        &mut self,
        flow: &FlowName,
        weight: u64,
        charge: u64,
        terms: &Terms,
        rivals: impl Iterator<Item = &'a FlowName> + Clone,
    ) {
        self.adjust(flow, weight, terms, |counter, weight| counter.saturating_sub(scaled(charge, weight)));
        self.adjust_better(flow, weight, terms, rivals, |counter, time, weight| {
            counter.saturating_sub(scaled(charge, weight)).max(counter.min(time))
        });
    }

    /// What a tenant has at a level counts at the better ones that it uses, too, as in a queue
    /// (`queue/tree/rivals.rs`).
    fn adjust_better<'a>(
        &mut self,
        flow: &FlowName,
        weight: u64,
        terms: &Terms,
        rivals: impl Iterator<Item = &'a FlowName> + Clone,
        change: impl Fn(u64, u64, u64) -> u64,
    ) {
        let better = Priority::all().filter(|level| *level < flow.level && terms.policy.shares_level(*level));
        for level in better.filter(|_| terms.policy.shares_level(flow.level)) {
            let own = FlowName { level, ..flow.clone() };
            let Some(counter) = self.flows.get_mut(&own).filter(|counter| **counter > 0) else { continue };
            let storey = self.levels.entry((own.group.clone(), level)).or_default();
            let mut beside = rivals.clone().filter(|other| other.group == own.group && other.level == level);
            if beside.any(|other| other.tenant != own.tenant) {
                *counter = change(*counter, storey.time, weight);
            } else {
                let time = self.groups.get(&own.group).map_or(0, |group| group.time);
                let of_level = terms.levels.get(level.index()).copied().unwrap_or(1);
                storey.counter = change(storey.counter, time, of_level);
            }
        }
    }

    /// The row whose turn it is.
    pub(super) fn first<'a>(
        &self,
        rows: impl Iterator<Item = Candidate<'a>>,
        policy: SharePolicy,
    ) -> Option<Candidate<'a>> {
        rows.min_by_key(|row| {
            let flow = row.flow;
            let is_behind_p0 = policy == SharePolicy::Hybrid && flow.level != Priority::FIRST;
            let group = self.groups.get(&flow.group).map_or(0, |group| group.counter);
            let level = match policy {
                SharePolicy::Strict => 0,
                SharePolicy::Wfq | SharePolicy::Hybrid => self.level_counter(flow),
            };
            let own = self.flows.get(flow).copied().unwrap_or(0);
            (is_behind_p0, group, &flow.group, level, flow.level, own, &flow.tenant, row.since, row.holder)
        })
    }

    /// Forgets flows that are not ahead of their level's virtual time and do not wait, and keeps counters small. To be
    /// called now and then.
    pub(super) fn sweep<'a>(&mut self, waiting: impl Iterator<Item = &'a FlowName> + Clone) {
        let levels = &self.levels;
        self.flows.retain(|flow, counter| {
            let time = levels.get(&(flow.group.clone(), flow.level)).map_or(0, |level| level.time);
            *counter > time || waiting.clone().any(|other| other == flow)
        });
        for (flow, counter) in &mut self.flows {
            let time = levels.get(&(flow.group.clone(), flow.level)).map_or(0, |level| level.time);
            *counter = rebased(*counter, time);
        }
        for ((group, _), level) in &mut self.levels {
            let time = self.groups.get(group).map_or(0, |group| group.time);
            *level = Storey { counter: rebased(level.counter, time), time: rebased(level.time, level.time) };
        }
        for group in self.groups.values_mut() {
            *group = Storey { counter: rebased(group.counter, self.time), time: rebased(group.time, group.time) };
        }
        self.time = rebased(self.time, self.time);
    }

    fn run_time<'a>(&mut self, flow: &FlowName, terms: &Terms, rivals: impl Iterator<Item = &'a FlowName> + Clone) {
        let group = self.groups.get(&flow.group).copied().unwrap_or_default();
        let level = self.levels.get(&(flow.group.clone(), flow.level)).copied().unwrap_or_default();
        let own = self.flows.get(flow).copied().unwrap_or(0);
        // P0's turn is no matter of counters, so its own says nothing about the others.
        let counted = |level: Priority| !(terms.policy == SharePolicy::Hybrid && level == Priority::FIRST);
        let in_group = rivals.clone().filter(|other| other.group == flow.group);
        let group_counters = rivals.map(|other| self.groups.get(&other.group).map_or(0, |group| group.counter));
        let level_counters =
            in_group.clone().filter(|other| counted(other.level)).map(|other| self.level_counter(other));
        let at_level = in_group.filter(|other| other.level == flow.level);
        let flow_counters = at_level.map(|other| self.flows.get(other).copied().unwrap_or(0));
        let of_groups = group_counters.chain([group.counter]).min().unwrap_or(0);
        let of_levels = level_counters.chain([level.counter]).min().unwrap_or(0);
        let of_flows = flow_counters.chain([own]).min().unwrap_or(0);
        self.time = self.time.max(of_groups);
        if counted(flow.level) {
            let group = self.groups.entry(flow.group.clone()).or_default();
            group.time = group.time.max(of_levels);
        }
        let level = self.levels.entry((flow.group.clone(), flow.level)).or_default();
        level.time = level.time.max(of_flows);
    }

    fn adjust(&mut self, flow: &FlowName, weight: u64, terms: &Terms, change: impl Fn(u64, u64) -> u64) {
        let share = terms.groups.get(&flow.group).copied().unwrap_or(1);
        let of_level = terms.levels.get(flow.level.index()).copied().unwrap_or(1);
        let group = self.groups.entry(flow.group.clone()).or_default();
        group.counter = change(group.counter, share);
        let level = self.levels.entry((flow.group.clone(), flow.level)).or_default();
        level.counter = change(level.counter, of_level);
        let own = self.flows.entry(flow.clone()).or_default();
        *own = change(*own, weight);
    }

    fn level_counter(&self, flow: &FlowName) -> u64 {
        self.levels.get(&(flow.group.clone(), flow.level)).map_or(0, |level| level.counter)
    }
}

/// A counter of a storey whose virtual time is `time`; each storey compares among itself only.
fn rebased(counter: u64, time: u64) -> u64 {
    if time >= REBASE_AT { counter.saturating_sub(REBASE_AT / 2) } else { counter }
}

fn scaled(charge: u64, weight: u64) -> u64 {
    (charge.min(MOST_CHARGE) * COUNTER_SCALE).div_ceil(weight.max(1))
}

/// JSON has no maps by pairs.
mod as_pairs {
    use super::Storey;
    use crate::units::{GroupName, Priority};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::BTreeMap;

    type Levels = BTreeMap<(GroupName, Priority), Storey>;

    pub(super) fn serialize<S: Serializer>(levels: &Levels, serializer: S) -> Result<S::Ok, S::Error> {
        levels.iter().collect::<Vec<_>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Levels, D::Error> {
        Ok(Vec::deserialize(deserializer)?.into_iter().collect())
    }
}
