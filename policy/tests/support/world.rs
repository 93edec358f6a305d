//! The real core, with a ledger beside it for every pool and a clock that is a number.

use crate::setup::Setup;
use sluice_policy::admission::{Admission, Decision, Event, Settled};
use sluice_policy::holder::{LeaseTerms, Replica};
use sluice_policy::ledger::{Account, AccountLedger, MeterName, Server, Version};
use sluice_policy::schedule::{Settings, UnixMillis};
use sluice_policy::units::{AdmissionId, Millis, PoolName, Priority, TenantId, Tokens};
use sluice_policy::wire::{AdmissionRequest, KeyProof, Outcome, Settlement, Usage, UsageSource, WIRE_VERSION};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const LEASE_MS: u64 = 2_000;
/// How long a call may run. Short, so that random runs see calls that nobody settles.
pub(crate) const LONGEST_MS: u64 = 30_000;

pub(crate) struct World {
    pub(crate) core: Admission,
    pub(crate) now: u64,
    pub(crate) ledger_answers: bool,
    pub(crate) pools: Vec<PoolName>,
    pub(crate) tenants: Vec<TenantId>,
    ledgers: BTreeMap<Account, AccountLedger>,
    /// When the calls that were answered last went out.
    answered_at: BTreeMap<Account, u64>,
    /// What was told while a decision was waited for, and is not about it.
    unheard: Vec<Event>,
    /// Of that, those who started before the newcomer did: it stands before the calls of its tenant that kept them waiting.
    /// A model that has taken them clears them.
    pub(crate) before_newcomer: Vec<Event>,
    /// The latest call was not decided about at once.
    pub(crate) has_applied: bool,
    /// Of what is in force.
    changes: u64,
    /// The ledger has answered everything since.
    pub(crate) healthy_since: u64,
    /// It has not always answered.
    pub(crate) has_failed: bool,
    /// Accounts whose latest call it has not answered.
    failing: BTreeSet<Account>,
    /// Of each pool, whether its lease had ended in an outage when the latest turn began.
    pub(crate) was_cut_off: Vec<bool>,
}

/// A call as a client makes it.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) tenant: usize,
    /// Names the model of this pool; one beyond the last is unknown.
    pub(crate) pool: usize,
    pub(crate) level: Option<u8>,
    /// By the key's own rule.
    pub(crate) granted: Option<u8>,
    pub(crate) input: u64,
    pub(crate) max: Option<u64>,
    pub(crate) sequences: u32,
    pub(crate) bytes: u64,
    pub(crate) deadline: Option<u64>,
}

impl Ask {
    /// A call of `tokens` in all, at its tenant's own level.
    pub(crate) fn of(tenant: usize, tokens: u64) -> Self {
        // Of the output, 16 at least are reserved.
        let (input, max) = (tokens - 16, Some(16));
        Self { tenant, pool: 0, level: None, granted: None, input, max, sequences: 1, bytes: 1, deadline: None }
    }
}

pub(crate) fn id(number: usize) -> AdmissionId {
    format!("w-{number}").into()
}

/// The other way round.
pub(crate) fn number(id: &AdmissionId) -> usize {
    id.as_str().trim_start_matches("w-").parse().unwrap()
}

/// The numbers of whoever started; nobody may have been refused.
pub(crate) fn started(events: Vec<Event>) -> Vec<usize> {
    let number = |event| match event {
        Event::Started(of, _) => number(&of),
        Event::Refused(of, refusal) => panic!("{of}: {refusal:?}"),
    };
    events.into_iter().map(number).collect()
}

pub(crate) fn level(level: u8) -> Priority {
    Priority::try_from(level).unwrap()
}

pub(crate) fn request(number: usize, ask: &Ask) -> AdmissionRequest {
    AdmissionRequest {
        version: WIRE_VERSION,
        id: id(number),
        key: KeyProof { id: None, digest: String::new() },
        model: Some(format!("m{}", ask.pool)),
        pool: None,
        input_tokens: Tokens(ask.input),
        max_tokens: ask.max.map(Tokens),
        prompts: 1,
        sequences: ask.sequences,
        stream: false,
        body_bytes: ask.bytes,
        priority: ask.level.map(level),
        deadline_ms: ask.deadline.map(Millis),
    }
}

impl World {
    pub(crate) fn new(setup: &Setup) -> Self {
        // A ledger of its own is exact to the call, as the naive model is.
        let lease = LeaseTerms { lease: Millis(LEASE_MS), longest_request: Millis(LONGEST_MS), shared: false };
        let replica = Replica { id: "gate-0".into(), incarnation: 1, lease };
        let pools = setup.pools.len();
        let mut world = Self {
            core: Admission::new(setup.config(), &replica, Millis(0)),
            now: 0,
            ledger_answers: true,
            pools: (0..pools).map(|index| format!("p{index}").into()).collect(),
            tenants: (0..setup.tenants.len()).map(|index| format!("t{index}").into()).collect(),
            ledgers: BTreeMap::new(),
            answered_at: BTreeMap::new(),
            unheard: Vec::new(),
            before_newcomer: Vec::new(),
            has_applied: false,
            changes: 1,
            healthy_since: 0,
            has_failed: false,
            failing: BTreeSet::new(),
            was_cut_off: vec![false; pools],
        };
        assert_eq!(world.turn(), []);
        world
    }

