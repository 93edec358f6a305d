//! Triton's own clients, over HTTP and gRPC, against a real Triton behind Sluice: two models, each with a pool of its own.

use anyhow::{Context, Result, ensure};
use e2e::client::send;
use e2e::folder::Folder;
use e2e::paths;
use e2e::stack::{Stack, Triton};
use e2e::tenant::Tenant;
use reqwest::Method;
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

const SLACK: Duration = Duration::from_secs(10);
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
    assert_eq!(metrics.sum("sluice_fixed_charges_total", &[("model", "simple")]), 10);
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
    let output = metrics.sum("sluice_tokens_total", &[("model", "story"), ("kind", "output")]);
    assert_eq!(output, 4, "a word is a token, alone and in a stream");
    assert_eq!(metrics.sum("sluice_admissions_total", &[("pool", "words"), ("decision", "admitted")]), 2);
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
