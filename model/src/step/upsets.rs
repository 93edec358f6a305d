//! What befalls the gates and the ledger's server.

use super::{Step, with};
use crate::scene::LINES;
use crate::seen::Event;
use crate::world::{Gate, Letter, World};
use sluice_policy::ledger::AccountLedger;
use sluice_policy::units::Millis;
use std::sync::Arc;

impl Step<'_> {
    pub(super) fn fail_over(&self, world: &mut World) {
        world.left.failovers -= 1;
        if let Some(replica) = world.server.replica.take() {
            world.ledger = replica;
        }
        self.change_server(world);
        self.seen.count(Event::FailedOver);
    }

    pub(super) fn flush(&self, world: &mut World) {
        world.left.flushes -= 1;
        world.ledger = Arc::new(AccountLedger::default());
        world.server.replica = None;
        let runs = |(index, gate): (usize, &Arc<Gate>)| (!gate.running.is_empty()).then_some(index);
        world.server.unheard = world.gates.iter().enumerate().filter_map(runs).collect();
        self.change_server(world);
    }

    fn change_server(&self, world: &mut World) {
        world.server.run += 1;
        world.letters.retain(|letter| !matches!(**letter, Letter::Request(..)));
    }
}

pub(super) fn crash(world: &mut World, index: usize) {
    world.left.crashes -= 1;
    let Some(gate) = world.gates.get_mut(index) else { return };
    let running = with(gate, |gate| {
        gate.holder = None;
        gate.waiting = [0; LINES];
        gate.told = Default::default();
        std::mem::take(&mut gate.running)
    });
    world.orphans.extend(running);
    world.orphans.sort();
    // Nobody can assert what it held, which is as if it had died before.
    world.server.is_excused |= world.server.unheard.contains(&index);
}

pub(super) fn jump(world: &mut World, clock: Millis) {
    world.left.jumps -= 1;
    world.server.clock = clock;
}
