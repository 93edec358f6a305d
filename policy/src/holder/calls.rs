//! What a holder says to the ledger, and what it makes of the answers.

use super::{Demand, FlowNames, Holder, TICK, less_drift};
use crate::ledger::{MeterName, MeterReport, Row, SyncReply, SyncRequest};
use crate::units::Millis;
use std::collections::BTreeMap;

/// Slots held beyond the demand, as a fraction of the capacity: enough to start calls without asking, few enough
/// that a crash does not cost the whole pool.
const HEADROOM_DIVISOR: u32 = 4;
/// More is not worth a crash, however large the account.
const MOST_HEADROOM: u32 = 64;
/// Between a call that was not answered and the next one, at most.
const LONGEST_PAUSE: Millis = Millis(500);
/// Nobody waits longer for the ledger's answer: the largest `ledger.redis.timeout_ms`.
const PATIENCE: Millis = Millis(500);

impl Holder {
    /// Makes the next call; what the replica knows of [`super::Servers`] is to be added. Lowers the hold *before* the call
    /// goes out. `rows` are the first flows that wait, at most [`crate::ledger::MOST_ROWS`], in the order in which they would
    /// be served here.
    pub fn ask(&mut self, demand: Demand, rows: Vec<Row>, names: &impl FlowNames, now: Millis) -> SyncRequest {
        let headroom = (self.terms.capacity / HEADROOM_DIVISOR).clamp(1, MOST_HEADROOM);
        let want = demand.running.saturating_add(demand.waiting).saturating_add(headroom).min(self.terms.capacity);
        let is_resting = self.is_resting(demand);
        let idle_calls = self.idle_calls.unwrap_or_default();
        // It rests once what it gives back is known to have arrived.
        let want = if is_resting && self.idled >= idle_calls && !self.is_failing { 0 } else { want };
        self.idled = if is_resting { idle_calls.min(self.idled.saturating_add(1)) } else { 0 };
        let keep = self.kept(demand, want, now);
        self.told_waiting = demand.waiting;
        self.call(keep, want, rows, names, now)
    }

    /// Slots that it keeps of those it holds.
    fn kept(&self, demand: Demand, want: u32, now: Millis) -> u32 {
        // While its last call is unanswered it gives nothing back. A ledger that has lost its latest moments believes what
        // holders assert, and nothing that was given up before that may move until it thaws.
        if self.is_failing && !self.is_forgotten(now) {
            return self.hold;
        }
        // Who waits beside an idle slot waits for a rate, and gets both from the ledger, all or nothing; or for the lease.
        let waits_for_rate = demand.waiting > 0 && (self.is_leased(now) || !self.terms.meters.is_empty());
        let keeps_idle = !self.contended && !waits_for_rate && !self.is_forgotten(now);
        if keeps_idle { want.max(demand.running) } else { demand.running }
    }

    /// Makes the last call of an incarnation that ends in order: it keeps what still runs and wants nothing. No other call
    /// follows, so it counts however late it comes.
    pub fn give_back(&mut self, running: u32, names: &impl FlowNames, now: Millis) -> SyncRequest {
        let call = self.call(running, 0, Vec::new(), names, now);
        SyncRequest { patience: None, spent: self.charges.tell_last(self.seq, names).to_vec(), ..call }
    }

    /// Takes the answer to the latest call; anything else is ignored. Tells whether it was taken.
    pub fn answered(&mut self, reply: &SyncReply, names: &impl FlowNames, now: Millis) -> bool {
        let Some(sent) = self.outstanding.filter(|_| self.is_latest(reply)) else { return false };
        if reply.late {
            self.jump = self.jump_shown_by(reply, sent, now);
            return false;
        }
        (self.failures, self.retry_at, self.jump) = (0, Millis::ZERO, None);
        self.lease_ends = sent.plus(less_drift(self.replica.lease.lease));
        self.outstanding = None;
        self.answered = Some(self.seq);
        self.last_heard = Some((reply.now, now));
        self.refilled_at = reply.wait.map(|wait| now.plus(wait));
        self.charges.answered();
        self.is_failing = false;
        self.is_alone = reply.alone;
        self.take(reply, names);
        true
    }

