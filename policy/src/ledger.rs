//! The ledger's half of `sync`: the one place that knows an account's total.
//!
//! State, not increments: a call that is repeated, late or lost changes nothing twice. A slot is free only when
//! nobody can still be using it: the share of a holder that stopped renewing, or that restarted, becomes a *zombie*
//! for the longest time a call may run (DESIGN.md, "The ledger protocol").
//!
//! Invariants: Σ granted + Σ zombies ≤ the largest capacity in force since those slots were granted (I1). What holders
//! may draw of a rate or a budget without asking was taken out of its level before (I2). While the ledger is *frozen*,
//! because it may have lost what it knew, slots only move: it hands out no more than holders give up.
//!
//! Reading order: `message` (what is said), `share` (what a holder has), `meter` (rates and budgets), `order` (whose
//! turn it is) and `rivals` (among whom), `terms` (whose configuration counts), `time` (what has ended), `watch` (what may
//! be lost), and here what a call does with them. `quota-service/src/ledger/sync.lua` is the
//! translation of [`AccountLedger::sync`]; both answer the same.

mod message;
mod meter;
mod order;
mod rivals;
mod share;
mod terms;
mod time;
mod view;
mod watch;

pub use message::{
    Account, FlowName, Loss, MOST_ROWS, MOST_SERVERS, MOST_SPENT, MeterGrant, MeterReport, NotAFlow, NotAnAccount, Row,
    Sighting, Spent, SyncReply, SyncRequest, Synced, Terms, Version,
};
pub use meter::{Draw, Limit, MeterName};

use crate::units::{HolderId, Millis};
use meter::Meter;
use order::{Candidate, Order};
use serde::{Deserialize, Serialize};
use share::{Pick, Share};
use std::collections::{BTreeMap, BTreeSet};
use time::agrees;
use watch::Watch;

/// The server that keeps an account: which run of it, and what its clock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server<'a> {
    /// Another one after every start, and on every replica: what it knows may be older than what holders know.
    pub run: &'a str,
    pub now: Millis,
}

/// One account as the ledger knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AccountLedger {
    /// As the holder with the latest configuration has told; `None` before the first call.
    terms: Option<Terms>,
    shares: BTreeMap<HolderId, Share>,
    /// Slots of incarnations that are gone, by the moment they come free.
    zombies: BTreeMap<Millis, u32>,
    order: Order,
    meters: BTreeMap<MeterName, Meter>,
    /// Weighted tokens charged to this account, ever.
    spent: i64,
    /// The run of the server that answered last.
    run: String,
    /// What the server's clock lacks, so that time runs on when it jumps.
    clock_offset: i64,
    frozen_until: Millis,
    #[serde(default)]
    watch: Watch,
    /// Slots that holders have given up since the ledger froze, and that may be handed out again.
    movable: u32,
    swept_at: Millis,
}

/// How often counters that say nothing any more are forgotten.
const SWEEP_EVERY: Millis = Millis(60_000);
/// Two months: a budget of the month in which it was last used is over by then.
const FORGOTTEN_AFTER: Millis = Millis(62 * 86_400_000);

impl AccountLedger {
    /// Answers one call.
    pub fn sync(&mut self, request: &SyncRequest, server: Server<'_>) -> Synced {
        if self.is_stale(request) {
            let reply = self.reply(&request.holder, None, self.latest_call_at());
            return Synced { reply, notices: BTreeMap::new() };
        }
        if let Some(told) = self.late(request, server.now) {
            return Synced { reply: SyncReply::late(request, told), notices: BTreeMap::new() };
        }
        let now = self.tell_time(request, server.now);
        self.watch_for_loss(request, server.run, now);
        self.expire(&request.holder, now);
        self.take_terms(&request.holder, &request.terms, server.now, now);
        let picks = self.take_share(request, now);
        self.thaw(now);
        self.take_draws(request, now);
        self.take_charges(request, &picks, now);
        self.take_rows(request, now);
        let mut served = BTreeSet::new();
        let wait = self.walk(&request.holder, now, &mut served);
        self.lend_ahead(request, now);
        self.sweep(now);
        let notices = self.notices(&request.holder, &served, now);
        Synced { reply: self.reply(&request.holder, wait, now), notices }
    }

    #[must_use]
    pub fn granted(&self) -> u32 {
        self.shares.values().fold(0, |sum, share| sum.saturating_add(share.granted))
    }

    #[must_use]
    pub fn zombies(&self) -> u32 {
        let own = self.shares.values().map(|share| share.zombies);
        self.zombies.values().copied().chain(own).fold(0, u32::saturating_add)
    }

