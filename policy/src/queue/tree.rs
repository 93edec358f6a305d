//! The tree of virtual counters: group, level, tenant.
//!
//! A counter is what a branch has been charged, divided by its weight. The branch with the smallest one is next. A
//! counter only ever moves by what was charged or corrected, and up to its storey's virtual time when it wakes: there
//! is no clamp that could forget a debt. (With one, weights collapse into strict order as soon as a request is larger
//! than what the clamp allows.)
//!
//! Virtual time is the counter of what started last, whether it had waited or not. So who comes back from idle cannot
//! claim the past, and who had the pool to itself for a night is not punished for it in the morning.
//!
//! Scaled by 2^20, a charge of one token still moves the counter of the largest weight, and 128 bits hold 10^12
//! requests of 10^12 tokens at weight 1.
//!
//! Of a tenant's flows in a group only the one at its best level *competes* (`tree/rivals.rs`). A branch is idle while no
//! flow below it competes, whatever waits there.

mod ahead;
mod first;
mod rivals;

pub use ahead::{Ahead, Standing};
pub(crate) use rivals::MOST_BEHIND;

use super::order::{Order, Seat};
use super::places::Line;
use super::{Flow, GroupIndex, SharePolicy, Shares, TenantIndex};
use crate::units::{Priority, Tokens};
use std::collections::{BTreeMap, BTreeSet};

const COUNTER_SCALE: u128 = 1 << 20;

/// A flow by its place in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FlowIndex(pub(super) u32);

/// One tenant at one level of its group. It outlives its waiters, to remember what it has had.
///
/// Aligned to a cache line, which it fills: of ten thousand tenants' leaves none is near, and each is one wait.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Leaf {
    counter: u128,
    weight: u32,
    flow: Flow,
    line: Line,
    seat: Seat,
    /// The same tenant's leaf before this one, at another level or in another group.
    sibling: Option<FlowIndex>,
}

const _: () = assert!(size_of::<Leaf>() == 64);

#[derive(Clone, Debug, Default)]
struct Level {
    counter: u128,
    /// The virtual time of its flows.
    time: u128,
    waiting: u32,
    /// Of those who wait.
    charge: Tokens,
    /// Flows that compete, by counter.
    order: Order,
    /// Flows that have waiters and stand behind others of their tenant.
    behind: BTreeSet<FlowIndex>,
}

#[derive(Clone, Debug, Default)]
struct Group {
    counter: u128,
    /// The virtual time of its levels.
    time: u128,
    waiting: u32,
    charge: Tokens,
    levels: [Level; Priority::COUNT],
}

/// Invariants: `waiting` and `charge` are the sums over the branches below; a leaf whose line is not empty is either in its
/// level's `order`, under the counter it has, or in its `behind`, where its tenant waits at a better level of the group.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    shares: Shares,
    /// The virtual time of the groups: the counter of the last one that started something.
    time: u128,
    groups: Vec<Group>,
    leaves: Vec<Leaf>,
    /// Each tenant's newest leaf; its others follow as siblings. Tenants call at few levels.
    by_tenant: Vec<Option<FlowIndex>>,
    /// Tenants that have another weight than 1.
    weights: BTreeMap<TenantIndex, u32>,
}

/// A level of a group that has waiters. Counters are charged tokens per weight, up to what 64 bits hold. Ten of these
/// are kept for every call that waited lately, so they are no larger than they must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    pub group: GroupIndex,
    pub level: Priority,
    pub waiting: u32,
    /// Tenants that compete at it: others wait at a better level, too.
    pub flows: u32,
    pub group_counter: u64,
    pub level_counter: u64,
}

/// The weights that a call was charged by: its correction goes by them, for a weight that changes in between must neither
/// give anybody credit nor take it. Narrow, because every running call keeps them: configured weights end at 10^6, and
/// adapted ones, in hundredths, at 10^9.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChargedBy {
    group: u32,
    level: u32,
    tenant: u32,
}

impl ChargedBy {
    /// The tenant's weight beside others of its level.
    #[must_use]
    pub fn tenant(self) -> u64 {
        u64::from(self.tenant)
    }
}

impl Tree {
    pub(super) fn new(shares: Shares) -> Self {
        Self {
            shares,
            time: 0,
            groups: Vec::new(),
            leaves: Vec::new(),
            by_tenant: Vec::new(),
            weights: BTreeMap::new(),
        }
    }

    pub(super) fn shares(&self) -> &Shares {
        &self.shares
    }

