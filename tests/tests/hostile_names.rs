//! What a client chooses to name, and what it finds out by the names that it is given.

use e2e::client::{Chat, Client, Reply, send};
use e2e::metrics::Metrics;
use e2e::stack::{MODEL, Stack};
use e2e::tenant::Tenant;
use futures_util::stream::{self, StreamExt};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SLACK: Duration = Duration::from_secs(10);
/// At once, as fast as they are answered.
const ABREAST: usize = 16;
/// A path of that many bytes still fits the headers of an Envoy that is configured for nothing less.
const LONG: usize = 58_000;
/// By how much the sidecar may grow, whatever names come: half of what ARCHITECTURE.md allows for all it keeps.
const GROWTH_BYTES_MAX: u64 = 32 << 20;

async fn answers(requests: impl Iterator<Item = RequestBuilder>) -> BTreeMap<(u16, String), usize> {
    let replies = stream::iter(requests).map(send).buffer_unordered(ABREAST);
    replies
        .fold(BTreeMap::new(), |mut counts, reply| async move {
            let reply = reply.unwrap();
            *counts.entry((reply.status, reply.reason().unwrap_or_default().to_owned())).or_insert(0) += 1;
            counts
        })
        .await
}

fn in_path(client: &Client, model: &str) -> RequestBuilder {
    client.request(Method::POST, &format!("/v2/models/{model}/infer")).body("x")
}

fn in_body(client: &Client, model: &str) -> RequestBuilder {
    client.chat_request(Chat::to(model).text())
}

