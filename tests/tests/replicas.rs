//! Three gateways over one Redis: together they are as exact, as fair and as busy as one.

use e2e::client::Chat;
use e2e::fleet::{Caller, Fleet, FleetBuilder, LEASE, LONG_LEASE, Load, ledger_key};
use e2e::folder::Folder;
use e2e::scene::Callers;
use e2e::stack::{MODEL, Redis};
use e2e::tenant::Tenant;
use e2e::upstream::Call;
use e2e::wait::{wait_for, wait_until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const SLACK: Duration = Duration::from_secs(30);
/// So long what a gateway told of its waiters competes for slots: docs/LEDGER.md.
const ROW_COUNTS: Duration = Duration::from_millis(250);
/// Of tests that stop calls in the upstream: none of them may reach it.
const LONG: Duration = Duration::from_secs(100);

async fn redis(name: &str) -> (Redis, Folder) {
    let folder = Folder::create(name).unwrap();
    (Redis::start(&folder).await.unwrap(), folder)
}

fn fleet(name: &str, redis: &Redis) -> FleetBuilder {
    Fleet::builder(name).redis(redis).lease(LONG_LEASE)
}

/// How long ago, by the ledger's clock, a gateway told that an urgent call waits there; waits until it has.
async fn row_age(redis: &Redis, rows: &str) -> Duration {
    let age = "local rows = redis.call('HGET', KEYS[1], ARGV[1]) or ''
local told, offset = string.match(rows, '^%d+'), redis.call('HGET', KEYS[1], 'clock_offset') or 0
if not told or not string.find(rows, '/0/urgent ', 1, true) then return '' end
local time = redis.call('TIME')
return string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000) + offset - told)";
    wait_for("the ledger knows of the urgent call", SLACK, || async {
        let printed = redis.cli(&["EVAL", age, "1", &ledger_key(), rows]).unwrap();
        Some(Duration::from_millis(printed.trim().parse().ok()?))
    })
    .await
    .unwrap()
}

