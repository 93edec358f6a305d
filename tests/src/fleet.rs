//! Several gateways over one ledger: each an Envoy with a sidecar of its own, before one upstream that counts.
//!
//! All have the same pool, tenants and keys. Whatever a test wants to break lies outside – the Redis, the links to it –
//! or is public here.

mod builder;
mod direct;
mod load;

pub use builder::{FleetBuilder, LEASE, LONG_LEASE, LONGEST_REQUEST, ledger_key};
pub use direct::{Direct, Running, TOKENS};
pub use load::{Caller, Load, Tally};

use crate::admin::Operators;
use crate::client::Client;
use crate::folder::Folder;
use crate::stack::{Envoy, QuotaService};
use crate::upstream::Upstream;
use crate::wait::wait_until;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::time::Duration;

/// One gateway. Fields are dropped in this order: first who calls, last what is called.
pub struct Gate {
    /// Absent where the sidecar is driven directly.
    pub envoy: Option<Envoy>,
    pub sidecar: QuotaService,
    pub folder: Folder,
}

pub struct Fleet {
    pub gates: Vec<Gate>,
    pub upstream: Upstream,
    keys: BTreeMap<String, String>,
}

impl Gate {
    #[must_use]
    pub fn operators(&self) -> &Operators {
        self.sidecar.operators()
    }

    /// # Errors
    /// When this gateway has none.
    pub fn envoy_mut(&mut self) -> Result<&mut Envoy> {
        self.envoy.as_mut().context("this gateway has no Envoy")
    }
}

impl Fleet {
    /// Begins a fleet whose folders bear `name`.
    #[must_use]
    pub fn builder(name: &str) -> FleetBuilder {
        FleetBuilder::new(name)
    }

    /// A client of one gateway with the key of a tenant.
    ///
    /// # Errors
    /// When there is no such gateway or tenant.
    pub fn client(&self, gate: usize, tenant: &str) -> Result<Client> {
        let envoy = self.gates.get(gate).and_then(|gate| gate.envoy.as_ref()).context("no such gateway")?;
        Ok(Client::new(&envoy.base())?.with_key(self.key(tenant)?))
    }

    /// A driver of one sidecar in its own protocol, as a tenant that has a key of its own or as a copy of it.
    ///
    /// # Errors
    /// When there is no such gateway or tenant.
    pub fn direct(&self, gate: usize, tenant: &str) -> Result<Direct> {
        let folder = self.gates.get(gate).context("no such gateway")?.folder.path();
        Direct::new(folder, self.key(tenant)?, tenant, self.upstream.calls().clone())
    }

    /// The raw key of a tenant.
    ///
    /// # Errors
    /// When there is no such tenant.
    pub fn key(&self, tenant: &str) -> Result<&str> {
        self.keys.get(tenant).map(String::as_str).with_context(|| format!("no tenant {tenant}"))
    }

    /// Waits until nothing runs and nothing is queued at any gateway.
    ///
    /// # Errors
    /// When something is still held at the deadline.
    pub async fn wait_until_idle(&self, deadline: Duration) -> Result<()> {
        for gate in &self.gates {
            gate.operators().wait_until_idle(deadline).await?;
        }
        let calls = self.upstream.calls();
        wait_until("nothing runs in the upstream", deadline, || async { calls.running() == 0 }).await.map(drop)
    }

    /// Waits until exactly `count` calls stand in queues, over all gateways.
    ///
    /// # Errors
    /// When the deadline passes first.
    pub async fn wait_for_queued(&self, count: u64, deadline: Duration) -> Result<()> {
        wait_until(&format!("{count} calls are queued"), deadline, || async {
            let mut queued = 0;
            for gate in &self.gates {
                queued += gate.operators().queued_now().await.unwrap_or(u64::MAX / 8);
            }
            queued == count
        })
        .await
        .map(drop)
    }
}
