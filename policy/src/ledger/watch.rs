//! What the ledger does where it may have lost what it knew.
//!
//! A server with another run id, or an account that is missing where holders know of it, has lost something: its latest
//! moments, or everything. Then the account is *frozen*: slots move, and none is handed out that nobody gave up. After a
//! lost moment it thaws when every holder that the account knows of has said what it holds, at the earliest a lease after
//! the loss: by then every holder that lives has called, and none that has not has a lease. Of a silent holder, or of one
//! that came back as a new incarnation, nobody knows what runs; that keeps the account frozen until the longest call has
//! ended. A holder that had left in order is not waited for. After a loss of everything nobody is known, so it is frozen
//! for that long.
//!
//! A server that answers again after another one has the same run id. It has lost what the other one did meanwhile, and a
//! holder knows: its last answered call is not known there.
//!
//! Time counts from the loss, as early as any replica has seen it, and not from the account's next call: replicas say which
//! servers they know, and for how long ([`Sighting`]).

use super::message::{Loss, Sighting, SyncRequest};
use super::share::Share;
use super::time::MOST_SKEW_MS;
use super::{AccountLedger, Terms};
use crate::units::{HolderId, Millis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The server that answers, as this account has seen it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Watch {
    run: String,
    /// When it is known to have been in charge, by the ledger's time.
    pub(super) since: Millis,
    /// What it had lost when it took over.
    pub(super) lost: Loss,
    /// The incarnations that the account knew of then, and that have not said since what they hold.
    pub(super) awaited: BTreeMap<HolderId, u64>,
}

/// No holder is of this incarnation: it is awaited in vain. (The largest number that Lua holds.)
const UNKNOWN: u64 = (1 << 53) - 1;

impl AccountLedger {
    /// Whether slots only move. An account without slots lends as many as anybody wants, so it has none to lose.
    pub(super) fn is_frozen_at(&self, now: Millis) -> bool {
        now < self.frozen_until && self.has_slots()
    }

    pub(super) fn has_slots(&self) -> bool {
        self.terms.as_ref().is_none_or(Terms::has_slots)
    }

    /// Freezes after a failover, a restart, or the loss of this account.
    pub(super) fn watch_for_loss(&mut self, request: &SyncRequest, run: &str, now: Millis) {
        let seen = request.servers.iter().find(|server| server.run == run);
        if self.terms.is_none() {
            self.begin(request, run, seen, now);
        } else if self.run != run {
            self.lose_latest(request, run, seen, now);
        } else if self.has_come_back(request, now) {
            self.lose_latest(request, run, None, now);
        } else {
            self.adopt(run, now);
            // Begun empty, and now somebody turns up who holds something of what was there before.
            let had_more = self.watch.lost == Loss::None && request.keep > 0 && !self.knows(request);
            if had_more && now < self.frozen_until {
                (self.watch.lost, self.watch.since) = (Loss::All, now);
            }
        }
        // The calls of this holder, too, may run as long as it says.
        let counts = self.watch.lost == Loss::Latest || self.watch.lost == Loss::All && !self.knows(request);
        if counts && now < self.frozen_until {
            self.frozen_until = self.frozen_until.max(ended(self.watch.since, request.lease, request.longest_request));
        }
        run.clone_into(&mut self.run);
    }

    /// Thaws where every holder that is known has said what it holds, and every other one has had the time to.
    pub(super) fn thaw(&mut self, now: Millis) {
        let lease = self.shares.values().map(|share| share.lease).max().unwrap_or(Millis::ZERO);
        let is_heard = |(holder, incarnation): (&HolderId, &u64)| {
            self.shares.get(holder).is_some_and(|share| share.incarnation == *incarnation && share.asserted)
        };
        let is_over = self.watch.lost == Loss::Latest && now >= self.watch.since.plus(lease);
        if now < self.frozen_until && is_over && self.watch.awaited.iter().all(is_heard) {
            self.frozen_until = now;
        }
    }

    /// What is known of the server, for replicas that ask it about other accounts.
    pub(super) fn sighting(&self, now: Millis) -> Sighting {
        Sighting { run: self.run.clone(), ago: now.since(self.watch.since), lost: self.watch.lost }
    }

    /// Nobody has called before.
    fn begin(&mut self, request: &SyncRequest, run: &str, seen: Option<&Sighting>, now: Millis) {
        let quiet = if request.guarded { now.plus(request.lease) } else { Millis::ZERO };
        let (lost, since) = lost_before(request, seen, now);
        self.watch = Watch { run: run.to_owned(), since, lost, awaited: BTreeMap::new() };
        self.frozen_until = quiet.max(match lost {
            Loss::None => Millis::ZERO,
            Loss::Latest | Loss::All => ended(since, request.lease, request.longest_request),
        });
    }

    /// Another server answers, which may not know of the latest calls.
    fn lose_latest(&mut self, request: &SyncRequest, run: &str, seen: Option<&Sighting>, now: Millis) {
        // What this server knows of was called before it took over.
        let since = seen.map_or(now, |seen| now.since(seen.ago).max(self.latest_call_at()));
        let before = std::mem::take(&mut self.watch);
        self.watch = Watch { run: run.to_owned(), since, lost: Loss::Latest, awaited: BTreeMap::new() };
        if now < self.frozen_until {
            // It is not over what was lost before.
            let lost = before.lost.max(Loss::Latest);
            self.watch = Watch { since: since.max(before.since), lost, awaited: before.awaited, ..self.watch.clone() };
        }
        self.movable = 0;
        self.frozen_until = self.frozen_until.max(ended(since, request.lease, request.longest_request));
        for (holder, share) in &mut self.shares {
            share.asserted = false;
            self.frozen_until = self.frozen_until.max(ended(since, share.lease, share.longest_request));
            if !share.has_left {
                self.watch.awaited.entry(holder.clone()).or_insert(share.incarnation);
            }
        }
    }

    /// Whether the same server answers again after another one, whose calls it does not know: a failover was taken back. It
    /// shows by a call that was answered, and that it does not know of.
    fn has_come_back(&self, request: &SyncRequest, now: Millis) -> bool {
        let (Some(answered), Some((_, ago))) = (request.answered, request.last_heard) else { return false };
        match self.shares.get(&request.holder).filter(|share| share.incarnation == request.incarnation) {
            // What was lost before is known where the holder has not said since what it holds.
            Some(share) => share.asserted && share.seq < answered,
            // A holder that was heard lately is not forgotten in order.
            None => now >= self.frozen_until && is_recent(ago, request),
        }
    }

    /// The release before keeps no watch. What it has frozen stays so by its reckoning, neither shorter nor longer; it may
    /// have heard incarnations that this one knows nothing of, should something be lost meanwhile.
    fn adopt(&mut self, run: &str, now: Millis) {
        if self.watch.run == run {
            return;
        }
        let is_frozen = now < self.frozen_until;
        let awaited = self.shares.keys().filter(|_| is_frozen).map(|holder| (holder.clone(), UNKNOWN)).collect();
        self.watch = Watch { run: run.to_owned(), since: now, lost: Loss::None, awaited };
    }

    /// A new incarnation takes a holder's place. What the old one has said it held is known.
    pub(super) fn await_no_more(&mut self, holder: &HolderId, gone: &Share) {
        if gone.asserted && self.watch.awaited.get(holder) == Some(&gone.incarnation) {
            self.watch.awaited.remove(holder);
        }
    }

    fn knows(&self, request: &SyncRequest) -> bool {
        self.shares.get(&request.holder).is_some_and(|share| share.incarnation == request.incarnation)
    }
}

/// What was lost of an account that is not there, and since when at the latest.
fn lost_before(request: &SyncRequest, seen: Option<&Sighting>, now: Millis) -> (Loss, Millis) {
    let heard_ago = request.last_heard.map(|(_, ago)| ago);
    match (seen, heard_ago) {
        // The holder was answered, and then everything was lost; or the holder has never asked for this account.
        (Some(seen), heard_ago) if seen.lost == Loss::All && heard_ago.is_none_or(|ago| seen.ago <= ago) => {
            (Loss::All, now.since(seen.ago))
        }
        (_, Some(_)) => (Loss::All, now),
        _ if request.keep > 0 => (Loss::All, now),
        (Some(seen), None) if seen.lost == Loss::Latest => (Loss::Latest, now.since(seen.ago)),
        // It knows other servers, and this one has taken the place of one of them, or is a further one.
        (None, None) if !request.servers.is_empty() => (Loss::Latest, now),
        (_, None) => (Loss::None, now),
    }
}

/// Whether a ledger that answered so long ago, by the holder's clock, still knows the holder.
fn is_recent(ago: Millis, request: &SyncRequest) -> bool {
    let most = ago.plus(Millis(ago.0 / 32)).plus(Millis(MOST_SKEW_MS.unsigned_abs()));
    most < request.lease.plus(request.longest_request)
}

/// When calls have ended of a holder whose lease ended by a lease after this moment.
fn ended(since: Millis, lease: Millis, longest_request: Millis) -> Millis {
    since.plus(lease).plus(longest_request)
}
