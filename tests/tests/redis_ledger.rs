//! With a real Redis: readable keys, an outage that is survived, and budgets that outlive the service.

use e2e::client::Chat;
use e2e::fleet::{LEASE, LONG_LEASE};
use e2e::stack::{MODEL, Redis, Stack, StackBuilder};
use e2e::tenant::Tenant;
use e2e::wait::{wait_for, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const SLACK: Duration = Duration::from_secs(15);
/// Of the tenant `only` a minute, so that one comes back every so often.
const REQUESTS: u32 = 3;
const COMES_BACK: Duration = Duration::from_secs(60 / REQUESTS as u64);

fn stack(name: &str) -> StackBuilder {
    Stack::builder(name)
        .redis()
        .tenant(Tenant::new("only").limit("concurrent", 5).limit("requests_per_min", u64::from(REQUESTS)))
        .tenant(Tenant::new("free"))
        .sidecar_config(|config| config["ledger"]["lease_ms"] = json!(LONG_LEASE.as_millis()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledgers_in_redis_can_be_read_with_redis_cli() {
    let stack = stack("redis-keys").start().await.unwrap();
    let redis = stack.redis.as_ref().unwrap();
    let client = stack.client("only").unwrap();
    stack.upstream.calls().hold();
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.chat_leased(&Chat::to(MODEL), SLACK).await.unwrap() }
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
    let stack = stack("redis-outage").sidecar_config(|config| {
        config["ledger"]["lease_ms"] = json!(LEASE.as_millis());
        // A call that came in time to wait is told then.
        config["queue"]["timeout_ms"] = json!(3_000);
    });
    let mut stack = stack.start().await.unwrap();
    let client = stack.client("free").unwrap();
    client.wait_until_served(&Chat::to(MODEL), SLACK).await.unwrap();

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
async fn where_redis_is_out_of_memory_calls_go_on_and_the_log_says_what_waits() {
    let stack = stack("redis-oom").start().await.unwrap();
    let client = stack.client("free").unwrap();
    client.wait_until_served(&Chat::to(MODEL), SLACK).await.unwrap();
    stack.redis.as_ref().unwrap().cli(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    client.wait_until_served(&Chat::to(MODEL), SLACK).await.unwrap();
    let is_said = || async {
        let log = stack.sidecar.log();
        log.contains("usage records wait for the ledger") && log.contains("it is out of memory")
    };
    wait_until("the log says so", SLACK, is_said).await.unwrap();
    // More answers than one lease has.
    let before = answered(&stack).await;
    wait_until("the lease was renewed", SLACK, || async { answered(&stack).await >= before + 4 }).await.unwrap();
    let reply = client.chat(&Chat::to(MODEL)).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_redis_cannot_save_the_log_names_the_cause_and_calls_go_on_when_it_can_again() {
    let stack = stack("redis-misconf").start().await.unwrap();
    let (redis, client) = (stack.redis.as_ref().unwrap(), stack.client("free").unwrap());
    client.wait_until_served(&Chat::to(MODEL), SLACK).await.unwrap();
    let dump = stack.folder.path().join("redis/dump.rdb");
    let save_ends = |status: &'static str| async move {
        redis.cli(&["BGSAVE"]).unwrap();
        let ended = || async { redis.info().is_ok_and(|info| info["rdb_last_bgsave_status"] == status) };
        wait_until("the save has ended", SLACK, ended).await.unwrap();
    };
    redis.cli(&["CONFIG", "SET", "save", "3600 1"]).unwrap();
    // What is to be written there cannot take the place of a folder with something in it.
    std::fs::create_dir_all(dump.join("something")).unwrap();
    save_ends("err").await;
    let is_said = || async {
        let log = stack.sidecar.log();
        log.contains("ERROR") && log.contains("Redis takes no writes (MISCONF)")
    };
    wait_until("the log names it", SLACK, is_said).await.unwrap();
    stack
        .operators()
        .wait_for_metrics("calls are refused", SLACK, |page| {
            page.sum("sluice_ledger_calls_total", &[("result", "refused")]) > 0
        })
        .await
        .unwrap();
    std::fs::remove_dir_all(&dump).unwrap();
    save_ends("ok").await;
    client.wait_until_served(&Chat::to(MODEL), SLACK).await.unwrap();
}

async fn answered(stack: &Stack) -> u64 {
    let page = stack.operators().metrics().await.unwrap();
    page.sum("sluice_ledger_calls_total", &[("result", "answered")])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_minute_budget_survives_a_restart_in_good_order() {
    let mut stack = stack("redis-restart").start().await.unwrap();
    let full_at = use_up_the_minute(&stack).await;
    stack.sidecar.signal(Signal::SIGTERM).unwrap();
    assert!(stack.sidecar.ended(SLACK).await.unwrap().success());
    stack.sidecar.restart().await.unwrap();
    assert_minute_is_used_up(&stack, full_at).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_minute_budget_survives_a_crash_once_redis_shows_it() {
    let mut stack = stack("redis-crash").start().await.unwrap();
    let full_at = use_up_the_minute(&stack).await;
    let redis = stack.redis.as_ref().unwrap();
    wait_until("Redis shows an empty bucket", SLACK, || async {
        let levels = hash(redis, "sluice:{tenant:only}");
        records(&levels, "meter:").any(|meter| meter["level"] == 0)
    })
    .await
    .unwrap();
    stack.sidecar.kill();
    stack.sidecar.restart().await.unwrap();
    assert_minute_is_used_up(&stack, full_at).await;
}

/// Tells when the bucket was full.
async fn use_up_the_minute(stack: &Stack) -> Instant {
    let full_at = Instant::now();
    let client = stack.client("only").unwrap();
    for call in 0..REQUESTS {
        let reply = client.chat_leased(&Chat::to(MODEL), SLACK).await.unwrap();
        assert_eq!(reply.status, 200, "call {call}: {}", reply.summary());
    }
    stack.operators().wait_until_idle(SLACK).await.unwrap();
    full_at
}

/// No more is served than what has come back, however long the restart took: time that a busy machine loses only gives
/// back more.
async fn assert_minute_is_used_up(stack: &Stack, full_at: Instant) {
    let client = stack.client("only").unwrap();
    let mut served = 0;
    let refused = loop {
        // The first answers may still come from Envoy finding its sidecar again.
        let reply = wait_for("the service decides again", SLACK, || async {
            let reply = client.chat_leased(&Chat::to(MODEL), SLACK).await.unwrap();
            (reply.reason() != Some("service_unavailable")).then_some(reply)
        })
        .await
        .unwrap();
        if reply.status != 200 {
            break reply;
        }
        served += 1;
        let elapsed = full_at.elapsed();
        assert!(COMES_BACK * served <= elapsed, "{served} beyond {REQUESTS} were served within {elapsed:?}");
    };
    assert_eq!((refused.status, refused.reason()), (429, Some("tenant_requests_per_minute")), "{}", refused.summary());
}

/// What the fields that begin with `prefix` hold, which is JSON.
fn records(hash: &BTreeMap<String, String>, prefix: &str) -> impl Iterator<Item = Value> {
    hash.iter().filter(move |(field, _)| field.starts_with(prefix)).map(|(_, text)| serde_json::from_str(text).unwrap())
}

/// Values may have several lines, so that what `HGETALL` prints cannot be told apart.
fn hash(redis: &Redis, key: &str) -> BTreeMap<String, String> {
    let as_json = "local pairs, hash = redis.call('HGETALL', KEYS[1]), {}
for at = 1, #pairs, 2 do hash[pairs[at]] = pairs[at + 1] end
return cjson.encode(hash)";
    let printed = redis.cli(&["EVAL", as_json, "1", key]).unwrap();
    // An empty table is an array to cjson.
    serde_json::from_str(&printed).unwrap_or_default()
}
