//! The holder's half of `sync`: what this replica may start, and when it must ask.
//!
//! A lease counts from *sending*, on the holder's own clock, so a slow answer makes it shorter, never longer. While
//! nobody waits elsewhere the holder keeps its slots and serves its own queue; while somebody does it owes every slot
//! that comes free, and starts only its *picks*, the calls whose turn it is by the order over all holders (DESIGN.md,
//! "The ledger protocol", 4).
//!
//! Invariant (I1): running ≤ hold ≤ what the ledger has granted, as long as the lease lasts; after that nothing new
//! starts. It lowers its hold before it says so, and raises it after the ledger has.

mod allowance;
mod calls;
mod charges;
mod picks;
mod servers;
mod view;

use crate::ledger::{Draw, FlowName, Limit, MeterName, Terms};
use crate::queue::Flow;
use crate::units::{HolderId, Millis, Priority};
use allowance::Allowance;
use charges::Charges;
use picks::Picks;
pub use servers::Servers;
use std::collections::{BTreeMap, BTreeSet};

/// What a holder needs to know to talk to the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseTerms {
    pub lease: Millis,
    pub longest_request: Millis,
    /// Whether the ledger is elsewhere, and others ask it too. Then rates and budgets are borrowed before they are needed,
    /// because asking takes a round trip, and it may lose what it knew. A ledger of one's own is exact to the call.
    pub shared: bool,
}

/// Who asks the ledger, for every account.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Replica {
    pub id: HolderId,
    /// Grows with every start; in production the Unix time of the start, in ms.
    pub incarnation: u64,
    pub lease: LeaseTerms,
}

/// What happens while the ledger does not answer and the lease has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Outage {
    /// Nothing starts.
    #[default]
    Closed,
    /// Every replica starts calls as if the account were its own: I1 is not kept.
    Open,
}

/// What a replica uses of an account, and what waits for more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Slots in use.
    pub running: u32,
    /// Calls that wait.
    pub waiting: u32,
}

/// What replicas call flows among each other. Their places in a table are every replica's own.
pub trait FlowNames {
    fn name(&self, flow: Flow) -> Option<FlowName>;

    /// `None` for a flow that this replica does not know (any more).
    fn flow(&self, name: &FlowName) -> Option<Flow>;
}

/// One account as a replica holds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    replica: Replica,
    terms: Terms,
    outage: Outage,
    /// After so many calls in a row that nobody needed it gives everything back, and asks again when somebody does. `None`:
    /// it asks for slots before anybody needs them, and keeps its lease while it is idle.
    idle_calls: Option<u8>,
    /// Calls in a row that nobody needed, as far as they count.
    idled: u8,
    hold: u32,
    contended: bool,
    /// The ledger's time of the latest word on `contended`.
    heard_at: Millis,
    picks: Picks,
    allowances: BTreeMap<MeterName, Allowance>,
    seq: u64,
    /// Something has answered the latest call: its reply, or a notice that overtook it.
    is_answered: bool,
    lease_ends: Millis,
    /// The call that has no answer yet, and when it went out. At most one.
    outstanding: Option<Millis>,
    last_sent: Option<Millis>,
    /// The number of the last call that was answered.
    answered: Option<u64>,
    /// The ledger's time in the last reply, and when that came in: what has passed since is no more than what has passed
    /// at the ledger.
    last_heard: Option<(Millis, Millis)>,
    /// The flows that the latest call told of.
    told: BTreeSet<FlowName>,
    told_want: u32,
    /// Of the calls that waited then, those that may wait still.
    told_waiting: u32,
    /// The ledger was told of rates or budgets.
    told_meters: bool,
    /// A P0 has begun to wait that the latest call did not tell of.
    is_urgent: bool,
    /// Nobody else holds anything of the account, or nothing is known of it.
    is_alone: bool,
    /// Something has begun to wait, started, ended or changed since the latest call.
    is_changed: bool,
    /// The latest call was not answered.
    is_failing: bool,
    /// Calls in a row that were not.
    failures: u8,
    /// No call is made before, while they are not.
    retry_at: Millis,
    /// What the ledger's clock has run ahead by since the last reply, as a late one showed.
    jump: Option<Millis>,
    /// When a rate is expected to have refilled for the first row.
    refilled_at: Option<Millis>,
    charges: Charges,
}