    /// What is left of a rate or a budget, lent or not, as far as it has been told what was drawn; negative is debt.
    #[must_use]
    pub fn left(&self, meter: MeterName, now: Millis) -> Option<i64> {
        let mut left = self.meters.get(&meter)?.clone();
        left.refill(now);
        let lent = self.shares.values().filter_map(|share| share.lent.get(&meter)).map(|lent| lent.held);
        Some(lent.fold(left.level(), |sum, held| sum.saturating_add(signed(held))))
    }

    /// Weighted tokens charged to this account by all incarnations of all holders.
    #[must_use]
    pub fn spent(&self) -> i64 {
        self.spent
    }

    /// Whether nobody has called for so long that no budget, debt or call of before counts any more.
    #[must_use]
    pub fn is_forgotten(&self, server: Millis) -> bool {
        self.at(server).since(self.swept_at) > FORGOTTEN_AFTER
    }

    fn is_stale(&self, request: &SyncRequest) -> bool {
        let known = self.shares.get(&request.holder);
        known.is_some_and(|share| (request.incarnation, request.seq) <= (share.incarnation, share.seq))
    }

    /// Takes in what the holder keeps. It cannot keep more than it was granted, or, after its lease ended, than what
    /// became a zombie: a `keep` that was sent before must not create slots. Only while the ledger is frozen a holder's
    /// first word counts more than the ledger's, and where there are no slots to count. Returns its picks until now, which
    /// the holder has told of since, if they have started.
    fn take_share(&mut self, request: &SyncRequest, now: Millis) -> BTreeMap<FlowName, Pick> {
        let is_frozen = self.is_frozen_at(now);
        let known = self.shares.remove(&request.holder);
        let (old, gone) = match known {
            Some(share) if share.incarnation == request.incarnation => (share, None),
            gone => (Share { contended: false, ..Share::default() }, gone),
        };
        if let Some(gone) = gone {
            self.await_no_more(&request.holder, &gone);
            self.bury(&gone, now);
        }
        let held = old.granted.max(old.zombies);
        let asserts = is_frozen && !old.asserted || !self.has_slots();
        let kept = if asserts { request.keep } else { request.keep.min(held) };
        if is_frozen && !asserts {
            self.movable = self.movable.saturating_add(held - kept);
        }
        let picks = old.picks;
        let share = Share {
            incarnation: request.incarnation,
            granted: kept,
            zombies: 0,
            zombies_until: Millis::ZERO,
            renewed_at: now,
            lease: request.lease,
            longest_request: request.longest_request,
            version: Some(request.terms.version),
            agreed: agrees(request, now),
            asserted: true,
            has_left: request.keep == 0 && request.want == 0 && request.rows.is_empty(),
            picks: BTreeMap::new(),
            ..old
        };
        self.shares.insert(request.holder.clone(), share);
        picks
    }

    /// Ends an old incarnation: whatever it was granted may still be running, and whatever it was lent it draws no more.
    fn bury(&mut self, old: &Share, now: Millis) {
        inherit(&mut self.meters, old);
        let slots = old.granted.max(old.zombies);
        if slots > 0 {
            let sum = self.zombies.entry(old.calls_end_by(now)).or_default();
            *sum = sum.saturating_add(slots);
        }
    }

    /// What a holder has drawn in all is told against what it told before. This ledger may not know that: it has lost the
    /// account, or has forgotten a holder that was silent for long. The holder does: what was answered was counted once.
    fn take_draws(&mut self, request: &SyncRequest, now: Millis) {
        for meter in self.meters.values_mut() {
            meter.refill(now);
        }
        let Some(share) = self.shares.get_mut(&request.holder) else { return };
        for (name, report) in &request.meters {
            if let Some(meter) = self.meters.get_mut(name) {
                meter.report(share.lent.entry(*name).or_default(), report);
            }
        }
    }

    /// Takes back what picks were charged, and counts what was charged under numbers that this ledger has not seen yet.
    fn take_charges(&mut self, request: &SyncRequest, picks: &BTreeMap<FlowName, Pick>, now: Millis) {
        let (Some(terms), Some(share)) = (self.terms.clone(), self.shares.get_mut(&request.holder)) else { return };
        let seen = std::mem::replace(&mut share.seq, request.seq);
        let is_idle = request.spent.is_empty() && picks.is_empty();
        let rivals = if is_idle { BTreeSet::new() } else { self.rivals(now) };
        for (flow, pick) in picks {
            for _ in 0..pick.slots {
                self.order.uncharge(flow, pick.weight, pick.head.tokens.0, &terms, rivals.iter());
            }
        }
        for spent in request.spent.iter().filter(|spent| spent.seq > seen) {
            self.spent = self.spent.saturating_add(spent.charge);
            let amount = spent.charge.unsigned_abs();
            if spent.charge < 0 {
                self.order.uncharge(&spent.flow, spent.weight, amount, &terms, rivals.iter());
            } else {
                self.order.wake(&spent.flow, rivals.iter());
                self.order.charge(&spent.flow, spent.weight, amount, &terms, rivals.iter());
            }
        }
    }