/// A call that runs for so long.
fn chat(service_ms: u64) -> Chat {
    Chat::to(MODEL).behave(json!({"delay_ms": service_ms}))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_never_exceeds_the_pool_and_uses_it() {
    let (redis, _folder) = redis("replicas-bound-redis").await;
    let fleet =
        fleet("replicas-bound", &redis).longest_request(LONG).tenant(Tenant::new("only")).start().await.unwrap();
    let calls = fleet.upstream.calls();
    let mut load = Load::default();
    for gate in 0..3 {
        // Calls are long beside the way of a slot from one to the next. A gateway that has no slot for a moment expects its
        // callers to wait for long; with so few of them that is not beyond their deadline.
        load.add(&Caller::new(fleet.client(gate, "only").unwrap(), chat(1_000)), 20);
    }
    // How busy they are in between, on a machine that does nothing else, is measured by `just bench ledger`.
    for round in 1..=5 {
        calls.hold();
        wait_until("all slots are in use", SLACK, || async { calls.running() == 20 }).await.unwrap();
        calls.release();
        let before = calls.count();
        wait_until("each of them has changed hands", SLACK, || async { calls.count() >= before + 20 }).await.unwrap();
        assert_eq!(calls.max_running(), 20, "in round {round}");
    }
    let tally = load.end().await.unwrap();
    assert_eq!(calls.max_running(), 20);
    assert_eq!(tally.others(), 0, "{tally:?}");
    fleet.wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_p0_that_arrives_anywhere_overtakes_who_waits_elsewhere_and_idle_slots_change_hands() {
    let (redis, _folder) = redis("replicas-p0-redis").await;
    let builder = fleet("replicas-p0", &redis).capacity(4).longest_request(LONG);
    let fleet = builder.tenant(Tenant::new("batch")).tenant(Tenant::new("urgent").priority(0)).start().await.unwrap();
    let calls = fleet.upstream.calls();
    for arrives_at in 0..3 {
        calls.hold();
        let before = calls.count();
        let mut waiting = Callers::default();
        for gate in (0..3).filter(|gate| *gate != arrives_at) {
            waiting.extend(Callers::start(&fleet.client(gate, "batch").unwrap(), &Chat::to(MODEL), 8));
        }
        // What another gateway held idle is handed over, or the last of these would not run.
        wait_until("all slots are in use", SLACK, || async { calls.running() == 4 }).await.unwrap();
        fleet.wait_for_queued(12, SLACK).await.unwrap();
        waiting.extend(Callers::start(&fleet.client(arrives_at, "urgent").unwrap(), &Chat::to(MODEL), 1));
        let rows = format!("rows:gate-{arrives_at}");
        for next in before + 4.. {
            let (asked, age) = (Instant::now(), row_age(&redis, &rows).await);
            calls.release_one();
            wait_until("another call has the slot", SLACK, || async { calls.count() > next }).await.unwrap();
            if tenant(&calls.all()[next]) == "urgent" {
                break;
            }
            // A gateway may stand still on a busy machine, and its row is then passed over. Whether it was old enough is
            // not a matter of how often that happens.
            let at_most = age + asked.elapsed();
            assert!(at_most > ROW_COUNTS, "a P0 at gateway {arrives_at} was passed over {at_most:?} after it was told");
            assert!(
                next < before + 4 + 12,
                "12 waited before the P0 came to gateway {arrives_at}, and all of them went"
            );
        }
        calls.release();
        waiting.all_served().await.unwrap();
    }
    assert_eq!(calls.max_running(), 4);
    fleet.wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn levels_and_tenants_share_as_in_one_queue_wherever_they_call() {
    let (redis, _folder) = redis("replicas-shares-redis").await;
    let fleet = fleet("replicas-shares", &redis)
        .capacity(12)
        .longest_request(LONG)
        .tenant(Tenant::new("everywhere"))
        .tenant(Tenant::new("in-one-place"))
        .tenant(Tenant::new("below"))
        .start()
        .await
        .unwrap();
    // P5 weighs twice as much as P6, and has two tenants.
    let callers = [("everywhere", 5, [0, 1, 2].as_slice()), ("in-one-place", 5, &[0]), ("below", 6, &[1, 2])];
    let mut load = Load::default();
    for (tenant, level, gates) in callers {
        for gate in gates {
            let client = fleet.client(*gate, tenant).unwrap();
            load.add(&Caller { level: Some(level), ..Caller::new(client, chat(300)) }, 24 / gates.len());
        }
    }
    let calls = fleet.upstream.calls();
    wait_until("everybody has begun", SLACK, || async { calls.count() >= 100 }).await.unwrap();
    let from = Instant::now();
    let before = calls.count();
    // At 40 a second, a sidecar that stands still for a second misses a few of its tenants' 200.
    wait_until("600 calls have begun", LONG, || async { calls.count() >= before + 600 }).await.unwrap();
    let record = calls.record();
    load.end().await.unwrap();
    let starts = record.starts(from, Instant::now());
    let all: u64 = starts.values().sum();
    for (tenant, level, _) in callers {
        let share = starts.get(&(tenant, Some(level))).copied().unwrap_or(0) as f64 / all as f64;
        assert!((0.30..0.37).contains(&share), "{tenant} has {share:.3} of {all} starts, not a third: {starts:?}");
    }
    assert_eq!(calls.max_running(), 12);
    fleet.wait_until_idle(SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_32000_tokens_gets_its_share_of_a_rate_among_floods_of_small_ones() {
    const LARGE: u64 = 32_000;
    const SMALL: u64 = 1_000;
    let (redis, _folder) = redis("replicas-rate-redis").await;
    let fleet = fleet("replicas-rate", &redis)
        .longest_request(LONG)
        .tenant(Tenant::new("large"))
        .tenant(Tenant::new("small"))
        .sidecar_config(|_, config| {
            let pool = &mut config["pools"][0];
            // A large call is more than the bucket ever holds. Half of the rate is 24 small calls a second, which is little.
            pool["capacity"] = json!({"concurrent": 20, "tokens_per_s": 48_000, "burst_tokens": 16_000});
            pool["context_length"] = json!(65_536);
        })
        .start()
        .await
        .unwrap();
    let of = |tokens: u64| {
        let usage = json!({"input": 11, "output": tokens - 11, "cached": 0});
        Chat::to(MODEL).max_tokens(tokens - 11).behave(json!({"delay_ms": 20, "usage": usage}))
    };
    let mut load = Load::default();
    for gate in 0..3 {
        load.add(&Caller::new(fleet.client(gate, "small").unwrap(), of(SMALL)), 20);
    }
    load.add(&Caller::new(fleet.client(1, "large").unwrap(), of(LARGE)), 2);
    let calls = fleet.upstream.calls();
    let started = |tenant: &str| calls.record().spans().iter().filter(|span| span.tenant == tenant).count() as u64;
    // The first ones spend the burst, and tell the service what such calls yield.
    wait_until("both have begun", SLACK, || async { started("large") >= 2 && started("small") >= 20 }).await.unwrap();
    let before = (started("large"), started("small"));
    wait_until("8 large calls have begun", LONG, || async { started("large") >= before.0 + 8 }).await.unwrap();
    let (large, small) = ((started("large") - before.0) * LARGE, (started("small") - before.1) * SMALL);
    load.end().await.unwrap();
    let share = large as f64 / (large + small) as f64;
    assert!((0.4..0.6).contains(&share), "of the rate the large calls had {share:.2}, not half");
}

/// A pool and a tenant of each kind. Limits are what makes a tenant depend on the ledger at all.
fn with_every_outage_policy(config: &mut Value) {
    config["pools"][0]["on_ledger_outage"] = json!("open");
    let mut closed = config["pools"][0].clone();
    closed["name"] = json!("closed");
    closed["models"] = json!(["closed-model"]);
    closed["on_ledger_outage"] = json!("closed");
    config["pools"].as_array_mut().unwrap().push(closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_ledger_pools_and_tenants_stay_open_or_close_as_they_are_told() {
    let (mut redis, _folder) = redis("replicas-outage-redis").await;
    let limited = |id: &str, policy: &str| {
        Tenant::new(id).limit("requests_per_min", 6_000).with("on_ledger_outage", json!(policy))
    };
    let fleet = fleet("replicas-outage", &redis)
        .lease(LEASE)
        .replicas(2)
        .tenant(limited("open", "open"))
        .tenant(limited("closed", "closed"))
        .sidecar_config(|_, config| with_every_outage_policy(config))
        .start()
        .await
        .unwrap();
    let every = || [0, 1].into_iter().flat_map(|gate| ["open", "closed"].map(|tenant| (gate, tenant)));
    let (open_pool, closed_pool) = (Chat::to(MODEL), Chat::to("closed-model"));
    for (gate, tenant) in every() {
        let client = fleet.client(gate, tenant).unwrap();
        client.wait_until_served(&open_pool, SLACK).await.unwrap();
        client.wait_until_served(&closed_pool, SLACK).await.unwrap();
    }

    redis.kill();
    for (gate, tenant) in every() {
        let client = fleet.client(gate, tenant).unwrap();
        for chat in [&open_pool, &closed_pool] {
            let serves = tenant == "open" && chat.text() == open_pool.text();
            if serves {
                // At no moment does an outage refuse it, before, while or after the leases end.
                let reply = client.chat(chat).await.unwrap();
                assert_eq!(reply.status, 200, "gateway {gate}: {}", reply.summary());
                continue;
            }
            let reply = wait_for("calls are refused", SLACK, || async {
                client.chat(chat).await.ok().filter(|reply| reply.status != 200)
            })
            .await
            .unwrap();
            assert_eq!((reply.status, reply.reason()), (503, Some("ledger_unavailable")), "{tenant} at {gate}");
        }
    }
    for gate in 0..2 {
        for _ in 0..20 {
            let reply = fleet.client(gate, "open").unwrap().chat(&open_pool).await.unwrap();
            assert_eq!(reply.status, 200, "gateway {gate}: {}", reply.summary());
        }
    }

    redis.restart().await.unwrap();
    for (gate, tenant) in every() {
        fleet.client(gate, tenant).unwrap().wait_until_served(&closed_pool, SLACK).await.unwrap();
    }
    fleet.wait_until_idle(SLACK).await.unwrap();
}

fn tenant(call: &Call) -> &str {
    call.header("x-tenant-id").unwrap_or_default()
}
