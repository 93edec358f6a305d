//! What the sidecar has acknowledged survives it, in Redis and in the embedded ledger's file: who used how much, what is
//! left of a rate, and which slots may still be in use.

use anyhow::{Context, Result};
use e2e::client::{Chat, Client, Reply};
use e2e::stack::{MODEL, Stack, StackBuilder, quota_service};
use e2e::tenant::Tenant;
use e2e::upstream::Usage;
use e2e::wait::{wait_for, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::task::JoinSet;

const SLACK: Duration = Duration::from_secs(20);
const CALLS: usize = 12;
const SLOTS: u64 = 4;

const BUDGET: u64 = 1_000_000;

/// Where the ledger is.
#[derive(Clone, Copy)]
enum Home {
    Redis,
    File,
}

fn stack(name: &str, home: Home) -> StackBuilder {
    let stack = Stack::builder(name)
        .capacity(SLOTS)
        .tenant(Tenant::new("limited").limit("tokens_per_min", 1_000_000))
        .tenant(Tenant::new("free"));
    match home {
        Home::Redis => stack.redis(),
        Home::File => stack.sidecar_config(|config| config["ledger"]["file"] = json!("run/ledger.redb")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_redis_usage_is_what_the_model_told_over_a_restart_and_a_kill() {
    usage_survives("usage-redis", Home::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_file_usage_is_what_the_model_told_over_a_restart_and_a_kill() {
    usage_survives("usage-file", Home::File).await;
}

async fn usage_survives(name: &str, home: Home) {
    let mut stack = stack(name, home).start().await.unwrap();
    call_all(&stack).await;
    // At once: what the filter still has to tell is told on the way out, or to the next one.
    stack.sidecar.signal(Signal::SIGTERM).unwrap();
    assert!(stack.sidecar.ended(SLACK).await.unwrap().success());
    stack.sidecar.restart().await.unwrap();
    stack.wait_until_acknowledged(SLACK).await.unwrap();
    assert_usage_is_what_was_told(&stack).await;

    call_all(&stack).await;
    stack.wait_until_acknowledged(SLACK).await.unwrap();
    stack.sidecar.kill();
    stack.sidecar.restart().await.unwrap();
    assert_usage_is_what_was_told(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_redis_nothing_is_lost_of_calls_that_end_just_before_a_kill() {
    nothing_is_lost("last-redis", Home::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_file_nothing_is_lost_of_calls_that_end_just_before_a_kill() {
    nothing_is_lost("last-file", Home::File).await;
}

/// A settlement that the killed sidecar kept but had not acknowledged is told again, so more may be counted than was used.
async fn nothing_is_lost(name: &str, home: Home) {
    let mut stack = stack(name, home).start().await.unwrap();
    call_all(&stack).await;
    stack.sidecar.kill();
    stack.sidecar.restart().await.unwrap();
    let told = told(&stack);
    wait_until("every call is counted", SLACK, || async {
        let counted = counted(&stack, "limited").await["total"]["input"].as_u64().unwrap_or(0)
            + counted(&stack, "free").await["total"]["input"].as_u64().unwrap_or(0);
        counted >= told.input
    })
    .await
    .unwrap();
}

/// Of calls that are running the ledger knows what was reserved; the next sidecar does not know them, and charges what
/// they used.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_outlive_their_sidecar_are_charged_to_the_budget_to_the_last() {
    let tenant = Tenant::new("on-budget").tokens_per_day(BUDGET);
    let mut stack = stack("budget-kill", Home::Redis).tenant(tenant).start().await.unwrap();
    let client = stack.client("on-budget").unwrap();
    stack.upstream.calls().hold();
    let mut calls = JoinSet::new();
    (0..SLOTS).for_each(|_| drop(calls.spawn(served(client.clone()))));
    let all = usize::try_from(SLOTS).unwrap();
    wait_until("they run", SLACK, || async { stack.upstream.calls().running() == all }).await.unwrap();
    let (_, then) = on_budget(&stack).unwrap();
    let all_are_told = || async { on_budget(&stack).is_ok_and(|(_, now)| now > then + 1) };
    wait_until("all reservations are told", SLACK, all_are_told).await.unwrap();
    let (reserved, _) = on_budget(&stack).unwrap();
    assert!(reserved > 0);

    stack.sidecar.kill();
    stack.sidecar.restart().await.unwrap();
    stack.upstream.calls().release();
    assert!(calls.join_all().await.iter().all(|reply| reply.status == 200));
    let used = told(&stack).total();
    let is_charged = || async { on_budget(&stack).is_ok_and(|(charged, _)| charged == reserved + used) };
    wait_until("all of it is charged", SLACK, is_charged).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sidecar_never_makes_more_run_than_the_pool_has() {
    let builder = stack("kill-slots", Home::File).sidecar_config(|config| {
        config["ledger"]["longest_request_ms"] = json!(60_000);
        config["ledger"]["longest_stream_ms"] = json!(60_000);
    });
    let mut stack = builder.start().await.unwrap();
    let client = stack.client("free").unwrap();
    stack.upstream.calls().hold();
    let mut calls = JoinSet::new();
    for _ in 0..3 {
        calls.spawn(served(client.clone()));
    }
    wait_until("three calls run", SLACK, || async { stack.upstream.calls().running() == 3 }).await.unwrap();

    stack.sidecar.kill();
    stack.sidecar.restart().await.unwrap();
    for _ in 0..6 {
        calls.spawn(served(client.clone()));
    }
    // A ledger that had forgotten the three would start four of the six, and seven would run.
    wait_until("all six have arrived", SLACK, || async {
        let running = u64::try_from(stack.upstream.calls().running()).unwrap();
        stack.operators().queued_now().await.is_ok_and(|queued| queued + running == 9)
    })
    .await
    .unwrap();
    assert!(stack.upstream.calls().running() <= 4);

    stack.upstream.calls().release();
    while let Some(reply) = calls.join_next().await {
        assert_eq!(reply.unwrap().status, 200);
    }
    assert!(stack.upstream.calls().max_running() <= 4, "{} ran", stack.upstream.calls().max_running());
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_good_order_gives_every_slot_back_at_once() {
    let mut stack = stack("order-slots", Home::File).start().await.unwrap();
    call_all(&stack).await;
    stack.sidecar.signal(Signal::SIGTERM).unwrap();
    assert!(stack.sidecar.ended(SLACK).await.unwrap().success());
    stack.sidecar.restart().await.unwrap();
    stack.upstream.calls().hold();
    let client = stack.client("free").unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..SLOTS {
        calls.spawn(served(client.clone()));
    }
    let all = usize::try_from(SLOTS).unwrap();
    wait_until("the whole pool runs", SLACK, || async { stack.upstream.calls().running() == all }).await.unwrap();
    stack.upstream.calls().release();
    while let Some(reply) = calls.join_next().await {
        assert_eq!(reply.unwrap().status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sidecar_on_the_same_file_does_not_start() {
    let stack = stack("locked", Home::File).start().await.unwrap();
    let path = stack.folder.path().join("envoy/quota-service.yaml");
    let config = std::fs::read_to_string(&path).unwrap();
    let operators = stack.operators().base().trim_start_matches("http://").to_owned();
    let second = config.replace("run/sluice.sock", "run/second.sock").replace(&operators, "127.0.0.1:0");
    stack.folder.write("envoy/second.yaml", &second).unwrap();
    let output = std::process::Command::new(e2e::paths::built("quota-service").unwrap())
        .current_dir(stack.folder.path())
        .args(["serve", "--config", "envoy/second.yaml"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("ledger.file") && said.contains("another process has it open"), "{said}");
}

/// Calls of both tenants, one after the other and some at once, all of them served.
async fn call_all(stack: &Stack) {
    let mut calls = JoinSet::new();
    for call in 0..CALLS {
        let client = stack.client(if call % 2 == 0 { "limited" } else { "free" }).unwrap();
        calls.spawn(served(client));
    }
    while let Some(reply) = calls.join_next().await {
        assert_eq!(reply.unwrap().status, 200);
    }
}

/// A call that comes again while Envoy finds its sidecar, or a machine that stood still has ended a lease.
async fn served(client: Client) -> Reply {
    wait_for("the service decides", SLACK, || async {
        let reply = client.chat(&Chat::to(MODEL)).await.unwrap();
        let is_decided = !matches!(reply.reason(), Some("service_unavailable" | "ledger_unavailable"));
        is_decided.then_some(reply)
    })
    .await
    .unwrap()
}

async fn assert_usage_is_what_was_told(stack: &Stack) {
    let calls = u64::try_from(stack.upstream.calls().count()).unwrap();
    wait_until("every call is counted", SLACK, || async {
        let requests = |report: Value| report["total"]["requests"].as_u64().unwrap_or(0);
        requests(counted(stack, "limited").await) + requests(counted(stack, "free").await) >= calls
    })
    .await
    .unwrap();
    let (limited, free) = (counted(stack, "limited").await, counted(stack, "free").await);
    let sum = |field: &str| [&limited, &free].iter().filter_map(|report| report["total"][field].as_u64()).sum::<u64>();
    let told = told(stack);
    assert_eq!(
        (sum("requests"), sum("input"), sum("output"), sum("cached"), sum("estimated")),
        (calls, told.input, told.output, told.cached, 0),
        "{limited:#} {free:#}"
    );
}

fn told(stack: &Stack) -> Usage {
    stack.upstream.calls().all().into_iter().filter_map(|call| call.usage).sum()
}

/// Tokens that the budget lacks, as the ledger knows it, and the number of the sidecar's last call.
fn on_budget(stack: &Stack) -> Result<(u64, u64)> {
    let accounts = quota_service::inspect(&stack.folder, "on-budget")?;
    let Some(account) = accounts.first() else { return Ok((0, 0)) };
    let number = |field: &str| account["meters"][0][field].as_u64().with_context(|| format!("no {field}: {account}"));
    let seq = account["holders"][0]["seq"].as_u64().with_context(|| format!("no seq: {account}"))?;
    Ok((BUDGET - number("level")? - number("lent")?, seq))
}

async fn counted(stack: &Stack, tenant: &str) -> Value {
    stack.operators().get(&format!("/admin/usage?tenant={tenant}")).await.unwrap()
}
