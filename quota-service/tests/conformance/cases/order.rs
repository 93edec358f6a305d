//! Whose turn it is. Slots come free one at a time at a holder that nobody waits at.

use super::{Case, cases};
use crate::story::{Story, picks};
use sluice_policy::queue::SharePolicy;

pub(crate) const CASES: &[Case] = cases![
    p0_goes_first_under_hybrid,
    p0_goes_by_its_weight_under_wfq,
    the_better_level_goes_first_under_strict,
    levels_share_by_weight,
    p0_leaves_no_debt_to_the_other_levels_under_hybrid,
    p0_that_waits_holds_no_virtual_time_back_under_hybrid,
    tenants_of_a_level_take_turns,
    a_tenant_with_weight_gets_more,
    groups_share_before_levels,
    p0_of_any_group_goes_before_the_others,
    a_group_without_a_share_has_one,
    the_first_by_its_bytes_goes_first_of_equal_tenants,
    the_first_by_its_bytes_goes_first_of_equal_groups,
    the_better_level_goes_first_of_equal_ones,
    who_has_waited_longest_goes_first_of_one_flow,
    the_first_by_its_bytes_goes_first_of_equal_holders,
    holders_of_one_flow_take_turns,
    heads_count_what_they_will_be_charged,
    a_tenant_that_was_charged_waits_for_the_others,
    a_correction_gives_the_turn_back,
    a_repeated_charge_counts_once,
    a_charge_that_was_not_acknowledged_counts_all_the_same,
    the_told_charge_replaces_that_of_the_pick,
    picks_of_a_tenant_at_two_levels_are_taken_back_in_the_order_of_the_levels,
    a_tenant_that_wakes_claims_nothing_of_the_past,
    a_level_that_wakes_claims_nothing_of_the_past,
    a_group_that_wakes_claims_nothing_of_the_past,
    a_charge_beyond_all_reason_counts_as_a_large_one,
    an_hour_of_idleness_keeps_what_was_had,
    who_waits_alone_is_served_in_its_own_order,
    who_waits_alone_is_served_in_its_own_order_once_a_call,
    a_first_row_that_has_all_its_slots_gets_no_more,
];

/// Who gets the next slots. One holder has them all and gives them up one by one; every row waits at a holder of its
/// own, since a holder that waits alone is served in its own order.
fn turns(story: &mut Story<'_>, slots: u32, rows: &[(&'static str, u64, u64)]) -> Vec<&'static str> {
    let waiters: Vec<String> = (0..rows.len()).map(|row| format!("waiter-{row}")).collect();
    story.call("filler").want(10).send();
    let mut turns = Vec::new();
    for _ in 0..slots {
        for (waiter, (flow, weight, head)) in waiters.iter().zip(rows) {
            assert_eq!(story.call(waiter).row_of(flow, *weight, *head, 1, 0).send().granted, 0);
        }
        let said = story.call("filler").keep(9).send();
        let winner = waiters.iter().position(|waiter| said.notified() == [waiter]).unwrap();
        let (flow, weight, head) = rows[winner];
        assert_eq!(picks(said.notice(&waiters[winner]), flow), 1);
        turns.push(flow);
        // The others leave. The call starts, ends, and is told of; its slot goes back to where all are.
        for waiter in waiters.iter().filter(|waiter| **waiter != waiters[winner]) {
            story.call(waiter).send();
        }
        story.call(&waiters[winner]).keep(0).spent_by(weight, flow, i64::try_from(head).unwrap()).send();
        assert_eq!(story.call("filler").want(10).send().granted, 10);
    }
    turns
}

/// One holder has all slots, and somebody waits whose turn it is last.
fn begin_with_a_bystander(story: &mut Story<'_>) {
    story.terms.policy = SharePolicy::Strict;
    story.call("filler").want(10).send();
    story.call("bystander").row("/9/z", 1).send();
}

fn share(turns: &[&str], flow: &str) -> usize {
    turns.iter().filter(|turn| **turn == flow).count()
}

fn p0_goes_first_under_hybrid(story: &mut Story<'_>) {
    let turns = turns(story, 4, &[("/1/t", 1, 100), ("/0/u", 1, 100)]);
    assert_eq!(turns, ["/0/u"; 4]);
}

fn p0_goes_by_its_weight_under_wfq(story: &mut Story<'_>) {
    story.terms.policy = SharePolicy::Wfq;
    let turns = turns(story, 9, &[("/1/t", 1, 100), ("/0/u", 1, 100)]);
    assert_eq!((share(&turns, "/0/u"), share(&turns, "/1/t")), (6, 3));
}

