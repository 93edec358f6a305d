//! A fleet with its Redis, and callers at each of its pools.

use super::crowd::Crowd;
use super::open_loop::{LOAD_PERCENT, OpenLoop};
use super::outage::{self, Kind};
use super::{Pool, Seen, doing};
use anyhow::{Result, bail};
use e2e::fault_proxy::FaultProxy;
use e2e::fleet::{Direct, Fleet};
use e2e::folder::Folder;
use e2e::stack::redis::Setup;
use e2e::stack::redis::sentinels::Sentinels;
use e2e::stack::{MODEL, POOL, Redis, quota_service};
use e2e::tenant::Tenant;
use e2e::upstream::CallLog;
use e2e::wait::{let_pass, wait_until};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

const LEASE: Duration = Duration::from_secs(2);
const LONGEST_REQUEST: Duration = Duration::from_secs(600);
const TENANT: &str = "batch";
/// Until every slot is in use.
const FILLS_WITHIN: Duration = Duration::from_secs(60);
/// A pool whose slots are in use again and again, never not for so long, goes on: between two calls a slot is free.
const BLINK: Duration = Duration::from_secs(1);
/// From then on it goes on.
const STEADY: Duration = Duration::from_millis(1_500);
/// Nobody watches for longer: it never recovered.
const GIVEN_UP: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(250);
/// No call of the Sentinels' own accord.
const NEVER: Duration = Duration::from_secs(600);

#[allow(clippy::large_enum_variant)] // there is one at a time
enum Ledger {
    Server(Redis, FaultProxy),
    Sentinels(Sentinels),
}

/// Fields are dropped in this order: first who calls, last what is called.
pub(super) struct World {
    crowds: Vec<Crowd>,
    pools: Vec<Measured>,
    fleet: Fleet,
    ledger: Ledger,
    _folder: Folder,
}

/// A pool, how it is reached by each gateway, and what ran in it.
struct Measured {
    pool: Pool,
    name: String,
    drivers: Vec<Direct>,
    calls: CallLog,
}

