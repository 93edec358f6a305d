//! Who is next, who is told at once that it would take too long, and what a key's name has to do with it.

use e2e::client::{Chat, Client, Reply, send};
use e2e::keys::{self, NewKey};
use e2e::scene::{Callers, changed, edit_config};
use e2e::stack::quota_service::CONFIG;
use e2e::stack::{MODEL, Stack};
use e2e::tenant::Tenant;
use e2e::upstream::CallLog;
use e2e::wait::wait_until;
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

const SLACK: Duration = Duration::from_secs(20);
const DEADLINE: &str = "x-sluice-deadline-ms";
/// How long the calls run by which a pool learns its pace.
const SERVICE: Duration = Duration::from_millis(400);

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_would_wait_beyond_its_deadline_is_refused_at_once_and_told_the_wait() {
    let stack = Stack::builder("deadline").capacity(1).tenant(Tenant::new("only")).start().await.unwrap();
    let (client, calls) = (stack.client("only").unwrap(), stack.upstream.calls());
    let pace = learn_the_pace(&stack, &client).await;
    let mut callers = six_callers(&stack, &client).await;

    // Calls are held, so whoever is answered did not wait for a slot.
    let hasty = with_deadline(&client, "1000").await.unwrap();
    assert_told_the_wait(&hasty, "deadline_unreachable");
    assert_eq!(hasty.header("x-sluice-queue-position"), Some("6"), "{}", hasty.summary());
    let estimate = estimated_wait(&hasty);
    // Six starts of a slot that takes 0.4 s and what this machine adds to it, of which its client has seen at least as much.
    let most = (pace + Duration::from_millis(1)) * 6;
    assert!((SERVICE * 6..=most).contains(&estimate), "{estimate:?}, and its client waited {pace:?}");
    assert_eq!(calls.count(), 2, "nothing of it reached the model");

    let patient = client.clone();
    callers.add(async move { with_deadline(&patient, "600000").await });
    stack.operators().wait_for_queued(6, SLACK).await.unwrap();
    calls.release();
    callers.all_served().await.unwrap();
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_bring_no_deadline_have_the_configured_one() {
    let stack = Stack::builder("deadline-default")
        .capacity(1)
        .sidecar_config(|config| config["queue"]["deadline_ms"] = json!(1_000))
        .tenant(Tenant::new("only"))
        .start()
        .await
        .unwrap();
    let (client, calls) = (stack.client("only").unwrap(), stack.upstream.calls());
    learn_the_pace(&stack, &client).await;
    calls.hold();
    let mut callers = Callers::start(&client, &Chat::to(MODEL), 1);
    wait_until("the slot is taken", SLACK, || async { calls.running() == 1 }).await.unwrap();
    for standing in 1..=5 {
        let patient = client.clone();
        callers.add(async move { with_deadline(&patient, "50000").await });
        stack.operators().wait_for_queued(standing, SLACK).await.unwrap();
    }
    let reply = client.chat(&Chat::to(MODEL)).await.unwrap();
    assert_told_the_wait(&reply, "deadline_unreachable");
    calls.release();
    callers.all_served().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_is_no_number_is_400_and_reaches_neither_queue_nor_model() {
    let stack = Stack::builder("deadline-bad").tenant(Tenant::new("only")).start().await.unwrap();
    let client = stack.client("only").unwrap();
    for malformed in ["soon", "-1", "1.5", "1e3", "+5", "", "0x10", "10 ms", "99999999999999999999"] {
        let reply = with_deadline(&client, malformed).await.unwrap();
        assert_eq!(
            (reply.status, reply.reason()),
            (400, Some("invalid_deadline")),
            "{malformed:?}: {}",
            reply.summary()
        );
        reply.check_openai_error().unwrap();
    }
    let twice = client.chat_request(Chat::to(MODEL).text()).header(DEADLINE, "100").header(DEADLINE, "200");
    let reply = send(twice).await.unwrap();
    assert_eq!((reply.status, reply.reason()), (400, Some("invalid_deadline")), "{}", reply.summary());
    assert_eq!(stack.upstream.calls().count(), 0);
    // A pool with a free slot makes nobody wait, not even those who would not.
    assert_eq!(with_deadline(&client, "0").await.unwrap().status, 200);
    assert_eq!(stack.upstream.calls().last().unwrap().header(DEADLINE), None, "it is for Sluice, not for the model");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waited_until_the_deadline_is_told_when_to_come_back() {
    let stack = Stack::builder("queue-timeout")
        .capacity(1)
        .sidecar_config(|config| config["queue"]["timeout_ms"] = json!(60_000))
        .tenant(Tenant::new("only"))
        .start()
        .await
        .unwrap();
    let (client, calls) = (stack.client("only").unwrap(), stack.upstream.calls());
    calls.hold();
    let callers = Callers::start(&client, &Chat::to(MODEL), 1);
    wait_until("the slot is taken", SLACK, || async { calls.running() == 1 }).await.unwrap();
    // Nothing has ever ended here, so no estimate can refuse them on arrival.
    let by_header = with_deadline(&client, "250").await.unwrap();
    assert_gave_up_after(&by_header, 250);
    edit_config(&stack, |config| config["queue"]["timeout_ms"] = json!(300)).unwrap();
    changed(stack.operators(), Method::POST, "/admin/config/reload", None).await.unwrap();
    assert_gave_up_after(&with_deadline(&client, "60000").await.unwrap(), 300);
    assert_eq!(calls.count(), 1);
    calls.release();
    callers.all_served().await.unwrap();
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_with_place_wait_and_retry_after_and_other_levels_do_not_notice() {
    let stack = Stack::builder("queue-full")
        .capacity(1)
        .sidecar_config(|config| {
            config["queue"]["depth_per_level"] = json!(3);
            config["queue"]["depth_per_tenant"] = json!(2);
        })
        .tenant(Tenant::new("one").priority(5))
        .tenant(Tenant::new("two").priority(5))
        .tenant(Tenant::new("other").priority(7))
        .start()
        .await
        .unwrap();
    let (operators, calls) = (stack.operators(), stack.upstream.calls());
    let client = |tenant| stack.client(tenant).unwrap();
    calls.hold();
    let mut callers = Callers::start(&client("one"), &Chat::to(MODEL), 3);
    operators.wait_for_queued(2, SLACK).await.unwrap();
    let third = client("one").chat(&Chat::to(MODEL)).await.unwrap();
    assert_told_the_wait(&third, "queue_full");
    assert!(third.text().contains("too many calls waiting"), "the tenant's own depth: {}", third.summary());

    callers.extend(Callers::start(&client("two"), &Chat::to(MODEL), 1));
    operators.wait_for_queued(3, SLACK).await.unwrap();
    let fourth = client("two").chat(&Chat::to(MODEL)).await.unwrap();
    assert_told_the_wait(&fourth, "queue_full");
    assert!(fourth.text().contains("full at P5"), "the level's depth: {}", fourth.summary());
    callers.extend(Callers::start(&client("other"), &Chat::to(MODEL), 2));
    operators.wait_for_queued(5, SLACK).await.unwrap();
    calls.release();
    callers.all_served().await.unwrap();
    operators.wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_of_a_level_take_turns_however_many_calls_each_has_waiting() {
    let stack = Stack::builder("queue-turns")
        .capacity(1)
        .tenant(Tenant::new("many"))
        .tenant(Tenant::new("few"))
        .start()
        .await
        .unwrap();
    let (operators, calls) = (stack.operators(), stack.upstream.calls());
    calls.hold();
    let mut callers = Callers::start(&stack.client("many").unwrap(), &Chat::to(MODEL), 9);
    operators.wait_for_queued(8, SLACK).await.unwrap();
    callers.extend(Callers::start(&stack.client("few").unwrap(), &Chat::to(MODEL), 3));
    operators.wait_for_queued(11, SLACK).await.unwrap();
    calls.release();
    callers.all_served().await.unwrap();
    let order = sent_upstream(calls, "x-tenant-id");
    let of_few: Vec<usize> = (0..order.len()).filter(|at| order[*at] == "few").collect();
    // The first runs already; from then on one of each, whoever begins.
    assert!(of_few.iter().zip([2, 4, 6]).all(|(at, latest)| *at <= latest), "{order:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keys_name_gives_its_calls_a_level_and_x_priority_only_lowers_it() {
    let stack = Stack::builder("key-rules")
        .sidecar_config(|config| {
            // The harness names a tenant's key `<tenant>_key`, with underscores.
            config["key_rules"] = json!([
                {"match": "dept_a_*", "priority": 0},
                {"match": "*_batch_key", "priority": 8},
                {"match": "exact_key", "priority": 3},
                {"match": "exact*", "priority": 6},
            ]);
        })
        .tenant(Tenant::new("dept-a").with("priority", json!({"default": 5, "ceiling": 5})))
        .tenant(Tenant::new("night-batch").priority(8))
        .tenant(Tenant::new("exact").priority(9))
        .tenant(Tenant::new("exactly").priority(9))
        .tenant(Tenant::new("plain").with("priority", json!({"default": 5, "ceiling": 4})))
        .start()
        .await
        .unwrap();
    for (tenant, asked, level) in [
        ("dept-a", None, "0"),
        ("dept-a", Some("0"), "0"),
        ("dept-a", Some("3"), "3"),
        ("dept-a", Some("9"), "9"),
        ("night-batch", None, "8"),
        ("night-batch", Some("0"), "8"),
        // The first rule that names a level decides it.
        ("exact", None, "3"),
        ("exactly", None, "6"),
        ("exactly", Some("2"), "6"),
        // Without a rule, the tenant's own.
        ("plain", None, "5"),
        ("plain", Some("0"), "4"),
        ("plain", Some("7"), "7"),
    ] {
        let mut request = stack.client(tenant).unwrap().chat_request(Chat::to(MODEL).text());
        if let Some(asked) = asked {
            request = request.header("x-priority", asked);
        }
        let reply = send(request).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.summary());
        let call = stack.upstream.calls().last().unwrap();
        assert_eq!(call.header("x-priority"), Some(level), "{tenant} asked for {asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_no_tenant_belongs_to_the_one_that_a_rule_gives_its_name() {
    let stack = Stack::builder("key-rules-tenant")
        .tenant(Tenant::new("dept-a"))
        .tenant(Tenant::new("dept-b").priority(4))
        .start()
        .await
        .unwrap();
    // The name is no part of the key, so a key made for one tenant serves under any name.
    let NewKey { raw, mut entry } = keys::new_key(stack.folder.path(), Path::new(CONFIG), "dept-a").unwrap();
    entry["name"] = json!("team_x_web");
    edit_config(&stack, |config| {
        config["keys"] = json!([entry]);
        config["key_rules"] = json!([{"match": "team_x_*", "tenant": "dept-b"}, {"match": "*_web", "priority": 1}]);
    })
    .unwrap();
    changed(stack.operators(), Method::POST, "/admin/config/reload", None).await.unwrap();
    let client = stack.anonymous().unwrap().with_key(&raw);
    assert_eq!(client.chat(&Chat::to(MODEL)).await.unwrap().status, 200);
    let call = stack.upstream.calls().last().unwrap();
    assert_eq!((call.header("x-tenant-id"), call.header("x-priority")), (Some("dept-b"), Some("1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_whose_output_costs_three_times_as_much_is_charged_so() {
    let stack = Stack::builder("charges")
        .sidecar_config(|config| config["charges"] = json!([{"models": [MODEL], "output_percent": 300}]))
        .tenant(Tenant::new("only"))
        .start()
        .await
        .unwrap();
    let reply = stack.client("only").unwrap().chat(&Chat::to(MODEL).max_tokens(40)).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.summary());
    let id = reply.header("x-admission-id").unwrap();
    let told = stack.operators().get(&format!("/admin/explain/{id}")).await.unwrap();
    let (reserved, charge) = (number(&told["reserved_tokens"]), number(&told["charge"]));
    assert!(reserved > 40, "the prompt counts as well: {told}");
    assert_eq!(charge, reserved + 2 * 40, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_go_by_what_calls_cost_and_not_by_their_number() {
    // One tenant's answers cost four times the other's, so it has a fourth of the turns.
    let stack = Stack::builder("charges-turns")
        .capacity(1)
        .sidecar_config(|config| {
            config["pools"][0]["models"] = json!([MODEL, "dear-model"]);
            let free_input = json!({"models": [MODEL], "input_percent": 0});
            config["charges"] =
                json!([free_input, {"models": ["dear-model"], "input_percent": 0, "output_percent": 400}]);
        })
        .tenant(Tenant::new("cheap"))
        .tenant(Tenant::new("dear"))
        .start()
        .await
        .unwrap();
    let (operators, calls) = (stack.operators(), stack.upstream.calls());
    let usage = json!({"usage": {"input": 10, "output": 50, "cached": 0}});
    let chat = |model| Chat::to(model).max_tokens(50).behave(usage.clone());
    calls.hold();
    let mut callers = Callers::start(&stack.client("cheap").unwrap(), &chat(MODEL), 41);
    operators.wait_for_queued(40, SLACK).await.unwrap();
    callers.extend(Callers::start(&stack.client("dear").unwrap(), &chat("dear-model"), 20));
    operators.wait_for_queued(60, SLACK).await.unwrap();
    calls.release();
    callers.all_served().await.unwrap();
    let order = sent_upstream(calls, "x-tenant-id");
    // While both waited: of each 5 turns one, give or take one at the ends.
    let dear = order[1..41].iter().filter(|tenant| *tenant == "dear").count();
    assert!((7..=9).contains(&dear), "{dear} of 40: {order:?}");
}

/// One runs, held in the model, and five wait.
async fn six_callers(stack: &Stack, client: &Client) -> Callers {
    stack.upstream.calls().hold();
    let callers = Callers::start(client, &Chat::to(MODEL), 6);
    stack.operators().wait_for_queued(5, SLACK).await.unwrap();
    // The one that was let in may still be on its way to the model.
    wait_until("the slot is taken", SLACK, || async { stack.upstream.calls().running() == 1 }).await.unwrap();
    callers
}

/// One call, after which it is known how long calls take here. Gives the longest that this can have been.
async fn learn_the_pace(stack: &Stack, client: &Client) -> Duration {
    let begun = Instant::now();
    let chat = Chat::to(MODEL).behave(json!({"delay_ms": SERVICE.as_millis() as u64}));
    assert_eq!(client.chat(&chat).await.unwrap().status, 200);
    stack.operators().wait_until_idle(SLACK).await.unwrap();
    begun.elapsed()
}

/// By the service's own clock. Not that it was soon after: what else could end the wait is a minute away.
fn assert_gave_up_after(reply: &Reply, millis: u64) {
    assert_told_the_wait(reply, "queue_timeout");
    let waited = reply.waited().unwrap();
    assert!(waited >= Duration::from_millis(millis), "{waited:?}");
    assert!(reply.retry_after().unwrap() >= Duration::from_secs(1));
}

async fn with_deadline(client: &Client, millis: &str) -> anyhow::Result<Reply> {
    send(client.chat_request(Chat::to(MODEL).text()).header(DEADLINE, millis)).await
}

/// Which place it would have been, on arrival or now, how long it would have taken, and when to try again.
fn assert_told_the_wait(reply: &Reply, reason: &str) {
    assert_eq!((reply.status, reply.reason()), (503, Some(reason)), "{}", reply.summary());
    reply.check_openai_error().unwrap();
    let position = reply.header("x-sluice-queue-position").and_then(|text| text.parse::<u64>().ok());
    assert!(position.is_some_and(|position| position > 0), "{:?}", reply.headers);
    let (wait, retry) = (estimated_wait(reply), reply.retry_after().expect("a retry-after"));
    // In whole seconds, rounded up, and spread by up to a tenth.
    assert!(retry >= wait && retry <= wait + wait / 10 + Duration::from_secs(1), "{retry:?} for {wait:?}");
}

fn estimated_wait(reply: &Reply) -> Duration {
    let millis = reply.header("x-sluice-estimated-wait-ms").and_then(|text| text.parse().ok());
    Duration::from_millis(millis.unwrap_or_else(|| panic!("no estimated wait in {:?}", reply.headers)))
}

/// A header of every call in the order in which they reached the model.
fn sent_upstream(calls: &CallLog, header: &str) -> Vec<String> {
    calls.all().iter().map(|call| call.header(header).unwrap_or("?").to_owned()).collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}
