//! What happens when the server's clock is set.

use super::{Case, cases};
use crate::story::{HOUR, LEASE, LONGEST, Story};

pub(crate) const CASES: &[Case] = cases![
    a_clock_that_jumps_an_hour_ahead_ends_no_lease,
    a_clock_that_jumps_an_hour_back_stops_no_lease_from_ending,
    a_clock_that_jumps_there_and_back_ends_no_lease,
    two_seconds_are_no_jump,
    more_than_two_seconds_are_one,
    who_remembers_no_answer_moves_no_clock_that_slots_depend_on,
    who_remembers_no_answer_believes_the_server_where_nobody_holds_anything,
    zombies_outlast_a_jump_that_a_newcomer_is_the_first_to_see,
    a_holder_that_remembers_sets_the_clock_right_for_others,
    zombies_of_a_clock_that_ran_ahead_come_free_in_time,
    a_stale_call_sets_no_clock,
    a_lost_account_believes_the_server,
    a_rate_refills_by_the_time_that_passed,
    a_call_past_its_deadline_changes_nothing,
    a_call_within_its_deadline_does,
    a_late_answer_and_a_short_round_trip_show_a_jump,
    a_jump_that_another_holder_has_shown_is_set_right_once,
    a_call_that_is_late_beside_a_jump_changes_nothing,
    after_a_whole_fleet_was_down_its_slots_are_free_where_two_clocks_agree,
    a_clock_that_no_other_agrees_with_is_not_believed_by_who_has_heard_nothing,
    a_clock_that_nobody_vouched_for_when_it_was_heard_last_is_not_believed_either,
];

fn a_clock_that_jumps_an_hour_ahead_ends_no_lease(story: &mut Story<'_>) {
    let began = story.now();
    story.call("a").want(4).send();
    story.call("b").send();
    story.wait(500);
    story.jump(HOUR);
    let said = story.call("b").want(10).send();
    assert_eq!((said.granted, said.zombies), (6, 0));
    assert_eq!(said.now, began);
    story.wait(500);
    assert_eq!(story.call("b").send().now.since(began).0, 500);
}

fn a_clock_that_jumps_an_hour_back_stops_no_lease_from_ending(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.call("b").send();
    story.jump(-HOUR);
    assert_eq!(story.call("b").send().zombies, 0);
    story.wait(LEASE);
    assert_eq!(story.call("b").send().zombies, 4);
}

fn a_clock_that_jumps_there_and_back_ends_no_lease(story: &mut Story<'_>) {
    let began = story.now();
    story.call("a").want(4).send();
    for jump in [HOUR, -HOUR, -HOUR, HOUR] {
        story.jump(jump);
        story.wait(1_000);
        assert_eq!(story.call("a").want(4).send().granted, 4);
    }
    assert_eq!(story.call("b").send().now, began);
}

fn two_seconds_are_no_jump(story: &mut Story<'_>) {
    story.call("a").lease(60_000).send();
    let began = story.now();
    story.jump(2_000);
    assert_eq!(story.call("a").send().now.since(began).0, 2_000);
}

fn more_than_two_seconds_are_one(story: &mut Story<'_>) {
    story.call("a").lease(60_000).send();
    let began = story.now();
    story.jump(2_001);
    assert_eq!(story.call("a").send().now, began);
}

fn who_remembers_no_answer_moves_no_clock_that_slots_depend_on(story: &mut Story<'_>) {
    let began = story.now();
    story.call("a").want(4).send();
    story.jump(HOUR);
    let said = story.call("b").send();
    assert_eq!((said.now, said.zombies), (began, 0));
    story.wait(100);
    assert_eq!(story.call("b").send().now.since(began).0, 100);
}

fn who_remembers_no_answer_believes_the_server_where_nobody_holds_anything(story: &mut Story<'_>) {
    story.call("a").send();
    story.jump(HOUR);
    assert_eq!(story.call("b").send().now, story.now());
}

fn zombies_outlast_a_jump_that_a_newcomer_is_the_first_to_see(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.restart("a");
    assert_eq!(story.call("a").send().zombies, 4);
    story.jump(HOUR);
    let said = story.call("b").want(10).send();
    assert_eq!((said.granted, said.zombies), (6, 4));
}

fn a_holder_that_remembers_sets_the_clock_right_for_others(story: &mut Story<'_>) {
    let began = story.now();
    story.call("a").want(4).send();
    story.jump(HOUR);
    story.call("a").want(4).send();
    story.wait(100);
    let said = story.call("b").send();
    assert_eq!((said.now.since(began).0, said.zombies), (100, 0));
}

