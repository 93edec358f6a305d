//! Strangers and greedy tenants: what they hold is bounded, given back, and never taken from a known caller, who is served
//! all the while.

use e2e::client::{Chat, Client, Reply, send};
use e2e::keys::unknown_key;
use e2e::metrics::Metrics;
use e2e::stack::{MODEL, Stack, StackBuilder};
use e2e::tenant::Tenant;
use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use hyper::{HeaderMap, header};
use nix::sys::signal::Signal;
use reqwest::{Body, Method, RequestBuilder};
use serde_json::json;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use tokio::task::JoinHandle;

const SLACK: Duration = Duration::from_secs(20);
const STREAM_PATH: &str = "/inference.GRPCInferenceService/ModelStreamInfer";
const STREAMS: usize = 60;
const BODIES: usize = 40;
/// Of the first piece of a body that never ends.
const PIECE_BYTES: usize = 1 << 20;

fn stack(name: &str) -> StackBuilder {
    Stack::builder(name)
        .workers(1)
        .tenant(Tenant::new("first").with("priority", json!({"default": 0, "ceiling": 0})))
        .tenant(Tenant::new("greedy"))
}

/// A client of another address than the others', each on a connection of its own.
fn stranger(stack: &Stack, number: u8) -> Client {
    let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, number));
    stack.anonymous().unwrap().from(address).unwrap().with_key(unknown_key())
}

/// A gRPC stream that is opened with long headers, and on which nothing comes.
fn silent(client: &Client) -> RequestBuilder {
    let request = client.request(Method::POST, STREAM_PATH).header("content-type", "application/grpc");
    // HPACK sends the second as one byte.
    let long = "x".repeat(3_000);
    let request = (0..8).fold(request, |request, _| request.header("x-long", &long));
    request.body(Body::wrap_stream(stream::pending::<io::Result<String>>()))
}

/// A body of which so much comes, and the end does not.
fn endless(client: &Client, bytes: usize) -> RequestBuilder {
    let piece = stream::once(async move { Ok::<_, io::Error>(vec![b' '; bytes]) });
    client.chat_request(Body::wrap_stream(piece.chain(stream::pending())))
}

async fn all(requests: Vec<RequestBuilder>) -> Vec<Reply> {
    join_all(requests.into_iter().map(send)).await.into_iter().map(Result::unwrap).collect()
}

/// Calls of a known caller, one after the other, until the attack is over: each is served.
async fn served_meanwhile<T: Send + 'static>(client: &Client, attack: impl Future<Output = T> + Send + 'static) -> T {
    let attack = tokio::spawn(attack);
    loop {
        let reply = client.chat(&Chat::to(MODEL)).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.summary());
        if attack.is_finished() {
            return attack.await.unwrap();
        }
    }
}

