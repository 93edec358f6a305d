//! Pools: what was decided about their calls, and what stands where when a page is made.

use super::page::{Family, Kind};
use super::resolved::Resolved;
use super::{UNKNOWN, counter, register};
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Registry};
use sluice_policy::admission::PoolView;
use sluice_policy::units::{PoolName, Priority};
use sluice_policy::wire::Reason;
use std::sync::OnceLock;

pub(super) struct ByPool {
    admissions: IntCounterVec,
    queue_wait: HistogramVec,
    resolved: Resolved<PoolName, OfPool>,
}

/// What most calls raise.
#[derive(Default)]
struct OfPool {
    admitted: OnceLock<IntCounter>,
    waits: [OnceLock<Histogram>; Priority::COUNT],
}

impl ByPool {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let wait = HistogramOpts::new("sluice_queue_wait_seconds", "How long admitted calls stood in the queue.")
            .buckets(vec![0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]);
        Ok(Self {
            admissions: counter(
                registry,
                "sluice_pool_admissions_total",
                "Calls decided, of all tenants, by decision and by the reason of a refusal.",
                &["pool", "decision", "reason"],
            )?,
            queue_wait: register(registry, HistogramVec::new(wait, &["pool", "priority"])?)?,
            resolved: Resolved::default(),
        })
    }

    pub(super) fn admitted(&self, pool: &PoolName, priority: Priority, waited_s: f64) {
        let of_pool = self.resolved.of(pool, OfPool::default);
        let admitted = || self.admissions.with_label_values(&[pool.as_str(), "admitted", ""]);
        of_pool.admitted.get_or_init(admitted).inc();
        let waits = || self.queue_wait.with_label_values(&[pool.as_str(), &u8::from(priority).to_string()]);
        if let Some(wait) = of_pool.waits.get(priority.index()) {
            wait.get_or_init(waits).observe(waited_s);
        }
    }

    pub(super) fn rejected(&self, pool: Option<&PoolName>, reason: Reason) {
        let pool = pool.map_or(UNKNOWN, PoolName::as_str);
        self.admissions.with_label_values(&[pool, "rejected", reason.as_str()]).inc();
    }
}

/// Adds what stands where to a page.
pub(super) fn write(page: &mut String, pools: &[PoolView]) {
    type Number = fn(&PoolView) -> u32;
    let gauges: [(Family, Number); 4] = [
        (gauge("sluice_running", "Calls that hold a slot, orphans too."), |pool| pool.running),
        (
            gauge(
                "sluice_orphans",
                "Abandoned calls that hold their slot while the model server may work on, see on_abort.",
            ),
            |pool| pool.orphaned,
        ),
        (gauge("sluice_capacity", "Slots of the pool, over all replicas."), |pool| pool.capacity),
        (gauge("sluice_held_slots", "Slots that this replica holds on lease."), |pool| pool.held),
    ];
    for (family, number) in gauges {
        family.write(page, pools.iter().map(|pool| ([("pool", pool.name.as_str())], u64::from(number(pool)))));
    }
    let levels: Vec<String> = Priority::all().map(|level| u8::from(level).to_string()).collect();
    let depths = pools.iter().flat_map(|pool| {
        levels.iter().zip(pool.depths).map(|(level, depth)| {
            let labels = [("pool", pool.name.as_str()), ("priority", level.as_str())];
            (labels, u64::try_from(depth).unwrap_or(u64::MAX))
        })
    });
    gauge("sluice_queue_depth", "Calls that wait.").write(page, depths);
}

fn gauge(name: &'static str, help: &'static str) -> Family {
    Family { name, help, kind: Kind::Gauge }
}
