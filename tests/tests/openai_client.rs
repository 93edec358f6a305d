//! The real `openai` client works unchanged, and what Sluice charges is what the model used, to the token.

use anyhow::{Context, Result, ensure};
use e2e::client::Chat;
use e2e::metrics::Metrics;
use e2e::paths;
use e2e::stack::{MODEL, Stack};
use e2e::tenant::Tenant;
use e2e::upstream::Usage;
use serde::Deserialize;
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

const TENANTS: [&str; 4] = ["dept-a", "dept-b", "dept-c", "premium"];
const CALLS: usize = 100;
/// A settlement travels with the filter's next tick at the latest.
const SETTLES_WITHIN: Duration = Duration::from_secs(10);

/// What the client saw of one call.
#[derive(Debug, Deserialize)]
struct Seen {
    usage: Option<Usage>,
    usage_chunks: u64,
}

async fn stack(name: &str) -> Stack {
    let builder = Stack::builder(name).real_model().capacity(4);
    TENANTS.iter().fold(builder, |builder, id| builder.tenant(Tenant::new(id))).start().await.unwrap()
}

/// Every kind of call, of every tenant, of every length from 1 to 12.
fn call(stack: &Stack, index: usize) -> Value {
    json!({
        "key": stack.key(TENANTS[index % TENANTS.len()]).unwrap(),
        "user": user(index),
        "stream": is_stream(index),
        "include_usage": asks_for_usage(index),
        "max_tokens": 1 + index % 12,
        // A prompt that others share and an end of its own: the model's prefix cache gets used.
        "prompt": format!("You are a clerk in a mill. Say something about the number {}.", index % 7),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usage_that_the_openai_client_sees_is_what_sluice_charges_for_100_mixed_calls() {
    let stack = stack("openai-mixed").await;
    let plan = json!({
        "base_url": format!("{}/v1", stack.envoy.base()),
        "model": MODEL,
        "parallel": 6,
        "calls": (0..CALLS).map(|index| call(&stack, index)).collect::<Vec<_>>(),
    });
    let seen = run_client(&plan).await.unwrap();
    assert_eq!(seen.len(), CALLS);
    let metrics = stack
        .operators()
        .wait_for_metrics("all calls are settled", SETTLES_WITHIN, |metrics| {
            metrics.sum("sluice_settlements_total", &[]) >= CALLS as u64
        })
        .await
        .unwrap();

    for (index, seen) in seen.iter().enumerate() {
        let (stream, asked) = (is_stream(index), asks_for_usage(index));
        assert_eq!(seen.usage_chunks, u64::from(asked), "call {index} sees a usage chunk if it asked for one");
        let expected = if !stream || asked { reported_for(&stack, index) } else { None };
        assert_eq!(seen.usage, expected, "call {index}: what the client and the model say");
    }
    for tenant in TENANTS {
        let reported = reported_by_the_model(&stack, tenant);
        assert_eq!(charged(&metrics, tenant), reported, "{tenant}: charged and reported by the model");
    }
    assert_eq!(metrics.sum("sluice_settlements_total", &[("usage", "reported")]), CALLS as u64);
    assert!(stack.upstream.calls().max_running() <= 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_single_call_is_charged_exactly_what_the_model_reported_for_it() {
    let stack = stack("openai-single").await;
    let client = stack.client("dept-a").unwrap();
    let kinds = [Chat::to(MODEL), Chat::to(MODEL).stream(), Chat::to(MODEL).stream_with_usage()];
    let mut before = Usage::default();
    for (settled, chat) in (1..).zip(kinds.iter().cycle().take(9)) {
        let chat = chat.clone().max_tokens(settled).prompt(&format!("Tell me of the number {settled}."));
        let reply = client.chat(&chat).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.summary());
        let metrics = stack
            .operators()
            .wait_for_metrics("the call is settled", SETTLES_WITHIN, |metrics| {
                metrics.sum("sluice_settlements_total", &[]) >= settled
            })
            .await
            .unwrap();
        let reported = stack.upstream.calls().last().and_then(|call| call.usage).unwrap();
        let after = charged(&metrics, "dept-a");
        assert_eq!(after, before + reported, "call {settled}");
        before = after;
    }
}

async fn run_client(plan: &Value) -> Result<Vec<Seen>> {
    let mut python = tokio::process::Command::new(paths::tool("venv/bin/python")?)
        .arg(paths::root().join("tests/clients/openai_mixed.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = python.stdin.take().context("no stdin")?;
    stdin.write_all(plan.to_string().as_bytes()).await?;
    drop(stdin);
    let output = python.wait_with_output().await?;
    ensure!(output.status.success(), "openai_mixed.py: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Measured between Sluice and the model.
fn reported_by_the_model(stack: &Stack, tenant: &str) -> Usage {
    let calls = stack.upstream.calls().all();
    calls
        .iter()
        .filter(|call| call.header("x-tenant-id") == Some(tenant))
        .map(|call| call.usage.expect("the model reports usage for every call"))
        .sum()
}

/// What the model reported for the plan's call `index`, which named itself in its `user` field.
fn reported_for(stack: &Stack, index: usize) -> Option<Usage> {
    let calls = stack.upstream.calls().all();
    calls.iter().find(|call| call.json()["user"] == user(index)).and_then(|call| call.usage)
}

/// Two of three calls stream, and every other stream asks for its usage.
fn is_stream(index: usize) -> bool {
    !index.is_multiple_of(3)
}

fn asks_for_usage(index: usize) -> bool {
    index % 3 == 1
}

fn user(index: usize) -> String {
    format!("call-{index}")
}

fn charged(metrics: &Metrics, tenant: &str) -> Usage {
    let kind = |kind| metrics.sum("sluice_tokens_total", &[("tenant", tenant), ("kind", kind)]);
    Usage { input: kind("input"), output: kind("output"), cached: kind("cached") }
}
