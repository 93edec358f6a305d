//! What a holder is granted, and which of its calls count.

use super::{Case, cases};
use crate::story::Story;

pub(crate) const CASES: &[Case] = cases![
    a_first_call_is_granted_what_it_wants,
    nobody_is_granted_more_than_there_is,
    a_second_holder_is_granted_what_is_left,
    a_repeated_call_changes_nothing,
    a_call_that_was_overtaken_changes_nothing,
    a_call_of_an_old_incarnation_changes_nothing,
    slots_that_are_not_kept_are_free_for_others,
    nothing_is_kept_beyond_the_grant,
    who_wants_less_than_it_keeps_keeps_it,
    a_smaller_capacity_takes_nothing_away,
    slots_beyond_a_smaller_capacity_go_to_nobody,
    a_larger_capacity_is_handed_out_at_once,
    it_is_alone_while_nobody_else_holds_anything,
];

fn a_first_call_is_granted_what_it_wants(story: &mut Story<'_>) {
    let said = story.call("a").want(3).send();
    assert_eq!((said.granted, said.seq, said.incarnation), (3, 1, 0));
    assert_eq!((said.zombies, said.contended, said.frozen_until), (0, false, None));
    assert!(said.is_quiet());
}

fn nobody_is_granted_more_than_there_is(story: &mut Story<'_>) {
    assert_eq!(story.call("a").want(30).send().granted, 10);
}

fn a_second_holder_is_granted_what_is_left(story: &mut Story<'_>) {
    story.call("a").want(7).send();
    assert_eq!(story.call("b").want(7).send().granted, 3);
}

fn a_repeated_call_changes_nothing(story: &mut Story<'_>) {
    let call = story.call("a").want(4).hold_back();
    assert_eq!(story.deliver(&call).granted, 4);
    story.wait(500);
    assert_eq!(story.deliver(&call).granted, 4);
    // It has not even renewed the lease.
    story.wait(1_500);
    assert_eq!(story.call("b").want(10).send().zombies, 4);
}

fn a_call_that_was_overtaken_changes_nothing(story: &mut Story<'_>) {
    let late = story.call("a").want(2).hold_back();
    story.call("a").want(5).send();
    let said = story.deliver(&late);
    assert_eq!((said.seq, said.granted), (2, 5));
}

fn a_call_of_an_old_incarnation_changes_nothing(story: &mut Story<'_>) {
    let late = story.call("a").keep(9).want(9).hold_back();
    story.restart("a");
    story.call("a").want(2).send();
    let said = story.deliver(&late);
    assert_eq!((said.incarnation, said.seq, said.granted), (1, 1, 2));
}

fn slots_that_are_not_kept_are_free_for_others(story: &mut Story<'_>) {
    story.call("a").want(10).send();
    assert_eq!(story.call("a").keep(4).send().granted, 4);
    assert_eq!(story.call("b").want(10).send().granted, 6);
}

fn nothing_is_kept_beyond_the_grant(story: &mut Story<'_>) {
    story.call("a").want(2).send();
    assert_eq!(story.call("a").keep(9).send().granted, 2);
}

fn who_wants_less_than_it_keeps_keeps_it(story: &mut Story<'_>) {
    story.call("a").want(5).send();
    assert_eq!(story.call("a").keep(5).want(2).send().granted, 5);
}

fn a_smaller_capacity_takes_nothing_away(story: &mut Story<'_>) {
    story.call("a").want(8).send();
    story.terms.capacity = 4;
    let said = story.call("a").want(8).send();
    assert_eq!((said.granted, said.contended), (8, true));
}

fn slots_beyond_a_smaller_capacity_go_to_nobody(story: &mut Story<'_>) {
    story.call("a").want(8).send();
    story.terms.capacity = 4;
    assert_eq!(story.call("b").want(4).row("/1/t", 1).send().granted, 0);
    assert_eq!(story.call("a").keep(4).send().granted, 4);
    assert_eq!(story.call("b").row("/1/t", 1).send().granted, 0);
    let said = story.call("a").keep(3).send();
    assert_eq!(said.notice("b").granted, 1);
}

fn a_larger_capacity_is_handed_out_at_once(story: &mut Story<'_>) {
    story.call("a").want(10).send();
    story.call("b").row("/1/t", 3).send();
    story.terms.capacity = 12;
    assert_eq!(story.call("a").send().notice("b").granted, 2);
}

fn it_is_alone_while_nobody_else_holds_anything(story: &mut Story<'_>) {
    assert!(story.call("a").want(2).send().alone);
    assert!(!story.call("b").send().alone);
    assert!(story.call("a").send().alone);
    story.call("b").want(1).send();
    assert!(!story.call("a").send().alone);
}
