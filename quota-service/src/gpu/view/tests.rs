use super::*;
use crate::gpu::{Exporter, dcgm};

const INTERVAL: Duration = Duration::from_secs(5);

fn view(nodes: &[&str], now: Instant) -> GpuView {
    let exporter =
        |node: &&str| Exporter { node: (*node).to_owned(), url: "http://127.0.0.1/metrics".parse().unwrap() };
    let settings = GpuSettings { interval: INTERVAL, exporters: nodes.iter().map(exporter).collect() };
    GpuView::starting_at(&settings, now)
}

fn reading(text: &str) -> Reading {
    dcgm::read(text.as_bytes())
}

fn tenants() -> BTreeMap<String, String> {
    [("ns-a".to_owned(), "dept-a".to_owned())].into()
}

fn gpus(count: usize) -> Reading {
    reading(&(0..count).map(|gpu| format!("DCGM_FI_DEV_GPU_UTIL{{gpu=\"{gpu}\"}} 1\n")).collect::<String>())
}

#[test]
fn a_namespace_becomes_a_tenant_and_the_unknown_ones_share_a_name() {
    let now = Instant::now();
    let view = view(&["worker-01"], now);
    let text = "DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",namespace=\"ns-a\",pod=\"p\",modelName=\"H100\"} 85.2\n\
                DCGM_FI_DEV_GPU_UTIL{gpu=\"1\",namespace=\"stranger\"} 5\n\
                DCGM_FI_DEV_GPU_UTIL{gpu=\"12\"} 0\n\
                DCGM_FI_PROF_GR_ENGINE_ACTIVE{gpu=\"13\",GPU_I_ID=\"7\",namespace=\"ns-a\"} 0.5";
    view.record_reading("worker-01", reading(text), &tenants(), now);
    let snapshot = view.snapshot_at(now);
    let found: Vec<(&str, &str)> =
        snapshot.devices.iter().map(|row| (row.device_id.as_str(), row.tenant.as_str())).collect();
    assert_eq!(
        found,
        [
            ("worker-01-GPU-00", "dept-a"),
            ("worker-01-GPU-01", OTHER_TENANT),
            ("worker-01-GPU-12", ""),
            ("worker-01-GPU-13-MIG-7", "dept-a"),
        ]
    );
}

#[test]
fn rows_outlive_three_intervals_of_failures_and_no_more() {
    let start = Instant::now();
    let view = view(&["a"], start);
    view.record_reading("a", gpus(1), &tenants(), start);
    for _ in 0..3 {
        view.record_failure("a", ScrapeResult::Timeout, 0);
    }
    assert_eq!(view.snapshot_at(start + INTERVAL * 3).devices.len(), 1);
    let late = view.snapshot_at(start + INTERVAL * 3 + Duration::from_millis(1));
    assert_eq!(late.devices, []);
    assert_eq!(late.nodes[0].scrapes[&ScrapeResult::Timeout], 3);
    assert_eq!(late.nodes[0].age, INTERVAL * 3 + Duration::from_millis(1));
    view.record_reading("a", gpus(2), &tenants(), start + INTERVAL * 9);
    assert_eq!(view.snapshot_at(start + INTERVAL * 9).devices.len(), 2);
}

#[test]
fn devices_beyond_the_bound_are_dropped_and_counted_and_the_first_come_stay() {
    let now = Instant::now();
    let view = view(&["a", "b"], now);
    view.record_reading("b", gpus(1_000), &tenants(), now);
    view.record_reading("a", gpus(100), &tenants(), now);
    view.record_reading("b", gpus(1_000), &tenants(), now);
    let snapshot = view.snapshot_at(now);
    assert_eq!(snapshot.devices.len(), MAX_DEVICES);
    let dropped: Vec<u64> = snapshot.nodes.iter().map(|node| node.dropped_rows).collect();
    assert_eq!(dropped, [76, 0]);
}

#[test]
fn a_dead_nodes_devices_make_room_for_others() {
    let start = Instant::now();
    let view = view(&["a", "b"], start);
    view.record_reading("a", gpus(MAX_DEVICES), &tenants(), start);
    view.record_reading("b", gpus(4), &tenants(), start + INTERVAL * 4);
    assert_eq!(view.snapshot_at(start + INTERVAL * 4).devices.len(), 4);
}

#[test]
fn a_node_that_is_not_configured_leaves_no_trace() {
    let now = Instant::now();
    let view = view(&["a"], now);
    view.record_reading("b", gpus(1), &tenants(), now);
    view.record_failure("b", ScrapeResult::Timeout, 0);
    let snapshot = view.snapshot_at(now);
    assert_eq!((snapshot.devices.len(), snapshot.nodes.len()), (0, 1));
}
