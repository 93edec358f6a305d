//! One pool: its slots, its rates, its queue and its lease.

use super::live::Live;
use super::pace::Pace;
use super::tenants::ModelIndex;
use crate::bucket::{Bucket, Rate};
use crate::config::{ChargeWeights, Pool};
use crate::holder::{Holder, LeaseTerms};
use crate::ledger::{SyncReply, SyncRequest};
use crate::queue::{Ahead, ChargedBy, FairQueue, Flow, QueueSettings, Shares, Standing, TenantIndex, Ticket, Waiter};
use crate::units::{HolderId, Millis, PoolName, Tokens};
use std::collections::BTreeMap;

pub(super) struct PoolState {
    pub(super) name: PoolName,
    pub(super) queue: FairQueue,
    pub(super) holder: Holder,
    /// Calls that have a slot.
    pub(super) running: u32,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    context_length: Option<Tokens>,
    /// What tokens of each model that was ever served here cost.
    charges: BTreeMap<ModelIndex, ChargeWeights>,
    /// What the calls that have a slot were charged.
    running_charge: Tokens,
    pub(super) pace: Pace,
    /// Tokens charged since this process began.
    spent: u64,
}

/// The bucket's name in the ledger.
const TOKENS: &str = "pool_tokens_per_second";

impl PoolState {
    pub(super) fn new(
        name: &PoolName,
        pool: &Pool,
        queue: &QueueSettings,
        holder: &HolderId,
        incarnation: u64,
        terms: &LeaseTerms,
        now: Millis,
    ) -> Self {
        Self {
            name: name.clone(),
            queue: FairQueue::new(queue.clone()),
            holder: Holder::new(holder.clone(), incarnation, terms.clone(), pool.concurrent),
            running: 0,
            requests: pool.requests_per_s.map(|rate| Bucket::full(rate, now)),
            tokens: pool.tokens_per_s.map(|rate| Bucket::full(rate, now)),
            context_length: pool.context_length,
            charges: BTreeMap::new(),
            running_charge: Tokens::ZERO,
            pace: Pace::default(),
            spent: 0,
        }
    }

    /// Takes over a configuration; rates keep what has been drawn of them.
    pub(super) fn configure(&mut self, pool: &Pool, queue: &QueueSettings, now: Millis) {
        self.queue.set_bounds(queue);
        self.context_length = pool.context_length;
        self.requests = changed(self.requests.take(), pool.requests_per_s, now);
    }

    /// Puts a capacity and weights in force. Groups' shares are by their index; others keep 1.
    pub(super) fn apply(&mut self, concurrent: u32, tokens_per_s: Option<Rate>, shares: Shares, now: Millis) {
        if self.holder.capacity() != concurrent {
            self.holder.set_capacity(concurrent);
        }
        if self.tokens.as_ref().map(Bucket::rate) != tokens_per_s {
            self.tokens = changed(self.tokens.take(), tokens_per_s, now);
        }
        self.queue.set_shares(shares);
    }

