//! What operators change while calls wait: the overlay, the configuration file – and what they can ask afterwards.

use e2e::admin::Operators;
use e2e::client::{Chat, Reply};
use e2e::keys;
use e2e::scene::{Callers, change, changed, edit_config, pool_now};
use e2e::stack::quota_service::CONFIG;
use e2e::stack::{MODEL, POOL, Stack, StackBuilder};
use e2e::tenant::Tenant;
use e2e::wait::{wait_for, wait_until};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

const SLACK: Duration = Duration::from_secs(20);

const WEIGHTS: &str = "/admin/scheduler/weights";
const OVERLAY: &str = "/admin/scheduler/overlay";
const RELOAD: &str = "/admin/config/reload";

const SHIPPED_WEIGHTS: [u64; 10] = [256, 128, 64, 32, 16, 8, 4, 2, 1, 1];
const RULE_WEIGHTS: [u64; 10] = [9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
const OWN_WEIGHTS: [u64; 10] = [10, 9, 8, 7, 6, 5, 4, 3, 2, 1];

#[tokio::test(flavor = "multi_thread")]
async fn the_number_that_runs_in_the_model_follows_the_overlay_and_no_waiter_is_lost() {
    let stack = Stack::builder("overlay-capacity").capacity(2).tenant(Tenant::new("only")).start().await.unwrap();
    let (operators, calls) = (stack.operators(), stack.upstream.calls());
    calls.hold();
    let callers = Callers::start(&stack.client("only").unwrap(), &Chat::to(MODEL), 20);
    operators.wait_for_queued(18, SLACK).await.unwrap();
    // A call that was let in may still be on its way to the model.
    wait_until("2 calls run", SLACK, || async { calls.running() == 2 }).await.unwrap();
    assert_eq!(calls.max_running(), 2);

    set_capacity(operators, 5).await;
    wait_until("5 calls run", SLACK, || async { calls.running() == 5 }).await.unwrap();
    operators.wait_for_queued(15, SLACK).await.unwrap();
    assert_eq!(pool_now(operators).await.unwrap()["capacity"], 5);

    // Nobody who runs is thrown out; from the sixth on, each is alone in the model.
    set_capacity(operators, 1).await;
    assert_eq!(calls.running(), 5);
    let pool = pool_now(operators).await.unwrap();
    assert_eq!((&pool["capacity"], &pool["queued"]), (&json!(1), &json!(15)), "{pool}");
    (0..4).for_each(|_| calls.release_one());
    wait_until("4 of them have ended", SLACK, || async { calls.running() == 1 }).await.unwrap();
    assert_eq!(calls.take_max_running(), 5);
    for begun in 6..=10 {
        calls.release_one();
        wait_until("one ends and one begins", SLACK, || async { calls.count() == begun }).await.unwrap();
    }
    assert_eq!(calls.max_running(), 1);

    changed(operators, Method::DELETE, OVERLAY, None).await.unwrap();
    wait_until("the file's 2 run again", SLACK, || async { calls.running() == 2 }).await.unwrap();
    let stats = operators.stats().await.unwrap();
    assert_eq!((&stats["overlay_version"], &stats["pools"][0]["capacity"]), (&json!(3), &json!(2)), "{stats}");
    calls.release();
    callers.all_served().await.unwrap();
    assert_eq!(calls.max_running(), 2);
    operators.wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overlay_beats_the_file_and_its_rules_until_it_is_deleted() {
    let stack = with_a_rule_that_always_holds("overlay-order").start().await.unwrap();
    let operators = stack.operators();
    assert_effective(operators, 0, RULE_WEIGHTS, 3).await;
    changed(operators, Method::PUT, WEIGHTS, Some(&json!({"weights": OWN_WEIGHTS}))).await.unwrap();
    assert_effective(operators, 1, OWN_WEIGHTS, 3).await;
    // An overlay takes the place of the one before …
    set_capacity(operators, 4).await;
    assert_effective(operators, 2, RULE_WEIGHTS, 4).await;
    // … weights alone leave the rest of it.
    let told = changed(operators, Method::PUT, WEIGHTS, Some(&json!({"weights": OWN_WEIGHTS}))).await.unwrap();
    assert_eq!(told["version"], 3, "{told}");
    assert_effective(operators, 3, OWN_WEIGHTS, 4).await;

    changed(operators, Method::POST, "/admin/time-rules/apply", None).await.unwrap();
    changed(operators, Method::POST, RELOAD, None).await.unwrap();
    assert_effective(operators, 3, OWN_WEIGHTS, 4).await;
    let shown = operators.get(OVERLAY).await.unwrap();
    assert_eq!(shown["overlay"]["weights"], json!(OWN_WEIGHTS), "{shown}");

    changed(operators, Method::DELETE, OVERLAY, None).await.unwrap();
    assert_effective(operators, 4, RULE_WEIGHTS, 3).await;
    assert_eq!(operators.get(OVERLAY).await.unwrap()["overlay"], Value::Null);
    edit_config(&stack, |config| config["time_rules"] = json!([])).unwrap();
    changed(operators, Method::POST, RELOAD, None).await.unwrap();
    assert_effective(operators, 4, SHIPPED_WEIGHTS, 2).await;

    let log = stack.sidecar.log();
    for words in
        ["version 1", "version 2", "version 3", "version 4", "active now: [always]", "active now: []", "took over"]
    {
        assert!(log.lines().any(|line| line.contains("audit") && line.contains(words)), "no {words} in:\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_change_is_refused_with_every_error_and_its_path_and_changes_nothing() {
    let stack = Stack::builder("overlay-bad").tenant(Tenant::new("only")).start().await.unwrap();
    let operators = stack.operators();
    let before = operators.get(OVERLAY).await.unwrap();
    let eleven = [1; 11];
    let pools =
        json!([{"name": "elsewhere", "concurrent": 2}, {"name": POOL, "concurrent": 0, "shares": {"nobody": 1}}]);
    let refused: [(&str, Value, &[&str]); 9] = [
        (WEIGHTS, json!({"weights": [0, 1, 1, 1, -3, 1, 1, 1, 1, 1.5]}), &["weights[0]", "weights[4]", "weights[9]"]),
        (WEIGHTS, json!({"weights": eleven}), &["weights"]),
        (WEIGHTS, json!({"weights": "all"}), &["weights"]),
        (WEIGHTS, json!({}), &["weights"]),
        (WEIGHTS, json!({"wieghts": OWN_WEIGHTS}), &["weights", "wieghts"]),
        (OVERLAY, json!([1, 2]), &["."]),
        (OVERLAY, json!({}), &["."]),
        (OVERLAY, json!({"weights": null}), &["."]),
        (
            OVERLAY,
            json!({"weights": eleven, "pools": pools, "tenants": []}),
            &["weights", "pools[0].name", "pools[1].concurrent", "pools[1].shares.nobody", "tenants"],
        ),
    ];
    for (path, body, wrong) in refused {
        let reply = change(operators, Method::PUT, path, Some(&body)).await.unwrap();
        assert_eq!(reply.status, 422, "{body}: {}", reply.summary());
        let message = reply.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        for named in wrong {
            let told = message.lines().any(|line| line.starts_with(&format!("{named}: ")));
            assert!(told, "{named} of {body} is not in: {message}");
        }
        assert_eq!(message.lines().count(), wrong.len() + 1, "{body}: {message}");
    }
    let not_json = reqwest::Client::new().put(format!("{}{WEIGHTS}", operators.base())).body("weights");
    let reply =
        not_json.bearer_auth(operators.token()).header("content-type", "application/json").send().await.unwrap();
    assert_eq!(reply.status(), 400);
    assert_eq!(operators.get(OVERLAY).await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sets_weights_does_not_have_other_changes_passed_over_in_silence() {
    let stack = Stack::builder("overlay-silence").tenant(Tenant::new("only")).start().await.unwrap();
    let body = json!({"weights": OWN_WEIGHTS, "pools": [{"name": POOL, "concurrent": 1}]});
    let reply = change(stack.operators(), Method::PUT, WEIGHTS, Some(&body)).await.unwrap();
    assert_eq!(reply.status, 422, "{}", reply.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_and_every_explanation_needs_the_token() {
    let stack = Stack::builder("control-token").tenant(Tenant::new("only")).start().await.unwrap();
    let operators = stack.operators();
    let key = stack.key("only").unwrap();
    for (method, path) in [
        (Method::PUT, WEIGHTS),
        (Method::GET, OVERLAY),
        (Method::PUT, OVERLAY),
        (Method::DELETE, OVERLAY),
        (Method::GET, "/admin/time-rules/status"),
        (Method::POST, "/admin/time-rules/apply"),
        (Method::POST, RELOAD),
        (Method::GET, "/admin/explain/some-id"),
    ] {
        for token in [None, Some("wrong"), Some(key)] {
            let request = reqwest::Client::new().request(method.clone(), format!("{}{path}", operators.base()));
            let request = request.json(&json!({"weights": OWN_WEIGHTS}));
            let request = if let Some(token) = token { request.bearer_auth(token) } else { request };
            assert_eq!(request.send().await.unwrap().status(), 401, "{method} {path} with {token:?}");
        }
    }
    let stats = operators.stats().await.unwrap();
    assert_eq!((&stats["overlay_version"], &stats["config_reloads"]), (&json!(0), &json!(0)), "{stats}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_brings_tenants_keys_and_limits_while_others_go_on_waiting() {
    let stack =
        Stack::builder("reload").capacity(1).tenant(Tenant::new("old").limit("concurrent", 4)).start().await.unwrap();
    let (operators, calls) = (stack.operators(), stack.upstream.calls());
    let (old, chat) = (stack.client("old").unwrap(), Chat::to(MODEL));
    calls.hold();
    let mut callers = Callers::start(&old, &chat, 4);
    operators.wait_for_queued(3, SLACK).await.unwrap();
    assert_eq!(old.chat(&chat).await.unwrap().reason(), Some("tenant_concurrency"));

    let raw = add_tenant(&stack, "new");
    let new = stack.anonymous().unwrap().with_key(&raw);
    assert_eq!(new.chat(&chat).await.unwrap().reason(), Some("unknown_key"), "the file alone changes nothing");
    edit_config(&stack, |config| config["tenants"][0]["limits"]["concurrent"] = json!(6)).unwrap();
    changed(operators, Method::POST, RELOAD, None).await.unwrap();
    assert_eq!(operators.queued_now().await.unwrap(), 3, "whoever waited waits");
    callers.extend(Callers::start(&new, &chat, 1));
    callers.extend(Callers::start(&old, &chat, 2));
    operators.wait_for_queued(6, SLACK).await.unwrap();
    assert_eq!(old.chat(&chat).await.unwrap().reason(), Some("tenant_concurrency"), "six is the limit now");
    calls.release();
    callers.all_served().await.unwrap();

    // And away again, by the signal that daemons know.
    edit_config(&stack, |config| config["tenants"].as_array_mut().unwrap().retain(|tenant| tenant["id"] == "old"))
        .unwrap();
    stack.sidecar.signal(Signal::SIGHUP).unwrap();
    wait_for_stat(operators, "config_reloads", 2).await;
    assert_eq!(new.chat(&chat).await.unwrap().reason(), Some("unknown_key"));
    assert_eq!(old.chat(&chat).await.unwrap().status, 200);
    operators.wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capacity_and_a_pool_in_the_file_change_with_a_reload_while_callers_wait() {
    let stack = Stack::builder("reload-pools").capacity(1).tenant(Tenant::new("only")).start().await.unwrap();
    let (operators, calls) = (stack.operators(), stack.upstream.calls());
    let client = stack.client("only").unwrap();
    calls.hold();
    let mut callers = Callers::start(&client, &Chat::to(MODEL), 6);
    operators.wait_for_queued(5, SLACK).await.unwrap();
    edit_config(&stack, |config| {
        config["pools"][0]["capacity"]["concurrent"] = json!(3);
        let second = json!({"name": "second", "models": ["other-model"], "capacity": {"concurrent": 2}});
        config["pools"].as_array_mut().unwrap().push(second);
    })
    .unwrap();
    changed(operators, Method::POST, RELOAD, None).await.unwrap();
    wait_until("3 calls run", SLACK, || async { calls.running() == 3 }).await.unwrap();
    callers.extend(Callers::start(&client, &Chat::to("other-model"), 2));
    wait_until("the new pool's 2 run beside them", SLACK, || async { calls.running() == 5 }).await.unwrap();
    assert_eq!(operators.queued_now().await.unwrap(), 3);
    calls.release();
    callers.all_served().await.unwrap();
    operators.wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_is_refused_with_every_error_counted_and_the_one_before_goes_on() {
    let stack = Stack::builder("reload-bad").capacity(1).tenant(Tenant::new("only")).start().await.unwrap();
    let (operators, calls, client) = (stack.operators(), stack.upstream.calls(), stack.client("only").unwrap());
    calls.hold();
    let callers = Callers::start(&client, &Chat::to(MODEL), 3);
    operators.wait_for_queued(2, SLACK).await.unwrap();

    edit_config(&stack, |config| {
        config["pools"][0]["capacity"]["concurrent"] = json!(0);
        config["tenants"][0]["priority"]["default"] = json!(11);
        config["queue"]["weights"] = json!([1, 2]);
    })
    .unwrap();
    let reply = change(operators, Method::POST, RELOAD, None).await.unwrap();
    assert_eq!(reply.status, 422, "{}", reply.summary());
    for path in ["pools[0].capacity.concurrent", "tenants[0].priority.default", "queue.weights"] {
        assert!(reply.text().contains(path), "{path} is not in {}", reply.summary());
    }
    stack.folder.write(CONFIG, "version: [").unwrap();
    stack.sidecar.signal(Signal::SIGHUP).unwrap();
    wait_for_stat(operators, "config_reloads_refused", 2).await;
    assert_eq!(operators.stats().await.unwrap()["config_reloads"], 0);
    assert!(stack.sidecar.log().contains("pools[0].capacity.concurrent"), "the log names what is wrong as well");

    assert_eq!(operators.queued_now().await.unwrap(), 2);
    calls.release();
    callers.all_served().await.unwrap();
    operators.wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_explained_while_it_waits_while_it_runs_and_when_it_has_ended() {
    // One worker, so that the ids of its calls follow each other.
    let stack = Stack::builder("explain")
        .capacity(1)
        .workers(1)
        .tenant(Tenant::new("first").priority(1))
        .tenant(Tenant::new("second").priority(4))
        .start()
        .await
        .unwrap();
    let (operators, calls) = (stack.operators(), stack.upstream.calls());
    calls.hold();
    let usage = json!({"usage": {"input": 21, "output": 4, "cached": 1}});
    let mut callers = Callers::start(&stack.client("first").unwrap(), &Chat::to(MODEL).behave(usage.clone()), 1);
    wait_until("the first runs", SLACK, || async { calls.running() == 1 }).await.unwrap();
    let running = calls.last().unwrap().header("x-admission-id").unwrap().to_owned();
    let first = explain(operators, &running).await;
    assert_eq!((&first["fate"]["state"], &first["queue"]), (&json!("running"), &Value::Null), "{first}");
    assert_eq!((&first["tenant"], &first["model"], &first["pool"]), (&json!("first"), &json!(MODEL), &json!(POOL)));
    assert!(first["why"].as_str().unwrap().contains("admitted at once"), "{first}");

    callers.extend(Callers::start(&stack.client("first").unwrap(), &Chat::to(MODEL), 1));
    operators.wait_for_queued(1, SLACK).await.unwrap();
    callers.extend(Callers::start(&stack.client("second").unwrap(), &Chat::to(MODEL), 1));
    operators.wait_for_queued(2, SLACK).await.unwrap();
    let waiting = explain(operators, &waiting_id(operators, "second").await).await;
    assert_eq!((&waiting["fate"]["state"], &waiting["tenant"]), (&json!("waiting"), &json!("second")), "{waiting}");
    // The call that runs is charged to P1, and P4 has had nothing yet: its first call goes before P1's second.
    assert_eq!((&waiting["priority"], &waiting["queue"]["position"]), (&json!(4), &json!(1)), "{waiting}");
    assert!(waiting["queue"]["estimated_wait_ms"].is_number(), "{waiting}");
    let branch = &waiting["queue"]["branches_then"][0];
    assert_eq!(
        (&branch["priority"], &branch["waiting"], &branch["tenants"]),
        (&json!(1), &json!(1), &json!(1)),
        "{branch}"
    );
    for counter in ["group_counter", "level_counter"] {
        assert!(branch[counter].as_str().is_some_and(|text| text.parse::<u128>().is_ok()), "{counter} of {branch}");
    }

    calls.release();
    let replies = callers.all_served().await.unwrap();
    operators.wait_until_idle(SLACK).await.unwrap();
    assert_eq!(replies[0].header("x-admission-id"), Some(running.as_str()));
    let ended = explain(operators, &running).await;
    let fate = &ended["fate"];
    assert_eq!((&fate["state"], &fate["outcome"]), (&json!("ended"), &json!("completed")), "{ended}");
    assert_eq!(
        (&fate["usage"]["input"], &fate["usage"]["output"], &fate["usage"]["cached"]),
        (&json!(21), &json!(4), &json!(1))
    );
    let second = replies[2].header("x-admission-id").unwrap();
    assert_eq!(calls.all()[1].header("x-admission-id"), Some(second), "it reached the model as the second");
    let queued = explain(operators, second).await;
    assert_eq!((&queued["fate"]["state"], &queued["queue"]["position"]), (&json!("ended"), &json!(1)), "{queued}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_explained_by_the_id_in_its_reply_and_an_unknown_id_is_404() {
    let stack = Stack::builder("explain-refusal")
        .capacity(1)
        .sidecar_config(|config| config["queue"]["depth_per_level"] = json!(1))
        .tenant(Tenant::new("only"))
        .tenant(Tenant::new("gone").with("disabled", json!(true)))
        .start()
        .await
        .unwrap();
    let (operators, calls) = (stack.operators(), stack.upstream.calls());
    let client = stack.client("only").unwrap();
    calls.hold();
    let callers = Callers::start(&client, &Chat::to(MODEL), 2);
    operators.wait_for_queued(1, SLACK).await.unwrap();
    let refused = [
        ("queue_full", client.chat(&Chat::to(MODEL)).await.unwrap()),
        ("model_not_found", client.chat(&Chat::to("nobody-serves-this")).await.unwrap()),
        ("tenant_disabled", stack.client("gone").unwrap().chat(&Chat::to(MODEL)).await.unwrap()),
        ("unknown_key", stack.anonymous().unwrap().with_key("nobodys-key").chat(&Chat::to(MODEL)).await.unwrap()),
    ];
    for (reason, reply) in &refused {
        assert_eq!(reply.reason(), Some(*reason), "{}", reply.summary());
        let told = explain(operators, id_of(reply)).await;
        assert_eq!((&told["fate"]["state"], &told["fate"]["reason"]), (&json!("refused"), &json!(reason)), "{told}");
        assert!(told["why"].as_str().is_some_and(|why| why.starts_with("refused: ")), "{told}");
    }
    let full = explain(operators, id_of(&refused[0].1)).await;
    assert_eq!(full["fate"]["limit"], json!({"name": "queue.depth_per_level", "most": 1}), "{full}");
    assert_eq!((&full["tenant"], &full["pool"]), (&json!("only"), &json!(POOL)), "{full}");
    assert!(full["charge"].as_u64().is_some_and(|charge| charge > 0), "{full}");
    assert_eq!(full["queue"]["branches_then"][0]["waiting"], 1, "{full}");
    let stranger = explain(operators, id_of(&refused[3].1)).await;
    assert_eq!((&stranger["tenant"], &stranger["model"]), (&Value::Null, &json!(MODEL)), "{stranger}");
    calls.release();
    callers.all_served().await.unwrap();
    let unknown = change(operators, Method::GET, "/admin/explain/no-such-call", None).await.unwrap();
    assert_eq!(unknown.status, 404, "{}", unknown.summary());
}

fn with_a_rule_that_always_holds(name: &str) -> StackBuilder {
    Stack::builder(name).capacity(2).tenant(Tenant::new("only")).sidecar_config(|config| {
        config["time_rules"] = json!([{
            "name": "always",
            "zone": "Asia/Shanghai",
            "from": "00:00",
            "to": "00:00",
            "set": {"weights": RULE_WEIGHTS, "pools": [{"name": POOL, "concurrent": 3}]},
        }]);
    })
}

async fn set_capacity(operators: &Operators, concurrent: u64) {
    let overlay = json!({"pools": [{"name": POOL, "concurrent": concurrent}]});
    changed(operators, Method::PUT, OVERLAY, Some(&overlay)).await.unwrap();
}

async fn assert_effective(operators: &Operators, version: u64, weights: [u64; 10], capacity: u64) {
    let stats = operators.stats().await.unwrap();
    assert_eq!(stats["overlay_version"], version, "{stats}");
    assert_eq!(stats["weights"], json!(weights), "{stats}");
    assert_eq!(stats["pools"][0]["capacity"], capacity, "{stats}");
}

/// Writes a tenant with a new key into the configuration file, and gives the key.
fn add_tenant(stack: &Stack, id: &str) -> String {
    let tenant = Tenant::new(id);
    let add = |config: &mut Value| config["tenants"].as_array_mut().unwrap().push(tenant.section(Vec::new()));
    edit_config(stack, add).unwrap();
    let key = keys::new_key(stack.folder.path(), Path::new(CONFIG), id).unwrap();
    edit_config(stack, |config| {
        *config["tenants"].as_array_mut().unwrap().last_mut().unwrap() = tenant.section(vec![key.entry])
    })
    .unwrap();
    key.raw
}

async fn wait_for_stat(operators: &Operators, name: &str, value: u64) {
    wait_for(&format!("{name} is {value}"), SLACK, || async {
        (operators.stats().await.ok()?[name] == value).then_some(())
    })
    .await
    .unwrap();
}

async fn explain(operators: &Operators, id: &str) -> Value {
    operators.get(&format!("/admin/explain/{id}")).await.unwrap()
}

fn id_of(reply: &Reply) -> &str {
    reply.header("x-admission-id").unwrap_or_else(|| panic!("no id in {}", reply.summary()))
}

/// The id of the first call of a tenant that waits.
async fn waiting_id(operators: &Operators, tenant: &str) -> String {
    let queues = operators.get("/admin/scheduler/queues").await.unwrap();
    let queues = queues["busiest_queues"].as_array().unwrap();
    let mut waiting = queues.iter().flat_map(|queue| queue["next_to_start"].as_array().unwrap());
    waiting.find(|call| call["tenant"] == tenant).unwrap()["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_survives_the_sidecar_and_with_it_the_loss_of_redis_data() {
    let mut stack = Stack::builder("overlay-redis").redis().tenant(Tenant::new("only")).start().await.unwrap();
    let operators = stack.operators().clone();
    set_capacity(&operators, 7).await;
    stack.sidecar.kill();
    stack.sidecar.restart().await.unwrap();
    let overlay = || async { operators.get(OVERLAY).await.unwrap() };
    wait_until("the restarted sidecar has it", SLACK, || async { overlay().await["version"] == 1 }).await.unwrap();
    assert_eq!(overlay().await["overlay"]["pools"][POOL]["concurrent"], 7);

    let redis = stack.redis.as_ref().unwrap();
    redis.cli(&["FLUSHALL"]).unwrap();
    let stored = || redis.cli(&["HGET", "sluice:overlay", "version"]).unwrap();
    wait_until("what Redis has lost is there again", SLACK, || async { stored().trim() == "1" }).await.unwrap();
    changed(&operators, Method::DELETE, OVERLAY, None).await.unwrap();
    assert_eq!((stored().trim(), &overlay().await["version"]), ("2", &json!(2)));
}
