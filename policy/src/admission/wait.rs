//! Where a newcomer would stand, and about how long it would wait.

use super::pool::PoolState;
use crate::queue::{Branch, Flow, GroupIndex, SharePolicy, Shares};
use crate::units::{Millis, Priority};

/// The position from 1 of a newcomer behind so many of its flow and before these branches of the pool's queue, and how
/// long it waits. An estimate: it supposes that nobody else arrives or leaves, that all calls are of one size, and that
/// the pool starts calls at the pace of late.
pub(super) fn place(pool: &PoolState, flow: Flow, ahead: usize, branches: &[Branch]) -> (u64, Millis) {
    let own = branches.iter().find(|branch| branch.group == flow.group && branch.level == flow.level);
    // Inside a level tenants take turns, so a newcomer passes those who stand far back in longer lines.
    let turns = u64::try_from(ahead).unwrap_or(u64::MAX).saturating_add(1);
    let (level_depth, flows) = own.map_or((0, 1), |own| (u64::from(own.waiting), u64::from(own.flows)));
    let ahead_in_level = level_depth.min(turns.saturating_mul(flows.max(1)));
    let shares = pool.queue.shares();
    let (turn, own_weight) = (ahead_in_level + 1, weight(shares, flow.group, flow.level));
    let others: u64 = branches.iter().map(|branch| starts_before(shares, flow, own_weight, turn, branch)).sum();
    let position = ahead_in_level.saturating_add(others).saturating_add(1);
    (position, pool.time_for(position))
}

/// How many calls of another branch start before the `turn`-th of this flow's level does.
fn starts_before(shares: &Shares, flow: Flow, own_weight: u64, turn: u64, other: &Branch) -> u64 {
    let waiting = u64::from(other.waiting);
    if other.group == flow.group && other.level == flow.level {
        return 0;
    }
    let p0_first = shares.policy != SharePolicy::Wfq;
    if p0_first && other.level == Priority::FIRST && flow.level != Priority::FIRST {
        return waiting;
    }
    if p0_first && flow.level == Priority::FIRST && other.level != Priority::FIRST {
        return 0;
    }
    if shares.policy == SharePolicy::Strict && other.group == flow.group {
        return if other.level < flow.level { waiting } else { 0 };
    }
    let starts = turn.saturating_mul(weight(shares, other.group, other.level));
    // As `waiting.min(starts / own_weight)`, but most branches need no division.
    if waiting.saturating_mul(own_weight) <= starts { waiting } else { starts / own_weight }
}

/// What a level of a group counts for: at most a million by a million, at least 1.
fn weight(shares: &Shares, group: GroupIndex, level: Priority) -> u64 {
    let share = shares.groups.get(usize::from(group.0)).copied().unwrap_or(1);
    let level = shares.levels.get(level.index()).copied().unwrap_or(1);
    share.saturating_mul(level).max(1)
}
