//! From the head of a request to the service's answer.

use super::*;

#[test]
fn an_admitted_call_is_tagged_and_stripped() {
    let mut world = World::closed();
    let step = world.headers(&[
        ("X_Tenant_Id", "forged"),
        ("x-envoy-retry-on", "5xx"),
        ("accept-encoding", "gzip"),
        ("x-priority", "7"),
        ("content-length", "49"),
        ("accept", "*/*"),
    ]);
    assert_eq!(step, Step::Hold);
    let Step::Ask { request, .. } = world.body(BODY) else { panic!("asks") };
    assert_eq!(request.model.as_deref(), Some("m"));
    assert_eq!((request.input_tokens, request.sequences, request.stream), (Tokens(6), 1, false));
    assert_eq!(request.priority, Priority::parse("7"));
    let Step::Forward { edits, tags, .. } = world.answer(&admitted()) else { panic!("forwards") };
    for name in ["X_Tenant_Id", "x-envoy-retry-on", "accept-encoding", "authorization", "x-priority"] {
        assert!(has_removed(&edits, name), "{name}");
    }
    assert!(!has_removed(&edits, "accept") && !has_removed(&edits, "content-length"));
    for (name, value) in [
        ("x-tenant-id", "dept-a"),
        ("x-tenant-namespace", "ns-a"),
        ("x-tenant-tier", "gold"),
        ("x-priority", "2"),
        ("x-pool", "smol"),
        ("x-admission-id", request.id.as_str()),
    ] {
        assert!(has_set(&edits, name, value), "{name}");
    }
    assert!(tags.contains(&("sluice.wait_ms", "42".to_owned())));
}

#[test]
fn what_is_removed_is_removed_before_anything_is_set() {
    let mut world = World::closed();
    world.headers(&[("x-priority", "7"), ("x-pool", "mine")]);
    world.body(BODY);
    let Step::Forward { edits, .. } = world.answer(&admitted()) else { panic!("forwards") };
    let last_removal = edits.iter().rposition(|edit| matches!(edit, HeaderEdit::Remove(_)));
    let first_set = edits.iter().position(|edit| matches!(edit, HeaderEdit::Set(..)));
    assert!(last_removal < first_set);
}

#[test]
fn a_path_that_nobody_listed_is_not_found_before_any_key_is_read() {
    let mut world = World::closed();
    let step = world.head(&[(":method", "POST"), (":path", "/v1/load_lora_adapter")]);
    assert_eq!(refused(step), (404, "path_not_listed"));
    let step = world.head(&[(":method", "POST"), (":path", "/v1/chat%2Fcompletions")]);
    assert_eq!(refused(step), (400, "path_not_normalized"));
    let step = world.head(&[(":method", "GET"), (":path", PATH)]);
    assert_eq!(refused(step), (405, "method_not_allowed"));
    assert_eq!(refused(world.head(&[(":method", "CONNECT")])), (403, "upgrade_not_allowed"));
    assert_eq!(refused(world.headers(&[("upgrade", "websocket")])), (403, "upgrade_not_allowed"));
    assert_eq!(refused(world.head(&[])), (400, "path_not_normalized"));
}

#[test]
fn bad_heads_are_refused_each_with_its_reason() {
    let mut world = World::closed();
    for (extra, expected) in [
        (("x-priority", "11"), (400, "invalid_priority")),
        (("x-priority", "-1"), (400, "invalid_priority")),
        (("x-priority", ""), (400, "invalid_priority")),
        (("x-priority", "5 "), (400, "invalid_priority")),
        (("X_Priority", "x"), (400, "invalid_priority")),
        (("content-encoding", "gzip"), (415, "unsupported_encoding")),
        (("content-length", "1001"), (413, "body_too_large")),
        (("x-api-key", "sk-2"), (401, "conflicting_keys")),
        (("authorization", "Bearer sk-1"), (401, "conflicting_keys")),
    ] {
        assert_eq!(refused(world.headers(&[extra])), expected, "{extra:?}");
    }
    let lone_key = [(":method", "POST"), (":path", PATH), ("api-key", "slk_bad")];
    assert_eq!(refused(world.head(&lone_key)), (401, "malformed_key"));
    let twice = world.headers(&[("x-priority", "1"), ("x-priority", "1")]);
    assert_eq!(refused(twice), (400, "invalid_priority"));
    let plain = world.headers(&[("content-encoding", "Identity"), ("content-length", "1000")]);
    assert_eq!(plain, Step::Hold);
    assert!(world.settlements().is_empty());
}

