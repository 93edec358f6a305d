//! Configurations, rules and weights that change while calls wait and run.

use crate::chance::{Chance, cases};
use crate::setup::{Setup, TenantSetup};
use crate::steps::{applied, reloaded};
use crate::world::{Ask, World, number, started};
use proptest::prelude::*;
use sluice_policy::admission::{Decision, Event};
use sluice_policy::config::Config;
use sluice_policy::config::reader::read_document;
use sluice_policy::schedule::UnixMillis;
use sluice_policy::units::{Millis, TenantId};
use sluice_policy::wire::{Outcome, Usage};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Lets everyone run to the end, and tells who started, in order.
fn run_dry(world: &mut World, mut running: BTreeSet<usize>) -> Vec<usize> {
    let mut order = Vec::new();
    for _ in 0..10_000 {
        let Some(first) = running.pop_first() else { break };
        world.settle(first, Outcome::Failed, Usage::default());
        // Time enough for any rate.
        world.now += 1_000;
        for number in started(world.turn()) {
            order.push(number);
            running.insert(number);
        }
        if running.is_empty() && world.waiting() > 0 {
            // Whoever is next still waits for tokens: time goes on without a call that ends.
            running.insert(usize::MAX);
        }
    }
    order
}

/// A world in which calls of all levels wait, and who runs and who waits.
fn backlog(setup: &Setup, seed: u64) -> (World, BTreeSet<usize>, BTreeSet<usize>) {
    let (mut chance, mut world) = (Chance::seeded(seed), World::new(setup));
    let (mut running, mut waiting) = (BTreeSet::new(), BTreeSet::new());
    for number in 0..60 {
        let level = Some(chance.index(10) as u8);
        let ask = Ask {
            level,
            pool: chance.index(setup.pools.len()),
            ..Ask::of(chance.index(setup.tenants.len()), chance.between(20, 3_000))
        };
        match world.ask(number, &ask) {
            Decision::Admitted(_) => drop(running.insert(number)),
            Decision::Queued => drop(waiting.insert(number)),
            Decision::Rejected(_) => {}
        }
        for number in started(world.turn()) {
            waiting.remove(&number);
            running.insert(number);
        }
    }
    (world, running, waiting)
}

/// Any setup, but with patience without end.
fn patient(seed: u64) -> Setup {
    let mut setup = Setup::random(&mut Chance::seeded(seed));
    (setup.timeout, setup.deadline) = (3_600_000, None);
    setup
}

