//! The real `openai` and `anthropic` clients work unchanged in every dialect that the real model speaks, and what Sluice
//! charges is what the model reported.

use anyhow::{Context, Result, ensure};
use e2e::paths;
use e2e::stack::{MODEL, Stack};
use e2e::tenant::Tenant;
use e2e::upstream::{Call, Usage};
use serde::Deserialize;
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

const SETTLES_WITHIN: Duration = Duration::from_secs(10);
const ALIAS: &str = "gpt-4o-mini";
/// In the order in which the script makes those calls that reach the model.
const REACH_THE_MODEL: [&str; 11] = [
    "chat by alias",
    "chat of two",
    "chat with tools",
    "chat stream",
    "completion",
    "completion stream",
    "response",
    "response stream",
    "message",
    "message stream",
    "count",
];

/// What a client saw of one call.
#[derive(Debug, Deserialize)]
struct Seen {
    call: String,
    usage: Option<Usage>,
    saw: Value,
}

async fn stack() -> Stack {
    Stack::builder("dialect-clients")
        .real_model()
        .tenant(Tenant::new("only"))
        .sidecar_config(|config| {
            config["models"] = json!([{
                "name": MODEL, "aliases": [ALIAS], "upstream": "served-name",
                "price": {"output_micros_per_million": 1_000_000},
            }]);
        })
        .start()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_clients_get_and_are_charged_what_the_model_reports_in_every_dialect() {
    let stack = stack().await;
    let plan = json!({
        "base_url": stack.envoy.base(), "model": MODEL, "alias": ALIAS,
        "key": stack.key("only").unwrap(), "stranger": "sk-stranger",
    });
    let seen = run_clients(&plan).await.unwrap();
    let saw = |call: &str| &seen.iter().find(|seen| seen.call == call).unwrap().saw;

    assert_eq!(*saw("models"), json!([ALIAS, MODEL]));
    assert_eq!(*saw("anthropic models"), json!([ALIAS, MODEL]));
    assert_eq!(*saw("model"), json!(MODEL));
    assert_eq!(*saw("chat of two"), json!(2));
    assert_eq!(*saw("chat stream"), json!(false), "nobody asked for usage, so nobody sees any");
    // llama.cpp puts a usage into the last choice of a completion unasked, and that is not ours to take out.
    assert_eq!(*saw("completion stream"), json!(true));
    assert!(saw("count").as_u64().unwrap() > 0);
    for (call, class, status, reason) in [
        ("unknown model", "NotFoundError", 404, "model_not_found"),
        ("unknown key", "AuthenticationError", 401, "unknown_key"),
        ("anthropic unknown model", "NotFoundError", 404, "model_not_found"),
        ("anthropic unknown key", "AuthenticationError", 401, "unknown_key"),
    ] {
        let refusal = saw(call);
        assert_eq!((&refusal["class"], &refusal["status"]), (&json!(class), &json!(status)), "{call}: {refusal}");
        assert_eq!((&refusal["reason"], &refusal["should_retry"]), (&json!(reason), &json!("false")), "{call}");
    }
    assert_eq!(saw("anthropic unknown key")["type"], "authentication_error");

    let calls = stack.upstream.calls().all();
    assert_eq!(calls.len(), REACH_THE_MODEL.len(), "{calls:?}");
    for (call, name) in calls.iter().zip(REACH_THE_MODEL) {
        assert_eq!(call.json()["model"], "served-name", "{name}");
        if name != "count" {
            assert_eq!(call.header("accept-encoding"), Some("identity"), "{name}: a metered reply must be readable");
        }
        let seen = seen.iter().find(|seen| seen.call == name).unwrap();
        if seen.usage.is_some() {
            assert_eq!(seen.usage, call.usage, "{name}: what the client and the model say");
        }
    }
    // The model says what it likes: its first token may be its last.
    let is_longer_stream =
        |(call, name): &(&Call, &str)| name.ends_with("stream") && call.usage.is_some_and(|usage| usage.output > 1);
    let longer_streams = calls.iter().zip(REACH_THE_MODEL).filter(is_longer_stream).count() as u64;
    assert_charged(&stack, calls.iter().filter_map(|call| call.usage).sum(), longer_streams).await;
}

/// `longer_streams` had more than one token, and so time between two.
async fn assert_charged(stack: &Stack, reported: Usage, longer_streams: u64) {
    let operators = stack.operators();
    operators
        .wait_for_metrics("all calls are settled", SETTLES_WITHIN, |metrics| {
            metrics.sum("sluice_settlements_total", &[]) >= REACH_THE_MODEL.len() as u64
        })
        .await
        .unwrap();
    // That page may have been written while the last call was counted.
    operators.wait_until_idle(SETTLES_WITHIN).await.unwrap();
    let metrics = operators.metrics().await.unwrap();
    let kind = |kind| metrics.sum("sluice_model_tokens_total", &[("model", MODEL), ("kind", kind)]);
    let charged = Usage { input: kind("input"), output: kind("output"), cached: kind("cached") };
    assert_eq!(charged, reported);
    assert_eq!(metrics.sum("sluice_settlements_total", &[("usage", "reported")]), 10);
    assert_eq!(metrics.sum("sluice_fixed_charges_total", &[]), 1, "the count of tokens is a request");
    assert_eq!(metrics.sum("sluice_model_cost_micros_total", &[("model", MODEL)]), reported.output);
    let of_model = [("gen_ai_request_model", MODEL)];
    assert_eq!(metrics.sum("gen_ai_client_token_usage_count", &[("gen_ai_token_type", "output")]), 10);
    assert_eq!(metrics.sum("gen_ai_server_request_duration_seconds_count", &of_model), 11);
    assert_eq!(metrics.sum("gen_ai_server_time_to_first_token_seconds_count", &of_model), 4);
    assert_eq!(metrics.sum("gen_ai_server_time_per_output_token_seconds_count", &of_model), longer_streams);
}

async fn run_clients(plan: &Value) -> Result<Vec<Seen>> {
    let mut python = tokio::process::Command::new(paths::tool("venv/bin/python")?)
        .arg(paths::root().join("tests/clients/sdks.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = python.stdin.take().context("no stdin")?;
    stdin.write_all(plan.to_string().as_bytes()).await?;
    drop(stdin);
    let output = python.wait_with_output().await?;
    ensure!(output.status.success(), "sdks.py: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}
