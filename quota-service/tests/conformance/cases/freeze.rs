//! What happens when the ledger may have lost what it knew.

use super::{Case, cases};
use crate::story::{LEASE, LONGEST, Story};
use sluice_policy::ledger::{Loss, Terms};
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
    it_thaws_after_a_lease_when_everybody_has_said_what_he_holds,
    a_silent_holder_keeps_it_frozen_while_its_calls_may_run,
    a_holder_that_left_in_order_is_not_waited_for,
    a_new_incarnation_has_not_said_what_the_old_one_held,
    an_incarnation_that_has_said_what_it_held_may_end,
    a_freeze_counts_from_when_a_replica_first_saw_the_server,
    what_a_replica_saw_of_a_server_cannot_be_before_the_latest_call,
    an_account_that_was_idle_at_a_failover_is_open_hours_later,
    an_account_without_slots_never_freezes,
    a_missing_account_that_its_holder_knew_is_frozen,
    a_newcomer_after_a_failover_waits_for_a_lease_at_most,
    a_newcomer_after_a_loss_of_everything_waits_while_calls_may_run,
    a_newcomer_long_after_a_loss_waits_for_nobody,
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
    story.call("b").want(1).send();
    story.call("c").send();
    story.fail_over();
    story.call("a").send();
    story.wait(FREEZE - 1);
    assert_eq!(story.call("c").want(3).send().granted, 0);
    story.wait(1);
    let said = story.call("c").want(3).send();
    assert_eq!((said.granted, said.frozen_until), (3, None));
}

fn it_thaws_after_a_lease_when_everybody_has_said_what_he_holds(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.call("b").want(1).send();
    story.fail_over();
    story.call("a").keep(3).send();
    story.call("b").send();
    story.wait(LEASE - 1);
    let said = story.call("b").want(9).send();
    assert!(said.granted == 1 && said.frozen_until.is_some());
    story.wait(1);
    // The lease of the other has just ended, so what it held waits for its calls.
    let said = story.call("b").want(9).send();
    assert_eq!((said.granted, said.zombies, said.frozen_until), (7, 3, None));
}

fn a_silent_holder_keeps_it_frozen_while_its_calls_may_run(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.call("b").want(1).send();
    story.fail_over();
    let end = story.now().plus(Millis(FREEZE));
    story.call("a").send();
    story.wait(LEASE);
    let said = story.call("a").want(9).send();
    assert_eq!((said.granted, said.frozen_until), (4, Some(end)));
    // Now it speaks.
    story.call("b").send();
    assert_eq!(story.call("a").want(9).send().granted, 9);
}

fn a_holder_that_left_in_order_is_not_waited_for(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.call("b").want(1).send();
    story.call("b").keep(0).send();
    story.fail_over();
    story.call("a").send();
    story.wait(LEASE);
    let said = story.call("a").want(9).send();
    assert_eq!((said.granted, said.frozen_until), (9, None));
}

fn a_new_incarnation_has_not_said_what_the_old_one_held(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.call("b").want(1).send();
    story.fail_over();
    let end = story.now().plus(Millis(FREEZE));
    story.call("a").send();
    story.restart("b");
    story.call("b").send();
    story.wait(LEASE);
    assert_eq!(story.call("a").want(9).send().frozen_until, Some(end));
}

fn an_incarnation_that_has_said_what_it_held_may_end(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.call("b").want(1).send();
    story.fail_over();
    story.call("a").send();
    story.call("b").send();
    story.restart("b");
    story.call("b").send();
    story.wait(LEASE);
    let said = story.call("a").want(10).send();
    assert_eq!((said.granted, said.zombies, said.frozen_until), (9, 1, None));
}

fn a_freeze_counts_from_when_a_replica_first_saw_the_server(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.wait(1_000);
    story.fail_over();
    let end = story.now().plus(Millis(FREEZE - 700));
    assert_eq!(story.call("a").knows(700, Loss::Latest).send().frozen_until, Some(end));
    story.wait(LEASE - 700);
    assert_eq!(story.call("a").want(9).send().frozen_until, None);
}

fn what_a_replica_saw_of_a_server_cannot_be_before_the_latest_call(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.wait(100);
    story.fail_over();
    let end = story.now().plus(Millis(FREEZE - 100));
    assert_eq!(story.call("a").knows(1_000_000, Loss::None).send().frozen_until, Some(end));
}

fn an_account_that_was_idle_at_a_failover_is_open_hours_later(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.call("a").keep(0).send();
    story.wait(10_000_000);
    story.fail_over();
    let said = story.call("b").knows(5_000, Loss::Latest).want(3).send();
    assert_eq!((said.granted, said.frozen_until), (3, None));
}

fn an_account_without_slots_never_freezes(story: &mut Story<'_>) {
    story.terms.capacity = Terms::UNCOUNTED;
    story.call("a").want(4).send();
    story.fail_over();
    let said = story.call("b").want(3).send();
    assert_eq!((said.granted, said.frozen_until), (3, None));
    story.lose();
    // What it runs is believed, too.
    let said = story.call("a").keep(4).want(5).send();
    assert_eq!((said.granted, said.frozen_until), (5, None));
}

fn a_missing_account_that_its_holder_knew_is_frozen(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.call("a").keep(0).send();
    story.lose();
    let end = story.now().plus(Millis(FREEZE));
    let said = story.call("a").want(4).send();
    assert_eq!((said.granted, said.frozen_until), (0, Some(end)));
}

fn a_newcomer_after_a_failover_waits_for_a_lease_at_most(story: &mut Story<'_>) {
    assert_eq!(story.call("a").knows_the_last_server().want(4).send().granted, 0);
    story.wait(LEASE - 1);
    assert_eq!(story.call("a").want(4).send().granted, 0);
    story.wait(1);
    assert_eq!(story.call("a").want(4).send().granted, 4);
    story.lose();
    assert_eq!(story.call("b").knows(LEASE - 100, Loss::Latest).want(4).send().granted, 0);
    story.wait(100);
    assert_eq!(story.call("b").want(4).send().granted, 4);
}

fn a_newcomer_after_a_loss_of_everything_waits_while_calls_may_run(story: &mut Story<'_>) {
    let end = story.now().plus(Millis(FREEZE - 3_000));
    let said = story.call("a").knows(3_000, Loss::All).want(4).send();
    assert_eq!((said.granted, said.frozen_until), (0, Some(end)));
}

fn a_newcomer_long_after_a_loss_waits_for_nobody(story: &mut Story<'_>) {
    let said = story.call("a").knows(FREEZE, Loss::All).want(4).send();
    assert_eq!((said.granted, said.frozen_until), (4, None));
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
