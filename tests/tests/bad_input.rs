//! Bad input gets a clear error in the caller's dialect, and nothing is lost by it.

use e2e::client::{CHAT_PATH, Chat, Client, send};
use e2e::gzip::gzip;
use e2e::keys::unknown_key;
use e2e::stack::{MODEL, Stack};
use e2e::tenant::Tenant;
use e2e::upstream::Call;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

const SLACK: Duration = Duration::from_secs(10);

async fn stack(name: &str) -> Stack {
    let tenant = |id| Tenant::new(id).with("priority", json!({"default": 4, "ceiling": 2}));
    Stack::builder(name)
        .tenant(tenant("honest"))
        .tenant(tenant("second"))
        .tenant(tenant("disabled").with("disabled", json!(true)))
        .tenant(tenant("elsewhere").with("models", json!(["another-model"])))
        .sidecar_config(|config| {
            let pool = json!({
                "name": "another",
                "models": ["another-model"],
                "capacity": {"concurrent": 1},
                "context_length": 4096,
            });
            config["pools"].as_array_mut().unwrap().push(pool);
        })
        .start()
        .await
        .unwrap()
}

/// One bad call and the refusal it must get.
struct Case {
    what: &'static str,
    request: RequestBuilder,
    status: u16,
    reason: &'static str,
}

