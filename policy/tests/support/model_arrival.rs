//! What the documentation says about a call that arrives: whether it starts, waits, or is refused, and why.

use super::{Call, LIMITS, Model, State, TOMBSTONE_MS, rates};
use crate::naive_tree::Flow;
use crate::setup::TenantSetup;
use crate::world::{Ask, World, id};
use sluice_policy::admission::Decision;
use sluice_policy::queue::SharePolicy;
use sluice_policy::units::{Millis, Tokens};
use sluice_policy::wire::{Grant, Reason};

impl Model {
    /// The core has answered a request.
    pub(crate) fn asked(&mut self, number: usize, ask: &Ask, decision: &Decision, world: &World) -> Result<(), String> {
        let now = world.now;
        let (call, early) = self.plan(number, ask, world);
        // A tenant's limits cannot be charged beyond what is lent while the ledger does not answer, and what was used
        // meanwhile it hears of late.
        let tenant = &self.setup.tenants[ask.tenant];
        let is_limited = tenant.concurrent.is_some() || rates(tenant).iter().any(Option::is_some);
        let of_limits = |reason: Reason| {
            [Reason::LedgerUnavailable, Reason::TenantConcurrency].contains(&reason) || LIMITS.contains(&reason)
        };
        if let Decision::Rejected(refusal) = decision
            && is_limited
            && world.has_failed
            && of_limits(refusal.reason)
            && early.is_none_or(of_limits)
        {
            self.past.push(Call { state: State::Refused(refusal.reason), ..call });
            return Ok(());
        }
        let early = early.filter(|reason| {
            let is_lenient = world.has_failed && of_limits(*reason) && !matches!(decision, Decision::Rejected(_));
            !is_lenient
        });
        if let Some(reason) = early {
            let Decision::Rejected(refusal) = decision else { return Err(format!("{reason:?} let in: {decision:?}")) };
            ensure!(refusal.reason == reason, "refused as {:?}, not {reason:?}", refusal.reason);
            if reason != Reason::DuplicateAdmission {
                self.past.push(Call { state: State::Refused(reason), ..call });
            }
            return Ok(());
        }
        let pool = call.flow.pool;
        let running = self.running().filter(|other| other.flow.pool == pool).count();
        let room = running < world.held(pool) as usize && self.has_tokens(pool, call.charge, now);
        self.charge_tenant(&call, world)?;
        match decision {
            Decision::Admitted(grant) if !self.flows(pool).is_empty() => {
                // It joined, and it was its turn: whoever stood there waits for more tokens than it needs.
                ensure!(room, "a newcomer started without room");
                let before = self.flows(pool);
                self.live.push(call.clone());
                self.waiting_changed(pool, &before);
                self.turned_before_newcomer(world)?;
                self.check_turn(&call)?;
                self.check_grant(&call, grant, now)?;
                self.start(call, now, world)
            }
            Decision::Admitted(grant) => {
                ensure!(room, "a newcomer started without room");
                self.check_grant(&call, grant, now)?;
                self.start(call, now, world)
            }
            Decision::Queued => {
                let is_lent = !world.has_failed || (world.is_healthy() && !self.has_rates(pool));
                ensure!(!self.flows(pool).is_empty() || !room || !is_lent, "{call:?} must wait beside free capacity");
                ensure!(self.full(&call).is_none() || world.has_failed, "{call:?} was let into a full queue");
                let place = world.core.explain(&id(number)).and_then(|explanation| explanation.queued_at.clone());
                let place = place.ok_or("a queued call without a place")?;
                let patience = self.patience(ask);
                let guessed = !self.has_ended[pool];
                ensure!(guessed || place.estimated_wait.0 <= patience, "{call:?} waits {place:?}, has {patience}");
                self.check_position(&call, place.position)?;
                let before = self.flows(pool);
                self.live.push(call);
                self.waiting_changed(pool, &before);
                Ok(())
            }
            Decision::Rejected(refusal) => {
                let is_free = self.flows(pool).is_empty()
                    && room
                    && (!world.has_failed || (world.is_healthy() && !self.has_rates(pool)));
                ensure!(!is_free, "{call:?} refused beside free capacity: {refusal:?}");
                let wait = refusal.estimated_wait_ms.ok_or("a refusal without an estimate")?.0;
                self.check_position(&call, refusal.position.ok_or("a refusal without a position")?)?;
                ensure!(refusal.retry_after_ms.is_some(), "a refusal without Retry-After");
                let patience = self.patience(ask);
                match refusal.reason {
                    Reason::DeadlineUnreachable => ensure!(wait > patience, "{wait} of {patience} is not too late"),
                    Reason::QueueFull => {
                        ensure!(wait <= patience || !self.has_ended[pool], "{wait} of {patience} is too late");
                        let full = self.full(&call).ok_or("the queue is not full")?;
                        ensure!(refusal.message.contains(full), "{refusal:?} is not about {full}");
                    }
                    other => return Err(format!("refused as {other:?}")),
                }
                self.release_tenant(&call, now);
                self.past.push(Call { state: State::Refused(refusal.reason), ..call });
                Ok(())
            }
        }
    }

