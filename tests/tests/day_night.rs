//! Internal departments have the pool by day, customers by night, and the hour between them costs nobody a place.

use e2e::admin::Operators;
use e2e::client::{Chat, Client, Reply};
use e2e::folder::Folder;
use e2e::paths;
use e2e::scene::said;
use e2e::stack::{MODEL, POOL, Stack, StackBuilder};
use e2e::tenant::Tenant;
use e2e::upstream::{Call, CallLog};
use e2e::wait::wait_for;
use serde_json::{Value, json};
use std::cell::Cell;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

const SLACK: Duration = Duration::from_secs(60);
const CAPACITY: u64 = 4;
/// Per tenant. The largest share of the pool is about half of its 4 slots, so every tenant always has callers waiting.
const CALLERS: usize = 10;

const DAY_WEIGHTS: [u64; 10] = [256, 128, 64, 32, 16, 4, 2, 1, 1, 1];
const NIGHT_WEIGHTS: [u64; 10] = [16, 16, 16, 16, 16, 64, 32, 32, 16, 8];

/// 17:00 in Shanghai on 15 January 2026.
const START_UNIX_MS: i64 = 1_768_467_600_000;
const HOUR_MS: i64 = 3_600_000;
/// 18:00 and the next 08:00.
const NIGHTFALL_UNIX_MS: i64 = START_UNIX_MS + HOUR_MS;
const MORNING_UNIX_MS: i64 = NIGHTFALL_UNIX_MS + 14 * HOUR_MS;

/// An hour in 20 seconds.
const SPEED: u64 = 180;

/// Starts that are counted on each side of the boundary, at least.
const LEAST_STARTS: usize = 200;
/// More of them by night only take time.
const ENOUGH_STARTS: usize = 1_000;
/// Around a share of 80%: 5 percentage points. Settled in whole calls of 4 slots, a correct scheduler comes within 2.
const TOLERANCE: f64 = 0.05;

