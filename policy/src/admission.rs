//! Admit, queue, reject, settle: the four things that happen to a call, and the only place that does them.
//!
//! The core is driven by events (a request, a settlement, a lease, the passing of time) and returns what to tell
//! whom; it never waits and never looks at a clock.
//!
//! Invariants: every live admission is in exactly one pool, queued or running; a pool's `running` counts its
//! running ones; a tenant's account has charged each live admission once (I6); a settled or cancelled id that is
//! not known leaves a tombstone, so that a request overtaken by its own cancellation does not start.

mod live;
mod pool;

use crate::account::{Limited, TenantAccount};
use crate::config::{Config, Tenant};
use crate::estimate::Yield;
use crate::holder::LeaseTerms;
use crate::ledger::{Restored, SyncReply, SyncRequest};
use crate::queue::{Full, Ticket, Waiter};
use crate::units::{AdmissionId, HolderId, Millis, PoolName, Priority, TenantId, Tokens};
use crate::wire::{AdmissionRequest, Grant, Outcome, Reason, Refusal, Settlement, Usage, UsageSource};
use live::{Live, LiveTable, State};
use pool::PoolState;
use std::collections::BTreeMap;

/// What a request is told on arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Admitted(Grant),
    Rejected(Refusal),
    /// Nothing yet: an [`Event`] with this id follows, at the latest at the queue's timeout.
    Queued,
}

/// News for a call that was queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Started(AdmissionId, Grant),
    Refused(AdmissionId, Refusal),
}

/// What a settlement did, for the meters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    pub tenant: TenantId,
    pub pool: PoolName,
    pub model: String,
    /// What was charged: the upstream's own numbers, unless they cannot be true.
    pub usage: Usage,
}

pub struct Admission {
    config: Config,
    accounts: BTreeMap<TenantId, TenantAccount>,
    pools: BTreeMap<PoolName, PoolState>,
    yields: BTreeMap<(TenantId, String), Yield>,
    live: LiveTable,
    longest_request: Millis,
    draining: bool,
}

impl Admission {
    #[must_use]
    pub fn new(config: Config, holder: &HolderId, incarnation: u64, terms: &LeaseTerms, now: Millis) -> Self {
        let accounts = config.tenants.iter().map(|(id, tenant)| (id.clone(), TenantAccount::new(&tenant.limits, now)));
        let pools = config.pools.iter().map(|(name, pool)| {
            (name.clone(), PoolState::new(pool, config.queue.clone(), holder, incarnation, terms, now))
        });
        Self {
            accounts: accounts.collect(),
            pools: pools.collect(),
            config,
            yields: BTreeMap::new(),
            live: LiveTable::default(),
            longest_request: terms.longest_request,
            draining: false,
        }
    }

    /// Decides about a call of a tenant that has been identified.
    pub fn request(&mut self, tenant_id: &TenantId, request: &AdmissionRequest, now: Millis) -> Decision {
        match self.try_request(tenant_id, request, now) {
            Ok(decision) => decision,
            Err(mut refusal) => {
                if let Some(account) = self.accounts.get_mut(tenant_id) {
                    refusal.rates = account.rates(now);
                }
                Decision::Rejected(refusal)
            }
        }
    }