    /// From now on charges count by these weights. What was charged before stays as it was counted.
    pub(super) fn set_shares(&mut self, shares: Shares) {
        let is_other_rule = shares.policy != self.shares.policy;
        self.shares = shares;
        if is_other_rule {
            self.settle_rivals_anew();
        }
    }

    /// A tenant's weight counts at every level it calls at.
    pub(super) fn set_weight(&mut self, tenant: TenantIndex, weight: u64) {
        let weight = narrow(weight).max(1);
        if weight == self.weight(tenant) {
            return;
        }
        self.weights.insert(tenant, weight);
        let mut own = self.by_tenant.get(at(tenant.0)).copied().flatten();
        while let Some(leaf) = own.and_then(|index| leaf_mut(&mut self.leaves, index)) {
            leaf.weight = weight;
            own = leaf.sibling;
        }
    }

    pub(super) fn find(&self, flow: Flow) -> Option<FlowIndex> {
        let mut own = std::iter::successors(self.newest_of(flow.tenant), |index| self.leaf(*index)?.sibling);
        own.find(|index| self.leaf(*index).is_some_and(|leaf| leaf.flow == flow))
    }

    pub(super) fn knows(&self, tenant: TenantIndex) -> bool {
        self.newest_of(tenant).is_some()
    }

    /// The tenant's leaf that was made last; its others follow as siblings.
    fn newest_of(&self, tenant: TenantIndex) -> Option<FlowIndex> {
        self.by_tenant.get(at(tenant.0)).copied().flatten()
    }

    /// Adds the branches that have waiters to a list.
    pub(super) fn list_branches(&self, list: &mut Vec<Branch>) {
        for (index, group) in (0..).map(GroupIndex).zip(&self.groups).filter(|(_, group)| group.waiting > 0) {
            let group_counter = unscaled(group.counter);
            let levels = Priority::all().zip(&group.levels).filter(|(_, level)| level.waiting > 0);
            list.extend(levels.map(|(at, level)| Branch {
                group: index,
                level: at,
                waiting: level.waiting,
                flows: level.order.len(),
                group_counter,
                level_counter: unscaled(level.counter),
            }));
        }
    }

    pub(super) fn weight(&self, tenant: TenantIndex) -> u32 {
        self.weights.get(&tenant).copied().unwrap_or(1)
    }

    /// The leaf of a flow, made when it is new.
    pub(super) fn index(&mut self, flow: Flow) -> FlowIndex {
        self.find(flow).unwrap_or_else(|| self.grow(flow))
    }

    fn grow(&mut self, flow: Flow) -> FlowIndex {
        let (group, tenant) = (usize::from(flow.group.0), at(flow.tenant.0));
        if self.groups.len() <= group {
            self.groups.resize_with(group + 1, Group::default);
        }
        if self.by_tenant.len() <= tenant {
            self.by_tenant.resize(tenant + 1, None);
        }
        let index = FlowIndex(u32::try_from(self.leaves.len()).unwrap_or(u32::MAX));
        let weight = self.weight(flow.tenant);
        let seat = self.level_mut(flow).map(|level| level.order.take_seat(index)).unwrap_or_default();
        let sibling = self.by_tenant.get_mut(tenant).and_then(|newest| newest.replace(index));
        self.leaves.push(Leaf { counter: 0, weight, flow, line: Line::default(), seat, sibling });
        index
    }

    pub(super) fn line(&self, index: FlowIndex) -> Option<&Line> {
        Some(&self.leaf(index)?.line)
    }

    /// Changes a flow's line, and with it what is active.
    pub(super) fn change_line<R>(&mut self, index: FlowIndex, change: impl FnOnce(&mut Line) -> R) -> Option<R> {
        let leaf = self.leaf_mut(index)?;
        let before = leaf.line;
        let result = change(&mut leaf.line);
        let (flow, after) = (leaf.flow, leaf.line);
        self.count(flow, before, after);
        if (before.len == 0) != (after.len == 0) {
            self.settle_rivals(index, flow);
        }
        Some(result)
    }

    /// A call of this flow starts: every branch above it is charged, by the weights that are returned.
    pub(super) fn charge(&mut self, index: FlowIndex, charge: Tokens) -> ChargedBy {
        if let Some(flow) = self.leaf(index).map(|leaf| leaf.flow) {
            self.lift(index, flow);
            self.run_time(index, flow);
        }
        let by = self.charged_by(index);
        self.adjust(index, by, |counter, weight| counter.saturating_add(scaled(charge, weight)));
        self.charge_better(index, charge);
        by
    }

