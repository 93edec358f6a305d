//! One pool: its slots, its tokens a second, its queue and its lease.

use super::live::Live;
use crate::bucket::Bucket;
use crate::config::Pool;
use crate::holder::{Holder, LeaseTerms};
use crate::ledger::{SyncReply, SyncRequest};
use crate::queue::{FairQueue, QueueSettings, Waiter};
use crate::units::{HolderId, Millis, Tokens};
use std::collections::BTreeMap;

pub(super) struct PoolState {
    pub(super) queue: FairQueue,
    pub(super) holder: Holder,
    /// Calls that have a slot.
    pub(super) running: u32,
    tokens: Option<Bucket>,
    context_length: Option<Tokens>,
    /// Moving average of how long a call holds its slot, × 8.
    service_ms_scaled: u64,
    /// Tokens charged since this process began.
    spent: u64,
}

/// The bucket's name in the ledger.
const TOKENS: &str = "pool_tokens_per_second";
/// Assumed until a call has ended.
const UNKNOWN_SERVICE_MS: u64 = 1_000;

impl PoolState {
    pub(super) fn new(
        pool: &Pool,
        queue: QueueSettings,
        holder: &HolderId,
        incarnation: u64,
        terms: &LeaseTerms,
        now: Millis,
    ) -> Self {
        Self {
            queue: FairQueue::new(queue),
            holder: Holder::new(holder.clone(), incarnation, terms.clone(), pool.concurrent),
            running: 0,
            tokens: pool.tokens_per_s.map(|rate| Bucket::full(rate, now)),
            context_length: pool.context_length,
            service_ms_scaled: UNKNOWN_SERVICE_MS * 8,
            spent: 0,
        }
    }

    /// Whether a newcomer may start at once: nobody waits, and there is a slot and tokens for it.
    pub(super) fn can_start_past_queue(&mut self, charge: Tokens, now: Millis) -> bool {
        self.queue.is_empty() && self.has_room(charge, now)
    }

    /// Takes the first waiter out of the queue and starts it, if there is room for it. The head may wait for its
    /// tokens; nobody overtakes it.
    pub(super) fn start_head(&mut self, now: Millis) -> Option<Waiter> {
        let head = self.queue.head()?;
        let (ticket, charge) = (head.ticket, head.charge);
        if !self.has_room(charge, now) {
            return None;
        }
        let waiter = self.queue.leave(ticket)?;
        self.start(&waiter, now);
        Some(waiter)
    }

    pub(super) fn start(&mut self, waiter: &Waiter, now: Millis) {
        self.queue.charge(waiter.priority, &waiter.tenant, waiter.charge);
        if let Some(tokens) = &mut self.tokens {
            tokens.draw(waiter.charge.0, now);
        }
        self.running += 1;
    }

    /// A running call has ended after `service`, having used `actual`.
    pub(super) fn end(&mut self, live: &Live, actual: Tokens, service: Millis, now: Millis) {
        self.running = self.running.saturating_sub(1);
        self.queue.correct(live.priority, &live.tenant, live.reserved, actual);
        if let Some(tokens) = &mut self.tokens {
            tokens.correct(live.reserved.0, actual.0, now);
        }
        self.spent = self.spent.saturating_add(actual.0);
        let average = self.service_ms_scaled;
        self.service_ms_scaled = average.saturating_sub(average / 8).saturating_add(service.0);
    }

    pub(super) fn context_length(&self) -> Option<Tokens> {
        self.context_length
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

    pub(super) fn ledger_answered(&mut self, reply: Option<&SyncReply>, now: Millis) {
        let Some(reply) = reply else { return self.holder.failed() };
        if !self.holder.answered(reply) {
            return self.holder.failed();
        }
        let restored = reply.restored.as_ref();
        let level = restored.and_then(|restored| Some((*restored.levels.get(TOKENS)?, restored.age)));
        if let (Some(tokens), Some((level, age))) = (&mut self.tokens, level) {
            *tokens = Bucket::restored(tokens.rate(), level, age, now);
        }
    }

    pub(super) fn next_ledger_call(&self, now: Millis) -> Millis {
        self.holder.next_sync(self.demand(), now)
    }

    /// When time alone changes something: a deadline, or tokens for the head.
    pub(super) fn next_wake(&self, now: Millis) -> Option<Millis> {
        let tokens_for_head = self.queue.head().and_then(|head| {
            let wait = self.tokens.clone()?.wait_for(head.charge.0, now);
            (wait > Millis::ZERO).then(|| now.plus(wait))
        });
        self.queue.next_deadline().into_iter().chain(tokens_for_head).min()
    }

    /// How long a call usually holds its slot; at least a millisecond.
    pub(super) fn typical_service(&self) -> Millis {
        Millis((self.service_ms_scaled / 8).max(1))
    }

    /// About how long it takes until everyone who waits now has started.
    pub(super) fn drain_time(&self) -> Millis {
        let waiting = u64::try_from(self.queue.len()).unwrap_or(u64::MAX).saturating_add(1);
        let rounds = waiting.div_ceil(u64::from(self.running.max(1)));
        Millis(rounds.saturating_mul(self.typical_service().0))
    }

    fn has_room(&mut self, charge: Tokens, now: Millis) -> bool {
        self.running < self.holder.usable(now) && self.tokens.as_mut().is_none_or(|tokens| tokens.allows(charge.0, now))
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
