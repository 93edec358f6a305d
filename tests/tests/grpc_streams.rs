//! A message is a call, and a stream is a pipe: what runs, what is charged and who holds a slot goes by messages.

use e2e::client::Chat;
use e2e::grpc::{GrpcStream, message, parameter};
use e2e::stack::{MODEL, Stack, StackBuilder};
use e2e::tenant::Tenant;
use e2e::wait::wait_until;
use serde_json::{Value, json};
use std::time::Duration;

const SLACK: Duration = Duration::from_secs(30);
const FINAL: &[u8] = b"triton_final_response";

fn stack(name: &str) -> StackBuilder {
    Stack::builder(name).tenant(Tenant::new("only"))
}

fn simple() -> Vec<u8> {
    message(MODEL, &json!({}))
}

async fn charges(stack: &Stack, expected: u64) {
    let metrics = stack
        .operators()
        .wait_for_metrics("each message is charged", SLACK, |metrics| {
            metrics.sum("sluice_fixed_charges_total", &[]) >= expected
        })
        .await
        .unwrap();
    assert_eq!(metrics.sum("sluice_fixed_charges_total", &[]), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_messages_of_one_stream_run_one_by_one_and_each_is_charged() {
    let stack = stack("grpc-many").capacity(4).start().await.unwrap();
    let mut stream = GrpcStream::open(&stack.client("only").unwrap()).unwrap();
    stream.send(vec![simple(); 200].concat());
    for number in 0..200 {
        assert!(stream.reply().await.unwrap().is_some(), "reply {number}");
    }
    stream.close();
    assert!(stream.reply().await.unwrap().is_none());
    assert_eq!((stack.upstream.calls().count(), stack.upstream.calls().max_running()), (200, 1));
    charges(&stack, 200).await;
    let metrics = stack.operators().metrics().await.unwrap();
    assert_eq!(metrics.sum("sluice_admissions_total", &[("decision", "admitted")]), 200);
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_count_in_the_rate_of_their_tenant() {
    let tenant = Tenant::new("only").limit("requests_per_min", 3);
    let stack = Stack::builder("grpc-rate").tenant(tenant).start().await.unwrap();
    let mut stream = GrpcStream::open(&stack.client("only").unwrap()).unwrap();
    stream.send(vec![simple(); 20].concat());
    let answered = stream.replies().await;
    assert_eq!((answered, stack.upstream.calls().count()), (3, 3));
    charges(&stack, 3).await;
    let metrics = stack.operators().metrics().await.unwrap();
    assert_eq!(metrics.sum("sluice_admissions_total", &[("reason", "tenant_requests_per_minute")]), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_between_two_messages_holds_no_slot_and_ends_when_it_idles() {
    let idle = |plugin: &mut Value| plugin["grpc_idle_ms"] = json!(500);
    let stack = stack("grpc-idle").capacity(2).plugin_config(idle).start().await.unwrap();
    let client = stack.client("only").unwrap();
    let mut idles = [GrpcStream::open(&client).unwrap(), GrpcStream::open(&client).unwrap()];
    for stream in &mut idles {
        stream.send(simple());
        assert!(stream.reply().await.unwrap().is_some());
    }
    stack.upstream.calls().hold();
    let mut slow = GrpcStream::open(&client).unwrap();
    slow.send(simple());
    let chat = tokio::spawn(async move { client.chat(&Chat::to(MODEL)).await.unwrap() });
    wait_until("both slots are others'", SLACK, || async { stack.upstream.calls().running() == 2 }).await.unwrap();
    for stream in &mut idles {
        assert!(stream.reply().await.is_err(), "it idles, and is reset");
    }
    stack.upstream.calls().release();
    assert_eq!(chat.await.unwrap().status, 200);
    assert!(slow.reply().await.unwrap().is_some(), "a slow model is not idle");
    assert!(slow.reply().await.is_err(), "but its client is, from then on");
    charges(&stack, 3).await;
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_decoupled_model_runs_until_its_last_reply() {
    let stack = stack("grpc-decoupled").capacity(4).start().await.unwrap();
    let mut stream = GrpcStream::open(&stack.client("only").unwrap()).unwrap();
    let three = json!({"replies": 3, "decoupled": true});
    let none = json!({"replies": 0, "decoupled": true});
    stream.send([message(MODEL, &three), message(MODEL, &none), message(MODEL, &three)].concat());
    for number in 0..6 {
        let reply = stream.reply().await.unwrap().unwrap();
        assert!(has(&reply, b"output") && has(&reply, FINAL), "reply {number}");
    }
    let mut asks = message(MODEL, &none)[5..].to_vec();
    asks.extend(parameter("triton_enable_empty_final_response", true));
    stream.send(e2e::grpc::frame(&asks));
    let last = stream.reply().await.unwrap().unwrap();
    assert!(!has(&last, b"output") && has(&last, FINAL), "who asks for the empty one gets it");
    stream.close();
    assert!(stream.reply().await.unwrap().is_none());
    assert_eq!((stack.upstream.calls().count(), stack.upstream.calls().max_running()), (4, 1));
    charges(&stack, 4).await;
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_fails_pays_for_what_ran() {
    let stack = stack("grpc-failed").start().await.unwrap();
    // A deadline is the client's own; a failure of the server before any reply costs nothing.
    for (script, charged) in [
        (json!({"status": 4, "replies": 0}), 2),
        (json!({"status": 13, "replies": 1, "decoupled": true}), 4),
        (json!({"status": 13, "replies": 0}), 5),
    ] {
        let mut stream = GrpcStream::open(&stack.client("only").unwrap()).unwrap();
        stream.send(simple());
        assert!(stream.reply().await.unwrap().is_some());
        stream.send(message(MODEL, &script));
        stream.replies().await;
        stack.operators().wait_until_idle(SLACK).await.unwrap();
        charges(&stack, charged).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_end_its_side_once_no_more_than_one_message_waits() {
    let stack = stack("grpc-half-closed").start().await.unwrap();
    for (messages, expected) in [(1, 1), (2, 2)] {
        stack.upstream.calls().hold();
        let mut stream = GrpcStream::open(&stack.client("only").unwrap()).unwrap();
        stream.send(vec![simple(); messages].concat());
        wait_until("the first runs", SLACK, || async { stack.upstream.calls().running() == 1 }).await.unwrap();
        stream.close();
        stack.upstream.calls().release();
        assert_eq!(stream.replies().await, expected);
    }
    let mut stream = GrpcStream::open(&stack.client("only").unwrap()).unwrap();
    stream.send(vec![simple(); 3].concat());
    stream.close();
    let _ = stream.replies().await;
    stack.operators().wait_until_idle(SLACK).await.unwrap();
    assert_eq!(stack.upstream.calls().max_running(), 1);
    assert!(stack.upstream.calls().count() < 6, "the messages behind the first never ran");
}
