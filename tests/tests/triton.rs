//! Triton's own clients, over HTTP and gRPC, against a real Triton behind Sluice: two models, each with a pool of its own.

use anyhow::{Context, Result, ensure};
use e2e::client::send;
use e2e::folder::Folder;
use e2e::metrics::Metrics;
use e2e::paths;
use e2e::raw_http2::{Leaving, RawCall};
use e2e::stack::{Stack, Triton};
use e2e::tenant::Tenant;
use e2e::wait::wait_until;
use reqwest::Method;
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

const SLACK: Duration = Duration::from_secs(10);
/// Until a call of Triton's that was left has ended there, and its time at the pool is over.
const LONGEST: Duration = Duration::from_secs(60);
const SUM: [i32; 4] = [11, 22, 33, 44];

async fn stack(triton: &Triton) -> Stack {
    let grpc_port = triton.grpc_port;
    Stack::builder("triton-stack")
        .served_by(&triton.base())
        .tenant(Tenant::new("only"))
        .sidecar_config(|config| {
            config["pools"] = json!([
                {"name": "vectors", "models": ["simple"], "capacity": {"concurrent": 2}},
                {"name": "words", "models": ["story"], "capacity": {"concurrent": 2}},
            ]);
            config["models"] = json!([{"name": "simple", "aliases": ["adder"]}]);
        })
        .plugin_config(|plugin| {
            plugin["routes"] = json!([
                {"dialect": "kserve_infer"}, {"dialect": "kserve_generate"}, {"dialect": "kserve_generate_stream"},
                {"dialect": "kserve_grpc_infer"}, {"dialect": "kserve_grpc_stream"},
                {"dialect": "request", "path": "/inference.GRPCInferenceService/ServerLive", "pool": "vectors",
                 "charge": 0},
            ]);
        })
        .envoy_config(move |bootstrap| send_grpc_to(bootstrap, grpc_port))
        .start()
        .await
        .unwrap()
}

/// Triton takes gRPC on a port of its own.
fn send_grpc_to(bootstrap: &mut Value, port: u16) {
    let clusters = bootstrap["static_resources"]["clusters"].as_array_mut().unwrap();
    let cluster = clusters.iter_mut().find(|cluster| cluster["name"] == "model-grpc").unwrap();
    let endpoint = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address";
    cluster.pointer_mut(endpoint).unwrap()["port_value"] = json!(port);
}