    /// What the call would be, and why it may not even queue.
    fn plan(&mut self, number: usize, ask: &Ask, world: &World) -> (Call, Option<Reason>) {
        let now = world.now;
        let tenant = self.setup.tenants[ask.tenant].clone();
        let pool = self.setup.pools.get(ask.pool);
        let ceiling = ask.granted.unwrap_or(tenant.ceiling);
        let level = ask.level.or(ask.granted).unwrap_or(tenant.default).max(ceiling);
        let context = pool.and_then(|pool| pool.context);
        let input = ask.input.min(context.unwrap_or(u64::MAX));
        // Without a context no more is reserved than the pool's model has yielded, and than the default of the configuration.
        let most_yielded = self.most_yielded.get(&ask.pool).map_or(32_768, |most| (*most).clamp(256, 32_768));
        let left = context.map_or(most_yielded, |context| (context - input).max(1));
        let output = match self.yields.get(&(ask.tenant, ask.pool)) {
            Some(average) => average.div_ceil(8).max(16).min(ask.max.unwrap_or(u64::MAX)),
            None => ask.max.unwrap_or(256),
        };
        let output = output.min(left).saturating_mul(u64::from(ask.sequences));
        let [of_input, of_output, _] = pool.map_or([100; 3], |pool| pool.percent);
        let grouped = pool.is_some_and(|pool| !pool.shares.is_empty());
        let call = Call {
            number,
            flow: Flow { pool: ask.pool, group: if grouped { tenant.group } else { 0 }, level, tenant: ask.tenant },
            input,
            sequences: ask.sequences,
            reserved: input + output,
            charge: (input * of_input + output * of_output).div_ceil(100),
            by: [1; 3],
            bytes: ask.bytes,
            arrived: now,
            started: None,
            gives_up: (now + self.patience(ask)).next_multiple_of(16),
            state: State::Waiting,
        };
        // A prompt's length is an estimate: only what is certain is refused.
        let certain = ask.input / 4 + ask.max.unwrap_or(1);
        let early = if self.draining {
            Some(Reason::ShuttingDown)
        } else if self.knows(number, now) {
            Some(Reason::DuplicateAdmission)
        } else if tenant.absent {
            Some(Reason::UnknownKey)
        } else if tenant.disabled {
            Some(Reason::TenantDisabled)
        } else if pool.is_none() {
            Some(Reason::ModelNotFound)
        } else if tenant.only_first_model && ask.pool != 0 {
            Some(Reason::ModelNotAllowed)
        } else if context.is_some_and(|context| certain > context) {
            Some(Reason::ContextLengthExceeded)
        } else if !world.is_leased(ask.pool) {
            Some(Reason::LedgerUnavailable)
        } else {
            self.limited(&call, &tenant, now)
        };
        (call, early)
    }

