//! What a call costs does not depend on how many pools there are, and what happens does not depend on who is looked at.

use super::*;
use crate::config::reader::read_document;

fn config(pools: usize) -> Config {
    let pool = |number: usize| {
        json!({
            "name": format!("pool-{number}"), "models": [format!("m-{number}")], "capacity": {"concurrent": 2},
            "on_ledger_outage": if number.is_multiple_of(2) { "open" } else { "closed" },
        })
    };
    let document = json!({
        "queue": {"timeout_ms": 3_000},
        "pools": (0..pools).map(pool).collect::<Vec<_>>(),
        "tenants": [{"id": "a", "priority": {"default": 5, "ceiling": 0}, "limits": {"concurrent": 30}}, {"id": "b"}],
    });
    read_document(&document, Config::read).unwrap()
}

fn world(pools: usize) -> World {
    let core = Admission::new(config(pools), &Replica { id: "gate-0".into(), incarnation: 1, lease: LEASE }, Millis(0));
    let mut world = World { core, ledgers: BTreeMap::new(), now: Millis(0), asked: 0, unheard: Vec::new() };
    world.sync();
    world
}

#[test]
fn a_call_looks_at_as_many_pools_with_a_thousand_of_them_as_with_one() {
    let looks = |pools: usize| {
        let mut world = world(pools);
        let before = world.core.pools.looks;
        for _ in 0..20 {
            let (id, decision) = world.ask("a", |request| request.model = Some("m-0".to_owned()));
            assert!(matches!(decision, Decision::Admitted(_)), "{decision:?}");
            world.end(&id, Outcome::Completed, 5);
            world.sync();
            assert!(world.core.next_wake().is_none() && world.core.next_ledger_call(world.now).is_some());
        }
        world.core.pools.looks - before
    };
    assert_eq!(looks(1_000), looks(1));
}

#[test]
fn a_waiter_starts_at_the_moment_an_unanswered_lease_ends_where_the_pool_stays_open() {
    let mut world = world(1);
    world.core.ask_ledger(world.now.plus(Millis(700))).unwrap();
    let mut ids = (0..3).map(|_| world.send("b", |request| request.model = Some("m-0".to_owned()))).skip(2);
    let (_, queued) = ids.next().unwrap();
    drop(ids);
    assert_eq!(queued, Decision::Queued);
    world.core.advance(Millis(700));
    let ends = world.core.next_wake().unwrap();
    assert_eq!(ends, Millis(1_960), "a lease of two seconds, less what clocks may drift");
}

/// One step of two worlds; the second one looks at every pool after each.
#[derive(Clone, Debug)]
enum Step {
    Ask {
        pool: usize,
        tenant: bool,
        level: u8,
    },
    End {
        pick: usize,
    },
    Pass {
        ms: u64,
    },
    /// The ledger does not answer what it is asked in the meantime.
    Silence {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_usize, any::<bool>(), 0..10_u8).prop_map(|(pool, tenant, level)| Step::Ask { pool, tenant, level }),
        3 => (0..64_usize).prop_map(|pick| Step::End { pick }),
        2 => (0..700_u64).prop_map(|ms| Step::Pass { ms }),
        1 => (0..2_500_u64).prop_map(|ms| Step::Silence { ms }),
    ]
}

/// A world that takes steps, and what has happened in it.
struct Walk {
    world: World,
    looks_at_all: bool,
    running: Vec<AdmissionId>,
    story: Vec<String>,
}

impl Walk {
    fn new(looks_at_all: bool) -> Self {
        Self { world: world(4), looks_at_all, running: Vec::new(), story: Vec::new() }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Ask { pool, tenant, level } => {
                let (id, decision) = self.world.send(if *tenant { "a" } else { "b" }, |request| {
                    request.model = Some(format!("m-{pool}"));
                    request.priority = Some(Priority::try_from(*level).unwrap());
                });
                if matches!(decision, Decision::Admitted(_)) {
                    self.running.push(id);
                }
                self.story.push(format!("{decision:?}"));
            }
            Step::End { pick } if !self.running.is_empty() => {
                let id = self.running.remove(pick % self.running.len());
                self.world.end(&id, Outcome::Completed, 7);
            }
            Step::End { .. } => {}
            Step::Pass { ms } => self.world.now = self.world.now.plus(Millis(*ms)),
            Step::Silence { ms } => {
                self.silence();
                self.world.now = self.world.now.plus(Millis(*ms));
                self.silence();
            }
        }
        self.advance();
        while let Some((account, request)) = self.world.core.ask_ledger(self.world.now) {
            let ledger = self.world.ledgers.entry(account.clone()).or_default();
            let reply = ledger.sync(&request, Server { run: "test", now: SERVER_EPOCH.plus(self.world.now) }).reply;
            self.world.core.ledger_answered(&account, Some(&reply), self.world.now);
            self.advance();
        }
        let next = (self.world.core.next_wake(), self.world.core.next_ledger_call(self.world.now));
        self.story.push(format!("{next:?}"));
    }

    fn silence(&mut self) {
        while let Some((account, _)) = self.world.core.ask_ledger(self.world.now) {
            self.world.core.ledger_answered(&account, None, self.world.now);
            self.world.core.back_off(&account, u16::MAX, self.world.now);
        }
    }

    fn advance(&mut self) {
        if self.looks_at_all {
            self.world.core.pools.iter_mut().for_each(drop);
        }
        for event in self.world.core.advance(self.world.now) {
            if let Event::Started(id, _) = &event {
                self.running.push(id.clone());
            }
            self.story.push(format!("{event:?}"));
        }
    }
}

proptest! {
    #[test]
    fn looking_only_at_what_has_changed_misses_nothing(steps in prop::collection::vec(step(), 1..60)) {
        let (mut some, mut all) = (Walk::new(false), Walk::new(true));
        for step in &steps {
            some.take(step);
            all.take(step);
            prop_assert_eq!(&some.story, &all.story, "after {:?}", step);
        }
    }
}
