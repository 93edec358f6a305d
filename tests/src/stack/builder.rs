//! What a test wants of its stack, and the order in which it is started.

use super::{Envoy, FakeExporter, Model, QuotaService, Redis, Stack, envoy, quota_service};
use crate::admin::Operators;
use crate::folder::Folder;
use crate::tenant::Tenant;
use crate::upstream::Upstream;
use crate::{document, paths, ports};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::Command;

/// Which shipped file Envoy runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// `envoy/envoy.yaml`.
    Envoy,
    /// What the EnvoyFilter in `istio/` makes of a gateway.
    EnvoyFilter,
    /// What the WasmPlugin in `istio/` makes of a gateway.
    WasmPlugin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    Free,
    /// 8080, 9901 and 8081 where they are free.
    Documented,
}

/// What stands behind Envoy.
enum ServedBy {
    Script,
    Model,
    Server(String),
}

type Change = Box<dyn FnOnce(&mut Value) + Send>;

pub struct StackBuilder {
    name: String,
    tenants: Vec<Tenant>,
    /// `None`: tenants and capacity as shipped.
    capacity: Option<u64>,
    served_by: ServedBy,
    redis: bool,
    namespaces: Vec<&'static str>,
    workers: u32,
    ports: Ports,
    bootstrap: Bootstrap,
    sidecar_changes: Vec<Change>,
    plugin_changes: Vec<Change>,
    envoy_changes: Vec<Change>,
    progress: fn(&str),
}

struct ChosenPorts {
    traffic: u16,
    admin: u16,
    operators: u16,
}

impl StackBuilder {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            tenants: Vec::new(),
            capacity: Some(2),
            served_by: ServedBy::Script,
            redis: false,
            namespaces: Vec::new(),
            workers: 2,
            ports: Ports::Free,
            bootstrap: Bootstrap::Envoy,
            sidecar_changes: Vec::new(),
            plugin_changes: Vec::new(),
            envoy_changes: Vec::new(),
            progress: |_| (),
        }
    }

    #[must_use]
    pub fn tenant(mut self, tenant: Tenant) -> Self {
        self.tenants.push(tenant);
        self
    }

    /// Calls that may run in the pool at once; 2 unless given.
    #[must_use]
    pub fn capacity(mut self, concurrent: u64) -> Self {
        self.capacity = Some(concurrent);
        self
    }

    /// The shipped configuration's own tenants and capacity, only with keys.
    #[must_use]
    pub fn as_shipped(mut self) -> Self {
        self.capacity = None;
        self
    }

    /// A real model behind a counting proxy, instead of the scripted upstream.
    #[must_use]
    pub fn real_model(mut self) -> Self {
        self.served_by = ServedBy::Model;
        self
    }

    /// Something else that listens already, such as `http://127.0.0.1:21000`, behind a counting proxy.
    #[must_use]
    pub fn served_by(mut self, base: &str) -> Self {
        self.served_by = ServedBy::Server(base.to_owned());
        self
    }

    /// A real Redis as the ledger, instead of the embedded one.
    #[must_use]
    pub fn redis(mut self) -> Self {
        self.redis = true;
        self
    }

    /// A fake GPU exporter with one GPU for every namespace.
    #[must_use]
    pub fn gpus(mut self, namespaces: &[&'static str]) -> Self {
        self.namespaces = namespaces.to_vec();
        self
    }

    /// Envoy's worker threads, each with its own copy of the filter; 2 unless given.
    #[must_use]
    pub fn workers(mut self, count: u32) -> Self {
        self.workers = count;
        self
    }

    #[must_use]
    pub fn ports(mut self, ports: Ports) -> Self {
        self.ports = ports;
        self
    }

    #[must_use]
    pub fn bootstrap(mut self, bootstrap: Bootstrap) -> Self {
        self.bootstrap = bootstrap;
        self
    }

    /// Changes the sidecar's configuration further.
    #[must_use]
    pub fn sidecar_config(mut self, change: impl FnOnce(&mut Value) + Send + 'static) -> Self {
        self.sidecar_changes.push(Box::new(change));
        self
    }

    /// Changes the filter's configuration further.
    #[must_use]
    pub fn plugin_config(mut self, change: impl FnOnce(&mut Value) + Send + 'static) -> Self {
        self.plugin_changes.push(Box::new(change));
        self
    }

    /// Changes Envoy's bootstrap further, after its ports and paths are the test's.
    #[must_use]
    pub fn envoy_config(mut self, change: impl FnOnce(&mut Value) + Send + 'static) -> Self {
        self.envoy_changes.push(Box::new(change));
        self
    }

    /// Is told what is being started.
    #[must_use]
    pub fn progress(mut self, report: fn(&str)) -> Self {
        self.progress = report;
        self
    }

    /// Starts everything, each component when what it needs is ready.
    ///
    /// # Errors
    /// When a component is missing or does not get ready.
    pub async fn start(self) -> Result<Stack> {
        let folder = Folder::create(&self.name)?;
        let ports = choose_ports(self.ports)?;
        let (model, upstream) = start_upstream(&folder, &self.served_by, self.progress).await?;
        let exporter = start_exporter(&folder, &self.namespaces, self.progress).await?;
        let redis = if self.redis { Some(Redis::start(&folder).await?) } else { None };

        (self.progress)("quota-service");
        let mut config = document::load(&paths::root().join(quota_service::CONFIG))?;
        quota_service::adapt(&mut config, ports.operators)?;
        let tenants = match self.capacity {
            None => shipped_tenants(&config),
            Some(capacity) => {
                quota_service::set_capacity(&mut config, capacity)?;
                self.tenants
            }
        };
        connect(&mut config, redis.as_ref(), exporter.as_ref());
        for change in self.sidecar_changes {
            change(&mut config);
        }
        let token = quota_service::write_secrets(&folder)?;
        let keys = quota_service::write_config(&folder, config, &tenants)?;
        let operators = Operators::new(&format!("http://127.0.0.1:{}", ports.operators), &token)?;
        let sidecar = QuotaService::start(folder.path(), operators).await?;

        (self.progress)("Envoy with the filter");
        let mut bootstrap = load_bootstrap(&folder, self.bootstrap, &ports, upstream.address())?;
        for change in self.plugin_changes {
            envoy::change_plugin(&mut bootstrap, change)?;
        }
        for change in self.envoy_changes {
            change(&mut bootstrap);
        }
        let envoy = Envoy::start(&folder, &bootstrap, ports.traffic, ports.admin, self.workers).await?;
        Ok(Stack { envoy, sidecar, redis, upstream, model, exporter, tenants, keys, folder })
    }
}

