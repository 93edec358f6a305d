//! When two worlds are the same: when the same may happen from now on.
//!
//! Moments count by their distance from now, the numbers of calls by their order, and what has happened only by what it
//! has left. So time may run for ever, and the worlds are finite in number all the same.

use crate::scene::{BEGIN, EPOCH, gate_of, holder_id};
use crate::world::{Gate, Letter, Told, World};
use sluice_policy::ledger::{AccountLedger, Server, Sighting, SyncReply, SyncRequest};
use sluice_policy::units::Millis;
use std::hash::{DefaultHasher, Hash, Hasher};

/// An incarnation, and the number of one of its calls.
type Number = (u64, u64);

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        View { world: self, numbers: (0..self.gates.len()).map(|gate| self.numbers(gate)).collect() }.hash_all(state);
    }
}

impl World {
    /// The numbers of a gate's calls that others may still be compared with.
    fn numbers(&self, gate: usize) -> Vec<Number> {
        let id = holder_id(gate);
        let of_letters = self.letters.iter().filter_map(|letter| match &**letter {
            Letter::Request(from, request) if *from == gate => Some((request.incarnation, request.seq)),
            Letter::Reply(to, reply) | Letter::Notice(to, reply) if *to == gate => Some((reply.incarnation, reply.seq)),
            _ => None,
        });
        let before = self.server.before.as_ref().map(|(_, before)| before);
        let ledgers = [Some(&self.ledger), self.server.replica.as_ref(), before].into_iter().flatten();
        let of_ledgers = ledgers.filter_map(|ledger| ledger.latest_number(&id));
        let gate = self.gates.get(gate);
        let latest = gate.map(|gate| (gate.incarnation, gate.told.seq));
        let answered = gate.filter(|_| self.server.may_come_back).map(|gate| (gate.incarnation, gate.told.answered));
        let mut numbers: Vec<Number> = of_letters.chain(of_ledgers).chain(latest).chain(answered).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// What the server's clock would say had it never jumped.
    fn ledger_now(&self) -> Millis {
        EPOCH.plus(self.now.since(BEGIN))
    }
}

struct View<'a> {
    world: &'a World,
    numbers: Vec<Vec<Number>>,
}