    pub(super) fn set_tenant_weight(&mut self, tenant: TenantIndex, weight: u64) {
        self.queue.set_weight(tenant, weight);
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

    /// Whether a newcomer may start at once: nobody waits, and there is a slot and tokens for it.
    pub(super) fn can_start_past_queue(&mut self, charge: Tokens, now: Millis) -> bool {
        self.queue.is_empty() && self.has_room(charge, now)
    }

    /// The first waiter, if there is room for it. The head may wait for its tokens; nobody overtakes it.
    pub(super) fn next_to_start(&mut self, now: Millis) -> Option<(Ticket, Waiter)> {
        // Both are asked after every event, and the walk down the tree is not for nothing.
        if self.queue.is_empty() || !self.has_slot(now) {
            return None;
        }
        let (ticket, head) = self.queue.head().map(|(ticket, head)| (ticket, *head))?;
        let has_room = self.has_room(head.charge, now);
        if !has_room {
            self.pace.was_short();
        }
        has_room.then_some((ticket, head))
    }

    /// Takes a waiter out of the queue and starts it.
    pub(super) fn start_waiter(&mut self, ticket: Ticket, now: Millis) -> Option<ChargedBy> {
        let waiter = self.queue.leave(ticket)?;
        Some(self.start(waiter.flow, waiter.charge, now))
    }

    pub(super) fn start(&mut self, flow: Flow, charge: Tokens, now: Millis) -> ChargedBy {
        if let Some(requests) = &mut self.requests {
            requests.draw(1, now);
        }
        if let Some(tokens) = &mut self.tokens {
            tokens.draw(charge.0, now);
        }
        self.running += 1;
        self.running_charge = self.running_charge.plus(charge);
        self.pace.has_started(!self.queue.is_empty(), now);
        self.queue.charge(flow, charge)
    }

    /// A running call that was charged by these weights has ended after `service`, having cost `actual`.
    pub(super) fn end(&mut self, live: &Live, by: ChargedBy, actual: Tokens, service: Millis, now: Millis) {
        self.running = self.running.saturating_sub(1);
        self.running_charge = Tokens(self.running_charge.0.saturating_sub(live.charge.0));
        self.queue.correct(live.flow, by, live.charge, actual);
        if let Some(tokens) = &mut self.tokens {
            tokens.correct(live.charge.0, actual.0, now);
        }
        self.spent = self.spent.saturating_add(actual.0);
        self.pace.has_ended(service, live.charge, actual);
    }

    pub(super) fn ask_ledger(&mut self, now: Millis) -> Option<SyncRequest> {
        let demand = self.demand();
        if !self.holder.is_due(demand, now) {
            return None;
        }
        let levels = self.levels(now);
        Some(self.holder.ask(self.running, demand, self.spent, levels, now))
    }

    pub(super) fn give_back(&mut self, now: Millis) -> SyncRequest {
        let levels = self.levels(now);
        self.holder.give_back(self.running, self.spent, levels, now)
    }

    pub(super) fn ledger_answered(&mut self, reply: Option<&SyncReply>, now: Millis) -> bool {
        let Some(reply) = reply.filter(|reply| self.holder.answered(reply)) else {
            self.holder.failed();
            return false;
        };
        let restored = reply.restored.as_ref();
        let level = restored.and_then(|restored| Some((*restored.levels.get(TOKENS)?, restored.age)));
        if let (Some(tokens), Some((level, age))) = (&mut self.tokens, level) {
            *tokens = Bucket::restored(tokens.rate(), level, age, now);
        }
        true
    }

    pub(super) fn next_ledger_call(&self, now: Millis) -> Millis {
        self.holder.next_sync(self.demand(), now)
    }

    /// When time alone changes something: a deadline, or tokens for the head.
    pub(super) fn next_wake(&self, now: Millis) -> Option<Millis> {
        if self.queue.is_empty() {
            return None;
        }
        // Without a free slot the head waits for more than time.
        let head = if self.has_slot(now) { self.queue.head() } else { None };
        let for_head = head.and_then(|(_, head)| {
            let tokens = self.tokens.clone().map(|mut tokens| tokens.wait_for(head.charge.0, now));
            let requests = self.requests.clone().map(|mut requests| requests.wait_for(1, now));
            let wait = tokens.into_iter().chain(requests).max()?;
            (wait > Millis::ZERO).then(|| now.plus(wait))
        });
        self.queue.next_deadline().into_iter().chain(for_head).min()
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
        let for_slot = self.pace.time_for(ahead.calls.saturating_add(1), self.running, self.holder.usable(now));
        let for_requests = self.requests.as_ref().map(|requests| requests.wait_behind(ahead.calls, 1, now));
        let for_tokens = self.tokens.as_ref().map(|tokens| {
            let drawn = tokens.wait_behind(ahead.charge.0, charge.0, now);
            self.pace.with_refunds(drawn, tokens.time_to_gain(self.running_charge.0))
        });
        for_requests.into_iter().chain(for_tokens).fold(for_slot, Millis::max)
    }

    fn has_slot(&self, now: Millis) -> bool {
        self.running < self.holder.usable(now)
    }

    fn has_room(&mut self, charge: Tokens, now: Millis) -> bool {
        self.has_slot(now)
            && self.requests.as_mut().is_none_or(|requests| requests.allows(1, now))
            && self.tokens.as_mut().is_none_or(|tokens| tokens.allows(charge.0, now))
    }

    fn levels(&mut self, now: Millis) -> BTreeMap<String, i64> {
        let level = self.tokens.as_mut().map(|tokens| (TOKENS.to_owned(), tokens.level(now)));
        level.into_iter().collect()
    }

    /// Slots that could be in use if they were there.
    fn demand(&self) -> u32 {
        let waiting = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        self.running.saturating_add(waiting)
    }
}

/// A bucket under a new rate: full when it is new, as drawn as before when it is not.
fn changed(bucket: Option<Bucket>, rate: Option<Rate>, now: Millis) -> Option<Bucket> {
    let rate = rate?;
    Some(bucket.map_or_else(|| Bucket::full(rate, now), |bucket| bucket.with_rate(rate, now)))
}
