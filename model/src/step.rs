//! What an action makes of a world. Every decision is made by the product's own state machines.

mod letters;
mod progress;
mod truth;
mod upsets;

use crate::action::Action;
use crate::mutant;
use crate::scene::{FOR_EVER, JUMP_MS, LINES, Names, Scene, flow};
use crate::seen::{Event, Seen};
use crate::world::{Gate, Letter, World};
use sluice_policy::units::{Millis, Tokens};
use std::sync::Arc;
use truth::forget_batches;
use upsets::{crash, jump};

/// A lease and the longest call have ended by then.
const SETTLED_AFTER: u32 = 20;

/// One step of a search.
pub(crate) struct Step<'a> {
    pub scene: &'a Scene,
    pub seen: &'a Seen,
}

impl Step<'_> {
    /// The world that a search begins with.
    pub(crate) fn first(&self) -> World {
        let mut world = World::new(self.scene);
        self.ask_all(&mut world);
        if self.scene.progress.is_some() && self.scene.on_demand.is_some() {
            // They have used the account before, and left it in order.
            (0..world.gates.len()).for_each(|index| self.ask(&mut world, index));
        }
        if self.scene.settled {
            self.settle(&mut world);
        }
        if self.scene.most.failovers > 0 {
            world.server.replica = Some(world.ledger.clone());
        }
        world
    }

    /// Lets everything arrive at once until every gate that wants a lease has one.
    fn settle(&self, world: &mut World) {
        let mut steps = 0;
        while !world.letters.is_empty() && steps < SETTLED_AFTER {
            while !world.letters.is_empty() {
                let letter = world.letters.remove(0);
                self.arrive(world, &letter);
                self.ask_all(world);
            }
            if is_frozen(world) {
                steps += 1;
                self.pass(world);
                self.ask_all(world);
            }
        }
    }

    /// The world after an action; `None` where nothing changes.
    pub(crate) fn take(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        self.act(&mut next, action)?;
        self.start_all(&mut next);
        self.ask_all(&mut next);
        self.forget_stale(&mut next);
        forget_batches(&mut next);
        self.raise_bound(world, &mut next);
        Some(next)
    }

    fn act(&self, next: &mut World, action: Action) -> Option<()> {
        match action {
            Action::Pass => {
                use_up(&mut next.left.passes);
                self.pass(next);
            }
            Action::Arrive(gate, line) => {
                use_up(&mut next.left.arrivals);
                change(next, gate, |gate| gate.arrive(line));
            }
            Action::Leave(gate, line) => {
                next.left.leaves -= 1;
                change(next, gate, |gate| gate.leave(line));
            }
            Action::End(gate) => change(next, gate, Gate::end),
            Action::TimeOut(gate) => change(next, gate, Gate::time_out),
            Action::Deliver(letter) => {
                let letter = next.letters.remove(letter);
                self.arrive(next, &letter);
            }
            Action::DeliverCopy(letter) => {
                next.left.copies -= 1;
                let letter = next.letters.get(letter)?.clone();
                self.arrive(next, &letter);
            }
            Action::Reload(gate) => {
                let now = next.now;
                change(next, gate, |gate| gate.reload(self.scene, now));
            }
            Action::Crash(gate) => crash(next, gate),
            Action::Restart(index) => change(next, index, |gate| gate.start(self.scene, index)),
            Action::CatchUp => {
                use_up(&mut next.left.catch_ups);
                next.server.replica = Some(next.ledger.clone());
            }
            Action::FailOver => self.fail_over(next),
            Action::FailBack => self.fail_back(next),
            Action::Flush => self.flush(next),
            Action::Hear(gate) => self.hear_of_server(next, gate),
            Action::JumpAhead => {
                let clock = next.server.clock.plus(Millis(JUMP_MS));
                jump(next, clock);
            }
            Action::JumpBack => {
                let clock = next.server.clock.since(Millis(JUMP_MS));
                jump(next, clock);
            }
        }
        Some(())
    }

    fn pass(&self, world: &mut World) {
        let step = self.scene.step;
        world.now = world.now.plus(step);
        world.server.clock = world.server.clock.plus(step);
        let now = world.now;
        for gate in &mut world.gates {
            // Envoy ends a call that has run for the longest time.
            if gate.running.first().is_some_and(|ends| *ends <= now) {
                Arc::make_mut(gate).running.retain(|ends| *ends > now);
            }
        }
        world.orphans.retain(|(ends, _)| *ends > now);
    }

    /// Whoever may start does so at once, P0 first, as in the service; a later start is a later arrival.
    fn start_all(&self, world: &mut World) {
        for index in 0..world.gates.len() {
            while let Some(line) = self.next_to_start(world, index) {
                self.start(world, index, line);
            }
        }
    }

    fn ask_all(&self, world: &mut World) {
        for index in 0..world.gates.len() {
            let is_due = world.gates.get(index).is_some_and(|gate| {
                let holder = gate.holder.as_ref();
                holder.is_some_and(|holder| holder.is_due(gate.demand(), world.now))
            });
            if is_due {
                self.ask(world, index);
            }
        }
    }

    fn next_to_start(&self, world: &World, index: usize) -> Option<usize> {
        let gate = world.gates.get(index)?;
        let holder = gate.holder.as_ref()?;
        let clock = mutant::clock(self.scene.mutant, gate, world.now);
        let waits = |line: &usize| gate.waiting.get(*line).is_some_and(|waiting| *waiting > 0);
        let charge = self.charge(world);
        let may_start = |line: &usize| holder.may_start(flow(*line), charge, gate.running(), clock);
        (0..LINES).filter(waits).find(may_start)
    }

    fn start(&self, world: &mut World, index: usize, line: usize) {
        let now = world.now;
        let ends = now.plus(self.scene.longest_request);
        let charge = self.charge(world);
        if world.left.charges > 0 {
            use_up(&mut world.left.charges);
        }
        let Some(gate) = world.gates.get_mut(index) else { return };
        let was_contended = gate.told.contended;
        with(gate, |gate| {
            if let Some(holder) = &mut gate.holder {
                holder.stopped_waiting();
                holder.start(flow(line), 1, charge);
            }
            if self.judges_turns() {
                gate.told.start(line);
            }
            gate.running.push(ends);
            take_one(&mut gate.waiting, line);
        });
        if was_contended {
            self.seen.count(Event::StartedInTurn);
        }
        if line == 0 {
            self.seen.count(Event::StartedP0);
        }
        Arc::make_mut(&mut world.truth).start(self.scene, charge, now);
    }

    /// What the next call is charged.
    fn charge(&self, world: &World) -> Tokens {
        if world.left.charges > 0 { self.scene.charge } else { Tokens::ZERO }
    }

    /// While the ledger cannot forget. After a failover a holder may learn late whose turn it is.
    fn judges_turns(&self) -> bool {
        !self.scene.can_forget()
    }

    fn ask(&self, world: &mut World, index: usize) {
        let (now, head) = (world.now, self.charge(world));
        let Some(gate) = world.gates.get_mut(index) else { return };
        let request = with(gate, |gate| {
            let mut request = gate.ask(self.scene, head, now)?;
            mutant::sending(self.scene.mutant, gate, &mut request);
            Some(request)
        });
        if let Some(request) = request {
            self.lose_oldest(world, index);
            world.send(Letter::Request(index, Box::new(request)));
        }
    }
}

