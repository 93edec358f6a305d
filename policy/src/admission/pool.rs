//! One pool: its slots, its rates, its queue and its lease.

use super::live::Live;
use super::tenants::ModelIndex;
use crate::bucket::{Bucket, Rate};
use crate::config::{ChargeWeights, Pool};
use crate::holder::{Holder, LeaseTerms};
use crate::ledger::{SyncReply, SyncRequest};
use crate::queue::{ChargedBy, FairQueue, Flow, QueueSettings, Shares, TenantIndex, Ticket, Waiter};
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
    /// Moving average of how long a call holds its slot, × 8; `None` until one has ended.
    service_ms_scaled: Option<u64>,
    /// Moving average of the time between two starts while somebody waits, × 8; `None` before the second start.
    start_gap_ms_scaled: Option<u64>,
    last_start: Option<Millis>,
    /// Tokens charged since this process began.
    spent: u64,
}

/// The bucket's name in the ledger.
const TOKENS: &str = "pool_tokens_per_second";
/// Assumed until a call has ended.
const UNKNOWN_SERVICE: Millis = Millis(2_000);

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
            service_ms_scaled: None,
            start_gap_ms_scaled: None,
            last_start: None,
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
        self.has_room(head.charge, now).then_some((ticket, head))
    }

    /// Takes a waiter out of the queue and starts it.
    pub(super) fn start_waiter(&mut self, ticket: Ticket, now: Millis) -> Option<ChargedBy> {
        let waiter = self.queue.leave(ticket)?;
        self.note_start(now);
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
        self.last_start = Some(now);
        self.queue.charge(flow, charge)
    }

    /// A running call that was charged by these weights has ended after `service`, having cost `actual`.
    pub(super) fn end(&mut self, live: &Live, by: ChargedBy, actual: Tokens, service: Millis, now: Millis) {
        self.running = self.running.saturating_sub(1);
        self.queue.correct(live.flow, by, live.charge, actual);
        if let Some(tokens) = &mut self.tokens {
            tokens.correct(live.charge.0, actual.0, now);
        }
        self.spent = self.spent.saturating_add(actual.0);
        self.service_ms_scaled = Some(match self.service_ms_scaled {
            None => service.0.saturating_mul(8),
            Some(average) => average.saturating_sub(average / 8).saturating_add(service.0),
        });
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

    /// How long a call usually holds its slot; at least a millisecond.
    pub(super) fn typical_service(&self) -> Millis {
        self.service_ms_scaled.map_or(UNKNOWN_SERVICE, |average| Millis((average / 8).max(1)))
    }

    /// Whether its estimates rest on anything it has seen.
    pub(super) fn knows_its_pace(&self) -> bool {
        self.service_ms_scaled.is_some() || self.start_gap_ms_scaled.is_some()
    }

    /// About how long `starts` more starts take, at the pace of late; before there is one, at the pace of the slots.
    pub(super) fn time_for(&self, starts: u64) -> Millis {
        let by_slots = self.typical_service().0.div_ceil(u64::from(self.running.max(1)));
        let gap_scaled = self.start_gap_ms_scaled.unwrap_or(by_slots.saturating_mul(8));
        Millis(gap_scaled.saturating_mul(starts).div_ceil(8).max(1))
    }

    /// About how long it takes until everyone who waits now has started.
    pub(super) fn drain_time(&self) -> Millis {
        self.time_for(u64::try_from(self.queue.len()).unwrap_or(u64::MAX).saturating_add(1))
    }

    /// Learns the pace of starts from the queue: those past an empty queue say nothing about it.
    fn note_start(&mut self, now: Millis) {
        if let (Some(last), false) = (self.last_start, self.queue.is_empty()) {
            let gap = now.since(last).0;
            self.start_gap_ms_scaled = Some(match self.start_gap_ms_scaled {
                None => gap.saturating_mul(8),
                Some(average) => average.saturating_sub(average / 8).saturating_add(gap),
            });
        }
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
