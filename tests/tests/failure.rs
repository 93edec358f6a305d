//! What fails, fails quickly, clearly and not for longer than it must.

use e2e::client::{Chat, Client, Reply};
use e2e::keys::unknown_key;
use e2e::stack::{MODEL, Stack, StackBuilder};
use e2e::tenant::Tenant;
use e2e::wait::wait_until;
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Far above what is promised (100 ms, 200 ms, 3 s; `just bench first-light` measures it), because the machine may be busy,
/// and far below the minute after which the queue and the filter give up by themselves.
const SLACK: Duration = Duration::from_secs(15);

/// One worker, because "lately verified by this worker" is what some of these tests are about.
fn stack(name: &str) -> StackBuilder {
    Stack::builder(name).workers(1).capacity(1).tenant(Tenant::new("only"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sidecar_closes_the_route_at_once_and_comes_back_without_restarting_envoy() {
    let mut stack = stack("killed-closed").start().await.unwrap();
    let client = stack.client("only").unwrap();
    assert_eq!(client.chat(&Chat::to(MODEL)).await.unwrap().status, 200);

    stack.sidecar.kill();
    let before = stack.upstream.calls().count();
    let refused = timeout(SLACK, client.chat(&Chat::to(MODEL))).await.expect("a prompt refusal").unwrap();
    assert_unavailable(&refused);
    assert_eq!(stack.upstream.calls().count(), before, "nothing passes a closed route");

    stack.sidecar.restart().await.unwrap();
    client.wait_until_served(&Chat::to(MODEL), SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sidecar_leaves_an_open_route_to_the_keys_it_verified_lately_and_to_nobody_else() {
    let mut stack = stack("killed-open")
        .tenant(Tenant::new("never-seen"))
        .plugin_config(|plugin| plugin["routes"][0]["on_unavailable"] = json!("open"))
        .start()
        .await
        .unwrap();
    let known = stack.client("only").unwrap();
    assert_eq!(known.chat(&Chat::to(MODEL)).await.unwrap().status, 200);
    stack.wait_until_acknowledged(SLACK).await.unwrap();

    stack.sidecar.kill();
    let passed = known.chat(&Chat::to(MODEL)).await.unwrap();
    assert_eq!(passed.status, 200, "{}", passed.summary());
    let seen = stack.upstream.calls().last().unwrap();
    assert_eq!(seen.header("x-tenant-id"), Some("only"), "tagged like any other call");
    assert_unavailable(&known.with_key(unknown_key()).chat(&Chat::to(MODEL)).await.unwrap());
    let never_seen = stack.client("never-seen").unwrap();
    assert_unavailable(&never_seen.chat(&Chat::to(MODEL)).await.unwrap());

    // What passed unadmitted is charged as soon as there is somebody to charge it.
    stack.sidecar.restart().await.unwrap();
    let usage = passed.json()["usage"]["total_tokens"].as_u64().unwrap();
    stack
        .operators()
        .wait_for_metrics("the unadmitted call is charged", SLACK, |metrics| {
            metrics.sum("sluice_tokens_total", &[("tenant", "only")]) == usage
        })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_sidecar_is_found_out_and_no_held_call_hangs() {
    let stack = stack("frozen").start().await.unwrap();
    let client = stack.client("only").unwrap();
    freeze(&stack, &client).await;
    client.wait_until_served(&Chat::to(MODEL), SLACK).await.unwrap();
    stack.operators().wait_until_idle(SLACK).await.unwrap();
    // The call that ended meanwhile, the cancelled one and the last: nothing is still held, nothing is lost.
    stack
        .operators()
        .wait_for_metrics("the call that ended meanwhile is charged", SLACK, |metrics| {
            metrics.sum("sluice_settlements_total", &[("outcome", "completed")]) >= 2
        })
        .await
        .unwrap();
}

/// Freezes the sidecar with one call in the model and one in the queue, until that one and a new one were refused.
async fn freeze(stack: &Stack, client: &Client) {
    let running = start_held_call(stack, client).await;
    let queued = spawn(client, Chat::to(MODEL));
    stack.operators().wait_for_queued(1, SLACK).await.unwrap();

    stack.sidecar.signal(Signal::SIGSTOP).unwrap();
    let new = spawn(client, Chat::to(MODEL));
    let (new, queued) = timeout(SLACK, async { tokio::join!(new, queued) }).await.expect("neither hangs");
    assert_unavailable(&new.unwrap());
    assert_unavailable(&queued.unwrap());

    stack.upstream.calls().release();
    let through = running.await.unwrap();
    assert_eq!(through.status, 200, "what already runs goes on: {}", through.summary());
    stack.sidecar.signal(Signal::SIGCONT).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_in_the_queue_frees_its_place() {
    let stack = stack("hang-up").start().await.unwrap();
    let client = stack.client("only").unwrap();
    let running = start_held_call(&stack, &client).await;
    let leaving = spawn(&client, Chat::to(MODEL));
    stack.operators().wait_for_queued(1, SLACK).await.unwrap();
    leaving.abort();
    stack.operators().wait_for_queued(0, SLACK).await.unwrap();
    stack.upstream.calls().release();
    assert_eq!(running.await.unwrap().status, 200);
    stack.operators().wait_until_idle(SLACK).await.unwrap();
    assert_eq!(stack.upstream.calls().count(), 1, "who left never reached the model");
    let metrics = stack.operators().metrics().await.unwrap();
    assert_eq!(metrics.sum("sluice_admissions_total", &[("decision", "rejected")]), 0, "nobody was refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_while_the_model_answers_frees_its_slot() {
    let stack = stack("hang-up-running").start().await.unwrap();
    let client = stack.client("only").unwrap();
    let leaving = start_held_call(&stack, &client).await;
    leaving.abort();
    // The model still holds its call: what comes free is not what it gave back.
    stack.operators().wait_until_idle(SLACK).await.unwrap();
    stack.upstream.calls().release();
    assert_eq!(client.chat(&Chat::to(MODEL)).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_before_the_first_byte_pays_for_its_prompt() {
    let stack = stack("hang-up-early").start().await.unwrap();
    let client = stack.client("only").unwrap();
    let mut charged = 0;
    // The one closes its connection, the other resets its stream, and Envoy tells them apart.
    for client in [client.clone(), client.over_http2().unwrap()] {
        let leaving = start_held_call(&stack, &client).await;
        leaving.abort();
        stack.operators().wait_until_idle(SLACK).await.unwrap();
        stack.upstream.calls().release();
        // The model learns of it last, and the next call is told by its count.
        wait_until("nothing runs", SLACK, || async { stack.upstream.calls().running() == 0 }).await.unwrap();
        let metrics = stack.operators().metrics().await.unwrap();
        let before = std::mem::replace(&mut charged, metrics.sum("sluice_tokens_total", &[("kind", "input")]));
        assert!(charged > before, "{charged} tokens");
        assert_eq!(
            metrics.sum("sluice_settlements_total", &[("outcome", "failed")]),
            0,
            "it is not the model that failed"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_shutdown_answers_every_waiter() {
    let mut stack = stack("shutdown").start().await.unwrap();
    let client = stack.client("only").unwrap();
    let running = start_held_call(&stack, &client).await;
    let waiters: Vec<_> = (0..5).map(|_| spawn(&client, Chat::to(MODEL))).collect();
    stack.operators().wait_for_queued(5, SLACK).await.unwrap();

    stack.sidecar.signal(Signal::SIGTERM).unwrap();
    for waiter in waiters {
        let reply = waiter.await.unwrap();
        assert_eq!((reply.status, reply.reason()), (503, Some("shutting_down")), "{}", reply.summary());
        assert_eq!(reply.check_openai_error(), Ok(()), "{}", reply.summary());
        assert!(reply.retry_after().is_some());
    }
    stack.upstream.calls().release();
    assert_eq!(running.await.unwrap().status, 200, "what already runs goes on");
    assert!(stack.sidecar.ended(SLACK).await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_that_found_no_sidecar_is_delivered_to_the_next_one() {
    let mut stack = stack("outbox").start().await.unwrap();
    let client = stack.client("only").unwrap();
    let running = start_held_call(&stack, &client).await;
    stack.sidecar.kill();
    stack.upstream.calls().release();
    assert_eq!(running.await.unwrap().status, 200);

    stack.sidecar.restart().await.unwrap();
    // Nobody calls: the filter's own tick must bring it. The new sidecar has never heard of the call.
    let metrics = stack
        .operators()
        .wait_for_metrics("the settlement has arrived", SLACK, |metrics| {
            metrics.sum("sluice_settlements_total", &[]) >= 1
        })
        .await
        .unwrap();
    let used = stack.upstream.calls().last().and_then(|call| call.usage).unwrap();
    for (kind, tokens) in [("input", used.input), ("output", used.output)] {
        let labels = [("tenant", "only"), ("kind", kind)];
        assert_eq!(metrics.sum("sluice_tokens_total", &labels), tokens, "{kind} tokens are charged all the same");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_tell_which_calls_live_and_those_go_on() {
    let stack = stack("live-reports").workers(1).start().await.unwrap();
    let client = stack.client("only").unwrap();
    let running = start_held_call(&stack, &client).await;
    let queued = spawn(&client, Chat::to(MODEL));
    stack.operators().wait_for_queued(1, SLACK).await.unwrap();
    stack
        .operators()
        .wait_for_metrics("two reports", SLACK, |metrics| metrics.sum("sluice_worker_reports_total", &[]) >= 2)
        .await
        .unwrap();
    let metrics = stack.operators().metrics().await.unwrap();
    assert_eq!(metrics.sum("sluice_worker_reports_total", &[("found", "lost_calls")]), 0);
    assert_eq!(stack.upstream.calls().running(), 1, "one runs and one waits, as before");
    stack.upstream.calls().release();
    for call in [running, queued] {
        assert_eq!(call.await.unwrap().status, 200);
    }
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

/// A call that stands in the model until calls are released.
async fn start_held_call(stack: &Stack, client: &Client) -> JoinHandle<Reply> {
    let calls = stack.upstream.calls();
    calls.hold();
    let call = spawn(client, Chat::to(MODEL));
    wait_until("the call runs", SLACK, || async { calls.running() == 1 }).await.unwrap();
    call
}

fn spawn(client: &Client, chat: Chat) -> JoinHandle<Reply> {
    let client = client.clone();
    tokio::spawn(async move { client.chat(&chat).await.unwrap() })
}

fn assert_unavailable(reply: &Reply) {
    assert_eq!((reply.status, reply.reason()), (503, Some("service_unavailable")), "{}", reply.summary());
    assert!(reply.retry_after().is_some(), "retry-after");
    assert_eq!(reply.check_openai_error(), Ok(()), "{}", reply.summary());
}