impl View<'_> {
    fn hash_all(&self, state: &mut impl Hasher) {
        let world = self.world;
        (world.left, world.bound).hash(state);
        self.hash_ledger(&world.ledger, state);
        world.server.replica.is_some().hash(state);
        if let Some(replica) = &world.server.replica {
            self.hash_ledger(replica, state);
        }
        world.server.before.is_some().hash(state);
        if let Some((_, before)) = &world.server.before {
            self.hash_ledger(before, state);
        }
        (&world.server.unheard, world.server.is_empty, world.server.is_excused).hash(state);
        world.server.clock.0.abs_diff(world.ledger_now().0).hash(state);
        for (index, gate) in world.gates.iter().enumerate() {
            self.hash_gate(index, gate, state);
        }
        world.orphans.len().hash(state);
        world.orphans.iter().for_each(|(ends, gate)| (ends.since(world.now), gate).hash(state));
        let mut letters: Vec<u64> = world.letters.iter().map(|letter| self.of_letter(letter)).collect();
        letters.sort_unstable();
        letters.hash(state);
        self.hash_truth(state);
    }

    /// How many of the numbers that count are not below this one.
    fn rank(&self, gate: usize, number: Number) -> usize {
        self.numbers.get(gate).map_or(0, |numbers| numbers.iter().filter(|other| **other >= number).count())
    }

    fn hash_ledger(&self, ledger: &AccountLedger, state: &mut impl Hasher) {
        let server = &self.world.server;
        let run = server.run.to_string();
        let server = Server { run: &run, now: server.clock };
        let rank = |holder: &_, number| gate_of(holder).map_or(0, |gate| self.rank(gate, number));
        let has_jumped = server.now != self.world.ledger_now();
        let oldest = (!has_jumped).then_some(self.world.forgotten_after);
        ledger.hash_view(server, oldest, self.world.server.is_lossy, rank, state);
    }

    fn hash_gate(&self, index: usize, gate: &Gate, state: &mut impl Hasher) {
        let world = self.world;
        gate.holder.is_some().hash(state);
        if let Some(holder) = &gate.holder {
            let rank = |seq| self.rank(index, (gate.incarnation, seq));
            holder.hash_view(world.now, world.lease, rank, state);
            if world.server.is_unsteady {
                holder.hash_heard(world.now, world.ledger.latest_call(), state);
            }
        }
        if world.server.is_lossy {
            gate.servers.hash_view(&world.server.run.to_string(), world.now, world.forgotten_after, state);
        }
        if world.server.may_come_back {
            self.rank(index, (gate.incarnation, gate.told.answered)).hash(state);
        }
        (gate.waiting, gate.reloads, gate.running.len()).hash(state);
        gate.running.iter().for_each(|ends| ends.since(world.now).hash(state));
        let Told { keep, contended, turns, started, out_of_turn, awaits, delay, left_over, .. } = gate.told;
        (keep, contended, turns, started, out_of_turn, awaits, delay, left_over).hash(state);
    }

    /// A moment of the ledger's counts by its order among those that a gate still hears of, and the latest it has heard of.
    fn hash_moment(&self, gate: usize, moment: Millis, state: &mut impl Hasher) {
        let latest = self.world.gates.get(gate).map_or(Millis::ZERO, |gate| gate.told.contended_at);
        let mut later: Vec<Millis> = self
            .world
            .letters
            .iter()
            .filter_map(|letter| match &**letter {
                Letter::Reply(to, reply) | Letter::Notice(to, reply) if *to == gate => Some(reply.now),
                _ => None,
            })
            .chain([latest])
            .filter(|other| *other >= moment)
            .collect();
        later.sort_unstable();
        later.dedup();
        (later.len(), moment >= latest).hash(state);
    }

    fn hash_truth(&self, state: &mut impl Hasher) {
        let world = self.world;
        for (gate, incarnation, seq, line) in &world.truth.batches {
            (gate, self.rank(*gate, (*incarnation, *seq)), line).hash(state);
        }
        (world.truth.counted - world.ledger.spent()).hash(state);
        if world.truth.burst > 0 || world.truth.inherited > 0 {
            (world.truth.charged, world.truth.inherited, world.truth.burst, world.now.since(world.truth.drawn_at))
                .hash(state);
        }
    }

    fn of_letter(&self, letter: &Letter) -> u64 {
        let mut state = DefaultHasher::new();
        match letter {
            Letter::Request(gate, request) => self.hash_request(*gate, request, &mut state),
            Letter::Reply(gate, reply) => self.hash_reply(1, *gate, reply, &mut state),
            Letter::Notice(gate, notice) => self.hash_reply(2, *gate, notice, &mut state),
            Letter::Booking(gate, slots) => (3, gate, slots).hash(&mut state),
        }
        state.finish()
    }

    fn hash_request(&self, gate: usize, request: &SyncRequest, state: &mut impl Hasher) {
        (0, gate, self.rank(gate, (request.incarnation, request.seq))).hash(state);
        (request.keep, request.want, request.terms.version, &request.meters).hash(state);
        if self.world.server.is_unsteady {
            request.last_heard.map(|(heard, elapsed)| self.beside_ledger(heard.plus(elapsed))).hash(state);
            request.jump.hash(state);
        }
        if self.world.server.is_lossy {
            for seen in &request.servers {
                self.hash_sighting(seen, state);
            }
            request.last_heard.map(|(_, ago)| ago.min(self.world.forgotten_after)).hash(state);
        }
        if self.world.server.may_come_back {
            request.answered.map(|seq| self.rank(gate, (request.incarnation, seq))).hash(state);
        }
        request.rows.iter().for_each(|row| (&row.flow, row.waiting, row.head).hash(state));
        for spent in &request.spent {
            (self.rank(gate, (request.incarnation, spent.seq)), &spent.flow, spent.charge).hash(state);
        }
    }

    fn hash_reply(&self, kind: u8, gate: usize, reply: &SyncReply, state: &mut impl Hasher) {
        (kind, gate, self.rank(gate, (reply.incarnation, reply.seq))).hash(state);
        (reply.late, reply.granted, &reply.picks, reply.contended, &reply.meters, reply.wait).hash(state);
        if let Some(seen) = reply.server.as_ref().filter(|_| self.world.server.is_lossy) {
            self.hash_sighting(seen, state);
        }
        self.hash_moment(gate, reply.now, state);
        if self.world.server.is_unsteady {
            self.beside_ledger(reply.now).hash(state);
        }
    }

    fn hash_sighting(&self, seen: &Sighting, state: &mut impl Hasher) {
        let is_this = seen.run == self.world.server.run.to_string();
        (is_this, seen.ago.min(self.world.forgotten_after), seen.lost).hash(state);
    }

    /// Only where the clock may jump does the ledger compare moments that holders tell with its own.
    fn beside_ledger(&self, moment: Millis) -> u64 {
        moment.0.wrapping_sub(self.world.ledger.latest_call().0)
    }
}
