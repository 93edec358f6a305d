//! What must hold after every event, whatever it was.

use super::{Call, LIMITS, METERS, Model, State};
use crate::world::{World, id};
use sluice_policy::admission::{Explanation, Fate};
use sluice_policy::units::{Millis, Priority, Tokens};
use sluice_policy::wire::{Outcome, Reason};

impl Model {
    /// It is the first of its flow, and its flow's turn.
    pub(super) fn check_turn(&self, call: &Call) -> Result<(), String> {
        let first = self.waiting().find(|other| other.flow == call.flow).map(|other| other.number);
        ensure!(first == Some(call.number), "{call:?} overtook {first:?} of its own flow");
        let next = self.tree.next(&self.flows(call.flow.pool), &self.weights);
        ensure!(next.contains(&call.flow), "{call:?} started, but next is {next:?}");
        Ok(())
    }

    /// With a free slot, whoever is next lacks tokens. With a ledger that answers every slot is there.
    pub(super) fn check_work_conservation(&mut self, world: &World) -> Result<(), String> {
        for pool in 0..self.pools.len() {
            let flows = self.flows(pool);
            let running = self.running().filter(|call| call.flow.pool == pool).count() as u32;
            let (held, slots) = (world.held(pool), self.setup.pools[pool].concurrent);
            // While the ledger is away, or has heard of changes late, what it has lent decides.
            let is_known = !world.has_failed || (world.is_healthy() && !self.has_rates(pool));
            let usable = if world.is_healthy() { slots } else { held };
            if flows.is_empty() || running >= usable || !is_known {
                continue;
            }
            let next = self.tree.next(&flows, &self.weights);
            let heads: Vec<u64> = next
                .iter()
                .filter_map(|flow| self.waiting().find(|call| call.flow == *flow).map(|call| call.charge))
                .collect();
            let stuck = heads.iter().any(|charge| !self.has_tokens(pool, *charge, world.now));
            ensure!(stuck, "{} wait while {running} of {usable} run", flows.len());
        }
        Ok(())
    }

    /// Everything countable agrees, and what the ledger lent bounds what runs (I1).
    pub(crate) fn check(&mut self, world: &mut World, thorough: bool) -> Result<(), String> {
        for (pool, name) in world.pools.clone().iter().enumerate() {
            let running = self.running().filter(|call| call.flow.pool == pool).count();
            ensure!(world.core.running(name) as usize == running, "{} run, not {running}", world.core.running(name));
            let flows = self.flows(pool);
            for level in Priority::all() {
                let waiting = flows.iter().filter(|flow| flow.level == u8::from(level)).count();
                let depth = world.core.queue_depth(name, level);
                ensure!(depth == waiting, "{depth} wait at {level}, not {waiting}");
            }
            let (ledger, slots) = (world.ledger(pool), self.setup.pools[pool].concurrent);
            ensure!(world.held(pool) <= ledger.granted(), "I1: {} held of {}", world.held(pool), ledger.granted());
            let lent = ledger.granted() + ledger.zombies();
            ensure!(lent <= self.most_slots[pool], "I1: {lent} lent of {}", self.most_slots[pool]);
            ensure!(world.held(pool) <= slots, "I1: {} held of {slots}", world.held(pool));
        }
        for tenant in 0..self.accounts.len() {
            let in_flight = world.core.in_flight(&world.tenants[tenant]);
            let live = self.live.iter().filter(|call| call.flow.tenant == tenant).count();
            ensure!(in_flight as usize == live, "{in_flight} in flight of tenant {tenant}, not {live}");
            ensure!(self.accounts[tenant].in_flight == in_flight, "the model lost count");
            if thorough {
                self.check_levels(tenant, world)?;
            }
        }
        Ok(())
    }

    fn check_levels(&mut self, tenant: usize, world: &mut World) -> Result<(), String> {
        let now = world.now;
        // What was used while the ledger was away it hears of later: not refilled since, or of another limit.
        if world.has_failed {
            return Ok(());
        }
        for (bucket, meter) in self.accounts[tenant].buckets.iter_mut().zip(METERS) {
            let expected = bucket.as_mut().map(|bucket| bucket.units(now));
            let found = world.core.levels(&world.tenants[tenant], Millis(now)).get(&meter).copied();
            // A ledger that was never asked knows of no limit.
            let full = bucket.as_ref().map(|bucket| bucket.rate().burst as i64);
            let agrees = found == expected || (found.is_none() && expected == full);
            ensure!(agrees, "tenant {tenant} has {found:?} left of {meter:?}, not {expected:?}");
        }
        Ok(())
    }

