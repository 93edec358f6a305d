//! What `istio/` ships serves real requests: the EnvoyFilter in full, the WasmPlugin in headers mode. And a gateway that
//! has lost the filter serves nobody.

use e2e::client::{CHAT_PATH, Chat, Reply, send};
use e2e::stack::{Bootstrap, MODEL, POOL, Stack};
use e2e::tenant::Tenant;
use reqwest::Method;
use serde_json::Value;
use std::time::Duration;

const SLACK: Duration = Duration::from_secs(10);
/// What shows the routes that a call comes from the filter.
const ROUTE: &str = "x-sluice-route";
const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";

/// Takes the HTTP filters whose type has this word in it out of a bootstrap, and there must be some.
fn remove_filters(bootstrap: &mut Value, word: &str) {
    let filters = bootstrap.pointer_mut(MANAGER).unwrap()["http_filters"].as_array_mut().unwrap();
    let before = filters.len();
    filters.retain(|filter| !filter["typed_config"]["@type"].as_str().unwrap().contains(word));
    assert!(filters.len() < before, "no filter is a {word}");
}

/// What a client may have found out, and what a client may guess.
fn forgeries() -> Vec<Vec<(&'static str, &'static str)>> {
    let pool = ("x-pool", POOL);
    vec![
        vec![],
        vec![pool],
        vec![pool, ("x-tenant-id", "only"), ("x-admission-id", "1"), ("x-priority", "0")],
        vec![pool, (ROUTE, "SET-ME")],
        vec![pool, (ROUTE, "")],
        vec![pool, (ROUTE, "0123456789abcdef0123456789abcdef")],
        vec![("X_Pool", POOL), ("X_Sluice_Route", "SET-ME")],
        vec![pool, ("content-type", "application/grpc")],
    ]
}

async fn stack(name: &str, bootstrap: Bootstrap) -> Stack {
    Stack::builder(name).bootstrap(bootstrap).tenant(Tenant::new("only")).start().await.unwrap()
}

