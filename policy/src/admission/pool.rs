//! One pool: its queue, and what this replica holds of its slots and rates.

use super::live::Live;
use super::names::Names;
use super::pace::{Pace, Slots};
use super::tenants::ModelIndex;
use crate::bucket::{Bucket, Rate};
use crate::config::{ChargeWeights, OnAbort, Pool};
use crate::holder::{Demand, Holder, Replica};
use crate::ledger::{Limit, MOST_ROWS, MeterName, Row, SyncReply, SyncRequest, Terms, Version};
use crate::queue::{Ahead, ChargedBy, FairQueue, Flow, QueueSettings, Shares, Standing, Ticket, Waiter};
use crate::schedule::PoolSettings;
use crate::units::{GroupName, Millis, PoolName, Tokens};
use std::collections::BTreeMap;

pub(super) struct PoolState {
    pub(super) name: PoolName,
    pub(super) queue: FairQueue,
    pub(super) holder: Holder,
    /// Calls that have a slot.
    pub(super) running: u32,
    /// Of these, those that were abandoned and keep it for a while.
    pub(super) orphaned: u32,
    on_abort: OnAbort,
    requests_per_s: Option<Rate>,
    context_length: Option<Tokens>,
    reserve_at_most: Tokens,
    /// What tokens of each model that was ever served here cost.
    charges: BTreeMap<ModelIndex, ChargeWeights>,
    /// What the calls that have a slot were charged.
    running_charge: Tokens,
    pub(super) pace: Pace,
}

impl PoolState {
    pub(super) fn new(name: &PoolName, pool: &Pool, queue: &QueueSettings, replica: &Replica) -> Self {
        let mut holder = Holder::new(replica, no_terms());
        holder.set_outage(pool.outage);
        Self {
            name: name.clone(),
            queue: FairQueue::new(queue.clone()),
            holder,
            running: 0,
            orphaned: 0,
            on_abort: pool.on_abort,
            requests_per_s: pool.requests_per_s,
            context_length: pool.context_length,
            reserve_at_most: pool.reserve_at_most,
            charges: BTreeMap::new(),
            running_charge: Tokens::ZERO,
            pace: Pace::default(),
        }
    }

    /// Takes over a configuration; [`PoolState::apply`] puts its capacities in force.
    pub(super) fn configure(&mut self, pool: &Pool, queue: &QueueSettings) {
        self.queue.set_bounds(queue);
        self.context_length = pool.context_length;
        self.reserve_at_most = pool.reserve_at_most;
        self.on_abort = pool.on_abort;
        self.requests_per_s = pool.requests_per_s;
        self.holder.set_outage(pool.outage);
    }

    /// Puts capacities and weights in force. Groups' shares are by their index; others keep 1.
    pub(super) fn apply(&mut self, settings: &PoolSettings, shares: Shares, version: Version, now: Millis) {
        let requests = self.requests_per_s.map(|rate| (MeterName::RequestsPerSecond, Limit::Rate(rate)));
        let tokens = settings.rate().map(|rate| (MeterName::TokensPerSecond, Limit::Rate(rate)));
        let terms = Terms {
            version,
            capacity: settings.concurrent,
            policy: shares.policy,
            levels: shares.levels,
            groups: settings.shares.iter().map(|(name, share)| (GroupName::from(name.as_str()), *share)).collect(),
            meters: requests.into_iter().chain(tokens).collect(),
        };
        self.holder.set_terms(terms, now);
        self.queue.set_shares(shares);
    }

    pub(super) fn set_charge(&mut self, model: ModelIndex, charge: ChargeWeights) {
        self.charges.insert(model, charge);
    }

    pub(super) fn charge_weights(&self, model: ModelIndex) -> ChargeWeights {
        self.charges.get(&model).copied().unwrap_or_default()
    }

    /// Whether groups draw from shares of their own here.
    pub(super) fn has_shares(&self) -> bool {
        !self.queue.shares().groups.is_empty()
    }

    pub(super) fn context_length(&self) -> Option<Tokens> {
        self.context_length
    }

    /// Output of a sequence that is reserved at most, where the context does not bound it.
    pub(super) fn reserve_at_most(&self) -> Tokens {
        self.reserve_at_most
    }

    /// Whether a newcomer may start at once: nobody waits, and there is a slot and tokens for it.
    pub(super) fn can_start_past_queue(&self, flow: Flow, charge: Tokens, now: Millis) -> bool {
        self.queue.is_empty() && self.holder.may_start(flow, charge, self.running, now)
    }

