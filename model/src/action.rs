//! What may happen next.

use crate::scene::{LINES, Scene};
use crate::world::{Gate, Letter, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Time passes: one step.
    Pass,
    /// A caller turns up at a gate, in a line.
    Arrive(usize, usize),
    /// One that waits leaves.
    Leave(usize, usize),
    /// The oldest call of a gate ends.
    End(usize),
    /// It waits no longer for the answer.
    TimeOut(usize),
    /// The letter at this place arrives.
    Deliver(usize),
    /// It arrives and will arrive again.
    DeliverCopy(usize),
    /// A gate takes over the next configuration.
    Reload(usize),
    Crash(usize),
    Restart(usize),
    /// The replica that would take over catches up with the ledger.
    CatchUp,
    /// It takes over.
    FailOver,
    /// The server of before answers again.
    FailBack,
    /// The ledger loses everything.
    Flush,
    /// A gate hears of the new server by another account.
    Hear(usize),
    /// The server's clock jumps ahead.
    JumpAhead,
    /// The server's clock jumps back.
    JumpBack,
}

impl Action {
    /// All that may happen in a world, in a fixed order.
    pub(crate) fn all(world: &World, scene: &Scene, actions: &mut Vec<Action>) {
        if world.left.passes > 0 {
            actions.push(Action::Pass);
        }
        of_server(world, scene, actions);
        for (index, gate) in world.gates.iter().enumerate() {
            of_gate(index, gate, world, scene, actions);
        }
        for (index, letter) in world.letters.iter().enumerate() {
            // Of two letters that read the same it does not matter which arrives.
            if world.letters.iter().take(index).any(|earlier| earlier == letter) {
                continue;
            }
            actions.push(Action::Deliver(index));
            if world.left.copies > 0 && !matches!(**letter, Letter::Booking(..)) {
                actions.push(Action::DeliverCopy(index));
            }
        }
    }
}

fn of_server(world: &World, scene: &Scene, actions: &mut Vec<Action>) {
    if world.left.failovers > 0 {
        if world.left.catch_ups > 0 && world.server.replica.as_ref() != Some(&world.ledger) {
            actions.push(Action::CatchUp);
        }
        if world.server.replica.is_some() {
            actions.push(Action::FailOver);
        }
    }
    if world.left.failbacks > 0 && world.all_heard_since_failover() {
        actions.push(Action::FailBack);
    }
    // Who died within the longest call before the ledger lost everything is forgotten: so much is said in the docs.
    if world.left.flushes > 0 && world.orphans.is_empty() && world.ledger.zombies() == 0 {
        actions.push(Action::Flush);
    }
    if world.left.jumps > 0 && scene.most.jumps > 0 {
        actions.extend([Action::JumpAhead, Action::JumpBack]);
    }
}

fn of_gate(index: usize, gate: &Gate, world: &World, scene: &Scene, actions: &mut Vec<Action>) {
    if gate.holder.is_none() {
        actions.push(Action::Restart(index));
        return;
    }
    for line in 0..LINES {
        let waiting = gate.waiting.get(line).copied().unwrap_or(0);
        let room = scene.gates.get(index).and_then(|lines| lines.get(line)).copied().unwrap_or(0);
        if waiting < room && world.left.arrivals > 0 {
            actions.push(Action::Arrive(index, line));
        }
        if world.left.leaves > 0 && waiting > 0 {
            actions.push(Action::Leave(index, line));
        }
    }
    if !gate.running.is_empty() {
        actions.push(Action::End(index));
    }
    if gate.told.awaits && gate.told.sent < world.now {
        actions.push(Action::TimeOut(index));
    }
    if usize::from(gate.reloads) + 1 < scene.capacities.len() {
        actions.push(Action::Reload(index));
    }
    if world.left.crashes > 0 {
        actions.push(Action::Crash(index));
    }
    let run = world.server.run.to_string();
    if scene.hears && world.server.run > 0 && gate.servers.known(world.now).iter().all(|seen| seen.run != run) {
        actions.push(Action::Hear(index));
    }
}
