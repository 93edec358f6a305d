//! What becomes of slots whose holder has fallen silent or started anew.

use super::{Case, cases};
use crate::story::{LEASE, LONGEST, Story};

pub(crate) const CASES: &[Case] = cases![
    a_lease_lasts_to_its_last_millisecond,
    a_lease_that_ended_leaves_zombies,
    zombies_come_free_when_no_call_can_run_any_more,
    the_same_incarnation_takes_its_zombies_up_again,
    part_of_the_zombies_may_be_taken_up_and_the_rest_is_free,
    a_keep_that_arrives_after_its_zombies_came_free_creates_no_slots,
    a_keep_above_the_zombies_creates_no_slots,
    a_new_incarnation_holds_nothing_and_leaves_zombies,
    a_new_incarnation_after_an_expiry_leaves_its_zombies_once,
    zombies_of_two_moments_come_free_one_after_the_other,
    zombies_of_one_moment_add_up,
    a_stale_call_ends_no_lease,
    picks_of_an_ended_lease_are_gone,
    zombies_count_from_the_end_of_the_lease,
    zombies_stay_as_long_as_their_own_calls_may_run,
    a_silent_holder_is_remembered_while_a_call_may_run,
    a_silent_holder_is_forgotten_after_that,
    rows_of_an_ended_lease_do_not_compete,
];

fn a_lease_lasts_to_its_last_millisecond(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.wait(LEASE - 1);
    let said = story.call("b").want(10).send();
    assert_eq!((said.granted, said.zombies), (6, 0));
}

fn a_lease_that_ended_leaves_zombies(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.wait(LEASE);
    let said = story.call("b").want(10).send();
    assert_eq!((said.granted, said.zombies), (6, 4));
}

fn zombies_come_free_when_no_call_can_run_any_more(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.wait(LEASE);
    story.call("b").send();
    story.wait(LONGEST - 1);
    assert_eq!(story.call("b").want(10).send().granted, 6);
    story.wait(1);
    let said = story.call("b").want(10).send();
    assert_eq!((said.granted, said.zombies), (10, 0));
}

fn the_same_incarnation_takes_its_zombies_up_again(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.wait(LEASE);
    assert_eq!(story.call("b").send().zombies, 4);
    let said = story.call("a").keep(4).send();
    assert_eq!((said.granted, said.zombies), (4, 0));
}

fn part_of_the_zombies_may_be_taken_up_and_the_rest_is_free(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.wait(LEASE + 5_000);
    let said = story.call("a").keep(1).send();
    assert_eq!((said.granted, said.zombies), (1, 0));
    assert_eq!(story.call("b").want(10).send().granted, 9);
}

fn a_keep_that_arrives_after_its_zombies_came_free_creates_no_slots(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    let late = story.call("a").keep(4).hold_back();
    story.wait(LEASE);
    story.call("b").send();
    story.wait(LONGEST);
    assert_eq!(story.call("b").want(10).send().granted, 10);
    assert_eq!(story.deliver(&late).granted, 0);
}

fn a_keep_above_the_zombies_creates_no_slots(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.wait(LEASE);
    assert_eq!(story.call("a").keep(9).send().granted, 4);
}

fn a_new_incarnation_holds_nothing_and_leaves_zombies(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.restart("a");
    let said = story.call("a").keep(4).want(10).send();
    assert_eq!((said.granted, said.zombies), (6, 4));
}

fn a_new_incarnation_after_an_expiry_leaves_its_zombies_once(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.wait(LEASE);
    story.call("b").send();
    story.restart("a");
    assert_eq!(story.call("a").send().zombies, 4);
}

fn zombies_of_two_moments_come_free_one_after_the_other(story: &mut Story<'_>) {
    story.call("a").want(2).send();
    story.restart("a");
    story.call("a").want(3).send();
    story.wait(1_000);
    story.restart("a");
    assert_eq!(story.call("a").send().zombies, 5);
    story.wait(LONGEST - 1_000);
    assert_eq!(story.call("a").send().zombies, 3);
    story.wait(1_000);
    assert_eq!(story.call("a").send().zombies, 0);
}

fn zombies_of_one_moment_add_up(story: &mut Story<'_>) {
    story.call("a").want(2).send();
    story.call("b").want(3).send();
    story.restart("a");
    story.restart("b");
    story.call("a").send();
    assert_eq!(story.call("b").send().zombies, 5);
}

fn a_stale_call_ends_no_lease(story: &mut Story<'_>) {
    let call = story.call("b").hold_back();
    story.deliver(&call);
    story.call("a").want(4).send();
    story.wait(LEASE);
    assert_eq!(story.deliver(&call).zombies, 0);
    assert_eq!(story.call("b").send().zombies, 4);
}

fn picks_of_an_ended_lease_are_gone(story: &mut Story<'_>) {
    let call = story.call("a").row("/1/t", 2).hold_back();
    assert_eq!(story.deliver(&call).picks("/1/t"), 2);
    story.wait(LEASE);
    story.call("b").send();
    let said = story.deliver(&call);
    assert_eq!((said.granted, said.picks("/1/t"), said.zombies), (0, 0, 2));
}

fn zombies_count_from_the_end_of_the_lease(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.call("b").send();
    story.wait(LEASE + LONGEST - 1);
    assert_eq!(story.call("b").send().zombies, 4);
    story.wait(1);
    assert_eq!(story.call("b").want(10).send().granted, 10);
}

fn zombies_stay_as_long_as_their_own_calls_may_run(story: &mut Story<'_>) {
    story.call("a").longest(2 * LONGEST).want(4).send();
    story.call("c").longest(2 * LONGEST).want(1).send();
    story.call("b").send();
    story.restart("c");
    assert_eq!(story.call("c").send().zombies, 1);
    story.wait(LEASE + 2 * LONGEST - 1);
    assert_eq!(story.call("b").send().zombies, 4);
    story.wait(1);
    assert_eq!(story.call("b").send().zombies, 0);
}

fn a_silent_holder_is_remembered_while_a_call_may_run(story: &mut Story<'_>) {
    let call = story.call("a").hold_back();
    story.deliver(&call);
    story.wait(LEASE + LONGEST - 1);
    story.call("b").send();
    // Stale: it changes nothing.
    assert_eq!(story.deliver(&call).granted, 0);
    assert_eq!(story.call("a").keep(0).want(1).send().granted, 1);
}

fn a_silent_holder_is_forgotten_after_that(story: &mut Story<'_>) {
    let call = story.call("a").want(0).spent("/1/t", 5).hold_back();
    story.deliver(&call);
    let again = story.call("a").want(3).hold_back();
    story.deliver(&again);
    story.call("a").keep(0).send();
    story.wait(LEASE + LONGEST);
    story.call("b").send();
    // A number that was used before counts again: nobody remembers it.
    assert_eq!(story.deliver(&again).granted, 3);
}

fn rows_of_an_ended_lease_do_not_compete(story: &mut Story<'_>) {
    story.call("a").want(10).send();
    story.call("b").lease(100).row("/1/t", 1).send();
    story.wait(100);
    let said = story.call("a").keep(9).send();
    assert!(said.is_quiet());
    assert!(!said.contended);
}
