//! What a test wants of its gateways, and how they are started.

use super::{Fleet, Gate};
use crate::admin::Operators;
use crate::folder::Folder;
use crate::stack::{Envoy, POOL, QuotaService, Redis, envoy, quota_service};
use crate::tenant::Tenant;
use crate::upstream::Upstream;
use crate::{document, paths, ports};
use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a gateway goes on without a word from the ledger, and how long a call may live: short, so that what must
/// come back comes back within a test.
pub const LEASE: Duration = Duration::from_millis(500);
pub const LONGEST_REQUEST: Duration = Duration::from_secs(5);
/// A lease that no machine's delay ends, of tests that let nothing fail.
pub const LONG_LEASE: Duration = Duration::from_secs(3);

/// The pool's key in Redis.
#[must_use]
pub fn ledger_key() -> String {
    format!("sluice:{{pool:{POOL}}}")
}

type Change = Box<dyn Fn(usize, &mut Value) + Send>;

pub struct FleetBuilder {
    name: String,
    replicas: usize,
    capacity: u64,
    tenants: Vec<Tenant>,
    copies: usize,
    with_envoy: bool,
    lease: Duration,
    longest_request: Duration,
    changes: Vec<Change>,
    /// What the gates run and whose configuration they have; `None` for this release's.
    builds: Option<(Value, Vec<PathBuf>)>,
}

