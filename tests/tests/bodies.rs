//! Bodies of any length and speed, over HTTP/1.1 and HTTP/2, announced or not: what is too large or too slow gets our
//! own refusal and never one of Envoy's, and what is just small enough passes whole.

use e2e::client::{Chat, Client, Reply, send};
use e2e::keys::unknown_key;
use e2e::stack::{Bootstrap, MODEL, POOL, Stack, StackBuilder};
use e2e::tenant::Tenant;
use e2e::wait::let_pass;
use futures_util::{Stream, StreamExt as _, stream};
use reqwest::{Body, Method};
use serde_json::{Value, json};
use std::io;
use std::time::Duration;

const SLACK: Duration = Duration::from_secs(10);
/// As shipped: `body.max_bytes`.
const CAP_BYTES: usize = 16 << 20;
/// 16.2 MiB is over our cap and below the limit of Envoy's buffer; 20 MiB is over both.
const TOO_LARGE_BYTES: [usize; 2] = [16_986_931, 20 << 20];
/// What a client writes at once where it does not tell the length.
const CHUNK_BYTES: usize = 64 << 10;
const OWN_PATH: &str = "/rerank";
const OPENAI_PATH: &str = "/openai/v1/chat/completions";
/// Callers of other dialects than chat, and how a refusal reads in theirs.
type Words = fn(&Value) -> bool;
const OTHER_CALLERS: [(&str, Words); 4] = [
    (OPENAI_PATH, |body| body["error"]["code"] == "body_too_large"),
    ("/v1/messages", |body| body["error"]["type"] == "request_too_large"),
    ("/v2/models/any/generate", |body| body["error"].is_string() && body["reason"].is_null()),
    (OWN_PATH, |body| body["error"].is_string() && body["reason"] == "body_too_large"),
];
/// Short, so that the tests of slow bodies are not.
const BODY_TIMEOUT: Duration = Duration::from_millis(400);

