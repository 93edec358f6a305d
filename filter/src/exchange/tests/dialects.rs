//! What is particular to a dialect, from its request to its settlement.

use super::*;

const OK: (&str, &str) = (":status", "200");
const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("content-type", "text/event-stream");

/// Every dialect on its own paths, and one route of somebody's own.
fn world() -> World {
    World::with(|document| {
        document["routes"] = json!([
            {"dialect": "openai_chat"}, {"dialect": "openai_completions"}, {"dialect": "openai_responses"},
            {"dialect": "openai_embeddings"}, {"dialect": "openai_models"}, {"dialect": "openai_media", "charge": 7},
            {"dialect": "openai_uploads", "pool": "whisper", "charge": 50},
            {"dialect": "anthropic_messages"}, {"dialect": "anthropic_count_tokens"},
            {"dialect": "kserve_infer", "charge": 3}, {"dialect": "kserve_generate"},
            {"dialect": "kserve_generate_stream"},
            {"dialect": "request", "path": "/rerank", "pool": "smol", "charge": 9},
        ]);
    })
}

fn start(world: &mut World, method: &str, path: &str, extra: &[(&str, &str)]) -> Step {
    let usual = [(":method", method), (":path", path), ("authorization", "Bearer sk-1")];
    world.head(&[&usual, extra].concat())
}

fn asked(world: &mut World, path: &str, body: &str) -> AdmissionRequest {
    assert_eq!(start(world, "POST", path, &[]), Step::Hold);
    match world.body(body) {
        Step::Ask { request, .. } => *request,
        other => panic!("asks, not {other:?}"),
    }
}

fn grant_with(change: impl FnOnce(&mut Grant)) -> Answer {
    let Ok(AdmissionReply::Admitted(mut grant)) = serde_json::from_slice(&admitted().body) else { unreachable!() };
    change(&mut grant);
    answer_of(&AdmissionReply::Admitted(grant))
}

/// A whole call: how it is settled when its upstream replies like this.
fn settled(path: &str, body: &str, kind: (&str, &str), reply: &str) -> (Outcome, UsageSource, u64, u64) {
    let mut world = world();
    asked(&mut world, path, body);
    assert!(matches!(world.answer(&admitted()), Step::Forward { .. }));
    world.reply_headers(&[OK, kind]);
    world.reply_body(reply, true);
    world.settled()
}

#[test]
fn in_each_dialect_a_stream_is_whole_with_its_last_event_and_not_before() {
    let chat = r#"{"model":"m","stream":true,"messages":[]}"#;
    let input = r#"{"model":"m","stream":true,"input":"x"}"#;
    let text = r#"{"text_input":"x"}"#;
    let (begun, last) =
        ("data: {\"type\":\"message_delta\",\"usage\":null}\n\n", "data: {\"type\":\"message_stop\"}\n\n");
    for (path, body, begun, last) in [
        ("/v1/chat/completions", chat, "data: {\"choices\":[]}\n\n", "data: [DONE]\n\n"),
        ("/v1/messages", chat, begun, last),
        (
            "/v1/responses",
            input,
            "data: {\"type\":\"response.created\"}\n\n",
            "data: {\"type\":\"response.completed\"}\n\n",
        ),
        ("/v1/responses", input, "data: {\"type\":[]}\n\n", "data: {\"type\":\"response.incomplete\"}\n\n"),
        ("/v2/models/m/generate_stream", text, "data: {\"text_output\":\"[DONE]\"}\n\n", "data: [DONE]\n\n"),
    ] {
        for (reply, outcome) in [(begun.to_owned(), Outcome::Aborted), (format!("{begun}{last}"), Outcome::Completed)] {
            let mut world = world();
            asked(&mut world, path, body);
            assert!(matches!(world.answer(&admitted()), Step::Forward { .. }));
            world.reply_headers(&[OK, EVENTS]);
            world.reply_body(&reply, false);
            world.abandoned(Ended::ByClient);
            assert_eq!(world.settled().0, outcome, "{path}: {reply}");
        }
    }
}

