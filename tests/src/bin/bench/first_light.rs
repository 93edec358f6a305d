//! `bench first-light`: how soon Sluice notices what must not wait, as the client and the operator see it.

use super::{Figure, PATIENCE, doing, figure};
use anyhow::{Result, ensure};
use e2e::client::{Chat, Client};
use e2e::stack::{MODEL, Stack};
use e2e::tenant::Tenant;
use e2e::wait::wait_until;
use nix::sys::signal::Signal;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

pub(super) const FIGURES: &[&str] =
    &["fail_closed_ms", "found_frozen_ms", "cancel_frees_ms", "slot_hand_over_ms", "slot_hand_over_p99_ms"];

/// Of the pool whose slots are handed over, and of its callers: somebody always waits.
const SLOTS: usize = 4;
const CALLERS: usize = 3 * SLOTS;
const SERVICE_MS: u64 = 50;

pub(super) async fn measure(repeats: usize) -> Result<Vec<Figure>> {
    ensure!(repeats > 0, "--repeats must be at least 1");
    doing("starting a gateway with one slot");
    let mut stack =
        Stack::builder("bench-first-light").workers(1).capacity(1).tenant(Tenant::new("only")).start().await?;
    doing("letting callers leave the queue");
    let cancels = repeat(repeats, async |_| cancel_frees(&stack).await).await?;
    doing("stopping the sidecar under calls");
    let frozen = repeat(repeats, async |_| found_frozen(&stack).await).await?;
    doing("killing the sidecar before calls");
    let mut closes = Vec::new();
    for _ in 0..repeats {
        closes.push(fail_closed(&mut stack).await?);
    }
    let closes = in_ms("fail_closed_ms", &closes);
    drop(stack);
    doing("handing slots over in a full pool");
    let mut handed = hand_overs(repeats * 20).await?;
    handed.sort_unstable();
    let late = handed.get(handed.len() * 99 / 100).copied().unwrap_or_default();
    let late = Figure { n: handed.len(), likely: None, ..in_ms("slot_hand_over_p99_ms", &[late]) };
    let handed = in_ms("slot_hand_over_ms", &handed);
    Ok(vec![closes, in_ms("found_frozen_ms", &frozen), in_ms("cancel_frees_ms", &cancels), handed, late])
}

async fn repeat(n: usize, measure: impl AsyncFn(usize) -> Result<Duration>) -> Result<Vec<Duration>> {
    let mut spans = Vec::new();
    for index in 0..n {
        spans.push(measure(index).await?);
    }
    Ok(spans)
}

/// From the start of a call to a sidecar that was just killed, to the 503.
async fn fail_closed(stack: &mut Stack) -> Result<Duration> {
    let client = stack.client("only")?;
    client.wait_until_served(&Chat::to(MODEL), PATIENCE).await?;
    stack.sidecar.kill();
    let reply = client.chat(&Chat::to(MODEL)).await?;
    ensure!(reply.reason() == Some("service_unavailable"), "{}", reply.summary());
    stack.sidecar.restart().await?;
    Ok(reply.took)
}

/// From the moment at which a sidecar stands still, and a call comes to it, to the 503.
async fn found_frozen(stack: &Stack) -> Result<Duration> {
    let client = stack.client("only")?;
    client.wait_until_served(&Chat::to(MODEL), PATIENCE).await?;
    stack.sidecar.signal(Signal::SIGSTOP)?;
    let reply = client.chat(&Chat::to(MODEL)).await;
    stack.sidecar.signal(Signal::SIGCONT)?;
    let reply = reply?;
    ensure!(reply.reason() == Some("service_unavailable"), "{}", reply.summary());
    Ok(reply.took)
}

/// From a queued client's leaving to the moment at which the sidecar's statistics no longer count it. Includes the
/// polling of the statistics, some milliseconds.
async fn cancel_frees(stack: &Stack) -> Result<Duration> {
    let client = stack.client("only")?;
    let calls = stack.upstream.calls();
    calls.hold();
    let running = spawn(&client);
    wait_until("the call runs", PATIENCE, || async { calls.running() == 1 }).await?;
    let leaving = spawn(&client);
    stack.operators().wait_for_queued(1, PATIENCE).await?;
    let left = Instant::now();
    leaving.abort();
    stack.operators().wait_for_queued(0, PATIENCE).await?;
    let took = left.elapsed();
    calls.release();
    running.await??;
    stack.operators().wait_until_idle(PATIENCE).await?;
    Ok(took)
}

/// From the end of a call's reply at the model server to the start of the next call there, while others wait: one gateway with
/// two workers.
async fn hand_overs(count: usize) -> Result<Vec<Duration>> {
    let stack = Stack::builder("bench-hand-over").workers(2).capacity(SLOTS as u64).tenant(Tenant::new("only")).start();
    let stack = stack.await?;
    let left = Arc::new(AtomicUsize::new(count + CALLERS));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        // On a connection of its own, so that both workers have some.
        let (client, left) = (stack.client("only")?.apart()?, Arc::clone(&left));
        callers.spawn(async move {
            let chat = Chat::to(MODEL).behave(json!({"delay_ms": SERVICE_MS}));
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                let reply = client.chat(&chat).await?;
                ensure!(reply.status == 200, "{}", reply.summary());
            }
            Ok(())
        });
    }
    callers.join_all().await.into_iter().collect::<Result<()>>()?;
    let mut handed = stack.upstream.calls().record().hand_overs(SLOTS);
    // Nobody waits behind the last ones.
    handed.truncate(count);
    Ok(handed)
}

fn spawn(client: &Client) -> tokio::task::JoinHandle<Result<()>> {
    let client = client.clone();
    tokio::spawn(async move { client.chat(&Chat::to(MODEL)).await.map(|_| ()) })
}

fn in_ms(name: &'static str, spans: &[Duration]) -> Figure {
    figure(name, "ms", spans.iter().map(|span| span.as_secs_f64() * 1_000.0).collect())
}
