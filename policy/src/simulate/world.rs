//! Drives the core through a trace: arrivals, ends, departures, the ledger, time rules, adaptive weights.
//!
//! In one millisecond rules and weights come first, then what ends, then what arrives; after each of them the core advances, as
//! it does in the service.

use super::Setup;
use super::agenda::{Agenda, Task, What};
use super::report::Report;
use super::tally::Tally;
use super::trace::{Arrival, Trace};
use crate::adaptive::{Adapting, served};
use crate::admission::{Admission, Decision, Event};
use crate::config::ChargeWeights;
use crate::holder::{LeaseTerms, Replica};
use crate::ledger::{Account, AccountLedger, Server, Version};
use crate::schedule::UnixMillis;
use crate::units::{AdmissionId, Millis, ModelName, PoolName, Priority, Tokens};
use crate::wire::{AdmissionRequest, KeyProof, Outcome, Settlement, Usage, UsageSource, WIRE_VERSION};
use std::collections::BTreeMap;
use std::sync::Arc;

/// With one replica a lease decides nothing, and renewing it seldom saves time.
const LEASE: LeaseTerms = LeaseTerms { lease: Millis(60_000), longest_request: Millis(2 * 86_400_000), shared: false };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Queued,
    Running { since: Millis },
    Over,
}

/// What the core's answers are about: a call of the trace that has arrived. Its id is made from its place when it is
/// needed, for a million of them would not stay near the processor.
#[derive(Clone, Debug)]
struct Call {
    level: Priority,
    state: State,
}

pub(super) struct World<'t> {
    setup: &'t Setup,
    trace: &'t Trace,
    core: Admission,
    pools: Vec<PoolName>,
    ledgers: BTreeMap<Account, AccountLedger>,
    /// By model of the trace.
    charges: Vec<ChargeWeights>,
    /// Default level and ceiling, by tenant of the trace.
    levels: Vec<(Priority, Priority)>,
    /// The calls that have arrived, in the order of the trace.
    calls: Vec<Call>,
    agenda: Agenda,
    next_rule: Option<Millis>,
    adapting: Adapting,
    /// When an adaptive window ends, or the first begins; `None` while they are off.
    next_window: Option<Millis>,
    /// When the core has something to do by itself.
    next_wake: Option<Millis>,
    now: Millis,
    tally: Tally,
    /// One of each, used again and again.
    request: AdmissionRequest,
    events: Vec<Event>,
}

impl<'t> World<'t> {
    pub(super) fn new(setup: &'t Setup, trace: &'t Trace) -> Self {
        let config = &setup.config;
        let replica = Replica { id: "simulated".into(), incarnation: 1, lease: LEASE };
        let core = Admission::new(config.clone(), &replica, Millis::ZERO);
        let pools: Vec<PoolName> = config.pools.keys().cloned().collect();
        let charge = |model: &String| config.models.get(&ModelName::from(model.as_str())).map(|model| model.charge);
        let levels = |tenant| match config.tenants.get(tenant) {
            Some(tenant) => (tenant.default_priority, tenant.ceiling),
            None => (Priority::LAST, Priority::LAST),
        };
        let tally = Tally::new(trace, pools.len());
        Self {
            core,
            pools,
            ledgers: BTreeMap::new(),
            charges: trace.models.iter().map(|model| charge(model).unwrap_or_default()).collect(),
            levels: trace.tenants.iter().map(levels).collect(),
            calls: Vec::with_capacity(trace.arrivals.len()),
            agenda: Agenda::default(),
            next_rule: Some(Millis::ZERO),
            adapting: Adapting::default(),
            next_window: config.adaptive.enabled.then_some(Millis::ZERO),
            next_wake: None,
            now: Millis::ZERO,
            tally,
            request: blank_request(),
            events: Vec::new(),
            setup,
            trace,
        }
    }

    pub(super) fn run(mut self) -> Report {
        self.live();
        while let Some(next) = self.next_moment() {
            self.pass_to(next);
            self.live();
        }
        let report = self.tally.report(self.trace, &self.setup.config, &self.pools, self.now);
        Report { adapted: adapted(&self.adapting), ..report }
    }

    /// Lets happen what happens at this moment.
    fn live(&mut self) {
        self.obey_rules();
        self.adapt_if_due();
        let is_due = |at: Option<Millis>| at.is_some_and(|at| at <= self.now);
        if is_due(self.next_wake) || is_due(self.core.next_ledger_call(self.now)) {
            self.advance();
        }
        while let Some(task) = self.agenda.take_due(self.now) {
            self.perform(task);
        }
        while self.next_arrival().is_some_and(|call| call.at <= self.now) {
            self.arrive();
        }
    }

