//! What each mutant does, in the order in which a call meets it.

use super::Mutant;
use super::stored::Stored;
use crate::scene::{LINES, flow_name, gate_name, gate_of};
use crate::world::{Gate, World, is_gone};
use sluice_policy::holder::Holder;
use sluice_policy::ledger::{AccountLedger, SyncReply, SyncRequest, Synced};
use sluice_policy::units::{HolderId, Millis};
use std::sync::Arc;

/// The clock by which a holder judges its lease.
pub fn clock(mutant: Option<Mutant>, gate: &Gate, now: Millis) -> Millis {
    match mutant {
        Some(Mutant::LeaseFromReceiving) => now.since(gate.told.delay),
        _ => now,
    }
}

/// A holder has made a call.
pub fn sending(mutant: Option<Mutant>, gate: &mut Gate, request: &mut SyncRequest) {
    if mutant != Some(Mutant::PicksKept) {
        gate.told.left_over = [0; LINES];
    }
    if mutant == Some(Mutant::HoldNotLowered) {
        // The holder itself has lowered its hold to more than this.
        request.keep = request.keep.min(gate.running());
    }
    let is_failing = gate.holder.as_ref().is_some_and(Holder::is_failing);
    if mutant == Some(Mutant::RetryGivesBack) && is_failing {
        request.keep = request.keep.min(gate.running());
    }
}

/// The ledger is about to take a call.
pub fn before_sync(mutant: Option<Mutant>, ledger: &mut AccountLedger, request: &mut SyncRequest, now: Millis) {
    let known = ledger.latest_number(&request.holder);
    let number = (request.incarnation, request.seq);
    let is_stale = known.is_some_and(|known| number <= known);
    match mutant {
        Some(Mutant::ClockTrusted) => {
            trust(ledger, now);
            request.last_heard = request.last_heard.map(|_| (now, Millis::ZERO));
        }
        Some(Mutant::ExpiredLeaseReclaimed) => reclaim(ledger, now),
        Some(Mutant::NumbersIgnored) => {
            if let Some((incarnation, seq)) = known.filter(|known| is_stale && known.0 == number.0) {
                (request.incarnation, request.seq) = (incarnation, seq + 1);
            }
        }
        Some(Mutant::IncarnationForgotten) if known.is_some_and(|known| known.0 < number.0) => {
            set_share(ledger, request.holder.as_str(), 0);
        }
        Some(Mutant::ShrunkWithoutWord) if !is_stale && !request.rows.is_empty() => shrink_another(ledger, request),
        Some(Mutant::ChargedAgain) => request.spent.iter_mut().for_each(|spent| spent.seq = request.seq),
        Some(Mutant::DrawnAgain) if !is_stale => draw_again(ledger, request),
        Some(Mutant::LeaverAwaited) => Stored::change(ledger, |stored| {
            stored.shares().for_each(|(_, mut share)| *share.field("has_left") = false.into());
        }),
        // For somebody who never comes.
        Some(Mutant::FreezeAlwaysLong) => {
            Stored::change(ledger, |stored| _ = stored.awaited().insert("?".to_owned(), 0.into()));
        }
        Some(Mutant::SilentNotAwaited) => Stored::change(ledger, |stored| stored.awaited().clear()),
        Some(Mutant::IncarnationHeard) if known.is_some_and(|known| known.0 < number.0) => {
            Stored::change(ledger, |stored| _ = stored.awaited().remove(request.holder.as_str()));
        }
        Some(Mutant::ComebackTrusted) => request.answered = None,
        Some(Mutant::MissingTrusted) if ledger.capacity() == 0 => {
            request.last_heard = None;
            request.servers.clear();
        }
        _ => {}
    }
}

/// The ledger has taken a call. Tells what it must still book.
pub fn after_sync(
    mutant: Option<Mutant>,
    gates: &[HolderId],
    before: &AccountLedger,
    ledger: &mut AccountLedger,
    request: &SyncRequest,
    synced: &mut Synced,
) -> Vec<(usize, u32)> {
    match mutant {
        Some(Mutant::NoticeIncremental) => {
            for (holder, notice) in &mut synced.notices {
                notice.granted = notice.granted.saturating_sub(before.granted_to(holder));
            }
        }
        Some(Mutant::KeepNotClamped) if request.keep > synced.reply.granted => {
            set_share(ledger, request.holder.as_str(), request.keep);
            synced.reply.granted = request.keep;
        }
        Some(Mutant::NoticeBeforeRaise) => return unbook(before, ledger, synced),
        Some(Mutant::FreezeOfOneLease) => Stored::change(ledger, |stored| {
            let latest = synced.reply.now.plus(request.lease).0;
            let until = stored.number("frozen_until");
            stored.set("frozen_until", until.min(latest));
        }),
        Some(Mutant::LentNotDebited) => {
            let mut was_lent = 0;
            Stored::change(&mut before.clone(), |stored| {
                was_lent = stored.shares().map(|(_, mut share)| share.lent()).sum()
            });
            Stored::change(ledger, |stored| {
                let lent: u64 = stored.shares().map(|(_, mut share)| share.lent()).sum();
                stored.raise_levels(lent.saturating_sub(was_lent));
            });
        }
        Some(Mutant::InheritedTwice) => {
            let gone = gates.iter().filter(|holder| is_gone(holder, before, ledger));
            let lent: u64 = gone.map(|holder| before.lent_to(holder)).sum();
            if lent > 0 {
                Stored::change(ledger, |stored| stored.raise_levels(lent));
            }
        }
        _ => {}
    }
    Vec::new()
}

