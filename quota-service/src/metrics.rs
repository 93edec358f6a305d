//! What Prometheus sees of admission. Labels come from the configuration only, never from a request, and a thousand tenants
//! are named at most.
//!
//! A page that tells of a call's end tells what it used, too: what ends is raised last and collected first.

mod by_model;
mod by_pool;
mod by_tenant;
mod gen_ai;
mod page;
mod resolved;

use by_model::ByModel;
use by_pool::ByPool;
use by_tenant::ByTenant;
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry, TextEncoder};
use sluice_policy::admission::{PoolView, Settled};
use sluice_policy::config::Price;
use sluice_policy::units::{PoolName, Priority, TenantId};
use sluice_policy::wire::{Outcome, Reason, Settlement, UsageSource};
use std::time::Instant;

/// Label value for a call whose tenant or pool is not known.
const UNKNOWN: &str = "";

/// All of the service's own metrics, and the registries that show them.
pub struct Metrics {
    registry: Registry,
    /// Which calls ended: few series, gathered in microseconds while nothing is decided.
    ends: Registry,
    settlements: IntCounterVec,
    by_pool: ByPool,
    by_model: ByModel,
    by_tenant: ByTenant,
    ledger_calls: IntCounterVec,
    reports: IntCounterVec,
    usage_dropped: IntCounter,
}

/// What stands where at one moment, and which calls had ended by then.
pub struct Moment {
    ended: Vec<MetricFamily>,
    pools: Vec<PoolView>,
}

impl Metrics {
    /// `tenant_by_model`: whether series with a tenant carry its pools and models too.
    ///
    /// # Errors
    /// Two metrics bear one name: a defect that the first test finds.
    pub fn new(tenant_by_model: bool) -> Result<Self, prometheus::Error> {
        let (registry, ends) = (Registry::new(), Registry::new());
        Ok(Self {
            settlements: counter(
                &ends,
                "sluice_settlements_total",
                "Calls that ended, by outcome and by where their usage came from.",
                &["outcome", "usage"],
            )?,
            by_pool: ByPool::new(&registry)?,
            by_model: ByModel::new(&registry)?,
            by_tenant: ByTenant::new(tenant_by_model, Instant::now()),
            ledger_calls: counter(&registry, "sluice_ledger_calls_total", "Calls to the ledger.", &["result"])?,
            reports: counter(
                &registry,
                "sluice_worker_reports_total",
                "Reports of Envoy workers, by whether calls had ended that nobody had settled.",
                &["found"],
            )?,
            usage_dropped: register(
                &registry,
                IntCounter::new("sluice_usage_dropped_total", "Calls that no usage record counts, for want of room.")?,
            )?,
            registry,
            ends,
        })
    }

    /// So many tenants are configured.
    pub fn set_tenants(&self, count: usize) {
        self.by_tenant.set_tenants(count);
    }

    /// Shows what somebody else collects.
    ///
    /// # Errors
    /// One of its metrics bears a name that is taken.
    pub fn also(&self, collector: Box<dyn Collector>) -> Result<(), prometheus::Error> {
        self.registry.register(collector)
    }

    pub fn admitted(&self, tenant: &TenantId, pool: &PoolName, priority: Priority, waited_s: f64) {
        self.by_pool.admitted(pool, priority, waited_s);
        self.by_tenant.decided(Some(tenant), Some(pool), None, Instant::now());
    }

    pub fn rejected(&self, tenant: Option<&TenantId>, pool: Option<&PoolName>, reason: Reason) {
        self.by_pool.rejected(pool, reason);
        self.by_tenant.decided(tenant, pool, Some(reason), Instant::now());
    }

    /// `settled` is absent for an id that was not live; `price` is its model's. The caller lets no [`Metrics::moment`] pass
    /// until what has become of the call's slot is known.
    pub fn settled(&self, settlement: &Settlement, settled: Option<&Settled>, price: Price) {
        let labels = match settled {
            None => ["unknown_id", source(settlement.usage.source)],
            Some(settled) => {
                self.by_model.settled(settled, price, settlement.outcome, settlement.timing);
                self.by_tenant.settled(settled, price, Instant::now());
                [outcome(settlement.outcome), source(settled.usage.source)]
            }
        };
        self.settlements.with_label_values(&labels).inc();
    }

    /// A worker has told which of its calls live; so many others had ended unsettled.
    pub fn reported(&self, lost: usize) {
        let found = if lost == 0 { "nothing" } else { "lost_calls" };
        self.reports.with_label_values(&[found]).inc();
    }

    /// `answered`, `failed`, or `stale`: answered to a later incarnation.
    pub fn ledger_call(&self, result: &str) {
        self.ledger_calls.with_label_values(&[result]).inc();
    }

    /// A call has ended that no usage record will count.
    pub fn usage_dropped(&self) {
        self.usage_dropped.inc();
    }

    /// What must be seen together. The caller keeps what it counts and what `pools` shows from changing meanwhile.
    pub fn moment(&self, pools: Vec<PoolView>) -> Moment {
        Moment { ended: self.ends.gather(), pools }
    }

    /// The text format, version 0.0.4. No decision waits for it.
    ///
    /// # Errors
    /// A metric has no series: a defect of a collector.
    pub fn render(&self, moment: Moment) -> Result<String, prometheus::Error> {
        let Moment { ended: mut families, pools } = moment;
        families.extend(self.registry.gather());
        families.sort_by(|one, other| one.name().cmp(other.name()));
        let mut page = TextEncoder::new().encode_to_string(&families)?;
        by_pool::write(&mut page, &pools);
        self.by_tenant.write(&mut page);
        Ok(page)
    }
}

/// The labels of a decision; `reason` is absent for a call that was admitted.
fn decision(reason: Option<Reason>) -> (&'static str, &'static str) {
    reason.map_or(("admitted", ""), |reason| ("rejected", reason.as_str()))
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Failed => "failed",
        Outcome::Aborted => "aborted",
        Outcome::Cancelled => "cancelled",
    }
}

fn source(source: UsageSource) -> &'static str {
    match source {
        UsageSource::None => "none",
        UsageSource::Reported => "reported",
        UsageSource::Estimated => "estimated",
        UsageSource::Fixed => "fixed",
    }
}

fn counter(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests;