    /// A call settled for `actual` where `reserved` had been charged by these weights.
    pub(super) fn correct(&mut self, index: FlowIndex, by: ChargedBy, reserved: Tokens, actual: Tokens) {
        self.adjust(index, by, |counter, weight| {
            counter.saturating_add(scaled(actual, weight)).saturating_sub(scaled(reserved, weight))
        });
        match actual.0.checked_sub(reserved.0) {
            Some(more) => self.charge_better(index, Tokens(more)),
            None => self.uncharge_better(index, Tokens(reserved.0 - actual.0)),
        }
    }

    /// The flow whose turn it is.
    pub(super) fn next(&self) -> Option<FlowIndex> {
        let (group, level) = self.next_level()?;
        group.levels.get(level.index())?.order.first()
    }

    /// What everyone who waits will be charged.
    pub(super) fn waiting_charge(&self) -> Tokens {
        self.groups.iter().fold(Tokens::ZERO, |sum, group| sum.plus(group.charge))
    }

    /// The flow whose turn it is, then the first flows that compete at every level, the very first ones of all levels
    /// before the second ones, then those that stand behind others of their tenant.
    pub(super) fn first_flows(&self, most: usize) -> Vec<FlowIndex> {
        let next = self.next();
        let levels = || self.groups.iter().flat_map(|group| &group.levels).filter(|level| level.waiting > 0);
        let of_levels: Vec<Vec<FlowIndex>> = levels().map(|level| level.order.lowest_first(most)).collect();
        let ranks = 0..of_levels.iter().map(Vec::len).max().unwrap_or(0);
        let by_rank = ranks.flat_map(|rank| of_levels.iter().filter_map(move |flows| flows.get(rank).copied()));
        let behind = levels().flat_map(|level| level.behind.iter().copied());
        next.into_iter().chain(by_rank.filter(|flow| Some(*flow) != next)).chain(behind).take(most).collect()
    }

    /// A flow, and what it weighs beside others of its level.
    pub(super) fn flow(&self, index: FlowIndex) -> Option<(Flow, u64)> {
        self.leaf(index).map(|leaf| (leaf.flow, u64::from(leaf.weight)))
    }

    /// Waiting calls of one level, over all groups.
    pub(super) fn depth(&self, level: Priority) -> usize {
        self.groups.iter().filter_map(|group| group.levels.get(level.index())).map(|level| at(level.waiting)).sum()
    }

    fn next_level(&self) -> Option<(&Group, Priority)> {
        if self.shares.policy == SharePolicy::Hybrid
            && let Some(group) = self.first_group(|group| group.competes_at(Priority::FIRST))
        {
            return Some((group, Priority::FIRST));
        }
        let group = self.first_group(|group| group.waiting > 0)?;
        let mut rivals = Priority::all().filter(|level| group.competes_at(*level));
        let level = match self.shares.policy {
            SharePolicy::Strict => rivals.next(),
            SharePolicy::Wfq | SharePolicy::Hybrid => rivals.min_by_key(|level| group.counter_at(*level)),
        };
        Some((group, level?))
    }

    fn first_group(&self, eligible: impl Fn(&Group) -> bool) -> Option<&Group> {
        self.groups.iter().filter(|group| eligible(group)).min_by_key(|group| group.counter)
    }

    /// Lifts what is idle of a flow's branches to its storey's virtual time, so that nobody claims the past.
    fn lift(&mut self, index: FlowIndex, flow: Flow) {
        let is_idle = !self.competes(index);
        let time = self.time;
        let Some(group) = self.groups.get_mut(usize::from(flow.group.0)) else { return };
        if !group.competes() {
            group.counter = group.counter.max(time);
        }
        let time = group.time;
        let Some(level) = group.levels.get_mut(flow.level.index()) else { return };
        if !level.competes() {
            level.counter = level.counter.max(time);
        }
        let time = level.time;
        if is_idle && let Some(leaf) = leaf_mut(&mut self.leaves, index) {
            leaf.counter = leaf.counter.max(time);
        }
    }

    /// Virtual time runs with the starts: to the counter of what starts, but not past anyone who waits.
    fn run_time(&mut self, index: FlowIndex, flow: Flow) {
        let waiting = lowest(self.groups.iter().filter(|group| group.competes()).map(|group| group.counter));
        let leaf = self.leaf(index).map_or(0, |leaf| leaf.counter);
        let p0_first = self.shares.policy == SharePolicy::Hybrid;
        let Some(group) = self.groups.get_mut(usize::from(flow.group.0)) else { return };
        self.time = self.time.max(group.counter.min(waiting));
        // P0's turn is no matter of counters, so its own says nothing about the others.
        let counted = |level: Priority| !(p0_first && level == Priority::FIRST);
        let levels = Priority::all().zip(&group.levels);
        let waiting =
            lowest(levels.filter(|(at, level)| counted(*at) && level.competes()).map(|(_, level)| level.counter));
        let Some(level) = group.levels.get_mut(flow.level.index()) else { return };
        if counted(flow.level) {
            group.time = group.time.max(level.counter.min(waiting));
        }
        level.time = level.time.max(leaf.min(level.order.lowest()));
    }

