//! Envoy with the filter in it, from the shipped bootstrap or one that a shipped Istio resource amounts to.

use crate::document::{find_mut, text};
use crate::folder::Folder;
use crate::metrics::Metrics;
use crate::paths;
use crate::process::Component;
use crate::wait::wait_for;
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Compiling the filter takes V8 a second on an idle machine; two cores under a compiler take longer.
const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// Below the test folder, as in the repository.
const BOOTSTRAP: &str = "envoy/envoy.yaml";

pub struct Envoy {
    process: Component,
    folder: PathBuf,
    traffic_port: u16,
    admin_port: u16,
    workers: u32,
}

impl Envoy {
    /// Starts Envoy on an already adapted bootstrap.
    ///
    /// # Errors
    /// When it is not installed, refuses the bootstrap or does not start.
    pub async fn start(
        folder: &Folder,
        bootstrap: &Value,
        traffic_port: u16,
        admin_port: u16,
        workers: u32,
    ) -> Result<Self> {
        folder.write(BOOTSTRAP, &text(bootstrap))?;
        let process = spawn(folder.path(), workers)?;
        let mut envoy = Self { process, folder: folder.path().to_path_buf(), traffic_port, admin_port, workers };
        envoy.ready().await?;
        Ok(envoy)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// # Errors
    /// When it is gone already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Starts it again on the same bootstrap, after whatever happened to it.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        self.process = spawn(&self.folder, self.workers)?;
        self.ready().await
    }

    async fn ready(&mut self) -> Result<()> {
        let ready = format!("{}/ready", self.admin_base());
        let http = reqwest::Client::new();
        self.process
            .ready(STARTS_WITHIN, || {
                let request = http.get(&ready);
                async move { request.send().await.is_ok_and(|reply| reply.status() == 200) }
            })
            .await
    }

    /// Where clients call.
    #[must_use]
    pub fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.traffic_port)
    }

    #[must_use]
    pub fn admin_base(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin_port)
    }

    /// What it counts, the filter's own metrics too.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        let url = format!("{}/stats/prometheus", self.admin_base());
        Ok(Metrics::parse(&reqwest::get(url).await?.text().await?))
    }

    /// Waits until its metrics are so.
    ///
    /// # Errors
    /// When the deadline passes first.
    pub async fn wait_for_metrics(
        &self,
        what: &str,
        deadline: Duration,
        are_so: impl Fn(&Metrics) -> bool,
    ) -> Result<()> {
        wait_for(what, deadline, || async { self.metrics().await.ok().filter(|metrics| are_so(metrics)) })
            .await
            .map(drop)
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// All it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }
}

fn spawn(folder: &Path, workers: u32) -> Result<Component> {
    let mut command = Command::new(paths::tool("bin/envoy")?);
    command
        .current_dir(folder)
        .args(["-c", BOOTSTRAP, "--disable-hot-restart", "--component-log-level", "main:warning"])
        .args(["--concurrency", &workers.to_string()])
        // Of the access log, which otherwise comes every 10 s.
        .args(["--file-flush-interval-msec", "50"]);
    Component::start("envoy", command, &folder.join("envoy.log"))
}

/// Puts the test's ports, upstream and filter module into a bootstrap. The socket's path stays: it is relative to
/// the folder, which is laid out like the repository.
///
/// # Errors
/// When the bootstrap has not the shape that the shipped ones have.
pub fn adapt(bootstrap: &mut Value, traffic_port: u16, admin_port: u16, upstream: SocketAddr) -> Result<()> {
    bootstrap["admin"] = json!({"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin_port}}});
    let listener = bootstrap.pointer_mut("/static_resources/listeners/0").context("no listener")?;
    set_address(listener, "127.0.0.1", traffic_port).context("the listener has no address")?;
    for name in ["model", "model-grpc"] {
        let cluster = find_mut(bootstrap, &|value| value["name"] == name && !value["load_assignment"].is_null())
            .with_context(|| format!("no cluster named {name}"))?;
        set_address(cluster, &upstream.ip().to_string(), upstream.port()).context("the cluster has no address")?;
    }
    let plugin = plugin_mut(bootstrap)?;
    let code = find_mut(plugin, &|value| value["filename"].is_string()).context("the filter has no file")?;
    code["filename"] = json!(paths::filter_module()?);
    Ok(())
}

/// Changes the filter's own configuration inside a bootstrap.
///
/// # Errors
/// When there is no filter in it, or its configuration is not JSON.
pub fn change_plugin(bootstrap: &mut Value, change: impl FnOnce(&mut Value)) -> Result<()> {
    let holder = &mut plugin_mut(bootstrap)?["configuration"];
    if let Some(written) = holder["value"].as_str() {
        let mut configuration = serde_json::from_str(written).context("the filter's configuration")?;
        change(&mut configuration);
        holder["value"] = json!(configuration.to_string());
    } else {
        change(&mut holder["value"]);
    }
    Ok(())
}

fn plugin_mut(bootstrap: &mut Value) -> Result<&mut Value> {
    find_mut(bootstrap, &|value| value["vm_config"].is_object()).context("no wasm filter")
}

fn set_address(holder: &mut Value, address: &str, port: u16) -> Option<()> {
    let socket = find_mut(holder, &|value| value["port_value"].is_number())?;
    socket["address"] = json!(address);
    socket["port_value"] = json!(port);
    Some(())
}
