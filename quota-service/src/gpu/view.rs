//! The latest rows of every node, and how its scrapes go.

use super::dcgm::{Reading, Row, RowKey};
use super::{GpuSettings, OTHER_TENANT};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Of all nodes together. A cluster that has more wants Prometheus to ask its exporters directly.
const MAX_DEVICES: usize = 1_024;
const MAX_ROWS: usize = 4_096;
/// A node's series end when it has not answered for more than this many intervals, so that a dead node does not
/// look like a steady one.
const STALE_INTERVALS: u32 = 3;

/// How a scrape ended; the `result` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScrapeResult {
    Ok,
    Unreachable,
    Timeout,
    /// Any HTTP status but 200.
    BadStatus,
    TooLarge,
    /// An answer that was not empty, and in which there was no device.
    NotMetrics,
}

impl ScrapeResult {
    pub(super) const ALL: [Self; 6] =
        [Self::Ok, Self::Unreachable, Self::Timeout, Self::BadStatus, Self::TooLarge, Self::NotMetrics];

    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::BadStatus => "bad_status",
            Self::TooLarge => "too_large",
            Self::NotMetrics => "not_metrics",
        }
    }
}

/// A device and one holder of it. Devices that nobody holds have one row, with empty holder fields.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceRow {
    /// `worker-01-GPU-00`, with `-MIG-7` after it for an instance.
    pub device_id: String,
    pub node: String,
    /// The GPU's index on its node.
    pub gpu: u16,
    pub model: String,
    pub namespace: String,
    pub tenant: String,
    pub pod: String,
    /// 0 to 100.
    pub utilization_percent: Option<f64>,
    pub temperature_celsius: Option<f64>,
}

/// How the scrapes of one exporter go. The counts are since the start.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeStatus {
    pub node: String,
    /// Since the last good scrape, or since the start while there was none.
    pub age: Duration,
    pub scrapes: BTreeMap<ScrapeResult, u64>,
    pub bad_lines: u64,
    pub dropped_rows: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub devices: Vec<DeviceRow>,
    pub nodes: Vec<NodeStatus>,
}

/// Shared between the scrapers, which write, and `/metrics`, which reads.
pub struct GpuView {
    stale_after: Duration,
    /// One entry for every configured exporter, from the start. Invariant: together they hold at most
    /// [`MAX_DEVICES`] devices and [`MAX_ROWS`] rows.
    nodes: Mutex<BTreeMap<String, NodeState>>,
}

struct NodeState {
    last_good: Instant,
    rows: Vec<DeviceRow>,
    scrapes: BTreeMap<ScrapeResult, u64>,
    bad_lines: u64,
    dropped_rows: u64,
}

impl NodeState {
    fn new(now: Instant) -> Self {
        Self {
            last_good: now,
            rows: Vec::new(),
            // Every series is there from the start, so that a rate sees the first failure.
            scrapes: ScrapeResult::ALL.map(|result| (result, 0)).into(),
            bad_lines: 0,
            dropped_rows: 0,
        }
    }

    fn count(&mut self, result: ScrapeResult) {
        *self.scrapes.entry(result).or_default() += 1;
    }
}

impl GpuView {
    #[must_use]
    pub fn new(settings: &GpuSettings) -> Arc<Self> {
        Arc::new(Self::starting_at(settings, Instant::now()))
    }

    pub(super) fn starting_at(settings: &GpuSettings, now: Instant) -> Self {
        let nodes = settings.exporters.iter().map(|exporter| (exporter.node.clone(), NodeState::new(now))).collect();
        Self { stale_after: settings.interval * STALE_INTERVALS, nodes: Mutex::new(nodes) }
    }

    /// What is known now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot_at(Instant::now())
    }

    pub(super) fn snapshot_at(&self, now: Instant) -> Snapshot {
        let mut nodes = self.lock();
        self.forget_stale(&mut nodes, now);
        Snapshot {
            devices: nodes.values().flat_map(|state| state.rows.iter().cloned()).collect(),
            nodes: nodes
                .iter()
                .map(|(node, state)| NodeStatus {
                    node: node.clone(),
                    age: now.saturating_duration_since(state.last_good),
                    scrapes: state.scrapes.clone(),
                    bad_lines: state.bad_lines,
                    dropped_rows: state.dropped_rows,
                })
                .collect(),
        }
    }

    /// Replaces what is known of a node.
    pub(super) fn record_reading(
        &self,
        node: &str,
        reading: Reading,
        tenants: &BTreeMap<String, String>,
        now: Instant,
    ) {
        let mut nodes = self.lock();
        self.forget_stale(&mut nodes, now);
        let mut room = Room::beside(node, &nodes);
        let Some(state) = nodes.get_mut(node) else { return };
        state.count(ScrapeResult::Ok);
        state.last_good = now;
        state.bad_lines += reading.bad_lines;
        state.dropped_rows += reading.dropped;
        state.rows.clear();
        for (key, row) in reading.rows {
            if room.admits(&key) {
                state.rows.push(device_row(node, key, row, tenants));
            } else {
                state.dropped_rows += 1;
            }
        }
    }

    /// Counts a scrape that told nothing. What was known stays until it is stale.
    pub(super) fn record_failure(&self, node: &str, result: ScrapeResult, bad_lines: u64) {
        if let Some(state) = self.lock().get_mut(node) {
            state.count(result);
            state.bad_lines += bad_lines;
        }
    }

    fn forget_stale(&self, nodes: &mut BTreeMap<String, NodeState>, now: Instant) {
        for state in nodes.values_mut() {
            if now.saturating_duration_since(state.last_good) > self.stale_after {
                state.rows = Vec::new();
            }
        }
    }

    /// A panic while the lock was held leaves at worst one node's rows incomplete, until its next scrape.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, NodeState>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the other nodes leave of the bounds: whoever came first keeps its place.
struct Room {
    devices: usize,
    rows: usize,
    admitted: BTreeSet<(u16, Option<u16>)>,
}

impl Room {
    fn beside(node: &str, nodes: &BTreeMap<String, NodeState>) -> Self {
        let others = || nodes.iter().filter(|(name, _)| *name != node).flat_map(|(_, state)| &state.rows);
        let devices: BTreeSet<&str> = others().map(|row| row.device_id.as_str()).collect();
        Self {
            devices: MAX_DEVICES.saturating_sub(devices.len()),
            rows: MAX_ROWS.saturating_sub(others().count()),
            admitted: BTreeSet::new(),
        }
    }

    fn admits(&mut self, key: &RowKey) -> bool {
        let device = (key.gpu, key.instance);
        let fits = self.rows > 0 && (self.admitted.contains(&device) || self.admitted.len() < self.devices);
        if fits {
            self.admitted.insert(device);
            self.rows -= 1;
        }
        fits
    }
}

fn device_row(node: &str, key: RowKey, row: Row, tenants: &BTreeMap<String, String>) -> DeviceRow {
    let instance = key.instance.map_or(String::new(), |id| format!("-MIG-{id}"));
    let tenant = match key.namespace.as_str() {
        "" => "",
        namespace => tenants.get(namespace).map_or(OTHER_TENANT, String::as_str),
    };
    DeviceRow {
        device_id: format!("{node}-GPU-{:02}{instance}", key.gpu),
        node: node.to_owned(),
        gpu: key.gpu,
        utilization_percent: row.load_percent(),
        temperature_celsius: row.temperature_celsius,
        model: row.model,
        tenant: tenant.to_owned(),
        namespace: key.namespace,
        pod: key.pod,
    }
}

#[cfg(test)]
mod tests;
