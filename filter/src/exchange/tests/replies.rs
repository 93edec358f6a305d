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
    assert!(has_set(&edits, "x-sluice-priority", "2"));
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
fn nothing_is_asked_for_nor_taken_out_where_the_route_says_so() {
    let mut world = World::with(|document| document["routes"][0]["splice_usage"] = json!(false));
    world.asked(STREAM);
    let Step::Forward { body, .. } = world.answer(&admitted()) else { panic!("goes on") };
    assert!(body.is_empty(), "{body:?}");
    world.reply_headers(&[OK, EVENTS]);
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
fn a_client_that_leaves_at_the_last_event_has_had_its_whole_reply() {
    for (request, is_taken_out) in
        [(STREAM, true), (r#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#, false)]
    {
        for ended in [Ended::ByClient, Ended::ByUpstream] {
            let mut world = World::closed();
            world.admitted(request);
            world.reply_headers(&[OK, EVENTS]);
            let passage = world.reply_body(&format!("{CONTENT}data: {USAGE}\n\ndata: [DONE]\n\n"), false);
            assert_eq!(matches!(passage, Passage::Replaced(_)), is_taken_out);
            world.abandoned(ended);
            let [settlement] = world.settlements().try_into().unwrap();
            assert_eq!(settlement.outcome, Outcome::Completed);
            assert_eq!((settlement.usage.input, settlement.usage.output), (Tokens(7), Tokens(3)));
            assert!(settlement.timing.is_some_and(|timing| timing.streamed));
        }
    }
}

#[test]
fn an_error_s_last_event_makes_no_success_of_it() {
    let mut world = World::closed();
    world.admitted(STREAM);
    world.reply_headers(&[(":status", "500"), EVENTS]);
    world.reply_body("data: [DONE]\n\n", false);
    world.abandoned(Ended::ByClient);
    assert_eq!(world.settled(), (Outcome::Failed, UsageSource::None, 0, 0));
}

#[test]
fn a_client_that_leaves_a_stream_before_the_reply_pays_for_the_prompt() {
    let mut world = World::closed();
    world.admitted(&BODY.replacen('{', r#"{"stream":true,"#, 1));
    world.abandoned(Ended::ByClient);
    assert_eq!(world.settled(), (Outcome::Aborted, UsageSource::Estimated, 6, 0));
}

#[test]
fn a_client_that_leaves_a_document_pays_what_was_reserved_for_it() {
    let mut world = World::closed();
    world.admitted(BODY);
    world.abandoned(Ended::ByClient);
    assert_eq!(world.settled(), (Outcome::Aborted, UsageSource::Estimated, 6, 93));
    world.admitted(BODY);
    world.reply_headers(&[OK, JSON]);
    world.reply_body(r#"{"choices":[{"message":{"content":"four"#, false);
    world.abandoned(Ended::ByClient);
    assert_eq!(world.settled(), (Outcome::Aborted, UsageSource::Estimated, 6, 93), "it has begun, and is no cheaper");
}

#[test]
fn an_end_that_is_not_the_client_s_doing_costs_what_had_come() {
    for (ended, may_run_on) in [(Ended::ByUpstream, false), (Ended::ByEnvoy, true)] {
        for body in [STREAM, BODY] {
            let mut world = World::closed();
            world.admitted(body);
            world.abandoned(ended);
            let settlements = world.settlements();
            let [settlement] = settlements.as_slice() else { panic!("one, not {settlements:?}") };
            assert_eq!((settlement.outcome, settlement.usage.source), (Outcome::Failed, UsageSource::None));
            assert_eq!(settlement.may_run_on(), may_run_on, "{ended:?}");
        }
        let mut world = World::closed();
        world.admitted(STREAM);
        world.reply_headers(&[OK, EVENTS]);
        world.reply_body(CONTENT, false);
        world.abandoned(ended);
        assert_eq!(world.settled(), (Outcome::Failed, UsageSource::Estimated, 0, 1));
    }
}

#[test]
fn a_reply_of_envoy_s_own_tells_whether_the_model_server_may_work_on() {
    for (ended, outcome, may_run_on) in [
        (Ended::ByEnvoy, Outcome::Failed, true),
        (Ended::ByUpstream, Outcome::Failed, false),
        (Ended::ByClient, Outcome::Aborted, true),
    ] {
        let mut world = World::closed();
        world.admitted(BODY);
        world.exchange.envoy_replies(ended, &mut world.worker, NOW);
        world.reply_headers(&[(":status", "504")]);
        world.reply_body("upstream request timeout", true);
        let settlements = world.settlements();
        let [settlement] = settlements.as_slice() else { panic!("one, not {settlements:?}") };
        assert_eq!((settlement.outcome, settlement.may_run_on()), (outcome, may_run_on), "{ended:?}");
        assert_eq!(settlement.usage.source == UsageSource::None, outcome == Outcome::Failed);
    }
}

#[test]
fn what_envoy_says_of_its_own_reply_stays_and_what_the_upstream_says_does_not() {
    for (is_envoys, details) in [(true, Some(Ended::ByUpstream)), (false, None)] {
        let mut world = World::closed();
        world.admitted(BODY);
        if let Some(ended) = details {
            world.exchange.envoy_replies(ended, &mut world.worker, NOW);
        }
        let edits = world.reply_headers(&[(":status", "503"), ("x-sluice-reason", "upstream_reset")]);
        assert_eq!(!has_removed(&edits, "x-sluice-reason"), is_envoys);
    }
}

#[test]
fn a_reply_that_is_complete_leaves_nothing_running() {
    let mut world = World::closed();
    world.admitted(BODY);
    world.reply_headers(&[(":status", "500"), JSON]);
    world.reply_body("{}", true);
    assert!(world.settlements().iter().all(|settlement| !settlement.may_run_on()));
}

#[test]
fn the_filter_s_own_replies_pass_by_untouched() {
    let mut world = World::closed();
    world.headers(&[("x-priority", "x")]);
    let head = [(":status", "400"), ("x-sluice-reason", "invalid_priority")];
    assert!(world.reply_headers(&head).is_empty());
    assert!(!world.exchange.meters_reply());
}

#[test]
fn a_list_of_prompts_costs_what_is_reported_of_all_and_else_no_less_than_our_estimate() {
    let prompt = |count: usize| format!("[{}]", vec!["\"12345678\""; count].join(","));
    let llama = r#","timings":{}"#;
    // Our estimate is two tokens for each prompt.
    for (prompts, reported, more, expected) in [
        (10, 18, "", (UsageSource::Reported, 18)),
        (10, 11, "", (UsageSource::Reported, 11)),
        (10, 10, "", (UsageSource::Estimated, 20)),
        (10, 2, "", (UsageSource::Estimated, 20)),
        (10, 18, llama, (UsageSource::Estimated, 20)),
        (10, 25, llama, (UsageSource::Reported, 25)),
        (1, 1, "", (UsageSource::Reported, 1)),
        (1, 1, llama, (UsageSource::Reported, 1)),
    ] {
        let mut world = World::with(|document| {
            document["routes"] = json!([{"path": PATH, "dialect": "openai_completions"}]);
        });
        world.admitted(&format!(r#"{{"model":"m","prompt":{}}}"#, prompt(prompts)));
        world.reply_headers(&[(":status", "200"), ("content-type", "application/json")]);
        let usage = format!(r#"{{"prompt_tokens":{reported},"completion_tokens":0}}"#);
        world.reply_body(&format!(r#"{{"choices":[],"usage":{usage}{more}}}"#), true);
        let (source, input) = expected;
        assert_eq!(world.settled(), (Outcome::Completed, source, input, 0), "{prompts} {reported} {more}");
    }
}
