//! A real Redis that keeps nothing on disk.

use crate::folder::Folder;
use crate::process::Component;
use crate::{paths, ports};
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const STARTS_WITHIN: Duration = Duration::from_secs(10);

pub struct Redis {
    process: Component,
    port: u16,
    folder: PathBuf,
}

impl Redis {
    /// # Errors
    /// When it is not installed or does not start.
    pub async fn start(folder: &Folder) -> Result<Self> {
        let (port, folder) = (ports::free()?, folder.path().to_path_buf());
        let process = launch(&folder, port).await?;
        Ok(Self { process, port, folder })
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same port, empty.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        self.process = launch(&self.folder, self.port).await?;
        Ok(())
    }

    /// What `redis-cli` prints for a command, as an operator would see it.
    ///
    /// # Errors
    /// When the command fails.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(paths::tool("bin/redis-cli")?)
            .args(["-p", &self.port.to_string()])
            .args(arguments)
            .output()?;
        if !output.status.success() {
            bail!("redis-cli {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

async fn launch(folder: &std::path::Path, port: u16) -> Result<Component> {
    let mut command = Command::new(paths::tool("bin/redis-server")?);
    command.current_dir(folder).args([
        "--port",
        &port.to_string(),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    ]);
    let mut process = Component::start("redis", command, &folder.join("redis.log"))?;
    process
        .ready(STARTS_WITHIN, || async move { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() })
        .await?;
    Ok(process)
}