    /// When something happens next; `None` when everything has.
    fn next_moment(&mut self) -> Option<Millis> {
        let arrival = self.next_arrival().map(|call| call.at);
        if arrival.is_none() && self.core.is_idle() {
            return None;
        }
        self.next_wake = self.core.next_wake();
        let by_time = [self.next_wake, self.next_rule, self.next_window, self.core.next_ledger_call(self.now)];
        let news = [arrival, self.agenda.next()];
        let next = by_time.into_iter().chain(news).flatten().min()?;
        // What is due and could not be done now must not stop the clock.
        Some(next.max(self.now.plus(Millis(1))))
    }

    fn next_arrival(&self) -> Option<&'t Arrival> {
        self.trace.arrivals.get(self.calls.len())
    }

    fn pass_to(&mut self, next: Millis) {
        let span = next.since(self.now);
        for (index, (_, running, capacity)) in self.core.slots().enumerate() {
            self.tally.passed(index, span, running, capacity);
        }
        self.now = next;
    }

    fn obey_rules(&mut self) {
        if self.next_rule.is_none_or(|at| at > self.now) {
            return;
        }
        let rules = &self.setup.config.time_rules;
        let start = self.setup.start.0;
        let unix = UnixMillis(start.saturating_add(i64::try_from(self.now.0).unwrap_or(i64::MAX)));
        let version = Version { since: u64::try_from(unix.0).unwrap_or(0), ..Version::default() };
        self.core.apply(&rules.effective(&self.setup.config.settings(), unix), version, self.now);
        let next = rules.next_change(unix).and_then(|next| u64::try_from(next.0.saturating_sub(start)).ok());
        self.next_rule = next.map(Millis);
        self.next_wake = Some(self.now);
    }

    fn adapt_if_due(&mut self) {
        if self.next_window.is_none_or(|at| at > self.now) {
            return;
        }
        let (adaptive, core) = (&self.setup.config.adaptive, &mut self.core);
        let served = || served(core.config(), &core.costs(0, usize::MAX).into_iter().collect());
        if let Some(weights) = self.adapting.pass(adaptive, served, self.now) {
            core.weigh_tenants(Arc::new(weights));
            self.next_wake = Some(self.now);
        }
        self.next_window = self.adapting.next(adaptive);
    }

    fn arrive(&mut self) {
        let index = self.calls.len();
        let Some(call) = self.trace.arrivals.get(index) else { return };
        let (Some(tenant), Some(model)) = (self.trace.tenants.get(call.tenant), self.trace.models.get(call.model))
        else {
            return;
        };
        let (default, ceiling) = self.levels.get(call.tenant).copied().unwrap_or((Priority::LAST, Priority::LAST));
        let level = call.level.unwrap_or(default).at_most(ceiling);
        self.calls.push(Call { level, state: State::Over });
        self.tally.asked(call, level);
        self.request.id = id_of(index);
        let named = self.request.model.get_or_insert_default();
        named.clear();
        named.push_str(model);
        self.request.input_tokens = call.input;
        self.request.max_tokens = call.max_tokens;
        self.request.priority = call.level;
        self.request.deadline_ms = call.deadline;
        // About four bytes a token, as English text has.
        self.request.body_bytes = call.input.times(4).0;
        let decision = self.core.request(tenant, None, &self.request, self.now);
        match decision {
            Decision::Admitted(_) => self.start(index, Millis::ZERO),
            Decision::Rejected(refusal) => {
                self.tally.refused(call, level, refusal.reason, refusal.retry_after_ms);
            }
            Decision::Queued => {
                self.set(index, State::Queued);
            }
        }
        if let Some(after) = call.cancel_after {
            self.agenda.add(call.at.plus(after), index, What::Leaves);
        }
        self.advance();
    }

    /// What the core decides by time, and in consequence of what has happened, until the ledger has no more to say.
    fn advance(&mut self) {
        self.hear();
        while self.sync() {
            self.hear();
        }
    }

    fn hear(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        self.core.advance_into(self.now, &mut events);
        for event in events.drain(..) {
            match event {
                Event::Started(id, grant) => {
                    if let Some(index) = index_of(&id) {
                        self.start(index, grant.waited_ms);
                    }
                }
                Event::Refused(id, refusal) => {
                    let Some((index, call, level)) = index_of(&id).and_then(|index| self.call(index)) else { continue };
                    self.tally.refused(call, level, refusal.reason, refusal.retry_after_ms);
                    self.set(index, State::Over);
                }
            }
        }
        self.events = events;
    }

    fn start(&mut self, index: usize, waited: Millis) {
        let Some((index, call, level)) = self.call(index) else { return };
        self.tally.started(call, level, waited);
        self.set(index, State::Running { since: self.now });
        self.agenda.add(self.now.plus(call.service), index, What::Ends);
    }

    fn perform(&mut self, task: Task) {
        let Some((index, call, level)) = self.call(task.call) else { return };
        let state = self.calls.get(index).map_or(State::Over, |call| call.state);
        let (outcome, usage) = match (state, task.what) {
            (State::Over, _) | (State::Queued, What::Ends) => return,
            (State::Queued, What::Leaves) => (Outcome::Cancelled, Usage::default()),
            (State::Running { .. }, What::Ends) => (Outcome::Completed, used(call, call.service)),
            (State::Running { since }, What::Leaves) => (Outcome::Aborted, used(call, self.now.since(since))),
        };
        self.set(index, State::Over);
        let settlement =
            Settlement { id: id_of(index), outcome, usage, charge_to: None, timing: None, abandoned: false };
        let settled = self.core.settle(&settlement, self.now);
        let usage = settled.map_or(usage, |settled| settled.usage);
        let charge = self.charges.get(call.model).copied().unwrap_or_default().of(&usage);
        match outcome {
            Outcome::Cancelled => self.tally.left_waiting(call, level),
            Outcome::Completed => self.tally.ended(call, level, &usage, charge),
            Outcome::Aborted | Outcome::Failed => self.tally.left_running(call, level, &usage, charge),
        }
        self.advance();
    }

    /// Makes the calls to the ledger that are due; tells whether there were any.
    fn sync(&mut self) -> bool {
        let mut any = false;
        while let Some((account, request)) = self.core.ask_ledger(self.now) {
            any = true;
            let ledger = self.ledgers.entry(account.clone()).or_default();
            let synced = ledger.sync(&request, Server { run: "simulated", now: self.now });
            self.core.ledger_answered(&account, Some(&synced.reply), self.now);
        }
        any
    }

    fn call(&self, index: usize) -> Option<(usize, &'t Arrival, Priority)> {
        Some((index, self.trace.arrivals.get(index)?, self.calls.get(index)?.level))
    }

    fn set(&mut self, index: usize, state: State) {
        if let Some(call) = self.calls.get_mut(index) {
            call.state = state;
        }
    }
}

