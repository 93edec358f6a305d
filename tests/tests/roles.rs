//! The two roles of the sidecar: a gate decides and leaves the GPUs alone; control watches them and decides nothing.

use e2e::admin::Operators;
use e2e::folder::Folder;
use e2e::stack::{FakeExporter, POOL, QuotaService, Redis, quota_service};
use e2e::tenant::Tenant;
use e2e::wait::wait_until;
use e2e::{document, paths, ports};
use serde_json::json;
use std::time::Duration;

const SLACK: Duration = Duration::from_secs(15);
const GPU_METRIC: &str = "dcgm_gpu_utilization";

/// The sidecar in a role, with a Redis and a GPU, and nothing in front of it.
struct Rig {
    sidecar: QuotaService,
    redis: Redis,
    _exporter: FakeExporter,
    folder: Folder,
}

async fn start(name: &str, role: &'static str) -> Rig {
    let folder = Folder::create(name).unwrap();
    let redis = Redis::start(&folder).await.unwrap();
    let exporter = FakeExporter::start(&folder, "worker-01", &["only"]).await.unwrap();
    let port = ports::free().unwrap();
    let mut config = document::load(&paths::root().join(quota_service::CONFIG)).unwrap();
    quota_service::adapt(&mut config, port).unwrap();
    config["ledger"]["redis_url"] = json!(redis.url());
    let target = json!({"node": exporter.node(), "url": exporter.metrics_url()});
    config["gpu"] = json!({"interval_ms": 200, "exporters": [target]});
    let token = quota_service::write_secrets(&folder).unwrap();
    quota_service::write_config(&folder, config, &[Tenant::new("only")]).unwrap();
    let operators = Operators::new(&format!("http://127.0.0.1:{port}"), &token).unwrap();
    let sidecar = QuotaService::start_as(Some(role), folder.path(), operators).await.unwrap();
    Rig { sidecar, redis, _exporter: exporter, folder }
}

impl Rig {
    fn pool(&self) -> String {
        self.redis.cli(&["HGETALL", &format!("sluice:{{pool:{POOL}}}")]).unwrap()
    }

    fn listens_to_the_filter(&self) -> bool {
        self.folder.path().join("envoy/run/sluice.sock").exists()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn control_watches_the_gpus_and_neither_decides_nor_holds_a_slot() {
    let rig = start("role-control", "control").await;
    let operators = rig.sidecar.operators();
    operators
        .wait_for_metrics("the GPU is seen", SLACK, |metrics| metrics.matching(GPU_METRIC, &[]).next().is_some())
        .await
        .unwrap();
    assert!(!rig.listens_to_the_filter());
    assert_eq!(rig.pool().trim(), "", "nobody holds anything of the pool");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_decides_and_leaves_the_gpus_alone() {
    let rig = start("role-gate", "gate").await;
    wait_until("it holds slots", SLACK, || async { rig.pool().contains("granted") }).await.unwrap();
    assert!(rig.listens_to_the_filter());
    let metrics = rig.sidecar.operators().metrics().await.unwrap();
    assert!(metrics.matching(GPU_METRIC, &[]).next().is_none());
}
