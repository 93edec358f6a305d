//! Letters: what the ledger and the gates make of them, and which of them are lost.

use super::{Step, change, with};
use crate::mutant;
use crate::scene::{Names, gate_of, holder_id};
use crate::seen::Event;
use crate::world::{Letter, World};
use sluice_policy::ledger::{AccountLedger, Server, SyncReply, SyncRequest};
use std::sync::Arc;

impl Step<'_> {
    /// So many superseded calls are under way at most.
    pub(super) fn lose_oldest(&self, world: &mut World, index: usize) {
        let number = |letter: &Letter| match letter {
            Letter::Request(from, request) if *from == index => Some((request.incarnation, request.seq)),
            _ => None,
        };
        lose_least(world, self.scene.stragglers, number);
    }

    /// So many notices to a gate are under way at most.
    fn lose_least_notice(&self, world: &mut World, index: usize) {
        let weight = |letter: &Letter| match letter {
            Letter::Notice(to, notice) if *to == index => {
                let picks: u32 = notice.picks.values().sum();
                Some((notice.incarnation, notice.seq, notice.granted, picks, notice.contended, notice.now))
            }
            _ => None,
        };
        lose_least(world, self.scene.notices.saturating_sub(1), weight);
    }

    pub(super) fn arrive(&self, world: &mut World, letter: &Letter) {
        match letter {
            Letter::Request(gate, request) => self.request_arrives(world, *gate, (**request).clone()),
            Letter::Reply(gate, reply) => self.reply_arrives(world, *gate, reply.clone()),
            Letter::Notice(gate, notice) => self.notice_arrives(world, *gate, notice.clone()),
            Letter::Booking(gate, slots) => mutant::book(world, *gate, *slots),
        }
    }

    fn request_arrives(&self, world: &mut World, index: usize, mut request: SyncRequest) {
        let run = world.server.run.to_string();
        let server = Server { run: &run, now: world.server.clock };
        let before = world.ledger.clone();
        let mutant = self.scene.mutant;
        let number = (request.incarnation, request.seq);
        let told = request.clone();
        let gates: Vec<_> = (0..world.gates.len()).map(holder_id).collect();
        let (synced, bookings) = with(&mut world.ledger, |ledger| {
            mutant::before_sync(mutant, ledger, &mut request, server.now);
            let mut synced = ledger.sync(&request, server);
            if request.seq != number.1 {
                synced.reply.seq = number.1;
            }
            let bookings = mutant::after_sync(mutant, &gates, &before, ledger, &request, &mut synced);
            (synced, bookings)
        });
        super::truth::forget_holders(world, &before);
        self.notice_events(&before, &world.ledger, &request, &synced.reply);
        if !synced.reply.late {
            world.server.unheard.remove(&index);
            if synced.reply.frozen_until.is_none() {
                excuse(world);
            }
        }
        let is_taken = (synced.reply.incarnation, synced.reply.seq) == number && !synced.reply.late;
        if is_taken {
            Arc::make_mut(&mut world.truth).tell(index, &told);
        }
        for (gate, slots) in bookings {
            world.send(Letter::Booking(gate, slots));
        }
        for (holder, notice) in synced.notices {
            if let Some(gate) = gate_of(&holder) {
                self.lose_least_notice(world, gate);
                world.send(Letter::Notice(gate, notice));
            }
        }
        world.send(Letter::Reply(index, synced.reply));
    }

    fn reply_arrives(&self, world: &mut World, index: usize, reply: SyncReply) {
        let (now, mutant) = (world.now, self.scene.mutant);
        change(world, index, |gate| {
            let heard = reply;
            if let Some(seen) = &heard.server {
                gate.servers.hear(seen, now);
            }
            let mut reply = heard.clone();
            mutant::reading(mutant, gate, &mut reply, now, true);
            let Some(holder) = &mut gate.holder else { return };
            if holder.answered(&reply, &Names, now) {
                mutant::answered(mutant, gate, now);
                gate.told.awaits = false;
                gate.told.answered = gate.told.seq;
                gate.told.hear(&heard);
            } else if heard.late && (gate.incarnation, gate.told.seq) == (heard.incarnation, heard.seq) {
                gate.told.awaits = false;
                holder.failed();
            }
        });
    }

    fn notice_arrives(&self, world: &mut World, index: usize, notice: SyncReply) {
        let (now, mutant) = (world.now, self.scene.mutant);
        let Some(gate) = world.gates.get_mut(index) else { return };
        let taken = with(gate, |gate| {
            let heard = notice;
            let mut notice = heard.clone();
            mutant::reading(mutant, gate, &mut notice, now, false);
            let Some(holder) = &mut gate.holder else { return None };
            let before = holder.usable(now);
            let is_taken = holder.noticed(&notice, &Names);
            let after = holder.usable(now);
            if is_taken {
                gate.told.hear(&heard);
            }
            is_taken.then_some(before < after)
        });
        if taken == Some(true) {
            self.seen.count(Event::RaisedByNotice);
        }
    }

    /// Drops answers that no holder takes any more.
    pub(super) fn forget_stale(&self, world: &mut World) {
        if self.scene.stale_answers {
            return;
        }
        let gates = &world.gates;
        let is_live = |gate: &usize, reply: &SyncReply| {
            let Some(gate) = gates.get(*gate) else { return false };
            gate.holder.is_some() && (gate.incarnation, gate.told.seq) == (reply.incarnation, reply.seq)
        };
        world.letters.retain(|letter| match &**letter {
            Letter::Request(..) | Letter::Booking(..) => true,
            Letter::Notice(gate, notice) => is_live(gate, notice),
            Letter::Reply(gate, reply) => is_live(gate, reply) && gates.get(*gate).is_some_and(|gate| gate.told.awaits),
        });
    }

    fn notice_events(&self, before: &AccountLedger, after: &AccountLedger, request: &SyncRequest, reply: &SyncReply) {
        if after.zombies() > before.zombies() {
            self.seen.count(Event::BecameZombie);
        }
        if after.zombies() < before.zombies() && after.granted_to(&request.holder) > before.granted_to(&request.holder)
        {
            self.seen.count(Event::TookUpZombies);
        }
        if after.zombies() == 0 && before.zombies() > 0 {
            self.seen.count(Event::ZombiesCameFree);
        }
        if reply.frozen_until.is_some() {
            self.seen.count(Event::Frozen);
            if !reply.picks.is_empty() {
                self.seen.count(Event::MovedWhileFrozen);
            }
        }
    }
}