fn the_better_level_goes_first_under_strict(story: &mut Story<'_>) {
    story.terms.policy = SharePolicy::Strict;
    let turns = turns(story, 4, &[("/3/t", 1, 100), ("/2/u", 1, 100)]);
    assert_eq!(turns, ["/2/u"; 4]);
}

fn levels_share_by_weight(story: &mut Story<'_>) {
    let turns = turns(story, 14, &[("/1/t", 1, 100), ("/2/u", 1, 100), ("/3/v", 1, 100)]);
    assert_eq!((share(&turns, "/1/t"), share(&turns, "/2/u"), share(&turns, "/3/v")), (8, 4, 2));
}

fn p0_leaves_no_debt_to_the_other_levels_under_hybrid(story: &mut Story<'_>) {
    turns(story, 5, &[("/0/t", 1, 1_000), ("/1/u", 1, 100), ("/2/v", 1, 100)]);
    let turns = turns(story, 6, &[("/1/u", 1, 100), ("/2/v", 1, 100)]);
    assert_eq!((share(&turns, "/1/u"), share(&turns, "/2/v")), (4, 2));
}

fn p0_that_waits_holds_no_virtual_time_back_under_hybrid(story: &mut Story<'_>) {
    story.call("filler").want(10).send();
    story.call("urgent").row("/0/z", 1).send();
    story.call("a").spent("/1/t", 1_000).send();
    story.call("a").row("/1/t", 1).spent("/1/t", 1_000).send();
    // P2 wakes where P1 stood before its last charge; its own takes it beyond P1.
    story.call("b").row("/2/u", 1).spent("/2/u", 600).send();
    assert_eq!(story.call("filler").keep(8).send().notified(), ["a", "urgent"]);
}

fn tenants_of_a_level_take_turns(story: &mut Story<'_>) {
    let turns = turns(story, 4, &[("/1/t", 1, 100), ("/1/u", 1, 100)]);
    assert_eq!(turns, ["/1/t", "/1/u", "/1/t", "/1/u"]);
}

fn a_tenant_with_weight_gets_more(story: &mut Story<'_>) {
    let turns = turns(story, 8, &[("/1/t", 1, 100), ("/1/u", 3, 100)]);
    assert_eq!((share(&turns, "/1/t"), share(&turns, "/1/u")), (2, 6));
}

fn groups_share_before_levels(story: &mut Story<'_>) {
    story.terms.groups = [("red".into(), 3), ("blue".into(), 1)].into();
    let turns = turns(story, 8, &[("blue/1/t", 1, 100), ("red/9/u", 1, 100)]);
    assert_eq!((share(&turns, "blue/1/t"), share(&turns, "red/9/u")), (2, 6));
}

fn p0_of_any_group_goes_before_the_others(story: &mut Story<'_>) {
    story.terms.groups = [("red".into(), 9), ("blue".into(), 1)].into();
    let turns = turns(story, 3, &[("red/1/t", 1, 100), ("blue/0/u", 1, 100)]);
    assert_eq!(turns, ["blue/0/u"; 3]);
}

fn a_group_without_a_share_has_one(story: &mut Story<'_>) {
    story.terms.groups = [("red".into(), 2)].into();
    let turns = turns(story, 6, &[("blue/1/t", 1, 100), ("red/1/u", 1, 100)]);
    assert_eq!((share(&turns, "blue/1/t"), share(&turns, "red/1/u")), (2, 4));
}

fn the_first_by_its_bytes_goes_first_of_equal_tenants(story: &mut Story<'_>) {
    assert_eq!(turns(story, 1, &[("/1/a-2", 1, 1), ("/1/a.1", 1, 1), ("/1/Z", 1, 1), ("/1/a", 1, 1)]), ["/1/Z"]);
}

fn the_first_by_its_bytes_goes_first_of_equal_groups(story: &mut Story<'_>) {
    assert_eq!(turns(story, 1, &[("a/1/t", 1, 1), ("Z/2/t", 1, 1), ("_/1/t", 1, 1)]), ["Z/2/t"]);
}

fn the_better_level_goes_first_of_equal_ones(story: &mut Story<'_>) {
    assert_eq!(turns(story, 1, &[("/5/t", 1, 1), ("/4/t", 1, 1), ("/6/t", 1, 1)]), ["/4/t"]);
}

