//! `curl`, as people use it: `--compressed`, over HTTP/1.1 and HTTP/2, and within a trace.

use anyhow::{Context, Result, ensure};
use e2e::client::{CHAT_PATH, Chat};
use e2e::stack::{MODEL, Stack};
use e2e::tenant::Tenant;
use e2e::upstream::Usage;
use e2e::wait::{wait_for, wait_until};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::process::Command;

const SLACK: Duration = Duration::from_secs(10);
/// What the scripted upstream says of each call.
const USAGE: Usage = Usage { input: 11, output: 3, cached: 0 };
const CONTENT: &str = "word word word";
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const VERSIONS: [&str; 2] = ["--http1.1", "--http2-prior-knowledge"];

/// A reply: its head in small letters, and its body as curl hands it out.
#[derive(Debug)]
struct Got {
    head: String,
    body: String,
}

impl Got {
    fn is_packed(&self) -> bool {
        self.head.contains("content-encoding: gzip")
    }

    /// The words of a document or of a stream.
    fn content(&self) -> String {
        if let Ok(document) = serde_json::from_str::<Value>(&self.body) {
            return document["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
        }
        let data = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        let events = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
        let words = events.filter_map(|event| Some(event["choices"][0]["delta"]["content"].as_str()?.to_owned()));
        words.collect::<String>().trim_end().to_owned()
    }
}

async fn curl(options: &[&str], base: &str, key: &str, chat: &Chat) -> Result<Got> {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--include", "--max-time", "60"])
        .args(options)
        .args(["--header", "content-type: application/json", "--header", &format!("authorization: Bearer {key}")])
        .args(["--data", &chat.text(), &format!("{base}{CHAT_PATH}")])
        .kill_on_drop(true)
        .output()
        .await
        .context("curl must be installed")?;
    let printed = String::from_utf8(output.stdout).context("neither text nor unpacked")?;
    ensure!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    let (head, body) = printed.split_once("\r\n\r\n").context("no end of the head")?;
    Ok(Got { head: head.to_lowercase(), body: body.to_owned() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_packed_replies_gets_readable_ones_and_all_tokens_are_metered() {
    let stack = Stack::builder("curl-compressed").tenant(Tenant::new("only")).start().await.unwrap();
    let (base, key) = (stack.envoy.base(), stack.key("only").unwrap());
    let direct = format!("http://{}", stack.upstream.address());
    let chats = [Chat::to(MODEL), Chat::to(MODEL).stream(), Chat::to(MODEL).stream_with_usage()];
    for chat in &chats {
        let packed = curl(&["--compressed"], &direct, key, chat).await.unwrap();
        assert!(packed.is_packed(), "the upstream packs what it may: {packed:?}");
        assert_eq!(packed.content(), CONTENT);
    }
    for version in VERSIONS {
        for chat in &chats {
            let got = curl(&["--compressed", version], &base, key, chat).await.unwrap();
            assert_eq!((got.content().as_str(), got.is_packed()), (CONTENT, false), "{version}: {got:?}");
            assert_eq!(stack.upstream.calls().last().unwrap().header("accept-encoding"), Some("identity"));
        }
    }
    assert_all_reported(&stack, VERSIONS.len() * chats.len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_packs_replies_itself_does_so_after_they_were_metered() {
    let stack = Stack::builder("curl-gateway-packs")
        .tenant(Tenant::new("only"))
        .envoy_config(|bootstrap| {
            let library = json!({"name": "gzip", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip",
            }});
            let compressor = json!({"name": "envoy.filters.http.compressor", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.compressor.v3.Compressor",
                "compressor_library": library,
            }});
            let manager = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/http_filters";
            bootstrap.pointer_mut(manager).unwrap().as_array_mut().unwrap().insert(0, compressor);
        })
        .start()
        .await
        .unwrap();
    let key = stack.key("only").unwrap();
    for version in VERSIONS {
        let got = curl(&["--compressed", version], &stack.envoy.base(), key, &Chat::to(MODEL)).await.unwrap();
        assert_eq!((got.content().as_str(), got.is_packed()), (CONTENT, true), "{version}: {got:?}");
        assert_eq!(stack.upstream.calls().last().unwrap().header("accept-encoding"), Some("identity"));
    }
    assert_all_reported(&stack, VERSIONS.len()).await;
}

/// So many calls were charged what the upstream said, and none was estimated.
async fn assert_all_reported(stack: &Stack, calls: usize) {
    let calls = calls as u64;
    let metrics = stack
        .operators()
        .wait_for_metrics("all calls are settled", SLACK, |metrics| {
            metrics.sum("sluice_settlements_total", &[]) == calls
        })
        .await
        .unwrap();
    let kind = |kind| metrics.sum("sluice_tokens_total", &[("tenant", "only"), ("kind", kind)]);
    assert_eq!((kind("input"), kind("output")), (USAGE.input * calls, USAGE.output * calls));
    assert_eq!(metrics.sum("sluice_settlements_total", &[("usage", "reported")]), calls);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_to_the_model_as_it_came_and_the_access_log_tells_it_beside_the_wait() {
    let stack = Stack::builder("curl-trace").capacity(1).tenant(Tenant::new("only")).start().await.unwrap();
    let (base, key) = (stack.envoy.base(), stack.key("only").unwrap());
    let (client, chat) = (stack.client("only").unwrap(), Chat::to(MODEL));
    let header = format!("traceparent: {TRACEPARENT}");
    let traced = ["--header", &header, "--header", "tracestate: vendor=1,other=2", "--header", "baggage: user=7"];
    stack.upstream.calls().hold();
    let first = client.chat(&chat);
    let queued = async {
        wait_until("the first call runs", SLACK, || async { stack.upstream.calls().running() == 1 }).await.unwrap();
        let traced = curl(&traced, &base, key, &chat);
        let release = async {
            wait_until("it has stood in the queue for a millisecond", SLACK, || async {
                let queues = stack.operators().get("/admin/scheduler/queues?top=1").await.unwrap();
                queues["busiest_queues"][0]["next_to_start"][0]["waited_ms"].as_u64() > Some(0)
            })
            .await
            .unwrap();
            stack.upstream.calls().release();
        };
        tokio::join!(traced, release).0.unwrap()
    };
    let (first, got) = tokio::join!(first, queued);
    assert_eq!(first.unwrap().status, 200);

    let call = stack.upstream.calls().last().unwrap();
    for (name, value) in [("traceparent", TRACEPARENT), ("tracestate", "vendor=1,other=2"), ("baggage", "user=7")] {
        assert_eq!(call.header(name), Some(value), "{:?}", call.headers);
    }
    let wait = got.head.lines().find_map(|line| line.strip_prefix("x-queue-wait-ms: ")).unwrap().to_owned();
    let logged =
        wait_for("the call is in the access log", SLACK, || async { logged(&stack.envoy.log()) }).await.unwrap();
    assert_eq!(logged["wait_ms"].as_str(), Some(wait.as_str()), "{logged}");
    assert_ne!(wait, "0", "it stood in the queue");
    assert_eq!(logged["admission_id"].as_str(), call.header("x-admission-id"));
}

/// The traced call's line of the access log.
fn logged(log: &str) -> Option<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.into_iter().find(|line| line["traceparent"] == TRACEPARENT)
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_right_after_the_last_event_lose_nothing_of_it() {
    let options = "/typed_extension_protocol_options/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let stack = Stack::builder("curl-trailers")
        .tenant(Tenant::new("only"))
        .envoy_config(move |bootstrap| {
            let clusters = bootstrap["static_resources"]["clusters"].as_array_mut().unwrap();
            let model = clusters.iter_mut().find(|cluster| cluster["name"] == "model").unwrap();
            let options = model.pointer_mut(options).unwrap();
            options["explicit_http_config"] = json!({"http2_protocol_options": {}});
        })
        .start()
        .await
        .unwrap();
    let key = stack.key("only").unwrap();
    let chat = Chat::to(MODEL).stream().behave(json!({"ending": "trailers"}));
    let got = curl(&["--http2-prior-knowledge"], &stack.envoy.base(), key, &chat).await.unwrap();
    assert!(got.body.contains("data: [DONE]"), "{got:?}");
    assert!(got.body.contains("x-trailer: 1"), "curl shows trailers after the body: {got:?}");
    assert!(!got.body.contains("prompt_tokens"), "what we asked for is still taken out: {got:?}");
    assert_eq!(got.content(), CONTENT);
    assert_all_reported(&stack, 1).await;
}
