//! How calls end: settled, given up by a worker, abandoned with their slot, or overdue.

use super::explain::Fate;
use super::live::{Live, Removed, State};
use super::orphans::Orphan;
use super::{Admission, Settled};
use crate::ledger::Draw;
use crate::seal::IdReader;
use crate::units::{AdmissionId, Millis, ModelName, Tokens};
use crate::wire::{EndedWorker, LiveIds, Outcome, Settlement, Usage, UsageSource};

/// An instance that is silent was heard of for the last time half a second before, at most, and looked at half a second after:
/// what starts later than that finds it dead.
const TRAP_MARGIN: Millis = Millis(1_000);

impl Admission {
    /// A worker has told which of its calls are not over: of the others it repeats nothing.
    pub fn reported(&mut self, worker: &str, live: &LiveIds, now: Millis) {
        self.live.reported(worker, live, now);
    }

    /// Ends a call, and tells what it was charged; `None` for an id that is not (or no longer) live.
    pub fn settle(&mut self, settlement: &Settlement, now: Millis) -> Option<Settled> {
        let live = match self.live.remove(&settlement.id, now) {
            Removed::Live(live) => live,
            Removed::Before => return None,
            Removed::Unknown => return self.charge_afterwards(settlement, now),
        };
        let pool = self.pools.get_mut(live.pool)?;
        let tenant = self.tenants.get_mut(live.flow.tenant)?;
        let turns = settlement.charge_to.as_ref().map_or(1, |charge_to| charge_to.turns);
        let (prompts, sequences) = (u64::from(live.prompts), u64::from(live.sequences));
        let usage = believable(settlement.usage, pool.context_length(), [prompts, sequences, u64::from(turns)])
            .unwrap_or_else(|| estimated(&live));
        let price = self.routes.price(live.model);
        let draw = live.draw(price);
        let mut slot_until = None;
        match live.state {
            State::Applying => {}
            State::Succeeding(turn) => self.successors.remove(live.flow.tenant, turn),
            State::Queued(ticket) => {
                let bytes = pool.leave(ticket).map_or(0, |waiter| waiter.bytes);
                tenant.account.release(draw, live.arrived);
                self.count_waiting(live.flow.tenant, 0, bytes);
            }
            State::Running { since, by } => {
                let (actual, charge) = (usage.input.plus(usage.output), pool.charge_weights(live.model).of(&usage));
                pool.correct(&live, by, charge);
                tenant.served = tenant.served.plus(charge);
                match (settlement.outcome, usage.source) {
                    (Outcome::Cancelled, UsageSource::None) => tenant.account.take_back(draw, live.arrived),
                    _ => tenant.account.correct(draw, Draw { tokens: actual, money: price.of(&usage) }, live.arrived),
                }
                let orphan =
                    Orphan { pool: live.pool, tenant: live.flow.tenant, since, charge: live.charge, cost: charge };
                let until = pool.keeps_slot_until(&live, since, now).filter(|_| settlement.may_run_on());
                slot_until = self.free_slot(orphan, until, now);
            }
        }
        // A fixed charge tells nothing of what a model yields.
        let is_counted = usage.source != UsageSource::Fixed;
        if is_counted
            && let (Outcome::Completed, Some(tenant)) = (settlement.outcome, self.tenants.get_mut(live.flow.tenant))
        {
            let output = Tokens(usage.output.0 / u64::from(live.sequences));
            tenant.yields.learn(live.model, output);
            self.tenants.has_yielded(live.model, output);
        }
        self.schedule(live.flow.tenant, now);
        let fate = Fate::Ended { at: now, outcome: settlement.outcome, usage, slot_until };
        if matches!(live.state, State::Applying | State::Succeeding(_)) {
            self.explanations.add(&live, None, fate);
        } else {
            self.explanations.turn(live.explained, fate);
        }
        let model = self.tenants.model(live.model)?.clone();
        let tenant = self.tenants.get(live.flow.tenant)?.id.clone();
        Some(Settled { tenant, pool: self.pools.get(live.pool)?.name.clone(), model, usage })
    }

    /// The settlements of calls that have ended, though nobody told how: what had started is charged what it reserved.
    /// Looks at every call, so it is for now and then.
    pub fn settlements_of(&self, is_over: impl Fn(&AdmissionId) -> bool) -> Vec<Settlement> {
        let ended = self.live.iter().filter(|live| is_over(&live.id));
        let settlement = |live: &Live| {
            let (outcome, usage) = match live.state {
                State::Running { .. } => (Outcome::Failed, estimated(live)),
                State::Applying | State::Succeeding(_) | State::Queued(_) => (Outcome::Cancelled, Usage::default()),
            };
            // Nobody has told that the model server's work has ended, either.
            let abandoned = matches!(live.state, State::Running { .. });
            Settlement { id: live.id.clone(), outcome, usage, charge_to: None, timing: None, abandoned }
        };
        ended.map(settlement).collect()
    }

