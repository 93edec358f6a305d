//! `bench dialects`: what metering adds to the first byte of a stream, and what it costs Envoy, by dialect and size.
//!
//! The same Envoy has two routes for each dialect: one that is metered, and one of dialect `request`, for which the same
//! filter reads nothing of the reply. Calls alternate between them, so that whatever else the machine does meets both.

use super::awake::Awake;
use super::{Figure, doing, figure};
use anyhow::{Context, Result, ensure};
use e2e::client::Client;
use e2e::stack::{MODEL, POOL, Stack};
use e2e::tenant::Tenant;
use reqwest::Method;
use serde_json::json;
use std::fs;
use std::time::{Duration, Instant};

/// Words of the scripted reply, each of which is an event, and the milliseconds between two. A model's words come one by
/// one; what comes all at once is a stream that somebody has kept back, and then a first byte waits for what came with it.
const STREAMS: [(u64, u64); 4] = [(20, 2), (1, 0), (100, 0), (1_000, 0)];
/// Each with the path of its server; the upstream writes each one's own events.
const DIALECTS: [(&str, &str); 5] = [
    ("openai_chat", "/v1/chat/completions"),
    ("openai_completions", "/v1/completions"),
    ("openai_responses", "/v1/responses"),
    ("anthropic_messages", "/v1/messages"),
    ("kserve_generate_stream", "/v2/models/smollm2-135m/generate_stream"),
];
pub(super) const FIGURES: &[&str] = &["added_first_byte_us", "cpu_ratio"];
/// Before the path of a dialect: the same server, and nothing read of its reply.
const UNMETERED: &str = "/unmetered";

pub(super) async fn measure(rounds: usize) -> Result<Vec<Figure>> {
    ensure!(rounds > 0, "--rounds must be at least 1");
    let stack = Stack::builder("bench-dialects")
        .workers(1)
        .capacity(8)
        .tenant(Tenant::new("only"))
        .plugin_config(|plugin| {
            let unmetered = DIALECTS
                .map(|(_, path)| json!({"dialect": "request", "path": format!("{UNMETERED}{path}"), "pool": POOL}));
            plugin["routes"].as_array_mut().into_iter().for_each(|routes| routes.extend(unmetered.clone()));
        })
        .start()
        .await?;
    let client = stack.client("only")?;
    let _awake = Awake::keep()?;
    let mut figures = Vec::new();
    for (dialect, path) in DIALECTS {
        doing(format!("streams of {dialect}, metered and not"));
        for stream in STREAMS {
            figures.extend(compare(&stack, &client, dialect, path, stream, rounds).await?);
        }
    }
    Ok(figures)
}

async fn compare(
    stack: &Stack,
    client: &Client,
    dialect: &'static str,
    path: &str,
    stream: (u64, u64),
    rounds: usize,
) -> Result<[Figure; 2]> {
    let unmetered = format!("{UNMETERED}{path}");
    let (mut added, mut metered_s, mut plain_s) = (Vec::new(), 0.0, 0.0);
    for round in 0..rounds {
        // Whoever is first in a pair finds colder caches, so they take turns.
        let (metered, plain) = if round % 2 == 0 {
            let metered = call(stack, client, path, stream).await?;
            (metered, call(stack, client, &unmetered, stream).await?)
        } else {
            let plain = call(stack, client, &unmetered, stream).await?;
            (call(stack, client, path, stream).await?, plain)
        };
        added.push((metered.first_byte.as_secs_f64() - plain.first_byte.as_secs_f64()) * 1e6);
        metered_s += metered.envoy_cpu_s;
        plain_s += plain.envoy_cpu_s;
    }
    let (words, gap_ms) = stream;
    let of_size = |figure| Figure { dialect: Some(dialect), words: Some(words), gap_ms: Some(gap_ms), ..figure };
    let ratio = if plain_s > 0.0 { metered_s / plain_s } else { 0.0 };
    Ok([
        of_size(figure("added_first_byte_us", "us", added)),
        of_size(Figure { value: (ratio * 100.0).round() / 100.0, n: rounds, ..figure("cpu_ratio", "", Vec::new()) }),
    ])
}

struct Measured {
    first_byte: Duration,
    envoy_cpu_s: f64,
}

async fn call(stack: &Stack, client: &Client, path: &str, (words, gap_ms): (u64, u64)) -> Result<Measured> {
    let body = json!({
        "model": MODEL, "stream": true, "max_tokens": 2_000,
        "messages": [{"role": "user", "content": "Hello"}], "prompt": "Hello", "input": "Hello", "text_input": "Hello",
        "metadata": {"behave": {"words": words, "gap_ms": gap_ms}},
    });
    let cpu_before = cpu_s(stack.envoy.pid())?;
    let begun = Instant::now();
    let mut response = client.request(Method::POST, path).json(&body).send().await?;
    ensure!(response.status() == 200, "{path}: {}", response.status());
    ensure!(response.chunk().await?.is_some(), "{path}: an empty stream");
    let first_byte = begun.elapsed();
    while response.chunk().await?.is_some() {}
    Ok(Measured { first_byte, envoy_cpu_s: cpu_s(stack.envoy.pid())? - cpu_before })
}

/// Processor time of a process so far. The scheduler's own count, in nanoseconds; `stat` has ticks of 10 ms.
fn cpu_s(pid: u32) -> Result<f64> {
    let mut total_ns: u64 = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        total_ns += text.split_whitespace().next().context("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(total_ns).as_secs_f64())
}