    fn limited(&mut self, call: &Call, tenant: &TenantSetup, now: u64) -> Option<Reason> {
        let account = &mut self.accounts[call.flow.tenant];
        if tenant.concurrent.is_some_and(|limit| account.in_flight >= limit) {
            return Some(Reason::TenantConcurrency);
        }
        let amounts = [1, 1, call.reserved];
        let limits = account.buckets.iter_mut().zip(amounts).zip(LIMITS);
        let mut hit = limits.filter_map(|((bucket, amount), reason)| {
            bucket.as_mut().is_some_and(|bucket| !bucket.allows(amount, now)).then_some(reason)
        });
        hit.next()
    }

    /// Whether the id is live, or has ended two minutes ago or less.
    pub(crate) fn knows(&self, number: usize, now: u64) -> bool {
        self.live.iter().any(|call| call.number == number) || self.has_tombstone(number, now)
    }

    pub(super) fn has_tombstone(&self, number: usize, now: u64) -> bool {
        self.tombstones.iter().any(|(told, of)| *of == number && now - told < TOMBSTONE_MS)
    }

    fn patience(&self, ask: &Ask) -> u64 {
        ask.deadline.or(self.setup.deadline).unwrap_or(self.setup.timeout).min(self.setup.timeout)
    }

    /// Which bound of the queue the call would break, in words of the refusal.
    fn full(&self, call: &Call) -> Option<&'static str> {
        let all: u64 = self.waiting().map(|other| other.bytes).sum();
        let own = self.waiting().filter(|other| other.flow.tenant == call.flow.tenant);
        let own: u64 = own.map(|other| other.bytes).sum();
        if all + call.bytes > self.setup.bytes || own + call.bytes > self.setup.bytes_per_tenant {
            return Some("bytes");
        }
        let here: Vec<&Call> = self.waiting().filter(|other| other.flow.pool == call.flow.pool).collect();
        if here.iter().filter(|other| other.flow.level == call.flow.level).count() >= self.setup.depth_per_level {
            return Some("is full at");
        }
        let own = here.iter().filter(|other| other.flow.tenant == call.flow.tenant).count();
        (own >= self.setup.depth_per_tenant).then_some("too many calls")
    }

    /// From 1, and never behind more than may start before: under `hybrid` nobody of a lower level before a P0, under
    /// `strict` nobody of a lower level of the own group.
    pub(super) fn check_position(&self, call: &Call, position: u64) -> Result<(), String> {
        let may_start_before = |other: &Flow| match self.setup.policy {
            SharePolicy::Wfq => true,
            SharePolicy::Hybrid => call.flow.level != 0 || other.level == 0,
            SharePolicy::Strict => call.flow.group != other.group || other.level <= call.flow.level,
        };
        let before = self.flows(call.flow.pool).iter().filter(|other| may_start_before(other)).count() as u64;
        ensure!((1..=before + 1).contains(&position), "position {position} behind {before}");
        Ok(())
    }

    pub(super) fn check_grant(&self, call: &Call, grant: &Grant, now: u64) -> Result<(), String> {
        ensure!(u8::from(grant.priority) == call.flow.level, "{grant:?} is not for {call:?}");
        ensure!(grant.reserved == Tokens(call.reserved), "{grant:?} does not reserve {}", call.reserved);
        ensure!(grant.tenant.as_str() == format!("t{}", call.flow.tenant), "{grant:?} is not for {call:?}");
        ensure!(grant.pool.as_str() == format!("p{}", call.flow.pool), "{grant:?} is not for {call:?}");
        ensure!(grant.waited_ms == Millis(now - call.arrived), "{grant:?} arrived at {}", call.arrived);
        Ok(())
    }
}
