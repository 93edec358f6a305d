//! Everything that the sidecar keeps, filled at once with the largest that the wire lets in, costs a documented figure.

use e2e::stack::{MODEL, POOL, Stack};
use e2e::tenant::Tenant;
use e2e::wait::wait_until;
use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::task::JoinSet;

const SLACK: Duration = Duration::from_secs(30);
/// Those that wait do so to the end of the test.
const HANGS_AFTER: Duration = Duration::from_secs(600);
const ABREAST: usize = 32;
/// ARCHITECTURE.md, I7.
const GROWTH_BYTES_MAX: u64 = 64 << 20;
const IDS_BYTES: usize = 64;
const NAME_BYTES: usize = 256;

/// The sidecar's own socket, as Envoy speaks to it, and the key of a tenant.
#[derive(Clone)]
struct Socket {
    http: reqwest::Client,
    key: Value,
}

impl Socket {
    fn of(stack: &Stack, tenant: &str) -> Self {
        let socket = stack.folder.path().join("envoy/run/sluice.sock");
        let http = reqwest::Client::builder().unix_socket(socket).http2_prior_knowledge().timeout(HANGS_AFTER);
        let key = stack.key(tenant).unwrap();
        let digest: String = Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { http: http.build().unwrap(), key: json!({"id": key.split('_').nth(1).unwrap(), "digest": digest}) }
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let reply = self.http.post(format!("http://sidecar{path}")).json(body).send().await.unwrap();
        let status = reply.status().as_u16();
        (status, reply.json().await.unwrap_or_default())
    }

    /// What came of many questions, without what came of each.
    async fn ask_all(&self, requests: impl Iterator<Item = Value>) -> Vec<(u16, Value)> {
        stream::iter(requests)
            .map(|request| async move { self.post("/v1/admissions", &request).await })
            .buffer_unordered(ABREAST)
            .collect()
            .await
    }

    fn request(&self, id: &str, model: &str) -> Value {
        json!({
            "version": 1, "id": id, "key": self.key, "model": model, "input_tokens": 1, "max_tokens": 1, "prompts": 1,
            "sequences": 1, "stream": false, "body_bytes": 1,
        })
    }
}

/// As long as it may be, and no other's.
fn long(kind: char, number: usize, length: usize) -> String {
    let number = number.to_string();
    format!("{number}{}", kind.to_string().repeat(length - number.len()))
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_kept_is_bounded_in_bytes_whatever_comes() {
    let stack = Stack::builder("hostile-memory")
        .capacity(1)
        // Whoever waits waits to the end of the test.
        .sidecar_config(|config| config["queue"]["timeout_ms"] = json!(600_000))
        .tenant(Tenant::new("hostile"))
        .tenant(Tenant::new("other"))
        .start()
        .await
        .unwrap();
    let socket = Socket::of(&stack, "hostile");
    let before = stack.sidecar.resident_bytes().unwrap();

    fill_the_queue(&socket, &stack).await;
    fill_explanations(&socket).await;
    fill_ended_ids_and_usage(&socket).await;
    refuse_what_is_too_long(&socket).await;

    let grown = stack.sidecar.resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < GROWTH_BYTES_MAX, "the sidecar has grown by {grown} bytes");
    let metrics = stack.operators().metrics().await.unwrap();
    let models = metrics.matching("sluice_model_tokens_total", &[("kind", "input")]).count();
    assert_eq!(models, 1, "labels are names of the configuration");
    assert!(stack.operators().is_ready().await);
}

/// One call runs, and as many wait as a tenant may have waiting; their callers leave when the test ends.
async fn fill_the_queue(socket: &Socket, stack: &Stack) {
    let (status, running) = socket.post("/v1/admissions", &socket.request("runs", MODEL)).await;
    assert_eq!((status, &running["decision"]), (200, &json!("admitted")), "{running}");
    let mut waiting = JoinSet::new();
    for number in 0..1_000 {
        let mut request = socket.request(&long('q', number, IDS_BYTES), MODEL);
        request["priority"] = json!(number % 10);
        let socket = socket.clone();
        // What becomes of it is nobody's concern: the sidecar ends before it.
        waiting
            .spawn(async move { drop(socket.http.post("http://sidecar/v1/admissions").json(&request).send().await) });
    }
    wait_until("all of them wait", SLACK, || async {
        stack.operators().queued_now().await.is_ok_and(|queued| queued == 1_000)
    })
    .await
    .unwrap();
    waiting.detach_all();
}

/// Of the tenant, which are told what waited; of what is refused for its name; and of strangers.
async fn fill_explanations(socket: &Socket) {
    let full = (0..10_000).map(|number| socket.request(&long('f', number, IDS_BYTES), MODEL));
    let replies = socket.ask_all(full).await;
    assert!(replies.iter().all(|(_, reply)| reply["reason"] == "queue_full"), "{:?}", replies.first());
    let unknown =
        (0..2_000).map(|number| socket.request(&long('u', number, IDS_BYTES), &long('m', number, NAME_BYTES)));
    let replies = socket.ask_all(unknown).await;
    let is_refused = |(_, reply): &(u16, Value)| reply["status"] == 404 || reply["status"] == 429;
    assert!(replies.iter().all(is_refused), "{:?}", replies.first());
    let strangers = (0..2_000).map(|number| {
        let mut request = socket.request(&long('s', number, IDS_BYTES), &long('m', number, NAME_BYTES));
        request["key"] = json!({"id": long('k', number, NAME_BYTES), "digest": long('d', number, NAME_BYTES)});
        request["pool"] = json!(long('p', number, NAME_BYTES));
        request
    });
    let replies = socket.ask_all(strangers).await;
    assert!(replies.iter().all(|(_, reply)| reply["reason"] == "unknown_key"), "{:?}", replies.first());
}

/// Calls that this sidecar did not admit, each of a model of its own: more than ended ids are remembered.
async fn fill_ended_ids_and_usage(socket: &Socket) {
    let batches = (0..280).map(|batch| {
        let settlement = |number: usize| {
            json!({
                "id": long('e', 256 * batch + number, IDS_BYTES), "outcome": "completed",
                "usage": {"source": "reported", "input": 1, "output": 1},
                "charge_to": {
                    "tenant": "other", "pool": POOL, "model": long('m', 256 * batch + number, NAME_BYTES),
                    "prompts": 1, "sequences": 1,
                },
            })
        };
        let settlements: Vec<Value> = (0..256).map(settlement).collect();
        json!({"version": 1, "worker": long('w', batch, NAME_BYTES), "settlements": settlements})
    });
    let answers = stream::iter(batches)
        .map(|batch| async move { socket.post("/v1/settlements", &batch).await.0 })
        .buffer_unordered(4);
    let statuses: Vec<u16> = answers.collect().await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
}

/// Nothing of it is read to its end.
async fn refuse_what_is_too_long(socket: &Socket) {
    for (field, length) in [("model", 257), ("model", 15_000), ("model", 58_000), ("id", 65), ("pool", 100_000)] {
        let requests = (0..300).map(|number| {
            let mut request = socket.request("too-long", MODEL);
            request[field] = json!(long('x', number, length));
            request
        });
        let replies = socket.ask_all(requests).await;
        assert!(replies.iter().all(|(status, _)| *status == 400), "{field} of {length}: {:?}", replies.first());
    }
}
