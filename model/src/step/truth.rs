//! What really happened, beside what the ledger and the gates make of it.

use super::Step;
use crate::scene::{LINES, Scene, flow_name, holder_id};
use crate::world::{Letter, Truth, World, is_gone};
use sluice_policy::ledger::{AccountLedger, Limit, MeterReport, SyncRequest};
use sluice_policy::units::{Millis, Tokens};
use std::sync::Arc;

impl Truth {
    pub(super) fn start(&mut self, scene: &Scene, charge: Tokens, now: Millis) {
        let amount = charge.0;
        self.charged = self.charged.saturating_add(i64::try_from(amount).unwrap_or(i64::MAX));
        // Drawn less what has come in, never less than nothing: its peak is the peak over all windows.
        for limit in scene.meters.values() {
            let (gained, scale) = match limit {
                Limit::Rate(rate) => (now.since(self.drawn_at).0.saturating_mul(rate.amount), rate.window.0),
                Limit::Budget { .. } => (0, 1),
            };
            self.burst = self.burst.saturating_sub(gained).saturating_add(amount * scale);
        }
        if !scene.meters.is_empty() {
            self.drawn_at = now;
        }
    }

    /// A call has reached the ledger that it had not heard before.
    pub(super) fn tell(&mut self, gate: usize, request: &SyncRequest) {
        for spent in &request.spent {
            let line = (0..LINES).find(|line| flow_name(*line) == spent.flow).unwrap_or(LINES);
            if self.batches.insert((gate, request.incarnation, spent.seq, line)) {
                self.counted = self.counted.saturating_add(spent.charge);
            }
        }
        let sum = |part: fn(&MeterReport) -> i64| request.meters.values().map(part).sum::<i64>();
        let (drawn, counted) = (sum(|report| report.drawn), sum(|report| report.counted));
        let before = self.draws.insert(gate, (request.incarnation, drawn));
        let before = before.filter(|(incarnation, _)| *incarnation == request.incarnation);
        self.told += drawn - before.map_or(counted, |(_, drawn)| drawn);
    }
}

/// Forgets charges that nobody will tell again.
pub(super) fn forget_batches(world: &mut World) {
    let is_told_again = |(gate, incarnation, seq, _): &(usize, u64, u64, usize)| {
        let of_gate = world.gates.get(*gate);
        of_gate.is_some_and(|gate| gate.incarnation == *incarnation && *seq > gate.told.answered)
            || world.letters.iter().any(|letter| match &**letter {
                Letter::Request(from, request) => from == gate && request.spent.iter().any(|spent| spent.seq == *seq),
                _ => false,
            })
    };
    if world.truth.batches.iter().all(is_told_again) {
        return;
    }
    let batches = world.truth.batches.iter().filter(|batch| is_told_again(batch)).copied().collect();
    Arc::make_mut(&mut world.truth).batches = batches;
}

/// What the ledger forgets with a holder that was silent for long, or that has started anew: what it was lent comes back,
/// and what it tells once more counts once more.
pub(super) fn forget_holders(world: &mut World, before: &AccountLedger) {
    for (gate, holder) in (0..world.gates.len()).map(|gate| (gate, holder_id(gate))) {
        if !is_gone(&holder, before, &world.ledger) {
            continue;
        }
        let truth = Arc::make_mut(&mut world.truth);
        truth.inherited += before.lent_to(&holder);
        if world.ledger.latest_number(&holder).is_none() {
            truth.batches.retain(|(of, ..)| *of != gate);
            truth.draws.remove(&gate);
        }
    }
}

impl Step<'_> {
    pub(super) fn raise_bound(&self, before: &World, world: &mut World) {
        let capacity = world.ledger.capacity().max(before.ledger.capacity());
        let fits = world.ledger.granted() + world.ledger.zombies() <= world.ledger.capacity()
            && world.running() <= usize::try_from(world.ledger.capacity()).unwrap_or(usize::MAX);
        if fits && world.ledger.capacity() > 0 {
            world.bound = world.ledger.capacity();
        } else {
            world.bound = world.bound.max(capacity);
        }
    }
}
