//! Who waits where, and what others hear of it.

use super::{Case, cases};
use crate::story::{Story, picks};
use sluice_policy::bucket::Rate;
use sluice_policy::ledger::{Limit, MeterName};

pub(crate) const CASES: &[Case] = cases![
    a_row_is_given_what_is_free,
    a_row_is_given_no_more_than_waits,
    who_waits_elsewhere_makes_a_holder_contended,
    a_holder_of_nothing_is_not_told_that_somebody_waits,
    that_somebody_waits_is_told_once,
    that_somebody_waits_again_is_told_again,
    a_freed_slot_goes_to_who_waits,
    a_holder_that_is_contended_gets_nothing_ahead,
    contention_ends_with_the_last_row,
    a_row_that_has_all_its_slots_waits_no_more,
    own_rows_make_nobody_contended,
    rows_compete_for_a_quarter_of_a_second,
    picks_add_up_until_the_next_call,
    the_next_call_gives_back_the_picks_it_does_not_keep,
    a_call_without_rows_takes_the_last_ones_back,
    a_new_incarnation_takes_the_rows_of_the_old_one_back,
    one_call_may_serve_several_holders,
];

fn a_row_is_given_what_is_free(story: &mut Story<'_>) {
    story.call("a").want(7).send();
    let said = story.call("b").row("/1/t", 5).send();
    assert_eq!((said.granted, said.picks("/1/t")), (3, 3));
}

fn a_row_is_given_no_more_than_waits(story: &mut Story<'_>) {
    let said = story.call("a").row("/1/t", 2).row("/2/u", 1).send();
    assert_eq!((said.granted, said.picks("/1/t"), said.picks("/2/u")), (3, 2, 1));
}

fn who_waits_elsewhere_makes_a_holder_contended(story: &mut Story<'_>) {
    assert!(!story.call("a").want(10).send().contended);
    let said = story.call("b").row("/1/t", 1).send();
    assert_eq!((said.granted, said.contended), (0, false));
    assert_eq!(said.notified(), ["a"]);
    let notice = said.notice("a");
    assert_eq!((notice.granted, notice.contended, notice.seq), (10, true, 1));
    assert!(story.call("a").send().contended);
}

fn a_holder_of_nothing_is_not_told_that_somebody_waits(story: &mut Story<'_>) {
    story.call("a").want(10).send();
    story.call("c").send();
    assert_eq!(story.call("b").row("/1/t", 1).send().notified(), ["a"]);
}

fn that_somebody_waits_is_told_once(story: &mut Story<'_>) {
    story.call("a").want(10).send();
    story.call("b").row("/1/t", 1).send();
    assert!(story.call("b").row("/1/t", 2).send().is_quiet());
}

fn that_somebody_waits_again_is_told_again(story: &mut Story<'_>) {
    story.call("a").want(10).send();
    story.call("b").row("/1/t", 1).send();
    story.call("b").send();
    assert_eq!(story.call("b").row("/1/t", 1).send().notified(), ["a"]);
}

fn a_freed_slot_goes_to_who_waits(story: &mut Story<'_>) {
    story.call("a").want(10).send();
    story.call("b").row("/1/t", 3).send();
    let said = story.call("a").keep(9).send();
    assert_eq!(said.granted, 9);
    let notice = said.notice("b");
    assert_eq!((notice.granted, picks(notice, "/1/t"), notice.seq), (1, 1, 1));
}

fn a_holder_that_is_contended_gets_nothing_ahead(story: &mut Story<'_>) {
    story.set_meter(MeterName::TokensPerMinute, Limit::Rate(Rate::per_minute(60)));
    story.call("a").want(2).row_of("/1/t", 1, 60, 1, 0).send();
    let said = story.call("b").row_of("/1/t", 1, 30, 1, 0).send();
    assert_eq!((said.granted, said.wait.map(|wait| wait.0)), (0, Some(30_000)));
    assert_eq!(story.call("a").keep(1).want(5).drew(MeterName::TokensPerMinute, 60, 0).send().granted, 1);
}

fn contention_ends_with_the_last_row(story: &mut Story<'_>) {
    story.call("a").want(10).send();
    story.call("b").row("/1/t", 1).send();
    story.call("b").send();
    assert!(!story.call("a").send().contended);
}

fn a_row_that_has_all_its_slots_waits_no_more(story: &mut Story<'_>) {
    story.call("a").want(9).send();
    assert!(story.call("b").row("/1/t", 1).send().is_quiet());
    assert!(!story.call("a").send().contended);
}

fn own_rows_make_nobody_contended(story: &mut Story<'_>) {
    let said = story.call("a").row("/1/t", 30).send();
    assert_eq!((said.granted, said.contended), (10, false));
}

fn rows_compete_for_a_quarter_of_a_second(story: &mut Story<'_>) {
    story.call("a").want(10).send();
    story.call("b").row("/1/t", 5).send();
    story.wait(250);
    assert_eq!(story.call("a").keep(9).send().notified(), ["b"]);
    story.wait(1);
    let said = story.call("a").keep(8).want(10).send();
    assert!(said.is_quiet());
    assert_eq!((said.granted, said.contended), (9, false));
}

fn picks_add_up_until_the_next_call(story: &mut Story<'_>) {
    story.call("a").want(10).send();
    story.call("b").row_of("/1/t", 1, 5, 3, 0).row_of("/1/u", 1, 5, 1, 0).send();
    story.call("a").keep(9).send();
    let said = story.call("a").keep(7).send();
    let notice = said.notice("b");
    assert_eq!((notice.granted, picks(notice, "/1/t"), picks(notice, "/1/u")), (3, 2, 1));
}

fn the_next_call_gives_back_the_picks_it_does_not_keep(story: &mut Story<'_>) {
    story.call("a").want(10).send();
    story.call("b").row("/1/t", 3).send();
    story.call("a").keep(8).send();
    let said = story.call("b").keep(1).send();
    assert_eq!((said.granted, said.picks("/1/t")), (1, 0));
    assert_eq!(story.call("a").want(10).send().granted, 9);
}

fn a_call_without_rows_takes_the_last_ones_back(story: &mut Story<'_>) {
    story.call("a").want(10).send();
    story.call("b").row("/1/t", 3).send();
    story.call("b").send();
    assert!(story.call("a").keep(5).send().is_quiet());
}

fn a_new_incarnation_takes_the_rows_of_the_old_one_back(story: &mut Story<'_>) {
    story.call("a").want(10).send();
    story.call("b").row("/1/t", 3).send();
    story.restart("b");
    story.call("b").send();
    assert!(story.call("a").keep(5).send().is_quiet());
}

fn one_call_may_serve_several_holders(story: &mut Story<'_>) {
    story.call("a").want(10).send();
    story.call("b").row("/1/t", 1).send();
    story.call("c").row("/1/u", 1).send();
    story.call("d").row("/1/v", 1).send();
    let said = story.call("a").keep(8).send();
    assert_eq!(said.notified(), ["b", "c"]);
    assert!(said.contended);
}
