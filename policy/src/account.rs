//! A tenant's account: what it may use, what it has in flight, and what it has left.
//!
//! A tenant's account is charged *on arrival*, before the call may queue, so that nothing ineligible ever stands in
//! a pool's queue. All dimensions are charged together or not at all. What this replica may charge is lent by the
//! ledger, as a pool's slots are; a call that finds too little *applies*: it stands as a row at the ledger until its
//! answer, and is refused when nobody else had anything to give back.

use crate::bucket::Rate;
use crate::budget::{Budgets, Today};
use crate::holder::{Demand, FlowNames, Holder, Outage, Replica};
use crate::ledger::{Draw, FlowName, Limit, MeterName, Row, SyncReply, SyncRequest, Terms, Version};
use crate::queue::{Flow, GroupIndex, Shares, TenantIndex};
use crate::schedule::UnixMillis;
use crate::units::{Millis, Priority, TenantId, Tokens};
use crate::wire::{RateKind, RateStatus, Reason};
use std::collections::BTreeMap;

/// Calls to the ledger that keep what nobody needs, a third of a lease apart. Without them who calls once a second would
/// take the account up and lay it down each time, and cost the ledger more than who calls all the time.
const IDLE_CALLS: u8 = 2;

/// The limits of one tenant; an absent one does not limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Calls queued and running at once, and abandoned ones that keep their slot.
    pub concurrent: Option<u32>,
    pub requests_per_s: Option<Rate>,
    pub requests_per_min: Option<Rate>,
    pub tokens_per_min: Option<Rate>,
    pub budgets: Budgets,
    /// What happens while the ledger does not answer.
    pub outage: Outage,
}

impl Limits {
    fn is_unlimited(&self) -> bool {
        self.concurrent.is_none() && self.rates().next().is_none() && self.budgets.amounts.is_empty()
    }

    fn rates(&self) -> impl Iterator<Item = (MeterName, Limit)> {
        let rates = [
            (MeterName::RequestsPerSecond, self.requests_per_s),
            (MeterName::RequestsPerMinute, self.requests_per_min),
            (MeterName::TokensPerMinute, self.tokens_per_min),
        ];
        rates.into_iter().filter_map(|(name, rate)| Some((name, Limit::Rate(rate?))))
    }

    fn terms(&self, version: Version, today: Today) -> Terms {
        let meters = self.rates().chain(self.budgets.limits(today)).collect();
        let Shares { policy, levels, .. } = Shares::default();
        let capacity = self.concurrent.unwrap_or(Terms::UNCOUNTED);
        Terms { version, capacity, policy, levels, groups: BTreeMap::new(), meters }
    }
}

/// The same moment on two clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clocks {
    /// The core's own.
    pub now: Millis,
    /// The calendar's, which budgets go by.
    pub wall: UnixMillis,
}

/// A limit that was hit, and when trying again may help; `None` when only another call's end can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    pub reason: Reason,
    /// Calls, or units per window; 0 where no limit is the reason.
    pub most: u64,
    pub wait: Option<Millis>,
}

/// What an account says to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    Charged,
    /// The ledger must be asked first.
    Ask,
    Refused(Limited),
}

/// What limits a tenant now.
#[derive(Clone, Debug, Default)]
struct InForce {
    limits: Limits,
    /// The day and the month of its budgets.
    today: Today,
    /// When these end, by the core's clock.
    ends: [Millis; 2],
}

/// Invariant: `in_flight` is the number of this tenant's live admissions that were charged, queued or running, and of its
/// abandoned calls that keep their slot.
#[derive(Clone, Debug)]
pub struct TenantAccount {
    in_force: Box<InForce>,
    in_flight: u32,
    /// `None` where nothing limits, and the ledger need not know. A pointer, like what is in force: of ten thousand tenants
    /// few are near the processor.
    holder: Option<Box<Holder>>,
    /// Nobody who needs as much or more is worth asking for until then.
    refused: Option<(Tokens, Millis)>,
}

