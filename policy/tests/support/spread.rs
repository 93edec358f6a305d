//! What a tenant gains by spreading its calls over levels: nothing to speak of, on one replica and on three.

use crate::chance::cases;
use crate::setup::{Setup, TenantSetup};
use crate::world::{Ask, number, request};
use proptest::prelude::*;
use sluice_policy::admission::{Admission, Decision, Event};
use sluice_policy::holder::{LeaseTerms, Replica};
use sluice_policy::ledger::{Account, AccountLedger, Server};
use sluice_policy::queue::{FairQueue, Flow, GroupIndex, QueueSettings, TenantIndex, Waiter};
use sluice_policy::units::{Millis, Priority, Tokens};
use sluice_policy::wire::{Outcome, Settlement, Usage, UsageSource};
use std::collections::{BTreeMap, BTreeSet};

const CHARGE: u64 = 1_000;
const STARTS: usize = 3_000;

/// One that keeps so many calls waiting, each at the next level of a list that begins anew at its end.
#[derive(Clone, Debug)]
pub(crate) struct Spread {
    pub(crate) levels: Vec<u8>,
    pub(crate) waiting: usize,
}

impl Spread {
    pub(crate) fn level(&self, nth: usize) -> Priority {
        Priority::try_from(self.levels[nth % self.levels.len()]).unwrap()
    }

    /// The same with everything at one of its levels, for each of them.
    pub(crate) fn at_one_level(&self) -> impl Iterator<Item = Self> {
        let levels: BTreeSet<u8> = self.levels.iter().copied().collect();
        levels.into_iter().map(|level| Self { levels: vec![level], ..*self })
    }
}

/// At all levels from P3 on, long runs of one as well as a new one with every call.
pub(crate) fn spread() -> impl Strategy<Value = Spread> {
    let runs = prop::collection::vec((3_u8..10, 1_usize..40), 1..12);
    let levels = runs.prop_map(|runs| runs.iter().flat_map(|(level, times)| vec![*level; *times]).collect());
    let each = prop::collection::vec(3_u8..10, 1..40);
    (prop_oneof![levels, each], 1_usize..20).prop_map(|(levels, waiting)| Spread { levels, waiting })
}

/// The part, in thousandths, of a tenant that spreads, beside others that send everything at P3.
fn served(spread: &Spread, others: u32) -> u64 {
    let mut queue = FairQueue::new(QueueSettings::default());
    let mut sent = 0;
    let mut join = |queue: &mut FairQueue, tenant: u32| {
        let level = if tenant == 0 { spread.level(sent) } else { Priority::try_from(3).unwrap() };
        sent += usize::from(tenant == 0);
        let flow = Flow { group: GroupIndex(0), tenant: TenantIndex(tenant), level };
        let charge = Tokens(CHARGE);
        queue.join(Waiter { key: 0, flow, charge, bytes: 1, deadline: Millis(60_000) }).unwrap();
    };
    for tenant in 0..=others {
        (0..if tenant == 0 { spread.waiting } else { 3 }).for_each(|_| join(&mut queue, tenant));
    }
    let mut own = 0;
    for _ in 0..STARTS {
        let (ticket, waiter) = queue.head().map(|(ticket, waiter)| (ticket, *waiter)).unwrap();
        queue.leave(ticket).unwrap();
        let by = queue.charge(waiter.flow, waiter.charge);
        queue.correct(waiter.flow, by, waiter.charge, waiter.charge);
        own += u64::from(waiter.flow.tenant == TenantIndex(0));
        join(&mut queue, waiter.flow.tenant.0);
    }
    own * 1_000 / STARTS as u64
}

proptest! {
    #![proptest_config(cases(100))]

    /// Whatever it spreads and however it switches, a tenant gets at most 2% more than with all at one level it uses.
    #[test]
    fn a_tenant_that_spreads_over_levels_gains_nothing(spread in spread(), others in 1_u32..4) {
        let (spreads, at_one) = (served(&spread, others), spread.at_one_level().map(|one| served(&one, others)).max());
        // Of 3,000 starts a few are how the counters stood at the end.
        let most = at_one.unwrap_or(0) * 102 / 100 + 5;
        prop_assert!(spreads <= most, "{spreads} of 1,000, not {most}");
    }
}

/// As it was seen: of two equal tenants the one that used other levels, too, got three quarters.
#[test]
fn who_sends_the_next_call_at_another_level_gets_no_more_than_its_half() {
    for (levels, waiting) in [(vec![3, 4], 1), (vec![3, 4], 7), (vec![3, 4, 4, 5], 3), ((3..10).collect(), 14)] {
        let spread = Spread { levels, waiting };
        let got = served(&spread, 1);
        assert!(got <= 510, "{got} of 1,000 by {spread:?}");
    }
}

const REPLICAS: usize = 3;
/// How long each call runs.
const CALL_MS: u64 = 100;