impl FleetBuilder {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            replicas: 3,
            capacity: 20,
            tenants: Vec::new(),
            copies: 0,
            with_envoy: true,
            lease: LEASE,
            longest_request: LONGEST_REQUEST,
            changes: Vec::new(),
            builds: None,
        }
    }

    /// Gateways; 3 unless given.
    #[must_use]
    pub fn replicas(self, replicas: usize) -> Self {
        Self { replicas, ..self }
    }

    /// Calls that may run in the pool at once, over all gateways; 20 unless given.
    #[must_use]
    pub fn capacity(self, capacity: u64) -> Self {
        Self { capacity, ..self }
    }

    #[must_use]
    pub fn tenant(mut self, tenant: Tenant) -> Self {
        self.tenants.push(tenant);
        self
    }

    /// So many more tenants like the first one, named as [`copy_of`] does, for [`super::Direct`] callers.
    #[must_use]
    pub fn copies(self, copies: usize) -> Self {
        Self { copies, ..self }
    }

    /// Sidecars alone, for a driver that speaks their own protocol.
    #[must_use]
    pub fn without_envoy(self) -> Self {
        Self { with_envoy: false, ..self }
    }

    /// How long a gateway goes on without a word from the ledger; [`LEASE`] unless given.
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        Self { lease, ..self }
    }

    /// How long a call may live, its time in the queue included; [`LONGEST_REQUEST`] unless given. Nobody waits for longer
    /// than three fifths of it: a call that was not served is refused, and not cut off by Envoy.
    #[must_use]
    pub fn longest_request(self, longest_request: Duration) -> Self {
        Self { longest_request, ..self }
    }

    /// Other builds of the sidecar than this release's, one for each gate, on a configuration that all of them know.
    #[must_use]
    pub fn builds(self, config: Value, programs: &[&Path]) -> Self {
        let programs = programs.iter().map(|program| program.to_path_buf()).collect();
        Self { builds: Some((config, programs)), ..self }
    }

    /// The ledger of all of them.
    #[must_use]
    pub fn redis(self, redis: &Redis) -> Self {
        let settings = redis.settings();
        self.ledger(move |_| settings.clone())
    }

    /// The section `ledger.redis` of each gateway, by its number.
    #[must_use]
    pub fn ledger(self, settings: impl Fn(usize) -> Value + Send + 'static) -> Self {
        self.sidecar_config(move |gate, config| config["ledger"]["redis"] = settings(gate))
    }

    /// Changes the configuration of each gateway's sidecar further, by its number.
    #[must_use]
    pub fn sidecar_config(mut self, change: impl Fn(usize, &mut Value) + Send + 'static) -> Self {
        self.changes.push(Box::new(change));
        self
    }

    /// Starts the upstream and all gateways at once.
    ///
    /// # Errors
    /// When a component is missing or does not get ready.
    pub async fn start(self) -> Result<Fleet> {
        let upstream = Upstream::scripted().await?;
        let operators_port = ports::free()?;
        let folder = Folder::create(&format!("{}-gate-0", self.name))?;
        let token = quota_service::write_secrets(&folder)?;
        let keys = quota_service::write_config(&folder, self.config(0, operators_port)?, &self.tenants)?;
        let mut tenants = document::load(&folder.path().join(quota_service::CONFIG))?["tenants"].clone();
        add_copies(&mut tenants, self.copies, &quota_service::pepper(&folder)?)?;
        let mut prepared = vec![(folder, operators_port)];
        for number in 1..self.replicas {
            let folder = Folder::create(&format!("{}-gate-{number}", self.name))?;
            quota_service::copy_secrets(&prepared[0].0, &folder)?;
            prepared.push((folder, ports::free()?));
        }
        for (number, (folder, port)) in prepared.iter().enumerate() {
            let mut config = self.config(number, *port)?;
            config["tenants"] = tenants.clone();
            folder.write(quota_service::CONFIG, &document::text(&config))?;
        }
        let gates = prepared.into_iter().enumerate();
        let gates = gates.map(|(number, prepared)| self.gate(number, prepared, &token, upstream.address()));
        let gates = try_join_all(gates).await?;
        Ok(Fleet { gates, upstream, keys })
    }

    fn config(&self, number: usize, operators_port: u16) -> Result<Value> {
        let mut config = match &self.builds {
            Some((config, _)) => config.clone(),
            None => document::load(&paths::root().join(quota_service::CONFIG))?,
        };
        quota_service::adapt(&mut config, operators_port)?;
        quota_service::set_capacity(&mut config, self.capacity)?;
        if let Some(pool) =
            config.pointer_mut("/pools/0").and_then(Value::as_object_mut).filter(|_| self.builds.is_some())
        {
            // It is the default, and the release before knows no other.
            pool.remove("on_abort");
        }
        let ledger = &mut config["ledger"];
        ledger["holder"] = json!(format!("gate-{number}"));
        ledger["lease_ms"] = json!(self.lease.as_millis());
        ledger["longest_request_ms"] = json!(self.longest_request.as_millis());
        if let Some(ledger) = ledger.as_object_mut() {
            ledger.remove("longest_stream_ms");
        }
        let waits_ms = self.longest_request.as_millis() * 3 / 5;
        let timeout_ms = &mut config["queue"]["timeout_ms"];
        *timeout_ms = json!(timeout_ms.as_u64().map_or(waits_ms, |shipped| waits_ms.min(shipped.into())));
        for change in &self.changes {
            change(number, &mut config);
        }
        Ok(config)
    }

    async fn gate(
        &self,
        number: usize,
        (folder, operators): (Folder, u16),
        token: &str,
        upstream: SocketAddr,
    ) -> Result<Gate> {
        let operators = Operators::new(&format!("http://127.0.0.1:{operators}"), token)?;
        let program = match &self.builds {
            Some((_, programs)) => programs.get(number).context("a gate without a program")?.clone(),
            None => paths::built("quota-service")?,
        };
        let sidecar = QuotaService::start_program(program, None, folder.path(), operators).await?;
        let envoy = if self.with_envoy { Some(self.envoy(&folder, upstream).await?) } else { None };
        Ok(Gate { envoy, sidecar, folder })
    }

    async fn envoy(&self, folder: &Folder, upstream: SocketAddr) -> Result<Envoy> {
        let (traffic, admin) = (ports::free()?, ports::free()?);
        let mut bootstrap = document::load(&paths::root().join("envoy/envoy.yaml"))?;
        envoy::adapt(&mut bootstrap, traffic, admin, upstream)?;
        let limits = document::find_mut(&mut bootstrap, &|value| value["max_stream_duration"].is_string());
        // What the ledger counts on, see `longest_request_ms`.
        limits.context("no max_stream_duration")?["max_stream_duration"] =
            json!(format!("{}s", self.longest_request.as_secs_f64()));
        Envoy::start(folder, &bootstrap, traffic, admin, 1).await
    }
}

/// What the copy of this number is called, from 0, and the SHA-256 of its key.
#[must_use]
pub fn copy_of(number: usize) -> (String, [u8; 32]) {
    let name = format!("copy-{number}");
    let digest = Sha256::digest(name.as_bytes()).into();
    (name, digest)
}

/// For ten thousand tenants `quota-service key new` takes minutes: the entries of their keys are made here.
fn add_copies(tenants: &mut Value, count: usize, pepper: &str) -> Result<()> {
    let first = tenants.get(0).context("there is no tenant to copy")?.clone();
    for number in 0..count {
        let (id, digest) = copy_of(number);
        let mut hmac = Hmac::<Sha256>::new_from_slice(pepper.as_bytes())?;
        hmac.update(&digest);
        let entry = json!({"name": "key", "hmac": format!("v1:{}", hex(&hmac.finalize().into_bytes()))});
        let mut copy = first.clone();
        copy["id"] = json!(id);
        copy["namespace"] = json!(id);
        copy["keys"] = json!([entry]);
        tenants.as_array_mut().context("not a list")?.push(copy);
    }
    Ok(())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