    /// Takes what somebody else's call has changed. It does not renew the lease. Tells whether it was taken.
    pub fn noticed(&mut self, notice: &SyncReply, names: &impl FlowNames) -> bool {
        let is_latest = self.is_latest(notice);
        if is_latest {
            self.take(notice, names);
        }
        is_latest
    }

    /// The latest call got no answer; it may or may not have been applied, which the next one repairs.
    pub fn failed(&mut self) {
        self.outstanding = None;
        self.is_failing = true;
        self.failures = self.failures.saturating_add(1);
        self.is_alone = false;
    }

    /// Waits before the next call, longer after every one that fails, so that a ledger that has fallen behind catches up.
    /// `chance` is drawn anew each time: of many holders some ask early and some late.
    pub fn back_off(&mut self, chance: u16, now: Millis) {
        let doublings = self.failures.saturating_sub(1).min(8);
        let most = (TICK.0 << doublings).min(LONGEST_PAUSE.0);
        self.retry_at = now.plus(Millis(most * u64::from(chance) / u64::from(u16::MAX)));
    }

    /// How far the ledger's clock is ahead of what it can be by the time that this call took.
    fn jump_shown_by(&self, late: &SyncReply, sent: Millis, now: Millis) -> Option<Millis> {
        let (heard, at) = self.last_heard?;
        let latest = heard.plus(now.since(at.min(sent)));
        Some(late.now.since(latest)).filter(|jump| *jump > Millis::ZERO)
    }

    fn is_latest(&self, reply: &SyncReply) -> bool {
        (reply.incarnation, reply.seq) == (self.replica.incarnation, self.seq)
    }

    /// The first word on a call sets the hold; what comes after it can only have added to it.
    fn take(&mut self, reply: &SyncReply, names: &impl FlowNames) {
        let is_first = !std::mem::replace(&mut self.is_answered, true);
        self.hold = if is_first { reply.granted } else { self.hold.max(reply.granted) };
        self.picks.take(&reply.picks, names);
        for (name, grant) in &reply.meters {
            self.allowances.entry(*name).or_default().take(grant, is_first);
        }
        // The first word on a call was said after all words on earlier ones, whatever the ledger's clock has done since.
        if is_first || reply.now >= self.heard_at {
            self.heard_at = reply.now;
            self.contended = reply.contended;
        }
    }

    fn call(&mut self, keep: u32, want: u32, rows: Vec<Row>, names: &impl FlowNames, now: Millis) -> SyncRequest {
        self.hold = self.hold.min(keep);
        self.seq += 1;
        self.is_answered = false;
        self.outstanding = Some(now);
        self.last_sent = Some(now);
        self.refilled_at = None;
        // Picks that nobody has used by now were for callers who have left: their slots go back.
        let picks = std::mem::take(&mut self.picks);
        self.told = rows.iter().map(|row| row.flow.clone()).collect();
        self.told_want = want;
        self.told_meters = !self.terms.meters.is_empty();
        self.is_urgent = false;
        self.is_changed = false;
        let spent = self.charges.tell(self.seq, picks.started.into_keys(), names).to_vec();
        // One's own ledger is asked whenever something is drawn, so nothing need be kept.
        let keeps_allowance = self.replica.lease.shared && want > 0 && !self.contended;
        SyncRequest {
            holder: self.replica.id.clone(),
            incarnation: self.replica.incarnation,
            seq: self.seq,
            keep: self.hold,
            want,
            terms: self.terms.clone(),
            lease: self.replica.lease.lease,
            longest_request: self.replica.lease.longest_request,
            last_heard: self.last_heard.map(|(ledger, sent)| (ledger, now.since(sent))),
            wall: self.replica.lease.shared.then_some(now.plus(Millis(self.replica.incarnation))),
            answered: self.answered,
            patience: self.replica.lease.shared.then_some(PATIENCE),
            jump: self.jump,
            guarded: self.stays_warm() && self.replica.lease.shared,
            ahead: self.replica.lease.shared,
            spent,
            servers: Vec::new(),
            rows,
            meters: self.report(keeps_allowance),
        }
    }

    fn report(&mut self, keeps_allowance: bool) -> BTreeMap<MeterName, MeterReport> {
        let allowances = &mut self.allowances;
        self.terms
            .meters
            .keys()
            .map(|name| (*name, allowances.entry(*name).or_default().report(keeps_allowance)))
            .collect()
    }
}
