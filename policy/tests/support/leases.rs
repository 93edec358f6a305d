//! I1 between several holders and one ledger, while answers are lost and capacities change.

use crate::chance::cases;
use proptest::prelude::*;
use sluice_policy::holder::{Demand, FlowNames, Holder, LeaseTerms, Replica};
use sluice_policy::ledger::{AccountLedger, FlowName, Row, Server, Terms, Version};
use sluice_policy::queue::{Flow, GroupIndex, Shares, TenantIndex};
use sluice_policy::units::{Millis, Priority, Tokens};
use std::collections::{BTreeMap, VecDeque};

const LEASE: LeaseTerms = LeaseTerms { lease: Millis(2_000), longest_request: Millis(10_000), shared: true };
const SLOTS: u32 = 8;

pub(crate) struct Names;

impl FlowNames for Names {
    fn name(&self, flow: Flow) -> Option<FlowName> {
        Some(FlowName { group: "".into(), level: flow.level, tenant: format!("t{}", flow.tenant.0).into() })
    }

    fn flow(&self, name: &FlowName) -> Option<Flow> {
        let tenant = TenantIndex(name.tenant.as_str().trim_start_matches('t').parse().ok()?);
        Some(Flow { group: GroupIndex(0), tenant, level: name.level })
    }
}

fn terms(version: u64, capacity: u32) -> Terms {
    let Shares { policy, levels, .. } = Shares::default();
    let version = Version { file: version, ..Version::default() };
    Terms { version, capacity, policy, levels, groups: BTreeMap::new(), meters: BTreeMap::new() }
}

/// A replica whose calls all cost one token and are of one tenant, its own.
struct Gate {
    holder: Holder,
    flow: Flow,
    /// When each of its calls began.
    running: Vec<u64>,
    /// When each of those that wait came.
    waiting: VecDeque<u64>,
}

impl Gate {
    fn new(number: u32, incarnation: u64, capacity: u32) -> Self {
        let replica = Replica { id: format!("gate-{number}").into(), incarnation, lease: LEASE };
        let flow = Flow { group: GroupIndex(0), tenant: TenantIndex(number), level: Priority::LAST };
        let holder = Holder::new(&replica, terms(incarnation, capacity));
        Self { holder, flow, running: Vec::new(), waiting: VecDeque::new() }
    }

    fn demand(&self) -> Demand {
        Demand { running: self.running.len() as u32, waiting: self.waiting.len() as u32 }
    }

    /// Starts whoever may start.
    fn start(&mut self, now: u64) {
        while let Some(since) = self.waiting.pop_front() {
            if !self.holder.may_start(self.flow, Tokens(1), self.running.len() as u32, Millis(now)) {
                self.waiting.push_front(since);
                break;
            }
            self.holder.start(self.flow, 1, Tokens(1));
            self.running.push(now);
        }
    }
}

struct World {
    ledger: AccountLedger,
    gates: Vec<Gate>,
    now: u64,
}

impl World {
    /// Everybody has asked, and the ledger has been quiet for a lease, as an empty one must.
    fn new(gates: u32) -> Self {
        let gates = (0..gates).map(|number| Gate::new(number, 1, SLOTS)).collect();
        let mut world = Self { ledger: AccountLedger::default(), gates, now: 0 };
        world.settle_down();
        world.now = LEASE.lease.0;
        world
    }

    /// One call to the ledger, with what it causes at the others.
    fn sync(&mut self, which: usize, applied: bool, answered: bool) {
        let now = self.now;
        let gate = &mut self.gates[which];
        let row = gate.waiting.front().map(|since| Row {
            money: 0,
            flow: Names.name(gate.flow).unwrap(),
            weight: 1,
            head: Tokens(1),
            waiting: gate.waiting.len() as u32,
            waited: Millis(now - since),
        });
        let request = gate.holder.ask(gate.demand(), row.into_iter().collect(), &Names, Millis(now));
        let synced = applied.then(|| self.ledger.sync(&request, Server { run: "test", now: Millis(now) }));
        let Some(synced) = synced.filter(|_| answered) else { return self.gates[which].holder.failed() };
        for (holder, notice) in &synced.notices {
            let number: usize = holder.as_str().trim_start_matches("gate-").parse().unwrap();
            self.gates[number].holder.noticed(notice, &Names);
            self.gates[number].start(now);
        }
        let gate = &mut self.gates[which];
        gate.holder.answered(&synced.reply, &Names, Millis(now));
        gate.start(now);
    }

    /// Lets everybody ask who is due, until nobody is.
    fn settle_down(&mut self) {
        for _ in 0..1_000 {
            let due = |gate: &Gate| gate.holder.is_due(gate.demand(), Millis(self.now));
            let Some(which) = self.gates.iter().position(due) else { return };
            self.sync(which, true, true);
        }
        panic!("they never stop asking");
    }

