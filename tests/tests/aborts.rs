//! Callers that leave a call which the model server works on: however they do it, they pay for it, and where the server
//! works on, their call keeps its slot.

use e2e::client::{CHAT_PATH, Chat};
use e2e::document::find_mut;
use e2e::metrics::Metrics;
use e2e::raw_http2::{Leaving, RawCall};
use e2e::stack::{MODEL, Stack};
use e2e::tenant::Tenant;
use e2e::wait::wait_until;
use serde_json::json;
use std::time::Duration;

const SLACK: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_pays_for_what_it_left_however_it_left() {
    let stack = Stack::builder("aborts-charged").tenant(Tenant::new("only")).start().await.unwrap();
    let calls = stack.upstream.calls();
    let (address, key) = (stack.envoy.base().replace("http://", ""), stack.key("only").unwrap());
    let document = Chat::to(MODEL).max_tokens(40);
    // Longer than anybody waits for it.
    let stream = document.clone().stream().behave(json!({"words": 100_000, "gap_ms": 5}));
    let mut before = Metrics::default();
    for how in Leaving::ALL {
        for (kind, chat) in [("a document", &document), ("a stream", &stream)] {
            let is_document = kind == "a document";
            if is_document {
                calls.hold();
            }
            let count = calls.count();
            let mut call = RawCall::post(&address, CHAT_PATH, key, &chat.text()).await.unwrap();
            wait_until("the call runs", SLACK, || async { calls.count() > count }).await.unwrap();
            if !is_document {
                call.read_until("word").await.unwrap();
            }
            let _connection = call.leave(how).await.unwrap();
            let ended = |metrics: &Metrics| metrics.sum("sluice_settlements_total", &[]);
            let metrics = stack
                .operators()
                .wait_for_metrics("the call is settled", SLACK, |metrics| ended(metrics) > ended(&before))
                .await
                .unwrap();
            let more = |name, labels: &[(&str, &str)]| metrics.sum(name, labels) - before.sum(name, labels);
            assert_eq!(more("sluice_settlements_total", &[("outcome", "aborted")]), 1, "{kind}, {how:?}");
            let output = more("sluice_tokens_total", &[("kind", "output")]);
            if is_document {
                assert_eq!(output, 40, "what was reserved for it: {how:?}");
                assert!(more("sluice_tokens_total", &[("kind", "input")]) > 0, "{how:?}");
            } else {
                assert!(output > 0, "{kind}, {how:?}");
            }
            calls.release();
            before = metrics;
        }
    }
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

/// As `on_abort` states it: longer than this test needs to look, and waited for once.
const RUNS_ON_MS: u64 = 12_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_aborts_at_once_gets_no_more_than_its_slots_where_the_server_works_on() {
    let stack = Stack::builder("aborts-orphans")
        .tenant(Tenant::new("aborts").limit("concurrent", 2))
        .tenant(Tenant::new("other"))
        .sidecar_config(|config| config["pools"][0]["on_abort"] = json!({"runs_on_ms": RUNS_ON_MS}))
        .start()
        .await
        .unwrap();
    let (calls, operators) = (stack.upstream.calls(), stack.operators());
    let (address, key) = (stack.envoy.base().replace("http://", ""), stack.key("aborts").unwrap());
    calls.hold();
    let chat = Chat::to(MODEL).behave(json!({"works_on": true}));
    for (call, how) in [Leaving::Close, Leaving::NoError].into_iter().enumerate() {
        let left = RawCall::post(&address, CHAT_PATH, key, &chat.text()).await.unwrap();
        wait_until("the server works on it", SLACK, || async { calls.running() == call + 1 }).await.unwrap();
        let _connection = left.leave(how).await.unwrap();
        let orphans = u64::try_from(call + 1).unwrap();
        operators
            .wait_for_metrics("the call is an orphan", SLACK, |metrics| metrics.sum("sluice_orphans", &[]) == orphans)
            .await
            .unwrap();
    }
    let pool = &operators.stats().await.unwrap()["pools"][0];
    assert_eq!((&pool["running"], &pool["orphaned"]), (&json!(2), &json!(2)));
    let id = calls.last().unwrap().header("x-admission-id").unwrap().to_owned();
    let explained = operators.get(&format!("/admin/explain/{id}")).await.unwrap();
    assert_eq!(explained["fate"]["state"], "orphaned", "{explained}");

    let refused = stack.client("aborts").unwrap().chat(&chat).await.unwrap();
    assert_eq!(refused.reason(), Some("tenant_concurrency"), "{}", refused.summary());
    let other = stack.client("other").unwrap();
    let waiting = tokio::spawn(async move { other.chat(&Chat::to(MODEL)).await });
    operators.wait_for_queued(1, SLACK).await.unwrap();
    assert_eq!(calls.max_running(), 2, "what the server works on has its slots");

    // The server is done, and nobody tells: the slots come back by the pool's word.
    calls.release();
    let reply = waiting.await.unwrap().unwrap();
    assert_eq!(reply.status, 200, "{}", reply.summary());
    operators.wait_until_idle(SLACK).await.unwrap();
    assert_eq!(operators.metrics().await.unwrap().sum("sluice_orphans", &[]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_envoy_gives_up_is_an_orphan_and_its_caller_does_not_pay_for_it() {
    let stack = Stack::builder("aborts-envoy")
        .tenant(Tenant::new("only"))
        .capacity(50)
        .sidecar_config(|config| config["pools"][0]["on_abort"] = json!({"runs_on_ms": 300_000}))
        .envoy_config(|bootstrap| {
            let limits = find_mut(bootstrap, &|value| value["max_stream_duration"].is_string()).unwrap();
            limits["max_stream_duration"] = json!("2s");
        })
        .start()
        .await
        .unwrap();
    let (calls, operators, client) = (stack.upstream.calls(), stack.operators(), stack.client("only").unwrap());
    let stream = Chat::to(MODEL).stream().behave(json!({"words": 1_000, "gap_ms": 20}));
    // On a machine that is slow today its time may be over before the first word.
    wait_until("Envoy ends a stream in its middle", SLACK, || async {
        client.chat(&stream).await.is_ok_and(|reply| reply.broken)
    })
    .await
    .unwrap();
    calls.hold();
    let reply = client.chat(&Chat::to(MODEL)).await.unwrap();
    assert!((400..600).contains(&reply.status), "Envoy answers in the server's place: {}", reply.summary());
    let sent = u64::try_from(calls.count()).unwrap();
    let metrics = operators
        .wait_for_metrics("all are settled", SLACK, |metrics| metrics.sum("sluice_settlements_total", &[]) == sent)
        .await
        .unwrap();
    assert_eq!(metrics.sum("sluice_orphans", &[]), sent);
    let failed = |usage| metrics.sum("sluice_settlements_total", &[("outcome", "failed"), ("usage", usage)]);
    let charged = failed("estimated");
    assert_eq!((charged, failed("none")), (1, sent - 1), "a stream costs what had come, a document nothing");
    calls.release();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_breaks_off_frees_its_slot_at_once() {
    let stack = Stack::builder("aborts-server")
        .tenant(Tenant::new("only"))
        .sidecar_config(|config| config["pools"][0]["on_abort"] = json!({"runs_on_ms": RUNS_ON_MS}))
        .start()
        .await
        .unwrap();
    let (operators, client) = (stack.operators(), stack.client("only").unwrap());
    for (count, (chat, ending)) in [
        (Chat::to(MODEL), "reset_at_once"),
        (Chat::to(MODEL), "reset_midway"),
        (Chat::to(MODEL).stream(), "reset_at_once"),
        (Chat::to(MODEL).stream(), "reset_midway"),
    ]
    .into_iter()
    .enumerate()
    {
        let reply = client.chat(&chat.behave(json!({"ending": ending}))).await.unwrap();
        assert!(reply.broken || reply.status >= 500, "{ending}: {}", reply.summary());
        let failed = u64::try_from(count + 1).unwrap();
        let metrics = operators
            .wait_for_metrics("the call has failed", SLACK, |metrics| {
                metrics.sum("sluice_settlements_total", &[("outcome", "failed")]) == failed
            })
            .await
            .unwrap();
        assert_eq!(metrics.sum("sluice_orphans", &[]), 0, "{ending}");
    }
    operators.wait_until_idle(SLACK).await.unwrap();
}
