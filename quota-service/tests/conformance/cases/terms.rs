//! Which configuration counts when holders have different ones.

use super::{Case, cases};
use crate::story::Story;
use sluice_policy::ledger::Version;
use sluice_policy::queue::SharePolicy;

pub(crate) const CASES: &[Case] = cases![
    an_older_configuration_changes_nothing,
    a_later_one_counts_at_once,
    of_two_equal_versions_the_last_one_told_counts,
    a_later_file_beats_any_overlay,
    a_later_overlay_beats_any_time_rule,
    an_older_configuration_is_served_all_the_same,
    a_change_of_policy_counts_from_the_next_turn,
];

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
