//! A tenant's limits refuse its own calls, say why and until when, and nobody else notices.

use e2e::client::{Chat, Client, Reply};
use e2e::stack::{MODEL, Stack};
use e2e::tenant::Tenant;
use e2e::wait::{let_pass, wait_until};
use futures_util::future::join_all;
use serde_json::json;
use std::time::Duration;
use tokio::task::JoinHandle;

const SLACK: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn the_fourth_call_of_a_tenant_limited_to_3_is_refused_and_other_tenants_do_not_notice() {
    let stack = Stack::builder("tenant-concurrency")
        .capacity(8)
        .tenant(Tenant::new("small").limit("concurrent", 3))
        .tenant(Tenant::new("other"))
        .start()
        .await
        .unwrap();
    let calls = stack.upstream.calls();
    let (small, other) = (stack.client("small").unwrap(), stack.client("other").unwrap());
    calls.hold();
    let running: Vec<JoinHandle<Reply>> = (0..3).map(|_| spawn(&small, Chat::to(MODEL))).collect();
    wait_until("three calls run", SLACK, || async { calls.running() == 3 }).await.unwrap();

    let fourth = small.chat(&Chat::to(MODEL)).await.unwrap();
    assert_refused(&fourth, "tenant_concurrency");
    assert!(fourth.retry_after().is_some(), "{}", fourth.summary());
    assert_eq!(calls.running(), 3, "the refused call did not reach the model");
    let neighbour = spawn(&other, Chat::to(MODEL));
    wait_until("the neighbour's call runs", SLACK, || async { calls.running() == 4 }).await.unwrap();

    calls.release();
    for reply in running.into_iter().chain([neighbour]) {
        let reply = reply.await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.summary());
    }
    stack.operators().wait_until_idle(SLACK).await.unwrap();
    let again = small.chat(&Chat::to(MODEL)).await.unwrap();
    assert_eq!(again.status, 200, "{}", again.summary());
}

/// How often it is refused before, with calls of 4 seconds, is a test of `policy`, where time is an argument.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_as_told_is_served_once_a_call_of_its_tenant_has_ended() {
    let stack = Stack::builder("tenant-retry-after")
        .capacity(8)
        .tenant(Tenant::new("small").limit("concurrent", 3))
        .start()
        .await
        .unwrap();
    let calls = stack.upstream.calls();
    let small = stack.client("small").unwrap();
    calls.hold();
    let running: Vec<JoinHandle<Reply>> = (0..3).map(|_| spawn(&small, Chat::to(MODEL))).collect();
    wait_until("three calls run", SLACK, || async { calls.running() == 3 }).await.unwrap();
    let refused = small.chat(&Chat::to(MODEL)).await.unwrap();
    assert_refused(&refused, "tenant_concurrency");
    calls.release();
    stack.operators().wait_until_idle(SLACK).await.unwrap();
    let_pass(refused.retry_after().unwrap()).await;
    assert_eq!(small.chat(&Chat::to(MODEL)).await.unwrap().status, 200);
    for reply in running {
        assert_eq!(reply.await.unwrap().status, 200);
    }
}