#[tokio::test(flavor = "multi_thread")]
async fn at_18_hours_the_pool_turns_from_80_20_to_20_80_and_no_waiter_is_lost() {
    // Counted from the sidecar's own start: enough for a backlog and the starts of the day.
    let mut stack = scene("day-night", SPEED).start().await.unwrap();
    stack.sidecar.restart().await.unwrap();
    let calls = stack.upstream.calls().clone();
    let operators = stack.operators().clone();
    let status = operators.get("/admin/time-rules/status").await.unwrap();
    assert_eq!(status["next_change_unix_ms"], NIGHTFALL_UNIX_MS, "{status}");
    assert_eq!(status["rules"][0]["active"], false, "{status}");

    let closing_time = Arc::new(AtomicBool::new(false));
    let mut callers = Vec::new();
    for tenant in stack.tenants.iter().map(|tenant| tenant.id.clone()) {
        let client = stack.client(&tenant).unwrap();
        callers.extend((0..CALLERS).map(|_| call_until(&closing_time, &client)));
    }
    let everybody_waits = callers.len() as u64 - CAPACITY - 6;
    wait_for("a backlog of all tenants", SLACK, || async {
        (operators.queued_now().await.ok()? >= everybody_waits).then_some(())
    })
    .await
    .unwrap();
    let first = calls.count();
    assert_eq!(operators.stats().await.unwrap()["active_time_rules"], json!([]), "the backlog stands before nightfall");

    let (dusk, boundary) = nightfall(&operators, &calls).await;
    assert!(operators.queued_now().await.unwrap() > 0, "the shares flip while callers wait");
    let status = operators.get("/admin/time-rules/status").await.unwrap();
    assert_eq!(status["rules"][0]["active"], true, "{status}");
    assert_eq!(status["next_change_unix_ms"], MORNING_UNIX_MS, "{status}");

    let dark = boundary + CAPACITY as usize;
    let enough = dark + (dusk - first).clamp(LEAST_STARTS, ENOUGH_STARTS);
    wait_for("starts by night", SLACK, || async { (calls.count() >= enough).then_some(()) }).await.unwrap();
    closing_time.store(true, Ordering::Relaxed);
    let mut served = 0;
    for caller in callers {
        let replies = caller.await.unwrap();
        for reply in &replies {
            assert_eq!(reply.status, 200, "{}", reply.summary());
        }
        served += replies.len();
    }
    assert_eq!(served, calls.count(), "everyone who called was served, once");
    assert_eq!(calls.max_running(), CAPACITY as usize);

    let all = calls.all();
    let (day, night) = (&all[first..dusk], &all[dark..enough]);
    assert!(day.len() >= LEAST_STARTS && night.len() >= LEAST_STARTS, "{} and {}", day.len(), night.len());
    assert_share(day, "internal", 0.8);
    assert_share(night, "internal", 0.2);
    // Inside a group the levels' weights decide: by day P1, P2, P3 are 128, 64, 32, by night P5, P7, P9 are 64, 32, 8.
    assert_share(day, "dept-a", 0.8 * 128.0 / 224.0);
    assert_share(night, "premium", 0.8 * 64.0 / 104.0);
    assert_share(night, "free", 0.8 * 8.0 / 104.0);
    stack.operators().wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn at_8_hours_the_day_is_back_as_it_is_configured() {
    // The night in 5 seconds.
    let stack = scene("day-night-morning", 10_000).start().await.unwrap();
    let operators = stack.operators();
    for (rules, weights, shares) in [
        (json!(["night"]), NIGHT_WEIGHTS, json!({"internal": 20, "external": 80})),
        (json!([]), DAY_WEIGHTS, json!({"internal": 80, "external": 20})),
    ] {
        // One reply, since the night may be over before the next.
        let status = wait_for(&format!("the rules {rules} hold"), SLACK, || async {
            let status = operators.get("/admin/time-rules/status").await.ok()?;
            (active_of(&status) == rules).then_some(status)
        })
        .await
        .unwrap();
        assert_eq!(status["effective"]["weights"], json!(weights), "{status}");
        assert_eq!(status["effective"]["pools"][POOL]["shares"], shares, "{status}");
        wait_for(&format!("the statistics of {rules}"), SLACK, || async {
            let stats = operators.stats().await.ok()?;
            (stats["active_time_rules"] == rules && stats["weights"] == json!(weights)).then_some(())
        })
        .await
        .unwrap();
    }
    let log = stack.sidecar.log();
    assert!(log.lines().any(|line| line.contains("audit") && line.contains("active now: [night]")), "{log}");
}

#[test]
fn every_mistake_in_weights_and_time_rules_is_named_at_once_and_the_exit_code_is_64() {
    let wrong = [
        ("queue.weights", "must be"),
        ("pools[0].shares", "nobody"),
        ("time_rules[0].set.weights[1]", "found 0"),
        ("time_rules[0].set.weights[2]", "found -5"),
        ("time_rules[1].set.weights", "found 11"),
        ("time_rules[2].zone", "Mars/Olympus"),
        ("time_rules[2].to", "24:00"),
        ("time_rules[3].set.pools[0].name", "is required"),
        ("time_rules[4].set.pools[0].name", "there is no pool elsewhere"),
        ("time_rules[6].overrides", "late and later set weights differently and overlap"),
        ("time_rules[7].set", "sets nothing"),
        ("tenants[0].weight", "0"),
    ];
    assert_refused("bad-rules", BAD_RULES, &wrong);
}

#[test]
fn weights_of_0_or_less_of_11_and_of_no_integer_are_refused_wherever_they_stand() {
    let eleven = "[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]";
    let ten_with = |odd: &str| format!("[1, 1, 1, 1, {odd}, 1, 1, 1, 1, 1]");
    for weights in [ten_with("0"), ten_with("-1"), ten_with("1.5"), ten_with("x"), eleven.to_owned()] {
        let rule = "{name: r, zone: UTC, from: \"01:00\", to: \"02:00\", set: {weights: WEIGHTS}}";
        let rules = format!("{SOUND}time_rules: [{}]\n", rule.replace("WEIGHTS", &weights));
        let queue = format!("{SOUND}queue: {{weights: {weights}}}\n");
        let element = if weights == eleven { "" } else { "[4]" };
        assert_refused("bad-rule-weights", &rules, &[(&format!("time_rules[0].set.weights{element}"), "must be")]);
        assert_refused("bad-weights", &queue, &[("queue.weights", "must be")]);
    }
}

#[test]
fn what_is_not_a_number_is_named_with_its_path_and_hides_no_other_mistake() {
    let config = format!(
        "{SOUND}queue: {{weights: [1, .nan, 1, 1, 1, 1, 1, 1, 1, 1], timeout_ms: .nan, depth_per_tenant: 0}}\n"
    );
    let wrong = [("queue.weights", "must be"), ("queue.timeout_ms", "must be"), ("queue.depth_per_tenant", "must be")];
    assert_refused("bad-nan", &config, &wrong);
}

/// Checks that `check-config` names all of these, each by its path and with these words, and ends with 64.
fn assert_refused(name: &str, config: &str, wrong: &[(&str, &str)]) {
    let folder = Folder::create(name).unwrap();
    folder.write("bad.yaml", config).unwrap();
    let output = Command::new(paths::built("quota-service").unwrap())
        .current_dir(folder.path())
        .args(["check-config", "--config", "bad.yaml"])
        .output()
        .unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(64), "{config}\n{said}");
    for (path, problem) in wrong {
        let told = said.lines().any(|line| line.starts_with(path) && line.contains(problem));
        assert!(told, "{path} ({problem}) is not in:\n{said}");
    }
}

