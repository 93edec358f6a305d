//! Budgets: a day's or a month's, and what happens when one turns.

use super::{Case, cases};
use crate::story::{LEASE, LONGEST, Story};
use sluice_policy::ledger::Limit;
use sluice_policy::ledger::MeterName::{MoneyPerDay, TokensPerDay, TokensPerMonth};

pub(crate) const CASES: &[Case] = cases![
    a_budget_gives_nothing_beyond_it,
    time_brings_a_budget_nothing,
    a_later_period_begins_full,
    a_debt_ends_with_its_period,
    an_earlier_period_that_is_told_late_changes_nothing,
    a_refund_of_an_earlier_period_does_not_come_back,
    what_was_lent_of_an_earlier_period_is_worth_nothing,
    what_a_forgotten_holder_drew_is_not_drawn_again,
    what_a_forgotten_holder_was_lent_comes_back,
    what_a_new_incarnation_was_lent_before_comes_back,
    a_stale_call_forgets_nobody,
    what_was_lent_of_a_limit_that_is_no_more_is_worth_nothing,
    what_a_forgotten_holder_had_not_told_is_drawn_when_it_is_back,
    nobody_is_forgotten_by_a_server_that_knows_what_was_long_ago,
    what_holders_drew_before_a_loss_is_lost_with_it,
    a_larger_budget_keeps_what_was_drawn,
    a_budget_is_lent_ahead_too,
    a_call_draws_of_every_budget_or_of_none,
    a_call_draws_its_money_beside_its_tokens,
    who_costs_nothing_passes_an_empty_purse,
    a_day_that_has_begun_nowhere_changes_nothing,
    a_day_of_the_future_counts_where_nobody_knows_better_and_its_draws_are_those_of_today,
];

const FIRST: u64 = 20_260_131;
const NEXT: u64 = 20_260_201;

fn day(amount: u64, period: u64) -> Limit {
    Limit::Budget { amount, period }
}

fn a_budget_gives_nothing_beyond_it(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, day(100, FIRST));
    let said = story.call("a").row_of("/1/t", 1, 60, 2, 0).send();
    assert_eq!((said.granted, said.level(TokensPerDay), said.wait), (1, 40, None));
    // More than there ever is: not even a full budget goes into debt.
    let said = story.call("b").row_of("/1/u", 1, 101, 1, 0).send();
    assert_eq!(said.granted, 0);
}

fn time_brings_a_budget_nothing(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, day(100, FIRST));
    story.call("a").drew_in(FIRST, TokensPerDay, 70, 0).send();
    story.wait(86_400_000);
    assert_eq!(story.call("a").unaware().drew_in(FIRST, TokensPerDay, 70, 0).send().level(TokensPerDay), 30);
}

fn a_later_period_begins_full(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, day(100, FIRST));
    story.call("a").drew_in(FIRST, TokensPerDay, 70, 0).send();
    story.set_meter(TokensPerDay, day(100, NEXT));
    let said = story.call("a").drew_in(FIRST, TokensPerDay, 70, 0).send();
    assert_eq!((said.level(TokensPerDay), said.meters[&TokensPerDay].period), (100, NEXT));
}

fn a_debt_ends_with_its_period(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, day(100, FIRST));
    assert_eq!(story.call("a").drew_in(FIRST, TokensPerDay, 170, 0).send().level(TokensPerDay), -70);
    story.set_meter(TokensPerDay, day(100, NEXT));
    assert_eq!(story.call("a").drew_in(FIRST, TokensPerDay, 170, 0).send().level(TokensPerDay), 100);
}

fn an_earlier_period_that_is_told_late_changes_nothing(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, day(100, NEXT));
    story.call("a").drew_in(NEXT, TokensPerDay, 30, 0).send();
    // A holder whose clock is behind.
    story.set_meter(TokensPerDay, day(100, FIRST));
    let said = story.call("b").drew_in(FIRST, TokensPerDay, 0, 0).send();
    assert_eq!((said.level(TokensPerDay), said.meters[&TokensPerDay].period), (70, NEXT));
}

