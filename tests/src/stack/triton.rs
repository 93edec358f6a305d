//! A real Triton on the CPU, with two models in Python.

use crate::folder::Folder;
use crate::process::Component;
use crate::{paths, ports};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const STARTS_WITHIN: Duration = Duration::from_secs(90);
const MODELS: [&str; 2] = ["simple", "story"];

pub struct Triton {
    _process: Component,
    pub http_port: u16,
    pub grpc_port: u16,
}

impl Triton {
    /// Models `simple` and `story`, see `tests/model/triton`.
    ///
    /// # Errors
    /// When it is not installed (`./justw setup full`) or does not start.
    pub async fn start(folder: &Folder) -> Result<Self> {
        let (http_port, grpc_port) = (ports::free()?, ports::free()?);
        let packages = site_packages()?;
        // The Python stub takes its packages from the first `python3` on the PATH.
        let path = format!("{}:{}", paths::tool("venv-full/bin")?.display(), std::env::var("PATH")?);
        let mut command = Command::new(packages.join("pytriton/tritonserver/bin/tritonserver"));
        command
            .arg(format!("--model-repository={}", paths::root().join("tests/model/triton").display()))
            .arg(format!("--backend-directory={}", paths::tool("triton/backends")?.display()))
            .args([format!("--http-port={http_port}"), format!("--grpc-port={grpc_port}")])
            .args(["--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--allow-metrics=false"])
            // Its own switch for what must never be reachable through Sluice: a load that got through would work.
            .arg("--model-control-mode=explicit")
            .args(MODELS.map(|model| format!("--load-model={model}")))
            .env("LD_LIBRARY_PATH", packages.join("nvidia_pytriton.libs"))
            .env("PATH", path);
        let mut process = Component::start("triton", command, &folder.path().join("triton.log"))?;
        let http = reqwest::Client::new();
        for model in MODELS {
            let ready = format!("http://127.0.0.1:{http_port}/v2/models/{model}/ready");
            process
                .ready(STARTS_WITHIN, || {
                    let request = http.get(&ready);
                    async move { request.send().await.is_ok_and(|reply| reply.status().is_success()) }
                })
                .await?;
        }
        Ok(Self { _process: process, http_port, grpc_port })
    }

    /// Such as `http://127.0.0.1:21000`.
    #[must_use]
    pub fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.http_port)
    }
}

fn site_packages() -> Result<PathBuf> {
    let library = paths::tool("venv-full/lib").context("run ./justw setup full")?;
    let version = fs::read_dir(library)?.next().context("an empty environment")??;
    Ok(version.path().join("site-packages"))
}
