//! Callers who hang up at any moment – in the queue, in the model, in the middle of a stream – leave nothing behind.
//! `./justw soak disconnects` lets 100,000 of them do so.

use e2e::client::{Chat, Client};
use e2e::fleet::{Fleet, LONG_LEASE};
use e2e::folder::Folder;
use e2e::scene::Callers;
use e2e::stack::{MODEL, Redis, quota_service};
use e2e::tenant::Tenant;
use e2e::wait::wait_until;
use serde_json::json;
use sluice_policy::simulate::SplitMix64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;

const SLACK: Duration = Duration::from_secs(60);
const GATES: usize = 2;
/// Slots of the pool, far fewer than callers.
const CAPACITY: usize = 36;
const CALLERS: usize = 60;
/// Of the tenant, queued or running.
const CONCURRENT: usize = 80;
/// A call may live for longer than anybody stays.
const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_hang_up_at_any_moment_leave_nothing_behind() {
    let runs = std::env::var("SLUICE_SOAK_RUNS").map_or(2_000, |runs| runs.parse().unwrap());
    let folder = Folder::create("disconnects-redis").unwrap();
    let redis = Redis::start(&folder).await.unwrap();
    let fleet = Fleet::builder("disconnects")
        .redis(&redis)
        .lease(LONG_LEASE)
        .replicas(GATES)
        .capacity(u64::try_from(CAPACITY).unwrap())
        .longest_request(LONG)
        .tenant(Tenant::new("only").limit("concurrent", u64::try_from(CONCURRENT).unwrap()))
        .start()
        .await
        .unwrap();
    let calls = fleet.upstream.calls();
    calls.only_times();

    let left = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let client = fleet.client(number % GATES, "only").unwrap();
        // Over HTTP/1.1 a caller who leaves closes its connection, over HTTP/2 it resets a stream.
        let client = if number % 4 < 2 { client } else { client.over_http2().unwrap() };
        callers.spawn(hang_up_until(client, SplitMix64::new(number as u64), Arc::clone(&left), runs));
    }
    let streaming: usize = callers.join_all().await.into_iter().sum();

    fleet.wait_until_idle(SLACK).await.unwrap();
    let (mut queued, mut running) = (0, 0);
    for gate in &fleet.gates {
        let metrics = gate.operators().metrics().await.unwrap();
        let ended = |outcome| metrics.sum("sluice_settlements_total", &[("outcome", outcome)]);
        queued += ended("cancelled");
        running += ended("aborted");
    }
    println!("{runs} hung up: {queued} in the queue, {running} in the model, {streaming} of them in a stream");
    let some = runs / 50;
    assert!(queued.min(running) > u64::try_from(some).unwrap() && streaming > some, "not every moment was tried");

    // Not one call too few fits in, for the tenant and for the pool, at each of the gateways.
    for gate in 0..GATES {
        let client = fleet.client(gate, "only").unwrap();
        // Of the limit, what another gateway keeps for a while is not there at once.
        wait_until("no gateway holds anything of the tenant", SLACK, || async {
            let accounts = quota_service::inspect(&fleet.gates[gate].folder, "only");
            accounts.is_ok_and(|accounts| accounts.iter().all(|account| account["granted"] == 0))
        })
        .await
        .unwrap();
        calls.hold();
        let waiting = Callers::start(&client, &Chat::to(MODEL), CONCURRENT);
        wait_until("all slots are in use", SLACK, || async { calls.running() == CAPACITY }).await.unwrap();
        fleet.wait_for_queued(u64::try_from(CONCURRENT - CAPACITY).unwrap(), SLACK).await.unwrap();
        let refused = client.chat(&Chat::to(MODEL)).await.unwrap();
        assert_eq!(refused.reason(), Some("tenant_concurrency"), "{}", refused.summary());
        calls.release();
        waiting.all_served().await.unwrap();
        fleet.wait_until_idle(SLACK).await.unwrap();
    }
}

/// Calls and hangs up after a random while, until `most` callers have; tells how many of its own left a stream.
async fn hang_up_until(client: Client, mut random: SplitMix64, left: Arc<AtomicUsize>, most: usize) -> usize {
    let mut streaming = 0;
    while left.load(Ordering::Relaxed) < most {
        let script = json!({"delay_ms": random.below(60), "gap_ms": random.below(40), "words": 2 + random.below(8)});
        let chat = if random.below(3) > 0 { Chat::to(MODEL).stream() } else { Chat::to(MODEL) };
        let request = client.chat_request(chat.behave(script).text());
        // Half of them leave early, where they stand in the queue; the others stay for longer than most calls take.
        let longest_ms = if random.below(2) == 0 { 30 } else { 500 };
        let patience = Duration::from_millis(random.below(longest_ms));
        let mut has_begun = false;
        let stays = async {
            let mut reply = request.send().await.ok()?;
            has_begun = true;
            while reply.chunk().await.ok()?.is_some() {}
            Some(())
        };
        if timeout(patience, stays).await.is_err() {
            left.fetch_add(1, Ordering::Relaxed);
            streaming += usize::from(has_begun);
        }
    }
    streaming
}