    /// What the service does after everything that happens: a call to each ledger that is due, then whoever can start.
    pub(crate) fn turn(&mut self) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.before_newcomer);
        events.append(&mut self.unheard);
        self.was_cut_off = (0..self.pools.len()).map(|pool| self.is_cut_off(pool)).collect();
        loop {
            events.extend(self.core.advance(Millis(self.now)));
            if !self.sync() {
                return events;
            }
        }
    }

    /// Makes the calls to the ledger that are due; tells whether there were any.
    fn sync(&mut self) -> bool {
        let (now, mut any) = (Millis(self.now), false);
        while let Some((account, request)) = self.core.ask_ledger(now) {
            any = true;
            let ledger = self.ledgers.entry(account.clone()).or_default();
            // Half of what is not answered was taken all the same.
            let is_taken = self.ledger_answers || self.now.is_multiple_of(2);
            let synced = is_taken.then(|| ledger.sync(&request, Server { run: "test", now }));
            let reply = synced.filter(|_| self.ledger_answers).map(|synced| synced.reply);
            if reply.is_some() {
                self.answered_at.insert(account.clone(), self.now);
                self.failing.remove(&account);
            } else {
                self.healthy_since = u64::MAX;
                self.has_failed = true;
                self.failing.insert(account.clone());
            }
            self.core.ledger_answered(&account, reply.as_ref(), now);
        }
        if self.ledger_answers && self.healthy_since == u64::MAX {
            self.healthy_since = self.now;
        }
        any
    }

    /// When something happens by time alone: here, or because the ledger is to be asked.
    pub(crate) fn next_wake(&self) -> Option<Millis> {
        let core = &self.core;
        core.next_wake().into_iter().chain(core.next_ledger_call(Millis(self.now))).min()
    }

    /// Whether the ledger has answered everything for longer than a tick.
    pub(crate) fn is_healthy(&self) -> bool {
        self.ledger_answers && self.healthy_since.saturating_add(200) <= self.now
    }

    /// Whether a pool's lease lasts: two seconds from when the call went out, less a fiftieth for the drift of clocks.
    pub(crate) fn is_leased(&self, pool: usize) -> bool {
        let sent = self.answered_at.get(&Account::Pool(self.pools[pool].clone()));
        sent.is_some_and(|sent| self.now < sent + LEASE_MS - LEASE_MS / 50)
    }

    fn is_cut_off(&self, pool: usize) -> bool {
        self.failing.contains(&Account::Pool(self.pools[pool].clone())) && !self.is_leased(pool)
    }

    pub(crate) fn held(&self, pool: usize) -> u32 {
        self.core.held(&self.pools[pool], Millis(self.now))
    }

    pub(crate) fn ledger(&self, pool: usize) -> &AccountLedger {
        &self.ledgers[&Account::Pool(self.pools[pool].clone())]
    }

    /// What is left of a pool's tokens.
    pub(crate) fn pool_tokens(&self, pool: usize) -> Option<i64> {
        let levels = self.core.pool_levels(&self.pools[pool], Millis(self.now));
        levels.get(&MeterName::TokensPerSecond).copied()
    }

    pub(crate) fn ask(&mut self, number: usize, ask: &Ask) -> Decision {
        let request = request(number, ask);
        let (tenant, granted) = (&self.tenants[ask.tenant], ask.granted.map(level));
        let decision = self.core.request(tenant, granted, &request, Millis(self.now));
        self.has_applied = decision == Decision::Queued;
        if self.has_applied { self.decided(&request.id) } else { decision }
    }

    /// What becomes of a call at once that had to wait for no more than the ledger.
    fn decided(&mut self, of: &AdmissionId) -> Decision {
        let mut events = self.turn();
        let own = events.iter().position(|event| match event {
            Event::Started(id, _) | Event::Refused(id, _) => id == of,
        });
        let own = own.map(|at| (at, events.remove(at)));
        self.unheard = events;
        match own {
            Some((at, Event::Started(_, grant))) => {
                self.before_newcomer = self.unheard.drain(..at).collect();
                Decision::Admitted(grant)
            }
            Some((_, Event::Refused(_, refusal))) => Decision::Rejected(refusal),
            None => Decision::Queued,
        }
    }

    pub(crate) fn settle(&mut self, number: usize, outcome: Outcome, usage: Usage) -> Option<Settled> {
        let settlement = Settlement { id: id(number), outcome, usage, charge_to: None, timing: None, abandoned: false };
        self.core.settle(&settlement, Millis(self.now))
    }

    /// Ends a call that used what it had reserved as `Ask::of(_, tokens)`.
    pub(crate) fn end(&mut self, number: usize, tokens: u64) {
        let usage = Usage {
            source: UsageSource::Reported,
            input: Tokens(tokens - 16),
            output: Tokens(16),
            cached: Tokens(0),
            reasoning: Tokens::ZERO,
        };
        assert!(self.settle(number, Outcome::Completed, usage).is_some());
    }

    /// Lets time pass in steps that keep the lease.
    pub(crate) fn wait(&mut self, span: u64) -> Vec<Event> {
        let (end, mut events) = (self.now + span, Vec::new());
        while self.now < end {
            self.now = end.min(self.now + LEASE_MS / 4);
            events.extend(self.turn());
        }
        events
    }

    pub(crate) fn running(&self) -> u32 {
        self.pools.iter().map(|pool| self.core.running(pool)).sum()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.pools
            .iter()
            .flat_map(|pool| Priority::all().map(move |level| (pool, level)))
            .map(|(pool, level)| self.core.queue_depth(pool, level))
            .sum()
    }

    pub(crate) fn configure(&mut self, setup: &Setup) {
        self.changes += 1;
        self.core.configure(setup.config(), UnixMillis(i64::try_from(self.changes).unwrap()), Millis(self.now));
    }

    pub(crate) fn apply(&mut self, setup: &Setup) {
        self.put_in_force(&setup.settings());
    }

    pub(crate) fn put_in_force(&mut self, settings: &Settings) {
        self.changes += 1;
        self.core.apply(settings, Version { since: self.changes, ..Version::default() }, Millis(self.now));
    }
}