/// A refusal stands so long before the ledger is asked again.
const REFUSED_FOR: Millis = Millis(100);

/// All of a tenant's calls are of one flow in its own account: whose turn it is, is the pools' matter.
const FLOW: Flow = Flow { group: GroupIndex(0), tenant: TenantIndex(0), level: Priority::LAST };
const WEIGHT: u64 = 1;

struct OneFlow<'a>(&'a TenantId);

impl FlowNames for OneFlow<'_> {
    fn name(&self, flow: Flow) -> Option<FlowName> {
        Some(FlowName { group: "".into(), level: flow.level, tenant: self.0.clone() })
    }

    fn flow(&self, _: &FlowName) -> Option<Flow> {
        Some(FLOW)
    }
}

impl TenantAccount {
    #[must_use]
    pub fn new(limits: &Limits, version: Version, replica: &Replica, clocks: Clocks) -> Self {
        let mut account = Self { in_force: Box::default(), in_flight: 0, holder: None, refused: None };
        account.set_limits(limits, version, replica, clocks);
        account
    }

    /// Changes the limits: what has been drawn stays drawn, and a limit that is new begins full.
    pub fn set_limits(&mut self, limits: &Limits, version: Version, replica: &Replica, clocks: Clocks) {
        self.in_force.limits = limits.clone();
        self.refused = None;
        let today = limits.budgets.today(clocks.wall);
        self.set_today(today, clocks);
        let terms = limits.terms(version, today);
        // Once lent, slots must be given back, so a holder is never dropped.
        if self.holder.is_none() && !limits.is_unlimited() {
            self.holder = Some(Box::new(Holder::new(replica, terms.clone()).on_demand(IDLE_CALLS)));
        }
        if let Some(holder) = &mut self.holder {
            holder.set_terms(terms, clocks.now);
            holder.set_outage(limits.outage);
        }
    }

    /// Begins the budgets of the day and the month that it is; tells whether they are others than before.
    pub fn turn(&mut self, clocks: Clocks) -> bool {
        if self.in_force.limits.budgets.amounts.is_empty() {
            return false;
        }
        let (before, today) = (self.in_force.today, self.in_force.limits.budgets.today(clocks.wall));
        self.set_today(today, clocks);
        let turned = (before.day, before.month) != (today.day, today.month);
        if let Some(holder) = self.holder.as_mut().filter(|_| turned) {
            let terms = self.in_force.limits.terms(holder.terms().version, today);
            holder.set_terms(terms, clocks.now);
            self.refused = None;
        }
        turned
    }

    /// A wall clock may be set, so this is done anew whenever it is looked at.
    fn set_today(&mut self, today: Today, Clocks { now, wall }: Clocks) {
        let until = |end: UnixMillis| now.plus(Millis(u64::try_from(end.0.saturating_sub(wall.0)).unwrap_or(0)));
        (self.in_force.today, self.in_force.ends) = (today, [until(today.day_ends), until(today.month_ends)]);
    }

    /// Charges one call that reserves so much, or changes nothing. `applicants` calls wait for the ledger already.
    pub fn charge(&mut self, draw: Draw, applicants: u32, now: Millis) -> Charge {
        let Some(holder) = self.holder.as_mut().filter(|_| !self.in_force.limits.is_unlimited()) else {
            self.in_flight += 1;
            return Charge::Charged;
        };
        if applicants == 0 && holder.may_start(FLOW, draw, self.in_flight, now) {
            holder.start(FLOW, WEIGHT, draw);
            self.in_flight += 1;
            return Charge::Charged;
        }
        if holder.is_failing() && !holder.is_due(Demand { running: self.in_flight, waiting: applicants + 1 }, now) {
            return self.without_ledger(draw);
        }
        let is_worth_asking = self.refused.is_none_or(|(least, until)| draw.tokens < least || now >= until);
        match self.limited(draw, now).filter(|_| !is_worth_asking) {
            Some(limited) => Charge::Refused(limited),
            None => Charge::Ask,
        }
    }