/// A holder is about to read an answer or a notice.
pub fn reading(mutant: Option<Mutant>, gate: &Gate, reply: &mut SyncReply, now: Millis, is_answer: bool) {
    let latest = (gate.incarnation, gate.told.seq);
    match mutant {
        Some(Mutant::StaleAnswerAccepted) if is_answer => (reply.incarnation, reply.seq) = latest,
        Some(Mutant::NoticeIncremental) if !is_answer => {
            reply.granted += gate.holder.as_ref().map_or(0, |holder| holder.usable(now));
        }
        Some(Mutant::FirstAnswerByMax) if latest == (reply.incarnation, reply.seq) => {
            reply.granted = reply.granted.max(gate.told.keep);
        }
        Some(Mutant::PicksKept) if latest == (reply.incarnation, reply.seq) => {
            for (line, turns) in gate.told.left_over.iter().enumerate().filter(|(_, turns)| **turns > 0) {
                *reply.picks.entry(flow_name(line)).or_default() += u32::from(*turns);
            }
        }
        Some(Mutant::ContendedIgnored) => reply.contended = false,
        _ => {}
    }
}

/// A holder has taken the answer to its latest call.
pub fn answered(mutant: Option<Mutant>, gate: &mut Gate, now: Millis) {
    if mutant == Some(Mutant::LeaseFromReceiving) {
        gate.told.delay = now.since(gate.told.sent);
    }
}

/// The ledger gets round to booking slots.
pub fn book(world: &mut World, gate: usize, slots: u32) {
    Stored::change(Arc::make_mut(&mut world.ledger), |stored| {
        if let Some(mut share) = stored.share(gate_name(gate)) {
            let granted = share.number("granted");
            share.set("granted", granted + u64::from(slots));
        }
    });
}

/// Time runs as the server's clock does, forth or back: nothing of it is set right, and nobody knows when he was heard.
fn trust(ledger: &mut AccountLedger, server: Millis) {
    Stored::change(ledger, |stored| {
        stored.set("clock_offset", 0);
        for (_, mut share) in stored.shares() {
            let renewed_at = share.number("renewed_at");
            share.set("renewed_at", renewed_at.min(server.0));
        }
    });
}

fn reclaim(ledger: &mut AccountLedger, now: Millis) {
    Stored::change(ledger, |stored| {
        for (_, mut share) in stored.shares() {
            if share.number("renewed_at") + share.number("lease") <= now.0 {
                share.set("granted", 0);
            }
        }
    });
}

fn set_share(ledger: &mut AccountLedger, holder: &str, granted: u32) {
    Stored::change(ledger, |stored| {
        if let Some(mut share) = stored.share(holder) {
            share.set("granted", u64::from(granted));
            share.set("zombies", 0);
        }
    });
}

fn shrink_another(ledger: &mut AccountLedger, request: &SyncRequest) {
    Stored::change(ledger, |stored| {
        let mut others = stored.shares().filter(|(holder, _)| holder.as_str() != request.holder.as_str());
        if let Some((_, mut share)) =
            others.find_map(|(holder, mut share)| (share.number("granted") > 0).then_some((holder, share)))
        {
            let granted = share.number("granted");
            share.set("granted", granted - 1);
        }
    });
}

/// What was drawn so far is told as if it had been drawn since.
fn draw_again(ledger: &mut AccountLedger, request: &mut SyncRequest) {
    for (name, report) in &mut request.meters {
        let holder = request.holder.as_str();
        Stored::change(ledger, |stored| {
            let drawn = stored.share(holder).and_then(|mut share| {
                let lent = share.field("lent").get(name.as_str())?;
                lent.get("drawn")?.as_i64()
            });
            report.drawn = report.drawn.saturating_add(drawn.unwrap_or(0));
        });
    }
}

/// Takes back what notices tell of, to be booked when the ledger gets round to it.
fn unbook(before: &AccountLedger, ledger: &mut AccountLedger, synced: &Synced) -> Vec<(usize, u32)> {
    let mut bookings = Vec::new();
    for holder in synced.notices.keys() {
        let was = before.granted_to(holder);
        let raised = ledger.granted_to(holder).saturating_sub(was);
        if raised == 0 {
            continue;
        }
        Stored::change(ledger, |stored| {
            if let Some(mut share) = stored.share(holder.as_str()) {
                share.set("granted", u64::from(was));
            }
        });
        bookings.extend(gate_of(holder).map(|gate| (gate, raised)));
    }
    bookings
}
