//! What time it is at an account, and what has ended by then: leases, the calls of who is gone, a freeze.

use super::{AccountLedger, Share, SyncRequest, inherit, signed};
use crate::units::{HolderId, Millis};

/// A holder's own clock and the ledger's may differ so much over one call; beyond it the server's clock has jumped.
pub(super) const MOST_SKEW_MS: i64 = 2_000;

impl AccountLedger {
    /// The ledger's time if a call comes too late: its caller has given it up, and makes another one. It changes nothing
    /// and renews no lease. Where the clock has jumped it looks the same; then the caller has its answer in time, and its
    /// next call says by how much.
    pub(super) fn late(&self, request: &SyncRequest, server: Millis) -> Option<Millis> {
        let deadline = deadline(request).filter(|_| self.terms.is_some())?;
        let told = self.at(server);
        let jump = request.jump.unwrap_or(Millis::ZERO);
        (told.since(jump) > deadline).then_some(told)
    }

    /// The ledger's time, which never runs back. What a holder saw pass since its last reply tells a clock that was set
    /// from one that runs; who has heard nothing cannot tell, and then no more than a moment may have passed since the
    /// latest call, if anybody's slots depend on it, unless two replicas' own clocks tell what has passed. When the clock was
    /// set, time stands still for that call: what is late is safe, and what was missed is not made up for, because a lease may
    /// have begun in it.
    pub(super) fn tell_time(&mut self, request: &SyncRequest, server: Millis) -> Millis {
        let told = signed(server.0).saturating_add(self.clock_offset);
        if self.terms.is_none() {
            return Millis(u64::try_from(told).unwrap_or(0));
        }
        let latest = self.latest_call_at();
        if let Some(deadline) = deadline(request) {
            let is_ahead = told > signed(deadline.0);
            let set = told.saturating_sub(request.jump.filter(|_| is_ahead).map_or(0, |jump| signed(jump.0)));
            let now = set.max(signed(latest.0));
            self.clock_offset = self.clock_offset.saturating_add(now).saturating_sub(told);
            return Millis(u64::try_from(now).unwrap_or(0));
        }
        let heard = request.last_heard.map(|(heard, elapsed)| heard.plus(elapsed));
        let is_told = self.depends_on_time(latest) && !self.has_passed(request, latest, told);
        let expected = heard.or_else(|| is_told.then_some(latest));
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

    /// Whether the time since the latest call has passed, though nobody has seen it pass: a whole fleet was down. The ledger's
    /// time was that of the latest caller's own clock then, and is that of this one's now.
    fn has_passed(&self, request: &SyncRequest, latest: Millis, told: i64) -> bool {
        let mut callers = self.shares.values().filter(|share| share.renewed_at == latest);
        agrees(request, Millis(u64::try_from(told).unwrap_or(0))) && callers.all(|share| share.agreed)
    }

    fn depends_on_time(&self, now: Millis) -> bool {
        now < self.frozen_until || self.granted().saturating_add(self.zombies()) > 0
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

/// Whether the ledger's time is that of the caller's own clock.
pub(super) fn agrees(request: &SyncRequest, now: Millis) -> bool {
    request.wall.is_some_and(|wall| wall.0.abs_diff(now.0) <= MOST_SKEW_MS.unsigned_abs())
}

/// By the ledger's time, of a call whose holder knows that. What it has seen pass is less than what has, by the time that
/// the last answer took, which is no longer than it waits.
fn deadline(request: &SyncRequest) -> Option<Millis> {
    let (heard, ago) = request.last_heard?;
    let patience = request.patience?;
    Some(heard.plus(ago).plus(patience).plus(patience))
}
