//! The admission core once more, naively: one list of every call there ever was, looked through from its beginning.
//!
//! It is told what the core answered and complains when the documentation does not allow that answer. Only the
//! estimated wait is taken from the core: it is an estimate.

use crate::fairness::Fairness;
use crate::naive_bucket::NaiveBucket;
use crate::naive_tree::{Flow, NaiveTree, Weights, competing};
use crate::setup::{Setup, TenantSetup};
use crate::world::{LONGEST_MS, World, id};
use sluice_policy::admission::{Event, Settled};
use sluice_policy::bucket::Rate;
use sluice_policy::ledger::MeterName;
use sluice_policy::units::{AdmissionId, Millis, Tokens};
use sluice_policy::wire::{Grant, Outcome, Reason, Refusal, Usage, UsageSource};
use std::collections::{BTreeMap, BTreeSet};

macro_rules! ensure {
    ($holds:expr, $($text:tt)+) => { if !$holds { return Err(format!($($text)+)); } };
}

#[path = "model_arrival.rs"]
mod arrival;
#[path = "model_checks.rs"]
mod checks;

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) number: usize,
    pub(crate) flow: Flow,
    input: u64,
    sequences: u32,
    reserved: u64,
    charge: u64,
    /// The weights that it was charged by: its group's, its level's, its tenant's.
    by: [i128; 3],
    bytes: u64,
    pub(crate) arrived: u64,
    pub(crate) started: Option<u64>,
    gives_up: u64,
    pub(crate) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Waiting,
    Running {
        since: u64,
    },
    Refused(Reason),
    Ended(Outcome),
    /// Nobody ever settled it.
    Outlived,
}

#[derive(Clone, Debug)]
struct Account {
    in_flight: u32,
    /// Requests per second, requests per minute, tokens per minute.
    buckets: [Option<NaiveBucket>; 3],
}

const TOMBSTONE_MS: u64 = 120_000;

const METERS: [MeterName; 3] = [MeterName::RequestsPerSecond, MeterName::RequestsPerMinute, MeterName::TokensPerMinute];

const LIMITS: [Reason; 3] =
    [Reason::TenantRequestsPerSecond, Reason::TenantRequestsPerMinute, Reason::TenantTokensPerMinute];

#[derive(Clone, Debug)]
struct PoolBuckets {
    requests: Option<NaiveBucket>,
    tokens: Option<NaiveBucket>,
}

pub(crate) struct Model {
    pub(crate) setup: Setup,
    weights: Weights,
    /// Whoever waits or runs, in order of arrival.
    pub(crate) live: Vec<Call>,
    /// Every other call there was, in the order in which they ended.
    pub(crate) past: Vec<Call>,
    tombstones: Vec<(u64, usize)>,
    accounts: Vec<Account>,
    pools: Vec<PoolBuckets>,
    /// Average output × 8, by tenant and model.
    yields: BTreeMap<(usize, usize), u64>,
    /// The most that any call to a pool has yielded.
    most_yielded: BTreeMap<usize, u64>,
    tree: NaiveTree,
    fairness: Fairness,
    draining: bool,
    /// The largest there has been, by pool.
    most_slots: Vec<u32>,
    /// Whether a call has ended in each pool, so that its estimates rest on something.
    has_ended: Vec<bool>,
}

impl Model {
    pub(crate) fn new(setup: &Setup) -> Self {
        let mut model = Self {
            setup: setup.clone(),
            weights: weights(setup),
            live: Vec::new(),
            past: Vec::new(),
            tombstones: Vec::new(),
            accounts: vec![Account { in_flight: 0, buckets: [None, None, None] }; setup.tenants.len()],
            pools: vec![PoolBuckets { requests: None, tokens: None }; setup.pools.len()],
            yields: BTreeMap::new(),
            most_yielded: BTreeMap::new(),
            tree: NaiveTree::default(),
            fairness: Fairness::default(),
            draining: false,
            most_slots: vec![0; setup.pools.len()],
            has_ended: vec![false; setup.pools.len()],
        };
        model.configure(setup, 0);
        model
    }

    pub(crate) fn configure(&mut self, setup: &Setup, now: u64) {
        for (account, tenant) in self.accounts.iter_mut().zip(&setup.tenants).filter(|(_, tenant)| !tenant.absent) {
            for (bucket, rate) in account.buckets.iter_mut().zip(rates(tenant)) {
                *bucket = NaiveBucket::changed(bucket.take(), rate, now);
            }
        }
        for (buckets, pool) in self.pools.iter_mut().zip(&setup.pools) {
            let rate = pool.requests_per_s.map(|amount| Rate::per_second(amount, amount));
            buckets.requests = NaiveBucket::changed(buckets.requests.take(), rate, now);
        }
        self.apply(setup, now);
        self.weigh(weights(setup).tenants);
    }

