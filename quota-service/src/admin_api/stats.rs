//! The stats pages, with the field names that operators of such schedulers know.

use crate::control::Control;
use crate::engine::{Engine, Totals};
use serde::Serialize;
use serde_json::Value;
use sluice_policy::admission::{PoolView, Waiting};
use sluice_policy::units::{Millis, Priority, Tokens};

/// Queues of one answer, and waiting calls of each: decisions wait while they are looked up.
const MOST_TOP: usize = 100;

#[derive(Serialize)]
pub(super) struct Stats {
    /// Calls admitted since the start.
    total_scheduled: u64,
    total_rejected: u64,
    total_queued_now: usize,
    total_running_now: u64,
    /// Running calls per slot of all pools, in percent.
    overall_utilization: f64,
    /// One entry a level, over all pools.
    queue_stats: Vec<QueueStats>,
    pools: Vec<PoolLine>,
    /// The weights in force, P0 to P9, with rules and overlay applied.
    weights: [u64; Priority::COUNT],
    overlay_version: u64,
    active_time_rules: Vec<String>,
    /// Adaptive weights with their reasons; `null` while they are off.
    adaptive: Value,
    config_reloads: u64,
    config_reloads_refused: u64,
}

#[derive(Serialize)]
struct QueueStats {
    priority: u8,
    current_depth: usize,
    max_depth: usize,
    utilization_pct: f64,
    is_full: bool,
    available_slots: usize,
}

#[derive(Serialize)]
struct PoolLine {
    name: String,
    capacity: u32,
    held: u32,
    running: u32,
    /// Of these, abandoned calls that keep their slot: see `on_abort`.
    orphaned: u32,
    queued: usize,
}

#[derive(Serialize)]
pub(super) struct BusiestQueues {
    busiest_queues: Vec<BusyQueue>,
}

#[derive(Serialize)]
struct BusyQueue {
    pool: String,
    #[serde(flatten)]
    stats: QueueStats,
    /// In the order in which they start if nobody else comes.
    next_to_start: Vec<NextToStart>,
}

/// A waiting call; `/admin/explain/{id}` tells why it waits.
#[derive(Serialize)]
struct NextToStart {
    id: String,
    tenant: String,
    waited_ms: Millis,
    charge: Tokens,
}

impl Stats {
    pub(super) fn of(totals: &Totals, control: &Control) -> Self {
        let overlay = control.overlay_status();
        let reloads = control.reloads();
        let pools = &totals.pools;
        let running: u64 = pools.iter().map(|pool| u64::from(pool.running)).sum();
        let capacity: u64 = pools.iter().map(|pool| u64::from(pool.capacity)).sum();
        let level = |level: Priority| {
            let depth = pools.iter().map(|pool| depth(pool, level)).sum();
            let most = pools.len() * totals.max_depth;
            QueueStats::new(level, depth, most)
        };
        Self {
            total_scheduled: totals.scheduled,
            total_rejected: totals.rejected,
            total_queued_now: pools.iter().map(queued).sum(),
            total_running_now: running,
            overall_utilization: percent(running, capacity),
            queue_stats: Priority::all().map(level).collect(),
            pools: pools.iter().map(PoolLine::of).collect(),
            weights: overlay.effective.weights,
            overlay_version: overlay.version,
            active_time_rules: control.active_rules(),
            adaptive: control.adaptive_status(),
            config_reloads: reloads.taken,
            config_reloads_refused: reloads.refused,
        }
    }
}

impl BusiestQueues {
    /// The `top` deepest queues, one entry a pool and level, each with its first `top` waiters; empty ones are left out.
    pub(super) fn of(engine: &Engine, top: usize) -> Self {
        let top = top.min(MOST_TOP);
        let totals = engine.totals();
        let queues = totals.pools.iter().flat_map(|pool| Priority::all().map(move |level| (pool, level)));
        let mut busiest: Vec<_> = queues.filter(|(pool, level)| depth(pool, *level) > 0).collect();
        busiest.sort_by_key(|(pool, level)| std::cmp::Reverse(depth(pool, *level)));
        busiest.truncate(top);
        let now = engine.now();
        let queue = |(pool, level): (&PoolView, Priority)| {
            let waiting = engine.read(|core| core.first_waiting(&pool.name, level, top));
            BusyQueue {
                pool: pool.name.to_string(),
                stats: QueueStats::new(level, depth(pool, level), totals.max_depth),
                next_to_start: waiting.into_iter().map(|waiting| NextToStart::of(&waiting, now)).collect(),
            }
        };
        Self { busiest_queues: busiest.into_iter().map(queue).collect() }
    }
}

impl NextToStart {
    fn of(waiting: &Waiting, now: Millis) -> Self {
        Self {
            id: waiting.id.to_string(),
            tenant: waiting.tenant.to_string(),
            waited_ms: now.since(waiting.arrived),
            charge: waiting.charge,
        }
    }
}

impl QueueStats {
    fn new(level: Priority, current_depth: usize, max_depth: usize) -> Self {
        Self {
            priority: level.into(),
            current_depth,
            max_depth,
            utilization_pct: percent(current_depth as u64, max_depth as u64),
            is_full: current_depth >= max_depth,
            available_slots: max_depth.saturating_sub(current_depth),
        }
    }
}

impl PoolLine {
    fn of(pool: &PoolView) -> Self {
        Self {
            name: pool.name.to_string(),
            capacity: pool.capacity,
            held: pool.held,
            running: pool.running,
            orphaned: pool.orphaned,
            queued: queued(pool),
        }
    }
}

fn depth(pool: &PoolView, level: Priority) -> usize {
    pool.depths.get(level.index()).copied().unwrap_or(0)
}

fn queued(pool: &PoolView) -> usize {
    pool.depths.iter().sum()
}

/// Two decimals, as people read it; nothing is decided by it.
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 * 10_000.0 / whole as f64).round() / 100.0 }
}