    /// Whether nobody waits here, and there is a slot and tokens as far as is known: the ledger need only say so.
    pub(super) fn needs_only_the_ledger(&self, charge: Tokens, now: Millis) -> bool {
        self.queue.is_empty() && self.running < self.holder.capacity() && self.holder.may_be_lent(charge, now)
    }

    /// The waiter whose turn it is, if there is room for it. The head may wait for its tokens; nobody overtakes it.
    pub(super) fn next_to_start(&mut self, now: Millis) -> Option<(Ticket, Waiter)> {
        // Asked after every event, and the walk down the tree is not for nothing.
        if self.queue.is_empty() || self.running >= self.holder.usable(now) {
            return None;
        }
        let next = self.next(now).map(|(ticket, waiter)| (ticket, *waiter));
        if next.is_none() {
            self.pace.was_short();
        }
        next
    }

    /// Takes a waiter out of the queue and starts it.
    pub(super) fn start_waiter(&mut self, ticket: Ticket, now: Millis) -> Option<ChargedBy> {
        let waiter = self.leave(ticket)?;
        Some(self.start(waiter.flow, waiter.charge, now))
    }

    pub(super) fn start(&mut self, flow: Flow, charge: Tokens, now: Millis) -> ChargedBy {
        self.holder.start(flow, self.queue.weight(flow.tenant), charge);
        self.running += 1;
        self.running_charge = self.running_charge.plus(charge);
        self.pace.has_started(!self.queue.is_empty(), now);
        self.queue.charge(flow, charge)
    }

    /// Takes a waiter out: it starts, gave up, or left.
    pub(super) fn leave(&mut self, ticket: Ticket) -> Option<Waiter> {
        let waiter = self.queue.leave(ticket)?;
        self.holder.stopped_waiting();
        Some(waiter)
    }

    /// A call waits: the ledger may have to know at once.
    pub(super) fn joined(&mut self, flow: Flow, names: &Names<'_>) {
        self.holder.joined(flow, names);
    }

    /// Until when an abandoned call that started at `since` keeps its slot; `None` when it is free at once.
    pub(super) fn keeps_slot_until(&self, live: &Live, since: Millis, now: Millis) -> Option<Millis> {
        self.on_abort.of(live.streams).keeps_until(since, now)
    }

    /// A running call that was charged by these weights has cost `actual`. It has its slot until [`PoolState::free`].
    pub(super) fn correct(&mut self, live: &Live, by: ChargedBy, actual: Tokens) {
        self.running_charge = Tokens(self.running_charge.0.saturating_sub(live.charge.0));
        self.queue.correct(live.flow, by, live.charge, actual);
        self.holder.correct(live.flow, by.tenant(), live.charge, actual, live.arrived);
    }

    /// A call that reserved so much and cost so much has had its slot for `service`, and has it no more.
    pub(super) fn free(&mut self, reserved: Tokens, cost: Tokens, service: Millis) {
        self.running = self.running.saturating_sub(1);
        self.holder.stopped_running();
        self.pace.has_ended(service, reserved, cost);
    }

    /// The next call to the ledger, if one is due. `arrived` tells since when a waiter waits.
    pub(super) fn ask_ledger(
        &mut self,
        names: &Names<'_>,
        arrived: impl Fn(&Waiter) -> Millis,
        now: Millis,
    ) -> Option<SyncRequest> {
        let demand = self.demand();
        if !self.holder.is_due(demand, now) {
            return None;
        }
        let row = |(head, weight, waiting): (&Waiter, u64, u32)| {
            let waited = now.since(arrived(head));
            Some(Row { flow: names.of(head.flow)?, weight, head: head.charge, money: 0, waiting, waited })
        };
        let rows = self.queue.first_flows(MOST_ROWS).into_iter().filter_map(row).collect();
        Some(self.holder.ask(demand, rows, names, now))
    }

    pub(super) fn give_back(&mut self, names: &Names<'_>, now: Millis) -> SyncRequest {
        self.holder.give_back(self.running, names, now)
    }

    pub(super) fn ledger_answered(&mut self, reply: Option<&SyncReply>, names: &Names<'_>, now: Millis) -> bool {
        let taken = reply.is_some_and(|reply| self.holder.answered(reply, names, now));
        if !taken {
            self.holder.failed();
        }
        taken
    }