fn a_refund_of_an_earlier_period_does_not_come_back(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, day(100, FIRST));
    story.call("a").drew_in(FIRST, TokensPerDay, 70, 0).send();
    story.set_meter(TokensPerDay, day(100, NEXT));
    story.call("a").drew_in(FIRST, TokensPerDay, 80, 0).send();
    story.call("a").drew_in(NEXT, TokensPerDay, 90, 0).send();
    assert_eq!(story.call("a").drew_in(FIRST, TokensPerDay, 40, 0).send().level(TokensPerDay), 90);
}

fn what_was_lent_of_an_earlier_period_is_worth_nothing(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, day(100, FIRST));
    assert_eq!(story.call("a").want(1).ahead().send().held(TokensPerDay), 25);
    story.set_meter(TokensPerDay, day(100, NEXT));
    story.call("b").send();
    let said = story.call("a").drew_in(NEXT, TokensPerDay, 0, 25).send();
    assert_eq!((said.held(TokensPerDay), said.level(TokensPerDay)), (0, 100));
}

fn what_a_forgotten_holder_drew_is_not_drawn_again(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, Limit::Budget { amount: 100, period: 1 });
    story.call("a").send();
    story.call("b").send();
    assert_eq!(story.call("a").drew_in(1, TokensPerDay, 30, 0).send().level(TokensPerDay), 70);
    story.wait(LEASE + LONGEST);
    story.call("b").send();
    assert_eq!(story.call("a").drew_in(1, TokensPerDay, 30, 0).send().level(TokensPerDay), 70);
    assert_eq!(story.call("a").drew_in(1, TokensPerDay, 40, 0).send().level(TokensPerDay), 60);
}

fn what_a_forgotten_holder_was_lent_comes_back(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, day(100, FIRST));
    assert_eq!(story.call("a").want(1).ahead().send().held(TokensPerDay), 25);
    story.call("b").send();
    story.wait(LEASE + LONGEST - 1);
    assert_eq!(story.call("b").send().level(TokensPerDay), 75);
    story.wait(1);
    assert_eq!(story.call("b").send().level(TokensPerDay), 100);
}

fn what_a_new_incarnation_was_lent_before_comes_back(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, day(100, FIRST));
    assert_eq!(story.call("a").want(1).ahead().send().held(TokensPerDay), 25);
    story.restart("a");
    let said = story.call("a").send();
    assert_eq!((said.held(TokensPerDay), said.level(TokensPerDay)), (0, 100));
}

fn a_stale_call_forgets_nobody(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, day(100, FIRST));
    story.call("a").want(1).ahead().send();
    let late = story.call("c").hold_back();
    story.call("c").send();
    story.call("b").send();
    story.wait(LEASE + LONGEST);
    assert_eq!(story.deliver(&late).level(TokensPerDay), 75);
    assert_eq!(story.call("b").send().level(TokensPerDay), 100);
}

fn what_was_lent_of_a_limit_that_is_no_more_is_worth_nothing(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, day(100, FIRST));
    assert_eq!(story.call("a").want(1).ahead().send().held(TokensPerDay), 25);
    story.terms.meters.clear();
    story.call("b").send();
    story.set_meter(TokensPerDay, day(100, FIRST));
    assert_eq!(story.call("b").drew_in(FIRST, TokensPerDay, 40, 0).send().level(TokensPerDay), 60);
    story.restart("a");
    assert_eq!(story.call("a").send().level(TokensPerDay), 60);
}

fn what_a_forgotten_holder_had_not_told_is_drawn_when_it_is_back(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, day(100, FIRST));
    story.call("a").drew_in(FIRST, TokensPerDay, 30, 0).send();
    story.wait(LEASE + LONGEST);
    story.call("b").send();
    assert_eq!(story.call("a").drew_in(FIRST, TokensPerDay, 45, 0).send().level(TokensPerDay), 55);
}

fn nobody_is_forgotten_by_a_server_that_knows_what_was_long_ago(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, day(100, FIRST));
    story.call("a").drew_in(FIRST, TokensPerDay, 30, 0).send();
    story.call("b").send();
    story.wait(LEASE + LONGEST);
    story.fail_over();
    story.call("b").send();
    // The server before was told of ten more, and has answered.
    let mut back = story.call("a").drew_in(FIRST, TokensPerDay, 45, 0).hold_back();
    back.meters.get_mut(&TokensPerDay).unwrap().counted = 40;
    assert_eq!(story.deliver(&back).level(TokensPerDay), 55);
}

