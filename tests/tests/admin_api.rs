//! The operators' listener: what is open, what needs the token, and a configuration that is refused whole.

use e2e::client::Chat;
use e2e::folder::Folder;
use e2e::paths;
use e2e::stack::{MODEL, Stack};
use e2e::tenant::Tenant;
use std::process::{Command, Output};
use std::time::Duration;

const SLACK: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn what_shows_tenants_data_needs_the_token_and_probes_do_not() {
    let stack = Stack::builder("admin-token").tenant(Tenant::new("only")).start().await.unwrap();
    let operators = stack.operators();
    for open in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(operators.status(open, None).await.unwrap(), 200, "{open}");
    }
    for closed in ["/admin/scheduler/stats", "/admin/scheduler/queues?top=3"] {
        assert_eq!(operators.status(closed, None).await.unwrap(), 401, "{closed} without a token");
        assert_eq!(operators.status(closed, Some("wrong")).await.unwrap(), 401, "{closed} with another");
        let token = operators.token().to_owned();
        assert_eq!(operators.status(closed, Some(&token)).await.unwrap(), 200, "{closed} with the token");
    }
    let key = stack.key("only").unwrap();
    assert_eq!(
        operators.status("/admin/scheduler/stats", Some(key)).await.unwrap(),
        401,
        "a tenant's key opens nothing"
    );
    // The two listeners are two: nothing of one answers on the other.
    assert_eq!(operators.status("/v1/admissions", None).await.unwrap(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_whose_name_is_pointed_at_this_listener_reads_nothing_of_it() {
    let stack = Stack::builder("rebinding")
        .tenant(Tenant::new("only"))
        .sidecar_config(|config| config["listeners"]["operators"]["hosts"] = serde_json::json!(["sluice.example"]))
        .start()
        .await
        .unwrap();
    let (operators, http) = (stack.operators(), reqwest::Client::new());
    let status = |path: &str, headers: &[(&'static str, &str)]| {
        let mut request = http.get(format!("{}{path}", operators.base())).bearer_auth(operators.token());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        async move { request.send().await.unwrap().status().as_u16() }
    };
    for path in ["/metrics", "/admin/scheduler/stats"] {
        assert_eq!(status(path, &[]).await, 200, "{path} by its address");
        assert_eq!(status(path, &[("host", "sluice.example")]).await, 200, "{path} by its name");
        assert_eq!(status(path, &[("host", "rebound.example:8081")]).await, 421, "{path}");
        assert_eq!(status(path, &[("origin", "http://page.example")]).await, 403, "{path} for another page");
        assert_eq!(status(path, &[("origin", operators.base())]).await, 200, "{path} for a page of its own");
    }
    for probe in ["/livez", "/readyz"] {
        assert_eq!(status(probe, &[("host", "whatever.example")]).await, 200, "{probe}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_statistics_bear_the_names_that_operators_of_schedulers_know() {
    let stack =
        Stack::builder("admin-stats").capacity(1).tenant(Tenant::new("only").priority(3)).start().await.unwrap();
    let client = stack.client("only").unwrap();
    stack.upstream.calls().hold();
    let callers: Vec<_> = (0..3)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.chat(&Chat::to(MODEL)).await.unwrap().status })
        })
        .collect();
    stack.operators().wait_for_queued(2, SLACK).await.unwrap();

    let stats = stack.operators().stats().await.unwrap();
    for name in ["total_scheduled", "total_rejected", "total_queued_now", "overall_utilization"] {
        assert!(stats[name].is_number(), "{name} in {stats}");
    }
    let levels = stats["queue_stats"].as_array().unwrap();
    let third = levels.iter().find(|level| level["priority"] == 3).expect("a row for P3");
    assert_eq!(third["current_depth"], 2, "{third}");
    for name in ["max_depth", "utilization_pct", "available_slots"] {
        assert!(third[name].is_number(), "{name} in {third}");
    }
    assert_eq!(third["is_full"], false);
    let queues = stack.operators().get("/admin/scheduler/queues?top=3").await.unwrap();
    let busiest = queues["busiest_queues"].as_array().expect("busiest_queues");
    assert!((1..=3).contains(&busiest.len()), "{queues}");
    assert_eq!(busiest[0]["priority"], 3, "{queues}");
    // From the queue to the reason: both who wait are named, and each is explained.
    let next = busiest[0]["next_to_start"].as_array().unwrap();
    assert_eq!(next.len(), 2, "{queues}");
    for call in next {
        assert_eq!(call["tenant"], "only", "{call}");
        assert!(call["waited_ms"].is_u64() && call["charge"].as_u64().is_some_and(|charge| charge > 0), "{call}");
        let told = format!("/admin/explain/{}", call["id"].as_str().unwrap());
        assert_eq!(stack.operators().get(&told).await.unwrap()["fate"]["state"], "waiting");
    }
    let one = stack.operators().get("/admin/scheduler/queues?top=1").await.unwrap();
    assert_eq!(one["busiest_queues"][0]["next_to_start"].as_array().unwrap().len(), 1, "{one}");

    stack.upstream.calls().release();
    for status in callers {
        assert_eq!(status.await.unwrap(), 200);
    }
    stack.operators().wait_until_idle(SLACK).await.unwrap();
    let stats = stack.operators().stats().await.unwrap();
    assert_eq!(stats["total_scheduled"], 3, "{stats}");
    assert_eq!(stats["total_rejected"], 0, "{stats}");
}

#[test]
fn a_bad_configuration_is_refused_with_every_error_and_exit_code_64() {
    let folder = Folder::create("bad-config").unwrap();
    folder.write_secret("pepper", &"p".repeat(40)).unwrap();
    folder.write_secret("token", "token-of-the-end-to-end-tests").unwrap();
    let config = "\
version: 1
listeners:
  filter: {unix: sluice.sock}
  operators: {address: 127.0.0.1:8081, token_file: token}
identity: {peppers: [{version: 1, file: pepper}]}
pools:
  - name: smol
    models: [smollm2-135m]
    capacity: {concurrent: 0}
    context_length: 4096
tenants:
  - id: dept-a
    namespace: dept-a
    tier: internal
    priority: {default: 11, ceiling: 0}
    limits: {concurent: 3}
";
    folder.write("bad.yaml", config).unwrap();
    for command in ["check-config", "serve"] {
        let output = run(&folder, command, "bad.yaml");
        let said = said(&output);
        assert_eq!(output.status.code(), Some(64), "{command}: {said}");
        for path in ["pools[0].capacity.concurrent", "tenants[0].priority", "tenants[0].limits.concurent"] {
            assert!(said.contains(path), "{command} does not name {path}: {said}");
        }
    }
}

#[test]
fn a_secret_that_others_can_read_is_refused_at_the_start_with_what_to_run() {
    let folder = Folder::create("open-secrets").unwrap();
    folder.write("envoy/run/pepper", &"p".repeat(40)).unwrap();
    folder.write("envoy/run/admin-token", &"t".repeat(40)).unwrap();
    let shipped = std::fs::read_to_string(paths::root().join("envoy/quota-service.yaml")).unwrap();
    folder.write("envoy/quota-service.yaml", &shipped).unwrap();
    for name in ["pepper", "admin-token"] {
        let path = folder.path().join("envoy/run").join(name);
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    }
    let output = run(&folder, "serve", "envoy/quota-service.yaml");
    assert_eq!(output.status.code(), Some(64), "{}", said(&output));
    for name in ["pepper", "admin-token"] {
        let line = format!("mode 0644); run: chmod 600 envoy/run/{name}");
        assert!(said(&output).contains(&line), "{}", said(&output));
    }
}

#[test]
fn the_shipped_configuration_is_accepted() {
    let folder = Folder::create("shipped-config").unwrap();
    folder.write_secret("envoy/run/pepper", &"p".repeat(40)).unwrap();
    folder.write_secret("envoy/run/admin-token", "token-of-the-end-to-end-tests").unwrap();
    let shipped = std::fs::read_to_string(paths::root().join("envoy/quota-service.yaml")).unwrap();
    folder.write("envoy/quota-service.yaml", &shipped).unwrap();
    let output = run(&folder, "check-config", "envoy/quota-service.yaml");
    assert!(output.status.success(), "{}", said(&output));
}

fn run(folder: &Folder, command: &str, config: &str) -> Output {
    Command::new(paths::built("quota-service").unwrap())
        .current_dir(folder.path())
        .args([command, "--config", config])
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