impl World {
    pub(super) async fn of_one_server(replicas: usize, pools: &[Pool]) -> Result<Self> {
        let folder = Folder::create(&format!("bench-recovery-{replicas}-redis"))?;
        // What it has answered it knows after a restart.
        let server = Redis::launch(&folder, Setup::named("server").arguments(["--appendonly", "yes"])).await?;
        let link = FaultProxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()))).await?;
        let settings = json!({"url": format!("redis://{}", link.address())});
        Self::start(replicas, pools, settings, Ledger::Server(server, link), folder).await
    }

    pub(super) async fn of_sentinels(replicas: usize, pools: &[Pool]) -> Result<Self> {
        let folder = Folder::create(&format!("bench-recovery-{replicas}-sentinels"))?;
        let rig = Sentinels::launch(&folder, None, NEVER).await?;
        Self::start(replicas, pools, rig.settings(), Ledger::Sentinels(rig), folder).await
    }

    async fn start(replicas: usize, pools: &[Pool], redis: Value, ledger: Ledger, folder: Folder) -> Result<Self> {
        let configured = pools.to_vec();
        let fleet = Fleet::builder(&format!("bench-recovery-{replicas}"))
            .replicas(replicas)
            .without_envoy()
            .lease(LEASE)
            .longest_request(LONGEST_REQUEST)
            .tenant(Tenant::new(TENANT))
            .ledger(move |_| redis.clone())
            .sidecar_config(move |_, config| add_pools(config, &configured))
            .start()
            .await?;
        let measured = pools.iter().enumerate().map(|(number, pool)| Measured::new(&fleet, number, *pool));
        let measured = measured.collect::<Result<Vec<_>>>()?;
        let crowds = measured.iter().map(|measured| Crowd::of(measured.pool, &measured.drivers)).collect();
        let world = Self { crowds, pools: measured, fleet, ledger, _folder: folder };
        world.fills().await?;
        Ok(world)
    }

    pub(super) fn replicas(&self) -> usize {
        self.fleet.gates.len()
    }

    /// One outage, and what it did to each of the pools.
    pub(super) async fn go_through(&mut self, kind: Kind, outage_ms: u64, watched: Duration) -> Result<Vec<Seen>> {
        self.fills().await?;
        for measured in &self.pools {
            measured.calls.take_max_running();
        }
        let back = self.strike(kind, Duration::from_millis(outage_ms)).await?;
        loop {
            let_pass(LOOK).await;
            let are_steady = self.pools.iter().all(|measured| measured.is_steady_since(back));
            if are_steady && back.elapsed() >= watched || back.elapsed() >= GIVEN_UP {
                break;
            }
        }
        let recovery = |measured: &Measured| {
            let recovery = measured.recovery(back);
            if recovery.is_none() {
                doing(format!(
                    "{} of {} run: {}",
                    measured.calls.running(),
                    measured.pool.capacity,
                    self.told_of(measured)
                ));
            }
            recovery.unwrap_or(GIVEN_UP)
        };
        let seen = self.pools.iter().map(|measured| self.seen(measured, kind, outage_ms, None, recovery(measured)));
        let seen = seen.collect();
        if let Ledger::Sentinels(rig) = &mut self.ledger {
            outage::follow(rig).await?;
        }
        Ok(seen)
    }

    /// A stall while arrivals take 90% of the slots, and how soon they are served again.
    pub(super) async fn stall_under_load(&mut self, outage_ms: u64, watched: Duration) -> Result<Vec<Seen>> {
        let open = |measured: &Measured| OpenLoop::of(measured.pool, measured.drivers.clone(), measured.calls.clone());
        let loops: Vec<OpenLoop> = self.pools.iter().map(open).collect();
        for measured in &self.pools {
            let busy = measured.pool.capacity as usize * 4 / 5;
            wait_until("arrivals are served", FILLS_WITHIN, || async { measured.calls.running() >= busy }).await?;
            measured.calls.take_max_running();
        }
        let_pass(BLINK).await;
        let back = self.strike(Kind::Stall, Duration::from_millis(outage_ms)).await?;
        let_pass(watched + STEADY).await;
        let mut seen = Vec::new();
        for (measured, arrivals) in self.pools.iter().zip(&loops) {
            let recovery = arrivals.served_again_after(back, BLINK).unwrap_or(GIVEN_UP);
            seen.push(self.seen(measured, Kind::Stall, outage_ms, Some(LOAD_PERCENT.into()), recovery));
        }
        for arrivals in loops {
            arrivals.end().await?;
        }
        Ok(seen)
    }

    /// Lets all callers go.
    pub(super) async fn disperse(&mut self) -> Result<()> {
        for crowd in self.crowds.drain(..) {
            crowd.end().await?;
        }
        Ok(())
    }

    /// What the ledger says of a pool that stays empty.
    fn told_of(&self, measured: &Measured) -> String {
        let told = tokio::task::block_in_place(|| quota_service::inspect(&self.fleet.gates[0].folder, &measured.name));
        told.map_or_else(|error| error.to_string(), |accounts| json!(accounts).to_string())
    }

    async fn strike(&mut self, kind: Kind, outage: Duration) -> Result<Instant> {
        match (kind, &mut self.ledger) {
            (Kind::Partition, Ledger::Server(_, link)) => outage::partition(link, outage).await,
            (Kind::Stall, Ledger::Server(server, _)) => outage::stall(server, outage).await,
            (Kind::Restart, Ledger::Server(server, _)) => outage::restart(server, outage).await,
            (Kind::Failover, Ledger::Sentinels(rig)) => outage::fail_over(rig, outage).await,
            (Kind::Partition | Kind::Stall | Kind::Restart, Ledger::Sentinels(_))
            | (Kind::Failover, Ledger::Server(..)) => bail!("not of this Redis"),
        }
    }

    fn seen(
        &self,
        measured: &Measured,
        kind: Kind,
        outage_ms: u64,
        load_percent: Option<u64>,
        recovery: Duration,
    ) -> Seen {
        let overshoot = measured.calls.take_max_running().saturating_sub(measured.pool.capacity as usize);
        let call_ms = measured.pool.call_ms();
        let recovery_s = recovery.as_secs_f64();
        doing(format!("  calls of {call_ms} ms: {recovery_s:.2} s, {overshoot} too many"));
        Seen { kind, outage_ms, replicas: self.replicas(), call_ms, load_percent, recovery, overshoot }
    }

    /// Waits until all pools are in use, lately and now.
    async fn fills(&self) -> Result<()> {
        let begun = Instant::now();
        wait_until("all slots are in use", FILLS_WITHIN, || async {
            let_pass(LOOK).await;
            self.pools.iter().all(|measured| measured.is_steady_since(begun))
        })
        .await
        .map(drop)
    }
}

impl Measured {
    fn new(fleet: &Fleet, number: usize, pool: Pool) -> Result<Self> {
        let calls = CallLog::default();
        let driver = |gate| Ok(fleet.direct(gate, TENANT)?.to_model(&model(number)).counted_in(&calls));
        let drivers = (0..fleet.gates.len()).map(driver).collect::<Result<_>>()?;
        Ok(Self { pool, name: name(number), drivers, calls })
    }

    /// How soon 95% of the slots were in use for good.
    fn recovery(&self, from: Instant) -> Option<Duration> {
        self.calls.record().full_again_after(self.pool.most_slots(), from, Instant::now(), BLINK)
    }

    fn is_steady_since(&self, from: Instant) -> bool {
        self.recovery(from).is_some_and(|recovery| from.elapsed() >= recovery + STEADY)
    }
}

fn model(number: usize) -> String {
    if number == 0 { MODEL.to_owned() } else { format!("model-{number}") }
}

fn name(number: usize) -> String {
    if number == 0 { POOL.to_owned() } else { format!("pool-{number}") }
}

fn add_pools(config: &mut Value, pools: &[Pool]) {
    let shipped = config["pools"][0].clone();
    let configured = pools.iter().enumerate().map(|(number, pool)| {
        let mut configured = shipped.clone();
        configured["name"] = json!(name(number));
        configured["models"] = json!([model(number)]);
        configured["capacity"] = json!({"concurrent": pool.capacity});
        configured
    });
    config["pools"] = configured.collect();
}
