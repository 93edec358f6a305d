//! With a real Redis: readable keys, an outage that is survived, and budgets that outlive the service.

use e2e::client::Chat;
use e2e::stack::{MODEL, Redis, Stack, StackBuilder};
use e2e::tenant::Tenant;
use e2e::wait::{wait_for, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const SLACK: Duration = Duration::from_secs(15);
const LEASE: Duration = Duration::from_millis(500);

fn stack(name: &str) -> StackBuilder {
    Stack::builder(name)
        .redis()
        .tenant(Tenant::new("only").limit("concurrent", 5).limit("requests_per_min", 3))
        .tenant(Tenant::new("free"))
        .sidecar_config(|config| {
            config["ledger"]["lease_ms"] = json!(LEASE.as_millis());
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledgers_in_redis_can_be_read_with_redis_cli() {
    let stack = stack("redis-keys").start().await.unwrap();
    let redis = stack.redis.as_ref().unwrap();
    let client = stack.client("only").unwrap();
    stack.upstream.calls().hold();
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.chat(&Chat::to(MODEL)).await.unwrap() }
    });
    wait_until("the call runs", SLACK, || async { stack.upstream.calls().running() == 1 }).await.unwrap();

    let pool = hash(redis, "sluice:{pool:smol}");
    assert_eq!(pool.get("capacity").map(String::as_str), Some("2"), "{pool:?}");
    let granted: u64 = records(&pool, "holder:").filter_map(|holder| holder["granted"].as_u64()).sum();
    assert!((1..=2).contains(&granted), "a slot is in use: {pool:?}");
    assert!(!hash(redis, "sluice:{tenant:only}").is_empty());
    let foreign = redis.cli(&["KEYS", "*"]).unwrap();
    assert!(foreign.lines().all(|key| key.starts_with("sluice:")), "only our own prefix: {foreign}");

    stack.upstream.calls().release();
    assert_eq!(call.await.unwrap().status, 200);
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_redis_closes_within_a_lease_and_opens_again_when_it_is_back() {
    let mut stack = stack("redis-outage").start().await.unwrap();
    let client = stack.client("free").unwrap();
    assert_eq!(client.chat(&Chat::to(MODEL)).await.unwrap().status, 200);

    stack.redis.as_mut().unwrap().kill();
    // Calls may go on from what the lease still holds; each of them is either served or told why not.
    let refused = wait_for("calls are refused", LEASE + SLACK, || async {
        let reply = client.chat(&Chat::to(MODEL)).await.unwrap();
        (reply.status != 200).then_some(reply)
    })
    .await
    .unwrap();
    assert_eq!((refused.status, refused.reason()), (503, Some("ledger_unavailable")), "{}", refused.summary());
    assert!(refused.retry_after().is_some());

    stack.redis.as_mut().unwrap().restart().await.unwrap();
    client.wait_until_served(&Chat::to(MODEL), SLACK).await.unwrap();
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_minute_budget_survives_a_restart_in_good_order() {
    let mut stack = stack("redis-restart").start().await.unwrap();
    use_up_the_minute(&stack).await;
    stack.sidecar.signal(Signal::SIGTERM).unwrap();
    assert!(stack.sidecar.ended(SLACK).await.unwrap().success());
    stack.sidecar.restart().await.unwrap();
    assert_minute_is_used_up(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_minute_budget_survives_a_crash_once_redis_shows_it() {
    let mut stack = stack("redis-crash").start().await.unwrap();
    use_up_the_minute(&stack).await;
    let redis = stack.redis.as_ref().unwrap();
    wait_until("Redis shows an empty bucket", SLACK, || async {
        let levels = hash(redis, "sluice:{tenant:only}");
        records(&levels, "meter:").any(|meter| meter["level"] == 0)
    })
    .await
    .unwrap();
    stack.sidecar.kill();
    stack.sidecar.restart().await.unwrap();
    assert_minute_is_used_up(&stack).await;
}

async fn use_up_the_minute(stack: &Stack) {
    let client = stack.client("only").unwrap();
    for call in 0..3 {
        let reply = client.chat(&Chat::to(MODEL)).await.unwrap();
        assert_eq!(reply.status, 200, "call {call}: {}", reply.summary());
    }
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

async fn assert_minute_is_used_up(stack: &Stack) {
    let client = stack.client("only").unwrap();
    // The first answers may still come from Envoy finding its sidecar again.
    let reply = wait_for("the service decides again", SLACK, || async {
        let reply = client.chat(&Chat::to(MODEL)).await.unwrap();
        (reply.reason() != Some("service_unavailable")).then_some(reply)
    })
    .await
    .unwrap();
    assert_eq!((reply.status, reply.reason()), (429, Some("tenant_requests_per_minute")), "{}", reply.summary());
}

/// What the fields that begin with `prefix` hold, which is JSON.
fn records(hash: &BTreeMap<String, String>, prefix: &str) -> impl Iterator<Item = Value> {
    hash.iter().filter(move |(field, _)| field.starts_with(prefix)).map(|(_, text)| serde_json::from_str(text).unwrap())
}

fn hash(redis: &Redis, key: &str) -> BTreeMap<String, String> {
    let printed = redis.cli(&["HGETALL", key]).unwrap();
    let lines: Vec<&str> = printed.lines().collect();
    lines.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
}
