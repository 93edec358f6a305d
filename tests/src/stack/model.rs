//! A real small model on llama.cpp's server.

use crate::folder::Folder;
use crate::process::Component;
use crate::{paths, ports};
use anyhow::Result;
use std::process::Command;
use std::time::Duration;

/// Loading the weights takes a second on an idle machine; two cores under a compiler take longer.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

pub struct Model {
    _process: Component,
    base: String,
}

impl Model {
    /// # Errors
    /// When it is not installed or does not start.
    pub async fn start(folder: &Folder) -> Result<Self> {
        let port = ports::free()?;
        let base = format!("http://127.0.0.1:{port}");
        let mut command = Command::new(paths::tool("venv/bin/python")?);
        command.arg(paths::root().join("tests/model/serve.py")).args([
            "--port",
            &port.to_string(),
            "--ctx",
            "4096",
            "--threads",
            "1",
        ]);
        let mut process = Component::start("model", command, &folder.path().join("model.log"))?;
        let health = format!("{base}/health");
        let http = reqwest::Client::new();
        process
            .ready(STARTS_WITHIN, || {
                let request = http.get(&health);
                async move { request.send().await.is_ok_and(|reply| reply.status().is_success()) }
            })
            .await?;
        Ok(Self { _process: process, base })
    }

    /// Such as `http://127.0.0.1:21000`.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }
}
