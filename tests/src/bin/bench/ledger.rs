//! `bench ledger`: what three replicas ask of Redis, how busy they keep a pool, how soon a P0 gets a slot that comes free
//! elsewhere, and how far shares are from those of one queue.
//!
//! What is measured of calls is what the upstream saw, through three Envoys. Only for what Redis is asked, sidecars are
//! driven in their own protocol, as two cores cannot also carry so many calls through Envoys.

use super::{Figure, PATIENCE, doing, figure};
use anyhow::{Context, Result, ensure};
use e2e::client::Chat;
use e2e::fleet::{Caller, Direct, Fleet, Load};
use e2e::folder::Folder;
use e2e::stack::{MODEL, Redis};
use e2e::tenant::Tenant;
use e2e::wait::{let_pass, wait_until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const GATES: usize = 3;
const CAPACITY: usize = 20;
const CALLERS: usize = 500;
const LEASE_MS: u64 = 2_000;
/// In a minute of fewer starts a share is a matter of chance.
const LEAST_STARTS_PER_MINUTE: u64 = 60;
/// Longer than anybody waits.
const LONG: Duration = Duration::from_secs(300);
/// Tenants of those who are counted at Redis.
const TENANTS: usize = 10;

pub(super) const FIGURES: &[&str] =
    &["mean_running", "hand_over_ms", "hand_over_p99_ms", "share_error", "redis_commands_per_s"];

/// How much is measured, and for how long.
pub(super) struct Size {
    /// In which shares are compared, each of them this long.
    minutes: usize,
    minute: Duration,
    /// In which a mean is taken.
    windows: usize,
    window: Duration,
    hand_overs: usize,
    /// Requests a second, and how long each of them runs, in milliseconds.
    arrivals: &'static [(u64, u64)],
    most_accounts: usize,
    /// Accounts that are in use are asked for every third of a lease; of 10,000 and 2 s Redis would do nothing else.
    third_of_lease: Duration,
}

impl Size {
    pub(super) const QUICK: Self = Self {
        minutes: 1,
        minute: Duration::from_secs(2),
        windows: 1,
        window: Duration::from_millis(500),
        hand_overs: 5,
        arrivals: &[(120, 200)],
        most_accounts: 100,
        third_of_lease: Duration::from_secs(1),
    };

    pub(super) fn new(minutes: usize, window_s: u64, most_accounts: usize) -> Self {
        Self {
            minutes,
            minute: Duration::from_secs(60),
            windows: 3,
            window: Duration::from_secs(window_s),
            hand_overs: 200,
            arrivals: &[(120, 200), (1_200, 200), (20, 10), (200, 10)],
            most_accounts,
            third_of_lease: Duration::from_secs(10),
        }
    }
}

pub(super) async fn measure(size: &Size) -> Result<Vec<Figure>> {
    let mut figures = of_calls(size).await?;
    for (requests_per_s, service_ms) in size.arrivals.iter().copied() {
        doing(format!("calls to Redis at {requests_per_s} requests a second of {service_ms} ms"));
        let counted = commands(requests_per_s, service_ms, size).await?;
        figures.push(Figure { requests_per_s: Some(requests_per_s), service_ms: Some(service_ms), ..counted });
    }
    for accounts in [100, 1_000, 10_000].into_iter().filter(|accounts| *accounts <= size.most_accounts) {
        doing(format!("calls to Redis for {accounts} accounts in use"));
        figures.push(Figure { accounts: Some(accounts), ..commands_of_accounts(accounts, size).await? });
    }
    Ok(figures)
}

/// Everything that the upstream sees, with the same three gateways.
async fn of_calls(size: &Size) -> Result<Vec<Figure>> {
    doing("starting three gateways and Redis");
    let folder = Folder::create("bench-ledger-redis")?;
    let redis = Redis::start(&folder).await?;
    let tenants = ["batch", "everywhere", "in-one-place", "below"].map(Tenant::new);
    let fleet = Fleet::builder("bench-ledger").redis(&redis).longest_request(LONG).sidecar_config(as_shipped);
    let fleet = tenants.into_iter().fold(fleet, |fleet, tenant| fleet.tenant(tenant));
    let fleet = fleet.tenant(Tenant::new("urgent").priority(0)).start().await?;
    fleet.upstream.calls().only_times();

    let mut figures = Vec::new();
    for service_ms in [1_000, 100] {
        let mut load = Load::default();
        for gate in 0..GATES {
            let caller = Caller::new(fleet.client(gate, "batch")?, chat(service_ms));
            load.add(&caller, CALLERS / GATES + usize::from(gate < CALLERS % GATES));
        }
        doing(format!("a crowd with calls of {service_ms} ms"));
        figures.push(Figure { service_ms: Some(service_ms), ..mean_running(&fleet, size).await? });
        if service_ms == 1_000 {
            doing(format!("slots that a P0 gets, {} times", size.hand_overs));
            figures.extend(hand_overs(&fleet, size.hand_overs).await?);
        }
        drop(load);
        fleet.wait_until_idle(PATIENCE).await?;
    }
    if size.minutes > 0 {
        doing(format!("shares of three tenants, {} times {} s", size.minutes, size.minute.as_secs()));
        figures.push(share_error(&fleet, size).await?);
    }
    let most = fleet.upstream.calls().max_running();
    ensure!(most == CAPACITY, "{most} calls ran at once, of {CAPACITY}");
    Ok(figures)
}

fn as_shipped(_: usize, config: &mut Value) {
    config["ledger"]["lease_ms"] = json!(LEASE_MS);
}

fn chat(service_ms: u64) -> Chat {
    Chat::to(MODEL).behave(json!({"delay_ms": service_ms}))
}

/// While all callers wait.
async fn mean_running(fleet: &Fleet, size: &Size) -> Result<Figure> {
    let calls = fleet.upstream.calls();
    wait_until("everybody waits", PATIENCE, || async {
        let mut queued = 0;
        for gate in &fleet.gates {
            queued += gate.operators().queued_now().await.unwrap_or(0);
        }
        queued >= (CALLERS - 2 * CAPACITY) as u64 && calls.running() == CAPACITY
    })
    .await?;
    let mut means = Vec::new();
    for _ in 0..size.windows {
        let from = Instant::now();
        let_pass(size.window).await;
        means.push(calls.record().mean_running(from, Instant::now()) * 100.0);
    }
    let of_hundred = figure("mean_running", "slots", means);
    // To the hundredth: it is about the last slot.
    Ok(Figure { value: of_hundred.value.round() / 100.0, spread: of_hundred.spread.round() / 100.0, ..of_hundred })
}

/// From the first slot that comes free anywhere after a P0 was sent, to its start.
async fn hand_overs(fleet: &Fleet, count: usize) -> Result<[Figure; 2]> {
    let calls = fleet.upstream.calls();
    let mut spans_ms = Vec::new();
    for number in 0..count {
        let client = fleet.client(number % GATES, "urgent")?;
        // Until whoever got the slot of the P0 before runs.
        let before = calls.count();
        wait_until("others go on", PATIENCE, || async { calls.count() >= before + 3 }).await?;
        let sent = Instant::now();
        let reply = client.chat(&chat(5)).await?;
        ensure!(reply.status == 200, "{}", reply.summary());
        let record = calls.record();
        let started = record.spans().iter().rev().find(|span| span.tenant == "urgent").context("no P0 ran")?.began;
        let freed = record.spans().iter().filter_map(|span| span.ended).filter(|ended| *ended >= sent).min();
        let waited = started.saturating_duration_since(freed.context("no slot came free")?);
        spans_ms.push(waited.as_secs_f64() * 1_000.0);
    }
    spans_ms.sort_by(f64::total_cmp);
    let p99 = spans_ms[(count * 99 / 100).saturating_sub(1)];
    let of_all = figure("hand_over_ms", "ms", spans_ms);
    let p99 = Figure { n: of_all.n, ..figure("hand_over_p99_ms", "ms", vec![p99]) };
    Ok([of_all, p99])
}

/// Two tenants of P5, one at all gateways and one at a single one, and one of P6, which weighs half: a third each. The
/// worst share of each minute, as it is off that third.
async fn share_error(fleet: &Fleet, size: &Size) -> Result<Figure> {
    let Size { minutes, minute, .. } = *size;
    let least_starts = LEAST_STARTS_PER_MINUTE * minute.as_secs() / 60;
    let callers = [("everywhere", 5, [0, 1, 2].as_slice()), ("in-one-place", 5, &[0]), ("below", 6, &[1, 2])];
    let mut load = Load::default();
    for (tenant, level, gates) in callers {
        for gate in gates {
            let caller = Caller { level: Some(level), ..Caller::new(fleet.client(*gate, tenant)?, chat(250)) };
            load.add(&caller, 60 / gates.len());
        }
    }
    let calls = fleet.upstream.calls();
    let before = calls.count();
    wait_until("everybody has begun", PATIENCE, || async { calls.count() >= before + 500 }).await?;
    let mut worst = Vec::new();
    for _ in 0..minutes {
        let from = Instant::now();
        let_pass(minute).await;
        let record = calls.record();
        let starts = record.starts(from, from + minute);
        let third = starts.values().sum::<u64>() as f64 / callers.len() as f64;
        let of = |tenant, level| starts.get(&(tenant, Some(level))).copied().unwrap_or(0);
        let counts = callers.map(|(tenant, level, _)| of(tenant, level));
        ensure!(counts.iter().all(|count| *count >= least_starts), "too few starts in a minute: {counts:?}");
        let errors = counts.map(|count| (count as f64 / third - 1.0).abs() * 100.0);
        worst.push(errors.into_iter().fold(0.0, f64::max));
    }
    drop(load);
    fleet.wait_until_idle(PATIENCE).await?;
    Ok(figure("share_error", "%", worst))
}

/// Calls to Redis while so many requests arrive a second, of which the pool serves what it can.
async fn commands(requests_per_s: u64, service_ms: u64, size: &Size) -> Result<Figure> {
    let folder = Folder::create("bench-ledger-redis")?;
    let redis = Redis::start(&folder).await?;
    let fleet =
        Fleet::builder("bench-ledger").redis(&redis).without_envoy().longest_request(LONG).sidecar_config(as_shipped);
    let fleet = fleet
        .tenant(Tenant::new("first").limit("requests_per_min", 1_000_000))
        .copies(TENANTS)
        // Whom the pool cannot serve does not wait for long, or the queue would grow for as long as this lasts.
        .sidecar_config(|_, config| config["queue"]["timeout_ms"] = json!(500))
        .start()
        .await?;
    fleet.upstream.calls().only_times();
    let drivers = (0..GATES).map(|gate| fleet.direct(gate, "first")).collect::<Result<Vec<_>>>()?;
    let pause = Duration::from_secs_f64(1.0 / requests_per_s as f64);
    let (mut calls, begun) = (JoinSet::new(), Instant::now());
    let (mut counts, mut counted_at) = (Vec::new(), begun + size.window / 4);
    let mut before = None;
    for number in 0_u32.. {
        let due = begun + pause * number;
        let_pass(due.saturating_duration_since(Instant::now())).await;
        if Instant::now() >= counted_at {
            let (now, sum) = (Instant::now(), asked(&redis)?);
            if let Some((then, earlier)) = before.replace((now, sum)) {
                counts.push((sum - earlier) as f64 / now.duration_since(then).as_secs_f64());
            }
            counted_at = now + size.window;
        }
        if counts.len() == size.windows {
            break;
        }
        let (gate, tenant) = (number as usize % GATES, number as usize / GATES % TENANTS);
        let driver = drivers[gate].copy(tenant);
        calls.spawn(async move { driver.call(Duration::from_millis(service_ms)).await });
        while let Some(done) = calls.try_join_next() {
            let _: bool = done??;
        }
    }
    Ok(figure("redis_commands_per_s", "1/s", counts))
}

/// Calls to Redis while each of so many tenants has one call that runs, and nobody comes or goes.
async fn commands_of_accounts(accounts: usize, size: &Size) -> Result<Figure> {
    let third_of_lease = size.third_of_lease;
    let folder = Folder::create("bench-ledger-redis")?;
    let redis = Redis::start(&folder).await?;
    let fleet = Fleet::builder("bench-ledger")
        .redis(&redis)
        .without_envoy()
        .capacity(u64::try_from(2 * accounts)?)
        .longest_request(LONG)
        .tenant(Tenant::new("first").limit("requests_per_min", 1_000))
        .copies(accounts)
        .sidecar_config(move |_, config| config["ledger"]["lease_ms"] = json!(third_of_lease.as_millis() as u64 * 3))
        .start()
        .await?;
    let calls = fleet.upstream.calls();
    calls.only_times();
    let drivers: Vec<Direct> = (0..GATES).map(|gate| fleet.direct(gate, "first")).collect::<Result<_>>()?;
    let mut running = JoinSet::new();
    for number in 0..accounts {
        let driver = drivers[number % GATES].copy(number);
        running.spawn(async move { driver.call(LONG).await });
        // So many accounts are not taken into use in one moment, and an empty ledger is silent for a lease first.
        wait_until("it is let in", 3 * third_of_lease + PATIENCE, || async { calls.running() + 100 > number }).await?;
    }
    wait_until("all of them run", 3 * third_of_lease + PATIENCE, || async { calls.running() == accounts }).await?;
    let mut counts = Vec::new();
    for _ in 0..size.windows {
        let (from, before) = (Instant::now(), asked(&redis)?);
        let_pass(third_of_lease.max(size.window)).await;
        counts.push((asked(&redis)? - before) as f64 / from.elapsed().as_secs_f64());
    }
    Ok(figure("redis_commands_per_s", "1/s", counts))
}

/// Scripts that Redis has run, each of them one call of a replica.
fn asked(redis: &Redis) -> Result<u64> {
    let info = redis.info()?;
    let calls = |command: &str| -> Option<u64> {
        info.get(&format!("cmdstat_{command}"))?.strip_prefix("calls=")?.split(',').next()?.parse().ok()
    };
    Ok(calls("evalsha").context("no EVALSHA in INFO")? + calls("eval").unwrap_or(0))
}
