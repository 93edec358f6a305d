//! Real servers that keep nothing on disk: one Redis or Valkey, with or without TLS.
//!
//! [`sentinels`] and [`cluster`] make more of them.

pub mod certificates;
pub mod cluster;
pub mod sentinels;

use crate::folder::Folder;
use crate::process::Component;
use crate::{paths, ports};
use anyhow::{Context, Result, bail};
use certificates::Certificates;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const STARTS_WITHIN: Duration = Duration::from_secs(10);
/// Holds the offset of a faked clock, in a server's folder.
const CLOCK: &str = "clock";

/// Which program serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// What `.tools/bin/redis-server` is: Redis, or Valkey on a machine where nobody may install Redis.
    Redis,
    Valkey,
}

/// How a server is started; see [`Redis::launch`].
#[derive(Clone, Debug)]
pub struct Setup {
    engine: Engine,
    name: String,
    /// Come first: a configuration file is one only in the first place.
    first_arguments: Vec<String>,
    arguments: Vec<String>,
    tls: Option<Certificates>,
    /// Loaded before the server, so that its clock is what a file says.
    faked_clock: Option<PathBuf>,
}

pub struct Redis {
    process: Component,
    setup: Setup,
    port: u16,
    folder: PathBuf,
}

impl Engine {
    fn program(self) -> Result<PathBuf> {
        paths::tool(match self {
            Engine::Redis => "bin/redis-server",
            Engine::Valkey => "bin/valkey-server",
        })
    }
}

impl Setup {
    /// A server whose files bear `name`.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            engine: Engine::Redis,
            name: name.to_owned(),
            first_arguments: Vec::new(),
            arguments: Vec::new(),
            tls: None,
            faked_clock: None,
        }
    }

    #[must_use]
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// More arguments for its command line.
    #[must_use]
    pub fn arguments<T: ToString>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.to_string()));
        self
    }

    /// A Sentinel with this configuration, which it goes on writing to.
    #[must_use]
    pub fn sentinel(mut self, config: &Path) -> Self {
        self.first_arguments = vec![config.display().to_string(), "--sentinel".to_owned()];
        self
    }

    /// A server whose clock can be set, see [`Redis::set_clock`]. Only for [`Engine::Valkey`] as it is built for Python:
    /// the allocator of Debian's Redis asks for the time before the faked clock is there.
    ///
    /// # Errors
    /// When libfaketime is not installed.
    pub fn faked_clock(self) -> Result<Self> {
        Ok(Self { faked_clock: Some(paths::tool("bin/libfaketime.so")?), ..self })
    }

    /// A node of a cluster. Its second port is not the usual one, 10,000 above the first: that may be in the range from
    /// which the kernel takes ports for outgoing connections.
    ///
    /// # Errors
    /// When no port is free.
    pub fn node(mut self) -> Result<Self> {
        let port = ports::free()?.to_string();
        self.arguments.extend(["--cluster-enabled".to_owned(), "yes".to_owned(), "--cluster-port".to_owned(), port]);
        Ok(self)
    }

    /// Only TLS, and only for clients with a certificate of the same authority.
    #[must_use]
    pub fn tls(mut self, certificates: &Certificates) -> Self {
        self.tls = Some(certificates.clone());
        self
    }
}

impl Redis {
    /// Redis as it comes.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub async fn start(folder: &Folder) -> Result<Self> {
        Self::launch(folder, Setup::named("redis")).await
    }

    /// Starts a server on a free port.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub async fn launch(folder: &Folder, setup: Setup) -> Result<Self> {
        let (port, folder) = (ports::free()?, folder.path().join(&setup.name));
        std::fs::create_dir_all(&folder)?;
        let process = spawn(&folder, port, &setup).await?;
        Ok(Self { process, setup, port, folder })
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.setup.tls.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// The section `ledger.redis` of a service that uses it.
    #[must_use]
    pub fn settings(&self) -> Value {
        let mut settings = json!({"url": self.url()});
        if let Some(certificates) = &self.setup.tls {
            settings["tls"] = certificates.settings();
        }
        settings
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// # Errors
    /// When it is gone already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Sets its clock so many seconds before or after the machine's.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn set_clock(&self, offset_s: i64) -> Result<()> {
        write_clock(&self.folder, offset_s)
    }

    /// Where its files lie.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Removes what a `SAVE` has written, so that the next start is an empty one.
    ///
    /// # Errors
    /// When there is something that cannot be removed.
    pub fn forget(&self) -> Result<()> {
        match std::fs::remove_file(self.folder.join("dump.rdb")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Starts it again on the same port; empty, unless a `SAVE` has written what it knew then.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        self.process = spawn(&self.folder, self.port, &self.setup).await?;
        Ok(())
    }

    /// What `redis-cli` prints for a command, as an operator would see it.
    ///
    /// # Errors
    /// When the command fails, or is refused.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(paths::tool("bin/redis-cli")?);
        // Without `-e` a refusal is printed, and the exit code is that of success.
        command.args(["-e", "-p", &self.port.to_string()]);
        if let Some(certificates) = &self.setup.tls {
            command.args(certificates.cli_arguments());
        }
        let output = command.args(arguments).output()?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            bail!("redis-cli {arguments:?}: {}", String::from_utf8_lossy(&said));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The fields of `INFO`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn info(&self) -> Result<BTreeMap<String, String>> {
        let printed = self.cli(&["INFO", "everything"])?;
        let fields = printed.lines().filter_map(|line| line.split_once(':'));
        Ok(fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }
}

/// The rights that `docs/LEDGER.md` asks for, as arguments of `ACL SETUSER`, with this password; the user is `sluice`.
///
/// # Errors
/// When the document does not tell them any more.
pub fn documented_rights(password: &str) -> Result<Vec<String>> {
    let document = std::fs::read_to_string(paths::root().join("docs/LEDGER.md"))?;
    let line = document.lines().find_map(|line| line.trim().strip_prefix("user sluice "));
    let rights = line.context("docs/LEDGER.md has no line that begins with `user sluice`")?;
    Ok(rights.replace("PASSWORD", password).split(' ').map(str::to_owned).collect())
}

/// How libfaketime is told an offset.
fn write_clock(folder: &Path, offset_s: i64) -> Result<()> {
    let path = folder.join(CLOCK);
    // Renamed into place, or the server might read half of it.
    let next = path.with_extension("next");
    std::fs::write(&next, format!("{offset_s:+}"))?;
    std::fs::rename(next, path).context("cannot set the clock")
}

async fn spawn(folder: &Path, port: u16, setup: &Setup) -> Result<Component> {
    let mut command = Command::new(setup.engine.program()?);
    if let Some(library) = &setup.faked_clock {
        write_clock(folder, 0)?;
        command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", folder.join(CLOCK));
        // It reads the file again for every look at the clock, and leaves alone what only measures spans.
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
    command.current_dir(folder).args(&setup.first_arguments).args([
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    ]);
    match &setup.tls {
        None => command.args(["--port", &port.to_string()]),
        Some(certificates) => {
            command.args(["--port", "0", "--tls-port", &port.to_string()]).args(certificates.server_arguments())
        }
    };
    command.args(&setup.arguments);
    let mut process = Component::start(&setup.name, command, &folder.join("log"))?;
    process
        .ready(STARTS_WITHIN, || async move { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() })
        .await?;
    Ok(process)
}