    fn running(&self) -> usize {
        self.gates.iter().map(|gate| gate.running.len()).sum()
    }
}

/// What one replica does in a step: some calls end, others come, it asks.
type Act = (usize, u64, usize, usize, bool, bool);

fn act() -> impl Strategy<Value = Act> {
    (0_usize..3, 0_u64..1_500, 0_usize..6, 0_usize..9, prop::bool::weighted(0.9), prop::bool::weighted(0.9))
}

proptest! {
    #![proptest_config(cases(400))]

    /// All replicas together never run more than the pool has, whoever loses calls or answers, sleeps, or restarts
    /// and leaves its calls running.
    #[test]
    fn replicas_together_never_run_more_than_the_capacity(
        acts in prop::collection::vec((act(), prop::bool::weighted(0.05)), 1..120),
    ) {
        let mut world = World::new(3);
        let mut orphans: Vec<u64> = Vec::new();
        for (incarnation, ((which, pause, ends, comes, applied, answered), restarts)) in (2..).zip(acts) {
            world.now += pause;
            let now = world.now;
            for running in world.gates.iter_mut().map(|gate| &mut gate.running).chain([&mut orphans]) {
                running.retain(|since| since + LEASE.longest_request.0 > now);
            }
            if restarts {
                let old = std::mem::replace(&mut world.gates[which], Gate::new(which as u32, incarnation, SLOTS));
                orphans.extend(old.running);
            }
            let gate = &mut world.gates[which];
            let left = gate.running.len().saturating_sub(ends);
            gate.running.truncate(left);
            gate.waiting.extend((0..comes).map(|_| now));
            gate.waiting.truncate(20);
            gate.start(now);
            world.sync(which, applied, answered);
            prop_assert!(world.ledger.granted() + world.ledger.zombies() <= SLOTS);
            let all = world.running() + orphans.len();
            prop_assert!(all <= SLOTS as usize, "{all} run of {SLOTS}");
        }
    }

    /// With a ledger that answers, nobody waits while a slot is free, wherever it is.
    #[test]
    fn idle_slots_reach_whoever_waits(first in 0_usize..9, second in 0_usize..9) {
        let mut world = World::new(2);
        for (gate, comes) in [first, second].into_iter().enumerate() {
            let now = world.now;
            world.gates[gate].waiting.extend((0..comes).map(|_| now));
            world.settle_down();
        }
        let running = world.running();
        prop_assert_eq!(running, (SLOTS as usize).min(first + second));
    }
}

/// A pool shrinks and grows again while calls run that the smaller one would not have had room for.
#[test]
fn a_pool_that_shrinks_and_grows_again_lends_no_slot_twice() {
    let mut world = World::new(2);
    let now = world.now;
    world.gates[0].waiting.extend([now; 6]);
    world.settle_down();
    assert_eq!(world.running(), 6);
    world.now += 100;
    let now = Millis(world.now);
    world.gates[0].holder.set_terms(terms(2, 4), now);
    world.sync(0, true, true);
    // It is large again, and the other replica is the first to hear of it.
    world.now += 100;
    let now = Millis(world.now);
    world.gates[1].holder.set_terms(terms(3, 8), now);
    let now = world.now;
    world.gates[1].waiting.extend([now; 8]);
    world.settle_down();
    assert!(world.running() <= 8, "{} run of 8", world.running());
}

/// A ledger that has lost what it knew believes whoever says what he holds.
#[test]
fn who_was_away_for_longer_than_a_call_runs_asserts_no_idle_slot() {
    let mut world = World::new(2);
    world.settle_down();
    let held = world.gates[0].holder.usable(Millis(world.now));
    assert!(held > 0);
    let ended = world.now + LEASE.lease.0;
    let keeps = |world: &World, now: u64| {
        let mut holder = world.gates[0].holder.clone();
        holder.ask(Demand::default(), Vec::new(), &Names, Millis(now)).keep
    };
    assert_eq!(keeps(&world, ended), held);
    assert_eq!(keeps(&world, ended + LEASE.longest_request.0), 0);
}

/// The ledger stops its clock when more has passed there than here, and must not when less has.
#[test]
fn what_passed_since_an_answer_counts_from_when_it_came() {
    let mut holder = Gate::new(0, 1, SLOTS).holder;
    let mut ledger = AccountLedger::default();
    let request = holder.ask(Demand::default(), Vec::new(), &Names, Millis(1_000));
    let reply = ledger.sync(&request, Server { run: "1", now: Millis(50_000) }).reply;
    assert!(holder.answered(&reply, &Names, Millis(1_400)));
    let next = holder.ask(Demand::default(), Vec::new(), &Names, Millis(2_000));
    assert_eq!(next.last_heard, Some((Millis(50_000), Millis(600))));
}
