//! The fake DCGM exporter: made-up load in the recorded shape.

use crate::folder::Folder;
use crate::paths;
use crate::process::Component;
use crate::wait::wait_for;
use anyhow::Result;
use std::process::Command;
use std::time::Duration;

const STARTS_WITHIN: Duration = Duration::from_secs(10);

pub struct FakeExporter {
    _process: Component,
    base: String,
    node: String,
}

impl FakeExporter {
    /// Starts one with as many GPUs as namespaces.
    ///
    /// # Errors
    /// When it is not built or does not start.
    pub async fn start(folder: &Folder, node: &str, namespaces: &[&str]) -> Result<Self> {
        let mut command = Command::new(paths::built("fake-dcgm-exporter")?);
        command.args(["--listen", "127.0.0.1:0", "--node", node]).args([
            "--gpus",
            &namespaces.len().to_string(),
            "--namespaces",
            &namespaces.join(","),
        ]);
        let process = Component::start("exporter", command, &folder.path().join("exporter.log"))?;
        let base = wait_for("the exporter prints its address", STARTS_WITHIN, || async {
            process.log().lines().find_map(|line| Some(line.strip_prefix("ready ")?.trim().to_owned()))
        })
        .await?;
        Ok(Self { _process: process, base, node: node.to_owned() })
    }

    /// Where a scrape finds it.
    #[must_use]
    pub fn metrics_url(&self) -> String {
        format!("{}/metrics", self.base.trim_end_matches("/metrics").trim_end_matches('/'))
    }

    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }
}