fn zombies_of_a_clock_that_ran_ahead_come_free_in_time(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.call("c").send();
    story.jump(HOUR);
    story.restart("a");
    assert_eq!(story.call("a").send().zombies, 4);
    assert_eq!(story.call("c").send().zombies, 4);
    story.wait(LONGEST - 1);
    assert_eq!(story.call("c").send().zombies, 4);
    story.wait(1);
    assert_eq!(story.call("c").send().zombies, 0);
}

fn a_stale_call_sets_no_clock(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    let call = story.call("a").hold_back();
    let said = story.deliver(&call).now;
    story.wait(100);
    story.jump(HOUR);
    assert_eq!(story.deliver(&call).now, said);
    story.jump(-HOUR);
    assert_eq!(story.call("a").send().now, story.now());
}

fn a_lost_account_believes_the_server(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.jump(HOUR);
    story.lose();
    assert_eq!(story.call("a").send().now, story.now());
}

fn a_rate_refills_by_the_time_that_passed(story: &mut Story<'_>) {
    use sluice_policy::bucket::Rate;
    use sluice_policy::ledger::{Limit, MeterName::TokensPerSecond};
    story.set_meter(TokensPerSecond, Limit::Rate(Rate::per_second(10, 100)));
    assert_eq!(story.call("a").row_of("/1/t", 1, 100, 1, 0).send().level(TokensPerSecond), 0);
    for (jump, level) in [(HOUR, 10), (-HOUR, 20)] {
        story.jump(jump);
        story.call("a").drew(TokensPerSecond, 100, 0).send();
        story.wait(1_000);
        assert_eq!(story.call("a").drew(TokensPerSecond, 100, 0).send().level(TokensPerSecond), level);
    }
}

fn a_call_past_its_deadline_changes_nothing(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    let call = story.call("a").patience(500).keep(1).hold_back();
    story.wait(1_001);
    let said = story.deliver(&call);
    assert_eq!((said.late, said.now, said.seq), (true, story.now(), call.seq));
    // Its lease was not renewed, and it has given nothing back.
    story.wait(LEASE - 1_001);
    let said = story.call("b").want(9).send();
    assert_eq!((said.granted, said.zombies), (6, 4));
    // Its number was not used up.
    let again = story.call("a").patience(500).keep(1).hold_back();
    assert!(!story.deliver(&again).late);
}

fn a_call_within_its_deadline_does(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    let call = story.call("a").patience(500).keep(1).hold_back();
    story.wait(1_000);
    let said = story.deliver(&call);
    assert_eq!((said.late, said.granted, said.now), (false, 1, story.now()));
}

fn a_late_answer_and_a_short_round_trip_show_a_jump(story: &mut Story<'_>) {
    let began = story.now();
    story.call("a").want(4).send();
    story.jump(HOUR);
    assert!(story.call("a").patience(500).send().late);
    story.wait(10);
    let said = story.call("a").patience(500).jump(3_599_990).send();
    assert_eq!((said.late, said.granted, said.now.since(began).0), (false, 4, 20));
}

fn a_jump_that_another_holder_has_shown_is_set_right_once(story: &mut Story<'_>) {
    let began = story.now();
    story.call("a").want(4).send();
    story.call("b").want(1).send();
    story.jump(HOUR);
    assert!(story.call("a").patience(500).send().late);
    assert!(story.call("b").patience(500).send().late);
    story.wait(10);
    story.call("a").patience(500).jump(3_600_000).send();
    let said = story.call("b").patience(500).jump(3_600_000).send();
    assert_eq!((said.granted, said.now.since(began).0), (1, 10));
}

fn a_call_that_is_late_beside_a_jump_changes_nothing(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.jump(HOUR);
    let call = story.call("a").patience(500).jump(3_600_000).keep(0).hold_back();
    story.wait(1_001);
    assert!(story.deliver(&call).late);
}

fn after_a_whole_fleet_was_down_its_slots_are_free_where_two_clocks_agree(story: &mut Story<'_>) {
    story.call("a").by_the_clock().want(10).send();
    story.restart("a");
    story.wait(3_600_000);
    let said = story.call("a").by_the_clock().want(10).send();
    assert_eq!((said.granted, said.zombies), (10, 0));
}

fn a_clock_that_no_other_agrees_with_is_not_believed_by_who_has_heard_nothing(story: &mut Story<'_>) {
    story.call("a").by_the_clock().want(10).send();
    story.restart("a");
    // The server's own, set by an hour.
    story.jump(HOUR);
    assert_eq!(story.call("a").by_the_clock().want(10).send().zombies, 10);
}

fn a_clock_that_nobody_vouched_for_when_it_was_heard_last_is_not_believed_either(story: &mut Story<'_>) {
    story.call("a").want(10).send();
    story.restart("a");
    story.wait(3_600_000);
    assert_eq!(story.call("a").by_the_clock().want(10).send().zombies, 10);
}
