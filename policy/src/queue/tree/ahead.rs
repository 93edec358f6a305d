//! What starts before a newcomer: the walk down the tree, followed forward without taking its steps.
//!
//! A branch beside the newcomer's starts calls until its counter is past the one that the newcomer's branch will have
//! when its turn comes. That is exact for calls of one size that cost what they are charged; of its own level it knows
//! how many tenants wait and not how far each has come, so there it supposes that they have what the newcomer has.

use super::{COUNTER_SCALE, Group, Level, Tree, scaled};
use crate::queue::{Flow, SharePolicy};
use crate::units::{Priority, Tokens};

/// Waiting calls, and what their starts will be charged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    pub calls: u64,
    pub charge: Tokens,
}

/// A flow as a newcomer finds it. By itself, because a leaf is far from the processor: whoever asks for it early and for
/// what it means later does not wait for it.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    flow: Flow,
    counter: u128,
    weight: u32,
    waiting: Ahead,
    /// Calls of its tenant that it stands behind, at better levels.
    own_before: Ahead,
}

impl Ahead {
    fn plus(self, other: Self) -> Self {
        Self { calls: self.calls.saturating_add(other.calls), charge: self.charge.plus(other.charge) }
    }

    fn without(self, other: Self) -> Self {
        let charge = Tokens(self.charge.0.saturating_sub(other.charge.0));
        Self { calls: self.calls.saturating_sub(other.calls), charge }
    }

    /// The first so many of these, all of the same size.
    fn first(self, calls: u64) -> Self {
        if calls >= self.calls { self } else { Self { calls, charge: Tokens(self.average().saturating_mul(calls)) } }
    }

    /// Weighted tokens of one of them, at least 1.
    fn average(self) -> u64 {
        (self.charge.0 / self.calls.max(1)).max(1)
    }

    /// Those of a branch at `counter` that start until it is past `until`: the last one when it just stands there.
    fn until(self, until: u128, counter: u128, weight: u32) -> Self {
        if self.calls == 0 || counter > until {
            return Self::default();
        }
        match u64::try_from(tokens_between(counter, until, weight)) {
            Ok(tokens) if tokens < self.charge.0 => self.first(tokens / self.average() + 1),
            _ => self,
        }
    }
}

/// The charge that moves a counter of this weight from one to the other.
fn tokens_between(counter: u128, until: u128, weight: u32) -> u128 {
    let distance = until - counter;
    // Hardly a distance needs more bits, and the product of two such numbers is one instruction.
    let product = match u64::try_from(distance) {
        Ok(distance) => u128::from(distance) * u128::from(weight),
        Err(_) => distance.saturating_mul(u128::from(weight)),
    };
    product / COUNTER_SCALE
}

impl Level {
    fn pile(&self) -> Ahead {
        Ahead { calls: u64::from(self.waiting), charge: self.charge }
    }
}

impl Group {
    fn pile(&self) -> Ahead {
        Ahead { calls: u64::from(self.waiting), charge: self.charge }
    }

    fn urgent(&self) -> Ahead {
        self.levels.first().map(Level::pile).unwrap_or_default()
    }
}

impl Tree {
    pub(in crate::queue) fn standing(&self, flow: Flow) -> Standing {
        let nothing = Ahead::default();
        let new =
            Standing { flow, counter: 0, weight: self.weight(flow.tenant), waiting: nothing, own_before: nothing };
        let own = std::iter::successors(self.newest_of(flow.tenant), |index| self.leaf(*index)?.sibling);
        own.filter_map(|index| self.leaf(index)).fold(new, |known, leaf| {
            let waiting = Ahead { calls: u64::from(leaf.line.len), charge: leaf.line.charge };
            if leaf.flow == flow {
                Standing { counter: leaf.counter, weight: leaf.weight, waiting, ..known }
            } else if self.shares.policy.puts_behind(flow, leaf.flow) {
                Standing { own_before: known.own_before.plus(waiting), ..known }
            } else {
                known
            }
        })
    }