fn shipped_tenants(config: &Value) -> Vec<Tenant> {
    config["tenants"].as_array().into_iter().flatten().map(Tenant::from_section).collect()
}

async fn start_exporter(folder: &Folder, namespaces: &[&str], progress: fn(&str)) -> Result<Option<FakeExporter>> {
    if namespaces.is_empty() {
        return Ok(None);
    }
    progress("the fake GPU exporter");
    Ok(Some(FakeExporter::start(folder, "worker-01", namespaces).await?))
}

async fn start_upstream(
    folder: &Folder,
    served_by: &ServedBy,
    progress: fn(&str),
) -> Result<(Option<Model>, Upstream)> {
    match served_by {
        ServedBy::Script => return Ok((None, Upstream::scripted().await?)),
        ServedBy::Server(base) => return Ok((None, Upstream::in_front_of(base).await?)),
        ServedBy::Model => {}
    }
    progress("the model, SmolLM2-135M on llama.cpp");
    let model = Model::start(folder).await?;
    let proxy = Upstream::in_front_of(model.base()).await?;
    Ok((Some(model), proxy))
}

fn connect(config: &mut Value, redis: Option<&Redis>, exporter: Option<&FakeExporter>) {
    if let Some(redis) = redis {
        config["ledger"]["redis_url"] = json!(redis.url());
    }
    if let Some(exporter) = exporter {
        let target = json!({"node": exporter.node(), "url": exporter.metrics_url()});
        config["gpu"] = json!({"interval_ms": 500, "exporters": [target]});
    }
}

fn choose_ports(wish: Ports) -> Result<ChosenPorts> {
    let choose = |documented: u16| match wish {
        Ports::Documented if ports::is_free(documented) => Ok(documented),
        Ports::Documented | Ports::Free => ports::free(),
    };
    Ok(ChosenPorts { traffic: choose(8080)?, admin: choose(9901)?, operators: choose(8081)? })
}

fn load_bootstrap(folder: &Folder, which: Bootstrap, ports: &ChosenPorts, upstream: SocketAddr) -> Result<Value> {
    let emit = match which {
        Bootstrap::Envoy => None,
        Bootstrap::EnvoyFilter => Some("--emit-envoyfilter-bootstrap"),
        Bootstrap::WasmPlugin => Some("--emit-wasmplugin-bootstrap"),
    };
    let Some(option) = emit else {
        let mut bootstrap = document::load(&paths::root().join("envoy/envoy.yaml"))?;
        envoy::adapt(&mut bootstrap, ports.traffic, ports.admin, upstream)?;
        return Ok(bootstrap);
    };
    let mut bootstrap = emitted(folder, option, ports.traffic, upstream)?;
    bootstrap["admin"] = json!({"address": {"socket_address": {"address": "127.0.0.1", "port_value": ports.admin}}});
    Ok(bootstrap)
}

/// What our own checker makes of a shipped Istio resource.
fn emitted(folder: &Folder, option: &str, traffic: u16, upstream: SocketAddr) -> Result<Value> {
    let path = folder.path().join("emitted.yaml");
    let output = Command::new(paths::tool("venv/bin/python")?)
        .current_dir(paths::root())
        .arg("scripts/check_manifests.py")
        .arg(option)
        .arg(&path)
        .args(["--listen", &traffic.to_string(), "--upstream", &upstream.to_string()])
        .args(["--sidecar-socket", "envoy/run/sluice.sock"])
        .arg("--wasm")
        .arg(paths::filter_module()?)
        .output()
        .context("scripts/check_manifests.py")?;
    if !output.status.success() {
        bail!("check_manifests.py {option}: {}", String::from_utf8_lossy(&output.stderr));
    }
    document::load(&path)
}