#[test]
fn a_body_over_the_bound_is_refused_as_soon_as_it_is() {
    let mut world = World::closed();
    world.headers(&[]);
    assert_eq!(world.exchange.request_body_grew(1000, &mut world.worker, NOW), Step::Hold);
    assert_eq!(refused(world.exchange.request_body_grew(1001, &mut world.worker, NOW)), (413, "body_too_large"));
    assert_eq!(world.exchange.request_body_grew(5000, &mut world.worker, NOW), Step::Hold);
    world.headers(&[]);
    assert_eq!(refused(world.body(" ".repeat(1001))), (413, "body_too_large"));
}

#[test]
fn a_request_without_a_body_or_with_a_bad_one_is_refused() {
    let mut world = World::closed();
    let head = headers_of(&[(":method", "POST"), (":path", PATH), ("api-key", "sk-1")]);
    let step = world.exchange.request_headers(&head, true, &mut world.worker, NOW);
    assert_eq!(refused(step), (400, "invalid_body"));
    world.headers(&[]);
    let reply = reply_of(world.body(r#"{"model":"m","max_tokens":-1}"#));
    let body: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(body["error"]["param"], "max_tokens");
    assert!(!world.exchange.holds_request());
}

#[test]
fn a_stream_is_asked_to_report_its_usage() {
    let mut world = World::closed();
    world.headers(&[("content-length", "27")]);
    world.body(STREAM);
    let Step::Forward { edits, body, .. } = world.answer(&admitted()) else { panic!("forwards") };
    let body = apply(STREAM.as_bytes(), body).unwrap();
    assert!(has_set(&edits, "content-length", &body.len().to_string()));
    assert!(String::from_utf8(body).unwrap().contains("include_usage"));
}

#[test]
fn the_request_is_held_until_there_is_an_answer() {
    let mut world = World::closed();
    world.headers(&[]);
    assert!(world.exchange.holds_request() && world.exchange.reads_body());
    world.body(BODY);
    assert!(world.exchange.holds_request() && !world.exchange.reads_body());
    world.answer(&admitted());
    assert!(!world.exchange.holds_request());
}

#[test]
fn headers_mode_asks_at_once_with_the_route_s_pool() {
    let mut world = World::with(|document| {
        document["mode"] = json!("headers");
        document["routes"][0]["pool"] = json!("smol");
    });
    let step = world.headers(&[("content-length", "401")]);
    let Step::Ask { request, .. } = step else { panic!("asks") };
    assert_eq!((request.model, request.pool), (None, Some("smol".into())));
    assert_eq!((request.input_tokens, request.body_bytes), (Tokens(101), 401));
    assert!(!world.exchange.reads_body());
    let Step::Ask { request, .. } = world.headers(&[]) else { panic!("asks") };
    assert_eq!(request.input_tokens, Tokens(1024));
}

#[test]
fn a_rejection_reaches_the_client_and_owes_nothing() {
    let mut world = World::closed();
    let id = world.asked(BODY).id;
    let reply = reply_of(world.answer(&rejected(Reason::TenantConcurrency)));
    assert_eq!((reply.status, reply.details), (429, "tenant_concurrency"));
    assert!(reply.headers.contains(&("x-admission-id", id.to_string())));
    world.abandoned(Ended::ByClient);
    assert!(world.settlements().is_empty());
}

#[test]
fn a_client_that_leaves_the_queue_cancels_once() {
    let mut world = World::closed();
    world.asked(BODY);
    world.abandoned(Ended::ByClient);
    world.abandoned(Ended::ByClient);
    let settlements = world.settlements();
    let [settlement] = settlements.as_slice() else { panic!("one, not {settlements:?}") };
    assert_eq!((settlement.outcome, settlement.usage), (Outcome::Cancelled, Usage::default()));
    assert_eq!(settlement.charge_to, None, "no answer has told whose key it is");
    assert_eq!(world.answer(&admitted()), Step::Hold);
    assert!(world.settlements().is_empty());
}

#[test]
fn an_answer_out_of_turn_changes_nothing() {
    let mut world = World::closed();
    world.admitted(BODY);
    assert_eq!(world.answer(&rejected(Reason::QueueFull)), Step::Hold);
    assert_eq!(world.exchange.could_not_ask(&mut world.worker, NOW), Step::Hold);
    assert_eq!(world.body(BODY), Step::Hold);
    world.abandoned(Ended::ByUpstream);
    assert_eq!(world.settled().0, Outcome::Failed);
}

#[test]
fn a_closed_route_refuses_while_the_service_is_away_and_cancels_what_it_may_have_granted() {
    let mut world = World::closed();
    world.admitted(BODY);
    world.abandoned(Ended::ByUpstream);
    world.settlements();
    world.asked(BODY);
    let reply = reply_of(world.answer(&away()));
    assert_eq!((reply.status, reply.details), (503, "service_unavailable"));
    assert!(reply.headers.contains(&("retry-after", "1".to_owned())));
    assert_eq!(world.settled(), (Outcome::Cancelled, UsageSource::None, 0, 0));
    assert_eq!(world.worker.counters.failed_closed, 1);
}

#[test]
fn a_question_that_never_left_owes_nothing() {
    let mut world = World::closed();
    world.asked(BODY);
    let step = world.exchange.could_not_ask(&mut world.worker, NOW);
    assert_eq!(refused(step), (503, "service_unavailable"));
    assert!(world.settlements().is_empty());
}

#[test]
fn an_answer_that_is_no_answer_counts_as_none() {
    for body in ["", "{}", "null", r#"{"decision":"maybe"}"#, r#"{"decision":"admitted"}"#] {
        let mut world = World::closed();
        world.asked(BODY);
        let step = world.answer(&Answer { is_decided: true, body: body.into() });
        assert_eq!(refused(step), (503, "service_unavailable"), "{body}");
    }
}

#[test]
fn an_open_route_passes_keys_verified_lately_and_nobody_else() {
    let mut world = World::open();
    world.asked(BODY);
    assert_eq!(refused(world.answer(&away())), (503, "service_unavailable"));
    world.admitted(BODY);
    world.abandoned(Ended::ByUpstream);
    world.settlements();

    world.headers(&[("x-priority", "5")]);
    world.body(BODY);
    let Step::Forward { edits, tags, .. } = world.answer(&away()) else { panic!("fails open") };
    assert!(has_set(&edits, "x-tenant-id", "dept-a") && has_set(&edits, "x-priority", "5"));
    assert!(tags.contains(&("sluice.reason", "service_unavailable".to_owned())));
    world.abandoned(Ended::ByUpstream);
    assert_eq!(world.settlements().first().and_then(|entry| entry.charge_to.clone()), Some(dept_a()));
    assert_eq!(world.worker.counters.failed_open, 1);

    world.asked(r#"{"model":"another"}"#);
    assert_eq!(refused(world.answer(&away())).0, 503);
    world.head(&[(":method", "POST"), (":path", PATH), ("api-key", "sk-2")]);
    world.body(BODY);
    assert_eq!(refused(world.answer(&away())).0, 503);
}

#[test]
fn a_key_passes_an_open_route_no_longer_than_its_verification_holds() {
    let mut world = World::open();
    world.admitted(BODY);
    world.asked(BODY);
    let later = NOW.plus(Millis(1000));
    let step = world.exchange.answered(&away(), &mut world.worker, later);
    assert_eq!(refused(step).0, 503);
}

#[test]
fn a_key_that_the_service_refuses_is_forgotten() {
    for (reason, passes) in [(Reason::UnknownKey, false), (Reason::TenantDisabled, false), (Reason::QueueFull, true)] {
        let mut world = World::open();
        world.admitted(BODY);
        world.asked(BODY);
        world.answer(&rejected(reason));
        world.asked(BODY);
        let step = world.answer(&away());
        assert_eq!(matches!(step, Step::Forward { .. }), passes, "{reason:?}");
    }
}

#[test]
fn the_key_is_nowhere_in_what_is_logged_or_sent() {
    let mut world = World::closed();
    world.head(&[(":method", "POST"), (":path", PATH), ("api-key", "sk-hidden")]);
    assert!(!format!("{:?}", world.exchange).contains("sk-hidden"));
    let step = world.body(BODY);
    assert!(!format!("{step:?}").contains("sk-hidden"));
}
