//! I1 between several holders and one ledger, while answers are lost and capacities change.

use crate::chance::cases;
use proptest::prelude::*;
use sluice_policy::holder::{Holder, LeaseTerms};
use sluice_policy::ledger::AccountLedger;
use sluice_policy::units::Millis;
use std::collections::BTreeMap;

const TERMS: LeaseTerms = LeaseTerms { lease: Millis(2_000), longest_request: Millis(10_000) };

struct Replica {
    holder: Holder,
    /// When each of its calls began.
    running: Vec<u64>,
}

impl Replica {
    fn new(number: usize, incarnation: u64, capacity: u32) -> Self {
        Self { holder: Holder::new(format!("gate-{number}").into(), incarnation, TERMS, capacity), running: Vec::new() }
    }

    fn sync(&mut self, ledger: &mut AccountLedger, demand: u32, applied: bool, answered: bool, now: u64) {
        let running = self.running.len() as u32;
        let request = self.holder.ask(running, running + demand, 0, BTreeMap::new(), Millis(now));
        let reply = applied.then(|| ledger.sync(&request, Millis(now)));
        match reply.filter(|_| answered) {
            Some(reply) => drop(self.holder.answered(&reply)),
            None => self.holder.failed(),
        }
    }

    fn start(&mut self, calls: u32, now: u64) {
        let free = self.holder.usable(Millis(now)).saturating_sub(self.running.len() as u32);
        self.running.extend((0..calls.min(free)).map(|_| now));
    }
}

/// What one replica does in a step: it ends some calls, syncs, and starts others.
type Act = (usize, u64, u32, u32, bool, bool);

fn act() -> impl Strategy<Value = Act> {
    (0_usize..3, 0_u64..1_500, 0_u32..6, 0_u32..9, prop::bool::weighted(0.9), prop::bool::weighted(0.9))
}

proptest! {
    #![proptest_config(cases(400))]

    /// All replicas together never run more than the pool has, whoever loses calls or answers, sleeps, or restarts
    /// and leaves its calls running.
    #[test]
    fn replicas_together_never_run_more_than_the_capacity(
        acts in prop::collection::vec((act(), prop::bool::weighted(0.05)), 1..120),
    ) {
        const SLOTS: u32 = 8;
        let mut ledger = AccountLedger::default();
        let mut replicas: Vec<Replica> = (0..3).map(|number| Replica::new(number, 1, SLOTS)).collect();
        let (mut orphans, mut now): (Vec<u64>, u64) = (Vec::new(), 0);
        for (incarnation, ((which, pause, ends, demand, applied, answered), restarts)) in (2..).zip(acts) {
            now += pause;
            for running in replicas.iter_mut().map(|replica| &mut replica.running).chain([&mut orphans]) {
                running.retain(|since| since + TERMS.longest_request.0 > now);
            }
            if restarts {
                let old = std::mem::replace(&mut replicas[which], Replica::new(which, incarnation, SLOTS));
                orphans.extend(old.running);
            }
            let replica = &mut replicas[which];
            let left = replica.running.len().saturating_sub(ends as usize);
            replica.running.truncate(left);
            replica.sync(&mut ledger, demand, applied, answered, now);
            replica.start(demand, now);
            prop_assert!(ledger.granted() + ledger.zombies() <= SLOTS);
            let all = replicas.iter().map(|replica| replica.running.len()).sum::<usize>() + orphans.len();
            prop_assert!(all <= SLOTS as usize, "{all} run of {SLOTS}");
        }
    }

    /// With a ledger that answers, capacity moves to where the demand is: nobody waits for longer than a renewal while
    /// more slots lie idle than a replica keeps ready, a quarter of the pool.
    #[test]
    fn idle_slots_reach_whoever_waits(first in 0_u32..9, second in 0_u32..9) {
        const SLOTS: u32 = 8;
        let mut ledger = AccountLedger::default();
        let mut replicas = [Replica::new(0, 1, SLOTS), Replica::new(1, 1, SLOTS)];
        let demands = [first, second];
        for now in (0..3_000).step_by(100) {
            for (replica, demand) in replicas.iter_mut().zip(demands) {
                let waiting = demand - demand.min(replica.running.len() as u32);
                if replica.holder.is_due(demand, Millis(now)) {
                    replica.sync(&mut ledger, waiting, true, true, now);
                }
                replica.start(waiting, now);
            }
        }
        let running: u32 = replicas.iter().map(|replica| replica.running.len() as u32).sum();
        prop_assert!(running >= (SLOTS - SLOTS / 4).min(first + second), "{running} run of {first} and {second}");
    }
}

/// A pool shrinks and grows again while calls run that the smaller one would not have had room for.
#[test]
fn a_pool_that_shrinks_and_grows_again_lends_no_slot_twice() {
    let mut ledger = AccountLedger::default();
    let [mut a, mut b] = [Replica::new(0, 1, 8), Replica::new(1, 1, 8)];
    a.sync(&mut ledger, 6, true, true, 0);
    a.start(6, 0);
    a.holder.set_capacity(4);
    a.sync(&mut ledger, 0, true, true, 100);
    // It is large again, and the other replica is the first to hear of it.
    b.sync(&mut ledger, 8, true, true, 200);
    b.start(8, 200);
    let all = a.running.len() + b.running.len();
    assert!(all <= 8, "{all} run of 8");
}
