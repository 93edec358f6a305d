//! What must hold in every state.

use crate::mutant;
use crate::scene::{Scene, holder_id};
use crate::world::World;
use sluice_policy::ledger::Limit;

/// An invariant: its name, and whether a world keeps it.
pub(crate) struct Invariant {
    pub name: &'static str,
    pub holds: fn(&Scene, &World) -> bool,
}

/// What is not of a moment, but of what follows.
pub(crate) const PROGRESS: &str = "I8: within a few steps every free slot is in use while anybody waits";

pub(crate) const INVARIANTS: [Invariant; 7] = [
    Invariant { name: "I1: what runs, orphans included, fits the capacity", holds: running_fits },
    Invariant { name: "I1: what is granted, zombies included, fits the capacity", holds: granted_fits },
    Invariant { name: "I1: a holder uses no more than it was granted", holds: holds_what_is_granted },
    Invariant { name: "I2: no window draws more than burst, rate, what was lent and one call", holds: draws_fit },
    Invariant { name: "I2: the ledger takes every draw once", holds: draws_are_taken_once },
    Invariant { name: "I6: every charge is counted once", holds: charges_are_counted_once },
    Invariant { name: "whoever was told that others wait starts only in turn", holds: starts_in_turn },
];

/// Largest of the capacities in force since those calls started.
fn running_fits(_: &Scene, world: &World) -> bool {
    world.server.is_excused || world.running() <= usize::try_from(world.bound).unwrap_or(usize::MAX)
}

fn granted_fits(scene: &Scene, world: &World) -> bool {
    scene.can_forget() || world.ledger.granted() + world.ledger.zombies() <= world.bound
}

fn holds_what_is_granted(scene: &Scene, world: &World) -> bool {
    scene.can_forget()
        || world.gates.iter().enumerate().all(|(index, gate)| {
            let now = mutant::clock(scene.mutant, gate, world.now);
            let usable = gate.holder.as_ref().map_or(0, |holder| holder.usable(now));
            usable <= world.ledger.granted_to(&holder_id(index))
        })
}

fn draws_fit(scene: &Scene, world: &World) -> bool {
    scene.can_forget()
        || scene.meters.values().all(|limit| {
            let largest = scene.charge.0;
            let most = match limit {
                // Lent at most: a part of the burst, and what the calls draw that were given slots.
                Limit::Rate(rate) => {
                    let lent = rate.burst / 4 + u64::from(scene.most_slots()) * largest;
                    (rate.burst + lent + largest + world.truth.inherited) * rate.window.0
                }
                Limit::Budget { amount, .. } => *amount + world.truth.inherited,
            };
            world.truth.burst <= most
        })
}

/// What a budget lacks is what was told of draws, lent or not.
fn draws_are_taken_once(scene: &Scene, world: &World) -> bool {
    scene.meters.iter().all(|(name, limit)| match limit {
        Limit::Budget { amount, .. } => {
            let amount = i64::try_from(*amount).unwrap_or(i64::MAX);
            world.ledger.left(*name, world.server.clock).is_none_or(|left| amount - left == world.truth.told)
        }
        Limit::Rate(_) => true,
    })
}

fn charges_are_counted_once(scene: &Scene, world: &World) -> bool {
    let (spent, truth) = (world.ledger.spent(), &world.truth);
    if scene.can_forget() { spent <= truth.counted } else { spent == truth.counted }
}

fn starts_in_turn(_: &Scene, world: &World) -> bool {
    world.gates.iter().all(|gate| !gate.told.out_of_turn)
}