    pub(crate) fn apply(&mut self, setup: &Setup, now: u64) {
        for (index, pool) in setup.pools.iter().enumerate() {
            let rate = pool.tokens_per_s.map(|amount| Rate::per_second(amount, pool.burst.unwrap_or(amount)));
            let buckets = &mut self.pools[index];
            if buckets.tokens.as_ref().map(NaiveBucket::rate) != rate {
                buckets.tokens = NaiveBucket::changed(buckets.tokens.take(), rate, now);
            }
            self.most_slots[index] = self.most_slots[index].max(pool.concurrent);
        }
        for pool in 0..self.pools.len() {
            self.tree.ruled(&self.flows(pool), self.weights.policy, setup.policy);
        }
        self.setup = setup.clone();
        self.weights = Weights { tenants: self.weights.tenants.clone(), ..weights(setup) };
        self.fairness.begin_anew();
    }

    /// By tenant; what [`Setup`] says again after the next reload.
    pub(crate) fn weigh(&mut self, tenants: Vec<u64>) {
        self.weights.tenants = tenants;
        self.fairness.begin_anew();
    }

    pub(crate) fn waiting(&self) -> impl Iterator<Item = &Call> {
        self.live.iter().filter(|call| call.state == State::Waiting)
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = &Call> {
        self.live.iter().filter(|call| matches!(call.state, State::Running { .. }))
    }

    fn flows(&self, pool: usize) -> Vec<Flow> {
        self.waiting().map(|call| call.flow).filter(|flow| flow.pool == pool).collect()
    }

    /// Others wait for a pool than before.
    fn waiting_changed(&mut self, pool: usize, before: &[Flow]) {
        let (after, policy) = (self.flows(pool), self.weights.policy);
        self.tree.changed(before, &after, policy);
        self.fairness.fell_asleep(pool, &competing(&after, policy));
    }

    fn charge_tenant(&mut self, call: &Call, world: &World) -> Result<(), String> {
        let account = &mut self.accounts[call.flow.tenant];
        account.in_flight += 1;
        for (bucket, amount) in account.buckets.iter_mut().zip([1, 1, call.reserved]) {
            let begun = bucket.as_mut().map_or(Ok(()), |bucket| bucket.begin(amount, world.now));
            if !world.has_failed {
                begun?;
            }
        }
        Ok(())
    }

    fn release_tenant(&mut self, call: &Call, now: u64) {
        let account = &mut self.accounts[call.flow.tenant];
        account.in_flight -= 1;
        for (bucket, amount) in account.buckets.iter_mut().zip([1, 1, call.reserved]) {
            if let Some(bucket) = bucket {
                bucket.give_back(amount, now);
            }
        }
    }

    fn has_rates(&self, pool: usize) -> bool {
        self.pools[pool].requests.is_some() || self.pools[pool].tokens.is_some()
    }

    fn has_tokens(&mut self, pool: usize, charge: u64, now: u64) -> bool {
        let PoolBuckets { requests, tokens } = &mut self.pools[pool];
        requests.as_mut().is_none_or(|bucket| bucket.allows(1, now))
            && tokens.as_mut().is_none_or(|bucket| bucket.allows(charge, now))
    }

    /// A call begins to run, from the queue (then it is in the list) or past it.
    fn start(&mut self, call: Call, now: u64, world: &World) -> Result<(), String> {
        let (flow, pool, charge) = (call.flow, call.flow.pool, call.charge);
        let running = self.running().filter(|other| other.flow.pool == pool).count() as u32;
        ensure!(running < world.held(pool), "I1: {} run of {}", running + 1, world.held(pool));
        let PoolBuckets { requests, tokens } = &mut self.pools[pool];
        for (bucket, amount) in [(requests, 1), (tokens, charge)] {
            let begun = bucket.as_mut().map_or(Ok(()), |bucket| bucket.begin(amount, world.now));
            // A ledger that was away has heard of a changed rate later than the model.
            if !world.has_failed {
                begun?;
            }
        }
        let by = self.weights.above(flow);
        let call = Call { state: State::Running { since: now }, started: Some(now), by, ..call };
        let before = self.flows(pool);
        match self.live.iter_mut().find(|other| other.number == call.number) {
            Some(waiting) => *waiting = call,
            None => self.live.push(call),
        }
        self.waiting_changed(pool, &before);
        let flows = self.flows(pool);
        let moved = self.tree.start(&flows, flow, charge, &self.weights);
        self.fairness.started(&moved, self.most_slots[pool], self.setup.policy)
    }

    /// The core has answered a settlement.
    pub(crate) fn settled(
        &mut self,
        number: usize,
        outcome: Outcome,
        usage: Usage,
        settled: Option<&Settled>,
        now: u64,
    ) -> Result<(), String> {
        self.bury(number, now);
        let Some(at) = self.live.iter().position(|call| call.number == number) else {
            ensure!(settled.is_none(), "I6: {number} was settled and is not live: {settled:?}");
            return Ok(());
        };
        let settled = settled.ok_or_else(|| format!("nobody settled {number}"))?;
        let before = self.flows(self.live[at].flow.pool);
        let call = self.live.remove(at);
        let usage = self.believed(usage, &call);
        ensure!(settled.usage == usage, "settled {:?}, not {usage:?}", settled.usage);
        self.past.push(Call { state: State::Ended(outcome), ..call.clone() });
        let flow = call.flow;
        if call.state == State::Waiting {
            self.release_tenant(&call, now);
            self.waiting_changed(flow.pool, &before);
        } else {
            self.end(&call, self.charge_of(&usage, flow.pool), now)?;
            if (outcome, usage.source) == (Outcome::Cancelled, UsageSource::None) {
                self.release_tenant(&call, now);
            } else {
                self.settle_tenant(&call, usage.input.0 + usage.output.0, now);
            }
        }
        if outcome == Outcome::Completed {
            let sample = usage.output.0 / u64::from(call.sequences);
            // Each sample moves the average by an eighth of the distance.
            let average = self.yields.get(&(flow.tenant, flow.pool)).map_or(sample * 8, |old| old - old / 8 + sample);
            self.yields.insert((flow.tenant, flow.pool), average);
            let most = self.most_yielded.entry(flow.pool).or_default();
            *most = sample.max(*most);
        }
        Ok(())
    }

    fn end(&mut self, call: &Call, actual: u64, now: u64) -> Result<(), String> {
        let pool = call.flow.pool;
        self.has_ended[pool] = true;
        if let Some(tokens) = &mut self.pools[pool].tokens {
            tokens.correct(call.charge, actual, now);
        }
        let (waiting, charges) = (self.flows(pool), (actual, call.charge));
        let moved = self.tree.correct(&waiting, call.flow, charges, call.by, &self.weights);
        self.fairness.corrected(&moved, self.most_slots[pool])
    }

    fn settle_tenant(&mut self, call: &Call, actual: u64, now: u64) {
        let account = &mut self.accounts[call.flow.tenant];
        account.in_flight -= 1;
        if let Some(tokens) = &mut account.buckets[2] {
            tokens.correct(call.reserved, actual, now);
        }
    }

    fn believed(&self, usage: Usage, call: &Call) -> Usage {
        let context = self.setup.pools[call.flow.pool].context.unwrap_or(u64::MAX);
        if usage.input.0 <= context && usage.output.0 <= context.saturating_mul(u64::from(call.sequences)) {
            return usage;
        }
        let output = Tokens(call.reserved - call.input);
        Usage {
            source: UsageSource::Estimated,
            input: Tokens(call.input),
            output,
            cached: Tokens::ZERO,
            reasoning: Tokens::ZERO,
        }
    }

    fn charge_of(&self, usage: &Usage, pool: usize) -> u64 {
        let [of_input, of_output, of_cached] = self.setup.pools[pool].percent;
        let cached = usage.cached.0.min(usage.input.0);
        ((usage.input.0 - cached) * of_input + cached * of_cached + usage.output.0 * of_output).div_ceil(100)
    }

    /// The core has been advanced, and told these events.
    pub(crate) fn turned(&mut self, events: &[Event], world: &World) -> Result<(), String> {
        let now = world.now;
        let mut late: BTreeSet<usize> =
            self.waiting().filter(|call| call.gives_up <= now).map(|call| call.number).collect();
        let mut starts = Vec::new();
        for event in events {
            match event {
                Event::Refused(of, refusal) => {
                    ensure!(starts.is_empty(), "a start before a refusal");
                    let number = self.waiting_number(of.as_str())?;
                    ensure!(late.remove(&number), "{of} gave up too early");
                    let call = self.waiting().find(|call| call.number == number).cloned().ok_or("nobody gave up")?;
                    if world.was_cut_off[call.flow.pool] {
                        self.gave_up(number, refusal, Reason::LedgerUnavailable, now)?;
                        continue;
                    }
                    self.gave_up(number, refusal, Reason::QueueTimeout, now)?;
                    self.check_position(&call, refusal.position.ok_or("a time-out without a position")?)?;
                    let (wait, retry) = (refusal.estimated_wait_ms, refusal.retry_after_ms);
                    ensure!(wait.is_some() && retry == wait, "come back after {retry:?} to wait {wait:?}");
                }
                Event::Started(of, grant) => starts.push((of, grant)),
            }
        }
        ensure!(late.is_empty(), "{late:?} still wait beyond their deadline");
        let outlived = |call: &&Call| matches!(call.state, State::Running { since } if since + LONGEST_MS <= now);
        for call in self.running().filter(outlived).cloned().collect::<Vec<_>>() {
            self.end(&call, call.charge, now)?;
            self.settle_tenant(&call, call.reserved, now);
            self.take(call.number, State::Outlived, now)?;
        }
        for (of, grant) in starts {
            self.started(of, grant, world)?;
        }
        self.check_work_conservation(world)?;
        for pool in 0..self.pools.len() {
            let flows = competing(&self.flows(pool), self.weights.policy);
            self.fairness.note_waiting(&flows, &self.weights);
        }
        Ok(())
    }

    /// Those who started between a newcomer's arrival and its own start.
    fn turned_before_newcomer(&mut self, world: &World) -> Result<(), String> {
        for event in &world.before_newcomer {
            let Event::Started(of, grant) = event else { return Err(format!("{event:?} before a newcomer")) };
            self.started(of, grant, world)?;
        }
        Ok(())
    }

    /// A call that waited has started.
    fn started(&mut self, of: &AdmissionId, grant: &Grant, world: &World) -> Result<(), String> {
        let now = world.now;
        let number = self.waiting_number(of.as_str())?;
        let call = self.waiting().find(|call| call.number == number).cloned().ok_or("it started twice")?;
        self.check_turn(&call)?;
        let has_tokens = world.has_failed || self.has_tokens(call.flow.pool, call.charge, now);
        let (known, expected) = (world.pool_tokens(call.flow.pool), self.pool_tokens(call.flow.pool, now));
        ensure!(has_tokens, "I2: {call:?} started without tokens: {expected:?} are left, not {known:?}");
        self.check_grant(&call, grant, now)?;
        self.start(call, now, world)
    }

    pub(crate) fn drained(&mut self, events: &[Event], now: u64) -> Result<(), String> {
        self.draining = true;
        for event in events {
            let Event::Refused(of, refusal) = event else { return Err(format!("{event:?} while draining")) };
            let number = self.waiting_number(of.as_str())?;
            self.gave_up(number, refusal, Reason::ShuttingDown, now)?;
        }
        ensure!(self.waiting().next().is_none(), "somebody still waits");
        Ok(())
    }

    fn gave_up(&mut self, number: usize, refusal: &Refusal, reason: Reason, now: u64) -> Result<(), String> {
        ensure!(refusal.reason == reason, "{refusal:?} is not {reason:?}");
        let call = self.take(number, State::Refused(reason), now)?;
        ensure!(refusal.waited_ms == Millis(now - call.arrived), "{refusal:?} arrived at {}", call.arrived);
        self.release_tenant(&call, now);
        Ok(())
    }

    fn waiting_number(&self, of: &str) -> Result<usize, String> {
        let waits = self.waiting().find(|call| id(call.number).as_str() == of);
        waits.map(|call| call.number).ok_or_else(|| format!("I6: an answer to {of}, which does not wait"))
    }

    /// An id that has ended is known for a while, whether it was live or not.
    pub(crate) fn bury(&mut self, number: usize, now: u64) {
        if !self.has_tombstone(number, now) {
            self.tombstones.push((now, number));
        }
    }

    /// Takes a live call out, into the past.
    fn take(&mut self, number: usize, state: State, now: u64) -> Result<Call, String> {
        self.bury(number, now);
        let at = self.live.iter().position(|call| call.number == number).ok_or("it ended twice")?;
        let before = self.flows(self.live[at].flow.pool);
        let call = self.live.remove(at);
        self.waiting_changed(call.flow.pool, &before);
        self.past.push(Call { state, ..call.clone() });
        Ok(call)
    }
}

fn weights(setup: &Setup) -> Weights {
    let of_pool = |shares: &Vec<u64>| match shares.is_empty() {
        true => Vec::new(),
        false => std::iter::once(1).chain(shares.iter().copied()).collect(),
    };
    Weights {
        policy: setup.policy,
        levels: setup.weights,
        groups: setup.pools.iter().map(|pool| of_pool(&pool.shares)).collect(),
        tenants: setup.tenants.iter().map(|tenant| if tenant.absent { 1 } else { tenant.weight }).collect(),
    }
}

fn rates(tenant: &TenantSetup) -> [Option<Rate>; 3] {
    [
        tenant.requests_per_s.map(|amount| Rate::per_second(amount, amount)),
        tenant.requests_per_min.map(Rate::per_minute),
        tenant.tokens_per_min.map(Rate::per_minute),
    ]
}