/// Of a lease, this fraction is not used: clocks of two machines drift apart.
const DRIFT_DIVISOR: u64 = 50;
/// No call is due by time alone.
const NEVER: Millis = Millis(u64::MAX);
/// Between two calls while somebody waits.
const TICK: Millis = Millis(100);

impl Holder {
    #[must_use]
    pub fn new(replica: &Replica, terms: Terms) -> Self {
        let allowances = terms.meters.iter().map(|(name, limit)| (*name, Allowance::of(*limit))).collect();
        Self {
            replica: replica.clone(),
            terms,
            outage: Outage::Closed,
            idle_calls: None,
            idled: 0,
            hold: 0,
            contended: false,
            heard_at: Millis::ZERO,
            picks: Picks::default(),
            allowances,
            seq: 0,
            is_answered: false,
            lease_ends: Millis::ZERO,
            outstanding: None,
            last_sent: None,
            answered: None,
            last_heard: None,
            told: BTreeSet::new(),
            told_want: 0,
            told_waiting: 0,
            told_meters: false,
            is_urgent: false,
            is_alone: false,
            is_changed: false,
            is_failing: false,
            failures: 0,
            retry_at: Millis::ZERO,
            jump: None,
            refilled_at: None,
            charges: Charges::default(),
        }
    }

