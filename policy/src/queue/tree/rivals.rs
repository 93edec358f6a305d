//! Which of a tenant's flows compete. Where levels share by weight, a tenant that waits at several levels of a group would
//! get the share of each; so only its best one competes, and its other calls stand behind it. What has no part in the
//! sharing is exempt: P0 under `hybrid`, and every level under `strict`, where the better one goes first anyway.
//!
//! That alone leaves a gap: who sends the next call at another level whenever one has started would get the share of both.
//! So a start counts at the better levels that its tenant uses too, as if the call had been sent there: at the tenant's
//! own counter where others compete, at the level's where none does. It counts up to a bound, or a night at a level where
//! nobody else waits would have to be paid for in the morning.

use super::{FlowIndex, Leaf, Tree, scaled};
use crate::queue::{Flow, SharePolicy};
use crate::units::{Priority, Tokens};

/// Calls like the one that starts: what a tenant has had at lower levels puts it no further behind at a better one.
pub(crate) const MOST_BEHIND: u32 = 16;

impl SharePolicy {
    /// Whether a level shares with others by its weight.
    pub(crate) fn shares_level(self, level: Priority) -> bool {
        match self {
            SharePolicy::Strict => false,
            SharePolicy::Wfq => true,
            SharePolicy::Hybrid => level != Priority::FIRST,
        }
    }

    /// Whether a flow stands behind another one of its tenant while calls wait there.
    pub(super) fn puts_behind(self, flow: Flow, other: Flow) -> bool {
        let is_own = (other.tenant, other.group) == (flow.tenant, flow.group);
        is_own && other.level < flow.level && self.shares_level(flow.level) && self.shares_level(other.level)
    }
}

impl Tree {
    pub(super) fn competes(&self, index: FlowIndex) -> bool {
        let Some(leaf) = self.leaf(index) else { return false };
        let group = self.groups.get(usize::from(leaf.flow.group.0));
        let level = group.and_then(|group| group.levels.get(leaf.flow.level.index()));
        level.is_some_and(|level| level.order.has(leaf.seat))
    }

    /// A flow has its first waiter, or has none any more: one of its tenant's flows may compete now, another may not. What
    /// competes now comes first, so that the branches that both stand below stay awake.
    pub(super) fn settle_rivals(&mut self, index: FlowIndex, flow: Flow) {
        if !self.shares.policy.shares_level(flow.level) {
            return match self.waits(index) {
                true => self.enter(index),
                false => self.withdraw(index),
            };
        }
        let best = self.best_flow(flow);
        if let Some(best) = best {
            self.enter(best);
        }
        let mut next = self.newest_of(flow.tenant);
        while let Some((own, leaf)) = next.and_then(|own| Some((own, self.leaf(own)?))) {
            next = leaf.sibling;
            let is_rival = leaf.flow.group == flow.group && self.shares.policy.shares_level(leaf.flow.level);
            if is_rival && Some(own) != best {
                self.withdraw(own);
            }
        }
    }

    /// A call has started, or has cost more than was known.
    pub(super) fn charge_better(&mut self, index: FlowIndex, charge: Tokens) {
        self.adjust_better(index, |counter, time, weight| {
            let (charge, most) = (scaled(charge, weight), u128::from(MOST_BEHIND));
            let counter = counter.max(time);
            counter.max(counter.saturating_add(charge).min(time.saturating_add(charge.saturating_mul(most))))
        });
    }

    /// A call has cost less than it was charged; what is not ahead of its storey's virtual time stays.
    pub(super) fn uncharge_better(&mut self, index: FlowIndex, charge: Tokens) {
        self.adjust_better(index, |counter, time, weight| {
            counter.saturating_sub(scaled(charge, weight)).max(counter.min(time))
        });
    }

    /// Changes the counters of the better levels that a flow's tenant has used, each beside its storey's virtual time.
    fn adjust_better(&mut self, index: FlowIndex, change: impl Fn(u128, u128, u32) -> u128) {
        let Some(flow) = self.leaf(index).map(|leaf| leaf.flow) else { return };
        let mut next = self.newest_of(flow.tenant);
        while let Some((own, leaf)) = next.and_then(|own| Some((own, self.leaf(own)?))) {
            next = leaf.sibling;
            if leaf.counter > 0 && self.shares.policy.puts_behind(flow, leaf.flow) {
                let leaf = leaf.clone();
                self.adjust_one(own, &leaf, &change);
            }
        }
    }

    fn adjust_one(&mut self, index: FlowIndex, leaf: &Leaf, change: &impl Fn(u128, u128, u32) -> u128) {
        let of_level = self.level_weight(leaf.flow.level);
        let Some(group) = self.groups.get_mut(usize::from(leaf.flow.group.0)) else { return };
        let time = group.time;
        let Some(level) = group.levels.get_mut(leaf.flow.level.index()) else { return };
        let competes = level.order.has(leaf.seat);
        if level.order.len() == u32::from(competes) {
            level.counter = change(level.counter, time, of_level);
            return;
        }
        let counter = change(leaf.counter, level.time, leaf.weight);
        if competes {
            level.order.set(leaf.seat, counter);
        }
        if let Some(leaf) = super::leaf_mut(&mut self.leaves, index) {
            leaf.counter = counter;
        }
    }

    /// Levels share by another rule.
    pub(super) fn settle_rivals_anew(&mut self) {
        let leaves = (0..).map(FlowIndex).zip(&self.leaves).filter(|(_, leaf)| leaf.line.len > 0);
        let waiting: Vec<(FlowIndex, Flow)> = leaves.map(|(index, leaf)| (index, leaf.flow)).collect();
        for (index, flow) in waiting {
            self.settle_rivals(index, flow);
        }
    }

    /// The flow at the best level that its tenant waits at in its group.
    fn best_flow(&self, flow: Flow) -> Option<FlowIndex> {
        let own = std::iter::successors(self.newest_of(flow.tenant), |index| self.leaf(*index)?.sibling);
        let rivals = own.filter_map(|index| Some((self.leaf(index)?, index))).filter(|(leaf, _)| {
            leaf.line.len > 0 && leaf.flow.group == flow.group && self.shares.policy.shares_level(leaf.flow.level)
        });
        rivals.min_by_key(|(leaf, _)| leaf.flow.level).map(|(_, index)| index)
    }

    /// A flow competes from now on.
    fn enter(&mut self, index: FlowIndex) {
        let Some(flow) = self.leaf(index).map(|leaf| leaf.flow).filter(|_| !self.competes(index)) else { return };
        self.lift(index, flow);
        let Some((seat, counter)) = self.leaf(index).map(|leaf| (leaf.seat, leaf.counter)) else { return };
        if let Some(level) = self.level_mut(flow) {
            level.order.set(seat, counter);
            level.behind.remove(&index);
        }
    }

    /// A flow does not compete: nobody waits in it, or its tenant waits at a better level.
    fn withdraw(&mut self, index: FlowIndex) {
        let (waits, competes) = (self.waits(index), self.competes(index));
        let Some((seat, flow)) = self.leaf(index).map(|leaf| (leaf.seat, leaf.flow)) else { return };
        let Some(level) = self.level_mut(flow) else { return };
        if competes {
            level.order.leave(seat);
        }
        match waits {
            true => drop(level.behind.insert(index)),
            false => drop(level.behind.remove(&index)),
        }
    }

    fn waits(&self, index: FlowIndex) -> bool {
        self.line(index).is_some_and(|line| line.len > 0)
    }
}