fn who_has_waited_longest_goes_first_of_one_flow(story: &mut Story<'_>) {
    story.call("filler").want(10).send();
    story.call("a").row_of("/1/t", 1, 1, 1, 50).send();
    story.wait(20);
    story.call("b").row_of("/1/t", 1, 1, 1, 80).send();
    assert_eq!(story.call("filler").keep(9).send().notified(), ["b"]);
    assert_eq!(story.call("filler").keep(8).send().notified(), ["a"]);
}

fn the_first_by_its_bytes_goes_first_of_equal_holders(story: &mut Story<'_>) {
    story.call("filler").want(10).send();
    for holder in ["gate-a", "gate.a", "Gate-b", "gate"] {
        story.call(holder).row("/1/t", 1).send();
    }
    assert_eq!(story.call("filler").keep(9).send().notified(), ["Gate-b"]);
    assert_eq!(story.call("filler").keep(8).send().notified(), ["gate"]);
    assert_eq!(story.call("filler").keep(7).send().notified(), ["gate-a"]);
}

fn holders_of_one_flow_take_turns(story: &mut Story<'_>) {
    story.call("filler").want(10).send();
    story.call("a").row_of("/1/t", 1, 1, 3, 90).send();
    story.call("b").row_of("/1/t", 1, 1, 3, 80).send();
    for (keep, holder) in [(9, "a"), (8, "b"), (7, "a"), (6, "b")] {
        story.wait(1);
        assert_eq!(story.call("filler").keep(keep).send().notified(), [holder]);
    }
}

fn heads_count_what_they_will_be_charged(story: &mut Story<'_>) {
    let turns = turns(story, 8, &[("/1/t", 1, 300), ("/1/u", 1, 100)]);
    assert_eq!((share(&turns, "/1/t"), share(&turns, "/1/u")), (2, 6));
}

fn a_tenant_that_was_charged_waits_for_the_others(story: &mut Story<'_>) {
    begin_with_a_bystander(story);
    story.call("a").row("/1/t", 1).row("/1/u", 1).spent("/1/t", 500).send();
    assert_eq!(picks(story.call("filler").keep(9).send().notice("a"), "/1/u"), 1);
}

fn a_correction_gives_the_turn_back(story: &mut Story<'_>) {
    begin_with_a_bystander(story);
    story.call("a").row("/1/t", 1).row("/1/u", 1).spent("/1/t", 500).spent("/1/u", 100).send();
    story.call("a").row("/1/t", 1).row("/1/u", 1).spent("/1/t", -450).send();
    let said = story.call("filler").keep(9).send();
    assert_eq!(picks(said.notice("a"), "/1/t"), 1);
}

fn a_repeated_charge_counts_once(story: &mut Story<'_>) {
    begin_with_a_bystander(story);
    story.call("a").row("/1/t", 1).row("/1/u", 1).send();
    story.call("a").row("/1/t", 1).row("/1/u", 1).spent("/1/t", 100).spent("/1/u", 150).send();
    story.call("a").row("/1/t", 1).row("/1/u", 1).spent_at(2, "/1/t", 100).send();
    assert_eq!(picks(story.call("filler").keep(9).send().notice("a"), "/1/t"), 1);
}

fn a_charge_that_was_not_acknowledged_counts_all_the_same(story: &mut Story<'_>) {
    begin_with_a_bystander(story);
    story.call("a").row("/1/t", 1).row("/1/u", 1).send();
    // The call of number 2 was lost on the way.
    story.call("a").spent("/1/t", 100).hold_back();
    story.call("a").row("/1/t", 1).row("/1/u", 1).spent_at(2, "/1/t", 100).send();
    let said = story.call("filler").keep(9).send();
    assert_eq!(picks(said.notice("a"), "/1/u"), 1);
}

fn the_told_charge_replaces_that_of_the_pick(story: &mut Story<'_>) {
    begin_with_a_bystander(story);
    story.call("a").row_of("/1/t", 1, 1_000, 1, 0).row_of("/1/u", 1, 100, 1, 0).send();
    story.call("filler").keep(9).send();
    // It cost ten instead of a thousand.
    story.call("a").row_of("/1/t", 1, 100, 1, 0).row_of("/1/u", 1, 100, 1, 0).spent("/1/t", 10).send();
    for (keep, flow) in [(8, "/1/u"), (7, "/1/t")] {
        let said = story.call("filler").keep(keep).send();
        assert_eq!(picks(said.notice("a"), flow), 1);
    }
}

