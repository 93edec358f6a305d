//! The gateways, their Redis, the links between them, and the callers.

use super::books::{self, Balance, Books};
use crate::client::Chat;
use crate::fault_proxy::{Fault, FaultProxy};
use crate::fleet::{Caller, Fleet, LEASE, LONGEST_REQUEST, Load, Tally};
use crate::folder::Folder;
use crate::stack::redis::cluster::Cluster;
use crate::stack::redis::sentinels::Sentinels;
use crate::stack::redis::{Engine, Setup};
use crate::stack::{MODEL, Redis};
use crate::tenant::Tenant;
use crate::wait::wait_until;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

pub const CAPACITY: usize = 20;
const GATES: usize = 3;
/// At each gateway, half of them of each tenant.
const CALLERS: usize = 20;
const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// Until what has ended is charged.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// Which kind of Redis a fault befalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// One server, to which every gateway has a link of its own that can be broken.
    Server,
    /// One server whose clock can be set.
    Clock,
    Sentinels,
    Cluster,
    /// As [`Home::Server`], with the lease and the longest call that are shipped.
    Shipped,
}

impl Home {
    pub const ALL: [Self; 5] = [Self::Server, Self::Shipped, Self::Clock, Self::Sentinels, Self::Cluster];

    const fn lease(self) -> Duration {
        match self {
            Self::Shipped => Duration::from_secs(2),
            Self::Server | Self::Clock | Self::Sentinels | Self::Cluster => LEASE,
        }
    }

    const fn longest_request(self) -> Duration {
        match self {
            Self::Shipped => Duration::from_secs(600),
            Self::Server | Self::Clock | Self::Sentinels | Self::Cluster => LONGEST_REQUEST,
        }
    }

    /// How soon after a fault every slot is in use again: L + D + 2Δ, a lease, the longest a call may live, and two ticks.
    /// As shipped nothing is broken that makes anybody wait for calls to end: a lease and two seconds.
    #[must_use]
    pub const fn bound(self) -> Duration {
        let (lease, longest_request) = (self.lease(), self.longest_request());
        match self {
            Self::Shipped => lease.saturating_add(Duration::from_secs(2)),
            Self::Server | Self::Clock | Self::Sentinels | Self::Cluster => {
                lease.saturating_add(longest_request).saturating_add(Duration::from_millis(200))
            }
        }
    }
}

#[allow(clippy::large_enum_variant)] // there is one at a time
pub(super) enum Ledger {
    Server(Redis),
    Sentinels(Sentinels),
    Cluster(Cluster),
}

/// Fields are dropped in this order: first who calls, last what is called.
pub struct World {
    load: Load,
    pub(super) fleet: Fleet,
    /// One for each gateway at home of one server.
    pub(super) links: Vec<FaultProxy>,
    pub(super) ledger: Ledger,
    books: Books,
    /// Whether something may have been charged twice in the last fault.
    pub(super) may_repeat: bool,
    _folder: Folder,
}