    fn count(&mut self, flow: Flow, before: Line, after: Line) {
        let change = |waiting: &mut u32, charge: &mut Tokens| {
            *waiting = waiting.saturating_add(after.len).saturating_sub(before.len);
            *charge = Tokens(charge.plus(after.charge).0.saturating_sub(before.charge.0));
        };
        if let Some(group) = self.groups.get_mut(usize::from(flow.group.0)) {
            change(&mut group.waiting, &mut group.charge);
            if let Some(level) = group.levels.get_mut(flow.level.index()) {
                change(&mut level.waiting, &mut level.charge);
            }
        }
    }

    /// The weights in force.
    fn charged_by(&self, index: FlowIndex) -> ChargedBy {
        let Some(leaf) = self.leaf(index) else { return ChargedBy { group: 1, level: 1, tenant: 1 } };
        let group = self.share(usize::from(leaf.flow.group.0));
        ChargedBy { group, level: self.level_weight(leaf.flow.level), tenant: leaf.weight }
    }

    fn share(&self, group: usize) -> u32 {
        narrow(self.shares.groups.get(group).copied().unwrap_or(1))
    }

    fn level_weight(&self, level: Priority) -> u32 {
        narrow(self.shares.levels.get(level.index()).copied().unwrap_or(1))
    }

    fn adjust(&mut self, index: FlowIndex, by: ChargedBy, change: impl Fn(u128, u32) -> u128) {
        let Some(leaf) = leaf_mut(&mut self.leaves, index) else { return };
        let flow = leaf.flow;
        let Some(group) = self.groups.get_mut(usize::from(flow.group.0)) else { return };
        group.counter = change(group.counter, by.group);
        let Some(level) = group.levels.get_mut(flow.level.index()) else { return };
        level.counter = change(level.counter, by.level);
        leaf.counter = change(leaf.counter, by.tenant);
        if level.order.has(leaf.seat) {
            level.order.set(leaf.seat, leaf.counter);
        }
    }

    fn leaf(&self, index: FlowIndex) -> Option<&Leaf> {
        self.leaves.get(at(index.0))
    }

    fn leaf_mut(&mut self, index: FlowIndex) -> Option<&mut Leaf> {
        leaf_mut(&mut self.leaves, index)
    }

    fn level_mut(&mut self, flow: Flow) -> Option<&mut Level> {
        self.groups.get_mut(usize::from(flow.group.0))?.levels.get_mut(flow.level.index())
    }
}

impl Level {
    fn competes(&self) -> bool {
        self.order.len() > 0
    }
}

impl Group {
    /// Somebody competes here exactly when somebody waits here.
    fn competes(&self) -> bool {
        self.levels.iter().any(Level::competes)
    }

    fn competes_at(&self, level: Priority) -> bool {
        self.levels.get(level.index()).is_some_and(Level::competes)
    }

    fn counter_at(&self, level: Priority) -> u128 {
        self.levels.get(level.index()).map_or(u128::MAX, |level| level.counter)
    }
}

fn leaf_mut(leaves: &mut [Leaf], index: FlowIndex) -> Option<&mut Leaf> {
    leaves.get_mut(at(index.0))
}

fn at(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

fn lowest(counters: impl Iterator<Item = u128>) -> u128 {
    counters.min().unwrap_or(u128::MAX)
}

fn unscaled(counter: u128) -> u64 {
    u64::try_from(counter / COUNTER_SCALE).unwrap_or(u64::MAX)
}

fn narrow(weight: u64) -> u32 {
    u32::try_from(weight).unwrap_or(u32::MAX)
}

fn scaled(charge: Tokens, weight: u32) -> u128 {
    let (charge, weight) = (u128::from(charge.0) * COUNTER_SCALE, u64::from(weight.max(1)));
    // A charge below 2^44 tokens is divided in 64 bits, which takes a fraction of the time.
    match u64::try_from(charge) {
        Ok(charge) => u128::from(charge / weight),
        Err(_) => charge / u128::from(weight),
    }
}