impl Gate {
    fn arrive(&mut self, line: usize) {
        if let Some(waiting) = self.waiting.get_mut(line) {
            *waiting += 1;
        }
        if let Some(holder) = &mut self.holder {
            holder.joined(flow(line), &Names);
        }
    }

    /// The call that began first ends: those that are left may run the longest.
    fn end(&mut self) {
        self.running.remove(0);
    }

    fn reload(&mut self, scene: &Scene, now: Millis) {
        self.reloads += 1;
        if let Some(holder) = &mut self.holder {
            holder.set_terms(scene.terms(self.reloads), now);
        }
    }

    fn leave(&mut self, line: usize) {
        take_one(&mut self.waiting, line);
        if let Some(holder) = &mut self.holder {
            holder.stopped_waiting();
        }
    }

    fn time_out(&mut self) {
        self.told.awaits = false;
        if let Some(holder) = &mut self.holder {
            holder.failed();
        }
    }
}

fn use_up(left: &mut u8) {
    if *left < FOR_EVER {
        *left -= 1;
    }
}

/// Whether the ledger hands out nothing but what is given up.
fn is_frozen(world: &World) -> bool {
    world.ledger.is_frozen(world.server.clock)
}

fn change(world: &mut World, index: usize, change: impl FnOnce(&mut Gate)) {
    if let Some(gate) = world.gates.get_mut(index) {
        change(Arc::make_mut(gate));
    }
}

/// Changes what other worlds share.
fn with<T: Clone, R>(shared: &mut Arc<T>, change: impl FnOnce(&mut T) -> R) -> R {
    change(Arc::make_mut(shared))
}

fn take_one(callers: &mut [u8; LINES], line: usize) {
    if let Some(callers) = callers.get_mut(line) {
        *callers = callers.saturating_sub(1);
    }
}
