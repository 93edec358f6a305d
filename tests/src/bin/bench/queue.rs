//! `bench queue`: what a decision costs with ever more waiters, what a waiter costs in memory, and how fast the
//! simulator runs.

use super::{Figure, doing, figure};
use anyhow::{Context, Result, ensure};
use e2e::crowd::{Crowd, Line};
use e2e::paths;
use sluice_policy::simulate::{DAY_NIGHT, Scene, Setup, simulate};
use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

pub(super) const FIGURES: &[&str] =
    &["decision_ns_p50", "queue_ns_p50", "bytes_per_waiter", "simulated_requests_per_s"];
/// The day-and-night scene, by what its busiest hours ask of the slots: few wait, many wait, many are refused.
const LOADS_PERCENT: [u64; 3] = [50, 80, 150];

/// How much is measured.
pub(super) struct Size {
    repeats: usize,
    most_waiters: usize,
    /// Each of them measured by itself.
    turns: usize,
    simulated_calls: usize,
}

impl Size {
    pub(super) const QUICK: Self = Self { repeats: 1, most_waiters: 10_000, turns: 2_000, simulated_calls: 20_000 };

    pub(super) fn new(repeats: usize, most_waiters: usize) -> Self {
        Self { repeats, most_waiters, turns: 50_000, simulated_calls: 1_000_000 }
    }
}

pub(super) fn measure(size: &Size) -> Result<Vec<Figure>> {
    let Size { repeats, most_waiters, turns, .. } = *size;
    ensure!(repeats > 0, "--repeats must be at least 1");
    let steps = std::iter::successors(Some(100_usize), |waiters| waiters.checked_mul(10));
    let curve: Vec<usize> = steps.take_while(|waiters| *waiters <= most_waiters).collect();
    let mut figures = Vec::new();
    for waiters in &curve {
        doing(format!("whole calls, while {waiters} wait"));
        let decisions = (0..repeats).map(|seed| decision_ns_p50(seed, *waiters, turns)).collect::<Result<_>>()?;
        figures.push(Figure { waiters: Some(*waiters), ..figure("decision_ns_p50", "ns", decisions) });
    }
    for waiters in &curve {
        doing(format!("the queue alone, while {waiters} wait"));
        let spans = (0..repeats).map(|seed| queue_ns_p50(seed, *waiters, turns)).collect::<Result<_>>()?;
        figures.push(Figure { waiters: Some(*waiters), ..figure("queue_ns_p50", "ns", spans) });
    }
    for waiters in curve.iter().filter(|waiters| **waiters >= 10_000) {
        doing(format!("the memory of {waiters} who wait"));
        figures.push(Figure { waiters: Some(*waiters), ..figure("bytes_per_waiter", "bytes", vec![bytes(*waiters)?]) });
    }
    for load_percent in LOADS_PERCENT {
        doing(format!("the simulator at {load_percent}%"));
        let speeds = simulated(load_percent, size)?;
        let of_load = figure("simulated_requests_per_s", "1/s", speeds);
        figures.push(Figure { load_percent: Some(load_percent), ..of_load });
    }
    Ok(figures)
}

/// The median time of one call that joins, one that ends and one that starts, while so many wait: in the whole core,
/// with identity, accounts, leases and explanations.
#[allow(clippy::cast_precision_loss)] // nanoseconds far below 2^52
fn decision_ns_p50(seed: usize, waiters: usize, turns: usize) -> Result<f64> {
    let mut crowd = Crowd::new(u64::try_from(seed)?)?;
    crowd.fill(waiters)?;
    let mut spans = Vec::with_capacity(turns);
    for _ in 0..turns {
        // Made up just before, as in the service the request has just been read and its key identified.
        let (call, end) = (crowd.prepare(), crowd.next_end()?);
        let begun = Instant::now();
        crowd.turn(black_box(&call), black_box(&end));
        spans.push(begun.elapsed().as_nanos());
    }
    ensure!(crowd.waiting() == waiters, "{} wait instead of {waiters}", crowd.waiting());
    spans.sort_unstable();
    spans.get(turns / 2).map(|median| *median as f64).context("nothing was measured")
}

/// The same in the queue alone: joining, leaving at the head with the charge of a start, and the correction of an end.
#[allow(clippy::cast_precision_loss)] // nanoseconds far below 2^52
fn queue_ns_p50(seed: usize, waiters: usize, turns: usize) -> Result<f64> {
    let mut line = Line::new(u64::try_from(seed)?);
    line.fill(waiters)?;
    let mut spans = Vec::with_capacity(turns);
    for _ in 0..turns {
        let waiter = line.prepare();
        let begun = Instant::now();
        line.turn(black_box(waiter))?;
        spans.push(begun.elapsed().as_nanos());
    }
    spans.sort_unstable();
    spans.get(turns / 2).map(|median| *median as f64).context("nothing was measured")
}

/// In a process of its own, whose allocator counts.
fn bytes(waiters: usize) -> Result<f64> {
    let ran = Command::new(paths::built("queue-memory")?).arg(waiters.to_string()).output()?;
    ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    Ok(String::from_utf8(ran.stdout)?.trim().parse()?)
}

#[allow(clippy::cast_precision_loss)] // calls far below 2^52
fn simulated(load_percent: u64, size: &Size) -> Result<Vec<f64>> {
    let setup = Setup::read(&serde_json::from_str(DAY_NIGHT)?, Setup::START)?;
    let scene = Scene { seed: 42, load_percent, most_calls: size.simulated_calls, ..Scene::default() };
    let trace = scene.trace(&setup.config);
    let mut speeds = Vec::new();
    for _ in 0..size.repeats {
        let begun = Instant::now();
        black_box(simulate(&setup, black_box(&trace)));
        speeds.push((trace.arrivals().len() as f64 / begun.elapsed().as_secs_f64()).round());
    }
    Ok(speeds)
}