/// Three replicas before one ledger, and two tenants that always have calls waiting: the first spreads them.
struct Fleet {
    cores: Vec<Admission>,
    ledgers: BTreeMap<Account, AccountLedger>,
    now: u64,
    spread: Spread,
    /// The tenant of each call.
    calls: Vec<usize>,
    /// When each running call ends, and where it runs.
    running: BTreeMap<(u64, usize), usize>,
    /// Calls of each tenant that have started.
    started: [u64; 2],
}

impl Fleet {
    fn new(spread: &Spread) -> Self {
        let setup = Setup::plain(8, vec![TenantSetup::plain(3); 2]);
        let lease = LeaseTerms { lease: Millis(2_000), longest_request: Millis(30_000), shared: true };
        let core = |at: usize| {
            let replica = Replica { id: format!("gate-{at}").into(), incarnation: 1, lease };
            Admission::new(setup.config(), &replica, Millis(0))
        };
        let (cores, spread) = ((0..REPLICAS).map(core).collect(), spread.clone());
        let (ledgers, calls, running) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        let mut fleet = Self { cores, ledgers, now: 0, spread, calls, running, started: [0; 2] };
        fleet.turn();
        // An empty ledger is quiet for a lease.
        fleet.now = 3_000;
        fleet.turn();
        for at in 0..12.max(REPLICAS * fleet.spread.waiting) {
            fleet.call(1, at % REPLICAS);
        }
        for at in 0..fleet.spread.waiting {
            fleet.call(0, at % REPLICAS);
        }
        fleet
    }

    fn call(&mut self, tenant: usize, at: usize) {
        let (of, sent) = (self.calls.len(), self.calls.iter().filter(|other| **other == 0).count());
        let level = if tenant == 0 { self.spread.level(sent).into() } else { 3 };
        self.calls.push(tenant);
        let ask = Ask { level: Some(level), ..Ask::of(tenant, CHARGE) };
        let tenant = format!("t{tenant}").into();
        match self.cores[at].request(&tenant, None, &request(of, &ask), Millis(self.now)) {
            Decision::Admitted(_) => self.starts(of, at),
            Decision::Queued => {}
            Decision::Rejected(refusal) => panic!("{refusal:?}"),
        }
    }

    /// The next call of its tenant comes to another replica.
    fn starts(&mut self, of: usize, at: usize) {
        self.running.insert((self.now + CALL_MS, of), at);
        self.started[self.calls[of]] += 1;
        self.call(self.calls[of], (at + 1) % REPLICAS);
    }

    /// Everybody starts who may, and makes the calls that are due: one about each account in a millisecond.
    fn turn(&mut self) {
        let now = Millis(self.now);
        for at in 0..REPLICAS {
            let asked: Vec<_> = std::iter::from_fn(|| self.cores[at].ask_ledger(now)).collect();
            for (account, asked) in asked {
                let ledger = self.ledgers.entry(account.clone()).or_default();
                let synced = ledger.sync(&asked, Server { run: "test", now });
                self.cores[at].ledger_answered(&account, Some(&synced.reply), now);
                for (holder, notice) in &synced.notices {
                    let other: usize = holder.as_str().trim_start_matches("gate-").parse().unwrap();
                    self.cores[other].ledger_noticed(&account, notice, now);
                }
            }
        }
        for at in 0..REPLICAS {
            for event in self.cores[at].advance(now) {
                let Event::Started(of, _) = event else { panic!("{event:?}") };
                self.starts(number(&of), at);
            }
        }
    }

    fn run(&mut self, starts: u64) {
        self.started = [0; 2];
        while self.started.iter().sum::<u64>() < starts {
            self.now += 1;
            while let Some(((ends, of), at)) = self.running.pop_first() {
                if ends > self.now {
                    self.running.insert((ends, of), at);
                    break;
                }
                let usage = Usage { source: UsageSource::Reported, input: Tokens(CHARGE), ..Usage::default() };
                let id = crate::world::id(of);
                let ended = Settlement {
                    id,
                    outcome: Outcome::Completed,
                    usage,
                    charge_to: None,
                    timing: None,
                    abandoned: false,
                };
                assert!(self.cores[at].settle(&ended, Millis(self.now)).is_some());
            }
            self.turn();
        }
    }
}

/// Calls that wait at other replicas stand behind each other as they do at one.
#[test]
fn a_tenant_that_spreads_over_levels_and_replicas_gains_nothing() {
    for levels in [vec![3], vec![3, 4], vec![3, 4, 4, 5], (3..10).collect()] {
        let mut fleet = Fleet::new(&Spread { levels, waiting: 12 });
        fleet.run(100);
        fleet.run(1_000);
        let [got, other] = fleet.started;
        assert!(got * 98 <= other * 102, "{got} beside {other} by {:?}", fleet.spread);
    }
}