/// What a level is given back counts at the better one as long as that has a counter. So the better one's pick, which was
/// all that it had, is taken back first, and the level keeps what the other pick had added.
fn picks_of_a_tenant_at_two_levels_are_taken_back_in_the_order_of_the_levels(story: &mut Story<'_>) {
    // Names whose picks Lua's tables have in the other order.
    let tenants = [("theta", 1, 6), ("gamma", 2, 7), ("eta", 3, 8), ("mu", 4, 9)];
    for (tenant, better, worse) in tenants {
        let (better, worse) = (format!("/{better}/{tenant}"), format!("/{worse}/{tenant}"));
        let said = story.call("a").row_of(&better, 1, 1, 1, 0).row_of(&worse, 1, 900, 1, 0).send();
        assert_eq!((said.picks(&better), said.picks(&worse)), (1, 1));
        story.call("a").keep(0).send();
    }
    // Had one of the four better levels been given back more, it would stand where P5 does, and go before it.
    story.call("filler").want(10).send();
    for (waiter, flow) in [("b", "/1/x"), ("c", "/2/y"), ("d", "/3/z"), ("e", "/4/v"), ("f", "/5/w")] {
        story.call(waiter).row(flow, 1).send();
    }
    assert_eq!(story.call("filler").keep(9).send().notified(), ["f"]);
}

fn a_tenant_that_wakes_claims_nothing_of_the_past(story: &mut Story<'_>) {
    turns(story, 6, &[("/1/t", 1, 100), ("/1/u", 1, 100)]);
    let turns = turns(story, 6, &[("/1/t", 1, 100), ("/1/z", 1, 100)]);
    assert_eq!((share(&turns, "/1/t"), share(&turns, "/1/z")), (3, 3));
}

fn a_level_that_wakes_claims_nothing_of_the_past(story: &mut Story<'_>) {
    turns(story, 6, &[("/1/t", 1, 100), ("/1/u", 1, 100)]);
    let turns = turns(story, 6, &[("/1/t", 1, 100), ("/2/new", 1, 100)]);
    assert_eq!((share(&turns, "/1/t"), share(&turns, "/2/new")), (4, 2));
}

fn a_group_that_wakes_claims_nothing_of_the_past(story: &mut Story<'_>) {
    turns(story, 6, &[("red/1/t", 1, 100), ("red/1/u", 1, 100)]);
    let turns = turns(story, 6, &[("red/1/t", 1, 100), ("white/1/z", 1, 100)]);
    assert_eq!((share(&turns, "red/1/t"), share(&turns, "white/1/z")), (3, 3));
}

fn a_charge_beyond_all_reason_counts_as_a_large_one(story: &mut Story<'_>) {
    begin_with_a_bystander(story);
    let most = 1 << 30;
    story.call("a").row("/1/t", 1).row("/1/u", 1).send();
    story.call("a").row("/1/t", 1).row("/1/u", 1).spent("/1/t", most * 4).spent("/1/u", most).spent("/1/u", 1).send();
    let said = story.call("filler").keep(9).send();
    assert_eq!(picks(said.notice("a"), "/1/t"), 1);
}

fn an_hour_of_idleness_keeps_what_was_had(story: &mut Story<'_>) {
    turns(story, 1, &[("/1/t", 1, 100), ("/1/u", 1, 100)]);
    // Meanwhile counters are swept: that of the flow that was served is ahead, the other one's says nothing.
    story.wait(3_600_000);
    assert_eq!(turns(story, 2, &[("/1/t", 1, 100), ("/1/u", 1, 100)]), ["/1/u", "/1/t"]);
}

fn who_waits_alone_is_served_in_its_own_order(story: &mut Story<'_>) {
    story.call("filler").want(10).send();
    story.call("a").row("/2/t", 1).row("/0/u", 1).send();
    assert_eq!(picks(story.call("filler").keep(9).send().notice("a"), "/2/t"), 1);
}

fn who_waits_alone_is_served_in_its_own_order_once_a_call(story: &mut Story<'_>) {
    story.call("filler").want(10).send();
    story.call("a").row("/2/t", 2).row("/0/u", 2).send();
    let said = story.call("filler").keep(7).send();
    assert_eq!((picks(said.notice("a"), "/2/t"), picks(said.notice("a"), "/0/u")), (1, 2));
}

fn a_first_row_that_has_all_its_slots_gets_no_more(story: &mut Story<'_>) {
    story.call("filler").want(10).send();
    story.call("a").row("/2/t", 1).row("/3/u", 1).send();
    for (keep, flow) in [(9, "/2/t"), (8, "/3/u")] {
        let said = story.call("filler").keep(keep).send();
        assert_eq!((said.notice("a").picks.len(), picks(said.notice("a"), flow)), (10 - keep as usize, 1));
    }
}
