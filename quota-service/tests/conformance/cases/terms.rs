//! Which configuration counts when holders have different ones.

use super::{Case, cases};
use crate::story::{LEASE, Story};
use sluice_policy::ledger::{Terms, Version};
use sluice_policy::queue::SharePolicy;

pub(crate) const CASES: &[Case] = cases![
    an_older_configuration_changes_nothing,
    a_later_one_counts_at_once,
    of_two_equal_versions_the_last_one_told_counts,
    a_later_file_beats_any_overlay,
    a_later_overlay_beats_any_time_rule,
    an_older_configuration_is_served_all_the_same,
    a_change_of_policy_counts_from_the_next_turn,
    a_file_that_was_put_back_counts_once_nobody_goes_by_the_later_one,
    a_later_file_counts_while_a_holder_that_goes_by_it_has_a_lease,
    what_is_in_force_in_the_future_counts_less_than_what_is_now,
    where_all_clocks_are_ahead_of_the_servers_the_latest_counts,
];

const YEAR: u64 = 365 * 86_400_000;

fn version(file: u64, overlay: u64, since: u64) -> Version {
    Version { file, overlay, since }
}

fn an_older_configuration_changes_nothing(story: &mut Story<'_>) {
    story.call("a").terms(|terms| (terms.version, terms.capacity) = (version(2, 0, 0), 5)).send();
    assert_eq!(story.call("b").terms(|terms| terms.version = version(1, 9, 9)).want(10).send().granted, 5);
}

fn a_later_one_counts_at_once(story: &mut Story<'_>) {
    story.call("a").want(10).send();
    let later = |terms: &mut sluice_policy::ledger::Terms| (terms.version, terms.capacity) = (version(0, 0, 1), 12);
    assert_eq!(story.call("b").terms(later).want(10).send().granted, 2);
}

fn of_two_equal_versions_the_last_one_told_counts(story: &mut Story<'_>) {
    story.call("a").terms(|terms| terms.capacity = 5).send();
    assert_eq!(story.call("b").terms(|terms| terms.capacity = 7).want(10).send().granted, 7);
}

fn a_later_file_beats_any_overlay(story: &mut Story<'_>) {
    story.call("a").terms(|terms| (terms.version, terms.capacity) = (version(9, 7, 9), 5)).send();
    assert_eq!(story.call("b").terms(|terms| terms.version = version(10, 0, 0)).want(10).send().granted, 10);
}

fn a_later_overlay_beats_any_time_rule(story: &mut Story<'_>) {
    story.call("a").terms(|terms| (terms.version, terms.capacity) = (version(1, 7, 0), 5)).send();
    assert_eq!(story.call("b").terms(|terms| terms.version = version(1, 6, 9)).want(10).send().granted, 5);
}

fn an_older_configuration_is_served_all_the_same(story: &mut Story<'_>) {
    story.call("a").terms(|terms| (terms.version, terms.capacity) = (version(2, 0, 0), 5)).send();
    let said = story.call("b").row("/1/t", 2).spent("/1/t", 10).send();
    assert_eq!((said.granted, said.picks("/1/t")), (2, 2));
}

fn a_file_that_was_put_back_counts_once_nobody_goes_by_the_later_one(story: &mut Story<'_>) {
    let file = |file, slots| move |terms: &mut Terms| (terms.version, terms.capacity) = (version(file, 0, 0), slots);
    assert_eq!(story.call("a").terms(file(2, 5)).want(99).send().granted, 5);
    story.call("b").terms(file(2, 5)).send();
    assert_eq!(story.call("a").terms(file(1, 8)).want(99).send().granted, 5, "the other one goes by the later file");
    story.call("b").terms(file(1, 8)).send();
    assert_eq!(story.call("a").terms(file(1, 8)).want(99).send().granted, 8);
}

fn a_later_file_counts_while_a_holder_that_goes_by_it_has_a_lease(story: &mut Story<'_>) {
    story.call("a").terms(|terms| (terms.version, terms.capacity) = (version(2, 0, 0), 5)).send();
    story.wait(LEASE - 1);
    assert_eq!(story.call("b").terms(|terms| terms.version = version(1, 0, 0)).want(10).send().granted, 5);
    story.wait(1);
    assert_eq!(story.call("b").terms(|terms| terms.version = version(1, 0, 0)).want(10).send().granted, 10);
}

fn what_is_in_force_in_the_future_counts_less_than_what_is_now(story: &mut Story<'_>) {
    let now = story.now().0;
    let since = |since, slots| move |terms: &mut Terms| (terms.version, terms.capacity) = (version(0, 0, since), slots);
    // Alone it is believed, for want of anything better.
    assert_eq!(story.call("ahead").terms(since(now + YEAR, 3)).want(10).send().granted, 3);
    assert_eq!(story.call("b").terms(since(now - 1, 5)).want(10).send().granted, 2);
    assert_eq!(story.call("ahead").keep(0).terms(since(now + YEAR, 3)).send().granted, 0);
    assert_eq!(story.call("b").terms(since(now - 1, 5)).want(10).send().granted, 5);
}

fn where_all_clocks_are_ahead_of_the_servers_the_latest_counts(story: &mut Story<'_>) {
    let later = story.now().0 + YEAR;
    let since = |since, slots| move |terms: &mut Terms| (terms.version, terms.capacity) = (version(0, 0, since), slots);
    story.call("a").terms(since(later, 3)).send();
    story.call("b").terms(since(later + 1, 5)).send();
    assert_eq!(story.call("a").terms(since(later, 3)).want(10).send().granted, 5);
}

fn a_change_of_policy_counts_from_the_next_turn(story: &mut Story<'_>) {
    story.call("a").want(10).send();
    story.call("b").row_of("/8/t", 1, 10, 3, 0).send();
    story.call("c").row_of("/7/u", 1, 10_000, 3, 0).send();
    assert_eq!(story.call("a").keep(9).send().notified(), ["c"]);
    // P8's counter is the smaller one now; strict does not ask.
    story.terms.policy = SharePolicy::Strict;
    assert_eq!(story.call("a").keep(8).send().notified(), ["c"]);
    story.terms.policy = SharePolicy::Wfq;
    assert_eq!(story.call("a").keep(7).send().notified(), ["b"]);
}