proptest! {
    #![proptest_config(cases(150))]

    /// A reload, a rule or an operator, at any moment and as often as they like: whoever waited still does, and is
    /// served in the end.
    #[test]
    fn no_change_of_any_setting_loses_a_waiter(
        seed: u64, changes in prop::collection::vec((any::<bool>(), any::<u64>()), 1..6),
    ) {
        let mut setup = patient(seed);
        let (mut world, mut running, mut waiting) = backlog(&setup, seed);
        for (reload, seed) in changes {
            let before = (world.running(), world.waiting());
            if reload {
                setup = Setup { timeout: 3_600_000, deadline: None, ..reloaded(&setup, seed) };
                world.configure(&setup);
            } else {
                setup = applied(&setup, seed);
                world.apply(&setup);
            }
            prop_assert_eq!((world.running(), world.waiting()), before);
            for number in started(world.turn()) {
                prop_assert!(waiting.remove(&number));
                running.insert(number);
            }
        }
        let served: BTreeSet<usize> = run_dry(&mut world, running).into_iter().collect();
        prop_assert_eq!(served, waiting);
        prop_assert!(world.core.is_idle());
    }

    /// What does not change anything changes nothing: the same calls start in the same order.
    #[test]
    fn a_reload_of_the_same_configuration_changes_no_turn(seed: u64) {
        let setup = patient(seed);
        let (mut plain, running, _) = backlog(&setup, seed);
        let (mut again, _, _) = backlog(&setup, seed);
        again.configure(&setup);
        again.apply(&setup);
        again.core.weigh_tenants(Arc::default());
        prop_assert_eq!(run_dry(&mut plain, running.clone()), run_dry(&mut again, running));
    }

    /// A tenant's weight, set while everybody waits, counts from the next start on.
    #[test]
    fn tenants_weights_set_under_way_share_a_level_from_then_on(
        weights in prop::collection::vec(1_u64..10, 2..6), slots in 1_u32..6,
    ) {
        const SIZE: u64 = 1_000;
        let setup = Setup::plain(slots, vec![TenantSetup::plain(5); weights.len()]);
        let mut world = World::new(&setup);
        let mut running = Vec::new();
        for number in 0..200 * weights.len() {
            if let Decision::Admitted(_) = world.ask(number, &Ask::of(number % weights.len(), SIZE)) {
                running.push(number);
            }
            running.extend(started(world.turn()));
        }
        prop_assert_eq!(running.len(), slots as usize);
        let given: BTreeMap<TenantId, u64> = world.tenants.iter().cloned().zip(weights.iter().copied()).collect();
        world.core.weigh_tenants(Arc::new(given));
        let mut served = vec![0_u64; weights.len()];
        for _ in 0..100 {
            world.end(running.remove(0), SIZE);
            for number in started(world.turn()) {
                served[number % weights.len()] += 1;
                running.push(number);
            }
        }
        for (a, b) in (0..weights.len()).flat_map(|a| (0..a).map(move |b| (a, b))) {
            // I4, in calls: a/wa and b/wb differ by at most (K+1) / the smaller weight, and by one call that was
            // counted at the weight before, which was 1.
            let (left, right) = (served[a] * weights[b], served[b] * weights[a]);
            let allowed = u64::from(slots + 1) * weights[a].max(weights[b]) + weights[a] * weights[b];
            prop_assert!(left.abs_diff(right) <= allowed, "{served:?} of {weights:?}");
        }
    }

    /// Draining answers everyone who waits, once; who runs may finish, and nothing is left.
    #[test]
    fn draining_answers_everyone_once_and_lets_the_running_end(seed: u64) {
        let (mut world, running, waiting) = backlog(&patient(seed), seed);
        let told: Vec<usize> = world.core.drain(Millis(world.now)).iter().map(|event| match event {
            Event::Refused(of, _) => number(of),
            Event::Started(..) => panic!("{event:?}"),
        }).collect();
        prop_assert_eq!(told.len(), waiting.len());
        prop_assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), waiting);
        prop_assert_eq!(run_dry(&mut world, running), Vec::<usize>::new());
        prop_assert!(world.core.is_idle());
        prop_assert!(world.core.drain(Millis(world.now)).is_empty());
    }
}

/// The same groups in another order must not swap whose share is whose.
#[test]
fn a_group_keeps_its_counter_and_share_when_the_list_of_groups_changes_order() {
    let document = |groups: [&str; 2]| {
        serde_json::json!({
            "groups": groups.map(|name| serde_json::json!({"name": name})),
            "pools": [{
                "name": "p0", "models": ["m0"], "capacity": {"concurrent": 1},
                "shares": {"internal": 80, "external": 20},
            }],
            "tenants": [{"id": "t0", "group": "internal"}, {"id": "t1", "group": "external"}],
        })
    };
    let read = |groups| read_document(&document(groups), Config::read).unwrap();
    let mut world = World::new(&Setup::plain(1, vec![TenantSetup::plain(5); 2]));
    world.core.configure(read(["internal", "external"]), UnixMillis(1), Millis(0));
    for number in 0..400 {
        world.ask(number, &Ask::of(number % 2, 100));
    }
    assert_eq!(world.turn(), []);
    world.core.configure(read(["external", "internal"]), UnixMillis(1), Millis(0));
    let (mut running, mut internal) = (0, 0);
    for _ in 0..100 {
        world.end(running, 100);
        running = started(world.turn())[0];
        internal += usize::from(running % 2 == 0);
    }
    assert!((78..=82).contains(&internal), "internal had {internal} of 100 starts, of 80");
}

/// One request a minute, and a reload every 40 seconds: the limit still lets one through in two minutes.
#[test]
fn a_limit_that_a_reload_leaves_alone_goes_on_refilling() {
    let setup = Setup::plain(5, vec![TenantSetup { requests_per_min: Some(1), ..TenantSetup::plain(5) }]);
    let mut world = World::new(&setup);
    assert!(matches!(world.ask(0, &Ask::of(0, 100)), Decision::Admitted(_)));
    for _ in 0..3 {
        world.wait(40_000);
        world.configure(&setup);
    }
    assert!(matches!(world.ask(1, &Ask::of(0, 100)), Decision::Admitted(_)));
}
