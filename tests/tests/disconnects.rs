//! Callers who hang up at any moment – in the queue, in the model, in the middle of a stream – leave nothing behind.
//! `./justw soak disconnects` lets 100,000 of them do so.

use e2e::client::{Chat, Client};
use e2e::fleet::{Fleet, LONG_LEASE};
use e2e::folder::Folder;
use e2e::scene::Callers;
use e2e::stack::{MODEL, Redis, Stack, quota_service};
use e2e::tenant::Tenant;
use e2e::wait::wait_until;
use reqwest::Method;
use serde_json::json;
use sluice_policy::simulate::SplitMix64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

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

/// OpenAI's own client closes its connection at `[DONE]`, and does not wait for the end of the reply.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_leaves_at_a_stream_s_last_event_has_had_a_whole_reply() {
    let stack = Stack::builder("last-event").capacity(1).tenant(Tenant::new("only")).start().await.unwrap();
    let http1 = stack.client("only").unwrap();
    let paths = [
        ("/v1/chat/completions", "data: [DONE]\n\n"),
        ("/v1/messages", "\"type\":\"message_stop\"}\n\n"),
        ("/v1/responses", "event: response.completed\n"),
    ];
    let mut calls = 0;
    for client in [http1.over_http2().unwrap(), http1] {
        for (path, last) in paths {
            let body = json!({
                "model": MODEL, "stream": true, "max_tokens": 9, "input": "Hello",
                "messages": [{"role": "user", "content": "Hello"}], "metadata": {"behave": {"ending": "lingers"}},
            });
            let mut reply = client.request(Method::POST, path).json(&body).send().await.unwrap();
            let mut seen = Vec::new();
            while !(String::from_utf8_lossy(&seen).contains(last) && seen.ends_with(b"\n\n")) {
                seen.extend(reply.chunk().await.unwrap().expect("the stream goes on"));
            }
            drop(reply);
            stack.operators().wait_until_idle(SLACK).await.unwrap();
            calls += 1;
        }
    }
    let metrics = stack.operators().metrics().await.unwrap();
    let settled = [("outcome", "completed"), ("usage", "reported")];
    assert_eq!(metrics.sum("sluice_settlements_total", &settled), calls);
    assert_eq!(metrics.sum("gen_ai_server_request_duration_seconds_count", &[]), calls);
}

/// When a caller hangs up.
#[derive(Clone, Copy)]
enum Moment {
    /// After so long, wherever it is then.
    After(Duration),
    /// So long after its reply has begun.
    InReply(Duration),
}

impl Moment {
    /// A part of them leaves early, where they stand in the queue, another stays for longer than most calls take, and the
    /// last until its reply has begun, however busy the machine is.
    fn choose(random: &mut SplitMix64) -> Self {
        match random.below(3) {
            0 => Self::After(Duration::from_millis(random.below(30))),
            1 => Self::After(Duration::from_millis(random.below(500))),
            _ => Self::InReply(Duration::from_millis(random.below(30))),
        }
    }

    fn of(self, called: Instant, begun: Option<Instant>) -> Instant {
        match (self, begun) {
            (Self::After(patience), _) => called + patience,
            (Self::InReply(_), None) => called + SLACK,
            (Self::InReply(patience), Some(begun)) => begun + patience,
        }
    }
}

/// Calls and hangs up at a random moment, until `most` callers have; tells how many of its own left a stream.
async fn hang_up_until(client: Client, mut random: SplitMix64, left: Arc<AtomicUsize>, most: usize) -> usize {
    let mut streaming = 0;
    while left.load(Ordering::Relaxed) < most {
        let script = json!({"delay_ms": random.below(60), "gap_ms": random.below(40), "words": 2 + random.below(8)});
        let streams = random.below(3) > 0;
        let chat = if streams { Chat::to(MODEL).stream() } else { Chat::to(MODEL) };
        let request = client.chat_request(chat.behave(script).text());
        let (moment, called) = (Moment::choose(&mut random), Instant::now());
        let Ok(reply) = timeout_at(moment.of(called, None), request.send()).await else {
            left.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let Ok(mut reply) = reply else { continue };
        let rest = async { while let Ok(Some(_)) = reply.chunk().await {} };
        if timeout_at(moment.of(called, Some(Instant::now())), rest).await.is_err() {
            left.fetch_add(1, Ordering::Relaxed);
            streaming += usize::from(streams);
        }
    }
    streaming
}