/// The company: three departments and three kinds of customers, and the clock of a rehearsal.
fn scene(name: &str, speed: u64) -> StackBuilder {
    let casting = [
        ("dept-a", "internal", 1),
        ("dept-b", "internal", 2),
        ("dept-c", "internal", 3),
        ("premium", "external", 5),
        ("standard", "external", 7),
        ("free", "external", 9),
    ];
    let stack = Stack::builder(name).capacity(CAPACITY).sidecar_config(move |config| {
        config["rehearsal"] = json!({"start_unix_ms": START_UNIX_MS, "speed": speed});
        config["queue"]["weights"] = json!(DAY_WEIGHTS);
        // A department is internal by its tier; customers are external by theirs.
        config["groups"] =
            json!([{"name": "internal", "tiers": ["internal"]}, {"name": "external", "tiers": ["external"]}]);
        config["pools"][0]["shares"] = json!({"internal": 80, "external": 20});
        config["time_rules"] = json!([{
            "name": "night",
            "zone": "Asia/Shanghai",
            "from": "18:00",
            "to": "08:00",
            "set": {
                "weights": NIGHT_WEIGHTS,
                "pools": [{"name": POOL, "shares": {"internal": 20, "external": 80}}],
            },
        }]);
    });
    casting.into_iter().fold(stack, |stack, (id, tier, level)| stack.tenant(Tenant::new(id).tier(tier).priority(level)))
}

/// A caller that calls again as soon as it was answered, until it is told to stop.
fn call_until(stop: &Arc<AtomicBool>, client: &Client) -> JoinHandle<Vec<Reply>> {
    let (stop, client) = (Arc::clone(stop), client.clone());
    // Equal sizes, so that tokens and starts are the same thing.
    let usage = json!({"input": 40, "output": 20, "cached": 0});
    let chat = Chat::to(MODEL).max_tokens(20).behave(json!({"delay_ms": 20, "usage": usage}));
    tokio::spawn(async move {
        let mut replies = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            replies.push(client.chat(&chat).await.unwrap());
        }
        replies
    })
}

/// Waits for the night. Gives how many calls had surely begun by the rules of the day, and a number after which all begin by
/// those of the night, but for those on their way to the model, at most as many as there are slots.
async fn nightfall(operators: &Operators, calls: &CallLog) -> (usize, usize) {
    let dusk = Cell::new(0);
    wait_for("the night's rule holds", SLACK, || async {
        let begun = calls.count();
        let active = operators.stats().await.ok()?["active_time_rules"].clone();
        if active == json!([]) {
            dusk.set(begun);
        }
        (active == json!(["night"])).then_some(())
    })
    .await
    .unwrap();
    (dusk.get(), calls.count())
}

/// Names of the rules that hold.
fn active_of(status: &Value) -> Value {
    let active = status["rules"].as_array().into_iter().flatten().filter(|rule| rule["active"] == true);
    active.map(|rule| rule["name"].clone()).collect()
}

/// Of these calls, the part that came from a tenant or a tier.
fn assert_share(calls: &[Call], of: &str, expected: f64) {
    let is_of = |call: &&Call| [call.header("x-tenant-id"), call.header("x-tenant-tier")].contains(&Some(of));
    let share = calls.iter().filter(is_of).count() as f64 / calls.len() as f64;
    eprintln!("{of}: {share:.3} of {} starts, expected {expected:.3}", calls.len());
    assert!((share - expected).abs() <= TOLERANCE, "{of} had {share:.3} of {} starts, not {expected:.3}", calls.len());
}

/// What every configuration needs, without anything wrong.
const SOUND: &str = "\
version: 1
listeners: {filter: {unix: a.sock}, operators: {token_file: token}}
pools: [{name: smol, models: [m], capacity: {concurrent: 1}}]
";

const BAD_RULES: &str = "\
version: 1
listeners: {filter: {unix: a.sock}, operators: {token_file: token}}
queue: {weights: [256, 128, 64, 32, 16, 8, 4, 2, 1, 0]}
pools: [{name: smol, models: [m], capacity: {concurrent: 1}, shares: {nobody: 80}}]
tenants: [{id: t, weight: 0}]
time_rules:
  - {name: numbers, zone: UTC, from: \"01:00\", to: \"02:00\", set: {weights: [1, 0, -5, 1, 1, 1, 1, 1, 1, 1]}}
  - {name: eleven, zone: UTC, from: \"02:00\", to: \"03:00\", set: {weights: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]}}
  - {name: clock, zone: Mars/Olympus, from: \"18:00\", to: \"24:00\", set: {weights: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]}}
  - {name: nameless, zone: UTC, from: \"04:00\", to: \"05:00\", set: {pools: [{concurrent: 2}]}}
  - {name: nowhere, zone: UTC, from: \"06:00\", to: \"07:00\", set: {pools: [{name: elsewhere, concurrent: 2}]}}
  - {name: late, zone: UTC, from: \"20:00\", to: \"23:00\", set: {weights: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]}}
  - {name: later, zone: UTC, from: \"22:00\", to: \"02:00\", set: {weights: [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]}}
  - {name: idle, zone: UTC, from: \"10:00\", to: \"11:00\", set: {}}
";