    /// The settlements of the calls of an instance of the filter that has ended. One that ended in good order has no stream
    /// any more: what ran is charged what it reserved, as an aborted call. Of one that trapped, those that were started after
    /// it was heard of last never went on, and cost nothing; what had started before ends with its stream, of which nobody
    /// tells, or by its longest time. Looks at every call, so it is for now and then.
    #[must_use]
    pub fn settlements_of_ended(&self, ended: &EndedWorker, now: Millis) -> Vec<Settlement> {
        let own = ended.seal.is_some().then(|| IdReader::new(&ended.worker, ended.seal.as_ref()));
        let Some(ids) = own.as_ref().or_else(|| self.live.reader(&ended.worker)) else { return Vec::new() };
        let trapped = ended.silent_ms.map(|silent| Millis(now.0.saturating_sub(silent.0)).plus(TRAP_MARGIN));
        let settlement = |live: &Live| {
            let (outcome, usage) = match (live.state, trapped) {
                (State::Running { .. }, None) => (Outcome::Aborted, estimated(live)),
                (State::Running { since, .. }, Some(trapped)) if since <= trapped => return None,
                _ => (Outcome::Cancelled, Usage::default()),
            };
            let abandoned = outcome == Outcome::Aborted;
            Some(Settlement { id: live.id.clone(), outcome, usage, charge_to: None, timing: None, abandoned })
        };
        self.live.iter().filter(|live| ids.number(&live.id).is_some()).filter_map(settlement).collect()
    }

    /// A call that has been settled keeps its slot for a while, and until when, or frees it now.
    fn free_slot(&mut self, orphan: Orphan, until: Option<Millis>, now: Millis) -> Option<Millis> {
        // Longer than the longest request nothing runs: the ledger counts on that.
        let longest = orphan.since.plus(self.replica.lease.longest_request);
        let until = until.map(|until| until.min(longest)).filter(|until| *until > now);
        match until {
            None => self.end_slot(orphan, now),
            Some(until) => {
                if let Some(pool) = self.pools.get_mut(orphan.pool) {
                    pool.orphaned += 1;
                }
                self.orphans.add(until, orphan);
            }
        }
        until
    }

    /// The time of an orphan is over.
    pub(super) fn end_orphan(&mut self, orphan: Orphan, now: Millis) {
        if let Some(pool) = self.pools.get_mut(orphan.pool) {
            pool.orphaned = pool.orphaned.saturating_sub(1);
        }
        self.end_slot(orphan, now);
        self.schedule(orphan.tenant, now);
    }

    fn end_slot(&mut self, orphan: Orphan, now: Millis) {
        if let Some(pool) = self.pools.get_mut(orphan.pool) {
            pool.free(orphan.charge, orphan.cost, now.since(orphan.since));
        }
        if let Some(tenant) = self.tenants.get_mut(orphan.tenant) {
            tenant.has_ended(orphan.since);
            tenant.account.leave();
        }
    }

    /// A call that this process did not admit is charged to its tenant all the same: it was admitted before a restart,
    /// or passed while the service was away.
    fn charge_afterwards(&mut self, settlement: &Settlement, now: Millis) -> Option<Settled> {
        let charge_to = settlement.charge_to.as_ref().filter(|_| settlement.usage.source != UsageSource::None)?;
        let pool = self.pool(&charge_to.pool)?;
        let times = [charge_to.prompts, charge_to.sequences, charge_to.turns].map(u64::from);
        let usage = believable(settlement.usage, pool.context_length(), times)?;
        // Booked under a name that the configuration has, or had: this one lands in usage records and labels.
        let named = charge_to.model.as_deref().map(ModelName::from);
        let known = named.as_ref().and_then(|name| self.tenants.known_model(name)).cloned();
        let model = known.unwrap_or_else(|| ModelName::from(pool.name.as_str()));
        let index = self.welcome(&charge_to.tenant, now)?;
        let tenant = self.tenants.get_mut(index)?;
        let price = self.config.models.get(&model).map(|model| model.price).unwrap_or_default();
        tenant.account.charge_afterwards(Draw { tokens: usage.input.plus(usage.output), money: price.of(&usage) }, now);
        self.schedule(index, now);
        Some(Settled { tenant: charge_to.tenant.clone(), pool: charge_to.pool.clone(), model, usage })
    }

    /// A call that outlived the longest stream Envoy allows has ended, though nobody told us how.
    pub(super) fn end_overdue(&mut self, now: Millis) {
        for key in self.live.overdue(now) {
            let Some(live) = self.live.remove_key(key, now) else { continue };
            let State::Running { since, by } = live.state else { continue };
            if let Some(pool) = self.pools.get_mut(live.pool) {
                pool.correct(&live, by, live.charge);
                pool.free(live.charge, live.charge, self.replica.lease.longest_request);
            }
            if let Some(tenant) = self.tenants.get_mut(live.flow.tenant) {
                tenant.has_ended(since);
                let draw = live.draw(self.routes.price(live.model));
                tenant.account.settle(draw, draw, live.arrived);
            }
            self.schedule(live.flow.tenant, now);
            let usage = estimated(&live);
            self.explanations
                .turn(live.explained, Fate::Ended { at: now, outcome: Outcome::Failed, usage, slot_until: None });
        }
    }
}

/// Usage that the model's context allows to so many prompts, sequences and turns; what exceeds it cannot be true.
fn believable(usage: Usage, context: Option<Tokens>, [prompts, sequences, turns]: [u64; 3]) -> Option<Usage> {
    if usage.source == UsageSource::Fixed {
        // A fixed charge is configured and not a count of anything that a context could hold.
        return Some(usage);
    }
    let fits = |context: Tokens| {
        usage.input <= context.times(prompts).times(turns) && usage.output <= context.times(sequences).times(turns)
    };
    context.is_none_or(fits).then_some(usage)
}

/// In place of usage that cannot be true: what was reserved.
fn estimated(live: &Live) -> Usage {
    let output = Tokens(live.reserved.0.saturating_sub(live.input.0));
    Usage { source: UsageSource::Estimated, input: live.input, output, cached: Tokens::ZERO, reasoning: Tokens::ZERO }
}