    /// Ends a call, and tells what it was charged; `None` for an id that is not (or no longer) live.
    pub fn settle(&mut self, settlement: &Settlement, now: Millis) -> Option<Settled> {
        let repeated = self.live.has_ended(&settlement.id, now);
        let Some((ticket, live)) = self.live.remove(&settlement.id, self.longest_request, now) else {
            return if repeated { None } else { self.settle_unadmitted(settlement, now) };
        };
        let account = self.accounts.get_mut(&live.tenant);
        let pool = self.pools.get_mut(&live.pool)?;
        let usage = believable(settlement.usage, &live, pool.context_length());
        let actual = usage.input.plus(usage.output);
        match live.state {
            State::Queued => {
                pool.queue.leave(ticket);
                if let Some(account) = account {
                    account.release(live.reserved, now);
                }
            }
            State::Running { since } => {
                pool.end(&live, actual, now.since(since), now);
                match (account, settlement.outcome, usage.source) {
                    (Some(account), Outcome::Cancelled, UsageSource::None) => account.release(live.reserved, now),
                    (Some(account), ..) => account.settle(live.reserved, actual, now),
                    (None, ..) => {}
                }
            }
        }
        if settlement.outcome == Outcome::Completed {
            let key = (live.tenant.clone(), live.model.clone());
            self.yields.entry(key).or_default().learn(Tokens(usage.output.0 / u64::from(live.sequences)));
        }
        Some(Settled { tenant: live.tenant, pool: live.pool, model: live.model, usage })
    }

    /// Starts whoever can start and gives up on whoever has waited too long. Call it after every other method.
    pub fn advance(&mut self, now: Millis) -> Vec<Event> {
        let mut events = self.time_out(now);
        for name in self.config.pools.keys() {
            let Some(pool) = self.pools.get_mut(name) else { continue };
            while let Some(waiter) = pool.start_head(now) {
                let account = self.accounts.get_mut(&waiter.tenant);
                let rates = account.map_or_else(Vec::new, |account| account.rates(now));
                let Some(live) = self.live.start(waiter.ticket, now, now.plus(self.longest_request)) else { continue };
                let tenant = &self.config.tenants[&live.tenant];
                events.push(Event::Started(live.id.clone(), grant(live, tenant, rates, now)));
            }
        }
        events
    }

    /// When [`Admission::advance`] has something to do by time alone.
    #[must_use]
    pub fn next_wake(&self, now: Millis) -> Option<Millis> {
        let pools = self.pools.values().filter_map(|pool| pool.next_wake(now));
        pools.chain(self.live.next_expiry()).min()
    }

    /// From now on everything is refused; whoever waits is told.
    pub fn drain(&mut self, now: Millis) -> Vec<Event> {
        self.draining = true;
        let waiting: Vec<Ticket> = self.pools.values().flat_map(|pool| pool.queue.tickets()).collect();
        let retry = Some(Millis(1_000));
        let refuse =
            |ticket| self.give_up(ticket, Reason::ShuttingDown, "the quota service is shutting down", retry, now);
        waiting.into_iter().filter_map(refuse).collect()
    }

    /// The next ledger call for a pool, if one is due.
    pub fn ask_ledger(&mut self, pool: &PoolName, now: Millis) -> Option<SyncRequest> {
        self.pools.get_mut(pool)?.ask_ledger(now)
    }

