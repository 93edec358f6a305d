use super::*;
use crate::gpu::view::ScrapeResult;
use crate::gpu::{Exporter, GpuSettings, dcgm, exposition};
use prometheus::{Registry, TextEncoder};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const EXPORTED: &str = "\
free text
DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",modelName=\"H100 \\\"80GB\\\"\",namespace=\"ns-a\",pod=\"p1\"} 85.5
DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",modelName=\"H100 \\\"80GB\\\"\",namespace=\"ns-a\",pod=\"p2\"} 85.5
DCGM_FI_DEV_GPU_TEMP{gpu=\"0\",modelName=\"H100 \\\"80GB\\\"\",namespace=\"ns-a\",pod=\"p1\"} 78.5
DCGM_FI_DEV_GPU_TEMP{gpu=\"0\",modelName=\"H100 \\\"80GB\\\"\",namespace=\"ns-a\",pod=\"p2\"} 78.5
DCGM_FI_DEV_GPU_TEMP{gpu=\"1\",modelName=\"H100 \\\"80GB\\\"\"} 30
";

fn page() -> String {
    let exporter = Exporter { node: "worker-01".to_owned(), url: "http://h/metrics".parse().unwrap() };
    let settings = GpuSettings { interval: Duration::from_secs(600), exporters: vec![exporter] };
    let view = GpuView::new(&settings);
    let tenants = [("ns-a".to_owned(), "dept-a".to_owned())].into();
    view.record_reading("worker-01", dcgm::read(EXPORTED.as_bytes()), &tenants, Instant::now());
    view.record_failure("worker-01", ScrapeResult::Timeout, 0);
    let registry = Registry::new();
    registry.register(Box::new(view.collector().unwrap())).unwrap();
    TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
}

#[test]
fn the_page_has_the_series_that_dashboards_ask_for() {
    let page = page();
    for line in [
        r#"dcgm_gpu_utilization{namespace="ns-a",tenant="dept-a",gpu="0",device_id="worker-01-GPU-00",model="H100 \"80GB\"",node="worker-01",pod="p1"} 85.5"#,
        r#"gpu_utilization{device_id="worker-01-GPU-00",model="H100 \"80GB\"",tenant="dept-a",namespace="ns-a"} 85.5"#,
        r#"gpu_temperature{device_id="worker-01-GPU-00",model="H100 \"80GB\"",tenant="dept-a",namespace="ns-a"} 78.5"#,
        r#"gpu_temperature{device_id="worker-01-GPU-01",model="H100 \"80GB\"",tenant="",namespace=""} 30"#,
        r#"sluice_gpu_scrapes_total{node="worker-01",result="ok"} 1"#,
        r#"sluice_gpu_scrapes_total{node="worker-01",result="timeout"} 1"#,
        r#"sluice_gpu_scrapes_total{node="worker-01",result="unreachable"} 0"#,
        r#"sluice_gpu_bad_lines_total{node="worker-01"} 1"#,
        r#"sluice_gpu_dropped_rows_total{node="worker-01"} 0"#,
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is missing in\n{page}");
    }
}

#[test]
fn the_page_is_well_formed_and_says_no_series_twice() {
    let page = page();
    let (mut series, mut described) = (BTreeSet::new(), BTreeMap::new());
    for line in page.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (kind, name) = (words.next().unwrap(), words.next().unwrap());
            assert!(!words.next().unwrap().is_empty(), "{line}");
            assert!(described.entry(name).or_insert_with(BTreeSet::new).insert(kind), "twice: {line}");
        } else {
            let name = line.split('{').next().unwrap();
            assert_eq!(described[name], ["HELP", "TYPE"].into(), "{line}");
            assert!(series.insert(line.rsplit_once(' ').unwrap().0), "twice: {line}");
        }
    }
    assert_eq!(described.len(), FAMILIES.len());
    assert_eq!(exposition::read(page.as_bytes(), |_| {}), 0);
}

#[test]
fn counters_end_in_total_and_gauges_do_not() {
    for family in FAMILIES {
        assert_eq!(family.name.ends_with("_total"), family.kind == MetricType::COUNTER, "{}", family.name);
        assert!(family.help.ends_with('.'), "{}", family.name);
    }
}
