//! What came of a simulation, in integers: milliseconds, tokens and millionths.

use crate::units::Priority;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// When the last call had ended.
    pub ended_ms: u64,
    pub total: Row,
    /// Every tenant of the trace at every level it called at, in the order of names and levels.
    pub rows: Vec<Row>,
    pub pools: Vec<PoolUse>,
    pub fairness: Fairness,
    /// Where adaptive weights stood at the end, in percent of the configured ones, by tenant; empty while they are off.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub adapted: BTreeMap<String, u64>,
    /// Of every decision in its order: two runs with one digest decided alike, call by call.
    pub digest: String,
}

/// The calls of one tenant at one level, or of all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub tenant: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<Priority>,
    pub asked: u64,
    /// Calls that ran to their end.
    pub served: u64,
    /// Tokens of calls that ran, to the end or not.
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Those tokens, weighted as the model's `charges` say.
    pub charge: u64,
    pub wait_ms: Waits,
    /// Clients that left while they stood in the queue, and while their call ran.
    pub left_waiting: u64,
    pub left_running: u64,
    /// By reason.
    pub refused: BTreeMap<String, u64>,
}

impl Row {
    #[must_use]
    pub fn refused_in_all(&self) -> u64 {
        self.refused.values().sum()
    }
}

/// How long calls stood in the queue before they started, in milliseconds. Those that started at once count, with 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Waits {
    /// Calls that started.
    pub started: u64,
    /// Those of them that had to wait.
    pub waited: u64,
    /// Rounded down.
    pub mean: u64,
    pub p50: u64,
    pub p95: u64,
    pub p99: u64,
    pub max: u64,
}

impl Waits {
    pub(super) fn of(mut waits: Vec<u32>) -> Self {
        let started = u64::try_from(waits.len()).unwrap_or(u64::MAX);
        let waited = u64::try_from(waits.iter().filter(|wait| **wait > 0).count()).unwrap_or(u64::MAX);
        let sum: u64 = waits.iter().copied().map(u64::from).sum();
        let max = waits.iter().copied().max().map_or(0, u64::from);
        // The smallest wait that `percent` of the calls do not exceed (nearest rank); selected, not sorted.
        let mut percentile = |percent: u64| {
            let rank = usize::try_from((started * percent).div_ceil(100)).unwrap_or(usize::MAX);
            let index = rank.saturating_sub(1);
            if index < waits.len() { u64::from(*waits.select_nth_unstable(index).1) } else { 0 }
        };
        let (p50, p95, p99) = (percentile(50), percentile(95), percentile(99));
        Self { started, waited, mean: sum / started.max(1), p50, p95, p99, max }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PoolUse {
    pub pool: String,
    /// Slots in use over slots that were there, over the whole simulated time.
    pub utilisation_ppm: u64,
}

/// Jain's index over the tenants that called, in millionths; 1,000,000 is perfectly even.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Fairness {
    /// Of what each was charged, per its weight. Uneven too where one simply asked for less.
    pub charge_ppm: u64,
    /// Of the part of its calls that each had served.
    pub served_ppm: u64,
}
