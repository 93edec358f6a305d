//! From the head of a reply to its settlement.

use super::*;

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("content-type", "text/event-stream");
const OK: (&str, &str) = (":status", "200");
const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}"#;
const CONTENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n";

#[test]
fn a_complete_reply_settles_what_it_reports_once() {
    let mut world = World::closed();
    world.admitted(BODY);
    world.reply_headers(&[OK, JSON]);
    assert_eq!(world.reply_body(USAGE, false), Passage::Unchanged);
    assert!(world.settlements().is_empty());
    world.reply_body("", true);
    assert_eq!(world.settled(), (Outcome::Completed, UsageSource::Reported, 7, 3));
    world.reply_body("", true);
    world.abandoned(Ended::ByClient);
    assert!(world.settlements().is_empty());
}

#[test]
fn every_call_that_went_upstream_tells_whom_to_charge_should_the_service_have_forgotten_it() {
    let mut world = World::closed();
    world.admitted(BODY);
    world.reply_headers(&[OK, JSON]);
    world.reply_body(USAGE, true);
    assert_eq!(world.settlements().first().and_then(|entry| entry.charge_to.clone()), Some(dept_a()));
}

#[test]
fn the_reply_tells_its_limits_and_none_of_the_upstream_s_own_tags() {
    let mut world = World::closed();
    let request = world.admitted(BODY);
    let forged = [("x-pool", "theirs"), ("X_Sluice_Reason", "theirs"), ("content-length", "5")];
    let edits = world.reply_headers(&[&[OK, JSON][..], &forged].concat());
    assert!(has_removed(&edits, "x-pool") && has_removed(&edits, "X_Sluice_Reason"));
    assert!(!has_removed(&edits, "content-length"));
    assert!(has_set(&edits, "x-admission-id", request.id.as_str()));
    assert!(has_set(&edits, "x-queue-wait-ms", "42"));
    assert!(has_set(&edits, "x-ratelimit-remaining-requests", "4"));
    assert!(has_set(&edits, "x-ratelimit-reset-requests", "200ms"));
}

#[test]
fn a_reply_without_usage_is_estimated_and_counted() {
    let mut world = World::closed();
    world.admitted(BODY);
    world.reply_headers(&[OK, JSON]);
    world.reply_body("{\"content\": \"12345\"}", true);
    assert_eq!(world.settled(), (Outcome::Completed, UsageSource::Estimated, 6, 2));
    assert_eq!(world.worker.counters.usage_estimated, 1);
}

#[test]
fn an_error_of_the_upstream_costs_nothing() {
    let mut world = World::closed();
    world.admitted(BODY);
    world.reply_headers(&[(":status", "500"), JSON]);
    world.reply_body("{\"error\":1}", true);
    assert_eq!(world.settled(), (Outcome::Failed, UsageSource::None, 0, 0));
}

#[test]
fn a_reply_that_is_only_a_head_settles_at_its_head() {
    let mut world = World::closed();
    world.admitted(BODY);
    let head = headers_of(&[(":status", "503")]);
    world.exchange.reply_headers(&head, true, &mut world.worker, NOW);
    assert_eq!(world.settled(), (Outcome::Failed, UsageSource::None, 0, 0));
}

#[test]
fn the_usage_event_that_we_asked_for_is_removed_from_the_stream() {
    let mut world = World::closed();
    world.admitted(STREAM);
    let edits = world.reply_headers(&[OK, EVENTS, ("content-length", "99")]);
    assert!(has_removed(&edits, "content-length"));
    let events = format!("{CONTENT}data: {USAGE}\n\ndata: [DONE]\n\n");
    let expected = format!("{CONTENT}data: [DONE]\n\n");
    assert_eq!(world.reply_body(&events, true), Passage::Replaced(expected.into_bytes()));
    assert_eq!(world.settled(), (Outcome::Completed, UsageSource::Reported, 7, 3));
}

#[test]
fn the_usage_event_stays_where_a_server_might_have_sent_it_unasked() {
    let mut world = World::closed();
    world.admitted(r#"{"model":"m","stream":true,"stream_options":{"continuous_usage_stats":true}}"#);
    let edits = world.reply_headers(&[OK, EVENTS, ("content-length", "99")]);
    assert!(!has_removed(&edits, "content-length"));
    assert_eq!(world.reply_body(&format!("{CONTENT}data: {USAGE}\n\n"), true), Passage::Unchanged);
    assert_eq!(world.settled(), (Outcome::Completed, UsageSource::Reported, 7, 3));
}

#[test]
fn what_was_held_goes_on_at_the_end() {
    let mut world = World::closed();
    world.admitted(STREAM);
    world.reply_headers(&[OK, EVENTS]);
    assert_eq!(world.reply_body("data: {\"x", false), Passage::Replaced(Vec::new()));
    assert_eq!(world.reply_body("\":", true), Passage::Replaced(b"data: {\"x\":".to_vec()));
}

#[test]
fn a_body_that_could_not_be_changed_is_not_sent_and_its_admission_taken_back() {
    let mut world = World::closed();
    world.admitted(STREAM);
    let step = world.exchange.body_was_not_changed(&mut world.worker, NOW);
    assert_eq!(refused(step), (503, "service_unavailable"));
    assert_eq!(world.settled(), (Outcome::Cancelled, UsageSource::None, 0, 0));
}

#[test]
fn a_client_that_leaves_in_the_middle_pays_for_what_had_streamed() {
    let mut world = World::closed();
    world.admitted(STREAM);
    world.reply_headers(&[OK, EVENTS]);
    world.reply_body(&CONTENT.repeat(5), false);
    world.abandoned(Ended::ByClient);
    assert_eq!(world.settled(), (Outcome::Aborted, UsageSource::Estimated, 0, 5));
}

#[test]
fn a_client_that_leaves_before_the_reply_pays_for_the_prompt() {
    let mut world = World::closed();
    world.admitted(BODY);
    world.abandoned(Ended::ByClient);
    assert_eq!(world.settled(), (Outcome::Aborted, UsageSource::Estimated, 6, 0));
}

#[test]
fn an_upstream_that_resets_has_failed() {
    let mut world = World::closed();
    world.admitted(STREAM);
    world.abandoned(Ended::ByUpstream);
    assert_eq!(world.settled(), (Outcome::Failed, UsageSource::None, 0, 0));
    world.admitted(STREAM);
    world.reply_headers(&[OK, EVENTS]);
    world.reply_body(CONTENT, false);
    world.abandoned(Ended::ByUpstream);
    assert_eq!(world.settled(), (Outcome::Failed, UsageSource::Estimated, 0, 1));
}

#[test]
fn the_filter_s_own_replies_pass_by_untouched() {
    let mut world = World::closed();
    world.headers(&[("x-priority", "x")]);
    let head = [(":status", "400"), ("x-sluice-reason", "invalid_priority")];
    assert!(world.reply_headers(&head).is_empty());
    assert!(!world.exchange.meters_reply());
}
