//! The measure itself is measured.

use super::{Upstream, Usage};
use crate::client::{Chat, Client};
use crate::wait::wait_until;
use serde_json::json;
use std::time::Duration;

const SLACK: Duration = Duration::from_secs(10);

fn client(upstream: &Upstream) -> Client {
    Client::new(&format!("http://{}", upstream.address())).unwrap()
}

#[tokio::test]
async fn calls_are_counted_while_they_run_and_not_after_their_last_byte() {
    let upstream = Upstream::scripted().await.unwrap();
    let (client, calls) = (client(&upstream), upstream.calls());
    calls.hold();
    let (plain, streamed) = (Chat::to("m"), Chat::to("m").stream());
    let both = async { tokio::join!(client.chat(&plain), client.chat(&streamed)) };
    let watch = async {
        wait_until("two calls run", SLACK, || async { calls.running() == 2 }).await.unwrap();
        calls.release();
    };
    let ((document, stream), ()) = tokio::join!(both, watch);
    assert_eq!(calls.running(), 0);
    assert_eq!(calls.max_running(), 2);
    assert_eq!(document.unwrap().json()["usage"]["completion_tokens"], 3);
    assert!(stream.unwrap().text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_stream_bears_usage_only_when_asked() {
    let upstream = Upstream::scripted().await.unwrap();
    let client = client(&upstream);
    let silent = client.chat(&Chat::to("m").stream()).await.unwrap();
    assert_eq!(Usage::in_reply(&silent.body), None);
    let chat = Chat::to("m").stream_with_usage().behave(json!({"usage": {"input": 5, "output": 6, "cached": 1}}));
    let told = client.chat(&chat).await.unwrap();
    assert_eq!(Usage::in_reply(&told.body), Some(Usage { input: 5, output: 6, cached: 1 }));
    let nothing = client.chat(&Chat::to("m").stream_with_usage().behave(json!({"usage": null}))).await.unwrap();
    assert_eq!(Usage::in_reply(&nothing.body), None);
}

#[tokio::test]
async fn endings_are_as_scripted() {
    let upstream = Upstream::scripted().await.unwrap();
    let client = client(&upstream);
    let chat = |ending| Chat::to("m").stream().behave(json!({"ending": ending, "words": 4}));
    assert!(client.chat(&chat("reset_at_once")).await.is_err());
    let broken = client.chat(&chat("reset_midway")).await.unwrap();
    assert!(broken.broken && broken.events().len() == 2, "{}", broken.summary());
    let cut = client.chat(&chat("cut_line")).await.unwrap();
    assert!(!cut.broken && !cut.text().ends_with('\n'), "{}", cut.summary());
    assert_eq!(upstream.calls().running(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_call() {
    let upstream = Upstream::scripted().await.unwrap();
    let (client, calls) = (client(&upstream), upstream.calls());
    calls.hold();
    let leaving = tokio::spawn(async move { client.chat(&Chat::to("m")).await.map(|_| ()) });
    wait_until("the call runs", SLACK, || async { calls.running() == 1 }).await.unwrap();
    leaving.abort();
    wait_until("the call has ended", SLACK, || async { calls.running() == 0 }).await.unwrap();
}

#[tokio::test]
async fn the_proxy_counts_and_reads_the_usage_on_the_way() {
    let model = Upstream::scripted().await.unwrap();
    let proxy = Upstream::in_front_of(&format!("http://{}", model.address())).await.unwrap();
    let client = client(&proxy);
    for chat in [Chat::to("m"), Chat::to("m").stream_with_usage()] {
        assert_eq!(client.chat(&chat).await.unwrap().status, 200);
    }
    let usages: Vec<_> = proxy.calls().all().into_iter().map(|call| call.usage).collect();
    assert_eq!(usages, [Some(Usage { input: 11, output: 3, cached: 0 }); 2]);
    assert_eq!((proxy.calls().running(), proxy.calls().max_running()), (0, 1));
}