    /// What the caller's rows tell takes the place of what they told before. What has its turn from now on, here or at
    /// another holder, claims nothing of the past; what only stands behind others of its tenant is kept from it too.
    fn take_rows(&mut self, request: &SyncRequest, now: Millis) {
        let before = self.rivals(now);
        if let Some(share) = self.shares.get_mut(&request.holder) {
            share.first = request.rows.first().map(|row| row.flow.clone());
            share.take_rows(&request.rows, now);
        }
        let after = self.rivals(now);
        self.wake_all(request.rows.iter().map(|row| &row.flow).chain(&after), &before);
    }

    /// Hands out what is free, one slot with its tokens at a time, to the row whose turn it is. Tells how long the
    /// first row waits for its tokens, if that is what it waits for.
    fn walk(&mut self, caller: &HolderId, now: Millis, served: &mut BTreeSet<HolderId>) -> Option<Millis> {
        let terms = self.terms.clone()?;
        if self.free(now) == 0 {
            return None;
        }
        let (rivals, mut open) = (self.rivals(now), self.open_rivals(now));
        // Whoever waits alone is served in its own order, which is then the global one. It knows that order beyond its
        // first row, so of an account with rates it gets one turn at a time, and the slots it may use ahead.
        let mut alone = self.waits_alone(now);
        let one_turn = !self.meters.is_empty() && alone.as_ref().is_some_and(|(holder, _)| holder == caller);
        while self.free(now) > 0 {
            let (holder, flow) = alone.take().or_else(|| self.first_row(&open, &terms, now))?;
            if let Err(wait) = self.pick(&holder, &flow, &rivals, &terms, now) {
                return wait;
            }
            // Where that was the last of its flow, another one of its tenant may have its turn.
            if !self.is_open(&flow, now) {
                let after = self.open_rivals(now);
                self.wake_all(after.difference(&open), &rivals);
                open = after;
            }
            served.insert(holder);
            if one_turn {
                break;
            }
        }
        None
    }

    /// The only holder where anybody waits, and its first row, unless that has all its slots.
    fn waits_alone(&self, now: Millis) -> Option<(HolderId, FlowName)> {
        let mut waiting = self.shares.iter().filter(|(_, share)| share.unserved(now));
        let (holder, share) = waiting.next()?;
        let first = share.first.as_ref().filter(|_| waiting.next().is_none())?;
        let is_open = share.open_rows().any(|(flow, _)| flow == first);
        is_open.then(|| (holder.clone(), first.clone()))
    }

    fn first_row(&self, open: &BTreeSet<FlowName>, terms: &Terms, now: Millis) -> Option<(HolderId, FlowName)> {
        let rows = self.shares.iter().filter(|(_, share)| share.has_fresh_rows(now)).flat_map(|(holder, share)| {
            let rivals = share.open_rows().filter(|(flow, _)| open.contains(*flow));
            rivals.map(move |(flow, row)| Candidate { flow, holder, since: row.since })
        });
        self.order.first(rows, terms.policy).map(|row| (row.holder.clone(), row.flow.clone()))
    }

    /// Gives a row a slot with all that its first call draws, or nothing and the time until that may change.
    fn pick(
        &mut self,
        holder: &HolderId,
        flow: &FlowName,
        rivals: &BTreeSet<FlowName>,
        terms: &Terms,
        now: Millis,
    ) -> Result<(), Option<Millis>> {
        let Some(share) = self.shares.get_mut(holder) else { return Err(None) };
        let Some(row) = share.rows.get(flow).copied() else { return Err(None) };
        // A row's picks are charged alike: their calls' own charges are told when they start.
        let head = share.picks.get(flow).map_or(row.head, |pick| pick.head);
        let amount = |name: MeterName| name.amount(head);
        let lacking = self.meters.iter().filter(|(name, meter)| !meter.allows(amount(**name), share.spare(**name)));
        let waits: Vec<Option<Millis>> =
            lacking.map(|(name, meter)| meter.wait_for(amount(*name), share.spare(*name))).collect();
        if !waits.is_empty() {
            return Err(waits.into_iter().collect::<Option<Vec<_>>>().and_then(|waits| waits.into_iter().max()));
        }
        for (name, meter) in &mut self.meters {
            let missing = amount(*name).saturating_sub(share.spare(*name));
            meter.lend(share.lent.entry(*name).or_default(), missing);
        }
        share.granted = share.granted.saturating_add(1);
        let pick = share.picks.entry(flow.clone()).or_insert(Pick { slots: 0, weight: row.weight, head });
        pick.slots += 1;
        if let Some(row) = share.rows.get_mut(flow) {
            // Of two holders with calls of one flow, the next turn is the other's.
            row.since = now;
        }
        if self.is_frozen_at(now) {
            self.movable = self.movable.saturating_sub(1);
        }
        self.order.charge(flow, row.weight, head.tokens.0, terms, rivals.iter());
        Ok(())
    }

