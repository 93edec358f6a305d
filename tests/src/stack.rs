//! Everything at once: Envoy with the filter, the sidecar, what stands behind them, and a client in front.
//!
//! The shipped files in `envoy/` are what runs, with other ports, paths, tenants and keys. Everything is killed when
//! the [`Stack`] is dropped.

pub mod builder;
pub mod envoy;
pub mod exporter;
pub mod litellm;
pub mod model;
pub mod quota_service;
pub mod redis;
pub mod triton;

pub use builder::{Bootstrap, Ports, StackBuilder};
pub use envoy::Envoy;
pub use exporter::FakeExporter;
pub use litellm::LiteLlm;
pub use model::Model;
pub use quota_service::QuotaService;
pub use redis::Redis;
pub use triton::Triton;

use crate::admin::Operators;
use crate::client::Client;
use crate::folder::Folder;
use crate::tenant::Tenant;
use crate::upstream::Upstream;
use crate::wait::wait_until;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::time::Duration;

/// The model that the shipped configuration's pool serves, and that the real server answers to.
pub const MODEL: &str = "smollm2-135m";
/// The shipped configuration's pool.
pub const POOL: &str = "smol";

/// Fields are dropped in this order: first who calls, last what is called.
pub struct Stack {
    pub envoy: Envoy,
    pub sidecar: QuotaService,
    pub redis: Option<Redis>,
    pub upstream: Upstream,
    pub model: Option<Model>,
    pub exporter: Option<FakeExporter>,
    pub tenants: Vec<Tenant>,
    keys: BTreeMap<String, String>,
    pub folder: Folder,
}

impl Stack {
    /// Begins a stack whose folder bears `name`.
    #[must_use]
    pub fn builder(name: &str) -> StackBuilder {
        StackBuilder::new(name)
    }

    /// A client without a key.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn anonymous(&self) -> Result<Client> {
        Client::new(&self.envoy.base())
    }

    /// A client with the key of a tenant.
    ///
    /// # Errors
    /// When the stack has no such tenant.
    pub fn client(&self, tenant: &str) -> Result<Client> {
        Ok(self.anonymous()?.with_key(self.key(tenant)?))
    }

    /// The raw key of a tenant.
    ///
    /// # Errors
    /// When the stack has no such tenant.
    pub fn key(&self, tenant: &str) -> Result<&str> {
        self.keys.get(tenant).map(String::as_str).with_context(|| format!("no tenant {tenant}"))
    }

    /// Waits until the filter has nothing left to tell: every call has ended at the sidecar, and no batch waits for its
    /// answer. One that did would be told to the next sidecar again.
    ///
    /// # Errors
    /// When the deadline passes first.
    pub async fn wait_until_acknowledged(&self, deadline: Duration) -> Result<()> {
        self.operators().wait_until_idle(deadline).await?;
        let stats = format!("{}/stats?filter=^cluster.sluice.*upstream_rq_active$", self.envoy.admin_base());
        let http = reqwest::Client::new();
        wait_until("every batch is acknowledged", deadline, || async {
            let Ok(reply) = http.get(&stats).send().await else { return false };
            let text = reply.text().await.unwrap_or_default();
            text.contains("upstream_rq_active") && text.lines().all(|line| line.ends_with(": 0"))
        })
        .await
        .map(drop)
    }

    #[must_use]
    pub fn operators(&self) -> &Operators {
        self.sidecar.operators()
    }
}
