//! Never more calls in the model than its capacity, nobody lost, and the first level first.

use e2e::client::{Chat, Client, Reply};
use e2e::stack::{MODEL, POOL, Stack};
use e2e::tenant::Tenant;
use e2e::wait::wait_until;
use futures_util::future::join_all;
use std::time::Duration;
use tokio::task::JoinHandle;

const SLACK: Duration = Duration::from_secs(20);
const CAPACITY: usize = 2;
const FIRST_LEVEL: usize = 24;
const LAST_LEVEL: usize = 24;

#[tokio::test(flavor = "multi_thread")]
async fn of_50_callers_never_more_than_2_run_in_the_model_all_finish_and_p0_goes_before_p9() {
    let stack = Stack::builder("capacity")
        .real_model()
        .capacity(CAPACITY as u64)
        .tenant(Tenant::new("urgent").priority(0))
        .tenant(Tenant::new("patient").priority(9))
        .start()
        .await
        .unwrap();
    let calls = stack.upstream.calls();
    let (urgent, patient) = (stack.client("urgent").unwrap(), stack.client("patient").unwrap());

    // Two calls stand in the model until everybody else stands in the queue, so the order of arrival in front of
    // the model is the order of the queue.
    calls.hold();
    let mut callers = start(&patient, CAPACITY);
    wait_until("two calls run", SLACK, || async { calls.running() == CAPACITY }).await.unwrap();
    callers.extend(start(&patient, LAST_LEVEL));
    stack.operators().wait_for_queued(LAST_LEVEL as u64, SLACK).await.unwrap();
    callers.extend(start(&urgent, FIRST_LEVEL));
    let everybody = (LAST_LEVEL + FIRST_LEVEL) as u64;
    stack.operators().wait_for_queued(everybody, SLACK).await.unwrap();
    assert_eq!(calls.count(), CAPACITY, "nobody passed the queue");
    calls.release();

    for reply in join_all(callers).await {
        let reply = reply.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.summary());
    }
    assert_eq!(calls.max_running(), CAPACITY);
    let order: Vec<String> =
        calls.all().iter().map(|call| call.header("x-priority").unwrap_or("?").to_owned()).collect();
    let count = |calls: &[String], level| calls.iter().filter(|of| *of == level).count();
    assert_eq!((count(&order, "0"), count(&order, "9")), (FIRST_LEVEL, CAPACITY + LAST_LEVEL), "{order:?}");
    // The last of one level and the first of the next may be let in together, and travel to the model by different workers.
    let (first, last) = order[CAPACITY..].split_at(FIRST_LEVEL);
    let early = first.iter().position(|level| level == "9").unwrap_or(FIRST_LEVEL);
    assert!(
        early > FIRST_LEVEL - CAPACITY && count(last, "0") < CAPACITY,
        "levels as they reached the model: {order:?}"
    );
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_is_used_to_its_capacity_and_the_wait_is_told() {
    let stack =
        Stack::builder("capacity-used").capacity(CAPACITY as u64).tenant(Tenant::new("only")).start().await.unwrap();
    let calls = stack.upstream.calls();
    let client = stack.client("only").unwrap();
    calls.hold();
    let callers = start(&client, 6);
    stack.operators().wait_for_queued(4, SLACK).await.unwrap();
    let metrics = stack.operators().metrics().await.unwrap();
    assert_eq!(metrics.sum("sluice_running", &[("pool", POOL)]), CAPACITY as u64);
    assert_eq!(metrics.sum("sluice_queue_depth", &[("pool", POOL)]), 4);
    // A call that was let in may still be on its way to the model.
    wait_until("two calls run", SLACK, || async { calls.running() == CAPACITY }).await.unwrap();
    calls.release();

    let replies: Vec<Reply> = join_all(callers).await.into_iter().map(Result::unwrap).collect();
    assert!(replies.iter().all(|reply| reply.status == 200));
    assert!(replies.iter().all(|reply| reply.waited().is_some()), "x-queue-wait-ms is on every reply");
    assert_eq!(calls.max_running(), CAPACITY);
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

fn start(client: &Client, count: usize) -> Vec<JoinHandle<Reply>> {
    (0..count)
        .map(|index| {
            let client = client.clone();
            let chat = Chat::to(MODEL).max_tokens(4).prompt(&format!("Say the number {index}."));
            let chat = if index % 2 == 0 { chat } else { chat.stream() };
            tokio::spawn(async move { client.chat(&chat).await.unwrap() })
        })
        .collect()
}
