//! Why: every recent id is explained, what is told agrees with what happened, and no more is kept than promised.

use crate::chance::cases;
use crate::setup::{Setup, TenantSetup};
use crate::world::{Ask, LONGEST_MS, World, id, level, request};
use proptest::prelude::*;
use sluice_policy::admission::{Decision, Fate};
use sluice_policy::units::{Millis, Tokens};
use sluice_policy::wire::{Reason, Refusal};

const KEPT: usize = 10_000;

proptest! {
    #![proptest_config(cases(200))]

    /// A call that must wait is told who waited then, branch by branch, and the branch that was to be next is the one
    /// that starts next.
    #[test]
    fn a_queued_call_is_told_behind_whom_and_by_which_counter(
        levels in prop::collection::vec((1_u8..10, 20_u64..5_000), 1..40),
    ) {
        let mut world = World::new(&Setup::plain(1, vec![TenantSetup::plain(5); 10]));
        prop_assert!(matches!(world.ask(0, &Ask::of(0, 100)), Decision::Admitted(_)));
        for (number, (level, size)) in (1..).zip(&levels) {
            let before: Vec<u8> = levels[..number - 1].iter().map(|(level, _)| *level).collect();
            let ask = Ask { level: Some(*level), ..Ask::of(usize::from(*level), *size) };
            prop_assert_eq!(world.ask(number, &ask), Decision::Queued);
            let told = world.core.explain(&id(number)).unwrap();
            prop_assert_eq!(&told.fate, &Fate::Waiting);
            let place = told.queued_at.clone().unwrap();
            prop_assert!((1..=number as u64).contains(&place.position));
            prop_assert!(place.estimated_wait > Millis(0));
            for branch in &place.branches {
                let waiting = before.iter().filter(|level| **level == u8::from(branch.level)).count();
                prop_assert_eq!((branch.waiting as usize, branch.flows), (waiting, 1));
            }
            prop_assert_eq!(place.branches.iter().map(|branch| branch.waiting as usize).sum::<usize>(), number - 1);
        }
        let last = world.core.explain(&id(levels.len())).unwrap().queued_at.clone().unwrap();
        let lowest = last.branches.iter().map(|branch| branch.level_counter).min();
        world.end(0, 100);
        let started = world.turn();
        prop_assert_eq!(started.len(), 1);
        if let Some(lowest) = lowest {
            let mut told = (1..=levels.len()).map(|number| world.core.explain(&id(number)).unwrap());
            let level = told.find(|told| matches!(told.fate, Fate::Running { .. })).unwrap().level.unwrap();
            let counter = last.branches.iter().find(|branch| branch.level == level).map(|branch| branch.level_counter);
            // The newcomer's own branch may be new, and not among those told.
            prop_assert!(counter.is_none_or(|counter| counter <= lowest));
        }
    }
}

#[test]
fn the_most_recent_ten_thousand_are_explained_and_no_older_one() {
    let mut setup = Setup::plain(1, vec![TenantSetup::plain(5)]);
    setup.depth_per_level = 3;
    let mut world = World::new(&setup);
    for number in 0..2 * KEPT + 7 {
        world.ask(number, &Ask::of(0, 100));
    }
    let explained = |number| world.core.explain(&id(number)).is_some();
    assert_eq!((0..2 * KEPT + 7).filter(|number| explained(*number)).count(), KEPT);
    assert!((KEPT + 7..2 * KEPT + 7).all(explained));
    let told = world.core.explain(&id(2 * KEPT)).unwrap();
    assert!(matches!(told.fate, Fate::Refused { reason: Reason::QueueFull, .. }));
}

