//! Rates: who may draw, and what is lent.

use super::{Case, cases};
use crate::story::Story;
use sluice_policy::bucket::Rate;
use sluice_policy::ledger::Limit;
use sluice_policy::ledger::MeterName::{RequestsPerSecond, TokensPerMinute, TokensPerSecond};
use sluice_policy::units::Millis;

pub(crate) const CASES: &[Case] = cases![
    a_pick_comes_with_its_tokens,
    the_first_row_waits_for_its_tokens,
    the_promised_wait_is_exact,
    a_rate_refills_in_parts_of_a_token,
    a_rate_fills_up_to_its_burst,
    a_call_larger_than_the_burst_waits_until_it_is_full_and_leaves_a_debt,
    nobody_overtakes_a_row_that_waits_for_tokens,
    the_longest_of_two_waits_is_told,
    requests_are_counted_apart_from_tokens,
    who_waits_alone_at_an_account_with_rates_gets_one_turn_a_call,
    tokens_at_hand_are_drawn_first,
    tokens_are_lent_ahead_to_who_wants_slots,
    no_tokens_are_lent_ahead_to_who_does_not_ask,
    two_holders_are_lent_half_as_much_ahead,
    what_is_not_kept_is_everybodys,
    what_is_kept_is_not_lent_twice,
    a_draw_beyond_the_part_is_owed,
    a_refund_fills_the_rate_up_to_its_burst_only,
    a_repeated_report_counts_once,
    a_new_incarnation_counts_its_draws_from_nothing,
    what_was_lent_of_a_rate_to_who_is_gone_does_not_come_back,
    what_was_drawn_before_the_account_was_lost_is_not_counted_again,
    what_was_drawn_before_a_holder_was_forgotten_is_not_counted_again,
    what_was_drawn_before_the_first_answer_is_counted,
    a_larger_rate_keeps_what_was_drawn,
    a_smaller_burst_may_leave_a_debt,
    a_rate_that_is_no_more_limits_nobody,
    a_fast_rate_that_was_idle_for_a_year_is_full,
];

const TPS: Limit = Limit::Rate(Rate { amount: 10, window: Millis(1_000), burst: 100 });

fn a_pick_comes_with_its_tokens(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    let said = story.call("a").row_of("/1/t", 1, 30, 1, 0).send();
    assert_eq!((said.picks("/1/t"), said.held(TokensPerSecond), said.level(TokensPerSecond)), (1, 30, 70));
}

fn the_first_row_waits_for_its_tokens(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    story.call("a").row_of("/1/t", 1, 60, 1, 0).send();
    let said = story.call("a").row_of("/1/t", 1, 60, 1, 0).drew(TokensPerSecond, 60, 0).send();
    assert_eq!((said.granted, said.level(TokensPerSecond), said.wait), (1, 40, Some(Millis(2_000))));
}

fn the_promised_wait_is_exact(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, Limit::Rate(Rate::per_second(7, 100)));
    story.call("a").row_of("/1/t", 1, 95, 1, 0).send();
    story.wait(1);
    let said = story.call("a").keep(0).row_of("/1/t", 1, 30, 1, 0).drew(TokensPerSecond, 95, 0).send();
    let wait = said.wait.unwrap().0;
    // 25 tokens of 143 ms less the one that has passed.
    assert_eq!(wait, 3_571);
    story.wait(wait - 1);
    assert_eq!(story.call("a").keep(0).row_of("/1/t", 1, 30, 1, 0).drew(TokensPerSecond, 95, 0).send().granted, 0);
    story.wait(1);
    assert_eq!(story.call("a").keep(0).row_of("/1/t", 1, 30, 1, 0).drew(TokensPerSecond, 95, 0).send().granted, 1);
}

fn a_rate_refills_in_parts_of_a_token(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    story.call("a").row_of("/1/t", 1, 100, 1, 0).send();
    for level in [0, 1, 1, 2] {
        story.wait(50);
        assert_eq!(story.call("a").drew(TokensPerSecond, 100, 0).send().level(TokensPerSecond), level);
    }
}

fn a_rate_fills_up_to_its_burst(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    story.call("a").row_of("/1/t", 1, 100, 1, 0).send();
    story.wait(60_000);
    assert_eq!(story.call("a").drew(TokensPerSecond, 100, 0).send().level(TokensPerSecond), 100);
}