fn other(number: usize, length: usize) -> String {
    format!("{number:0length$}")
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_any_length_at_full_speed_cost_the_sidecar_no_memory_and_its_other_tenants_nothing() {
    let stack = Stack::builder("hostile-names")
        .tenant(Tenant::new("hostile").limit("requests_per_min", 30))
        .tenant(Tenant::new("honest"))
        .start()
        .await
        .unwrap();
    let (hostile, stranger) = (stack.client("hostile").unwrap(), stack.anonymous().unwrap().with_key("sk-nobodys"));
    let before = stack.sidecar.resident_bytes().unwrap();

    let long = |client: &Client| (0..1_500).map(|number| in_path(client, &other(number, LONG))).collect::<Vec<_>>();
    let paths = answers(long(&hostile).into_iter().chain(long(&stranger))).await;
    // By the filter, or by an Envoy whose bound on headers is lower.
    assert!(paths.keys().all(|(status, _)| matches!(status, 404 | 429 | 431 | 503)), "{paths:?}");
    let bodies = answers((0..1_500).map(|number| in_body(&hostile, &other(number, LONG)))).await;
    assert_eq!(bodies.keys().collect::<Vec<_>>(), [&(400, "invalid_body".to_owned())]);

    let legal = answers((0..1_500).map(|number| in_path(&hostile, &other(number, 256)))).await;
    let not_found = legal[&(404, "model_not_found".to_owned())];
    let too_many = legal[&(429, "tenant_requests_per_second".to_owned())];
    assert_eq!(not_found + too_many, 1_500, "{legal:?}");
    assert!(not_found >= 100 && too_many > 0, "{legal:?}");

    let grown = stack.sidecar.resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < GROWTH_BYTES_MAX, "the sidecar has grown by {grown} bytes");
    let honest = stack.client("honest").unwrap();
    assert_eq!(honest.chat(&Chat::to(MODEL)).await.unwrap().status, 200);
    let hostile = hostile.chat(&Chat::to(MODEL)).await.unwrap();
    assert_eq!(hostile.status, 200, "what is right is not refused for what was wrong: {}", hostile.summary());
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_for_an_unknown_model_is_explained_without_what_the_client_wrote() {
    let stack = Stack::builder("unresolved").tenant(Tenant::new("only")).start().await.unwrap();
    let refused = send(in_body(&stack.client("only").unwrap(), "secret-wish")).await.unwrap();
    let told = explain(&stack, &refused).await;
    assert_eq!((&told["tenant"], &told["model"]), (&json!("only"), &Value::Null), "{told}");
    assert_eq!(told["fate"]["reason"], "model_not_found", "{told}");
    assert!(!told.to_string().contains("secret-wish"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_a_key_may_not_use_looks_to_it_like_one_that_does_not_exist() {
    let stack = Stack::builder("hidden-models")
        .tenant(Tenant::new("elsewhere").with("models", json!(["another-model"])))
        .sidecar_config(|config| {
            let pool = json!({"name": "another", "models": ["another-model"], "capacity": {"concurrent": 1}});
            config["pools"].as_array_mut().unwrap().push(pool);
        })
        .start()
        .await
        .unwrap();
    let client = stack.client("elsewhere").unwrap();
    // Names of one length, so that nothing else differs.
    let unknown = "x".repeat(MODEL.len());
    for by in [in_body, in_path] {
        let [forbidden, unknown] = [MODEL, &unknown].map(|model| by(&client, model));
        let (forbidden, unknown) = (send(forbidden).await.unwrap(), send(unknown).await.unwrap());
        assert_eq!((forbidden.status, forbidden.reason()), (404, Some("model_not_found")), "{}", forbidden.summary());
        assert_eq!(forbidden.text(), unknown.text());
        assert_eq!(told_by(&forbidden), told_by(&unknown));
        let reasons = [&explain(&stack, &forbidden).await, &explain(&stack, &unknown).await]
            .map(|told| told["fate"]["reason"].as_str().unwrap().to_owned());
        assert_eq!(reasons, ["model_not_allowed", "model_not_found"], "operators see which it was");
    }
    let metrics = stack.operators().metrics().await.unwrap();
    let count = |metrics: &Metrics, reason| metrics.sum("sluice_admissions_total", &[("reason", reason)]);
    assert_eq!(["model_not_allowed", "model_not_found"].map(|reason| count(&metrics, reason)), [2, 2]);
}

/// The headers of a reply, without what is different in every reply.
fn told_by(reply: &Reply) -> BTreeMap<String, String> {
    let own = ["x-admission-id", "date", "x-request-id", "x-envoy-upstream-service-time"];
    let headers = reply.headers.iter().filter(|(name, _)| !own.contains(&name.as_str()));
    headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn admission_ids_say_nothing_to_clients_and_all_to_operators() {
    let stack = Stack::builder("opaque-ids")
        .workers(1)
        .tenant(Tenant::new("first"))
        .tenant(Tenant::new("second"))
        .start()
        .await
        .unwrap();
    let clients = ["first", "second"].map(|tenant| stack.client(tenant).unwrap());
    let mut ids = Vec::new();
    for number in 0..40 {
        let reply = clients[number % 2].chat(&Chat::to(MODEL)).await.unwrap();
        let id = reply.header("x-admission-id").unwrap().to_owned();
        let seen = stack.upstream.calls().last().unwrap();
        assert_eq!(seen.header("x-admission-id"), Some(id.as_str()), "one id for all who see it");
        ids.push(id);
    }
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || matches!(byte, b'2'..=b'7');
    assert!(ids.iter().all(|id| id.len() == 26 && id.bytes().all(is_letter)), "{ids:?}");
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    assert!(!ids.is_sorted() && !ids.iter().rev().is_sorted(), "in no order: {ids:?}");
    // One worker made them all. Six letters that two of 40 random ids begin with alike come once in 300,000 runs.
    let beginnings: BTreeSet<&str> = ids.iter().map(|id| &id[..6]).collect();
    assert_eq!(beginnings.len(), ids.len(), "{ids:?}");
    let ends: BTreeSet<&str> = ids.iter().map(|id| &id[20..]).collect();
    assert_eq!(ends.len(), ids.len(), "{ids:?}");
    stack.operators().wait_until_idle(SLACK).await.unwrap();
    for (id, tenant) in ids.iter().zip(["first", "second"].iter().cycle()) {
        let told = stack.operators().get(&format!("/admin/explain/{id}")).await.unwrap();
        assert_eq!((&told["tenant"], &told["fate"]["state"]), (&json!(tenant), &json!("ended")), "{told}");
    }
}

async fn explain(stack: &Stack, reply: &Reply) -> Value {
    let id = reply.header("x-admission-id").unwrap_or_else(|| panic!("no id in {}", reply.summary()));
    stack.operators().get(&format!("/admin/explain/{id}")).await.unwrap()
}