/// By tenant, in percent of its configured weight.
fn adapted(adapting: &Adapting) -> BTreeMap<String, u64> {
    let adapted = adapting.adapted().into_iter().flatten();
    adapted.map(|(id, adapted)| (id.to_string(), adapted.percent)).collect()
}

/// What a call has used that has run for `ran`: the prompt, and its part of the output.
fn used(call: &Arrival, ran: Millis) -> Usage {
    let whole = call.max_tokens.map_or(call.output, |most| call.output.min(most));
    let part = u128::from(whole.0) * u128::from(ran.0.min(call.service.0)) / u128::from(call.service.0.max(1));
    let output = if ran >= call.service { whole } else { Tokens(u64::try_from(part).unwrap_or(u64::MAX)) };
    Usage { source: UsageSource::Reported, input: call.input, output, cached: call.cached, reasoning: Tokens::ZERO }
}

/// A call's id is its place in the trace, in hexadecimal digits. Not by `format!`, which takes longer than a decision's
/// share of it should.
fn id_of(index: usize) -> AdmissionId {
    let mut digits = [b'0'; 16];
    let mut rest = index;
    let mut first = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
        first = at;
        if rest == 0 {
            break;
        }
    }
    AdmissionId::from(std::str::from_utf8(&digits[first..]).unwrap_or_default())
}

fn index_of(id: &AdmissionId) -> Option<usize> {
    id.as_bytes().iter().try_fold(0, |index, digit| {
        let digit = char::from(*digit).to_digit(16).and_then(|digit| usize::try_from(digit).ok())?;
        Some(index << 4 | digit)
    })
}

fn blank_request() -> AdmissionRequest {
    AdmissionRequest {
        version: WIRE_VERSION,
        id: AdmissionId::from(""),
        key: KeyProof { id: None, digest: String::new() },
        model: None,
        pool: None,
        input_tokens: Tokens::ZERO,
        max_tokens: None,
        prompts: 1,
        sequences: 1,
        stream: false,
        body_bytes: 0,
        priority: None,
        deadline_ms: None,
    }
}
