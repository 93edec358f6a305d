//! GPU metrics reach the sidecar's `/metrics` with the tenant they belong to.

use e2e::metrics::Metrics;
use e2e::stack::Stack;
use e2e::tenant::Tenant;
use serde_json::json;
use std::time::Duration;

const SLACK: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn an_exporters_utilisation_and_temperature_are_exported_again_by_tenant() {
    let stack = Stack::builder("gpu-metrics")
        // A tenant whose namespace has another name, so that a copied label would show.
        .tenant(Tenant::new("dept-a").with("namespace", json!("team-alpha")))
        .tenant(Tenant::new("dept-b"))
        .gpus(&["team-alpha", "dept-b", "nobodys"])
        .start()
        .await
        .unwrap();
    let metrics = stack
        .operators()
        .wait_for_metrics("the first scrape is exported", SLACK, |metrics| {
            metrics.matching("gpu_temperature", &[("tenant", "dept-b")]).next().is_some()
        })
        .await
        .unwrap();

    for (tenant, namespace) in [("dept-a", "team-alpha"), ("dept-b", "dept-b")] {
        let labels = [("tenant", tenant), ("namespace", namespace)];
        let load = one(&metrics, "dcgm_gpu_utilization", &labels);
        assert!((0.0..=100.0).contains(&load), "{tenant}: {load}");
        let load = one(&metrics, "gpu_utilization", &labels);
        assert!((0.0..=100.0).contains(&load), "{tenant}: {load}");
        let degrees = one(&metrics, "gpu_temperature", &labels);
        assert!((20.0..=100.0).contains(&degrees), "{tenant}: {degrees}");
    }
    let strangers: Vec<_> = metrics.matching("gpu_utilization", &[("namespace", "nobodys")]).collect();
    let of_nobody = |tenant: &String| tenant.is_empty() || tenant == "_other";
    assert!(
        strangers.iter().all(|sample| sample.labels.get("tenant").is_none_or(of_nobody)),
        "a namespace that is no tenant's is charged to none: {strangers:?}"
    );
    let rows: Vec<_> = metrics.matching("dcgm_gpu_utilization", &[("node", "worker-01")]).collect();
    assert!(rows.len() >= 2, "{rows:?}");
    for label in ["gpu", "device_id", "model", "node", "pod"] {
        assert!(rows.iter().all(|row| row.labels.contains_key(label)), "{label}: {rows:?}");
    }
}

/// The value of the one sample that bears the labels.
fn one(metrics: &Metrics, name: &str, labels: &[(&str, &str)]) -> f64 {
    let samples: Vec<_> = metrics.matching(name, labels).collect();
    assert_eq!(samples.len(), 1, "{name} {labels:?}: {samples:?}");
    samples[0].value
}
