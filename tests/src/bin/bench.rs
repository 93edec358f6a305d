//! `bench first-light`: how soon Sluice notices what must not wait, as the client and the operator see it.
//!
//! Prints a table and writes `target/bench/first-light.json`: a list of `{figure, value, unit, n, spread}`, where
//! `value` is the median of `n` repeats and `spread` the distance from the lowest to the highest of them.

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use e2e::client::{Chat, Client};
use e2e::paths;
use e2e::stack::{MODEL, Stack};
use e2e::tenant::Tenant;
use e2e::wait::{wait_for, wait_until};
use serde::Serialize;
use std::fs;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Parser)]
#[command(about = "Measures Sluice from outside")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// How soon a killed sidecar closes its routes, and how soon a caller that left the queue frees its place.
    FirstLight {
        #[arg(long, default_value_t = 15)]
        repeats: usize,
    },
}

#[derive(Serialize)]
struct Figure {
    figure: &'static str,
    value: f64,
    unit: &'static str,
    n: usize,
    spread: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let What::FirstLight { repeats } = Arguments::parse().what;
    ensure!(repeats > 0, "--repeats must be at least 1");
    let mut stack =
        Stack::builder("bench-first-light").workers(1).capacity(1).tenant(Tenant::new("only")).start().await?;
    let cancels = repeat(repeats, async |_| cancel_frees(&stack).await).await?;
    let mut closes = Vec::new();
    for _ in 0..repeats {
        closes.push(fail_closed(&mut stack).await?);
    }
    report(&[figure("fail_closed_ms", closes), figure("cancel_frees_ms", cancels)])
}

async fn repeat(n: usize, measure: impl AsyncFn(usize) -> Result<Duration>) -> Result<Vec<Duration>> {
    let mut spans = Vec::new();
    for index in 0..n {
        spans.push(measure(index).await?);
    }
    Ok(spans)
}

/// From the start of a call to a sidecar that was just killed, to the 503.
async fn fail_closed(stack: &mut Stack) -> Result<Duration> {
    let client = stack.client("only")?;
    wait_for("calls are served", PATIENCE, || async {
        let reply = client.chat(&Chat::to(MODEL)).await.ok()?;
        (reply.status == 200).then_some(())
    })
    .await?;
    stack.sidecar.kill();
    let reply = client.chat(&Chat::to(MODEL)).await?;
    ensure!(reply.reason() == Some("service_unavailable"), "{}", reply.summary());
    stack.sidecar.restart().await?;
    Ok(reply.took)
}

/// From a queued client's leaving to the moment at which the sidecar's statistics no longer count it. Includes the
/// polling of the statistics, some milliseconds.
async fn cancel_frees(stack: &Stack) -> Result<Duration> {
    let client = stack.client("only")?;
    let calls = stack.upstream.calls();
    calls.hold();
    let running = spawn(&client);
    wait_until("the call runs", PATIENCE, || async { calls.running() == 1 }).await?;
    let leaving = spawn(&client);
    stack.operators().wait_for_queued(1, PATIENCE).await?;
    let left = Instant::now();
    leaving.abort();
    stack.operators().wait_for_queued(0, PATIENCE).await?;
    let took = left.elapsed();
    calls.release();
    running.await??;
    stack.operators().wait_until_idle(PATIENCE).await?;
    Ok(took)
}

fn spawn(client: &Client) -> tokio::task::JoinHandle<Result<()>> {
    let client = client.clone();
    tokio::spawn(async move { client.chat(&Chat::to(MODEL)).await.map(|_| ()) })
}

fn figure(name: &'static str, mut spans: Vec<Duration>) -> Figure {
    spans.sort();
    let millis = |span: &Duration| (span.as_secs_f64() * 10_000.0).round() / 10.0;
    let (lowest, highest) = (spans.first().map_or(0.0, millis), spans.last().map_or(0.0, millis));
    let median = spans.get(spans.len() / 2).map_or(0.0, millis);
    let spread = ((highest - lowest) * 10.0).round() / 10.0;
    Figure { figure: name, value: median, unit: "ms", n: spans.len(), spread }
}

fn report(figures: &[Figure]) -> Result<()> {
    println!("{:<20} {:>10} {:<5} {:>5} {:>10}", "figure", "median", "unit", "n", "spread");
    for row in figures {
        println!("{:<20} {:>10} {:<5} {:>5} {:>10}", row.figure, row.value, row.unit, row.n, row.spread);
    }
    let folder = paths::target()?.join("bench");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("first-light.json"), serde_json::to_string_pretty(figures)?)?;
    Ok(())
}
