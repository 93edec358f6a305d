//! `bench queue`: what a decision costs with ever more waiters, what a waiter costs in memory, and how fast the
//! simulator runs.

use super::{Figure, figure};
use anyhow::{Context, Result, ensure};
use e2e::crowd::{Crowd, Line};
use e2e::paths;
use sluice_policy::simulate::{DAY_NIGHT, Scene, Setup, simulate};
use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

/// Turns that are measured, each by itself.
const TURNS: usize = 50_000;
/// The day-and-night scene, by what its busiest hours ask of the slots: few wait, many wait, many are refused.
const LOADS_PERCENT: [u64; 3] = [50, 80, 150];
const SIMULATED_CALLS: usize = 1_000_000;

pub(super) fn measure(repeats: usize, most_waiters: usize) -> Result<Vec<Figure>> {
    ensure!(repeats > 0, "--repeats must be at least 1");
    let steps = std::iter::successors(Some(100_usize), |waiters| waiters.checked_mul(10));
    let curve: Vec<usize> = steps.take_while(|waiters| *waiters <= most_waiters).collect();
    let mut figures = Vec::new();
    for waiters in &curve {
        let decisions = (0..repeats).map(|seed| decision_ns_p50(seed, *waiters)).collect::<Result<_>>()?;
        figures.push(Figure { waiters: Some(*waiters), ..figure("decision_ns_p50", "ns", decisions) });
    }
    for waiters in &curve {
        let turns = (0..repeats).map(|seed| queue_ns_p50(seed, *waiters)).collect::<Result<_>>()?;
        figures.push(Figure { waiters: Some(*waiters), ..figure("queue_ns_p50", "ns", turns) });
    }
    for waiters in curve.iter().filter(|waiters| **waiters >= 10_000) {
        figures.push(Figure { waiters: Some(*waiters), ..figure("bytes_per_waiter", "bytes", vec![bytes(*waiters)?]) });
    }
    for load_percent in LOADS_PERCENT {
        let speeds = simulated(load_percent, repeats)?;
        let of_load = figure("simulated_requests_per_s", "1/s", speeds);
        figures.push(Figure { load_percent: Some(load_percent), ..of_load });
    }
    Ok(figures)
}

/// The median time of one call that joins, one that ends and one that starts, while so many wait: in the whole core,
/// with identity, accounts, leases and explanations.
#[allow(clippy::cast_precision_loss)] // nanoseconds far below 2^52
fn decision_ns_p50(seed: usize, waiters: usize) -> Result<f64> {
    let mut crowd = Crowd::new(u64::try_from(seed)?)?;
    crowd.fill(waiters)?;
    let mut spans = Vec::with_capacity(TURNS);
    for _ in 0..TURNS {
        // Made up just before, as in the service the request has just been read and its key identified.
        let (call, end) = (crowd.prepare(), crowd.next_end()?);
        let begun = Instant::now();
        crowd.turn(black_box(&call), black_box(&end));
        spans.push(begun.elapsed().as_nanos());
    }
    ensure!(crowd.waiting() == waiters, "the queue has changed its length");
    spans.sort_unstable();
    spans.get(TURNS / 2).map(|median| *median as f64).context("nothing was measured")
}

/// The same in the queue alone: joining, leaving at the head with the charge of a start, and the correction of an end.
#[allow(clippy::cast_precision_loss)] // nanoseconds far below 2^52
fn queue_ns_p50(seed: usize, waiters: usize) -> Result<f64> {
    let mut line = Line::new(u64::try_from(seed)?);
    line.fill(waiters)?;
    let mut spans = Vec::with_capacity(TURNS);
    for _ in 0..TURNS {
        let waiter = line.prepare();
        let begun = Instant::now();
        line.turn(black_box(waiter))?;
        spans.push(begun.elapsed().as_nanos());
    }
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
fn simulated(load_percent: u64, repeats: usize) -> Result<Vec<f64>> {
    let setup = Setup::read(&serde_json::from_str(DAY_NIGHT)?, Setup::START)?;
    let scene = Scene { seed: 42, load_percent, most_calls: SIMULATED_CALLS, ..Scene::default() };
    let trace = scene.trace(&setup.config);
    let mut speeds = Vec::new();
    for _ in 0..repeats {
        let begun = Instant::now();
        black_box(simulate(&setup, black_box(&trace)));
        speeds.push((trace.arrivals().len() as f64 / begun.elapsed().as_secs_f64()).round());
    }
    Ok(speeds)
}