fn what_holders_drew_before_a_loss_is_lost_with_it(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, Limit::Budget { amount: 100, period: 1 });
    story.call("a").drew_in(1, TokensPerDay, 30, 0).send();
    story.lose();
    assert_eq!(story.call("a").drew_in(1, TokensPerDay, 30, 0).send().level(TokensPerDay), 100);
    assert_eq!(story.call("a").drew_in(1, TokensPerDay, 40, 0).send().level(TokensPerDay), 90);
}

fn a_larger_budget_keeps_what_was_drawn(story: &mut Story<'_>) {
    story.set_meter(TokensPerMonth, day(100, FIRST));
    story.call("a").drew_in(FIRST, TokensPerMonth, 70, 0).send();
    story.set_meter(TokensPerMonth, day(1_000, FIRST));
    assert_eq!(story.call("a").drew_in(FIRST, TokensPerMonth, 70, 0).send().level(TokensPerMonth), 930);
}

fn a_budget_is_lent_ahead_too(story: &mut Story<'_>) {
    story.set_meter(TokensPerMonth, day(1_000, FIRST));
    let said = story.call("a").want(1).ahead().send();
    assert_eq!((said.held(TokensPerMonth), said.level(TokensPerMonth)), (250, 750));
}

fn a_call_draws_of_every_budget_or_of_none(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, day(100, FIRST));
    story.set_meter(TokensPerMonth, day(50, FIRST));
    let said = story.call("a").row_of("/1/t", 1, 60, 1, 0).send();
    assert_eq!((said.granted, said.level(TokensPerDay), said.level(TokensPerMonth)), (0, 100, 50));
}

fn a_call_draws_its_money_beside_its_tokens(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, day(1_000, FIRST));
    story.set_meter(MoneyPerDay, day(500, FIRST));
    let said = story.call("a").row_of("/1/t", 1, 60, 3, 0).costing(200).send();
    // The tokens would do for all three.
    assert_eq!((said.granted, said.level(TokensPerDay), said.level(MoneyPerDay)), (1, 940, 300));
    let said = story.call("b").row_of("/1/u", 1, 60, 1, 0).costing(301).send();
    assert_eq!((said.granted, said.level(TokensPerDay), said.level(MoneyPerDay)), (0, 940, 300));
}

fn who_costs_nothing_passes_an_empty_purse(story: &mut Story<'_>) {
    story.set_meter(MoneyPerDay, day(100, FIRST));
    let said = story.call("a").drew_in(FIRST, MoneyPerDay, 100, 0).row_of("/1/t", 1, 60, 1, 0).send();
    assert_eq!((said.granted, said.level(MoneyPerDay)), (1, 0));
}

/// When stories begin, 2026-09-21, and a year later, by a clock that is ahead.
const TODAY: u64 = 20_260_921;
const AHEAD: u64 = 20_270_921;

fn a_day_that_has_begun_nowhere_changes_nothing(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, day(100, TODAY));
    story.call("a").drew_in(TODAY, TokensPerDay, 30, 0).send();
    story.set_meter(TokensPerDay, day(100, AHEAD));
    let said = story.call("ahead").drew_in(AHEAD, TokensPerDay, 0, 0).send();
    assert_eq!((said.level(TokensPerDay), said.meters[&TokensPerDay].period), (70, TODAY));
    // It has heard which day it is.
    assert_eq!(story.call("ahead").drew_in(TODAY, TokensPerDay, 20, 0).send().level(TokensPerDay), 50);
    // In the east it may be tomorrow.
    story.set_meter(TokensPerDay, day(100, TODAY + 1));
    assert_eq!(story.call("a").send().level(TokensPerDay), 100);
}

fn a_day_of_the_future_counts_where_nobody_knows_better_and_its_draws_are_those_of_today(story: &mut Story<'_>) {
    story.set_meter(TokensPerDay, day(100, AHEAD));
    story.call("ahead").drew_in(AHEAD, TokensPerDay, 30, 0).send();
    story.set_meter(TokensPerDay, day(100, TODAY));
    let said = story.call("b").send();
    assert_eq!((said.level(TokensPerDay), said.meters[&TokensPerDay].period), (70, TODAY));
}
