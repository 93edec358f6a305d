//! What happens when the ledger may have lost what it knew.

use super::{Case, cases};
use crate::story::{LEASE, LONGEST, Story};
use sluice_policy::units::Millis;

pub(crate) const CASES: &[Case] = cases![
    an_account_that_nobody_has_heard_of_is_open_at_once,
    a_guarded_account_that_nobody_has_heard_of_is_frozen_for_a_lease,
    a_lost_account_is_frozen_when_somebody_asserts,
    a_holder_that_an_account_born_empty_does_not_know_lengthens_the_freeze,
    an_account_born_empty_that_is_frozen_no_more_is_not_frozen_again,
    another_run_freezes_for_a_lease_and_the_longest_call,
    a_freeze_ends,
    what_is_held_runs_on_while_frozen,
    while_frozen_a_first_word_counts_more_than_the_ledgers,
    while_frozen_only_the_first_word_counts,
    slots_given_up_while_frozen_may_move,
    slots_given_up_while_frozen_go_to_who_waits,
    slots_that_the_first_word_gives_up_do_not_move,
    a_second_failover_begins_anew,
    a_stale_call_finds_no_failover,
    asserted_slots_may_exceed_the_capacity,
    an_unguarded_call_does_not_shorten_a_freeze,
];

const FREEZE: u64 = LEASE + LONGEST;

fn an_account_that_nobody_has_heard_of_is_open_at_once(story: &mut Story<'_>) {
    let said = story.call("a").want(5).send();
    assert_eq!((said.granted, said.frozen_until), (5, None));
}

fn a_guarded_account_that_nobody_has_heard_of_is_frozen_for_a_lease(story: &mut Story<'_>) {
    let end = story.now().plus(Millis(LEASE));
    let said = story.call("a").guarded().want(5).send();
    assert_eq!((said.granted, said.frozen_until), (0, Some(end)));
    story.wait(LEASE - 1);
    assert_eq!(story.call("a").guarded().want(5).send().granted, 0);
    story.wait(1);
    let said = story.call("a").guarded().want(5).send();
    assert_eq!((said.granted, said.frozen_until), (5, None));
}

fn a_lost_account_is_frozen_when_somebody_asserts(story: &mut Story<'_>) {
    story.call("a").want(5).send();
    story.lose();
    let end = story.now().plus(Millis(FREEZE));
    let said = story.call("a").keep(5).send();
    assert_eq!((said.granted, said.frozen_until), (5, Some(end)));
    assert_eq!(story.call("b").want(3).send().granted, 0);
}

fn a_holder_that_an_account_born_empty_does_not_know_lengthens_the_freeze(story: &mut Story<'_>) {
    story.call("a").want(5).send();
    story.lose();
    story.call("b").guarded().send();
    story.wait(LEASE - 1);
    let end = story.now().plus(Millis(FREEZE));
    let said = story.call("a").keep(5).send();
    assert_eq!((said.granted, said.frozen_until), (5, Some(end)));
}

fn an_account_born_empty_that_is_frozen_no_more_is_not_frozen_again(story: &mut Story<'_>) {
    story.call("a").want(5).send();
    story.lose();
    story.call("b").guarded().send();
    story.wait(LEASE);
    let said = story.call("a").keep(5).send();
    assert_eq!((said.granted, said.frozen_until), (0, None));
}

fn another_run_freezes_for_a_lease_and_the_longest_call(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.fail_over();
    let end = story.now().plus(Millis(FREEZE));
    let said = story.call("b").want(3).send();
    assert_eq!((said.granted, said.frozen_until), (0, Some(end)));
}

fn a_freeze_ends(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.call("b").send();
    story.fail_over();
    story.call("a").send();
    story.wait(FREEZE - 1);
    assert_eq!(story.call("b").want(3).send().granted, 0);
    story.wait(1);
    let said = story.call("b").want(3).send();
    assert_eq!((said.granted, said.frozen_until), (3, None));
}

fn what_is_held_runs_on_while_frozen(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.fail_over();
    assert_eq!(story.call("a").want(9).send().granted, 4);
    assert_eq!(story.call("a").want(9).send().granted, 4);
}

fn while_frozen_a_first_word_counts_more_than_the_ledgers(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.fail_over();
    assert_eq!(story.call("a").keep(7).send().granted, 7);
}

fn while_frozen_only_the_first_word_counts(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.fail_over();
    story.call("a").keep(7).send();
    assert_eq!(story.call("a").keep(9).send().granted, 7);
}

fn slots_given_up_while_frozen_may_move(story: &mut Story<'_>) {
    story.call("a").want(7).send();
    story.fail_over();
    story.call("a").send();
    assert_eq!(story.call("a").keep(5).send().granted, 5);
    assert_eq!(story.call("b").want(3).send().granted, 2);
    assert_eq!(story.call("b").want(3).send().granted, 2);
}

fn slots_given_up_while_frozen_go_to_who_waits(story: &mut Story<'_>) {
    story.call("a").want(7).send();
    story.fail_over();
    story.call("a").send();
    assert_eq!(story.call("b").row("/1/t", 5).send().granted, 0);
    assert_eq!(story.call("a").keep(5).send().notice("b").granted, 2);
}

fn slots_that_the_first_word_gives_up_do_not_move(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.fail_over();
    assert_eq!(story.call("a").keep(2).send().granted, 2);
    assert_eq!(story.call("b").want(3).send().granted, 0);
}

fn a_second_failover_begins_anew(story: &mut Story<'_>) {
    story.call("a").want(7).send();
    story.fail_over();
    story.call("a").send();
    story.call("a").keep(5).send();
    story.wait(1_000);
    story.fail_over();
    let end = story.now().plus(Millis(FREEZE));
    let said = story.call("b").want(3).send();
    assert_eq!((said.granted, said.frozen_until), (0, Some(end)));
    assert_eq!(story.call("a").keep(6).send().granted, 6);
}

fn a_stale_call_finds_no_failover(story: &mut Story<'_>) {
    let call = story.call("a").want(4).hold_back();
    story.deliver(&call);
    story.fail_over();
    assert_eq!(story.deliver(&call).frozen_until, None);
    let end = story.now().plus(Millis(FREEZE));
    assert_eq!(story.call("a").send().frozen_until, Some(end));
}

fn asserted_slots_may_exceed_the_capacity(story: &mut Story<'_>) {
    story.call("a").want(5).send();
    story.call("b").want(5).send();
    story.fail_over();
    let said = story.call("a").keep(8).send();
    assert_eq!((said.granted, said.contended), (8, true));
    assert!(said.notice("b").contended);
    let said = story.call("b").keep(7).send();
    assert_eq!((said.granted, said.contended), (7, true));
    // What is given up does not make room while there is too much.
    assert_eq!(story.call("b").keep(3).send().granted, 3);
    assert_eq!(story.call("c").want(5).send().granted, 0);
}

fn an_unguarded_call_does_not_shorten_a_freeze(story: &mut Story<'_>) {
    let end = story.now().plus(Millis(LEASE));
    story.call("a").guarded().send();
    story.wait(500);
    assert_eq!(story.call("b").want(1).send().frozen_until, Some(end));
}
