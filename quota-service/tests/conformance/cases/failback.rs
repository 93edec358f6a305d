//! What happens when a failover is taken back: the server of before answers again, under the run id that it had.

use super::{Case, cases};
use crate::story::{LEASE, LONGEST, Story};
use sluice_policy::units::Millis;

pub(crate) const CASES: &[Case] = cases![
    a_server_that_answers_again_after_another_one_freezes_and_believes_what_holders_assert,
    an_answer_that_was_lost_shows_no_failback,
    what_was_lost_is_lost_once,
    after_a_failback_it_thaws_when_everybody_has_said_what_he_holds,
    a_holder_of_the_other_servers_time_shows_it_too,
    a_holder_that_was_silent_for_long_is_forgotten_in_order,
];

const FREEZE: u64 = LEASE + LONGEST;

/// Two holders of four slots each; then another server has answered nine calls of the first, and lent it all ten slots.
fn come_back(story: &mut Story<'_>) -> Millis {
    story.call("a").want(4).send();
    story.call("b").want(4).send();
    story.wait(100);
    let end = story.now().plus(Millis(FREEZE));
    let said = story.call("a").numbered(10).answered(9, 50).keep(10).send();
    assert_eq!((said.granted, said.frozen_until), (10, Some(end)));
    end
}

fn a_server_that_answers_again_after_another_one_freezes_and_believes_what_holders_assert(story: &mut Story<'_>) {
    come_back(story);
    assert_eq!(story.call("b").numbered(7).answered(6, 50).keep(0).want(4).send().granted, 0);
    assert_eq!(story.call("new").want(4).send().granted, 0);
    // What is given up may move.
    story.call("a").answered(10, 0).keep(9).send();
    assert_eq!(story.call("new").want(4).send().granted, 1);
}

fn an_answer_that_was_lost_shows_no_failback(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    story.call("a").want(6).send();
    let said = story.call("a").answered(1, 50).keep(4).want(10).send();
    assert_eq!((said.granted, said.frozen_until), (10, None));
}

fn what_was_lost_is_lost_once(story: &mut Story<'_>) {
    let end = come_back(story);
    story.wait(100);
    let said = story.call("b").numbered(7).answered(6, 50).keep(0).send();
    assert_eq!(said.frozen_until, Some(end), "it is known already");
}

fn after_a_failback_it_thaws_when_everybody_has_said_what_he_holds(story: &mut Story<'_>) {
    come_back(story);
    story.call("b").numbered(7).answered(6, 50).keep(0).send();
    story.wait(LEASE - 1);
    assert!(story.call("a").answered(10, 0).keep(5).send().frozen_until.is_some());
    story.wait(1);
    assert_eq!(story.call("b").answered(7, 0).want(10).send().granted, 5);
}

fn a_holder_of_the_other_servers_time_shows_it_too(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    let said = story.call("new").numbered(3).answered(2, 50).keep(6).send();
    assert_eq!((said.granted, said.frozen_until), (6, Some(story.now().plus(Millis(FREEZE)))));
}

fn a_holder_that_was_silent_for_long_is_forgotten_in_order(story: &mut Story<'_>) {
    story.call("a").want(4).send();
    let said = story.call("b").numbered(3).answered(2, FREEZE).keep(0).want(6).send();
    assert_eq!((said.granted, said.frozen_until), (6, None));
}
