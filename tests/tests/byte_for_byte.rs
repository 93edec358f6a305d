//! What a client gets through Envoy and the filter is, byte for byte, what the model server sends to who calls it directly.

use e2e::client::{Client, send};
use e2e::stack::{MODEL, POOL, Stack};
use e2e::tenant::Tenant;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

const SLACK: Duration = Duration::from_secs(10);
const CHAT: &str = "/v1/chat/completions";
const EMBEDDINGS: &str = "/v1/embeddings";

#[tokio::test(flavor = "multi_thread")]
async fn every_dialect_s_replies_reach_the_client_byte_for_byte() {
    let stack = Stack::builder("byte-for-byte")
        .tenant(Tenant::new("only"))
        .plugin_config(|plugin| {
            let routes = plugin["routes"].as_array_mut().unwrap();
            routes.extend([
                json!({"dialect": "openai_media"}),
                json!({"dialect": "openai_uploads", "pool": POOL}),
                json!({"dialect": "request", "path": "/own", "pool": POOL}),
            ]);
        })
        .start()
        .await
        .unwrap();
    let through = stack.client("only").unwrap();
    let direct = Client::new(&format!("http://{}", stack.upstream.address())).unwrap();
    let mut compared = 0;
    for path in paths() {
        for (stream, usage) in [(false, false), (true, false), (true, true)] {
            for words in [0, 1, 40] {
                // Embeddings are no stream, and only a chat's usage is asked for.
                let body = call(stream && path != EMBEDDINGS, usage && path == CHAT, words);
                let expected = reply(&direct, &path, &body).await;
                for client in [through.over_http2().unwrap(), through.clone()] {
                    let got = reply(&client, &path, &body).await;
                    assert_eq!(got, expected, "{path} of {words} words, stream {stream}, usage {usage}");
                    compared += 1;
                }
            }
        }
    }
    let metrics = stack
        .operators()
        .wait_for_metrics("all calls are settled", SLACK, |metrics| {
            metrics.sum("sluice_settlements_total", &[]) == compared
        })
        .await
        .unwrap();
    // Those of `generate` and `generate_stream`, as nobody reports them.
    let estimated = metrics.sum("sluice_settlements_total", &[("usage", "estimated")]);
    assert_eq!(estimated, compared / paths().len() as u64 * 2);
}

/// A path of each dialect that calls can take upstream; gRPC's replies are compared by Triton's clients.
fn paths() -> Vec<String> {
    let of_model = |what: &str| format!("/v2/models/{MODEL}/{what}");
    let fixed = [
        CHAT,
        "/v1/completions",
        "/v1/responses",
        EMBEDDINGS,
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/images/generations",
        "/v1/audio/transcriptions",
        "/own",
    ];
    let kserve = ["infer", "generate", "generate_stream"].map(of_model);
    fixed.map(str::to_owned).into_iter().chain(kserve).collect()
}

/// What every dialect can read. The upstream does as it says; that it is asked for the usage does not show.
fn call(stream: bool, usage: bool, words: u64) -> Value {
    let mut body = json!({
        "model": MODEL, "stream": stream, "max_tokens": 500,
        "messages": [{"role": "user", "content": "Hello"}], "prompt": "Hello", "input": "Hello", "text_input": "Hello",
        "metadata": {"behave": {"words": words}},
    });
    if usage {
        body["stream_options"] = json!({"include_usage": true});
    }
    body
}

/// The status, the kind of body and the body.
async fn reply(client: &Client, path: &str, body: &Value) -> (u16, Option<String>, String) {
    let reply = send(client.request(Method::POST, path).json(body)).await.unwrap();
    assert!(!reply.broken, "{path}: {}", reply.summary());
    (reply.status, reply.header("content-type").map(str::to_owned), reply.text())
}
