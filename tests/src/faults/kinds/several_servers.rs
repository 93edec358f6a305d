//! Failovers, by Sentinels and in a cluster. A replica that lags has lost its master a while before, so that it does not
//! know what was granted since.

use super::{A_WHILE, Kind};
use crate::faults::world::Home;
use crate::faults::world::{Ledger, World};
use crate::fleet::ledger_key;
use crate::stack::Redis;
use crate::stack::redis::cluster::Cluster;
use crate::stack::redis::sentinels::{MASTER, Sentinels};
use crate::wait::{let_pass, wait_until};
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use std::time::Duration;

const TAKES_OVER_WITHIN: Duration = Duration::from_secs(30);

pub(super) const KINDS: [Kind; 8] = [
    Kind::new("a master is demoted in good order", Home::Sentinels, |world| {
        Box::pin(async move {
            let rig = sentinels(world)?;
            let old = rig.master()?;
            rig.sentinels[0].cli(&["SENTINEL", "FAILOVER", MASTER])?;
            rig.failed_over(old).await?;
            follows(&rig.servers[old]).await
        })
    }),
    Kind::new("a master is demoted, and is the master again", Home::Sentinels, |world| {
        Box::pin(async move {
            let rig = sentinels(world)?;
            for _ in 0..2 {
                let old = rig.master()?;
                // A Sentinel makes no second failover of a master before the first one has long been over.
                wait_until("the Sentinels fail over", TAKES_OVER_WITHIN, || async {
                    rig.sentinels[0].cli(&["SENTINEL", "FAILOVER", MASTER]).is_ok()
                })
                .await?;
                rig.failed_over(old).await?;
                follows(&rig.servers[old]).await?;
            }
            Ok(())
        })
    }),
    Kind::new("a master is killed, and its lagging replica takes over", Home::Sentinels, |world| {
        Box::pin(async move {
            let rig = sentinels(world)?;
            let old = rig.master()?;
            let_lag(&rig.servers[old], &rig.servers[1 - old])?;
            let_pass(A_WHILE).await;
            rig.servers[old].kill();
            rig.failed_over(old).await
        })
    }),
    Kind::new("a master is killed, and its replica takes over", Home::Sentinels, |world| {
        Box::pin(async move {
            let rig = sentinels(world)?;
            let old = rig.master()?;
            rig.servers[old].kill();
            rig.failed_over(old).await
        })
    }),
    Kind::new("a cluster's slot moves to another master", Home::Cluster, |world| {
        Box::pin(async move { cluster(world)?.move_slot(&ledger_key()).await })
    }),
    Kind::new("a cluster's slot moves, and moves back", Home::Cluster, |world| {
        Box::pin(async move {
            cluster(world)?.move_slot(&ledger_key()).await?;
            let_pass(A_WHILE).await;
            cluster(world)?.move_slot(&ledger_key()).await
        })
    }),
    Kind::new("a cluster's master stands still, and is replaced", Home::Cluster, |world| {
        Box::pin(async move {
            let rig = cluster(world)?;
            let old = rig.master_of(&ledger_key(), 0)?;
            rig.nodes[old].signal(Signal::SIGSTOP)?;
            let is_replaced = replaced(rig, old).await;
            rig.nodes[old].signal(Signal::SIGCONT)?;
            is_replaced?;
            follows(&rig.nodes[old]).await
        })
    }),
    Kind::new("a cluster's master is killed, a lagging replica takes over", Home::Cluster, |world| {
        Box::pin(async move {
            let rig = cluster(world)?;
            let old = rig.master_of(&ledger_key(), 0)?;
            let port = rig.nodes[old].port().to_string();
            let follows = |node: &&Redis| node.info().is_ok_and(|info| info.get("master_port") == Some(&port));
            let replica = rig.nodes.iter().find(follows).context("the master has no replica")?;
            let_lag(&rig.nodes[old], replica)?;
            let_pass(A_WHILE).await;
            rig.nodes[old].kill();
            replaced(rig, old).await
        })
    }),
];

fn sentinels(world: &mut World) -> Result<&mut Sentinels> {
    match &mut world.ledger {
        Ledger::Sentinels(rig) => Ok(rig),
        Ledger::Server(_) | Ledger::Cluster(_) => bail!("there are no Sentinels"),
    }
}

fn cluster(world: &mut World) -> Result<&mut Cluster> {
    match &mut world.ledger {
        Ledger::Cluster(rig) => Ok(rig),
        Ledger::Server(_) | Ledger::Sentinels(_) => bail!("there is no cluster"),
    }
}

/// Cuts a replica off: it logs in with a password that its master does not know, and gets nothing any more.
fn let_lag(master: &Redis, replica: &Redis) -> Result<()> {
    replica.cli(&["CONFIG", "SET", "masterauth", "unknown"])?;
    master.cli(&["CLIENT", "KILL", "TYPE", "replica"]).map(drop)
}

/// Waits until a server is a replica that has all.
async fn follows(server: &Redis) -> Result<()> {
    wait_until("the old master follows the new one", TAKES_OVER_WITHIN, || async {
        server.info().is_ok_and(|info| {
            let is = |field: &str, value: &str| info.get(field).is_some_and(|found| found == value);
            is("role", "slave") && is("master_link_status", "up")
        })
    })
    .await
    .map(drop)
}

async fn replaced(rig: &Cluster, old: usize) -> Result<()> {
    let asked = (old + 1) % rig.nodes.len();
    wait_until("another node has the account", TAKES_OVER_WITHIN, || async {
        rig.master_of(&ledger_key(), asked).is_ok_and(|now| now != old)
    })
    .await
    .map(drop)
}