    /// What is told of a call agrees with what happened to it.
    pub(crate) fn check_explained(&self, world: &World, call: &Call) -> Result<(), String> {
        let told = world.core.explain(&id(call.number)).ok_or_else(|| format!("{call:?} is not explained"))?;
        let agrees = match (&told.fate, call.state) {
            (Fate::Waiting, State::Waiting) => true,
            (Fate::Running { since }, State::Running { since: expected }) => *since == Millis(expected),
            (Fate::Refused { reason, .. }, State::Refused(expected)) => *reason == expected,
            (Fate::Ended { outcome, .. }, State::Ended(expected)) => *outcome == expected,
            (Fate::Ended { outcome: Outcome::Failed, .. }, State::Outlived) => true,
            _ => false,
        };
        ensure!(agrees, "{call:?} is told as {:?}", told.fate);
        let tenant = told.tenant.as_ref().map(|tenant| tenant.as_str());
        ensure!(tenant == Some(&*format!("t{}", call.flow.tenant)), "{call:?} is told of {tenant:?}");
        self.check_refused(call, &told)?;
        ensure!(told.arrived == Millis(call.arrived), "{call:?} is told to have come at {}", told.arrived);
        if told.pool.is_some() {
            // Refused before its level was known, or its size was looked at.
            let early = [Reason::ModelNotAllowed, Reason::ContextLengthExceeded].map(State::Refused);
            let is_earliest = match call.state {
                State::Refused(Reason::UnknownKey | Reason::TenantDisabled) => true,
                // Either on arrival or from the queue; what came so far had reserved something.
                State::Refused(Reason::ShuttingDown) => told.reserved == Tokens(0),
                _ => false,
            };
            let is_at_level = told.level.map(u8::from) == Some(call.flow.level);
            ensure!(is_earliest || is_at_level, "{call:?} is told at {:?}", told.level);
            let (reserved, charge) =
                if is_earliest || early.contains(&call.state) { (0, 0) } else { (call.reserved, call.charge) };
            ensure!(told.reserved == Tokens(reserved), "{call:?} is told to reserve {}", told.reserved);
            ensure!(told.charge == Tokens(charge), "{call:?} is told to cost {}", told.charge);
        }
        Ok(())
    }

    /// A call that was refused after its pool was found is told in full: the limit that it was over, and its place where
    /// the queue refused it.
    fn check_refused(&self, call: &Call, told: &Explanation) -> Result<(), String> {
        let Fate::Refused { reason, limit, .. } = &told.fate else { return Ok(()) };
        let by_queue = matches!(reason, Reason::QueueFull | Reason::DeadlineUnreachable);
        let limited = by_queue || LIMITS.contains(reason) || *reason == Reason::TenantConcurrency;
        let planned = limited || matches!(reason, Reason::LedgerUnavailable | Reason::QueueTimeout);
        ensure!(!planned || told.pool.is_some(), "{call:?} is told of no pool: {told:?}");
        ensure!(!by_queue || told.queued_at.is_some(), "{call:?} is told of no place: {told:?}");
        let has_limit = limited || *reason == Reason::ContextLengthExceeded;
        ensure!(limit.is_some() == has_limit, "{call:?} is told of {limit:?}");
        Ok(())
    }

    /// Whether every bucket of every tenant is full again.
    pub(crate) fn check_returned(&mut self, now: u64) -> Result<(), String> {
        let buckets = self.accounts.iter_mut().flat_map(|account| account.buckets.iter_mut().flatten());
        for bucket in buckets {
            let (units, burst) = (bucket.units(now), bucket.rate().burst);
            ensure!(units == burst as i64, "{units} are back of {burst}");
        }
        Ok(())
    }

    /// How often two branches that wait side by side were compared.
    pub(crate) fn races(&self) -> u32 {
        self.fairness.compared
    }

    /// The level that the ledger is told of a pool's tokens.
    pub(crate) fn pool_tokens(&mut self, pool: usize, now: u64) -> Option<i64> {
        self.pools[pool].tokens.as_mut().map(|tokens| tokens.units(now))
    }
}