impl World {
    /// Starts everything, and waits until all slots are in use.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(name: &str, home: Home) -> Result<Self> {
        let folder = Folder::create(&format!("{name}-redis"))?;
        let ledger = start_ledger(&folder, home).await?;
        let links = match (&ledger, home) {
            (Ledger::Server(server), Home::Server | Home::Shipped) => links_to(server).await?,
            _ => Vec::new(),
        };
        let settings = settings(&ledger, &links);
        let fleet = Fleet::builder(name)
            .replicas(GATES)
            .capacity(u64::try_from(CAPACITY)?)
            .lease(home.lease())
            .longest_request(home.longest_request())
            .tenant(Tenant::new("free"))
            // Limits that nobody reaches: its account is in the ledger, too.
            .tenant(Books::tenant().priority(6).limit("requests_per_min", 1_000_000))
            .ledger(move |gate| settings[gate.min(settings.len() - 1)].clone())
            .start()
            .await?;
        fleet.upstream.calls().only_times();
        let (mut load, books) = (Load::default(), Books::default());
        for gate in 0..GATES {
            for (tenant, service_ms) in [("free", 200), (books::TENANT, 300)] {
                let chat = Chat::to(MODEL).behave(json!({"delay_ms": service_ms}));
                let caller = Caller::new(fleet.client(gate, tenant)?, chat);
                let caller = if tenant == books::TENANT { books.keep(caller) } else { caller };
                load.add(&caller, CALLERS / 2);
            }
        }
        let world = Self { load, fleet, links, ledger, books, may_repeat: false, _folder: folder };
        world.is_full(STARTS_WITHIN).await?;
        Ok(world)
    }

    /// Lets the callers go, and waits until nothing is held anywhere.
    ///
    /// # Errors
    /// When something is.
    pub async fn end(self) -> Result<Tally> {
        let tally = self.load.end().await?;
        self.fleet.wait_until_idle(STARTS_WITHIN).await?;
        Ok(tally)
    }

    /// Lets calls end and be settled, and tells how many tokens were charged in excess of those that callers were given
    /// since the last time; below zero so many are missing.
    pub(super) async fn settle(&mut self) -> Result<i64> {
        self.load.pause();
        self.fleet.wait_until_idle(STARTS_WITHIN).await?;
        let balance = || tokio::task::block_in_place(|| self.books.balance(&self.fleet));
        // Some tell their charges later, and some tell them again because they have no answer.
        let told = wait_until("everything is told", TOLD_WITHIN, || async {
            balance().is_ok_and(|balance| balance.is_told && balance.excess >= 0)
        });
        // Who is not there by then is missed.
        let _ = told.await;
        let Balance { excess, .. } = balance()?;
        self.books.settle(excess);
        self.load.resume();
        Ok(excess)
    }

    /// Waits until every slot is in use.
    pub(super) async fn is_full(&self, deadline: Duration) -> Result<()> {
        let calls = self.fleet.upstream.calls();
        wait_until("all slots are in use", deadline, || async { calls.running() == CAPACITY }).await.map(drop)
    }

    /// The only server there is.
    pub(super) fn server(&mut self) -> Result<&mut Redis> {
        match &mut self.ledger {
            Ledger::Server(server) => Ok(server),
            Ledger::Sentinels(_) | Ledger::Cluster(_) => anyhow::bail!("there is more than one server"),
        }
    }

    pub(super) async fn set_links(&self, fault: Fault) -> Result<()> {
        for link in &self.links {
            link.set(fault).await?;
        }
        Ok(())
    }

    pub(super) fn link(&self, gate: usize) -> Result<&FaultProxy> {
        self.links.get(gate).context("there is no link")
    }
}

async fn start_ledger(folder: &Folder, home: Home) -> Result<Ledger> {
    Ok(match home {
        Home::Server | Home::Shipped => {
            let setup = Setup::named("server").arguments(["--enable-debug-command", "local"]);
            Ledger::Server(Redis::launch(folder, setup).await?)
        }
        Home::Clock => {
            let setup = Setup::named("server").engine(Engine::Valkey).faked_clock()?;
            Ledger::Server(Redis::launch(folder, setup).await?)
        }
        Home::Sentinels => Ledger::Sentinels(Sentinels::start(folder, None).await?),
        Home::Cluster => Ledger::Cluster(Cluster::start(folder, Engine::Redis).await?),
    })
}

async fn links_to(server: &Redis) -> Result<Vec<FaultProxy>> {
    let mut links = Vec::new();
    for _ in 0..GATES {
        links.push(FaultProxy::start(SocketAddr::from(([127, 0, 0, 1], server.port()))).await?);
    }
    Ok(links)
}

/// Of each gateway, or of all.
fn settings(ledger: &Ledger, links: &[FaultProxy]) -> Vec<Value> {
    match ledger {
        Ledger::Server(server) if links.is_empty() => vec![server.settings()],
        Ledger::Server(_) => links.iter().map(|link| json!({"url": format!("redis://{}", link.address())})).collect(),
        Ledger::Sentinels(rig) => vec![rig.settings()],
        Ledger::Cluster(rig) => vec![rig.settings()],
    }
}