#[test]
fn a_model_with_slashes_is_found_as_clients_ask_for_it_and_nothing_else_has_escaped_slashes() {
    let names = ["Qwen/Qwen2.5-7B-Instruct", "a:b", "m"];
    let models = ModelsReply::Listed { models: names.iter().map(|name| (*name).into()).collect() };
    for (path, name) in [
        ("/v1/models/Qwen/Qwen2.5-7B-Instruct", names[0]),
        ("/v1/models/Qwen%2FQwen2.5-7B-Instruct", names[0]),
        ("/v1/models/Qwen%2fQwen2.5-7B-Instruct?x=1", names[0]),
        ("/v1/models/a%3Ab", names[1]),
        ("/v1/models/m", names[2]),
    ] {
        let mut world = world();
        assert!(matches!(start(&mut world, "GET", path, &[]), Step::List { .. }), "{path}");
        let reply = reply_of(world.answer(&answer_of(&models)));
        let body: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!((reply.status, body["id"].as_str()), (200, Some(name)), "{path}");
    }
    let mut world = world();
    for path in [
        "/v1%2Fmodels/m",
        "/v1/models%2Fm",
        "/v1/models/..%2Fm",
        "/v1/models/a%252Fb",
        "/v1/models/a%2F%2Fb",
        "/v1/models/a%5Cb",
        "/v1/chat%2Fcompletions",
        "/v2/models/a%2Fb/infer",
    ] {
        assert_eq!(refused(start(&mut world, "GET", path, &[])), (400, "path_not_normalized"), "{path}");
    }
    for path in ["/v1/models/", "/v2/models/a/b/infer"] {
        assert_eq!(refused(start(&mut world, "GET", path, &[])), (404, "path_not_listed"), "{path}");
    }
}

#[test]
fn a_model_in_a_path_has_a_name_of_256_bytes_at_most() {
    let mut world = world();
    let path = |length: usize| format!("/v2/models/{}/infer", "m".repeat(length));
    assert_eq!(start(&mut world, "POST", &path(256), &[]), Step::Hold);
    for length in [257, 58_000] {
        assert_eq!(refused(start(&mut world, "POST", &path(length), &[])), (404, "model_not_found"));
    }
}