    /// The ledger's answer, or `None` when it did not answer.
    pub fn ledger_answered(&mut self, pool: &PoolName, reply: Option<&SyncReply>, now: Millis) {
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.ledger_answered(reply, now);
        }
    }

    /// When [`Admission::ask_ledger`] will have something for a pool, if nothing else happens.
    #[must_use]
    pub fn next_ledger_call(&self, pool: &PoolName, now: Millis) -> Option<Millis> {
        Some(self.pools.get(pool)?.next_ledger_call(now))
    }

    /// The last ledger call of this incarnation: it keeps only what still runs.
    pub fn give_back(&mut self, pool: &PoolName, now: Millis) -> Option<SyncRequest> {
        Some(self.pools.get_mut(pool)?.give_back(now))
    }

    /// Whether traffic may be sent here: every pool has had a lease, and nobody has said to stop. A lease that has
    /// ended does not count against it: all replicas share one ledger, so another one would refuse as well.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.draining && self.pools.values().all(|pool| pool.holder.has_been_leased())
    }

    /// Whether nothing is queued and nothing runs.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.live.is_empty()
    }

    /// What the ledger shows of a tenant: its calls in flight, and the levels of its buckets.
    pub fn account_state(&mut self, tenant: &TenantId, now: Millis) -> Option<(u32, BTreeMap<String, i64>)> {
        let account = self.accounts.get_mut(tenant)?;
        Some((account.in_flight(), account.levels(now)))
    }

    /// Takes over a tenant's bucket levels from before a restart.
    pub fn restore_account(&mut self, tenant: &TenantId, restored: &Restored, now: Millis) {
        if let Some(account) = self.accounts.get_mut(tenant) {
            account.restore(&restored.levels, restored.age, now);
        }
    }

    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    #[must_use]
    pub fn running(&self, pool: &PoolName) -> u32 {
        self.pools.get(pool).map_or(0, |pool| pool.running)
    }

    /// Slots of a pool that this replica may use now.
    #[must_use]
    pub fn held(&self, pool: &PoolName, now: Millis) -> u32 {
        self.pools.get(pool).map_or(0, |pool| pool.holder.usable(now))
    }

    #[must_use]
    pub fn queue_depth(&self, pool: &PoolName, level: Priority) -> usize {
        self.pools.get(pool).map_or(0, |pool| pool.queue.depth(level))
    }

    /// A tenant's calls, queued or running.
    #[must_use]
    pub fn in_flight(&self, tenant: &TenantId) -> u32 {
        self.accounts.get(tenant).map_or(0, TenantAccount::in_flight)
    }

    fn try_request(
        &mut self,
        tenant_id: &TenantId,
        request: &AdmissionRequest,
        now: Millis,
    ) -> Result<Decision, Refusal> {
        if self.draining {
            return Err(
                refuse(503, Reason::ShuttingDown, "the quota service is shutting down").retry_after(Millis(1_000))
            );
        }
        if self.live.knows(&request.id, now) {
            return Err(refuse(503, Reason::DuplicateAdmission, "this admission was asked for before"));
        }
        let Some(tenant) = self.config.tenants.get(tenant_id) else {
            return Err(refuse(401, Reason::UnknownKey, "this API key belongs to nobody"));
        };
        if tenant.disabled {
            return Err(refuse(403, Reason::TenantDisabled, format!("the tenant {tenant_id} is disabled")));
        }
        let (model, pool_name) = self.find_pool(tenant, request)?;
        let reserved = self.reservation(tenant_id, &model, &pool_name, request)?;
        let (Some(pool), Some(account)) = (self.pools.get_mut(&pool_name), self.accounts.get_mut(tenant_id)) else {
            return Err(refuse(404, Reason::ModelNotFound, format!("no pool serves the model {model:?}")));
        };
        if !pool.holder.is_leased(now) {
            return Err(
                refuse(503, Reason::LedgerUnavailable, "the quota ledger does not answer").retry_after(Millis(1_000))
            );
        }
        let typical = pool.typical_service();
        account.charge(reserved, now).map_err(|limited| over_limit(tenant_id, limited, typical))?;

        let priority = request.priority.unwrap_or(tenant.default_priority).at_most(tenant.ceiling);
        let ticket = self.live.next_ticket();
        let waiter = Waiter {
            ticket,
            tenant: tenant_id.clone(),
            priority,
            charge: reserved,
            bytes: request.body_bytes,
            deadline: now.plus(self.config.queue.timeout),
        };
        let live = Live {
            id: request.id.clone(),
            tenant: tenant_id.clone(),
            pool: pool_name,
            model,
            priority,
            reserved,
            input: request.input_tokens,
            sequences: request.sequences.max(1),
            arrived: now,
            state: State::Queued,
        };
        if pool.can_start_past_queue(reserved, now) {
            pool.start(&waiter, now);
            let rates = account.rates(now);
            let granted = grant(&live, tenant, rates, now);
            self.live.insert(ticket, live);
            self.live.start(ticket, now, now.plus(self.longest_request));
            return Ok(Decision::Admitted(granted));
        }
        if let Err(full) = pool.queue.join(waiter) {
            account.release(reserved, now);
            return Err(queue_full(full, &live.pool, priority).retry_after(pool.drain_time()));
        }
        self.live.insert(ticket, live);
        Ok(Decision::Queued)
    }

    /// The model's name for the books, and the pool that serves it.
    fn find_pool(&self, tenant: &Tenant, request: &AdmissionRequest) -> Result<(String, PoolName), Refusal> {
        let model = request.model.as_deref();
        let by_model = model.and_then(|model| self.config.models.get(model));
        let by_route = request.pool.as_ref().filter(|pool| self.config.pools.contains_key(*pool));
        let Some(pool) = by_model.or(by_route.filter(|_| model.is_none())) else {
            let message = match (model, &request.pool) {
                (Some(model), _) => format!("the model {model:?} does not exist, or no pool serves it"),
                (None, Some(pool)) => format!("the route names the pool {pool}, which does not exist"),
                (None, None) => "the request names no model and its route no pool".to_owned(),
            };
            return Err(refuse(404, Reason::ModelNotFound, message).about("model"));
        };
        if request.pool.as_ref().is_some_and(|named| named != pool) {
            return Err(refuse(404, Reason::ModelNotFound, "this route does not serve that model").about("model"));
        }
        // A call that names no model may reach any model of its pool, so the tenant must be allowed all of them.
        let allowed = |models: &std::collections::BTreeSet<String>| match model {
            Some(model) => models.contains(model),
            None => self.config.models.iter().all(|(name, of)| of != pool || models.contains(name)),
        };
        if !tenant.models.as_ref().is_none_or(allowed) {
            let message = format!("this API key may not use {}", model.unwrap_or("every model of this route"));
            return Err(refuse(403, Reason::ModelNotAllowed, message).about("model"));
        }
        Ok((model.unwrap_or(pool.as_str()).to_owned(), pool.clone()))
    }

    fn reservation(
        &self,
        tenant: &TenantId,
        model: &str,
        pool: &PoolName,
        request: &AdmissionRequest,
    ) -> Result<Tokens, Refusal> {
        let context = self.config.pools.get(pool).and_then(|pool| pool.context_length);
        let wanted = request.input_tokens.plus(request.max_tokens.unwrap_or(Tokens(1)));
        if let Some(context) = context.filter(|context| wanted > *context) {
            let message = format!(
                "this model's context is {context}; the prompt (about {}) and max_tokens together ask for {wanted}",
                request.input_tokens
            );
            return Err(refuse(400, Reason::ContextLengthExceeded, message).about("messages"));
        }
        let left = context.map_or(Tokens(u64::MAX), |context| Tokens(context.0.saturating_sub(request.input_tokens.0)));
        let yields = self.yields.get(&(tenant.clone(), model.to_owned())).copied().unwrap_or_default();
        let output = yields.reservation(request.max_tokens, left);
        Ok(request.input_tokens.plus(output.times(u64::from(request.sequences.max(1)))))
    }

    /// A call that passed while the service was away is charged to its tenant now.
    fn settle_unadmitted(&mut self, settlement: &Settlement, now: Millis) -> Option<Settled> {
        let passed = settlement.unadmitted.as_ref()?;
        let account = self.accounts.get_mut(&passed.tenant)?;
        let model = passed.model.clone().unwrap_or_default();
        let pool = self.config.models.get(&model)?.clone();
        let usage = settlement.usage;
        account.charge_afterwards(usage.input.plus(usage.output), now);
        Some(Settled { tenant: passed.tenant.clone(), pool, model, usage })
    }

    fn time_out(&mut self, now: Millis) -> Vec<Event> {
        let overdue: Vec<Ticket> = self.pools.values().flat_map(|pool| pool.queue.overdue(now)).collect();
        let events = overdue
            .into_iter()
            .filter_map(|ticket| {
                let retry =
                    self.live.get(ticket).and_then(|live| self.pools.get(&live.pool)).map(PoolState::drain_time);
                let timeout = self.config.queue.timeout;
                let message = format!("the call waited {timeout} in the queue without a free slot");
                self.give_up(ticket, Reason::QueueTimeout, &message, retry, now)
            })
            .collect();
        // A call that outlived the longest stream Envoy allows has ended, though nobody told us how.
        for ticket in self.live.overdue(now) {
            let Some(live) = self.live.remove_ticket(ticket, self.longest_request) else { continue };
            if let Some(pool) = self.pools.get_mut(&live.pool) {
                pool.end(&live, live.reserved, self.longest_request, now);
            }
            if let Some(account) = self.accounts.get_mut(&live.tenant) {
                account.settle(live.reserved, live.reserved, now);
            }
        }
        events
    }

    fn give_up(
        &mut self,
        ticket: Ticket,
        reason: Reason,
        message: &str,
        retry: Option<Millis>,
        now: Millis,
    ) -> Option<Event> {
        let live = self.live.remove_ticket(ticket, self.longest_request)?;
        self.pools.get_mut(&live.pool)?.queue.leave(ticket);
        let account = self.accounts.get_mut(&live.tenant)?;
        account.release(live.reserved, now);
        let refusal = Refusal {
            retry_after_ms: retry,
            waited_ms: now.since(live.arrived),
            rates: account.rates(now),
            ..refuse(503, reason, message)
        };
        Some(Event::Refused(live.id, refusal))
    }
}

