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
fn only_an_admitted_call_shows_the_routes_their_secret_and_a_client_s_own_is_removed() {
    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    let mut world = World::with(|document| document["route_secret"] = json!(SECRET));
    for spelling in ["x-sluice-route", "X_Sluice_Route", "x-sluice_route"] {
        world.headers(&[(spelling, SECRET)]);
        let Step::Ask { .. } = world.body(BODY) else { panic!("asks") };
        let Step::Forward { edits, .. } = world.answer(&admitted()) else { panic!("forwards") };
        assert!(has_removed(&edits, spelling), "{spelling}");
        let shown: Vec<_> = edits.iter().filter(|edit| matches!(edit, HeaderEdit::SetSecret(..))).collect();
        let [HeaderEdit::SetSecret(name, secret)] = shown.as_slice() else { panic!("once, not {shown:?}") };
        assert_eq!((*name, secret.expose()), ("x-sluice-route", SECRET));
        assert_eq!(edits.last(), Some(shown[0]), "after what is removed");
        assert!(!format!("{edits:?}").contains(SECRET));
    }
    assert_eq!(refused(world.head(&[(":method", "POST"), (":path", "/v1/load_lora_adapter")])).0, 404);
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
fn a_body_that_is_read_as_json_must_be_said_to_be_json() {
    let mut world = World::closed();
    for kind in [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "application/jsonp",
        "application/json; charset=utf-16",
        "application/json; x=multipart/form-data",
        "application/json, application/x-www-form-urlencoded",
        "application/x-protobuf",
        "",
    ] {
        assert_eq!(refused(world.headers(&[("content-type", kind)])), (415, "unsupported_encoding"), "{kind:?}");
    }
    let form = ("content-type", "application/x-www-form-urlencoded");
    let json = ("content-type", "application/json");
    for pair in [[json, form], [form, json], [json, json], [json, ("Content_Type", form.1)]] {
        assert_eq!(refused(world.headers(&pair)), (415, "unsupported_encoding"), "{pair:?}");
    }
    assert_eq!(refused(world.headers(&[("content_type", json.1)])), (415, "unsupported_encoding"));
}

#[test]
fn what_was_read_as_json_reaches_its_server_as_json() {
    let mut world = World::closed();
    for (kind, is_set) in [
        (None, true),
        (Some("application/json"), false),
        (Some("Application/JSON;charset=UTF-8"), true),
        (Some("application/json; charset=\"utf-8\";"), true),
    ] {
        let head: Vec<_> = kind.map(|kind| ("content-type", kind)).into_iter().collect();
        world.headers(&head);
        world.body(BODY);
        let Step::Forward { edits, .. } = world.answer(&admitted()) else { panic!("forwards") };
        assert_eq!(has_set(&edits, "content-type", "application/json"), is_set, "{kind:?}");
    }
}

#[test]
fn of_a_query_only_what_the_dialect_and_the_route_name_reaches_the_server() {
    let mut world = World::with(|document| {
        document["routes"] = json!([
            {"dialect": "openai_chat"},
            {"dialect": "anthropic_messages", "query": ["trace", "include[]"]},
            {"dialect": "openai_uploads", "pool": "smol"},
            {"dialect": "kserve_infer"},
            {"dialect": "request", "path": "/rerank", "pool": "smol"},
            {"dialect": "request", "path": "/search", "pool": "smol", "query": ["*"]},
        ]);
    });
    for (path, query, kept) in [
        (PATH, "", ""),
        (PATH, "?model=secret", ""),
        (PATH, "?api-version=2024-10-21", "?api-version=2024-10-21"),
        (PATH, "?model=secret&api-version=1&beta=true", "?api-version=1"),
        (
            "/v1/messages",
            "?beta=true&model=secret&trace=1&include[]=a&include[]=b",
            "?beta=true&trace=1&include[]=a&include[]=b",
        ),
        ("/v1/audio/transcriptions", "?model=secret", ""),
        ("/v2/models/m/infer", "?x=1", ""),
        ("/rerank", "?model=secret", ""),
        ("/search", "?q=a;b&model=x", "?q=a;b&model=x"),
    ] {
        let asked = format!("{path}{query}");
        let head = [(":method", "POST"), (":path", asked.as_str()), ("authorization", "Bearer sk-1")];
        world.head(&head);
        world.body(BODY);
        let Step::Forward { edits, .. } = world.answer(&admitted()) else { panic!("forwards {asked}") };
        let set = edits.iter().find_map(|edit| match edit {
            HeaderEdit::Set(":path", path) => Some(path.as_str()),
            HeaderEdit::Set(..) | HeaderEdit::SetSecret(..) | HeaderEdit::Remove(_) => None,
        });
        let left = format!("{path}{kept}");
        assert_eq!(set.unwrap_or(&asked), left, "{asked}");
    }
}

#[test]
fn headers_by_which_a_client_would_steer_a_server_do_not_reach_it() {
    let mut world = World::closed();
    let steering = ["x-litellm-tags", "X-LiteLLM_Api-Key", "x_data_parallel_rank", "x-gateway-destination-endpoint"];
    world.headers(&steering.map(|name| (name, "x")));
    world.body(BODY);
    let Step::Forward { edits, .. } = world.answer(&admitted()) else { panic!("forwards") };
    for name in steering {
        assert!(has_removed(&edits, name), "{name}");
    }
}

#[test]
fn a_strict_route_passes_the_fields_of_its_api_alone() {
    let mut world = World::with(|document| document["routes"][0]["strict_fields"] = json!(true));
    world.headers(&[]);
    let reply = reply_of(world.body(r#"{"model":"m","messages":[],"top_k":5}"#));
    let body: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!((reply.status, &body["error"]["param"]), (400, &json!("top_k")));
    world.asked(r#"{"model":"m","messages":[],"temperature":0,"user":"u","stop":["x"],"max_tokens":5}"#);
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
fn a_model_that_a_key_may_not_use_looks_like_none_whatever_the_service_says() {
    let mut replies = [Reason::ModelNotFound, Reason::ModelNotAllowed].map(|reason| {
        let mut world = World::closed();
        world.asked(BODY);
        let mut reply = reply_of(world.answer(&rejected(reason)));
        reply.headers.retain(|(name, _)| *name != "x-admission-id");
        reply
    });
    assert_eq!((replies[0].status, replies[0].details), (404, "model_not_found"));
    let [one, other] = &mut replies;
    assert_eq!(one, other);
}

#[test]
fn a_key_that_may_not_use_a_model_any_more_does_not_use_it_while_the_service_is_away() {
    let mut world = World::open();
    world.admitted(BODY);
    world.asked(BODY);
    world.answer(&rejected(Reason::ModelNotFound));
    world.asked(BODY);
    assert_eq!(refused(world.answer(&away())), (503, "service_unavailable"));
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