    /// What starts before a newcomer of a flow, if nobody else comes or leaves.
    pub(in crate::queue) fn ahead(&self, standing: &Standing) -> Ahead {
        let flow = standing.flow;
        let Some(group) = self.groups.get(usize::from(flow.group.0)) else {
            return self.of_other_groups(flow, Ahead::default(), self.time);
        };
        let in_group = self.of_level(standing, group);
        let in_group = in_group.plus(self.of_other_levels(flow, group, in_group));
        let own = standing.own_before;
        let in_group = if in_group.calls < own.calls { own } else { in_group };
        let counter = if group.waiting == 0 { group.counter.max(self.time) } else { group.counter };
        in_group.plus(self.of_other_groups(flow, in_group, counter))
    }

    /// The waiting calls of the newcomer's own flow, and those of the other tenants of its level.
    fn of_level(&self, standing: &Standing, group: &Group) -> Ahead {
        let Standing { flow, counter, weight, waiting: own, .. } = *standing;
        let Some(level) = group.levels.get(flow.level.index()) else { return Ahead::default() };
        let counter = if own.calls == 0 { counter.max(level.time) } else { counter };
        let (until, lowest) = (counter.saturating_add(scaled(own.charge, weight)), level.order.lowest());
        let others = level.pile().without(own);
        if others.calls == 0 || until < lowest {
            return own;
        }
        let flows = u64::from(level.order.len()).saturating_sub(own.calls.min(1));
        let turns = u64::try_from(tokens_between(lowest, until, weight)).unwrap_or(u64::MAX) / others.average();
        // Tenants of one call each stand in the order in which they came; of those with long lines few are as low as a
        // newcomer.
        let beside = flows.saturating_mul(flows).div_ceil(others.calls);
        own.plus(others.first(flows.saturating_mul(turns).saturating_add(beside)))
    }

    fn of_other_levels(&self, flow: Flow, group: &Group, in_level: Ahead) -> Ahead {
        let Some(own) = group.levels.get(flow.level.index()) else { return Ahead::default() };
        let counter = if own.waiting == 0 { own.counter.max(group.time) } else { own.counter };
        let until = counter.saturating_add(scaled(in_level.charge, self.level_weight(flow.level)));
        let is_first = |level: Priority| level == Priority::FIRST && self.shares.policy == SharePolicy::Hybrid;
        let others = Priority::all().zip(&group.levels).filter(|(at, level)| *at != flow.level && level.waiting > 0);
        let before = others.map(|(at, level)| match self.shares.policy {
            SharePolicy::Strict if at < flow.level => level.pile(),
            SharePolicy::Strict => Ahead::default(),
            SharePolicy::Hybrid if is_first(at) => level.pile(),
            SharePolicy::Hybrid if is_first(flow.level) => Ahead::default(),
            SharePolicy::Hybrid | SharePolicy::Wfq => level.pile().until(until, level.counter, self.level_weight(at)),
        });
        before.fold(Ahead::default(), Ahead::plus)
    }

    fn of_other_groups(&self, flow: Flow, in_group: Ahead, counter: u128) -> Ahead {
        let until = counter.saturating_add(scaled(in_group.charge, self.share(usize::from(flow.group.0))));
        let others = self.groups.iter().enumerate();
        let others = others.filter(|(at, group)| *at != usize::from(flow.group.0) && group.waiting > 0);
        let before = others.map(|(at, group)| {
            let by_share = |pile: Ahead| pile.until(until, group.counter, self.share(at));
            if self.shares.policy != SharePolicy::Hybrid {
                by_share(group.pile())
            } else if flow.level == Priority::FIRST {
                by_share(group.urgent())
            } else {
                let (all, urgent) = (by_share(group.pile()), group.urgent());
                if all.calls < urgent.calls { urgent } else { all }
            }
        });
        before.fold(Ahead::default(), Ahead::plus)
    }
}