    /// Slots that may be handed out.
    fn free(&self, now: Millis) -> u32 {
        let capacity = self.terms.as_ref().map_or(0, |terms| terms.capacity);
        let free = capacity.saturating_sub(self.granted().saturating_add(self.zombies()));
        if self.is_frozen_at(now) { free.min(self.movable) } else { free }
    }

    /// While nobody waits elsewhere, the caller gets slots and tokens to start calls without asking.
    fn lend_ahead(&mut self, request: &SyncRequest, now: Millis) {
        if request.want == 0 || self.is_contended(&request.holder, now) {
            return;
        }
        let free = self.free(now);
        let holders = self.shares.values().filter(|share| share.is_leased(now)).count();
        let Some(share) = self.shares.get_mut(&request.holder) else { return };
        let more = request.want.saturating_sub(share.granted).min(free);
        share.granted += more;
        for (name, meter) in self.meters.iter_mut().filter(|_| request.ahead) {
            let promised = share.promised(*name);
            let lent = share.lent.entry(*name).or_default();
            meter.lend_ahead(lent, promised, u64::try_from(holders).unwrap_or(u64::MAX));
        }
        if self.is_frozen_at(now) {
            self.movable = self.movable.saturating_sub(more);
        }
    }

    /// Whether somebody waits at another holder, or more is granted than there is since the capacity was lowered.
    fn is_contended(&self, holder: &HolderId, now: Millis) -> bool {
        let capacity = self.terms.as_ref().map_or(0, |terms| terms.capacity);
        let is_over = self.granted().saturating_add(self.zombies()) > capacity;
        is_over || self.shares.iter().any(|(other, share)| other != holder && share.unserved(now))
    }

    fn sweep(&mut self, now: Millis) {
        if now.since(self.swept_at) >= SWEEP_EVERY {
            self.swept_at = now;
            let waiting = waiting(&self.shares, now);
            self.order.sweep(waiting);
        }
    }

    /// News for others: slots that it was their turn for, and, once, that they must hand back what comes free.
    fn notices(
        &mut self,
        caller: &HolderId,
        served: &BTreeSet<HolderId>,
        now: Millis,
    ) -> BTreeMap<HolderId, SyncReply> {
        let contended: BTreeMap<HolderId, bool> =
            self.shares.keys().map(|holder| (holder.clone(), self.is_contended(holder, now))).collect();
        let mut told = Vec::new();
        for (holder, share) in &mut self.shares {
            let is_contended = contended.get(holder).copied().unwrap_or(false);
            let is_news = is_contended && !share.contended && share.granted > 0;
            share.contended = is_contended;
            if holder != caller && (is_news || served.contains(holder)) {
                told.push(holder.clone());
            }
        }
        told.into_iter().map(|holder| (holder.clone(), self.reply(&holder, None, now))).collect()
    }

    fn reply(&self, holder: &HolderId, wait: Option<Millis>, now: Millis) -> SyncReply {
        let share = self.shares.get(holder).cloned().unwrap_or_default();
        let grant = |(name, meter): (&MeterName, &Meter)| {
            (*name, meter.grant(share.lent.get(name).copied().unwrap_or_default()))
        };
        SyncReply {
            incarnation: share.incarnation,
            seq: share.seq,
            granted: share.granted,
            picks: share.picks.iter().map(|(flow, pick)| (flow.clone(), pick.slots)).collect(),
            contended: share.contended,
            meters: self.meters.iter().map(grant).collect(),
            now,
            late: false,
            wait,
            alone: self.shares.iter().all(|(other, share)| other == holder || share.holds_nothing()),
            zombies: self.zombies(),
            frozen_until: self.is_frozen_at(now).then_some(self.frozen_until),
            server: Some(self.sighting(now)),
        }
    }
}

/// What a holder that is gone was lent of budgets comes back. Of a rate it does not: the requests that were drawn of that
/// in the last moments nobody charges later, and time brings it back anyway.
fn inherit(meters: &mut BTreeMap<MeterName, Meter>, gone: &Share) {
    for (name, lent) in &gone.lent {
        if let Some(meter) = meters.get_mut(name).filter(|meter| matches!(meter.limit(), Limit::Budget { .. })) {
            meter.inherit(lent.held);
        }
    }
}

/// The flows that wait anywhere.
fn waiting(shares: &BTreeMap<HolderId, Share>, now: Millis) -> impl Iterator<Item = &FlowName> + Clone {
    shares.values().filter(move |share| share.has_fresh_rows(now)).flat_map(|share| share.rows.keys())
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
