//! The last release and this one on one Redis hash and on one file, in either order: an upgrade, and the way back, refuse
//! nobody, run nothing too much and forget no budget and no debt.

use anyhow::{Context, Result};
use e2e::fleet::{Direct, Fleet, LONG_LEASE, Running, TOKENS};
use e2e::folder::Folder;
use e2e::paths;
use e2e::previous_release::PreviousRelease;
use e2e::stack::{POOL, Redis, quota_service};
use e2e::tenant::Tenant;
use e2e::wait::wait_until;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sluice_policy::wire::Reason;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

const SLACK: Duration = Duration::from_secs(30);
/// What stands still here stands still until the test moves it.
const LONG: Duration = Duration::from_secs(100);
const CAPACITY: u64 = 4;
const CALLERS: usize = 4;
const SERVICE: Duration = Duration::from_millis(5);
const BUDGET: u64 = 1_000_000;

/// Both builds, and the configuration that both know.
struct Pair {
    config: Value,
    old: PathBuf,
    new: PathBuf,
}

impl Pair {
    /// `None` where the last release cannot be had, which is said.
    fn built() -> Option<Self> {
        let previous = PreviousRelease::built().unwrap()?;
        let (config, old) = (previous.shipped_config().unwrap(), previous.program().to_path_buf());
        Some(Self { config, old, new: paths::built("quota-service").unwrap() })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_is_upgraded_under_load_refuses_nothing_and_keeps_every_budget_and_debt() {
    let Some(pair) = Pair::built() else { return };
    roll("upgrade", &pair.config, &pair.old, &pair.new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_goes_back_to_the_last_release_under_load_keeps_them_too() {
    let Some(pair) = Pair::built() else { return };
    roll("downgrade", &pair.config, &pair.new, &pair.old).await;
}

/// Two gates on one hash: one changes its release, both serve, the other one changes too.
async fn roll(name: &str, config: &Value, before: &Path, after: &Path) {
    let folder = Folder::create(&format!("{name}-redis")).unwrap();
    let redis = Redis::start(&folder).await.unwrap();
    let mut fleet = fleet(name, config, &[before, before])
        .redis(&redis)
        .tenant(Tenant::new("metered").tokens_per_day(BUDGET))
        .tenant(Tenant::new("owing").limit("tokens_per_min", 1))
        .start()
        .await
        .unwrap();
    let mut served = 0;
    assert_eq!(owe(&fleet, 0).await, None, "it may draw more than there is, once");
    served += until_all_slots_ran(&fleet, Load::on(&fleet, &[0, 1])).await;
    for gate in [0, 1] {
        let other = Load::on(&fleet, &[1 - gate]);
        replace(&mut fleet, gate, after).await;
        assert_eq!(owe(&fleet, gate).await, Some(Reason::TenantTokensPerMinute), "gate {gate} knows of the debt");
        served += other.end().await;
        served += until_all_slots_ran(&fleet, Load::on(&fleet, &[0, 1])).await;
    }
    assert_eq!(fleet.upstream.calls().max_running(), usize::try_from(CAPACITY).unwrap(), "nothing ran too much");
    let used = || async { used(&fleet.gates[0].folder, "metered").is_ok_and(|used| used == served * TOKENS) };
    wait_until("the budget lacks what was served", SLACK, used).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn this_release_counts_the_slots_of_a_killed_sidecar_of_the_last_one() {
    let Some(pair) = Pair::built() else { return };
    kill("old-killed", &pair.config, &pair.old, &pair.new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_release_counts_the_slots_of_a_killed_sidecar_of_this_one() {
    let Some(pair) = Pair::built() else { return };
    kill("new-killed", &pair.config, &pair.new, &pair.old).await;
}

/// A gate dies with half of the pool, and comes back as the other release, beside a gate of that release.
async fn kill(name: &str, config: &Value, dies: &Path, lives: &Path) {
    let folder = Folder::create(&format!("{name}-redis")).unwrap();
    let redis = Redis::start(&folder).await.unwrap();
    let builder = fleet(name, config, &[dies, lives]).redis(&redis);
    let mut fleet = builder.tenant(Tenant::new("only")).start().await.unwrap();
    let (lost, kept) = (run_half(&fleet, 0).await, run_half(&fleet, 1).await);

    fleet.gates[0].sidecar.kill();
    fleet.gates[0].sidecar.install(lives);
    fleet.gates[0].sidecar.restart().await.unwrap();
    let zombies = || async {
        let pool = quota_service::inspect(&fleet.gates[1].folder, POOL).unwrap();
        pool[0]["zombies"].as_u64() == Some(CAPACITY / 2)
    };
    wait_until("its slots are zombies", SLACK, zombies).await.unwrap();

    let mut waiting = JoinSet::new();
    for gate in [0, 1].into_iter().cycle().take(CALLERS) {
        let direct = fleet.direct(gate, "only").unwrap();
        waiting.spawn(async move { direct.call(SERVICE).await.unwrap() });
    }
    fleet.wait_for_queued(u64::try_from(CALLERS).unwrap(), SLACK).await.unwrap();
    let direct = fleet.direct(1, "only").unwrap();
    for running in kept {
        direct.end(running).await.unwrap();
    }
    assert!(waiting.join_all().await.into_iter().all(|served| served));
    // Those of the killed gate have run all the time.
    drop(lost);
    assert_eq!(fleet.upstream.calls().max_running(), usize::try_from(CAPACITY).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn this_release_and_the_last_one_use_one_file_in_turn_whichever_made_it() {
    let Some(pair) = Pair::built() else { return };
    share_file("old-file", &pair.config, &pair.old, &pair.new).await;
    share_file("new-file", &pair.config, &pair.new, &pair.old).await;
}

async fn share_file(name: &str, config: &Value, first: &Path, second: &Path) {
    // Of a day of 200 tokens thirteen calls are served: the fourteenth would reserve 19 of the last 18.
    let (budget, most, limit) = (200, 13, "tokens_per_day");
    let mut fleet = fleet(name, config, &[first])
        .sidecar_config(|_, config| config["ledger"]["file"] = json!("run/ledger.redb"))
        .tenant(Tenant::new("metered").budget(limit, budget))
        .tenant(Tenant::new("owing").limit("tokens_per_min", 1))
        .start()
        .await
        .unwrap();
    let direct = fleet.direct(0, "metered").unwrap();
    assert_eq!(owe(&fleet, 0).await, None);
    let mut served = 0;
    for _ in 0..most / 2 {
        assert!(direct.call(Duration::ZERO).await.unwrap());
        served += 1;
    }
    for program in [second, first, second] {
        replace(&mut fleet, 0, program).await;
        let direct = fleet.direct(0, "metered").unwrap();
        while direct.call(Duration::ZERO).await.unwrap() {
            served += 1;
        }
        assert_eq!(served, most, "{}", program.display());
        assert_eq!(owe(&fleet, 0).await, Some(Reason::TenantTokensPerMinute), "{}", program.display());
        let report = fleet.gates[0].operators().get("/admin/usage?tenant=metered").await.unwrap();
        assert_eq!(report["total"]["requests"].as_u64(), Some(most), "{report:#}");
    }
}

fn fleet(name: &str, config: &Value, programs: &[&Path]) -> e2e::fleet::FleetBuilder {
    let fleet = Fleet::builder(name).replicas(programs.len()).builds(config.clone(), programs).without_envoy();
    fleet.capacity(CAPACITY).lease(LONG_LEASE).longest_request(LONG)
}

/// Ends a gate in good order and starts it as another release.
async fn replace(fleet: &mut Fleet, gate: usize, program: &Path) {
    let sidecar = &mut fleet.gates[gate].sidecar;
    sidecar.signal(Signal::SIGTERM).unwrap();
    assert!(sidecar.ended(SLACK).await.unwrap().success(), "{}", sidecar.log());
    sidecar.install(program);
    sidecar.restart().await.unwrap();
}

/// A call of the tenant that may owe one call's tokens, and pays them back within a quarter of an hour.
async fn owe(fleet: &Fleet, gate: usize) -> Option<Reason> {
    let direct = fleet.direct(gate, "owing").unwrap();
    match direct.begin().await.unwrap() {
        Ok(running) => {
            direct.end(running).await.unwrap();
            None
        }
        Err(reason) => Some(reason),
    }
}

async fn run_half(fleet: &Fleet, gate: usize) -> Vec<Running> {
    let direct = fleet.direct(gate, "only").unwrap();
    let mut calls = Vec::new();
    for _ in 0..CAPACITY / 2 {
        calls.push(direct.begin().await.unwrap().unwrap());
    }
    calls
}

/// Lets a load go on until it has filled the pool. Gives how many calls were served.
async fn until_all_slots_ran(fleet: &Fleet, load: Load) -> u64 {
    let calls = fleet.upstream.calls();
    let ran = || async { calls.count() > 0 && calls.max_running() >= usize::try_from(CAPACITY).unwrap() };
    let before = calls.count();
    wait_until("the pool was full", SLACK, ran).await.unwrap();
    wait_until("each slot has changed hands", SLACK, || async { calls.count() >= before + 20 }).await.unwrap();
    load.end().await
}

/// Callers that come again and again, and are never refused.
struct Load {
    callers: JoinSet<u64>,
    stop: Arc<AtomicBool>,
}

impl Load {
    fn on(fleet: &Fleet, gates: &[usize]) -> Self {
        let (mut callers, stop) = (JoinSet::new(), Arc::new(AtomicBool::new(false)));
        for gate in gates.iter().copied() {
            for _ in 0..CALLERS {
                callers.spawn(call_until(Arc::clone(&stop), fleet.direct(gate, "metered").unwrap()));
            }
        }
        Self { callers, stop }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.callers.join_all().await.into_iter().sum()
    }
}

async fn call_until(stop: Arc<AtomicBool>, direct: Direct) -> u64 {
    let mut served = 0;
    while !stop.load(Ordering::Relaxed) {
        match direct.begin().await.unwrap() {
            Ok(running) => {
                e2e::wait::let_pass(SERVICE).await;
                direct.end(running).await.unwrap();
                served += 1;
            }
            Err(reason) => panic!("refused: {reason:?}"),
        }
    }
    served
}

/// Tokens that a tenant's budget lacks, beside what is lent of it.
fn used(folder: &Folder, tenant: &str) -> Result<u64> {
    let accounts = quota_service::inspect(folder, tenant)?;
    let meter = &accounts.first().context("no account")?["meters"][0];
    let number = |field: &str| meter[field].as_u64().with_context(|| format!("no {field}: {meter}"));
    Ok(BUDGET - number("level")? - number("lent")?)
}
