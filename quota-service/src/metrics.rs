//! What Prometheus sees of admission. Labels come from the configuration only, never from a request.
//!
//! A page that tells of a call's end tells what it used, too: what ends is raised last and collected first.

mod gen_ai;

use gen_ai::GenAi;
use prometheus::core::Collector;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};
use sluice_policy::admission::Settled;
use sluice_policy::config::Price;
use sluice_policy::units::{PoolName, Priority, TenantId};
use sluice_policy::wire::{Outcome, Reason, Settlement, UsageSource};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Label value for a call whose tenant or pool is not known.
const UNKNOWN: &str = "";

/// All of the service's own metrics, and the registries that show them.
pub struct Metrics {
    registry: Registry,
    /// Which calls ended, run and wait. Without tenants, so it is collected in microseconds, with `collecting` locked.
    ends: Registry,
    /// Shared by whoever changes what is in `ends`, exclusive while it is collected. Nobody decides anything while
    /// `registry` is collected, which may take long.
    collecting: RwLock<()>,
    admissions: IntCounterVec,
    queue_wait: HistogramVec,
    settlements: IntCounterVec,
    tokens: IntCounterVec,
    cost: IntCounterVec,
    fixed: IntCounterVec,
    gen_ai: GenAi,
    ledger_calls: IntCounterVec,
    reports: IntCounterVec,
    usage_dropped: IntCounter,
    pub running: IntGaugeVec,
    pub capacity: IntGaugeVec,
    pub held: IntGaugeVec,
    pub queue_depth: IntGaugeVec,
}

impl Metrics {
    /// # Errors
    /// Two metrics bear one name: a defect that the first test finds.
    pub fn new() -> Result<Self, prometheus::Error> {
        let (registry, ends) = (Registry::new(), Registry::new());
        let wait = HistogramOpts::new("sluice_queue_wait_seconds", "How long admitted calls stood in the queue.")
            .buckets(vec![0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]);
        let pool = &["pool"];
        Ok(Self {
            admissions: counter(
                &registry,
                "sluice_admissions_total",
                "Calls decided, by decision and by the reason of a refusal.",
                &["pool", "tenant", "decision", "reason"],
            )?,
            queue_wait: register(&registry, HistogramVec::new(wait, &["pool", "priority"])?)?,
            settlements: counter(
                &ends,
                "sluice_settlements_total",
                "Calls that ended, by outcome and by where their usage came from.",
                &["outcome", "usage"],
            )?,
            tokens: counter(
                &registry,
                "sluice_tokens_total",
                "Tokens used; cached ones are part of the input, reasoning ones of the output.",
                &["tenant", "model", "kind"],
            )?,
            cost: counter(
                &registry,
                "sluice_cost_micros_total",
                "What calls cost by their models' prices, in millionths of a currency unit.",
                &["tenant", "model"],
            )?,
            fixed: counter(
                &registry,
                "sluice_fixed_charges_total",
                "Charges of requests that are not counted in tokens.",
                &["tenant", "model"],
            )?,
            gen_ai: GenAi::new(&registry)?,
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
            running: gauge(&ends, "sluice_running", "Calls that hold a slot.", pool)?,
            capacity: gauge(&ends, "sluice_capacity", "Slots of the pool, over all replicas.", pool)?,
            held: gauge(&ends, "sluice_held_slots", "Slots that this replica holds on lease.", pool)?,
            queue_depth: gauge(&ends, "sluice_queue_depth", "Calls that wait.", &["pool", "priority"])?,
            registry,
            ends,
            collecting: RwLock::new(()),
        })
    }

    /// Shows what somebody else collects.
    ///
    /// # Errors
    /// One of its metrics bears a name that is taken.
    pub fn also(&self, collector: Box<dyn Collector>) -> Result<(), prometheus::Error> {
        self.registry.register(collector)
    }

    pub fn admitted(&self, tenant: &TenantId, pool: &PoolName, priority: Priority, waited_s: f64) {
        self.admissions.with_label_values(&[pool.as_str(), tenant.as_str(), "admitted", ""]).inc();
        let level = u8::from(priority).to_string();
        self.queue_wait.with_label_values(&[pool.as_str(), &level]).observe(waited_s);
    }

    pub fn rejected(&self, tenant: Option<&TenantId>, pool: Option<&PoolName>, reason: Reason) {
        let tenant = tenant.map_or(UNKNOWN, TenantId::as_str);
        let pool = pool.map_or(UNKNOWN, PoolName::as_str);
        self.admissions.with_label_values(&[pool, tenant, "rejected", reason.as_str()]).inc();
    }

    /// `settled` is absent for an id that was not live; `price` is its model's.
    pub fn settled(&self, settlement: &Settlement, settled: Option<&Settled>, price: Price) {
        let labels = match settled {
            None => ["unknown_id", source(settlement.usage.source)],
            Some(settled) => {
                self.gen_ai.settled(settled, settlement.outcome, settlement.timing);
                self.used(settled, price);
                [outcome(settlement.outcome), source(settled.usage.source)]
            }
        };
        let _together = self.together();
        self.settlements.with_label_values(&labels).inc();
    }

    fn used(&self, Settled { tenant, model, usage, .. }: &Settled, price: Price) {
        let (tenant, model) = (tenant.as_str(), model.as_str());
        let cost = price.of(usage);
        if cost > 0 {
            self.cost.with_label_values(&[tenant, model]).inc_by(cost);
        }
        if usage.source == UsageSource::Fixed {
            self.fixed.with_label_values(&[tenant, model]).inc_by(usage.input.0);
            return;
        }
        for (kind, tokens) in
            [("input", usage.input), ("output", usage.output), ("cached", usage.cached), ("reasoning", usage.reasoning)]
        {
            self.tokens.with_label_values(&[tenant, model, kind]).inc_by(tokens.0);
        }
    }

    /// While this lives, no page is made of the gauges: whoever sets several of them shows all or none.
    pub fn together(&self) -> RwLockReadGuard<'_, ()> {
        // It guards no data that a panic could have left half changed.
        self.collecting.read().unwrap_or_else(PoisonError::into_inner)
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

    /// The text format, version 0.0.4.
    ///
    /// # Errors
    /// A metric has no series: a defect of a collector.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut families = {
            let _alone = self.collecting.write().unwrap_or_else(PoisonError::into_inner);
            self.ends.gather()
        };
        families.extend(self.registry.gather());
        families.sort_by(|one, other| one.name().cmp(other.name()));
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
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

fn gauge(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests;
