//! `attack`: floods a gateway as a stranger and as a tenant, at ten times the strength that once took it down, and measures
//! what a known caller of the first priority sees meanwhile.
//!
//! Each attack runs in turns with a harmless neighbour, both from other loopback addresses and at the lowest priority. The
//! neighbour takes as much processor time as the attack did, its own and the gateway's (`neighbour.rs`), so that what differs
//! is the attack and not the load: a gateway that works as hard for others is no slower under attack. Prints a table and writes
//! `target/bench/attack.json`: a list of `{figure, value, unit, n, spread}`. Fails where a bar is not held.

mod caller;
mod flood;
mod neighbour;
mod watch;

use anyhow::{Result, ensure};
use caller::Turns;
use clap::{Parser, Subcommand};
use e2e::client::Chat;
use e2e::paths;
use e2e::stack::{MODEL, Stack};
use e2e::tenant::Tenant;
use flood::Flood;
use serde::Serialize;
use serde_json::json;
use std::fs;
use std::time::Duration;
use watch::Watch;

/// Turns of an attack, each followed by one of its neighbour.
const TURNS: u32 = 6;
const PATIENCE: Duration = Duration::from_secs(30);
/// How much slower the slowest hundredth of a known caller's calls may be than beside a harmless neighbour.
const SLOWER_MAX: f64 = 2.0;
/// What docs/SECURITY-MODEL.md promises for one attack at a time: Envoy itself, what each worker may hold for strangers
/// (or for one tenant, with the filter's room for its bodies), and the connections of the largest attack.
const ENVOY_MAX_MB: f64 = 125.0 + 2.0 * 101.0 + 400.0 * 0.15;
/// What ARCHITECTURE.md promises (I7) beside a configuration of a few tenants.
const SIDECAR_MAX_MB: f64 = 64.0;

#[derive(Parser)]
#[command(about = "Floods a gateway, and measures what a known caller sees of it")]
struct Arguments {
    /// How long each attack lasts, and its neighbour.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Ten seconds of each: whether it works, not how well.
    #[arg(long)]
    quick: bool,
    /// One of them only.
    #[arg(long)]
    only: Option<flood::Kind>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program starts itself as, at the lowest priority.
#[derive(Subcommand)]
enum Role {
    #[command(hide = true)]
    Flood(Flood),
    #[command(hide = true)]
    Neighbour(neighbour::Neighbour),
}

#[derive(Serialize)]
struct Figure {
    figure: String,
    value: f64,
    unit: &'static str,
    n: usize,
    spread: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { seconds, quick, only, role } = Arguments::parse();
    match role {
        Some(Role::Flood(flood)) => flood.run().await,
        Some(Role::Neighbour(neighbour)) => neighbour.run().await,
        None => {
            let kinds = only.map_or(flood::Kind::ALL.to_vec(), |kind| vec![kind]);
            all(&kinds, Duration::from_secs(if quick { 10 } else { seconds })).await
        }
    }
}

async fn all(kinds: &[flood::Kind], span: Duration) -> Result<()> {
    let stack = Stack::builder("attack")
        .capacity(8)
        .tenant(Tenant::new("first").with("priority", json!({"default": 0, "ceiling": 0})))
        .tenant(Tenant::new("greedy").limit("requests_per_min", 30))
        .tenant(Tenant::new("harmless"))
        .start()
        .await?;
    stack.upstream.calls().only_times();
    let mut figures = Vec::new();
    for kind in kinds {
        figures.extend(one(&stack, *kind, span).await?);
    }
    report(&figures)?;
    let bars = |figure: &Figure| match figure.unit {
        "times" => Some(SLOWER_MAX),
        "MB" if figure.figure.contains("envoy") => Some(ENVOY_MAX_MB),
        "MB" => Some(SIDECAR_MAX_MB),
        _ => None,
    };
    let missed: Vec<&str> = figures
        .iter()
        .filter(|figure| bars(figure).is_some_and(|bar| figure.value > bar))
        .map(|figure| figure.figure.as_str())
        .collect();
    ensure!(missed.is_empty(), "over the bar: {missed:?}");
    Ok(())
}

/// One kind of attack, in turns with its neighbour.
async fn one(stack: &Stack, kind: flood::Kind, span: Duration) -> Result<Vec<Figure>> {
    let turn = span / TURNS;
    let known = stack.client("first")?;
    known.wait_until_served(&Chat::to(MODEL), PATIENCE).await?;
    let gateway = [stack.envoy.pid(), stack.sidecar.pid()];
    let watch = Watch::begin(stack.envoy.pid(), stack.sidecar.pid());
    let (mut beside, mut under) = (Turns::default(), Turns::default());
    let mut sent = 0;
    for _ in 0..TURNS {
        let mut attacker = kind.start(stack, turn)?;
        let shares = under.measure(&known, turn, gateway, attacker.id()).await?;
        sent += flood::wait(&mut attacker).await?;
        settle(stack).await?;
        let mut harmless = neighbour::start(shares, gateway, &stack.envoy.base(), stack.key("harmless")?, turn)?;
        beside.measure(&known, turn, gateway, harmless.id()).await?;
        harmless.wait()?;
    }
    let peaks = watch.end().await;
    let name = kind.name();
    let ratio = under.latencies.p99_ms() / beside.latencies.p99_ms();
    Ok(vec![
        figure(format!("{name}: refused or dropped"), sent as f64, "calls", 1, 0.0),
        under.latencies.figure(format!("{name}: known caller's p99 under attack")),
        beside.latencies.figure(format!("{name}: its p99 beside a neighbour")),
        figure(format!("{name}: slower by"), ratio, "times", under.latencies.count(), 0.0),
        under.own(format!("{name}: the attack takes of processors")),
        under.gateway(format!("{name}: the gateway, under attack")),
        beside.own(format!("{name}: the neighbour takes of processors")),
        beside.gateway(format!("{name}: the gateway, beside it")),
        figure(format!("{name}: envoy's memory at most"), peaks.envoy_mb, "MB", peaks.samples, 0.0),
        figure(format!("{name}: the sidecar's memory at most"), peaks.sidecar_mb, "MB", peaks.samples, 0.0),
    ])
}

/// Everything serves again and nothing is held, without a restart.
async fn settle(stack: &Stack) -> Result<()> {
    let gauges = ["sluice_filter_stranger_streams", "sluice_filter_stranger_bytes", "sluice_filter_paused_bytes"];
    stack
        .envoy
        .wait_for_metrics("everything is given back", PATIENCE, |metrics| {
            gauges.iter().all(|gauge| metrics.sum(gauge, &[]) == 0)
        })
        .await?;
    let reply = stack.client("first")?.chat(&Chat::to(MODEL)).await?;
    ensure!(reply.status == 200, "{}", reply.summary());
    Ok(())
}

fn figure(figure: String, value: f64, unit: &'static str, n: usize, spread: f64) -> Figure {
    let hundredth = |value: f64| (value * 100.0).round() / 100.0;
    Figure { figure, value: hundredth(value), unit, n, spread: hundredth(spread) }
}

fn report(figures: &[Figure]) -> Result<()> {
    println!("{:<52} {:>12} {:<6} {:>6} {:>10}", "figure", "value", "unit", "n", "spread");
    for Figure { figure, value, unit, n, spread } in figures {
        println!("{figure:<52} {value:>12} {unit:<6} {n:>6} {spread:>10}");
    }
    let folder = paths::target()?.join("bench");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("attack.json"), serde_json::to_string_pretty(figures)?)?;
    Ok(())
}