fn a_call_larger_than_the_burst_waits_until_it_is_full_and_leaves_a_debt(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    story.call("a").row_of("/1/t", 1, 10, 1, 0).send();
    let said = story.call("a").keep(0).row_of("/1/t", 1, 250, 1, 0).drew(TokensPerSecond, 10, 0).send();
    assert_eq!((said.granted, said.wait), (0, Some(Millis(1_000))));
    story.wait(1_000);
    let said = story.call("a").keep(0).row_of("/1/t", 1, 250, 1, 0).drew(TokensPerSecond, 10, 0).send();
    assert_eq!((said.granted, said.level(TokensPerSecond)), (1, -150));
}

fn nobody_overtakes_a_row_that_waits_for_tokens(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    story.call("a").row_of("/1/t", 1, 60, 1, 0).send();
    story.call("a").keep(0).row_of("/1/t", 1, 90, 1, 0).drew(TokensPerSecond, 60, 0).send();
    let said = story.call("b").row_of("/2/u", 1, 1, 1, 0).send();
    assert_eq!((said.granted, said.wait), (0, Some(Millis(5_000))));
}

fn the_longest_of_two_waits_is_told(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    story.set_meter(RequestsPerSecond, Limit::Rate(Rate::per_second(1, 1)));
    let ask = story.call("a").drew(TokensPerSecond, 90, 0).drew(RequestsPerSecond, 1, 0);
    assert_eq!(ask.row_of("/1/t", 1, 90, 1, 0).send().wait, Some(Millis(8_000)));
}

fn requests_are_counted_apart_from_tokens(story: &mut Story<'_>) {
    story.set_meter(RequestsPerSecond, Limit::Rate(Rate::per_second(1, 2)));
    for (drawn, level) in [(0, 1), (1, 0)] {
        let said = story.call("a").row_of("/1/t", 1, 1_000_000, 5, 0).drew(RequestsPerSecond, drawn, 0).send();
        assert_eq!((said.held(RequestsPerSecond), said.level(RequestsPerSecond)), (1, level));
    }
    let said = story.call("a").row_of("/1/t", 1, 1_000_000, 5, 0).drew(RequestsPerSecond, 2, 0).send();
    assert_eq!((said.granted, said.wait), (2, Some(Millis(1_000))));
}

fn who_waits_alone_at_an_account_with_rates_gets_one_turn_a_call(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    assert_eq!(story.call("a").row_of("/1/t", 1, 1, 5, 0).send().granted, 1);
    let said = story.call("a").want(3).row_of("/1/t", 1, 1, 5, 0).send();
    // And the slots that it may use ahead.
    assert_eq!((said.granted, said.picks("/1/t")), (3, 1));
}

fn tokens_at_hand_are_drawn_first(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    let said = story.call("a").want(1).ahead().send();
    assert_eq!((said.held(TokensPerSecond), said.level(TokensPerSecond)), (25, 75));
    let said = story.call("a").row_of("/1/t", 1, 40, 1, 0).drew(TokensPerSecond, 0, 25).send();
    assert_eq!((said.held(TokensPerSecond), said.level(TokensPerSecond)), (40, 60));
}

fn tokens_are_lent_ahead_to_who_wants_slots(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    assert_eq!(story.call("a").ahead().send().held(TokensPerSecond), 0);
    assert_eq!(story.call("a").want(1).ahead().send().held(TokensPerSecond), 25);
}

fn no_tokens_are_lent_ahead_to_who_does_not_ask(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    let said = story.call("a").want(1).send();
    assert_eq!((said.held(TokensPerSecond), said.level(TokensPerSecond)), (0, 100));
}

fn two_holders_are_lent_half_as_much_ahead(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    story.call("a").send();
    assert_eq!(story.call("b").want(1).ahead().send().held(TokensPerSecond), 12);
}

fn what_is_not_kept_is_everybodys(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    story.call("a").want(1).ahead().send();
    let said = story.call("a").drew(TokensPerSecond, 5, 8).send();
    assert_eq!((said.held(TokensPerSecond), said.level(TokensPerSecond)), (8, 87));
}

fn what_is_kept_is_not_lent_twice(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    story.call("a").want(1).ahead().send();
    let said = story.call("a").want(1).ahead().drew(TokensPerSecond, 0, 25).send();
    assert_eq!((said.held(TokensPerSecond), said.level(TokensPerSecond)), (25, 75));
}