/// To a gRPC client a refusal is 200 with a `grpc-status`.
fn is_refused(reply: &Reply, statuses: &[u16]) -> bool {
    match reply.header("grpc-status") {
        Some(status) => status != "0",
        None => statuses.contains(&reply.status),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_envoy_filter_admits_tags_and_meters() {
    let stack = stack("envoy-filter", Bootstrap::EnvoyFilter).await;
    assert_serves(&stack).await;
    // Only body mode can know that.
    let reply = stack.client("only").unwrap().chat(&Chat::to("nobody-has-this")).await.unwrap();
    assert_eq!((reply.status, reply.reason()), (404, Some("model_not_found")), "{}", reply.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wasm_plugin_admits_tags_and_meters_without_reading_the_body() {
    let stack = stack("wasm-plugin", Bootstrap::WasmPlugin).await;
    assert_serves(&stack).await;
}

async fn assert_serves(stack: &Stack) {
    let client = stack.client("only").unwrap();
    // A stream asks for its usage itself, because headers mode cannot add the wish to the body.
    let chats = [Chat::to(MODEL), Chat::to(MODEL).stream_with_usage()];
    for chat in &chats {
        let reply = client.chat(chat).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.summary());
        let seen = stack.upstream.calls().last().unwrap();
        assert_eq!(seen.header("x-tenant-id"), Some("only"));
        assert_eq!(seen.header("x-pool"), Some(POOL));
        assert_eq!(seen.header(ROUTE), None, "the secret stays in the gateway");
    }
    let refused = stack.anonymous().unwrap().chat(&Chat::to(MODEL)).await.unwrap();
    assert_eq!((refused.status, refused.reason()), (401, Some("missing_key")), "{}", refused.summary());

    let used: u64 = stack.upstream.calls().all().iter().filter_map(|call| call.usage).map(|usage| usage.total()).sum();
    stack
        .operators()
        .wait_for_metrics("both calls are charged what the model reported", SLACK, |metrics| {
            let kinds = ["input", "output"];
            let tokens = |kind| metrics.sum("sluice_tokens_total", &[("tenant", "only"), ("kind", kind)]);
            kinds.into_iter().map(tokens).sum::<u64>() == used
        })
        .await
        .unwrap();
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn kserve_s_paths_are_routed_behind_the_envoy_filter_and_in_plain_envoy() {
    for (name, bootstrap) in [("kserve-istio", Bootstrap::EnvoyFilter), ("kserve-envoy", Bootstrap::Envoy)] {
        let stack = stack(name, bootstrap).await;
        let client = stack.client("only").unwrap();
        let rest = client.request(Method::POST, &format!("/v2/models/{MODEL}/infer")).body("{\"inputs\":[]}");
        // A frame with one field, the model's name.
        let mut message = vec![0, 0, 0, 0, 14, 0x0a, 12];
        message.extend_from_slice(MODEL.as_bytes());
        let grpc = client.over_http2().unwrap();
        let path = "/inference.GRPCInferenceService/ModelInfer";
        let grpc = grpc.request(Method::POST, path).header("content-type", "application/grpc").header("te", "trailers");
        for (request, path) in [(rest, format!("/v2/models/{MODEL}/infer")), (grpc.body(message), path.to_owned())] {
            let reply = send(request).await.unwrap();
            assert_eq!(reply.status, 200, "{path}: {}", reply.summary());
            let call = stack.upstream.calls().last().unwrap();
            assert_eq!((call.path.as_str(), call.header("x-pool")), (path.as_str(), Some(POOL)), "{name}");
        }
        let load = client.request(Method::POST, &format!("/v2/repository/models/{MODEL}/load"));
        assert_eq!(send(load).await.unwrap().status, 404);
        assert_eq!(stack.upstream.calls().count(), 2);
        stack.operators().wait_until_idle(SLACK).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_without_the_filter_serves_nobody_whatever_is_forged() {
    // The routes alone must hold too: a gateway elsewhere has no AuthorizationPolicy of ours either.
    let kinds = [
        ("lost-envoy", Bootstrap::Envoy, false),
        ("lost-filter", Bootstrap::EnvoyFilter, false),
        ("lost-plugin", Bootstrap::WasmPlugin, false),
        ("lost-filter-and-policy", Bootstrap::EnvoyFilter, true),
    ];
    for (name, bootstrap, loses_policies) in kinds {
        let builder = Stack::builder(name).bootstrap(bootstrap).tenant(Tenant::new("only"));
        let builder = builder.envoy_config(move |bootstrap| {
            remove_filters(bootstrap, "filters.http.wasm");
            if loses_policies {
                remove_filters(bootstrap, "filters.http.rbac");
            }
        });
        let stack = builder.start().await.unwrap();
        let client = stack.client("only").unwrap();
        for forged in forgeries() {
            for path in [CHAT_PATH, "/v1/load_lora_adapter"] {
                let request = forged.iter().fold(client.request(Method::POST, path), |request, (header, value)| {
                    request.header(*header, *value)
                });
                let reply = send(request.body("{}")).await.unwrap();
                assert!(is_refused(&reply, &[400, 403, 404]), "{name} {path} {forged:?}: {}", reply.summary());
            }
        }
        assert_eq!(stack.upstream.calls().count(), 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_filter_a_forged_header_gets_nobody_past_it() {
    for (name, bootstrap) in [("forged-istio", Bootstrap::EnvoyFilter), ("forged-envoy", Bootstrap::Envoy)] {
        let stack = stack(name, bootstrap).await;
        for forged in forgeries() {
            for (path, stranger) in [(CHAT_PATH, 401), ("/v1/load_lora_adapter", 404)] {
                let request = stack.anonymous().unwrap().request(Method::POST, path);
                let request = forged.iter().fold(request, |request, (header, value)| request.header(*header, *value));
                let reply = send(request.body("{}")).await.unwrap();
                let refused = is_refused(&reply, &[400, 403, stranger]);
                assert!(refused, "{name} {path} {forged:?}: {}", reply.summary());
            }
        }
        assert_eq!(stack.upstream.calls().count(), 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn istio_refuses_every_header_that_only_the_filter_sets_and_plain_envoy_removes_it() {
    let (istio, envoy) =
        (stack("headers-istio", Bootstrap::EnvoyFilter).await, stack("headers-envoy", Bootstrap::Envoy).await);
    let chat = |stack: &Stack| stack.client("only").unwrap().chat_request(Chat::to(MODEL).text());
    assert_eq!(send(chat(&istio)).await.unwrap().status, 200);
    // Whatever reaches the model under these names is the filter's word, so this finds those that a list forgets.
    let seen = istio.upstream.calls().last().unwrap();
    let ours = ["x-tenant-", "x-pool", "x-admission-", "x-sluice-"];
    let mut names: Vec<String> = seen
        .headers
        .keys()
        .map(ToString::to_string)
        .filter(|name| ours.iter().any(|own| name.starts_with(own)))
        .collect();
    assert!(names.len() >= 5, "{names:?}");
    names.push(ROUTE.to_owned());
    for name in &names {
        let reply = send(chat(&istio).header(name, "forged")).await.unwrap();
        assert_eq!(reply.status, 403, "{name}: {}", reply.summary());
        let underscored = send(chat(&istio).header(name.replace('-', "_"), "forged")).await.unwrap();
        assert_eq!(underscored.status, 400, "{name}: {}", underscored.summary());
        for spelled in [name.clone(), name.replace('-', "_")] {
            let reply = send(chat(&envoy).header(&spelled, "forged")).await.unwrap();
            assert_eq!(reply.status, 200, "{spelled}: {}", reply.summary());
            let call = envoy.upstream.calls().last().unwrap();
            assert!(call.header(&spelled).is_none_or(|value| value != "forged"), "{spelled}");
        }
    }
    let reply = send(chat(&istio).header("x-priority", "9").header("x-sluice-deadline-ms", "60000")).await.unwrap();
    assert_eq!(reply.status, 200, "a client's own to send: {}", reply.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_secret_was_never_set_does_not_start() {
    for (name, bootstrap) in [("unset-filter", Bootstrap::EnvoyFilter), ("unset-plugin", Bootstrap::WasmPlugin)] {
        let builder = Stack::builder(name).bootstrap(bootstrap).tenant(Tenant::new("only"));
        let started = builder.plugin_config(|plugin| plugin["route_secret"] = Value::from("SET-ME")).start().await;
        let Err(refused) = started else { panic!("{name} started") };
        assert!(format!("{refused:#}").contains("route_secret"), "{name}: {refused:#}");
    }
}
