//! The first waiters of one level, in the order in which they will start if nobody else comes: the walk down the tree,
//! taken ahead of time, and behind them those that stand behind other calls of their tenant. For those who look, not for
//! decisions.

use super::{FlowIndex, Tree, scaled};
use crate::queue::places::Places;
use crate::queue::{Ticket, Waiter};
use crate::units::Priority;

/// A flow, with the counter and the head that it has once those before have started.
struct Candidate<'p> {
    flow: FlowIndex,
    counter: u128,
    weight: u32,
    head: (Ticket, &'p Waiter),
}

/// A group, likewise.
struct Candidates<'p> {
    counter: u128,
    share: u32,
    flows: Vec<Candidate<'p>>,
}

impl Tree {
    /// At most `most` of them. Costs most × log(flows), and most² more.
    pub(in crate::queue) fn first(&self, level: Priority, most: usize, places: &Places) -> Vec<Waiter> {
        let groups = self.groups.iter().zip(0..).filter_map(|(group, index)| {
            let flows = group.levels.get(level.index())?.order.lowest_first(most);
            let candidate = |flow: FlowIndex| {
                let leaf = self.leaf(flow)?;
                let head = places.first(&leaf.line)?;
                Some(Candidate { flow, counter: leaf.counter, weight: leaf.weight, head })
            };
            let flows = flows.into_iter().filter_map(candidate).collect();
            Some(Candidates { counter: group.counter, share: self.share(index), flows })
        });
        let mut groups: Vec<Candidates<'_>> = groups.collect();
        let next = std::iter::from_fn(|| start_next(&mut groups, places));
        next.chain(self.behind(level, places)).take(most).collect()
    }
}

impl Tree {
    /// Of a level those that stand behind other calls of their tenant, flow by flow.
    fn behind<'p>(&'p self, level: Priority, places: &'p Places) -> impl Iterator<Item = Waiter> + 'p {
        let levels = self.groups.iter().filter_map(move |group| group.levels.get(level.index()));
        let heads = levels.flat_map(|level| &level.behind).filter_map(|index| places.first(&self.leaf(*index)?.line));
        heads.flat_map(|head| {
            let line = std::iter::successors(Some(head), |(ticket, _)| places.behind(*ticket));
            line.map(|(_, waiter)| *waiter)
        })
    }
}

fn start_next<'p>(groups: &mut Vec<Candidates<'p>>, places: &'p Places) -> Option<Waiter> {
    groups.retain(|group| !group.flows.is_empty());
    let group = groups.iter_mut().min_by_key(|group| group.counter)?;
    let (at, next) = group.flows.iter_mut().enumerate().min_by_key(|(_, next)| (next.counter, next.flow))?;
    let (ticket, waiter) = next.head;
    group.counter = group.counter.saturating_add(scaled(waiter.charge, group.share));
    next.counter = next.counter.saturating_add(scaled(waiter.charge, next.weight));
    match places.behind(ticket) {
        Some(behind) => next.head = behind,
        None => drop(group.flows.swap_remove(at)),
    }
    Some(*waiter)
}
