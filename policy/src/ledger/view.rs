//! What of a ledger decides what comes next, for whoever compares states (`model/`).
//!
//! Two ledgers with the same view do the same from now on, though they were reached at other times, by other numbers, or
//! after more calls. Left out are the counters of [`super::Order`]: the caller knows whether anyone's turn depends on
//! them.

use super::time::MOST_SKEW_MS;
use super::{AccountLedger, Loss, Server};
use crate::units::{HolderId, Millis};
use std::hash::{Hash, Hasher};

impl AccountLedger {
    /// The incarnation and the number of the latest call that it knows of a holder.
    #[must_use]
    pub fn latest_number(&self, holder: &HolderId) -> Option<(u64, u64)> {
        self.shares.get(holder).map(|share| (share.incarnation, share.seq))
    }

    /// How long a call of this holder may run, as it has told; nothing of one that is not known.
    #[must_use]
    pub fn longest_request_of(&self, holder: &HolderId) -> Millis {
        self.shares.get(holder).map_or(Millis::ZERO, |share| share.longest_request)
    }

    /// Slots that this holder was granted and whose lease had not ended at the latest call.
    #[must_use]
    pub fn granted_to(&self, holder: &HolderId) -> u32 {
        self.shares.get(holder).map_or(0, |share| share.granted)
    }

    /// Whether it is known to have lost everything once.
    #[must_use]
    pub fn has_lost_everything(&self) -> bool {
        self.watch.lost == Loss::All
    }

    /// Whether this holder left in order.
    #[must_use]
    pub fn has_left(&self, holder: &HolderId) -> bool {
        self.shares.get(holder).is_some_and(|share| share.has_left)
    }

    /// Slots in all, as the latest configuration has it that was told; 0 before the first call.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.terms.as_ref().map_or(0, |terms| terms.capacity)
    }

    /// The ledger's time at the latest call.
    #[must_use]
    pub fn latest_call(&self) -> Millis {
        self.latest_call_at()
    }

    /// Whether slots only move, because it may have lost what it knew.
    #[must_use]
    pub fn is_frozen(&self, server: Millis) -> bool {
        self.terms.is_none() || self.is_frozen_at(self.at(server))
    }

    /// Its time at a moment of the server's, as long as that clock runs.
    pub(super) fn at(&self, server: Millis) -> Millis {
        Millis(server.0.saturating_add_signed(self.clock_offset))
    }

    /// What this holder was lent of all rates and budgets and is not known to have drawn.
    #[must_use]
    pub fn lent_to(&self, holder: &HolderId) -> u64 {
        self.shares
            .get(holder)
            .map_or(0, |share| share.lent.values().map(|lent| lent.held).fold(0, u64::saturating_add))
    }

    /// Hashes it, moments as distances from its time and the numbers of calls (incarnation and number) by their
    /// `rank` among those that may still be compared with them. A moment `oldest` ago is as old as any, unless the server's
    /// clock has jumped. What is known of the server counts where it may lose something.
    pub fn hash_view(
        &self,
        server: Server<'_>,
        oldest: Option<Millis>,
        may_lose: bool,
        rank: impl Fn(&HolderId, (u64, u64)) -> usize,
        state: &mut impl Hasher,
    ) {
        let now = self.latest_call_at();
        let passed = self.at(server.now).0.wrapping_sub(now.0);
        // After so long a newcomer's call finds that the clock was set.
        let too_long = MOST_SKEW_MS.unsigned_abs() + 1;
        oldest.map_or(passed, |oldest| passed.min(oldest.0.max(too_long))).hash(state);
        self.terms.as_ref().map(|terms| terms.version).hash(state);
        (self.run == server.run).hash(state);
        self.frozen_until.since(now).hash(state);
        if now < self.frozen_until {
            self.movable.hash(state);
            for (holder, incarnation) in &self.watch.awaited {
                (holder, rank(holder, (*incarnation, 0))).hash(state);
            }
        }
        if may_lose {
            (now.since(self.watch.since).min(oldest.unwrap_or(Millis(u64::MAX))), self.watch.lost).hash(state);
        }
        for (free_at, slots) in self.zombies.iter().filter(|(free_at, _)| **free_at > now) {
            (free_at.since(now), slots).hash(state);
        }
        for (holder, share) in &self.shares {
            (holder, rank(holder, (share.incarnation, share.seq))).hash(state);
            (share.granted, share.zombies, share.zombies_until.since(now)).hash(state);
            now.since(share.renewed_at).min(oldest.unwrap_or(Millis(u64::MAX))).hash(state);
            (share.asserted, share.has_left, share.contended, &share.picks, &share.lent).hash(state);
            share.version.hash(state);
            if share.has_fresh_rows(now) {
                share.first.hash(state);
                for (flow, row) in &share.rows {
                    (flow, row.waiting, row.head, now.since(row.since)).hash(state);
                }
            }
        }
        self.meters.hash(state);
    }
}