    /// The same for a call that has applied: the ledger has answered, or not. `since` is when it applied.
    pub fn charge_applicant(&mut self, draw: Draw, since: Millis, now: Millis) -> Charge {
        if let Charge::Charged = self.charge(draw, 0, now) {
            return Charge::Charged;
        }
        let Some(holder) = &self.holder else { return Charge::Ask };
        if holder.is_failing() {
            return self.without_ledger(draw);
        }
        // Whoever holds something elsewhere has a tick to give it back.
        let is_final = holder.is_alone() || now.since(since) >= REFUSED_FOR;
        match self.limited(draw, now).filter(|_| is_final) {
            Some(limited) => {
                let until = now.plus(limited.wait.map_or(REFUSED_FOR, |wait| wait.min(REFUSED_FOR)));
                self.refused = Some((draw.tokens, until));
                Charge::Refused(limited)
            }
            None => Charge::Ask,
        }
    }

    /// What a call is told that finds too many calls of its tenant.
    #[must_use]
    pub fn too_many(&self) -> Limited {
        let most = self.holder.as_ref().map_or(0, |holder| u64::from(holder.capacity()));
        Limited { reason: Reason::TenantConcurrency, most, wait: None }
    }

    /// Whether no rate and no budget stands in the way of such a call.
    #[must_use]
    pub fn has_drawn_out_nothing(&self, draw: Draw, now: Millis) -> bool {
        self.holder.as_ref().is_none_or(|holder| self.drawn_out(holder, draw, now).is_none())
    }

    /// An applicant was heard, or has left.
    pub fn stopped_applying(&mut self) {
        if let Some(holder) = &mut self.holder {
            holder.stopped_waiting();
        }
    }

    /// The ledger does not answer, and what it has lent does not suffice.
    fn without_ledger(&mut self, draw: Draw) -> Charge {
        match &mut self.holder {
            Some(holder) if holder.outage() == Outage::Open => {
                holder.start(FLOW, WEIGHT, draw);
                self.in_flight += 1;
                Charge::Charged
            }
            _ => Charge::Refused(Limited { reason: Reason::LedgerUnavailable, most: 0, wait: None }),
        }
    }

    /// Gives everything back that was charged then: the call never reached a model.
    pub fn release(&mut self, draw: Draw, charged_at: Millis) {
        self.take_back(draw, charged_at);
        self.leave();
    }

    /// As [`TenantAccount::release`], of a call that counts until [`TenantAccount::leave`].
    pub fn take_back(&mut self, draw: Draw, charged_at: Millis) {
        self.refused = None;
        if let Some(holder) = &mut self.holder {
            holder.take_back(FLOW, WEIGHT, draw, charged_at);
        }
    }

    /// Replaces what was reserved then by what was really used.
    pub fn settle(&mut self, reserved: Draw, actual: Draw, charged_at: Millis) {
        self.correct(reserved, actual, charged_at);
        self.leave();
    }

    /// Charges what nobody reserved: a call that passed while the service was away.
    pub fn charge_afterwards(&mut self, actual: Draw, now: Millis) {
        self.correct(Draw::default(), actual, now);
    }

    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// What the rate headers show: for each kind the limit that has the least left, relative to its size.
    #[must_use]
    pub fn rates(&self, now: Millis) -> Vec<RateStatus> {
        if self.in_force.limits.is_unlimited() {
            return Vec::new();
        }
        [RateKind::Requests, RateKind::Tokens].into_iter().filter_map(|kind| self.tightest(kind, now)).collect()
    }