/// With the branches that stood before it and the bound that was reached, so that whoever is called at night knows which.
#[test]
fn a_call_that_the_queue_refuses_is_told_its_place_its_cost_and_the_bound() {
    let mut setup = Setup::plain(1, vec![TenantSetup::plain(5), TenantSetup::plain(7)]);
    setup.depth_per_tenant = 2;
    let mut world = World::new(&setup);
    for number in 0..3 {
        world.ask(number, &Ask::of(0, 100));
    }
    world.ask(3, &Ask::of(1, 300));
    assert!(matches!(world.ask(4, &Ask::of(0, 700)), Decision::Rejected(_)));
    let told = world.core.explain(&id(4)).unwrap();
    assert_eq!((told.pool, told.level, told.charge), (Some("p0".into()), Some(level(5)), Tokens(700)));
    let Fate::Refused { reason, limit: Some(limit), .. } = told.fate else { panic!("{:?}", told.fate) };
    assert_eq!((reason, limit.name.as_str(), limit.most), (Reason::QueueFull, "queue.depth_per_tenant", 2));
    let place = told.queued_at.unwrap();
    let waiting: Vec<_> = place.branches.iter().map(|branch| (u8::from(branch.level), branch.waiting)).collect();
    assert_eq!(waiting, [(5, 2), (7, 1)]);
    assert!(place.estimated_wait > Millis(0) && place.position > 2);
}

#[test]
fn a_tenant_that_is_over_a_limit_is_told_which_and_what_it_asked_for() {
    let limited = TenantSetup { tokens_per_min: Some(1_000), ..TenantSetup::plain(5) };
    let mut world = World::new(&Setup::plain(1, vec![limited]));
    world.ask(0, &Ask::of(0, 900));
    world.ask(1, &Ask::of(0, 200));
    let told = world.core.explain(&id(1)).unwrap();
    assert_eq!((told.pool, told.charge, told.queued_at), (Some("p0".into()), Tokens(200), None));
    let Fate::Refused { limit: Some(limit), .. } = told.fate else { panic!("{:?}", told.fate) };
    assert_eq!((limit.name.as_str(), limit.most), ("tenants[].limits.tokens_per_min", 1_000));
}

/// As many as are kept of them, and at the cost of nobody else.
#[test]
fn calls_of_strangers_are_explained_and_push_out_nobody() {
    let mut world = World::new(&Setup::plain(1, vec![TenantSetup::plain(5)]));
    world.ask(0, &Ask::of(0, 100));
    let refusal = Refusal::new(Reason::UnknownKey, "nobody has this key");
    for number in 1..=2 * KEPT {
        world.core.refused_stranger(&request(number, &Ask::of(0, 100)), &refusal, Millis(7));
    }
    assert!(matches!(world.core.explain(&id(0)).unwrap().fate, Fate::Running { .. }));
    let explained = |number: &usize| world.core.explain(&id(*number)).is_some();
    assert_eq!((1..=2 * KEPT).filter(explained).count(), 1_000);
    let told = world.core.explain(&id(2 * KEPT)).unwrap();
    assert_eq!((told.tenant, told.arrived, told.model), (None, Millis(7), Some("m0".into())));
    assert!(matches!(told.fate, Fate::Refused { reason: Reason::UnknownKey, .. }));
}

#[test]
fn a_repeated_id_does_not_change_what_is_told_of_the_first() {
    let mut world = World::new(&Setup::plain(1, vec![TenantSetup::plain(5)]));
    world.ask(0, &Ask::of(0, 100));
    let told = format!("{:?}", world.core.explain(&id(0)));
    world.ask(0, &Ask::of(0, 5_000));
    assert_eq!(format!("{:?}", world.core.explain(&id(0))), told);
}

#[test]
fn a_call_that_nobody_settles_is_not_told_to_run_for_ever() {
    let mut world = World::new(&Setup::plain(1, vec![TenantSetup::plain(5)]));
    world.ask(0, &Ask::of(0, 100));
    world.wait(LONGEST_MS + 1);
    assert_eq!(world.running(), 0);
    assert!(!matches!(world.core.explain(&id(0)).unwrap().fate, Fate::Running { .. }));
}