fn grant(live: &Live, tenant: &Tenant, rates: Vec<crate::wire::RateStatus>, now: Millis) -> Grant {
    Grant {
        tenant: live.tenant.clone(),
        namespace: tenant.namespace.clone(),
        tier: tenant.tier.clone(),
        priority: live.priority,
        pool: live.pool.clone(),
        reserved: live.reserved,
        waited_ms: now.since(live.arrived),
        rates,
    }
}

/// Usage beyond what the model's context allows is not charged: the reservation is, as an estimate.
fn believable(usage: Usage, live: &Live, context: Option<Tokens>) -> Usage {
    let Some(context) = context else { return usage };
    if usage.input <= context && usage.output <= context.times(u64::from(live.sequences)) {
        return usage;
    }
    let output = Tokens(live.reserved.0.saturating_sub(live.input.0));
    Usage { source: UsageSource::Estimated, input: live.input, output, cached: Tokens::ZERO }
}

fn refuse(status: u16, reason: Reason, message: impl Into<String>) -> Refusal {
    Refusal {
        status,
        reason,
        message: message.into(),
        param: None,
        retry_after_ms: None,
        waited_ms: Millis::ZERO,
        rates: Vec::new(),
    }
}

impl Refusal {
    fn retry_after(self, wait: Millis) -> Self {
        Self { retry_after_ms: Some(wait), ..self }
    }

    fn about(self, param: &str) -> Self {
        Self { param: Some(param.to_owned()), ..self }
    }
}

/// `typical` is how long a call of this pool usually runs: after about that, one of the tenant's own has ended.
fn over_limit(tenant: &TenantId, limited: Limited, typical: Millis) -> Refusal {
    let what = match limited.reason {
        Reason::TenantConcurrency => "concurrent calls",
        Reason::TenantRequestsPerSecond => "requests per second",
        Reason::TenantRequestsPerMinute => "requests per minute",
        _ => "tokens per minute",
    };
    refuse(429, limited.reason, format!("the tenant {tenant} has reached its limit of {what}"))
        .retry_after(limited.wait.unwrap_or(typical))
}

fn queue_full(full: Full, pool: &PoolName, priority: Priority) -> Refusal {
    let what = match full {
        Full::Level => format!("the queue of {pool} is full at {priority}"),
        Full::Tenant => format!("this tenant has too many calls waiting for {pool}"),
        Full::Bytes => format!("the queue of {pool} holds as many request bytes as it may"),
    };
    refuse(503, Reason::QueueFull, what)
}

#[cfg(test)]
mod tests;