    /// When the ledger is to be asked, if nothing else happens; `None` while a call is out.
    pub(super) fn next_ledger_call(&self, now: Millis) -> Option<Millis> {
        Some(self.holder.next_sync(self.demand(), now)).filter(|next| *next < Millis(u64::MAX))
    }

    /// When time alone changes something here: somebody's deadline, or the end of a lease after which calls start without.
    pub(super) fn next_wake(&self, now: Millis) -> Option<Millis> {
        let opens = self.holder.opens_at(now).filter(|_| !self.queue.is_empty());
        self.queue.next_deadline().into_iter().chain(opens).min()
    }

    /// Where a newcomer of a flow that stands so would be, from 1, and about how long it would wait.
    pub(super) fn place(&self, standing: &Standing, charge: Tokens, now: Millis) -> (u64, Millis) {
        let ahead = self.queue.ahead(standing);
        (ahead.calls.saturating_add(1), self.wait_behind(ahead, charge, now))
    }

    /// About how long it takes until everyone who waits now has started.
    pub(super) fn drain_time(&self, now: Millis) -> Millis {
        self.wait_behind(self.queue.everyone(), Tokens::ZERO, now)
    }

    /// The longest of three: until there is a slot, until the bucket of tokens has filled for those ahead and the call
    /// itself, and until that of requests has. It supposes that nobody else comes or leaves, and that calls run as long
    /// and cost as much of what they reserve as others have of late.
    fn wait_behind(&self, ahead: Ahead, charge: Tokens, now: Millis) -> Millis {
        let for_slot = self.pace.time_for(ahead.calls.saturating_add(1), self.slots(now));
        let requests = self.bucket(MeterName::RequestsPerSecond, now);
        let for_requests = requests.map(|requests| requests.wait_behind(ahead.calls, 1, now));
        let for_tokens = self.bucket(MeterName::TokensPerSecond, now).map(|tokens| {
            let drawn = tokens.wait_behind(ahead.charge.0, charge.0, now);
            self.pace.with_refunds(drawn, tokens.time_to_gain(self.running_charge.0))
        });
        for_requests.into_iter().chain(for_tokens).fold(for_slot, Millis::max)
    }

    /// While somebody waits elsewhere, how many slots are here at a moment says nothing about how many will come.
    fn slots(&self, now: Millis) -> Slots {
        let usable = self.holder.usable(now);
        if self.is_contended(now) {
            return Slots { fewest: 1, most: self.holder.capacity(), all_taken: true };
        }
        let slots = self.running.max(usable);
        Slots { fewest: slots, most: slots, all_taken: self.running >= usable }
    }

    fn is_contended(&self, now: Millis) -> bool {
        self.holder.is_contended() && self.holder.is_leased(now)
    }

    /// Whose turn it is: in this replica's own order while nobody waits elsewhere, else one of its picks. A pick has its
    /// tokens, whatever else the head may wait for.
    fn next(&self, now: Millis) -> Option<(Ticket, &Waiter)> {
        let own = if self.is_contended(now) { None } else { self.startable(self.queue.head()?, now) };
        own.or_else(|| self.holder.picked().find_map(|flow| self.startable(self.queue.head_of(flow)?, now)))
    }

    fn startable<'w>(&self, head: (Ticket, &'w Waiter), now: Millis) -> Option<(Ticket, &'w Waiter)> {
        Some(head).filter(|(_, waiter)| self.holder.may_start(waiter.flow, waiter.charge, self.running, now))
    }

    /// A rate as far as is known of it.
    fn bucket(&self, name: MeterName, now: Millis) -> Option<Bucket> {
        let Limit::Rate(rate) = self.holder.terms().meters.get(&name)? else { return None };
        Some(Bucket::restored(*rate, self.holder.left(name, now)?, Millis::ZERO, now))
    }

    fn demand(&self) -> Demand {
        Demand { running: self.running, waiting: u32::try_from(self.queue.len()).unwrap_or(u32::MAX) }
    }
}

/// Before the first settings are put in force: nothing may run.
fn no_terms() -> Terms {
    let Shares { policy, levels, .. } = Shares::default();
    let (groups, meters) = (BTreeMap::new(), BTreeMap::new());
    Terms { version: Version::default(), capacity: 0, policy, levels, groups, meters }
}