#[tokio::test(flavor = "multi_thread")]
async fn in_plain_envoy_a_body_over_the_cap_is_refused_in_our_words_and_one_of_the_cap_passes() {
    assert_the_cap_holds(&usual("bodies-envoy").start().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_the_envoy_filter_a_body_over_the_cap_is_refused_in_our_words_and_one_of_the_cap_passes() {
    assert_the_cap_holds(&usual("bodies-istio").bootstrap(Bootstrap::EnvoyFilter).start().await.unwrap()).await;
}

/// The shipped routes, and two of paths that are no dialect's own.
fn usual(name: &str) -> StackBuilder {
    Stack::builder(name).tenant(Tenant::new("only")).plugin_config(|plugin| {
        plugin["routes"].as_array_mut().unwrap().extend([
            json!({"dialect": "request", "path": OWN_PATH, "pool": POOL}),
            json!({"dialect": "openai_chat", "path": OPENAI_PATH}),
        ]);
    })
}

async fn assert_the_cap_holds(stack: &Stack) {
    let http1 = stack.client("only").unwrap();
    let http2 = http1.over_http2().unwrap();
    let mut wrong = Vec::new();
    for (protocol, client) in [("HTTP/1.1", &http1), ("HTTP/2", &http2)] {
        for bytes in TOO_LARGE_BYTES {
            let body = call_of(bytes);
            let forms = [
                ("announced", Body::from(body.clone())),
                ("unannounced", chunked(&body, CHUNK_BYTES)),
                // So much at once may fill Envoy's buffer before the filter sees any of it.
                ("unannounced, at once", chunked(&body, bytes)),
            ];
            for (form, body) in forms {
                let reply = send(client.chat_request(body)).await;
                if let Some(problem) = not_too_large(&reply) {
                    wrong.push(format!("{protocol}, {bytes} bytes {form}: {problem}"));
                }
            }
        }
    }
    for (path, is_in_its_words) in OTHER_CALLERS {
        // Over HTTP/1.1 and at once, so that Envoy may have to say it.
        let body = chunked(&call_of(TOO_LARGE_BYTES[1]), TOO_LARGE_BYTES[1]);
        let reply = send(http1.request(Method::POST, path).body(body)).await.unwrap();
        if !is_refusal(&reply) || !is_in_its_words(&reply.json()) {
            wrong.push(format!("{path}: {}", reply.summary()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(stack.upstream.calls().count(), 0, "none of them reached the model");
    for client in [&http1, &http2] {
        let body = call_of(CAP_BYTES);
        for body in [chunked(&body, CHUNK_BYTES), chunked(&body, CAP_BYTES), Body::from(body)] {
            let reply = send(client.chat_request(body)).await.unwrap();
            assert_eq!(reply.status, 200, "{}", reply.summary());
            assert_eq!(stack.upstream.calls().last().unwrap().body.len(), CAP_BYTES);
        }
    }
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

fn not_too_large(reply: &anyhow::Result<Reply>) -> Option<String> {
    match reply {
        Err(error) => Some(format!("{error:?}")),
        Ok(reply) if !is_refusal(reply) => Some(reply.summary()),
        Ok(reply) => reply.check_openai_error().err().map(str::to_owned),
    }
}

fn is_refusal(reply: &Reply) -> bool {
    let should_retry = reply.header("x-should-retry");
    (reply.status, reply.reason(), should_retry) == (413, Some("body_too_large"), Some("false"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stops_coming_or_drips_gets_408_and_its_memory_is_free() {
    let stack = hasty("bodies-slow").start().await.unwrap();
    let http1 = stack.client("only").unwrap();
    for client in [http1.over_http2().unwrap(), http1] {
        let stops = text("{\"model\":").chain(stream::pending());
        assert_too_slow(&client, Body::wrap_stream(stops)).await;
        assert_too_slow(&client, Body::wrap_stream(stream::pending::<io::Result<String>>())).await;
        let drips = stream::unfold((), |()| async {
            let_pass(BODY_TIMEOUT / 20).await;
            Some((Ok::<_, io::Error>(" "), ()))
        });
        assert_too_slow(&client, Body::wrap_stream(drips)).await;
        assert_eq!(client.chat(&Chat::to(MODEL)).await.unwrap().status, 200, "others are served");
    }
    assert_eq!(stack.upstream.calls().count(), 2, "no slow call reached the model");
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

async fn assert_too_slow(client: &Client, body: Body) {
    let reply = send(client.chat_request(body)).await.unwrap();
    assert_eq!((reply.status, reply.reason()), (408, Some("request_timeout")), "{}", reply.summary());
    assert_eq!(reply.check_openai_error(), Ok(()), "{}", reply.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_caller_s_grpc_stream_may_idle_before_its_first_message_until_envoy_ends_it() {
    let builder = hasty("bodies-idle").envoy_config(|bootstrap| {
        let manager = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
        let idle = BODY_TIMEOUT * 4;
        bootstrap.pointer_mut(manager).unwrap()["stream_idle_timeout"] = json!(format!("{}s", idle.as_secs_f64()));
    });
    let stack = builder.start().await.unwrap();
    let client = stack.client("only").unwrap().over_http2().unwrap();
    let open = |client: &Client, body| {
        let path = "/inference.GRPCInferenceService/ModelStreamInfer";
        send(client.request(Method::POST, path).header("content-type", "application/grpc").body(body))
    };
    let silence = || Body::wrap_stream(stream::pending::<io::Result<String>>());
    // Had a time of ours ended it, the reason would be ours.
    let idles = open(&client, silence()).await.unwrap();
    assert_eq!((idles.reason(), idles.header("grpc-message")), (None, Some("stream timeout")), "{}", idles.summary());
    let stops = open(&client, Body::wrap_stream(text("\0").chain(stream::pending()))).await.unwrap();
    assert_eq!(stops.reason(), Some("request_timeout"), "what has begun must go on: {}", stops.summary());
    let unknown = open(&client.with_key(unknown_key()), silence()).await.unwrap();
    assert_eq!(unknown.reason(), Some("unknown_key"), "a stranger's may not: {}", unknown.summary());
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn time_in_the_queue_is_not_the_bodys() {
    // One worker, whose tick ends what is late, the oldest with the youngest.
    let stack = hasty("bodies-queued").workers(1).capacity(1).start().await.unwrap();
    let client = stack.client("only").unwrap();
    stack.upstream.calls().hold();
    let callers: Vec<_> = (0..2)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.chat(&Chat::to(MODEL)).await.unwrap() })
        })
        .collect();
    stack.operators().wait_for_queued(1, SLACK).await.unwrap();
    // It began after the call that waits: when its time is over, so is that one's.
    assert_too_slow(&client, Body::wrap_stream(text("{").chain(stream::pending()))).await;
    stack.upstream.calls().release();
    for caller in callers {
        let reply = caller.await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.summary());
    }
}

fn hasty(name: &str) -> StackBuilder {
    Stack::builder(name)
        .tenant(Tenant::new("only"))
        .plugin_config(|plugin| plugin["body"]["timeout_ms"] = json!(BODY_TIMEOUT.as_millis()))
}

/// A call whose body has exactly this length: JSON may end in spaces.
fn call_of(bytes: usize) -> String {
    let call = Chat::to(MODEL).text();
    format!("{call}{}", " ".repeat(bytes - call.len()))
}

/// The same bytes without a word on their number: chunks in HTTP/1.1, frames in HTTP/2.
fn chunked(text: &str, chunk_bytes: usize) -> Body {
    let chunks: Vec<io::Result<Vec<u8>>> =
        text.as_bytes().chunks(chunk_bytes).map(|chunk| Ok(chunk.to_vec())).collect();
    Body::wrap_stream(stream::iter(chunks))
}

fn text(text: &'static str) -> impl Stream<Item = io::Result<&'static str>> {
    stream::once(async move { Ok(text) })
}
