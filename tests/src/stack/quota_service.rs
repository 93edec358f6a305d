//! The sidecar, from the shipped configuration with other ports, tenants and secrets.

use crate::admin::Operators;
use crate::document::text;
use crate::folder::Folder;
use crate::process::Component;
use crate::tenant::Tenant;
use crate::{keys, paths};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

const STARTS_WITHIN: Duration = Duration::from_secs(20);
/// Below the test folder, as in the repository; relative, so that the path of the socket beside it stays short.
pub const CONFIG: &str = "envoy/quota-service.yaml";
const PEPPER: &str = "envoy/run/pepper";
const ADMIN_TOKEN: &str = "envoy/run/admin-token";

pub struct QuotaService {
    process: Component,
    operators: Operators,
    folder: PathBuf,
    /// `gate` or `control`; absent for both in one.
    role: Option<&'static str>,
    /// Of this release or another.
    program: PathBuf,
    /// How many seconds its clock is ahead of the machine's.
    clock_s: i64,
}

impl QuotaService {
    /// Starts it on the configuration that [`write_config`] wrote.
    ///
    /// # Errors
    /// When it is not built, refuses the configuration or does not get ready.
    pub async fn start(folder: &Path, operators: Operators) -> Result<Self> {
        Self::start_as(None, folder, operators).await
    }

    /// The same with a role.
    ///
    /// # Errors
    /// As [`QuotaService::start`].
    pub async fn start_as(role: Option<&'static str>, folder: &Path, operators: Operators) -> Result<Self> {
        Self::start_program(paths::built("quota-service")?, role, folder, operators).await
    }

    /// The same of another build.
    ///
    /// # Errors
    /// As [`QuotaService::start`].
    pub async fn start_program(
        program: PathBuf,
        role: Option<&'static str>,
        folder: &Path,
        operators: Operators,
    ) -> Result<Self> {
        let process = spawn(&program, folder, role, 0)?;
        let mut service = Self { process, operators, folder: folder.to_path_buf(), role, program, clock_s: 0 };
        service.ready().await?;
        Ok(service)
    }

    #[must_use]
    pub fn operators(&self) -> &Operators {
        &self.operators
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same configuration, after whatever happened to it.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn restart(&mut self) -> Result<()> {
        self.restart_without_waiting()?;
        self.ready().await
    }

    /// As [`QuotaService::restart`], for one that may never get ready.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart_without_waiting(&mut self) -> Result<()> {
        self.kill();
        self.process = spawn(&self.program, &self.folder, self.role, self.clock_s)?;
        Ok(())
    }

    /// Another build of it runs from the next restart on.
    pub fn install(&mut self, program: &Path) {
        self.program = program.to_path_buf();
    }

    /// From the next restart on its clock is so many seconds ahead of the machine's. That takes libfaketime.
    pub fn set_clock(&mut self, offset_s: i64) {
        self.clock_s = offset_s;
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// When it ends instead, or does not get ready.
    pub async fn ready(&mut self) -> Result<()> {
        let operators = &self.operators;
        self.process
            .ready(STARTS_WITHIN, || {
                let operators = operators.clone();
                async move { operators.is_ready().await }
            })
            .await
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// # Errors
    /// When it is gone already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// # Errors
    /// When it still runs at the deadline.
    pub async fn ended(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.process.ended(deadline).await
    }

    /// Bytes of memory that it has resident, as the kernel counts them.
    ///
    /// # Errors
    /// When it is gone.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS: it has ended")?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes * 1024)
    }

    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }
}

fn spawn(program: &Path, folder: &Path, role: Option<&str>, clock_s: i64) -> Result<Component> {
    let mut command = Command::new(program);
    if clock_s != 0 {
        command.env("LD_PRELOAD", paths::tool("bin/libfaketime.so")?).env("FAKETIME", format!("{clock_s:+}"));
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
    command.current_dir(folder).args(["serve", "--config", CONFIG]);
    command.args(role.into_iter().flat_map(|role| ["--role", role]));
    Component::start("quota-service", command, &folder.join("quota-service.log"))
}

/// Writes the secrets that the configuration points to, made for this run, and gives the operators' token.
///
/// # Errors
/// When the file system refuses.
pub fn write_secrets(folder: &Folder) -> Result<String> {
    let token = random_hex()?;
    folder.write_secret(PEPPER, &random_hex()?)?;
    folder.write_secret(ADMIN_TOKEN, &token)?;
    Ok(token)
}

/// What [`write_secrets`] has made for keys.
///
/// # Errors
/// When it is not there.
pub fn pepper(folder: &Folder) -> Result<String> {
    Ok(std::fs::read_to_string(folder.path().join(PEPPER))?)
}

/// The same secrets for another replica.
///
/// # Errors
/// When the file system refuses.
pub fn copy_secrets(from: &Folder, to: &Folder) -> Result<()> {
    for name in [PEPPER, ADMIN_TOKEN] {
        to.write_secret(name, &std::fs::read_to_string(from.path().join(name))?)?;
    }
    Ok(())
}

fn random_hex() -> Result<String> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes the configuration with a new key for every tenant, and gives the keys by tenant.
///
/// # Errors
/// When the configuration has no place for them or a key cannot be made.
pub fn write_config(folder: &Folder, mut config: Value, tenants: &[Tenant]) -> Result<BTreeMap<String, String>> {
    config["tenants"] = tenants.iter().map(|tenant| tenant.section(Vec::new())).collect();
    folder.write(CONFIG, &text(&config))?;
    let mut raw_keys = BTreeMap::new();
    let mut sections = Vec::new();
    for tenant in tenants {
        let key = keys::new_key(folder.path(), Path::new(CONFIG), &tenant.id)?;
        sections.push(tenant.section(vec![key.entry]));
        raw_keys.insert(tenant.id.clone(), key.raw);
    }
    config["tenants"] = Value::Array(sections);
    folder.write(CONFIG, &text(&config))?;
    Ok(raw_keys)
}

/// Puts the operators' port into the shipped configuration, and takes out what no test has unless it asks for it:
/// Redis and GPU exporters.
///
/// # Errors
/// When the configuration is not a mapping with a ledger.
pub fn adapt(config: &mut Value, operators_port: u16) -> Result<()> {
    config["listeners"]["operators"]["address"] = json!(format!("127.0.0.1:{operators_port}"));
    config["ledger"].as_object_mut().context("no ledger")?.remove("redis_url");
    config.as_object_mut().context("not a mapping")?.remove("gpu");
    Ok(())
}

/// A pool of this many slots without a limit on tokens, whose server stops with its clients, as the scripted one does.
///
/// # Errors
/// When the configuration has no pool.
pub fn set_capacity(config: &mut Value, concurrent: u64) -> Result<()> {
    let pool = config.pointer_mut("/pools/0").context("no pool")?;
    pool["capacity"] = json!({"concurrent": concurrent});
    pool["on_abort"] = json!("cancels");
    Ok(())
}

/// The accounts of a pool or a tenant in Redis, as `quota-service inspect` shows them.
///
/// # Errors
/// When it fails.
pub fn inspect(folder: &Folder, name: &str) -> Result<Vec<Value>> {
    let mut inspect = Command::new(paths::built("quota-service")?);
    inspect.args(["inspect", "--json", "--config", CONFIG, name]).current_dir(folder.path());
    let told = inspect.output().context("quota-service inspect")?;
    ensure!(told.status.success(), "quota-service inspect: {}", String::from_utf8_lossy(&told.stderr));
    Ok(serde_json::from_slice(&told.stdout)?)
}