/// The ledger hands out slots again, and may not have heard of a gate that has some: one whose first grant lies in what was
/// lost, or any, where the ledger is empty and a gate that has never known another was the first to come.
fn excuse(world: &mut World) {
    let has_slots = |index: &usize| {
        let hears = |letter: &Arc<Letter>| match &**letter {
            Letter::Reply(gate, reply) | Letter::Notice(gate, reply) => gate == index && reply.granted > 0,
            Letter::Request(..) | Letter::Booking(..) => false,
        };
        let gate = world.gates.get(*index);
        let holds = gate.and_then(|gate| gate.holder.as_ref()).is_some_and(|holder| holder.usable(world.now) > 0);
        holds || gate.is_some_and(|gate| !gate.running.is_empty()) || world.letters.iter().any(hears)
    };
    let is_fresh = world.gates.iter().any(|gate| gate.incarnation > 1);
    if world.server.unheard.iter().any(has_slots) && (!world.server.is_empty || is_fresh) {
        world.server.is_excused = true;
    }
}

/// Loses the least of those letters that have a weight, where more than `most` of them are under way. Which one that is
/// depends on nothing but what they say, so that worlds that look alike go on alike.
fn lose_least<T: Ord>(world: &mut World, most: usize, weight: impl Fn(&Letter) -> Option<T>) {
    let weighed = world.letters.iter().enumerate().filter_map(|(place, letter)| Some((weight(letter)?, place)));
    let mut weighed: Vec<_> = weighed.collect();
    weighed.sort();
    if weighed.len() > most
        && let Some((_, place)) = weighed.first()
    {
        world.letters.remove(*place);
    }
}