#[test]
fn each_dialect_settles_what_its_server_reports() {
    use UsageSource::{Estimated, Fixed, Reported};
    let chat = r#"{"model":"m","messages":[]}"#;
    let prompt = r#"{"model":"m","prompt":"x"}"#;
    let input = r#"{"model":"m","input":"x"}"#;
    let responses = r#"{"usage":{"input_tokens":5,"output_tokens":6}}"#;
    let completed = format!("event: response.completed\ndata: {{\"response\":{responses}}}\n\n");
    let start = "data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":1,\
                 \"cache_read_input_tokens\":31,\"output_tokens\":1}}}\n\n";
    let messages = format!("{start}data: {{\"type\":\"message_delta\",\"usage\":{{\"output_tokens\":8}}}}\n\n");
    for (path, body, kind, reply, expected) in [
        ("/v1/completions", prompt, JSON, r#"{"usage":{"prompt_tokens":5,"completion_tokens":6}}"#, (Reported, 5, 6)),
        ("/v1/responses", input, JSON, responses, (Reported, 5, 6)),
        ("/v1/responses", input, EVENTS, completed.as_str(), (Reported, 5, 6)),
        ("/v1/embeddings", input, JSON, r#"{"usage":{"prompt_tokens":5,"total_tokens":5}}"#, (Reported, 5, 0)),
        ("/v1/messages", chat, EVENTS, messages.as_str(), (Reported, 32, 8)),
        ("/v1/messages", chat, JSON, r#"{"usage":{"input_tokens":5,"output_tokens":6}}"#, (Reported, 5, 6)),
        ("/v1/messages/count_tokens", chat, JSON, r#"{"input_tokens":99}"#, (Fixed, 1, 0)),
        ("/v1/images/generations", r#"{"model":"m","n":2}"#, JSON, "{}", (Fixed, 14, 0)),
        ("/v1/audio/transcriptions", "--x", JSON, r#"{"text":"hello"}"#, (Fixed, 50, 0)),
        ("/v2/models/m/infer", "\u{1}", JSON, "{}", (Fixed, 3, 0)),
        ("/rerank", "anything", JSON, "{}", (Fixed, 9, 0)),
        (
            "/v2/models/m/generate",
            r#"{"text_input":"12345678"}"#,
            JSON,
            r#"{"model_name":"m","text_output":"12345678"}"#,
            (Estimated, 2, 2),
        ),
        (
            "/v2/models/m/generate_stream",
            r#"{"text_input":"12345678"}"#,
            EVENTS,
            "data: {\"text_output\":\"a\"}\n\ndata: {\"text_output\":\"b\"}\n\n",
            (Estimated, 2, 2),
        ),
    ] {
        let (source, input, output) = expected;
        assert_eq!(settled(path, body, kind, reply), (Outcome::Completed, source, input, output), "{path}");
    }
}

/// Every JSON dialect, where it reads a field or not.
#[test]
fn no_body_is_deeper_than_its_server_may_survive() {
    let mut world = world();
    let paths = ["chat/completions", "completions", "responses", "embeddings", "images/generations", "messages"];
    let paths = paths.map(|path| format!("/v1/{path}"));
    let others = ["/v1/messages/count_tokens", "/v2/models/m/generate", "/v2/models/m/generate_stream"];
    for path in paths.iter().map(String::as_str).chain(others) {
        for field in ["max_tokens", "n", "tools", "user", "parameters", "thinking", "stream_options", "x"] {
            let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
            start(&mut world, "POST", path, &[]);
            let reply = reply_of(world.body(format!(r#"{{"model":"m","{field}":{deep}}}"#)));
            assert_eq!((reply.status, reply.details), (400, "invalid_body"), "{path} {field}");
        }
    }
}

#[test]
fn a_body_that_names_other_models_beside_its_own_is_refused() {
    let mut world = world();
    for path in ["chat/completions", "completions", "responses", "embeddings", "images/generations", "messages"] {
        for field in ["fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "models"] {
            let call = |value: &str| format!(r#"{{"model":"m","{field}":{value}}}"#);
            start(&mut world, "POST", &format!("/v1/{path}"), &[]);
            let reply = reply_of(world.body(call(r#"["large"]"#)));
            assert_eq!((reply.status, reply.details), (400, "invalid_body"), "{path} {field}");
            assert!(String::from_utf8(reply.body).unwrap().contains(&format!("'{field}' must be left out")));
            for empty in ["null", "[]", "{ }"] {
                asked(&mut world, &format!("/v1/{path}"), &call(empty));
            }
        }
    }
}

/// vLLM numbers choices by `n`, reads neither of the others, and reports each choice's prompt with its chunks.
#[test]
fn prompts_are_told_apart_by_n_and_not_by_what_else_multiplies_sequences() {
    let mut world = world();
    for (multiplied, choices, input) in [
        (r#""n_cmpl":2"#, [(0, 5), (1, 70)], 75),
        (r#""best_of":2,"n":1"#, [(0, 5), (1, 70)], 75),
        (r#""n":2"#, [(0, 5), (1, 5)], 5),
    ] {
        let body = format!(
            r#"{{"model":"m","prompt":["a","b"],{multiplied},"stream":true,
            "stream_options":{{"include_usage":true,"continuous_usage_stats":true}}}}"#
        );
        asked(&mut world, "/v1/completions", &body);
        world.answer(&admitted());
        world.reply_headers(&[OK, EVENTS]);
        for (index, prompt) in choices {
            let usage = json!({"prompt_tokens": prompt, "completion_tokens": 1});
            let chunk = json!({"choices": [{"index": index, "text": "x"}], "usage": usage});
            world.reply_body(&format!("data: {chunk}\n\n"), false);
        }
        world.abandoned(Ended::ByClient);
        assert_eq!(world.settled(), (Outcome::Aborted, UsageSource::Reported, input, 2), "{multiplied}");
    }
}

/// Every dialect whose body names a model, on a path that names one as well.
#[test]
fn a_path_and_its_body_name_one_model() {
    for (dialect, body) in [
        ("openai_chat", r#""messages":[]"#),
        ("openai_completions", r#""prompt":"x""#),
        ("openai_responses", r#""input":"x""#),
        ("openai_embeddings", r#""input":"x""#),
        ("openai_media", r#""prompt":"x""#),
        ("anthropic_messages", r#""messages":[]"#),
        ("anthropic_count_tokens", r#""messages":[]"#),
    ] {
        let mut world = World::with(|document| {
            document["routes"] = json!([{"dialect": dialect, "path": "/deployments/{model}/x"}]);
        });
        for model in ["\"large\"", "\"M\"", "\"m \"", "\"\"", "7"] {
            start(&mut world, "POST", "/deployments/m/x", &[]);
            let step = world.body(format!(r#"{{"model":{model},{body}}}"#));
            assert_eq!(refused(step), (400, "invalid_body"), "{dialect} {model}");
        }
        for named in [r#""model":"m","#, r#""model":"\u006d","#, r#""model":null,"#, ""] {
            let request = asked(&mut world, "/deployments/m/x", &format!("{{{named}{body}}}"));
            assert_eq!(request.model.as_deref(), Some("m"), "{dialect} {named}");
        }
    }
}

#[test]
fn another_name_upstream_stands_in_the_path_and_in_the_body() {
    let renamed = grant_with(|grant| grant.upstream_model = Some("m-2".into()));
    let mut world = World::with(|document| {
        document["routes"] = json!([{"dialect": "openai_chat", "path": "/deployments/{model}/x"}]);
    });
    for (body, expected) in [
        (r#"{"model":"m","messages":[]}"#, r#"{"model":"m-2","messages":[]}"#),
        (r#"{"messages":[]}"#, r#"{"messages":[]}"#),
    ] {
        asked(&mut world, "/deployments/m/x", body);
        let Step::Forward { edits, body: changes, .. } = world.answer(&renamed) else { panic!("goes on") };
        assert!(has_set(&edits, ":path", "/deployments/m-2/x"), "{edits:?}");
        assert_eq!(apply(body.as_bytes(), changes), Some(expected.as_bytes().to_vec()));
    }
}

#[test]
fn the_model_is_the_body_s_or_the_path_s_and_else_the_route_names_the_pool() {
    let mut world = world();
    let of_path = asked(&mut world, "/v2/models/simple/versions/1/infer", "{}");
    assert_eq!((of_path.model.as_deref(), of_path.pool), (Some("simple"), None));
    assert_eq!((of_path.input_tokens, of_path.max_tokens), (Tokens(3), Some(Tokens::ZERO)));
    let of_body = asked(&mut world, "/v1/embeddings", r#"{"input":"12345678","model":"e"}"#);
    assert_eq!((of_body.model.as_deref(), of_body.input_tokens), (Some("e"), Tokens(2)));
    let of_route = asked(&mut world, "/v1/audio/transcriptions", "--x");
    assert_eq!((of_route.model, of_route.pool), (None, Some("whisper".into())));
    for path in
        ["/v2/models/a%20b/infer", "/v2/models/m/versions/..%252f..%252fx/infer", "/v2/models/m/versions/%2e./infer"]
    {
        assert_eq!(refused(start(&mut world, "POST", path, &[])), (400, "path_not_normalized"), "{path}");
    }
}

#[test]
fn a_client_that_leaves_an_anthropic_stream_pays_for_what_came_after_the_last_report() {
    let mut world = world();
    asked(&mut world, "/v1/messages", r#"{"model":"m","stream":true}"#);
    world.answer(&admitted());
    world.reply_headers(&[OK, EVENTS]);
    world.reply_body(
        "data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":5,\"output_tokens\":1}}}\n\n",
        false,
    );
    let delta = "data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"hi\"}}\n\n";
    world.reply_body(&delta.repeat(4), false);
    world.abandoned(Ended::ByClient);
    assert_eq!(world.settled(), (Outcome::Aborted, UsageSource::Estimated, 5, 5));
}

#[test]
fn an_alias_and_a_ceiling_are_written_into_the_body_and_nothing_else_changes() {
    let mut world = world();
    let text = r#"{ "max_tokens" : 900, "messages":[], "model": "alias", "x":1.50 }"#;
    start(&mut world, "POST", "/v1/chat/completions", &[("content-length", "60")]);
    world.body(text);
    let grant = grant_with(|grant| {
        grant.upstream_model = Some("real \"one\"".into());
        grant.max_tokens = Some(Tokens(100));
    });
    let Step::Forward { edits, body, .. } = world.answer(&grant) else { panic!("forwards") };
    let changed = String::from_utf8(apply(text.as_bytes(), body).unwrap()).unwrap();
    assert_eq!(changed, r#"{ "max_tokens" : 100, "messages":[], "model": "real \"one\"", "x":1.50 }"#);
    assert!(has_set(&edits, "content-length", &changed.len().to_string()));
}

#[test]
fn an_alias_in_a_path_is_written_into_the_path() {
    let mut world = world();
    start(&mut world, "POST", "/v2/models/alias/infer?model=secret", &[]);
    world.body("{}");
    let grant = grant_with(|grant| grant.upstream_model = Some("real".into()));
    let Step::Forward { edits, body, .. } = world.answer(&grant) else { panic!("forwards") };
    assert!(has_set(&edits, ":path", "/v2/models/real/infer") && body.is_empty());
}

#[test]
fn a_route_that_fails_open_rewrites_as_the_service_did_last() {
    let mut world = World::open();
    world.asked(BODY);
    world.answer(&grant_with(|grant| grant.upstream_model = Some("real".into())));
    world.asked(BODY);
    let Step::Forward { body, .. } = world.answer(&away()) else { panic!("fails open") };
    assert!(String::from_utf8(apply(BODY.as_bytes(), body).unwrap()).unwrap().contains("\"real\""));
}

#[test]
fn metered_replies_are_asked_for_plainly_and_others_as_the_client_likes() {
    let mut world = world();
    let gzip = [("accept-encoding", "gzip")];
    start(&mut world, "POST", "/v1/chat/completions", &gzip);
    world.body(BODY);
    let Step::Forward { edits, .. } = world.answer(&admitted()) else { panic!("forwards") };
    assert!(has_removed(&edits, "accept-encoding") && has_set(&edits, "accept-encoding", "identity"));
    start(&mut world, "POST", "/rerank", &[("accept-encoding", "gzip"), ("content-encoding", "gzip")]);
    world.body("packed");
    let Step::Forward { edits, .. } = world.answer(&admitted()) else { panic!("forwards") };
    assert!(edits.iter().all(|edit| edit.name() != "accept-encoding"));
}

#[test]
fn errors_are_written_as_the_caller_s_api_writes_them() {
    let mut world = world();
    let body_of = |step: Step| serde_json::from_slice::<Value>(&reply_of(step).body).unwrap();
    assert_eq!(body_of(start(&mut world, "GET", "/v1/messages", &[]))["type"], "error");
    assert!(body_of(start(&mut world, "GET", "/v2/models/m/infer", &[]))["error"].is_string());
    assert_eq!(body_of(start(&mut world, "POST", "/rerank", &[("x-priority", "x")]))["reason"], "invalid_priority");
    assert!(body_of(start(&mut world, "GET", "/v1/completions", &[]))["error"]["code"].is_string());
    let put = reply_of(start(&mut world, "PUT", "/v1/completions", &[]));
    assert!(put.headers.contains(&("allow", "POST".to_owned())));
    let load = body_of(start(&mut world, "POST", "/v2/repository/models/m/load", &[]));
    assert!(load["error"].is_string());
}

#[test]
fn anthropic_s_clients_read_their_limits_under_their_names() {
    let mut world = world();
    asked(&mut world, "/v1/messages", r#"{"model":"m"}"#);
    world.answer(&admitted());
    let edits = world.reply_headers(&[OK, JSON]);
    assert!(has_set(&edits, "anthropic-ratelimit-requests-remaining", "4"));
    assert!(edits.iter().all(|edit| !edit.name().starts_with("x-ratelimit")));
}

#[test]
fn models_are_listed_for_the_key_and_nothing_goes_upstream() {
    let mut world = world();
    let listed = answer_of(&ModelsReply::Listed { models: vec!["a".into(), "b".into()] });
    let mut get = |path: &str, extra: &[(&str, &str)], answer: &Answer| {
        let Step::List { request } = start(&mut world, "GET", path, extra) else { panic!("asks for the list") };
        assert_eq!(request.key.digest.len(), 64);
        let step = world.answer(answer);
        assert!(world.settlements().is_empty() && !world.exchange.owes_settlement());
        reply_of(step)
    };
    let openai = get("/v1/models?limit=2", &[], &listed);
    let body: Value = serde_json::from_slice(&openai.body).unwrap();
    assert_eq!((openai.status, &body["object"], &body["data"][1]["id"]), (200, &json!("list"), &json!("b")));
    let anthropic = get("/v1/models", &[("anthropic-version", "2023-06-01")], &listed);
    let body: Value = serde_json::from_slice(&anthropic.body).unwrap();
    assert_eq!((&body["data"][0]["type"], &body["last_id"]), (&json!("model"), &json!("b")));
    let one = get("/v1/models/b", &[], &listed);
    assert_eq!(serde_json::from_slice::<Value>(&one.body).unwrap()["id"], "b");
    assert_eq!(get("/v1/models/c", &[], &listed).status, 404);
    assert_eq!(get("/v1/models", &[], &away()).status, 503);
    let unknown = answer_of(&ModelsReply::Rejected(refusal::own(Reason::UnknownKey, "no")));
    assert_eq!(get("/v1/models", &[], &unknown).status, 401);
}

#[test]
fn a_worker_that_holds_as_much_as_it_may_refuses_more_and_takes_it_again_later() {
    let mut world = World::with(|document| {
        document["body"]["paused_max_bytes"] = json!(1500);
        document["tenants"] = json!({"body_bytes": 1500});
    });
    let keys = [("sk-1", "dept-a"), ("sk-2", "dept-b")];
    for (key, tenant) in keys {
        world.worker.belongs(crate::caller::caller_key(key).digest(), &tenant.into(), NOW);
    }
    world.asked(&format!("{BODY}{}", " ".repeat(900)));
    let mut waiting = std::mem::replace(&mut world.exchange, Exchange::new(world.config.clone()));
    assert_eq!(world.head(&[(":method", "POST"), (":path", PATH), ("api-key", "sk-2")]), Step::Hold);
    assert_eq!(world.exchange.request_body_grew(500, &mut world.worker, NOW), Step::Hold);
    let reply = reply_of(world.exchange.request_body_grew(600, &mut world.worker, NOW));
    assert_eq!((reply.status, reply.details), (503, "worker_full"));
    assert_eq!(world.worker.holdings.paused_bytes(), BODY.len() as u64 + 900);
    waiting.answered(&admitted(), &mut world.worker, NOW);
    assert_eq!(world.worker.holdings.paused_bytes(), 0);
    world.asked(&format!("{BODY}{}", " ".repeat(900)));
}

#[test]
fn the_settlement_tells_how_long_the_upstream_took() {
    let mut world = world();
    world.admitted(STREAM);
    let World { exchange, worker, .. } = &mut world;
    let at = |ms| NOW.plus(Millis(ms));
    exchange.reply_headers(&headers_of(&[OK, EVENTS]), false, worker, at(10));
    exchange.reply_body(b": keep-alive\n\n", false, worker, at(20));
    let content = b"data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n";
    exchange.reply_body(content, false, worker, at(30));
    exchange.reply_body(content, true, worker, at(70));
    let timing = world.settlements().first().and_then(|settlement| settlement.timing).unwrap();
    assert_eq!(timing, Timing { first_token_ms: Millis(30), duration_ms: Millis(70), streamed: true });
}
