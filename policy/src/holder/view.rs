//! What of a holder decides what comes next, for whoever compares states (`model/`).

use super::{Holder, TICK};
use crate::units::Millis;
use std::hash::{Hash, Hasher};

impl super::Servers {
    /// Hashes it. Whoever has been in charge for `oldest` might have been for ever.
    pub fn hash_view(&self, run: &str, now: Millis, oldest: Millis, state: &mut impl Hasher) {
        for seen in self.known(now) {
            (seen.run == run, seen.ago.min(oldest), seen.lost).hash(state);
        }
    }
}

impl Holder {
    /// How far the ledger's time, as this holder has it from the last reply, is from `ledger`; `None` before the first.
    pub fn hash_heard(&self, now: Millis, ledger: Millis, state: &mut impl Hasher) {
        self.last_heard.map(|(heard, at)| heard.plus(now.since(at)).0.wrapping_sub(ledger.0)).hash(state);
        self.jump.hash(state);
    }

    /// Hashes it, moments as distances from `now`, and the numbers of calls by their `rank`. Left out is what is only shown,
    /// and the ledger's moments. A moment `oldest` ago is as old as any.
    pub fn hash_view(&self, now: Millis, oldest: Millis, rank: impl Fn(u64) -> usize, state: &mut impl Hasher) {
        let age = |moment: Millis| now.since(moment).min(oldest);
        (self.terms.version, self.outage, self.idle_calls, self.idled).hash(state);
        self.is_failing.hash(state);
        (self.hold, self.contended).hash(state);
        (&self.picks, &self.allowances, self.is_answered, self.lease_ends.since(now)).hash(state);
        self.forgotten_at().since(now).hash(state);
        (self.outstanding.map(age), self.last_sent.map(|sent| now.since(sent).min(TICK))).hash(state);
        (&self.told, self.told_want, self.told_waiting, self.told_meters).hash(state);
        (self.is_urgent, self.is_changed).hash(state);
        self.refilled_at.map(|at| at.since(now)).hash(state);
        self.charges.hash_view(rank, state);
    }
}
