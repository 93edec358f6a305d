//! LiteLLM's proxy between Sluice and the model: what it reports in each dialect is what is charged.

use anyhow::Result;
use e2e::client::{Chat, Reply, send};
use e2e::folder::Folder;
use e2e::stack::litellm::MASTER_KEY;
use e2e::stack::{LiteLlm, MODEL, Model, Stack};
use e2e::tenant::Tenant;
use e2e::upstream::Usage;
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
        .envoy_config(|bootstrap| {
            let manager = &mut bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0];
            let host = &mut manager["typed_config"]["route_config"]["virtual_hosts"][0];
            let key = json!({"key": "authorization", "value": format!("Bearer {MASTER_KEY}")});
            host["request_headers_to_add"] = json!([{"header": key, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]);
        })
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
    let kind = |kind| metrics.sum("sluice_tokens_total", &[("model", MODEL), ("kind", kind)]);
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