    /// What is left of every rate and budget, by its name in the ledger; negative is debt. A limit that the ledger has
    /// not told of yet is missing.
    #[must_use]
    pub fn levels(&self, now: Millis) -> BTreeMap<MeterName, i64> {
        self.holder.as_ref().map(|holder| holder.levels(now)).unwrap_or_default()
    }

    /// When [`TenantAccount::ask_ledger`] will have something, if nothing else happens; `None` for never.
    #[must_use]
    pub fn next_ledger_call(&self, applicants: u32, now: Millis) -> Option<Millis> {
        let next = self.holder.as_ref()?.next_sync(self.demand(applicants), now);
        (next < Millis(u64::MAX)).then_some(next)
    }

    /// The next call to the ledger, if one is due. `first` is what the first applicant reserves, and since when it waits.
    pub fn ask_ledger(
        &mut self,
        id: &TenantId,
        applicants: u32,
        first: Option<(Draw, Millis)>,
        now: Millis,
    ) -> Option<SyncRequest> {
        let demand = self.demand(applicants);
        let holder = self.holder.as_mut().filter(|holder| holder.is_due(demand, now))?;
        let names = OneFlow(id);
        let row = first.and_then(|(head, since)| {
            let flow = names.name(FLOW)?;
            let (head, money) = (head.tokens, head.money);
            Some(Row { flow, weight: WEIGHT, head, money, waiting: applicants, waited: now.since(since) })
        });
        Some(holder.ask(demand, row.into_iter().collect(), &names, now))
    }

    /// The last call of this incarnation: it keeps only what is in flight. `None` when the ledger knows nothing of it.
    pub fn give_back(&mut self, id: &TenantId, now: Millis) -> Option<SyncRequest> {
        let in_flight = self.in_flight;
        let holder = self.holder.as_mut().filter(|holder| holder.has_been_leased())?;
        Some(holder.give_back(in_flight, &OneFlow(id), now))
    }

    /// Takes the ledger's answer, `None` when there was none. Tells whether it was one to the latest call.
    pub fn ledger_answered(&mut self, id: &TenantId, reply: Option<&SyncReply>, now: Millis) -> bool {
        let Some(holder) = &mut self.holder else { return false };
        let taken = reply.is_some_and(|reply| holder.answered(reply, &OneFlow(id), now));
        if !taken {
            holder.failed();
        }
        taken
    }

    /// As [`Holder::back_off`].
    pub fn back_off(&mut self, chance: u16, now: Millis) {
        if let Some(holder) = &mut self.holder {
            holder.back_off(chance, now);
        }
    }

    /// Takes what another replica's call has changed. Tells whether it was about the latest call.
    pub fn ledger_noticed(&mut self, id: &TenantId, notice: &SyncReply) -> bool {
        self.holder.as_mut().is_some_and(|holder| holder.noticed(notice, &OneFlow(id)))
    }

    fn demand(&self, applicants: u32) -> Demand {
        Demand { running: self.in_flight, waiting: applicants }
    }

    /// The first limit that a call of so many tokens hits; `None` before the ledger has told, and when there is none.
    fn limited(&self, draw: Draw, now: Millis) -> Option<Limited> {
        let holder = self.holder.as_ref().filter(|holder| holder.is_leased(now))?;
        let most = u64::from(holder.capacity());
        // Nobody is refused for want of a slot where nobody counts them.
        let concurrency =
            holder.terms().has_slots().then_some(Limited { reason: Reason::TenantConcurrency, most, wait: None });
        if self.in_flight >= holder.capacity() {
            return concurrency;
        }
        // Other replicas may have the rest of the slots; where everything was granted that was wanted, nobody has tried.
        let has_no_more = self.in_flight >= holder.usable(now) && !holder.had_all();
        self.drawn_out(holder, draw, now).or(concurrency.filter(|_| has_no_more))
    }

