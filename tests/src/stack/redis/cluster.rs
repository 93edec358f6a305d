//! A Redis Cluster of three masters with a replica each.

use super::{Engine, Redis, Setup};
use crate::folder::Folder;
use crate::paths;
use crate::wait::wait_until;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

const NODES: usize = 6;
const FORMS_WITHIN: Duration = Duration::from_secs(30);
/// How long a master may be silent before its replica takes over, unless somebody wants it otherwise.
const NODE_TIMEOUT: Duration = Duration::from_secs(1);

pub struct Cluster {
    pub nodes: Vec<Redis>,
}

impl Cluster {
    /// Starts the nodes, joins them, and waits until every one of them knows who has which keys.
    ///
    /// # Errors
    /// When the engine is not installed or the cluster does not form.
    pub async fn start(folder: &Folder, engine: Engine) -> Result<Self> {
        Self::launch(folder, engine, NODE_TIMEOUT).await
    }

    /// The same; a master that is silent for `node_timeout` is replaced.
    ///
    /// # Errors
    /// When the engine is not installed or the cluster does not form.
    pub async fn launch(folder: &Folder, engine: Engine, node_timeout: Duration) -> Result<Self> {
        let mut nodes = Vec::new();
        for number in 0..NODES {
            let setup = Setup::named(&format!("node-{number}")).engine(engine).node()?.arguments([
                "--cluster-node-timeout".to_owned(),
                node_timeout.as_millis().to_string(),
                "--repl-diskless-sync-delay".to_owned(),
                "0".to_owned(),
            ]);
            nodes.push(Redis::launch(folder, setup).await?);
        }
        let cluster = Self { nodes };
        cluster.join()?;
        wait_until("the cluster has formed", FORMS_WITHIN, || async { cluster.has_formed() }).await?;
        Ok(cluster)
    }

    /// The section `ledger.redis` of a service that uses it, knowing three of the nodes.
    #[must_use]
    pub fn settings(&self) -> Value {
        json!({"nodes": self.nodes.iter().take(3).map(Redis::url).collect::<Vec<_>>()})
    }

    /// The index of the master that has a key now, as `asked` sees it.
    ///
    /// # Errors
    /// When `asked` does not answer or the cluster is down.
    pub fn master_of(&self, key: &str, asked: usize) -> Result<usize> {
        let node = &self.nodes[asked];
        let slot: u32 = node.cli(&["CLUSTER", "KEYSLOT", key])?.trim().parse()?;
        for line in node.cli(&["CLUSTER", "NODES"])?.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let ranges = fields.get(8..).unwrap_or_default().iter().filter_map(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?)
            });
            if ranges.into_iter().any(|range| range.contains(&slot)) && !fields[2].contains("fail") {
                let port = fields[1].split(['@', ',']).next().and_then(|address| address.rsplit(':').next());
                let port: u16 = port.context("a node without a port")?.parse()?;
                return self.nodes.iter().position(|node| node.port() == port).context("no node of ours");
            }
        }
        bail!("nobody has slot {slot}")
    }

    /// Moves the slot of a key, with all keys in it, to another master, as an operator who reshards does.
    ///
    /// # Errors
    /// When a node refuses a step.
    pub async fn move_slot(&self, key: &str) -> Result<()> {
        let slot = self.nodes[0].cli(&["CLUSTER", "KEYSLOT", key])?.trim().to_owned();
        let from = self.master_of(key, 0)?;
        let is_other = |number: &usize| {
            *number != from
                && self.nodes[*number].info().is_ok_and(|info| info.get("role").is_some_and(|role| role == "master"))
        };
        let to = (0..self.nodes.len()).find(is_other).context("no other master")?;
        let id =
            |number: usize| Ok::<_, anyhow::Error>(self.nodes[number].cli(&["CLUSTER", "MYID"])?.trim().to_owned());
        let (from_id, to_id) = (id(from)?, id(to)?);
        self.nodes[to].cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id])?;
        self.nodes[from].cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id])?;
        // Calls go on meanwhile: of keys that have left, the old master sends its clients to the new one.
        let port = self.nodes[to].port().to_string();
        wait_until("all keys have moved", FORMS_WITHIN, || async {
            let keys = self.nodes[from].cli(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]).unwrap_or_default();
            let keys: Vec<&str> = keys.lines().filter(|key| !key.is_empty()).collect();
            let migrate = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            keys.is_empty() || self.nodes[from].cli(&[&migrate[..], &keys].concat()).is_ok_and(|_| false)
        })
        .await?;
        for number in [to, from] {
            self.nodes[number].cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id])?;
        }
        wait_until("every node knows who has the slot", FORMS_WITHIN, || async {
            (0..self.nodes.len()).all(|asked| self.master_of(key, asked).is_ok_and(|master| master == to))
        })
        .await
        .map(drop)
    }

    fn join(&self) -> Result<()> {
        let output = Command::new(paths::tool("bin/redis-cli")?)
            .args(["--cluster", "create"])
            .args(self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())))
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .output()?;
        if !output.status.success() {
            bail!("redis-cli --cluster create: {}", String::from_utf8_lossy(&output.stdout));
        }
        Ok(())
    }

    fn has_formed(&self) -> bool {
        self.nodes.iter().all(|node| {
            let (Ok(state), Ok(info)) = (node.cli(&["CLUSTER", "INFO"]), node.info()) else { return false };
            let is = |field: &str, value: &str| info.get(field).is_some_and(|found| found == value);
            state.contains("cluster_state:ok")
                && state.contains("cluster_known_nodes:6")
                && (is("role", "master") && is("connected_slaves", "1")
                    || is("role", "slave") && is("master_link_status", "up"))
        })
    }
}