fn a_draw_beyond_the_part_is_owed(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    story.call("a").want(1).ahead().send();
    let said = story.call("a").drew(TokensPerSecond, 225, 0).send();
    assert_eq!((said.held(TokensPerSecond), said.level(TokensPerSecond)), (0, -125));
}

fn a_refund_fills_the_rate_up_to_its_burst_only(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    story.call("a").drew(TokensPerSecond, 50, 0).send();
    assert_eq!(story.call("a").drew(TokensPerSecond, 20, 0).send().level(TokensPerSecond), 80);
    assert_eq!(story.call("a").drew(TokensPerSecond, -500, 0).send().level(TokensPerSecond), 100);
}

fn a_repeated_report_counts_once(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    for _ in 0..3 {
        assert_eq!(story.call("a").drew(TokensPerSecond, 30, 0).send().level(TokensPerSecond), 70);
    }
}

fn a_new_incarnation_counts_its_draws_from_nothing(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    story.call("a").drew(TokensPerSecond, 30, 0).send();
    story.restart("a");
    assert_eq!(story.call("a").drew(TokensPerSecond, 30, 0).send().level(TokensPerSecond), 40);
}

fn what_was_drawn_before_the_account_was_lost_is_not_counted_again(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    story.call("a").drew(TokensPerSecond, 5_000, 0).send();
    story.lose();
    assert_eq!(story.call("a").drew(TokensPerSecond, 5_010, 0).send().level(TokensPerSecond), 90);
    assert_eq!(story.call("a").drew(TokensPerSecond, 5_030, 0).send().level(TokensPerSecond), 70);
}

fn what_was_drawn_before_a_holder_was_forgotten_is_not_counted_again(story: &mut Story<'_>) {
    const LONG_AGO_MS: u64 = 3_600_000;
    story.set_meter(TokensPerSecond, TPS);
    story.call("a").drew(TokensPerSecond, 5_000, 0).send();
    story.wait(LONG_AGO_MS);
    story.call("b").send();
    assert_eq!(story.call("a").drew(TokensPerSecond, 5_000, 0).send().level(TokensPerSecond), 100);
}

fn what_was_lent_of_a_rate_to_who_is_gone_does_not_come_back(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    assert_eq!(story.call("a").want(1).ahead().send().held(TokensPerSecond), 25);
    story.restart("a");
    let said = story.call("a").send();
    assert_eq!((said.held(TokensPerSecond), said.level(TokensPerSecond)), (0, 75));
}

fn what_was_drawn_before_the_first_answer_is_counted(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    assert_eq!(story.call("a").drew(TokensPerSecond, 30, 0).send().level(TokensPerSecond), 70);
}

fn a_larger_rate_keeps_what_was_drawn(story: &mut Story<'_>) {
    story.set_meter(TokensPerMinute, Limit::Rate(Rate::per_minute(60)));
    story.call("a").drew(TokensPerMinute, 50, 0).send();
    story.set_meter(TokensPerMinute, Limit::Rate(Rate::per_minute(90)));
    assert_eq!(story.call("a").drew(TokensPerMinute, 50, 0).send().level(TokensPerMinute), 40);
}

fn a_smaller_burst_may_leave_a_debt(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    story.call("a").drew(TokensPerSecond, 50, 0).send();
    story.set_meter(TokensPerSecond, Limit::Rate(Rate::per_second(10, 20)));
    assert_eq!(story.call("a").drew(TokensPerSecond, 50, 0).send().level(TokensPerSecond), -30);
}

fn a_rate_that_is_no_more_limits_nobody(story: &mut Story<'_>) {
    story.set_meter(TokensPerSecond, TPS);
    story.call("a").drew(TokensPerSecond, 500, 0).send();
    story.terms.meters.clear();
    let said = story.call("a").row_of("/1/t", 1, 1_000, 1, 0).send();
    assert_eq!((said.granted, said.meters.len()), (1, 0));
}

fn a_fast_rate_that_was_idle_for_a_year_is_full(story: &mut Story<'_>) {
    let most = 10_000_000_000;
    story.set_meter(TokensPerMinute, Limit::Rate(Rate::per_minute(most)));
    story.call("a").drew(TokensPerMinute, 20_000_000_000, 0).send();
    story.wait(365 * 86_400_000);
    let said = story.call("a").unaware().drew(TokensPerMinute, 20_000_000_000, 0).send();
    assert_eq!(said.level(TokensPerMinute), 10_000_000_000);
}
