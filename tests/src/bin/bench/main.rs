//! `bench AREA`: `first-light` is how soon Sluice notices what must not wait, as the client and the operator see it;
//! `queue` is what a decision costs, `dialects` what metering costs, `ledger` what replicas ask of Redis and get from it.
//!
//! Prints a table and writes `target/bench/AREA.json`: a list of `{figure, value, unit, n, spread}`, where `value` is
//! the median of `n` repeats and `spread` the distance from the lowest to the highest of them. Where there are many
//! repeats, `likely` is where the median of ever more would be found, with a chance of 95%.

mod awake;
mod dialects;
mod estimator;
mod ledger;
mod queue;
mod texts;

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
    /// What metering adds to the first byte of a stream, and what it costs Envoy, by dialect and size; and how far the
    /// estimate of replies without usage is off, by kind of text.
    Dialects {
        #[arg(long, default_value_t = 400)]
        rounds: usize,
    },
    /// What a decision of the fair queue costs, in time and memory, and how fast the simulator runs.
    Queue {
        #[arg(long, default_value_t = 5)]
        repeats: usize,
        /// The longest queue; the curve goes there in steps of ten.
        #[arg(long, default_value_t = 1_000_000)]
        most_waiters: usize,
    },
    /// What three replicas ask of Redis, how busy they keep a pool, and how exact the order over all of them is.
    Ledger {
        /// In which shares are compared.
        #[arg(long, default_value_t = 3)]
        minutes: usize,
        /// Of each of the three windows in which anything else is counted.
        #[arg(long, default_value_t = 10)]
        window_s: u64,
        #[arg(long, default_value_t = 10_000)]
        most_accounts: usize,
    },
}

#[derive(Serialize)]
struct Figure {
    figure: &'static str,
    value: f64,
    unit: &'static str,
    n: usize,
    spread: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    likely: Option<[f64; 2]>,
    /// How many waited meanwhile, where that matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiters: Option<usize>,
    /// What the busiest hours of a simulated scene ask of its slots.
    #[serde(skip_serializing_if = "Option::is_none")]
    load_percent: Option<u64>,
    /// What was spoken, and how many events a reply had, where that matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    dialect: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    words: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gap_ms: Option<u64>,
    /// What kind of text was spoken, where that matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'static str>,
    /// What arrived, how long a call ran, and how many accounts were in use, where that matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    requests_per_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accounts: Option<usize>,
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().what {
        What::FirstLight { repeats } => first_light(repeats).await,
        What::Dialects { rounds } => {
            let mut figures = estimator::measure().await?;
            figures.extend(dialects::measure(rounds).await?);
            report("dialects", &figures)
        }
        What::Ledger { minutes, window_s, most_accounts } => {
            report("ledger", &ledger::measure(minutes, window_s, most_accounts).await?)
        }
        What::Queue { repeats, most_waiters } => report("queue", &queue::measure(repeats, most_waiters)?),
    }
}

async fn first_light(repeats: usize) -> Result<()> {
    ensure!(repeats > 0, "--repeats must be at least 1");
    let mut stack =
        Stack::builder("bench-first-light").workers(1).capacity(1).tenant(Tenant::new("only")).start().await?;
    let cancels = repeat(repeats, async |_| cancel_frees(&stack).await).await?;
    let mut closes = Vec::new();
    for _ in 0..repeats {
        closes.push(fail_closed(&mut stack).await?);
    }
    report("first-light", &[in_ms("fail_closed_ms", &closes), in_ms("cancel_frees_ms", &cancels)])
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

fn in_ms(name: &'static str, spans: &[Duration]) -> Figure {
    figure(name, "ms", spans.iter().map(|span| span.as_secs_f64() * 1_000.0).collect())
}

/// Fewer repeats say too little of their median.
const ENOUGH: usize = 20;

/// The median of the measured values, and their spread, to the tenth.
fn figure(name: &'static str, unit: &'static str, mut values: Vec<f64>) -> Figure {
    values.sort_by(f64::total_cmp);
    let tenth = |value: f64| (value * 10.0).round() / 10.0;
    let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
    let spread = tenth(at(values.len().saturating_sub(1)) - at(0));
    // Of the ranks, which need no assumption about how the values are distributed.
    let half = values.len() as f64 / 2.0;
    let reach = 0.98 * (values.len() as f64).sqrt();
    let likely = [(half - reach).floor(), (half + reach).ceil()].map(|rank| tenth(at(rank as usize)));
    Figure {
        figure: name,
        value: tenth(at(values.len() / 2)),
        unit,
        n: values.len(),
        spread,
        likely: Some(likely).filter(|_| values.len() >= ENOUGH),
        waiters: None,
        load_percent: None,
        dialect: None,
        words: None,
        gap_ms: None,
        text: None,
        requests_per_s: None,
        service_ms: None,
        accounts: None,
    }
}

fn report(area: &str, figures: &[Figure]) -> Result<()> {
    println!(
        "{:<28} {:>32} {:>12} {:<6} {:>3} {:>12} {:>18}",
        "figure", "with", "median", "unit", "n", "spread", "likely"
    );
    for row in figures {
        let load = row.load_percent.map(|load| format!("{load}%"));
        let of_size = row.words.map(|words| {
            let gap = row.gap_ms.filter(|gap| *gap > 0).map(|gap| format!(", {gap} ms apart")).unwrap_or_default();
            format!("{} {words}{gap}", row.dialect.unwrap_or_default())
        });
        let of_text = row.text.map(|text| format!("{} {text}", row.dialect.unwrap_or_default()));
        let arrivals = row.requests_per_s.map(|requests| format!("{requests}/s "));
        let service = row.service_ms.map(|service| format!("{}{service} ms", arrivals.unwrap_or_default()));
        let accounts = row.accounts.map(|accounts| format!("{accounts} accounts"));
        let waiters = row.waiters.map(|waiters| waiters.to_string());
        let with = waiters.or(load).or(of_text).or(of_size).or(service).or(accounts).unwrap_or_default();
        let Figure { figure, value, unit, n, spread, .. } = row;
        let likely = row.likely.map(|[low, high]| format!("{low} to {high}")).unwrap_or_default();
        println!("{figure:<28} {with:>32} {value:>12} {unit:<6} {n:>3} {spread:>12} {likely:>18}");
    }
    let folder = paths::target()?.join("bench");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(format!("{area}.json")), serde_json::to_string_pretty(figures)?)?;
    Ok(())
}
