//! The view as Prometheus metrics.
//!
//! A collector of our own rather than gauges with labels, because a series must vanish with its device or holder.

use super::view::{DeviceRow, GpuView, NodeStatus, Snapshot};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// One metric's name, help and labels, stated once for its description and its samples.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
}

const UTILIZATION_BY_POD: Family = Family {
    name: "dcgm_gpu_utilization",
    help: "Load of a GPU or MIG instance in percent (0 to 100), with the tenant and pod that hold it. A GPU that \
           pods share shows its whole load for each of them.",
    kind: MetricType::GAUGE,
    labels: &["namespace", "tenant", "gpu", "device_id", "model", "node", "pod"],
};

const UTILIZATION: Family = Family {
    name: "gpu_utilization",
    help: "Load of a GPU or MIG instance in percent (0 to 100), once for each namespace that holds it.",
    kind: MetricType::GAUGE,
    labels: &["device_id", "model", "tenant", "namespace"],
};

const TEMPERATURE: Family = Family {
    name: "gpu_temperature",
    help: "Temperature of the chip of a GPU or MIG instance in degrees Celsius, once for each namespace that \
           holds it.",
    kind: MetricType::GAUGE,
    labels: &["device_id", "model", "tenant", "namespace"],
};

const SCRAPES: Family = Family {
    name: "sluice_gpu_scrapes_total",
    help: "Scrapes of a node's DCGM exporter, by how they ended.",
    kind: MetricType::COUNTER,
    labels: &["node", "result"],
};

const BAD_LINES: Family = Family {
    name: "sluice_gpu_bad_lines_total",
    help: "Lines of a node's DCGM exporter that were no samples, or samples of no known device.",
    kind: MetricType::COUNTER,
    labels: &["node"],
};

const DROPPED_ROWS: Family = Family {
    name: "sluice_gpu_dropped_rows_total",
    help: "Devices or their holders that were left out because the sidecar knows as many as it may.",
    kind: MetricType::COUNTER,
    labels: &["node"],
};

const SCRAPE_AGE: Family = Family {
    name: "sluice_gpu_last_scrape_age_seconds",
    help: "Seconds since the last good scrape of a node's DCGM exporter, or since the start while there was none.",
    kind: MetricType::GAUGE,
    labels: &["node"],
};

const FAMILIES: [Family; 7] =
    [UTILIZATION_BY_POD, UTILIZATION, TEMPERATURE, SCRAPES, BAD_LINES, DROPPED_ROWS, SCRAPE_AGE];

/// Register it once: `registry.register(Box::new(view.collector()?))`.
pub struct GpuCollector {
    view: Arc<GpuView>,
    descriptions: Vec<Desc>,
}

impl GpuView {
    /// The view as a collector for a registry.
    ///
    /// # Errors
    /// When a description is malformed, which is a mistake in this file.
    pub fn collector(self: &Arc<Self>) -> prometheus::Result<GpuCollector> {
        let describe = |family: &Family| {
            let labels = family.labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new(family.name.to_owned(), family.help.to_owned(), labels, HashMap::new())
        };
        let descriptions = FAMILIES.iter().map(describe).collect::<Result<_, _>>()?;
        Ok(GpuCollector { view: Arc::clone(self), descriptions })
    }
}

impl Collector for GpuCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        families(&self.view.snapshot())
    }
}

fn families(snapshot: &Snapshot) -> Vec<MetricFamily> {
    let mut families = device_families(&snapshot.devices);
    families.extend(node_families(&snapshot.nodes));
    families
}

fn device_families(devices: &[DeviceRow]) -> Vec<MetricFamily> {
    let by_pod = devices.iter().filter_map(|row| {
        let load = row.utilization_percent?;
        let gpu = row.gpu.to_string();
        let labels = [&row.namespace, &row.tenant, &gpu, &row.device_id, &row.model, &row.node, &row.pod];
        Some((labels.map(String::clone).to_vec(), load))
    });
    let labels =
        |row: &DeviceRow| [&row.device_id, &row.model, &row.tenant, &row.namespace].map(String::clone).to_vec();
    let load = devices.iter().filter_map(|row| Some((labels(row), row.utilization_percent?)));
    let heat = devices.iter().filter_map(|row| Some((labels(row), row.temperature_celsius?)));
    vec![UTILIZATION_BY_POD.with(by_pod), UTILIZATION.with(load), TEMPERATURE.with(heat)]
}

fn node_families(nodes: &[NodeStatus]) -> Vec<MetricFamily> {
    let scrapes = nodes.iter().flat_map(|status| {
        let node = &status.node;
        status.scrapes.iter().map(move |(result, count)| (vec![node.clone(), result.label().to_owned()], whole(*count)))
    });
    let of_node =
        |value: fn(&NodeStatus) -> f64| nodes.iter().map(move |status| (vec![status.node.clone()], value(status)));
    vec![
        SCRAPES.with(scrapes),
        BAD_LINES.with(of_node(|status| whole(status.bad_lines))),
        DROPPED_ROWS.with(of_node(|status| whole(status.dropped_rows))),
        SCRAPE_AGE.with(of_node(|status| status.age.as_secs_f64())),
    ]
}

/// Prometheus knows only floating-point numbers; these are exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "the format has no integers")]
fn whole(count: u64) -> f64 {
    count as f64
}

impl Family {
    /// The family with its samples. Label values that come twice, as where two pods of a namespace share a GPU,
    /// become one series: Prometheus refuses a page with the same series twice.
    fn with(&self, samples: impl Iterator<Item = (Vec<String>, f64)>) -> MetricFamily {
        let mut series: BTreeMap<Vec<String>, f64> = BTreeMap::new();
        for (labels, value) in samples {
            let known = series.entry(labels).or_insert(value);
            *known = known.max(value);
        }
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(self.kind);
        family.set_metric(series.into_iter().map(|(labels, value)| self.sample(labels, value)).collect());
        family
    }

    fn sample(&self, values: Vec<String>, value: f64) -> Metric {
        let pair = |(name, value): (&&str, String)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value);
            pair
        };
        let mut metric = Metric::from_label(self.labels.iter().zip(values).map(pair).collect());
        if self.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        metric
    }
}

#[cfg(test)]
mod tests;
