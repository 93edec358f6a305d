//! What `istio/` ships serves real requests: the EnvoyFilter in full, the WasmPlugin in headers mode.

use e2e::client::{Chat, send};
use e2e::stack::{Bootstrap, MODEL, POOL, Stack};
use e2e::tenant::Tenant;
use reqwest::Method;
use std::time::Duration;

const SLACK: Duration = Duration::from_secs(10);

async fn stack(name: &str, bootstrap: Bootstrap) -> Stack {
    Stack::builder(name).bootstrap(bootstrap).tenant(Tenant::new("only")).start().await.unwrap()
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
