//! What befalls the gates and the ledger's server.

use super::{Step, with};
use crate::scene::{LINES, holder_id};
use crate::seen::Event;
use crate::world::{Letter, World};
use sluice_policy::ledger::{AccountLedger, Loss, Sighting};
use sluice_policy::units::Millis;
use std::sync::Arc;

impl Step<'_> {
    pub(super) fn fail_over(&self, world: &mut World) {
        world.left.failovers -= 1;
        if let Some(replica) = world.server.replica.take() {
            let before = std::mem::replace(&mut world.ledger, replica);
            world.server.before = world.server.may_come_back.then_some((world.server.run, before));
        }
        let ledger = &world.ledger;
        let is_new = |gate: &usize| {
            let holder = holder_id(*gate);
            ledger.latest_number(&holder).is_none() || ledger.has_left(&holder)
        };
        world.server.unheard = (0..world.gates.len()).filter(is_new).collect();
        // Nobody can say what it held.
        world.server.is_excused |= world.orphans.iter().any(|(_, gate)| world.server.unheard.contains(gate));
        self.change_server(world);
        self.seen.count(Event::FailedOver);
    }

    /// The server of before has not been started anew, and knows nothing of what was done meanwhile.
    pub(super) fn fail_back(&self, world: &mut World) {
        world.left.failbacks -= 1;
        let Some((run, before)) = world.server.before.take() else { return };
        world.ledger = before;
        self.change_server(world);
        world.server.run = run;
        self.seen.count(Event::FailedBack);
    }

    pub(super) fn flush(&self, world: &mut World) {
        world.left.flushes -= 1;
        world.ledger = Arc::new(AccountLedger::default());
        world.server.replica = None;
        world.server.unheard = (0..world.gates.len()).collect();
        world.server.is_empty = true;
        self.change_server(world);
    }

    /// A gate hears of the server by another account.
    pub(super) fn hear_of_server(&self, world: &mut World, index: usize) {
        let lost = if world.server.is_empty { Loss::All } else { Loss::Latest };
        let seen = Sighting { run: world.server.run.to_string(), ago: Millis::ZERO, lost };
        let now = world.now;
        super::change(world, index, |gate| gate.servers.hear(&seen, now));
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
    // Nobody can assert what it held, which is as if it had died before.
    world.server.is_excused |= world.server.unheard.contains(&index) && !running.is_empty();
    world.orphans.extend(running.into_iter().map(|ends| (ends, index)));
    world.orphans.sort();
}

pub(super) fn jump(world: &mut World, clock: Millis) {
    world.left.jumps -= 1;
    world.server.clock = clock;
}