#[tokio::test(flavor = "multi_thread")]
async fn triton_s_clients_work_unchanged_and_its_admin_api_is_out_of_reach() {
    let folder = Folder::create("triton-server").unwrap();
    let triton = Triton::start(&folder).await.unwrap();
    let stack = stack(&triton).await;
    let address = stack.envoy.base().replace("http://", "");
    let plan = json!({"address": address, "key": stack.key("only").unwrap(), "stranger": "sk-stranger"});
    let saw = run_clients(&plan).await.unwrap();

    for call in ["http infer", "http infer binary", "grpc infer", "grpc infer by alias"] {
        assert_eq!(saw[call], json!(SUM), "{call}");
    }
    assert_eq!(saw["grpc live"], json!(true));
    assert_eq!(saw["grpc stream"], json!({"sums": [SUM, SUM, SUM], "error": null}));
    assert_eq!(saw["grpc stream by alias"], json!({"sums": [SUM, SUM], "error": null}));
    let two = &saw["grpc stream of two models"];
    assert_eq!(two["sums"], json!([SUM]), "the second model was never reached: {two}");
    for (call, status) in [
        ("http unknown key", "401"),
        ("http unknown model", "404"),
        ("http load", "404"),
        ("grpc unknown key", "StatusCode.UNAUTHENTICATED"),
        ("grpc unknown model", "StatusCode.NOT_FOUND"),
        ("grpc load", "StatusCode.UNIMPLEMENTED"),
        ("grpc unload", "StatusCode.UNIMPLEMENTED"),
    ] {
        assert_eq!(saw[call]["status"], json!(status), "{call}: {saw}");
    }
    let metrics = stack
        .operators()
        .wait_for_metrics("all calls are settled", SLACK, |metrics| metrics.sum("sluice_settlements_total", &[]) >= 8)
        .await
        .unwrap();
    // Two over HTTP, two over gRPC, three and two in one stream, one in the stream that was broken off; ServerLive costs none.
    assert_eq!(metrics.sum("sluice_model_fixed_charges_total", &[("model", "simple")]), 10);
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_triton_generates_is_estimated_and_charged_to_its_own_pool() {
    let folder = Folder::create("triton-server-text").unwrap();
    let triton = Triton::start(&folder).await.unwrap();
    let stack = stack(&triton).await;
    let client = stack.client("only").unwrap();
    let post = |path: &str, text: &str| client.request(Method::POST, path).json(&json!({"text_input": text}));
    let one = send(post("/v2/models/story/generate", "word")).await.unwrap();
    assert_eq!((one.status, &one.json()["text_output"]), (200, &json!("word")), "{}", one.summary());
    let many = send(post("/v2/models/story/generate_stream", "one two three")).await.unwrap();
    let words: Vec<_> = many.events().iter().map(|event| event["text_output"].clone()).collect();
    assert_eq!(words, [json!("one"), json!("two"), json!("three")], "{}", many.summary());
    let metrics = stack
        .operators()
        .wait_for_metrics("both are settled", SLACK, |metrics| {
            metrics.sum("sluice_settlements_total", &[("usage", "estimated")]) >= 2
        })
        .await
        .unwrap();
    let output = metrics.sum("sluice_model_tokens_total", &[("model", "story"), ("kind", "output")]);
    assert_eq!(output, 4, "a word is a token, alone and in a stream");
    assert_eq!(metrics.sum("sluice_pool_admissions_total", &[("pool", "words"), ("decision", "admitted")]), 2);
}

async fn run_clients(plan: &Value) -> Result<Value> {
    let mut python = tokio::process::Command::new(paths::tool("venv-full/bin/python")?)
        .arg(paths::root().join("tests/clients/triton.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = python.stdin.take().context("no stdin")?;
    stdin.write_all(plan.to_string().as_bytes()).await?;
    drop(stdin);
    let output = python.wait_with_output().await?;
    ensure!(output.status.success(), "triton.py: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_triton_works_on_after_its_client_left_keeps_its_slot() {
    let folder = Folder::create("triton-server-left").unwrap();
    let triton = Triton::start(&folder).await.unwrap();
    let stack = Stack::builder("triton-left")
        .served_by(&triton.base())
        .tenant(Tenant::new("only"))
        .sidecar_config(|config| {
            config["pools"] = json!([{
                "name": "words", "models": ["story"], "capacity": {"concurrent": 1}, "on_abort": {"runs_on_ms": 20_000},
            }]);
        })
        .plugin_config(|plugin| plugin["routes"] = json!([{"dialect": "kserve_generate"}]))
        .start()
        .await
        .unwrap();
    let address = stack.envoy.base().replace("http://", "");
    let text = json!({"text_input": "pause:4000 word"}).to_string();
    let call = RawCall::post(&address, "/v2/models/story/generate", stack.key("only").unwrap(), &text).await.unwrap();
    wait_until("Triton has the call", SLACK, || async { stack.upstream.calls().running() == 1 }).await.unwrap();
    let _connection = call.leave(Leaving::Cancel).await.unwrap();
    let operators = stack.operators();
    let orphans = |count| {
        let what = format!("{count} orphans");
        let operators = &operators;
        async move {
            let holds = |metrics: &Metrics| metrics.sum("sluice_orphans", &[]) == count;
            operators.wait_for_metrics(&what, LONGEST, holds).await.unwrap()
        }
    };
    orphans(1).await;
    // Of Triton's own word: it had the call to its end, and in that time nobody else had its slot.
    wait_until("Triton has worked the call to its end", LONGEST, || async { succeeded(&triton).await == Some(1) })
        .await
        .unwrap();
    let metrics = orphans(1).await;
    assert_eq!(metrics.sum("sluice_running", &[]), 1);
    assert_eq!(metrics.sum("sluice_settlements_total", &[("outcome", "aborted")]), 1);
    orphans(0).await;
}

/// Calls of `story` that Triton counts as successful.
async fn succeeded(triton: &Triton) -> Option<u64> {
    let stats = reqwest::get(format!("{}/v2/models/story/stats", triton.base())).await.ok()?;
    let stats: Value = stats.json().await.ok()?;
    stats.pointer("/model_stats/0/inference_stats/success/count")?.as_u64()
}
