//! `bench AREA`: `first-light` is how soon Sluice notices what must not wait, as the client and the operator see it;
//! `queue` is what a decision costs, `dialects` what metering costs, `instructions` what a call costs in the filter,
//! `ledger` what replicas ask of Redis and get from it, `growth` what the size of a configuration costs, `recovery` how soon
//! a pool is in use again after Redis was away.
//!
//! Prints a table and writes `target/bench/AREA.json`: a list of `{figure, value, unit, n, spread}`, where `value` is
//! the median of `n` repeats and `spread` the distance from the lowest to the highest of them. Where there are many
//! repeats, `likely` is where the median of ever more would be found, with a chance of 95%.

mod all;
mod awake;
mod dialects;
mod estimator;
mod first_light;
mod growth;
mod instructions;
mod ledger;
mod queue;
mod recovery;
mod texts;

use anyhow::Result;
use clap::{Parser, Subcommand};
use e2e::paths;
use serde::Serialize;
use std::fmt::Display;
use std::fs;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Parser)]
#[command(about = "Measures Sluice from outside")]
struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Seconds instead of minutes: it shows that everything is still measured, and no figure to rely on.
    #[arg(long, global = true)]
    quick: bool,
}

#[derive(Subcommand)]
enum What {
    /// Every area, one after the other; fails where a figure is missing.
    All,
    /// How soon a killed sidecar closes its routes, how soon one that stands still is found out, and how soon a caller that left the queue frees its place.
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
    /// What a call costs in the filter, in instructions of its native build, by the kind and the size of its reply.
    Instructions {
        #[arg(long, default_value_t = 3)]
        repeats: usize,
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
    /// What a call costs the service with ever more pools and tenants, how large its page of metrics grows, and what an
    /// idle tenant takes.
    Growth,
    /// How soon 95% of the slots are in use again after Redis was away, by kind and length of the outage, replicas and
    /// calls.
    Recovery {
        /// Only fleets of so many replicas.
        #[arg(long)]
        replicas: Option<usize>,
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
    /// What the busiest hours of a simulated scene, or what arrives, asks of the slots.
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
    /// How many the configuration has, where that matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pools: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenants: Option<usize>,
    /// How Redis was away and for how long, how many replicas shared it, and how long their calls ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outage_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replicas: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call_ms: Option<u64>,
}

impl Figure {
    fn outage_of_calls(&self) -> Option<String> {
        let (kind, outage_ms, replicas, call_ms) = (self.kind?, self.outage_ms?, self.replicas?, self.call_ms?);
        Some(format!("{kind} {outage_ms} ms, {replicas} replicas, {call_ms} ms"))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { what, quick } = Arguments::parse();
    match what {
        What::All => all::measure(quick),
        What::FirstLight { repeats } => {
            report("first-light", &first_light::measure(if quick { 2 } else { repeats }).await?)
        }
        What::Dialects { rounds } => {
            let mut figures = estimator::measure(quick).await?;
            figures.extend(dialects::measure(if quick { 4 } else { rounds }).await?);
            report("dialects", &figures)
        }
        What::Ledger { minutes, window_s, most_accounts } => {
            let size = if quick { ledger::Size::QUICK } else { ledger::Size::new(minutes, window_s, most_accounts) };
            report("ledger", &ledger::measure(&size).await?)
        }
        What::Instructions { repeats } => report("instructions", &instructions::measure(repeats, quick)?),
        What::Queue { repeats, most_waiters } => {
            let size = if quick { queue::Size::QUICK } else { queue::Size::new(repeats, most_waiters) };
            report("queue", &queue::measure(&size)?)
        }
        What::Growth => report("growth", &growth::measure(quick).await?),
        What::Recovery { replicas } => report("recovery", &recovery::measure(quick, replicas).await?),
    }
}

/// What is being done, for whoever waits for it.
fn doing(what: impl Display) {
    eprintln!("… {what}");
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
        pools: None,
        tenants: None,
        kind: None,
        outage_ms: None,
        replicas: None,
        call_ms: None,
    }
}

fn report(area: &str, figures: &[Figure]) -> Result<()> {
    println!(
        "{:<28} {:>42} {:>12} {:<6} {:>3} {:>12} {:>18}",
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
        let sizes = [(row.pools, "pools"), (row.tenants, "tenants")];
        let sizes: Vec<_> = sizes.iter().filter_map(|(count, of)| Some(format!("{} {of}", (*count)?))).collect();
        let size = (!sizes.is_empty()).then(|| sizes.join(", "));
        let outage = row.outage_of_calls();
        let with =
            outage.or(size).or(waiters).or(load).or(of_text).or(of_size).or(service).or(accounts).unwrap_or_default();
        let Figure { figure, value, unit, n, spread, .. } = row;
        let likely = row.likely.map(|[low, high]| format!("{low} to {high}")).unwrap_or_default();
        println!("{figure:<28} {with:>42} {value:>12} {unit:<6} {n:>3} {spread:>12} {likely:>18}");
    }
    let folder = paths::target()?.join("bench");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(format!("{area}.json")), serde_json::to_string_pretty(figures)?)?;
    Ok(())
}