    /// One that asks for an account only while it is used, and so many calls longer: whoever comes back soon finds it
    /// still leased.
    #[must_use]
    pub fn on_demand(self, idle_calls: u8) -> Self {
        Self { idle_calls: Some(idle_calls), ..self }
    }

    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.terms.capacity
    }

    /// Changes how the account is shared and limited; the ledger is told at the next call, which is due at once. What
    /// runs beyond a smaller capacity is kept until it ends, so that nobody else is granted its slots.
    pub fn set_terms(&mut self, terms: Terms, now: Millis) {
        if terms == self.terms {
            return;
        }
        for (name, allowance) in &mut self.allowances {
            match (self.terms.meters.get(name), terms.meters.get(name)) {
                (Some(Limit::Budget { period: old, .. }), Some(Limit::Budget { period: new, .. })) if old != new => {
                    allowance.begin_period(now);
                }
                (None, Some(new)) => allowance.begin_anew(*new),
                (old, new) if old != new => allowance.drop_rest(),
                _ => {}
            }
        }
        for (name, limit) in &terms.meters {
            self.allowances.entry(*name).or_insert_with(|| Allowance::of(*limit));
        }
        self.is_changed |= terms.meters != self.terms.meters;
        self.terms = terms;
        if self.stays_warm() {
            self.last_sent = None;
        }
    }

    #[must_use]
    pub fn outage(&self) -> Outage {
        self.outage
    }

    /// When the first row is expected to be lent what it waits for, if it is a rate that it waits for.
    #[must_use]
    pub fn refilled_at(&self) -> Option<Millis> {
        self.refilled_at
    }

    pub fn set_outage(&mut self, outage: Outage) {
        self.outage = outage;
    }

    /// Slots that may be in use now.
    #[must_use]
    pub fn usable(&self, now: Millis) -> u32 {
        match (self.is_leased(now), self.is_open(now)) {
            (true, _) => self.hold.min(self.terms.capacity),
            (false, true) => self.terms.capacity,
            (false, false) => 0,
        }
    }

    /// Whether calls may be started, or taken in to wait for it. A ledger does not answer when a call has failed, and also
    /// when the call that was to renew the lease is still out as it ends.
    #[must_use]
    pub fn is_open(&self, now: Millis) -> bool {
        let is_unanswered = self.is_failing || self.outstanding.is_some_and(|sent| sent < self.lease_ends);
        self.is_leased(now) || (is_unanswered && self.outage == Outage::Open)
    }

    /// Whether the ledger has answered lately enough to start anything.
    #[must_use]
    pub fn is_leased(&self, now: Millis) -> bool {
        now < self.lease_ends
    }

    /// When the lease ends, where calls may start without one.
    #[must_use]
    pub fn opens_at(&self, now: Millis) -> Option<Millis> {
        (self.outage == Outage::Open && self.is_leased(now)).then_some(self.lease_ends)
    }

    /// Whether the lease ended so long ago that the ledger may have given its slots to others. A ledger that has lost what
    /// it knew would believe whoever said that he still held them.
    fn is_forgotten(&self, now: Millis) -> bool {
        now >= self.forgotten_at()
    }

    fn forgotten_at(&self) -> Millis {
        self.lease_ends.plus(less_drift(self.replica.lease.longest_request))
    }

    /// Whether the ledger has ever answered.
    #[must_use]
    pub fn has_been_leased(&self) -> bool {
        self.lease_ends > Millis::ZERO
    }

    /// Whether somebody waits at another replica, as far as is known.
    #[must_use]
    pub fn is_contended(&self) -> bool {
        self.contended
    }

    /// Whether a call of this flow may start beside `running` others. While somebody waits elsewhere only a pick may.
    #[must_use]
    pub fn may_start(&self, flow: Flow, draw: impl Into<Draw>, running: u32, now: Millis) -> bool {
        if running >= self.usable(now) {
            return false;
        }
        if !self.is_leased(now) {
            return true;
        }
        let has_turn = !self.contended || self.picks.left(flow) > 0;
        has_turn && self.can_draw(draw.into())
    }

    /// The flows whose turn it is while somebody waits elsewhere.
    pub fn picked(&self) -> impl Iterator<Item = Flow> {
        self.picks.given.keys().copied().filter(|flow| self.picks.left(*flow) > 0)
    }

    /// A call of this flow has begun to wait.
    pub fn joined(&mut self, flow: Flow, names: &impl FlowNames) {
        self.is_changed = true;
        if flow.level == Priority::FIRST && !self.is_urgent {
            self.is_urgent = names.name(flow).is_none_or(|name| !self.told.contains(&name));
        }
    }

    /// Whether every rate and budget has lent enough for a call.
    #[must_use]
    pub fn can_draw(&self, draw: Draw) -> bool {
        self.terms.meters.keys().all(|name| {
            let left = self.allowances.get(name).map_or(0, |allowance| allowance.left);
            left >= i64::try_from(name.amount(draw)).unwrap_or(i64::MAX)
        })
    }

    /// A call waits no more: it starts, or has left.
    pub fn stopped_waiting(&mut self) {
        self.told_waiting = self.told_waiting.saturating_sub(1);
        self.is_changed = true;
    }

    /// A call has a slot no more.
    pub fn stopped_running(&mut self) {
        self.is_changed = true;
    }

    /// A call has started.
    pub fn start(&mut self, flow: Flow, weight: u64, draw: impl Into<Draw>) {
        let draw = draw.into();
        if self.picks.left(flow) > 0 {
            *self.picks.started.entry(flow).or_default() += 1;
        }
        self.is_changed = true;
        for name in self.terms.meters.keys() {
            self.allowances.entry(*name).or_default().draw(signed(name.amount(draw)));
        }
        self.charges.add(flow, weight, signed(draw.tokens.0));
    }

    /// A call that was charged `reserved` at `charged_at` has cost `actual`.
    pub fn correct(
        &mut self,
        flow: Flow,
        weight: u64,
        reserved: impl Into<Draw>,
        actual: impl Into<Draw>,
        charged_at: Millis,
    ) {
        let (reserved, actual) = (reserved.into(), actual.into());
        for name in self.terms.meters.keys() {
            let more = signed(name.amount(actual)) - signed(name.amount(reserved));
            self.allowances.entry(*name).or_default().correct(more, charged_at);
        }
        self.charges.add(flow, weight, signed(actual.tokens.0) - signed(reserved.tokens.0));
        self.is_changed = true;
    }

    /// A call that had started at `charged_at` counts no more: it never reached a model.
    pub fn take_back(&mut self, flow: Flow, weight: u64, draw: impl Into<Draw>, charged_at: Millis) {
        let draw = draw.into();
        for name in self.terms.meters.keys() {
            self.allowances.entry(*name).or_default().correct(-signed(name.amount(draw)), charged_at);
        }
        self.charges.add(flow, weight, -signed(draw.tokens.0));
        self.is_changed = true;
    }

    /// What is left of a rate or a budget as far as this replica knows, whatever others draw meanwhile; negative is debt.
    /// `None` before the ledger has told.
    #[must_use]
    pub fn left(&self, meter: MeterName, now: Millis) -> Option<i64> {
        let (_, heard) = self.last_heard?;
        let limit = self.terms.meters.get(&meter)?;
        Some(self.allowances.get(&meter)?.estimate(*limit, now.since(heard)))
    }

    /// The same of every rate and budget that the ledger has told of.
    #[must_use]
    pub fn levels(&self, now: Millis) -> BTreeMap<MeterName, i64> {
        self.terms.meters.keys().filter_map(|name| Some((*name, self.left(*name, now)?))).collect()
    }

    /// Whether a call could be lent what it draws, if nobody else draws.
    #[must_use]
    pub fn may_be_lent(&self, draw: impl Into<Draw>, now: Millis) -> bool {
        let draw = draw.into();
        self.terms
            .meters
            .iter()
            .all(|(name, limit)| self.left(*name, now).is_some_and(|left| left >= limit.needed(name.amount(draw))))
    }

    /// Whether its last word is final for the moment: nobody else has anything to give back.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.is_alone
    }

    /// Whether the latest call was granted all that it wanted, so that the ledger may have more.
    #[must_use]
    pub fn had_all(&self) -> bool {
        self.hold >= self.told_want && self.hold < self.terms.capacity
    }

    /// Whether the ledger has not answered the latest call.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.is_failing
    }

    /// Whether nothing starts because the ledger does not answer.
    #[must_use]
    pub fn is_cut_off(&self, now: Millis) -> bool {
        self.is_failing && !self.is_open(now)
    }

    /// Whether it is time to ask: at once when something waits that the ledger does not know of, or when a slot is owed
    /// to somebody elsewhere; every tick while somebody waits; else every third of a lease.
    #[must_use]
    pub fn is_due(&self, demand: Demand, now: Millis) -> bool {
        self.outstanding.is_none() && self.next_sync(demand, now) <= now
    }

    /// The next moment at which [`Holder::is_due`] turns true by time alone, for the caller's timer. Never while a call is
    /// out: its answer or its failure comes first.
    #[must_use]
    pub fn next_sync(&self, demand: Demand, now: Millis) -> Millis {
        if self.outstanding.is_some() {
            return NEVER;
        }
        let Some(sent) = self.last_sent else {
            return if self.stays_warm() || !self.is_resting(demand) { now } else { NEVER };
        };
        if self.is_answered && (self.owes(demand) || self.is_news(demand) || self.is_inexact()) {
            return now.max(self.retry_at);
        }
        if self.is_answered && self.told_want == 0 && self.is_resting(demand) {
            return NEVER;
        }
        let renewal = sent.plus(Millis(self.replica.lease.lease.0 / 3));
        let tick = sent.plus(TICK).min(renewal);
        if demand.waiting == 0 && self.is_answered {
            return if self.charges.has_more() { tick } else { renewal };
        }
        if !self.is_answered {
            return sent.plus(TICK).max(self.retry_at);
        }
        self.refilled_at.map_or(tick, |refilled| tick.min(refilled))
    }

    /// Whether it has something that somebody elsewhere waits for.
    fn owes(&self, demand: Demand) -> bool {
        self.contended && self.hold > demand.running
    }

    /// Whether the ledger would do something about what waits if it knew: the first since all that it knew of were served,
    /// a P0, or more than was wanted when everything was granted.
    fn is_news(&self, demand: Demand) -> bool {
        let had_all = demand.running >= self.hold && self.had_all();
        // What waits beside an idle slot waits for a rate; while there was no slot the ledger has not said how long.
        let has_idle = self.is_changed && demand.running < self.hold && self.refilled_at.is_none();
        demand.waiting > 0 && (self.told_waiting == 0 || had_all || has_idle || self.is_urgent)
    }

    /// Whether an account that is to be exact is not.
    fn is_inexact(&self) -> bool {
        self.is_changed && !self.replica.lease.shared && (self.told_meters || !self.terms.meters.is_empty())
    }

    fn stays_warm(&self) -> bool {
        self.idle_calls.is_none()
    }

    /// Whether it asks on demand, and nobody does: it needs nothing and has nothing to say.
    fn is_resting(&self, demand: Demand) -> bool {
        let is_idle = demand.running == 0 && demand.waiting == 0;
        !self.stays_warm() && is_idle && self.charges.is_empty()
    }
}

/// What has surely not passed at the ledger before so much has passed here.
fn less_drift(time: Millis) -> Millis {
    Millis(time.0 - time.0 / DRIFT_DIVISOR)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