async fn assert_given_back(stack: &Stack) {
    let gauges = ["sluice_filter_stranger_streams", "sluice_filter_stranger_bytes", "sluice_filter_paused_bytes"];
    stack
        .envoy
        .wait_for_metrics("everything is given back", SLACK, |metrics| {
            gauges.iter().all(|gauge| metrics.matching(gauge, &[]).count() == 1 && metrics.sum(gauge, &[]) == 0)
        })
        .await
        .unwrap();
    let reply = stack.client("first").unwrap().chat(&Chat::to(MODEL)).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.summary());
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_s_silent_streams_are_refused_though_no_message_ever_comes() {
    let stack = stack("hostile-silent").start().await.unwrap();
    let known = stack.client("first").unwrap();
    let client = stranger(&stack, 9);
    let attack = all((0..STREAMS).map(|_| silent(&client)).collect());
    for reply in served_meanwhile(&known, attack).await {
        assert_eq!(
            (reply.reason(), reply.header("grpc-status")),
            (Some("unknown_key"), Some("16")),
            "{}",
            reply.summary()
        );
    }
    assert_given_back(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_sidecar_a_stranger_holds_no_more_than_its_budget() {
    let stack = stack("hostile-alone")
        .plugin_config(|plugin| {
            plugin["strangers"] = json!({"streams": 40, "idle_ms": 60_000, "per_source": {"streams": 10}});
        })
        .start()
        .await
        .unwrap();
    stack.sidecar.signal(Signal::SIGSTOP).unwrap();
    let (mine, other) = (stranger(&stack, 9), stranger(&stack, 10));
    let mut holders = hold(&stack, &mine, 10, 10).await;
    for reply in all((0..STREAMS).map(|_| silent(&mine)).collect()).await {
        assert_eq!((reply.reason(), reply.header("grpc-status")), (Some("stranger_limit"), Some("14")));
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
    // One of another address has its own part.
    holders.extend(hold(&stack, &other, 10, 20).await);
    let refused = |metrics: &Metrics| metrics.sum("sluice_filter_strangers_refused", &[]) == STREAMS as u64;
    stack.envoy.wait_for_metrics("each refusal is counted", SLACK, refused).await.unwrap();
    holders.iter().for_each(JoinHandle::abort);
    stack.sidecar.signal(Signal::SIGCONT).unwrap();
    stack.client("first").unwrap().wait_until_served(&Chat::to(MODEL), SLACK).await.unwrap();
    assert_given_back(&stack).await;
}

/// Opens silent streams, and waits until the gateway holds `total`.
async fn hold(stack: &Stack, client: &Client, count: usize, total: u64) -> Vec<JoinHandle<anyhow::Result<Reply>>> {
    let streams = (0..count).map(|_| tokio::spawn(send(silent(client)))).collect();
    let are_held = |metrics: &Metrics| metrics.sum("sluice_filter_stranger_streams", &[]) == total;
    stack.envoy.wait_for_metrics("the streams are held", SLACK, are_held).await.unwrap();
    streams
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_sidecar_a_stranger_s_silence_is_short() {
    let stack = stack("hostile-silence")
        .plugin_config(|plugin| plugin["strangers"]["idle_ms"] = json!(200))
        .start()
        .await
        .unwrap();
    stack.sidecar.signal(Signal::SIGSTOP).unwrap();
    let reply = send(silent(&stranger(&stack, 9))).await.unwrap();
    assert_eq!(
        (reply.reason(), reply.header("grpc-status")),
        (Some("request_timeout"), Some("4")),
        "{}",
        reply.summary()
    );
    stack.sidecar.signal(Signal::SIGCONT).unwrap();
    stack.client("first").unwrap().wait_until_served(&Chat::to(MODEL), SLACK).await.unwrap();
    assert_given_back(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_s_endless_bodies_are_refused_before_they_fill_anything() {
    let stack = stack("hostile-bodies").start().await.unwrap();
    let known = stack.client("first").unwrap();
    let clients: Vec<Client> = (0..BODIES).map(|number| stranger(&stack, 10 + u8::try_from(number).unwrap())).collect();
    let attack = all(clients.iter().map(|client| endless(client, PIECE_BYTES)).collect());
    for reply in served_meanwhile(&known, attack).await {
        let outcome = (reply.status, reply.reason());
        let refusals = [(401, Some("unknown_key")), (503, Some("stranger_limit"))];
        assert!(refusals.contains(&outcome), "{}", reply.summary());
        assert_eq!(reply.check_openai_error(), Ok(()), "{}", reply.summary());
    }
    assert_given_back(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_s_endless_bodies_leave_room_for_others() {
    let stack = stack("hostile-greedy")
        .plugin_config(|plugin| {
            plugin["body"] = json!({"max_bytes": 4 << 20, "paused_max_bytes": 16 << 20, "timeout_ms": 30_000});
            plugin["tenants"] = json!({"body_bytes": 4 << 20});
        })
        .start()
        .await
        .unwrap();
    let known = stack.client("first").unwrap();
    let greedy = stack.client("greedy").unwrap();
    let reply = greedy.chat(&Chat::to(MODEL)).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.summary());
    let greedy = greedy.over_http2().unwrap();
    // As many as its share has room for, and the others are refused.
    let holders: Vec<_> = (0..3).map(|_| tokio::spawn(send(endless(&greedy, PIECE_BYTES)))).collect();
    stack
        .envoy
        .wait_for_metrics("the share is nearly full", SLACK, |metrics| {
            metrics.sum("sluice_filter_paused_bytes", &[]) == 3 * PIECE_BYTES as u64
        })
        .await
        .unwrap();
    let first = known.chat(&Chat::to(MODEL)).await.unwrap();
    assert_eq!(first.status, 200, "the caller is known: {}", first.summary());
    let attack = all((0..BODIES).map(|_| endless(&greedy, 2 * PIECE_BYTES)).collect());
    for reply in served_meanwhile(&known, attack).await {
        assert_eq!((reply.status, reply.reason()), (429, Some("tenant_held_bytes")), "{}", reply.summary());
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
    let call = Chat::to(MODEL).text();
    let large = format!("{call}{}", " ".repeat((4 << 20) - call.len()));
    let reply = send(known.chat_request(large)).await.unwrap();
    assert_eq!(reply.status, 200, "a whole body of the longest kind: {}", reply.summary());
    holders.iter().for_each(|holder| holder.abort());
    assert_given_back(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_s_idle_streams_are_bounded_and_hold_nothing() {
    let stack = stack("hostile-idle")
        .plugin_config(|plugin| plugin["tenants"] = json!({"idle_streams": 5}))
        .start()
        .await
        .unwrap();
    let greedy = stack.client("greedy").unwrap();
    assert_eq!(greedy.chat(&Chat::to(MODEL)).await.unwrap().status, 200);
    let client = greedy.over_http2().unwrap();
    let mut streams: stream::FuturesUnordered<_> = (0..20).map(|_| tokio::spawn(send(silent(&client)))).collect();
    for _ in 0..15 {
        let reply = streams.next().await.unwrap().unwrap().unwrap();
        assert_eq!((reply.reason(), reply.header("grpc-status")), (Some("tenant_idle_streams"), Some("8")));
    }
    let known = stack.client("first").unwrap();
    assert_eq!(known.chat(&Chat::to(MODEL)).await.unwrap().status, 200);
    assert_eq!(streams.len(), 5, "the others idle on");
    streams.iter().for_each(JoinHandle::abort);
    assert_given_back(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_carry_none_of_our_names_upstream() {
    let stack = stack("hostile-trailers").start().await.unwrap();
    let client = stack.client("first").unwrap().over_http2().unwrap();
    let mut trailers = HeaderMap::new();
    for name in ["x-tenant-id", "x_tenant_id", "x-pool", "x-sluice-new", "x-envoy-retry-on", "api-key", "checksum"] {
        trailers.insert(header::HeaderName::from_static(name), header::HeaderValue::from_static("forged"));
    }
    // A frame with one field, the model's name.
    let message = [&[0, 0, 0, 0, 14, 0x0a, 12][..], MODEL.as_bytes()].concat();
    let frames = [Frame::data(Bytes::from(message)), Frame::trailers(trailers)].map(Ok::<_, io::Error>);
    let request = client
        .request(Method::POST, "/inference.GRPCInferenceService/ModelInfer")
        .header("content-type", "application/grpc")
        .body(Body::wrap(StreamBody::new(stream::iter(frames))));
    let reply = send(request).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.summary());
    let seen = stack.upstream.calls().last().unwrap().trailers;
    assert_eq!(seen.keys().map(header::HeaderName::as_str).collect::<Vec<_>>(), ["checksum"], "{seen:?}");
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}
