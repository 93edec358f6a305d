//! `bench queue`: what a decision costs with ever more waiters, what a waiter costs in memory, and how fast the
//! simulator runs.

use super::{Figure, figure};
use anyhow::{Context, Result, ensure};
use e2e::crowd::Crowd;
use e2e::paths;
use sluice_policy::simulate::{DAY_NIGHT, Scene, Setup, simulate};
use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

/// Turns that are measured, each by itself, with calls that were made up before.
const TURNS: usize = 50_000;
const BATCH: usize = 1_000;
/// A day at 120% of the slots in its busiest hours; and one that is busy without overflowing.
const SCENES: [(&str, &str); 2] = [
    ("simulated_requests_per_s", "42,calls=1500000,load=80"),
    ("simulated_overload_per_s", "42,calls=1500000,load=150"),
];

pub(super) fn measure(repeats: usize, most_waiters: usize) -> Result<Vec<Figure>> {
    ensure!(repeats > 0, "--repeats must be at least 1");
    let steps = std::iter::successors(Some(100_usize), |waiters| waiters.checked_mul(10));
    let curve: Vec<usize> = steps.take_while(|waiters| *waiters <= most_waiters).collect();
    let mut figures = Vec::new();
    for waiters in &curve {
        let decisions = (0..repeats).map(|seed| decision_ns_p50(seed, *waiters)).collect::<Result<_>>()?;
        figures.push(Figure { waiters: Some(*waiters), ..figure("decision_ns_p50", "ns", decisions) });
    }
    for waiters in curve.iter().filter(|waiters| **waiters >= 10_000) {
        figures.push(Figure { waiters: Some(*waiters), ..figure("bytes_per_waiter", "bytes", vec![bytes(*waiters)?]) });
    }
    for (name, scene) in SCENES {
        figures.push(figure(name, "1/s", simulated(scene, repeats)?));
    }
    Ok(figures)
}

/// The median time of one call that joins, one that ends and one that starts, while so many wait.
#[allow(clippy::cast_precision_loss)] // nanoseconds far below 2^52
fn decision_ns_p50(seed: usize, waiters: usize) -> Result<f64> {
    let mut crowd = Crowd::new(u64::try_from(seed)?)?;
    crowd.fill(waiters)?;
    let mut spans = Vec::with_capacity(TURNS);
    while spans.len() < TURNS {
        let calls: Vec<_> = (0..BATCH).map(|_| crowd.prepare()).collect();
        for call in &calls {
            let end = crowd.next_end()?;
            let begun = Instant::now();
            crowd.turn(black_box(call), black_box(&end));
            spans.push(begun.elapsed().as_nanos());
        }
    }
    ensure!(crowd.waiting() == waiters, "the queue has changed its length");
    spans.sort_unstable();
    spans.get(TURNS / 2).map(|median| *median as f64).context("nothing was measured")
}

/// In a process of its own, whose allocator counts.
fn bytes(waiters: usize) -> Result<f64> {
    let ran = Command::new(paths::built("queue-memory")?).arg(waiters.to_string()).output()?;
    ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    Ok(String::from_utf8(ran.stdout)?.trim().parse()?)
}

#[allow(clippy::cast_precision_loss)] // calls far below 2^52
fn simulated(scene: &str, repeats: usize) -> Result<Vec<f64>> {
    let setup = Setup::read(&serde_json::from_str(DAY_NIGHT)?, Setup::START)?;
    let trace = Scene::parse(scene).map_err(anyhow::Error::msg)?.trace(&setup.config);
    let mut speeds = Vec::new();
    for _ in 0..repeats {
        let begun = Instant::now();
        black_box(simulate(&setup, black_box(&trace)));
        speeds.push((trace.arrivals().len() as f64 / begun.elapsed().as_secs_f64()).round());
    }
    Ok(speeds)
}
