//! The real core, with a ledger beside it for every pool and a clock that is a number.

use crate::setup::Setup;
use sluice_policy::admission::{Admission, Decision, Event, Settled};
use sluice_policy::holder::LeaseTerms;
use sluice_policy::ledger::AccountLedger;
use sluice_policy::units::{AdmissionId, Millis, PoolName, Priority, TenantId, Tokens};
use sluice_policy::wire::{AdmissionRequest, KeyProof, Outcome, Settlement, Usage, UsageSource, WIRE_VERSION};

pub(crate) const LEASE_MS: u64 = 2_000;
/// How long a call may run. Short, so that random runs see calls that nobody settles.
pub(crate) const LONGEST_MS: u64 = 30_000;

pub(crate) struct World {
    pub(crate) core: Admission,
    pub(crate) now: u64,
    pub(crate) ledger_answers: bool,
    pub(crate) pools: Vec<PoolName>,
    pub(crate) tenants: Vec<TenantId>,
    ledgers: Vec<AccountLedger>,
    /// When the calls that were answered last went out.
    leased_at: Vec<Option<u64>>,
    /// Whole tokens in each pool's bucket, as the ledger was told last.
    levels: Vec<Option<i64>>,
    /// The ledger has answered everything since.
    pub(crate) healthy_since: u64,
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
        sequences: ask.sequences,
        stream: false,
        body_bytes: ask.bytes,
        priority: ask.level.map(level),
        deadline_ms: ask.deadline.map(Millis),
    }
}

impl World {
    pub(crate) fn new(setup: &Setup) -> Self {
        let terms = LeaseTerms { lease: Millis(LEASE_MS), longest_request: Millis(LONGEST_MS) };
        let pools = setup.pools.len();
        let mut world = Self {
            core: Admission::new(setup.config(), &"gate-0".into(), 1, &terms, Millis(0)),
            now: 0,
            ledger_answers: true,
            pools: (0..pools).map(|index| format!("p{index}").into()).collect(),
            tenants: (0..setup.tenants.len()).map(|index| format!("t{index}").into()).collect(),
            ledgers: vec![AccountLedger::default(); pools],
            leased_at: vec![None; pools],
            levels: vec![None; pools],
            healthy_since: 0,
        };
        assert_eq!(world.turn(), []);
        world
    }

    /// What the service does after everything that happens: a call to each ledger that is due, then whoever can start.
    pub(crate) fn turn(&mut self) -> Vec<Event> {
        let now = Millis(self.now);
        for (pool, name) in self.pools.iter().enumerate() {
            let Some(request) = self.core.ask_ledger(name, now) else { continue };
            self.levels[pool] = request.levels.values().next().copied();
            if self.ledger_answers {
                let reply = self.ledgers[pool].sync(&request, now);
                self.core.ledger_answered(name, Some(&reply), now);
                self.leased_at[pool] = Some(self.now);
            } else {
                // Half of what is not answered was taken all the same.
                if self.now.is_multiple_of(2) {
                    self.ledgers[pool].sync(&request, now);
                }
                self.core.ledger_answered(name, None, now);
                self.healthy_since = u64::MAX;
            }
        }
        if self.ledger_answers && self.healthy_since == u64::MAX {
            self.healthy_since = self.now;
        }
        self.core.advance(now)
    }

    /// Whether a pool's lease lasts: two seconds from when the call went out, less a fiftieth for the drift of clocks.
    pub(crate) fn is_leased(&self, pool: usize) -> bool {
        self.leased_at[pool].is_some_and(|sent| self.now < sent + LEASE_MS - LEASE_MS / 50)
    }

    pub(crate) fn held(&self, pool: usize) -> u32 {
        self.core.held(&self.pools[pool], Millis(self.now))
    }

    pub(crate) fn ledger(&self, pool: usize) -> &AccountLedger {
        &self.ledgers[pool]
    }

    pub(crate) fn ledger_level(&self, pool: usize) -> Option<i64> {
        self.levels[pool]
    }

    pub(crate) fn ask(&mut self, number: usize, ask: &Ask) -> Decision {
        let (tenant, granted) = (&self.tenants[ask.tenant], ask.granted.map(level));
        self.core.request(tenant, granted, &request(number, ask), Millis(self.now))
    }

    pub(crate) fn settle(&mut self, number: usize, outcome: Outcome, usage: Usage) -> Option<Settled> {
        let settlement = Settlement { id: id(number), outcome, usage, charge_to: None, timing: None };
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
        self.core.configure(setup.config(), Millis(self.now));
    }

    pub(crate) fn apply(&mut self, setup: &Setup) {
        self.core.apply(&setup.settings(), Millis(self.now));
    }
}