    /// The first rate or budget that a call of so many tokens hits.
    fn drawn_out(&self, holder: &Holder, draw: Draw, now: Millis) -> Option<Limited> {
        holder.terms().meters.iter().find_map(|(name, limit)| {
            let wait = missing_for(*limit, holder.left(*name, now)?, name.amount(draw))?;
            let wait = match wait {
                // The ledger knows of parts of a unit too.
                Some(wait) => holder.refilled_at().map_or(wait, |told| told.since(now).min(wait)),
                None => self.end_of_period(*name).since(now),
            };
            Some(Limited { reason: reason(*name), most: limit.amount(), wait: Some(wait) })
        })
    }

    fn end_of_period(&self, budget: MeterName) -> Millis {
        let [day, month] = self.in_force.ends;
        if budget.is_of_a_day() { day } else { month }
    }

    /// As [`TenantAccount::settle`], of a call that counts until [`TenantAccount::leave`].
    pub fn correct(&mut self, reserved: Draw, actual: Draw, charged_at: Millis) {
        self.refused = None;
        if let Some(holder) = &mut self.holder {
            holder.correct(FLOW, WEIGHT, reserved, actual, charged_at);
        }
    }

    /// A call is in flight no more.
    pub fn leave(&mut self) {
        self.refused = None;
        debug_assert!(self.in_flight > 0, "a call left that never came");
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    fn tightest(&self, kind: RateKind, now: Millis) -> Option<RateStatus> {
        let meters =
            self.in_force.limits.rates().filter(|(name, _)| name.counts_requests() == (kind == RateKind::Requests));
        let status = |(name, limit): (MeterName, Limit)| {
            let Limit::Rate(rate) = limit else { return None };
            let full = i64::try_from(rate.burst).unwrap_or(i64::MAX);
            let left = self.holder.as_ref().and_then(|holder| holder.left(name, now)).unwrap_or(full);
            let missing = u64::try_from(full.saturating_sub(left)).unwrap_or(0);
            Some(RateStatus {
                kind,
                limit: rate.amount,
                remaining: u64::try_from(left).unwrap_or(0),
                reset_ms: time_for(rate, missing),
            })
        };
        // remaining/limit compared without division: a/b < c/d exactly when a·d < c·b.
        meters.filter_map(status).min_by(|a, b| {
            let left = u128::from(a.remaining) * u128::from(b.limit);
            left.cmp(&(u128::from(b.remaining) * u128::from(a.limit)))
        })
    }
}

/// Whether a draw must wait, and how long; `Some(None)` for what time alone does not bring soon.
fn missing_for(limit: Limit, left: i64, amount: u64) -> Option<Option<Millis>> {
    let signed = |value| i64::try_from(value).unwrap_or(i64::MAX);
    match limit {
        Limit::Rate(rate) => {
            let missing = u64::try_from(signed(amount.min(rate.burst)).saturating_sub(left)).unwrap_or(0);
            (missing > 0).then(|| Some(time_for(rate, missing)))
        }
        Limit::Budget { .. } => (signed(amount) > left).then_some(None),
    }
}

/// How long a rate takes to bring so much.
fn time_for(rate: Rate, units: u64) -> Millis {
    Millis(units.saturating_mul(rate.window.0).div_ceil(rate.amount.max(1)))
}

/// What a refusal is called that a rate or a budget is the reason of.
fn reason(name: MeterName) -> Reason {
    match name {
        MeterName::RequestsPerSecond => Reason::TenantRequestsPerSecond,
        MeterName::RequestsPerMinute => Reason::TenantRequestsPerMinute,
        MeterName::TokensPerSecond | MeterName::TokensPerMinute => Reason::TenantTokensPerMinute,
        MeterName::TokensPerDay => Reason::TenantTokensPerDay,
        MeterName::TokensPerMonth => Reason::TenantTokensPerMonth,
        MeterName::MoneyPerDay => Reason::TenantMoneyPerDay,
        MeterName::MoneyPerMonth => Reason::TenantMoneyPerMonth,
    }
}

#[cfg(test)]
mod tests;