/// The end of one call and the next call come from different workers, in either order. Here the next call waits longer than
/// it does unless configured, so that a machine that stands still refuses nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_calls_one_after_the_other_are_served_at_a_concurrency_of_1_and_n_callers_at_one_of_n() {
    const CALLS: usize = 1_000;
    for callers in [1, 4] {
        let stack = Stack::builder("tenant-one-after-the-other")
            .capacity(8)
            .workers(2)
            .tenant(Tenant::new("small").limit("concurrent", callers as u64))
            .sidecar_config(|config| config["queue"]["concurrent_wait_ms"] = json!(1_000))
            .start()
            .await
            .unwrap();
        let small = stack.client("small").unwrap();
        for over_http2 in [false, true] {
            // Each takes turns over connections of its own, and Envoy gives those to both workers.
            let connect = || if over_http2 { small.over_http2().unwrap() } else { small.apart().unwrap() };
            let caller = async |_| {
                let connections = [(); 4].map(|()| connect());
                for call in 0..CALLS / callers {
                    let reply = connections[call % 4].chat(&Chat::to(MODEL)).await.unwrap();
                    assert_eq!(reply.status, 200, "call {call}, HTTP/2 {over_http2}: {}", reply.summary());
                }
            };
            join_all((0..callers).map(caller)).await;
        }
        assert_eq!(stack.upstream.calls().count(), 2 * CALLS);
        assert!(stack.upstream.calls().max_running() <= callers);
        stack.operators().wait_until_idle(SLACK).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_the_queue_count_towards_a_tenants_concurrency() {
    let stack = Stack::builder("tenant-queued")
        .capacity(1)
        .tenant(Tenant::new("small").limit("concurrent", 3))
        .start()
        .await
        .unwrap();
    let small = stack.client("small").unwrap();
    stack.upstream.calls().hold();
    let callers: Vec<JoinHandle<Reply>> = (0..3).map(|_| spawn(&small, Chat::to(MODEL))).collect();
    stack.operators().wait_for_queued(2, SLACK).await.unwrap();
    assert_refused(&small.chat(&Chat::to(MODEL)).await.unwrap(), "tenant_concurrency");
    stack.upstream.calls().release();
    for reply in callers {
        assert_eq!(reply.await.unwrap().status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_per_second_and_per_minute_refuse_what_is_over_and_tell_what_is_left() {
    let stack = Stack::builder("tenant-requests")
        .tenant(Tenant::new("by-second").limit("requests_per_s", 2))
        .tenant(Tenant::new("by-minute").limit("requests_per_min", 3))
        .tenant(Tenant::new("other"))
        .start()
        .await
        .unwrap();

    let by_second = stack.client("by-second").unwrap();
    // At once: of these only what the burst holds is served, and one more for each half of a second that they take.
    let replies = join_all((0..20).map(|_| spawn(&by_second, Chat::to(MODEL)))).await;
    let refused =
        replies.into_iter().map(Result::unwrap).find(|reply| reply.status != 200).expect("one of 20 is refused");
    assert_refused(&refused, "tenant_requests_per_second");
    let_pass(refused.retry_after().unwrap()).await;
    assert_eq!(by_second.chat(&Chat::to(MODEL)).await.unwrap().status, 200, "after retry-after");

    let by_minute = stack.client("by-minute").unwrap();
    for remaining in [2, 1, 0] {
        let reply = by_minute.chat(&Chat::to(MODEL)).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.summary());
        assert_eq!(reply.header("x-ratelimit-limit-requests"), Some("3"));
        assert_eq!(reply.header("x-ratelimit-remaining-requests"), Some(remaining.to_string().as_str()));
        assert!(is_go_duration(reply.header("x-ratelimit-reset-requests").unwrap()));
    }
    let refused = by_minute.chat(&Chat::to(MODEL)).await.unwrap();
    assert_refused(&refused, "tenant_requests_per_minute");
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), Some("0"));
    assert!(refused.retry_after().unwrap() <= Duration::from_secs(60));
    let neighbour = stack.client("other").unwrap().chat(&Chat::to(MODEL)).await.unwrap();
    assert_eq!(neighbour.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_per_minute_counts_what_the_model_really_used() {
    let stack = Stack::builder("tenant-tokens")
        .tenant(Tenant::new("frugal").limit("tokens_per_min", 1000))
        .start()
        .await
        .unwrap();
    let client = stack.client("frugal").unwrap();
    let costly = Chat::to(MODEL).behave(json!({"usage": {"input": 11, "output": 950}}));
    let reply = client.chat(&costly).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.summary());
    assert_eq!(reply.header("x-ratelimit-limit-tokens"), Some("1000"));
    assert!(reply.header("x-ratelimit-remaining-tokens").is_some());
    assert!(is_go_duration(reply.header("x-ratelimit-reset-tokens").unwrap()));
    stack
        .operators()
        .wait_for_metrics("the call is settled", SLACK, |metrics| {
            metrics.sum("sluice_tokens_total", &[("tenant", "frugal")]) >= 961
        })
        .await
        .unwrap();
    // 39 tokens are left, and a few more have come since.
    let refused = client.chat(&Chat::to(MODEL).max_tokens(500)).await.unwrap();
    assert_refused(&refused, "tenant_tokens_per_minute");
    assert!(refused.header("x-ratelimit-remaining-tokens").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_is_used_up_is_insufficient_quota_until_the_tenants_next_day() {
    let stack = Stack::builder("tenant-budgets")
        .redis()
        .tenant(Tenant::new("frugal").tokens_per_day(1000))
        .tenant(Tenant::new("poor").budget("micros_per_month", 5000))
        .sidecar_config(|config| {
            config["models"] = json!([{"name": MODEL, "price": {"output_micros_per_million": 10_000_000}}]);
        })
        .start()
        .await
        .unwrap();
    let redis = stack.redis.as_ref().unwrap();
    for (tenant, output, reason) in [("frugal", 950, "tenant_tokens_per_day"), ("poor", 480, "tenant_money_per_month")]
    {
        let client = stack.client(tenant).unwrap();
        let costly = Chat::to(MODEL).max_tokens(400).behave(json!({"usage": {"input": 11, "output": output}}));
        assert_eq!(client.chat_leased(&costly, SLACK).await.unwrap().status, 200);
        stack.operators().wait_until_idle(SLACK).await.unwrap();
        let refused = client.chat_leased(&Chat::to(MODEL).max_tokens(300), SLACK).await.unwrap();
        assert_eq!((refused.status, refused.reason()), (429, Some(reason)), "{}", refused.summary());
        let error = &refused.json()["error"];
        assert_eq!((&error["code"], &error["type"]), (&json!("insufficient_quota"), &json!("insufficient_quota")));
        assert_eq!(refused.header("x-should-retry"), Some("false"));
        // The longest month, and the half minute by which clients are spread.
        assert!(refused.retry_after().unwrap() <= Duration::from_secs(31 * 86_400 + 31));
        // What is left is enough for less.
        let small = Chat::to(MODEL).max_tokens(16);
        assert_eq!(client.chat_leased(&small, SLACK).await.unwrap().status, 200);
        let field = if tenant == "poor" { "meter:money_per_month" } else { "meter:tokens_per_day" };
        let kept = redis.cli(&["HGET", &format!("sluice:{{tenant:{tenant}}}"), field]).unwrap();
        assert!(kept.contains("\"period\":20"), "{kept}");
    }
}

fn spawn(client: &Client, chat: Chat) -> JoinHandle<Reply> {
    let client = client.clone();
    tokio::spawn(async move { client.chat(&chat).await.unwrap() })
}

/// 429 in OpenAI's words, with the reason and an honest time.
fn assert_refused(reply: &Reply, reason: &str) {
    assert_eq!((reply.status, reply.reason()), (429, Some(reason)), "{}", reply.summary());
    let error = &reply.json()["error"];
    assert_eq!(error["code"], "rate_limit_exceeded", "{error}");
    assert!(error["type"].is_string() && error["message"].is_string(), "{error}");
    assert!(error.get("param").is_some(), "{error}");
    let retry_after = reply.retry_after().expect("retry-after");
    assert!(retry_after >= Duration::from_secs(1), "{retry_after:?}");
    let precise: u64 = reply.header("retry-after-ms").expect("retry-after-ms").parse().unwrap();
    assert!(Duration::from_millis(precise) <= retry_after, "retry-after is retry-after-ms, rounded up");
}

/// Such as `1m30s`, `12ms` or `0s`.
fn is_go_duration(text: &str) -> bool {
    let units = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    text.starts_with(|c: char| c.is_ascii_digit()) && units.starts_with(['h', 'm', 's'])
}
