//! How Redis goes away, and when it is back: at the first PING that is answered to a client which comes now. Where it can
//! be no earlier than a known moment it is taken to be that.

use anyhow::{Context, Result, bail, ensure};
use e2e::fault_proxy::{Fault, FaultProxy};
use e2e::stack::Redis;
use e2e::stack::redis::sentinels::{MASTER, Sentinels};
use e2e::wait::{let_pass, wait_until};
use nix::sys::signal::Signal;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts of the monitor.
const PAUSE: Duration = Duration::from_millis(2);
/// What Sentinels take to promote a replica that they are told to promote, of an outage that is to be longer.
const PROMOTION: Duration = Duration::from_millis(1_200);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// What is sent either way is swallowed, and connections of before stay dead.
    Partition,
    /// The process stands still.
    Stall,
    /// The process is killed, and reads its append-only file when it starts.
    Restart,
    /// The master is killed, and Sentinels promote its replica; an outage shorter than they take is one in good order, with
    /// nothing killed.
    Failover,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Partition => "partition",
            Self::Stall => "stall",
            Self::Restart => "restart",
            Self::Failover => "failover",
        }
    }
}

/// Tells when it was over.
pub(super) async fn partition(link: &FaultProxy, outage: Duration) -> Result<Instant> {
    link.set(Fault::HalfOpen).await?;
    let_pass(outage).await;
    let back = Instant::now();
    link.set(Fault::None).await?;
    Ok(back)
}

pub(super) async fn stall(server: &Redis, outage: Duration) -> Result<Instant> {
    server.signal(Signal::SIGSTOP)?;
    let_pass(outage).await;
    let back = Instant::now();
    server.signal(Signal::SIGCONT)?;
    Ok(back)
}

pub(super) async fn restart(server: &mut Redis, outage: Duration) -> Result<Instant> {
    server.kill();
    let_pass(outage).await;
    let monitored = answers(of(server.port()));
    let (restarted, back) = tokio::join!(server.restart(), monitored);
    restarted?;
    back
}

pub(super) async fn fail_over(rig: &mut Sentinels, outage: Duration) -> Result<Instant> {
    let old = rig.master()?;
    let sentinel = &rig.sentinels[0];
    wait_until("the Sentinel knows a replica that it can promote", PATIENCE, || async {
        let told = sentinel.cli(&["SENTINEL", "REPLICAS", MASTER]).unwrap_or_default();
        let lines: Vec<&str> = told.lines().collect();
        let is = |name: &str, value: &str| lines.windows(2).any(|pair| pair == [name, value]);
        is("flags", "slave") && is("master-link-status", "ok")
    })
    .await?;
    if outage > PROMOTION {
        rig.servers[old].kill();
        let_pass(outage - PROMOTION).await;
    }
    rig.sentinels[0].cli(&["SENTINEL", "FAILOVER", MASTER])?;
    let (asked, before, begun) = (of(rig.sentinels[0].port()), rig.servers[old].port(), Instant::now());
    while begun.elapsed() < PATIENCE {
        if let Some(port) = master_told_by(asked).await.filter(|port| *port != before)
            && is_answered(of(port)).await
        {
            return Ok(Instant::now());
        }
        let_pass(PAUSE).await;
    }
    bail!("no replica was promoted")
}

/// Gives the new master a replica again.
pub(super) async fn follow(rig: &mut Sentinels) -> Result<()> {
    let master = rig.master()?;
    let old = &mut rig.servers[1 - master];
    if old.info().is_err() {
        old.restart().await?;
    }
    let port = rig.servers[master].port().to_string();
    rig.servers[1 - master].cli(&["REPLICAOF", "127.0.0.1", &port])?;
    wait_until("the old master follows", PATIENCE, || async {
        rig.servers[1 - master].info().is_ok_and(|info| info.get("master_link_status").is_some_and(|is| is == "up"))
    })
    .await
    .map(drop)
}

fn of(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

async fn answers(server: SocketAddr) -> Result<Instant> {
    let begun = Instant::now();
    while !is_answered(server).await {
        ensure!(begun.elapsed() < PATIENCE, "Redis does not come back");
        let_pass(PAUSE).await;
    }
    Ok(Instant::now())
}

async fn is_answered(server: SocketAddr) -> bool {
    ask(server, "PING").await.is_ok_and(|answer| answer.starts_with("+PONG"))
}

async fn master_told_by(sentinel: SocketAddr) -> Option<u16> {
    let told = ask(sentinel, &format!("SENTINEL GET-MASTER-ADDR-BY-NAME {MASTER}")).await.ok()?;
    told.lines().nth(4)?.trim().parse().ok()
}

/// What comes first of the answer, which is short.
async fn ask(server: SocketAddr, command: &str) -> Result<String> {
    let answer = timeout(PATIENCE, async {
        let mut connection = TcpStream::connect(server).await?;
        connection.write_all(format!("{command}\r\n").as_bytes()).await?;
        let mut bytes = [0; 256];
        let length = connection.read(&mut bytes).await?;
        anyhow::Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    });
    answer.await.context("no answer")?
}
