//! LiteLLM's proxy between Sluice and the model: what it reports in each dialect is what is charged.

use anyhow::Result;
use e2e::client::{CHAT_PATH, Chat, Reply, send};
use e2e::folder::Folder;
use e2e::metrics::Metrics;
use e2e::raw_http2::{Leaving, RawCall};
use e2e::stack::litellm::send_master_key;
use e2e::stack::{LiteLlm, MODEL, Model, Stack};
use e2e::tenant::Tenant;
use e2e::upstream::{Upstream, Usage};
use e2e::wait::wait_until;
use reqwest::Method;
use serde_json::json;
use std::time::Duration;

const SETTLES_WITHIN: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn what_litellm_reports_is_what_is_charged_in_every_dialect_it_translates() {
    let folder = Folder::create("litellm-server").unwrap();
    let model = Model::start(&folder).await.unwrap();
    let litellm = LiteLlm::start(&folder, model.base()).await.unwrap();
    let stack = Stack::builder("litellm-stack")
        .served_by(&litellm.base())
        .tenant(Tenant::new("only"))
        .envoy_config(send_master_key)
        .start()
        .await
        .unwrap();
    let client = stack.client("only").unwrap();

    let chat = Chat::to(MODEL).max_tokens(5);
    let plain = checked(client.chat(&chat).await);
    assert!(plain.json()["usage"]["completion_tokens"].is_number());
    let silent = checked(client.chat(&chat.clone().stream()).await);
    assert!(Usage::in_reply(&silent.body).is_none(), "nobody asked for usage: {}", silent.summary());
    let told = checked(client.chat(&chat.stream_with_usage()).await);
    assert!(Usage::in_reply(&told.body).is_some(), "{}", told.summary());
    for stream in [false, true] {
        let message = json!({
            "model": MODEL, "max_tokens": 5, "stream": stream, "messages": [{"role": "user", "content": "Hello"}],
        });
        let reply = checked(send(client.request(Method::POST, "/v1/messages").json(&message)).await);
        assert!(Usage::in_reply(&reply.body).is_some(), "{}", reply.summary());
    }

    let metrics = stack
        .operators()
        .wait_for_metrics("all calls are settled", SETTLES_WITHIN, |metrics| {
            metrics.sum("sluice_settlements_total", &[]) >= 5
        })
        .await
        .unwrap();
    let kind = |kind| metrics.sum("sluice_model_tokens_total", &[("model", MODEL), ("kind", kind)]);
    let charged = Usage { input: kind("input"), output: kind("output"), cached: kind("cached") };
    let reported = stack.upstream.calls().all().iter().map(|call| call.usage.unwrap()).sum();
    assert_eq!(charged, reported);
    assert_eq!(metrics.sum("sluice_settlements_total", &[("usage", "reported")]), 5);
}

fn checked(reply: Result<Reply>) -> Reply {
    let reply = reply.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.summary());
    reply
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_litellm_works_on_after_its_client_left_keeps_its_slot() {
    let folder = Folder::create("litellm-server-left").unwrap();
    // What stands behind LiteLLM, and sees what LiteLLM makes of a client that has left.
    let behind = Upstream::scripted().await.unwrap();
    let litellm = LiteLlm::start(&folder, &format!("http://{}", behind.address())).await.unwrap();
    let stack = Stack::builder("litellm-left")
        .served_by(&litellm.base())
        .tenant(Tenant::new("only"))
        .capacity(1)
        .sidecar_config(|config| config["pools"][0]["on_abort"] = json!({"runs_on_ms": 20_000}))
        .envoy_config(send_master_key)
        .start()
        .await
        .unwrap();
    let (calls, operators) = (behind.calls(), stack.operators());
    calls.hold();
    let address = stack.envoy.base().replace("http://", "");
    let text = Chat::to(MODEL).text();
    let call = RawCall::post(&address, CHAT_PATH, stack.key("only").unwrap(), &text).await.unwrap();
    wait_until("LiteLLM has passed the call on", SETTLES_WITHIN, || async { calls.running() == 1 }).await.unwrap();
    let _connection = call.leave(Leaving::Cancel).await.unwrap();
    let is_orphan = |metrics: &Metrics| metrics.sum("sluice_orphans", &[]) == 1;
    operators.wait_for_metrics("the call is an orphan", SETTLES_WITHIN, is_orphan).await.unwrap();
    let client = stack.client("only").unwrap();
    let next = tokio::spawn(async move { client.chat(&Chat::to(MODEL)).await });
    operators.wait_for_queued(1, SETTLES_WITHIN).await.unwrap();
    assert_eq!(calls.max_running(), 1);
    calls.release();
    let reply = next.await.unwrap().unwrap();
    assert_eq!(reply.status, 200, "{}", reply.summary());
    let left = &calls.all()[0];
    assert!(left.ended && left.usage.is_some(), "LiteLLM had the abandoned call to its end");
}