fn case(what: &'static str, request: RequestBuilder, status: u16, reason: &'static str) -> Case {
    Case { what, request, status, reason }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_is_not_clearly_one_known_tenant_is_refused() {
    let stack = stack("bad-callers").await;
    let anonymous = stack.anonymous().unwrap();
    let (honest, second) = (stack.key("honest").unwrap(), stack.key("second").unwrap());
    let fine = Chat::to(MODEL).text();
    let bare = || anonymous.chat_request(fine.clone());
    let mut misspelt = honest.to_owned();
    misspelt.replace_range(20..21, if honest[20..].starts_with('0') { "1" } else { "0" });
    let cases = [
        case("no key", bare(), 401, "missing_key"),
        case("no key after Bearer", bare().header("authorization", "Bearer "), 401, "malformed_key"),
        case("two different keys", bare().bearer_auth(honest).header("x-api-key", second), 401, "conflicting_keys"),
        case(
            "two different keys in one header",
            bare().header("x-api-key", honest).header("x-api-key", second),
            401,
            "conflicting_keys",
        ),
        case("a misspelt key", bare().bearer_auth(misspelt), 401, "malformed_key"),
        case("an unknown key", bare().bearer_auth(unknown_key()), 401, "unknown_key"),
        case("an unknown foreign key", bare().bearer_auth("sk-nobody-has-this"), 401, "unknown_key"),
        case("a disabled tenant", bare().bearer_auth(stack.key("disabled").unwrap()), 403, "tenant_disabled"),
        case("a model not allowed", bare().bearer_auth(stack.key("elsewhere").unwrap()), 404, "model_not_found"),
    ];
    assert_refused(&stack, cases).await;
    let both = send(bare().bearer_auth(honest).header("api-key", honest)).await.unwrap();
    assert_eq!(both.status, 200, "one key shown twice is one key: {}", both.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_identity_headers_are_stripped_in_every_spelling() {
    let stack = stack("forged-headers").await;
    let client = stack.client("honest").unwrap();
    let request = client
        .chat_request(Chat::to(MODEL).text())
        .header("x-tenant-id", "second")
        .header("X_Tenant_Id", "second")
        .header("x-tenant_namespace", "second")
        .header("x_tenant_tier", "gold")
        .header("x-pool", "another")
        .header("X-Admission-Id", "forged-1")
        .header("x-envoy-hedge-on-per-try-timeout", "true");
    let reply = send(request).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.summary());
    let seen = stack.upstream.calls().last().unwrap();
    assert_eq!(seen.header("x-tenant-id"), Some("honest"));
    assert_eq!(seen.header("x-tenant-namespace"), Some("honest"));
    assert_eq!(seen.header("x-pool"), Some("smol"));
    assert!(seen.header("x-admission-id").is_some_and(|id| id != "forged-1"));
    assert_nothing_forged(&seen);
    assert!(seen.header("authorization").is_none(), "the upstream does not see the key");
    assert!(!reply.text().contains("forged"));
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

fn assert_nothing_forged(seen: &Call) {
    for (name, value) in &seen.headers {
        let forged = ["second", "gold", "another", "forged-1"];
        assert!(!forged.iter().any(|text| value == text), "{name} reached the upstream");
        assert!(!name.as_str().contains('_'), "{name} reached the upstream");
        assert!(!name.as_str().contains("hedge"), "{name} reached the upstream");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_lower_its_priority_and_never_raise_it() {
    let stack = stack("priorities").await;
    let client = stack.client("honest").unwrap();
    let call = |priority: &str| client.chat_request(Chat::to(MODEL).text()).header("x-priority", priority.to_owned());
    for (asked, got) in [("7", "7"), ("2", "2"), ("0", "2")] {
        let reply = send(call(asked)).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.summary());
        let seen = stack.upstream.calls().last().unwrap();
        assert_eq!(seen.header("x-priority"), Some(got), "asked for {asked}");
    }
    let cases = [
        case("x-priority: 11", call("11"), 400, "invalid_priority"),
        case("x-priority: -1", call("-1"), 400, "invalid_priority"),
        case("x-priority: high", call("high"), 400, "invalid_priority"),
    ];
    assert_refused(&stack, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_route_lists_is_not_reachable() {
    let stack = stack("bad-paths").await;
    let client = stack.client("honest").unwrap();
    let post = |path| client.request(Method::POST, path).body("{}");
    let cases = [
        case("an unlisted path", post("/v1/load_lora_adapter"), 404, "path_not_listed"),
        case("another unlisted path", client.request(Method::GET, "/metrics"), 404, "path_not_listed"),
        case("a longer path", post("/v1/chat/completions/x"), 404, "path_not_listed"),
        case("another method", client.request(Method::GET, CHAT_PATH), 405, "method_not_allowed"),
    ];
    assert_refused(&stack, cases).await;
    // Envoy itself refuses these before the filter sees them; what counts is that they stop here.
    for path in ["/v1%2Fload_lora_adapter", "/v1/chat/completions%2f..%2f..%2fload_lora_adapter"] {
        let reply = send(post(path)).await.unwrap();
        assert!((400..500).contains(&reply.status), "{path}: {}", reply.summary());
    }
    let paths: BTreeSet<String> = stack.upstream.calls().all().into_iter().map(|call| call.path).collect();
    assert_eq!(paths, BTreeSet::from([CHAT_PATH.to_owned()]), "paths that reached the upstream");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_two_readers_could_read_differently_is_refused() {
    let stack = stack("bad-bodies").await;
    let client = stack.client("honest").unwrap();
    let fine = Chat::to(MODEL).text();
    let body = |text: String| client.chat_request(text);
    let twice = fine.replacen('{', r#"{"model":"another","#, 1);
    let escaped = fine.replacen('{', r#"{"mo\u0064el":"another","#, 1);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_inside = fine.replacen('{', &format!("{{\"tools\":{deep},"), 1);
    let zipped = client.chat_request(gzip(fine.as_bytes())).header("content-encoding", "gzip");
    let mut not_utf8 = fine.replace("Name a colour.", "?").into_bytes();
    let mark = not_utf8.iter().position(|byte| *byte == b'?').unwrap();
    not_utf8[mark] = 0xff;
    let cases = [
        case("not JSON", body("model=x".to_owned()), 400, "invalid_body"),
        case("an empty body", body(String::new()), 400, "invalid_body"),
        case("JSON that is no object", body("[1,2]".to_owned()), 400, "invalid_body"),
        case("gzip", zipped, 415, "unsupported_encoding"),
        case("gzip that does not say so", client.chat_request(gzip(fine.as_bytes())), 400, "invalid_body"),
        case("model twice", body(twice), 400, "invalid_body"),
        case("model twice, once escaped", body(escaped), 400, "invalid_body"),
        case("garbage after the end", body(format!("{fine} x")), 400, "invalid_body"),
        case("a second document", body(format!("{fine}{fine}")), 400, "invalid_body"),
        case("cut off", body(fine[..fine.len() - 2].to_owned()), 400, "invalid_body"),
        case("a byte order mark", body(format!("\u{feff}{fine}")), 400, "invalid_body"),
        case("not UTF-8", client.chat_request(not_utf8), 400, "invalid_body"),
        case("100,000 deep", body(deep), 400, "invalid_body"),
        case("100,000 deep in a field", body(deep_inside), 400, "invalid_body"),
    ];
    assert_refused(&stack, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_said_to_be_json_is_refused_in_the_callers_dialect() {
    let stack = stack("bad-types").await;
    let client = stack.client("honest").unwrap();
    let typed =
        |path, kind: &str| client.request(Method::POST, path).header("content-type", kind).body(Chat::to(MODEL).text());
    let form = "application/x-www-form-urlencoded";
    let twice = || typed(CHAT_PATH, "application/json").header("content-type", form);
    let cases = [
        case("a form", typed(CHAT_PATH, form), 415, "unsupported_encoding"),
        case("parts", typed(CHAT_PATH, "multipart/form-data; boundary=x"), 415, "unsupported_encoding"),
        case("two types", twice(), 415, "unsupported_encoding"),
    ];
    assert_refused(&stack, cases).await;
    let anthropic = refused(typed("/v1/messages", form), 415, "unsupported_encoding").await;
    assert_eq!(anthropic["error"]["type"], "invalid_request_error", "{anthropic}");
    let kserve = refused(typed("/v2/models/any/generate", form), 415, "unsupported_encoding").await;
    assert!(kserve["error"].is_string(), "{kserve}");
    let two_over_http2 = client.over_http2().unwrap().chat_request(Chat::to(MODEL).text()).header("content-type", form);
    assert_eq!(send(two_over_http2).await.unwrap().status, 415);
    let untyped = send(client.request(Method::POST, CHAT_PATH).body(Chat::to(MODEL).text())).await.unwrap();
    assert_eq!(untyped.status, 200, "{}", untyped.summary());
    assert_eq!(stack.upstream.calls().last().unwrap().header("content-type"), Some("application/json"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_would_obey_beside_the_body_that_was_read_does_not_reach_it() {
    let stack = stack("bad-fields").await;
    let client = stack.client("honest").unwrap();
    let with = |field, value| client.chat_request(Chat::to(MODEL).with(field, value).text());
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let counted = format!(r#"{{"model":"{MODEL}","messages":[],"thinking":{deep},"max_tokens":{deep}}}"#);
    let count = client.request(Method::POST, "/v1/messages/count_tokens").body(counted);
    let escaped =
        |version| client.request(Method::POST, &format!("/v2/models/{MODEL}/versions/{version}/infer")).body("{}");
    let cases = [
        case("another request within", with("extra_body", json!({"model": "another-model"})), 400, "invalid_body"),
        case("an adapter", with("lora_path", json!("other")), 400, "invalid_body"),
        case("a server's own tags", with("metadata", json!({"tags": ["gold"]})), 400, "invalid_body"),
        case("a Kelvin sign", with("fallbac\u{212a}s", json!(["another-model"])), 400, "invalid_body"),
        case("a long s", with("me\u{17f}\u{17f}ages", json!([])), 400, "invalid_body"),
    ];
    assert_refused(&stack, cases).await;
    refused(count, 400, "invalid_body").await;
    refused(escaped("..%252f..%252fmodels"), 400, "path_not_normalized").await;
    let path = "/v1/chat/completions?api-version=2024-10-21&model=another-model";
    let queried = client.request(Method::POST, path).header("x-litellm-tags", "gold").body(Chat::to(MODEL).text());
    assert_eq!(send(queried).await.unwrap().status, 200);
    let seen = stack.upstream.calls().last().unwrap();
    assert_eq!((seen.path.as_str(), seen.header("x-litellm-tags")), (CHAT_PATH, None));
    assert_eq!(seen.query.as_deref(), Some("api-version=2024-10-21"));
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_nobody_can_mean_are_refused() {
    let stack = stack("bad-numbers").await;
    let client = stack.client("honest").unwrap();
    let with = |field, value| client.chat_request(Chat::to(MODEL).with(field, value).text());
    let raw = |number: &str| {
        let text = Chat::to(MODEL).max_tokens(777).text();
        client.chat_request(text.replace("777", number))
    };
    let model = |name| client.chat_request(Chat::to(name).text());
    let cases = [
        case("n: 1000", with("n", json!(1000)), 400, "invalid_body"),
        case("n: 0", with("n", json!(0)), 400, "invalid_body"),
        case("max_tokens negative", with("max_tokens", json!(-1)), 400, "invalid_body"),
        case("max_tokens a string", with("max_tokens", json!("10")), 400, "invalid_body"),
        case("max_tokens a fraction", with("max_tokens", json!(1.5)), 400, "invalid_body"),
        case("max_tokens over the context", with("max_tokens", json!(1_000_000)), 400, "context_length_exceeded"),
        case("max_tokens over 64 bits", raw("99999999999999999999"), 400, "invalid_body"),
        case("max_tokens over any float", raw("1e999"), 400, "invalid_body"),
        case("stream a string", with("stream", json!("yes")), 400, "invalid_body"),
        case("a model nobody has", model("nobody-has-this"), 404, "model_not_found"),
        case("model a number", with("model", json!(7)), 400, "invalid_body"),
    ];
    assert_refused(&stack, cases).await;
    let missing = send(model("nobody-has-this")).await.unwrap().json();
    assert_eq!(missing["error"]["code"], "model_not_found", "{missing}");
    assert_eq!(missing["error"]["param"], "model", "{missing}");
    let long = send(with("max_tokens", json!(1_000_000))).await.unwrap().json();
    assert_eq!(long["error"]["code"], "context_length_exceeded", "{long}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_misbehaves_costs_its_own_call_and_no_slot() {
    let stack = stack("bad-upstreams").await;
    let client = stack.client("honest").unwrap();
    let chat = || Chat::to(MODEL);

    let cut = client.chat(&chat().stream().behave(json!({"ending": "cut_line"}))).await.unwrap();
    assert_eq!(cut.status, 200, "{}", cut.summary());
    assert!(!cut.text().ends_with('\n'), "the client sees what the upstream sent: {}", cut.text());
    settled(&stack, "estimated", 1).await;

    let broken = client.chat(&chat().stream().behave(json!({"ending": "reset_midway", "words": 8}))).await.unwrap();
    assert!(broken.broken, "a reset stays a reset: {}", broken.summary());
    let broken = client.chat(&chat().behave(json!({"ending": "reset_midway"}))).await.unwrap();
    assert!(broken.broken || broken.status >= 500, "{}", broken.summary());
    let reset = client.chat(&chat().behave(json!({"ending": "reset_at_once"}))).await.unwrap();
    assert!(reset.status == 502 || reset.status == 503, "{}", reset.summary());
    let failed = client.chat(&chat().behave(json!({"status": 500}))).await.unwrap();
    assert_eq!((failed.status, failed.reason()), (500, None), "the model's own error passes");
    let silent = client.chat(&chat().behave(json!({"usage": null}))).await.unwrap();
    assert_eq!(silent.status, 200);
    let silent = client.chat(&chat().stream().behave(json!({"usage": null}))).await.unwrap();
    assert_eq!(silent.status, 200);
    settled(&stack, "estimated", 3).await;

    assert_nothing_lost(&stack, &client).await;
    let metrics = stack.operators().metrics().await.unwrap();
    let settlements = metrics.sum("sluice_settlements_total", &[]);
    assert_eq!(settlements, stack.upstream.calls().count() as u64, "one settlement a call");
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_that_cannot_be_true_is_not_charged() {
    let stack = stack("boasting-upstream").await;
    let client = stack.client("honest").unwrap();
    // More than the pool's context holds; a stream's numbers are as little to be trusted as a document's.
    let boasting = json!({"usage": {"input": 11, "output": 1_000_000_000_u64}});
    for chat in [Chat::to(MODEL), Chat::to(MODEL).stream()] {
        assert_eq!(client.chat(&chat.behave(boasting.clone())).await.unwrap().status, 200);
    }
    let metrics = stack
        .operators()
        .wait_for_metrics("both calls are settled", SLACK, |metrics| metrics.sum("sluice_settlements_total", &[]) >= 2)
        .await
        .unwrap();
    assert_eq!(metrics.sum("sluice_settlements_total", &[("usage", "estimated")]), 2, "neither is believed");
    let charged: Vec<_> = metrics.matching("sluice_tokens_total", &[]).collect();
    let tokens = metrics.sum("sluice_tokens_total", &[]);
    // Two short prompts and answers; the lie is a thousand million.
    assert!((1..=200).contains(&tokens), "what our own estimate says: {charged:?}");
}

async fn settled(stack: &Stack, usage: &str, at_least: u64) {
    stack
        .operators()
        .wait_for_metrics(&format!("{at_least} calls settled as {usage}"), SLACK, |metrics| {
            metrics.sum("sluice_settlements_total", &[("usage", usage)]) >= at_least
        })
        .await
        .unwrap();
}

/// One bad call of another dialect than OpenAI's: the body of its refusal.
async fn refused(request: RequestBuilder, status: u16, reason: &str) -> Value {
    let reply = send(request).await.unwrap();
    assert_eq!((reply.status, reply.reason()), (status, Some(reason)), "{}", reply.summary());
    reply.json()
}

/// Makes every bad call, twice over what a tenant could hold if refusals leaked, and tells all that is wrong at once.
async fn assert_refused<const N: usize>(stack: &Stack, cases: [Case; N]) {
    let before = stack.upstream.calls().count();
    let mut wrong = Vec::new();
    for case in cases {
        let reply = send(case.request).await.unwrap();
        if (reply.status, reply.reason()) != (case.status, Some(case.reason)) {
            wrong.push(format!("{}: {} instead of {} {}", case.what, reply.summary(), case.status, case.reason));
        } else if let Err(problem) = reply.check_error() {
            wrong.push(format!("{}: {problem}: {}", case.what, reply.summary()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(stack.upstream.calls().count(), before, "none of them reached the model");
    assert_nothing_lost(stack, &stack.client("honest").unwrap()).await;
}

/// Nothing runs or waits, and the whole capacity still serves.
async fn assert_nothing_lost(stack: &Stack, client: &Client) {
    stack.operators().wait_until_idle(SLACK).await.unwrap();
    let stats = stack.operators().stats().await.unwrap();
    assert_eq!(stats["total_queued_now"], 0, "{stats}");
    let reply = client.chat(&Chat::to(MODEL)).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.summary());
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}
