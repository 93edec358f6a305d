//! A master, a replica and three Sentinels that watch them.

use super::{Redis, Setup};
use crate::folder::Folder;
use crate::wait::{wait_for, wait_until};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// What the Sentinels call the master.
pub const MASTER: &str = "main";
/// Sentinels give each other time to hear of a master before they agree on it.
const SETTLES_WITHIN: Duration = Duration::from_secs(30);
/// So short that a test does not wait for long, and far above what a busy machine stalls.
const DOWN_AFTER: Duration = Duration::from_millis(800);

pub struct Sentinels {
    /// The first one begins as the master, the second one as its replica.
    pub servers: [Redis; 2],
    pub sentinels: Vec<Redis>,
    password_file: Option<PathBuf>,
}

impl Sentinels {
    /// Starts them, and waits until they know each other. With a password both servers have a user `sluice` with the
    /// documented rights, and the Sentinels one that may only ask for the master.
    ///
    /// # Errors
    /// When they are not installed or do not agree.
    pub async fn start(folder: &Folder, password: Option<&str>) -> Result<Self> {
        Self::launch(folder, password, DOWN_AFTER).await
    }

    /// The same; a master that is silent for `down_after` is replaced.
    ///
    /// # Errors
    /// When they are not installed or do not agree.
    pub async fn launch(folder: &Folder, password: Option<&str>, down_after: Duration) -> Result<Self> {
        let setup = |name: &str| -> Result<Setup> {
            let setup = Setup::named(name).arguments(["--repl-diskless-sync-delay", "0"]);
            Ok(match password {
                Some(password) => setup.arguments(["--user", "sluice"]).arguments(super::documented_rights(password)?),
                None => setup,
            })
        };
        let master = Redis::launch(folder, setup("master")?).await?;
        let of = ["--replicaof".to_owned(), format!("127.0.0.1 {}", master.port())];
        let replica = Redis::launch(folder, setup("replica")?.arguments(of)).await?;
        let mut sentinels = Vec::new();
        for number in 0..3 {
            sentinels.push(start_sentinel(folder, number, master.port(), password, down_after).await?);
        }
        let password_file = password.map(|text| folder.write_secret("sentinels-password", text)).transpose()?;
        let rig = Self { servers: [master, replica], sentinels, password_file };
        rig.settled().await?;
        Ok(rig)
    }

    /// The section `ledger.redis` of a service that uses them.
    #[must_use]
    pub fn settings(&self) -> Value {
        let nodes: Vec<String> = self.sentinels.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        match &self.password_file {
            None => json!({"url": format!("redis+sentinel://{}/{MASTER}", nodes.join(","))}),
            Some(file) => json!({
                "url": format!("redis+sentinel://sluice@{}/{MASTER}", nodes.join(",")),
                "password_file": file,
                "sentinel": {"user": "watcher", "password_file": file},
            }),
        }
    }

    /// Which of the servers the Sentinels call master now, by its index.
    ///
    /// # Errors
    /// When no Sentinel answers.
    pub fn master(&self) -> Result<usize> {
        let ask = |node: &Redis| node.cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]).ok();
        let answer = self.sentinels.iter().find_map(ask).context("no Sentinel answers")?;
        let port: u16 = answer.lines().nth(1).context("no port")?.trim().parse()?;
        self.servers.iter().position(|server| server.port() == port).context("the master is none of ours")
    }

    /// Waits until the other server has become the master.
    ///
    /// # Errors
    /// When that does not happen.
    pub async fn failed_over(&self, old: usize) -> Result<()> {
        wait_until("the Sentinels name another master", SETTLES_WITHIN, || async {
            let other = 1 - old;
            self.master().is_ok_and(|master| master == other)
                && self.servers[other].info().is_ok_and(|info| info.get("role").is_some_and(|role| role == "master"))
        })
        .await
        .map(drop)
    }

    async fn settled(&self) -> Result<()> {
        let known = |node: &Redis, field: &str| -> Option<u64> {
            let said = node.cli(&["SENTINEL", "MASTER", MASTER]).ok()?;
            let lines: Vec<&str> = said.lines().collect();
            lines.chunks_exact(2).find(|pair| pair[0] == field)?[1].parse().ok()
        };
        wait_for("every Sentinel knows the others and the replica", SETTLES_WITHIN, || async {
            let all = self
                .sentinels
                .iter()
                .all(|node| known(node, "num-other-sentinels") == Some(2) && known(node, "num-slaves") == Some(1));
            let linked =
                self.servers[1].info().is_ok_and(|info| info.get("master_link_status").is_some_and(|s| s == "up"));
            (all && linked).then_some(())
        })
        .await
    }
}

async fn start_sentinel(
    folder: &Folder,
    number: u32,
    master: u16,
    password: Option<&str>,
    down_after: Duration,
) -> Result<Redis> {
    let name = format!("sentinel-{number}");
    std::fs::create_dir_all(folder.path().join(&name))?;
    let mut lines = vec![
        format!("sentinel monitor {MASTER} 127.0.0.1 {master} 2"),
        format!("sentinel down-after-milliseconds {MASTER} {}", down_after.as_millis()),
        format!("sentinel failover-timeout {MASTER} 3000"),
    ];
    if let Some(password) = password {
        lines.push(format!("user watcher on >{password} -@all +sentinel|master"));
    }
    let config = folder.write(&format!("{name}/sentinel.conf"), &lines.join("\n"))?;
    Redis::launch(folder, Setup::named(&name).sentinel(&config)).await
}
