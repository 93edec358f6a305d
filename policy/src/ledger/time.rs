//! What time it is at an account, and what has ended by then: leases, the calls of who is gone, a freeze.

use super::{AccountLedger, Share, SyncRequest, inherit, signed};
use crate::units::{HolderId, Millis};

/// A holder's own clock and the ledger's may differ so much over one call; beyond it the server's clock has jumped.
pub(super) const MOST_SKEW_MS: i64 = 2_000;

impl AccountLedger {
    /// The ledger's time, which never runs back. What a holder saw pass since its last reply tells a clock that was set
    /// from one that runs; who has heard nothing cannot tell, and then no more than a moment may have passed since the
    /// latest call, if anybody's slots depend on it. When the clock was set, time stands still for that call: what is late is
    /// safe, and what was missed is not made up for, because a lease may have begun in it.
    pub(super) fn tell_time(&mut self, request: &SyncRequest, server: Millis) -> Millis {
        let told = signed(server.0).saturating_add(self.clock_offset);
        if self.terms.is_none() {
            return Millis(u64::try_from(told).unwrap_or(0));
        }
        let latest = self.latest_call_at();
        let heard = request.last_heard.map(|(heard, elapsed)| heard.plus(elapsed));
        let expected = heard.or_else(|| self.depends_on_time(latest).then_some(latest));
        let was_set = expected.is_some_and(|expected| told > signed(expected.0).saturating_add(MOST_SKEW_MS));
        if was_set || told < signed(latest.0) {
            self.clock_offset = self.clock_offset.saturating_add(signed(latest.0)).saturating_sub(told);
            return latest;
        }
        Millis(u64::try_from(told).unwrap_or(0))
    }

    /// By the ledger's time. Whoever called then is not forgotten before somebody has called later.
    pub(super) fn latest_call_at(&self) -> Millis {
        self.shares.values().map(|share| share.renewed_at).max().unwrap_or(Millis::ZERO)
    }

    fn depends_on_time(&self, now: Millis) -> bool {
        now < self.frozen_until || self.granted().saturating_add(self.zombies()) > 0
    }

    /// Freezes after a failover, a restart, or the loss of this account, until whatever may run has ended.
    pub(super) fn watch_for_loss(&mut self, request: &SyncRequest, run: &str, now: Millis) {
        let (is_new, changed) = (self.terms.is_none(), self.run != run);
        let asserts = request.keep > 0;
        let quiet = request.lease;
        let known = self.shares.values().map(|share| share.longest_request);
        let ended = quiet.plus(known.fold(request.longest_request, Millis::max));
        let frozen_for = match (is_new, changed) {
            (true, _) if asserts => ended,
            (true, _) if request.guarded => quiet,
            (true, _) => Millis::ZERO,
            (false, true) => ended,
            // Born empty, and now somebody turns up who holds something of what was there before.
            (false, false) if asserts && now < self.frozen_until && !self.knows(request) => ended,
            (false, false) => return,
        };
        if changed && !is_new {
            self.movable = 0;
            for share in self.shares.values_mut() {
                share.asserted = false;
            }
        }
        run.clone_into(&mut self.run);
        self.frozen_until = self.frozen_until.max(now.plus(frozen_for));
    }

    fn knows(&self, request: &SyncRequest) -> bool {
        self.shares.get(&request.holder).is_some_and(|share| share.incarnation == request.incarnation)
    }

    /// Leases that have ended become zombies, zombies come free, and who was silent for longer than a call runs is
    /// forgotten: pods come and go under ever new names. Nobody is while the ledger is frozen, since it may not know when it
    /// heard him last.
    pub(super) fn expire(&mut self, caller: &HolderId, now: Millis) {
        self.zombies.retain(|free_at, _| *free_at > now);
        for share in self.shares.values_mut() {
            if share.granted > 0 && !share.is_leased(now) {
                share.zombies = std::mem::take(&mut share.granted);
                share.zombies_until = share.calls_end_by(now);
                share.picks.clear();
            }
            if share.zombies_until <= now {
                share.zombies = 0;
            }
        }
        if now < self.frozen_until {
            return;
        }
        let is_gone =
            |holder: &HolderId, share: &Share| holder != caller && share.granted == 0 && share.calls_end_by(now) <= now;
        for (_, gone) in self.shares.extract_if(.., |holder, share| is_gone(holder, share)) {
            inherit(&mut self.meters, &gone);
        }
    }
}
