//! Why: every recent id is explained, what is told agrees with what happened, and no more is kept than promised.

use crate::chance::cases;
use crate::setup::{Setup, TenantSetup};
use crate::world::{Ask, LONGEST_MS, World, id};
use proptest::prelude::*;
use sluice_policy::admission::{Decision, Fate};
use sluice_policy::units::Millis;
use sluice_policy::wire::Reason;

const KEPT: usize = 10_000;

proptest! {
    #![proptest_config(cases(200))]

    /// A call that must wait is told who waited then, branch by branch, and the branch that was to be next is the one
    /// that starts next.
    #[test]
    fn a_queued_call_is_told_behind_whom_and_by_which_counter(
        levels in prop::collection::vec((1_u8..10, 20_u64..5_000), 1..40),
    ) {
        let mut world = World::new(&Setup::plain(1, vec![TenantSetup::plain(5)]));
        prop_assert!(matches!(world.ask(0, &Ask::of(0, 100)), Decision::Admitted(_)));
        for (number, (level, size)) in (1..).zip(&levels) {
            let before: Vec<u8> = levels[..number - 1].iter().map(|(level, _)| *level).collect();
            prop_assert_eq!(world.ask(number, &Ask { level: Some(*level), ..Ask::of(0, *size) }), Decision::Queued);
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
