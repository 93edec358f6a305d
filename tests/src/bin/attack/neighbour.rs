//! A harmless neighbour that takes as much processor time as an attack took, part by part.
//!
//! What an attack takes is its own time and what it makes the gateway, which is Envoy and the sidecar, take. A program that
//! only spins beside the gateway would take the first part alone, and a client that makes as many calls as a processor has
//! time for could make the gateway take more than the attack did, and so lower the bar. So this one does both: it makes
//! harmless calls, lists of models, until the gateway has taken what it took under attack, its known caller's calls included;
//! and it spins at the lowest priority, as the attack runs, until it has itself taken what the attack took.

use super::watch::cpu_of;
use anyhow::Result;
use clap::Args;
use e2e::client::{Client, send};
use reqwest::Method;
use std::env;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// After so long it looks again whether more is to be taken.
const PERIOD: Duration = Duration::from_millis(5);
/// Calls under way at once.
const CALLERS: usize = 8;
/// Not the known caller's address.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 2, 1));

/// Of processors, so 1.5 is one and a half of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shares {
    /// The attack's own, or the neighbour's.
    pub(super) own: f64,
    /// Envoy's and the sidecar's.
    pub(super) gateway: f64,
}

#[derive(Args)]
pub(super) struct Neighbour {
    #[arg(long)]
    own: f64,
    #[arg(long)]
    gateway: f64,
    #[arg(long, value_delimiter = ',')]
    gateway_pids: Vec<u32>,
    #[arg(long)]
    base: String,
    #[arg(long)]
    key: String,
    #[arg(long)]
    millis: u64,
}

/// Starts one at the lowest priority.
pub(super) fn start(shares: Shares, gateway: [u32; 2], base: &str, key: &str, span: Duration) -> Result<Child> {
    let pids = gateway.map(|pid| pid.to_string()).join(",");
    let mut command = at_lowest_priority()?;
    command.args(["neighbour", "--own", &shares.own.to_string(), "--gateway", &shares.gateway.to_string()]);
    command.args(["--gateway-pids", &pids, "--base", base, "--key", key]);
    command.args(["--millis", &span.as_millis().to_string()]);
    Ok(command.spawn()?)
}

/// This program again.
pub(super) fn at_lowest_priority() -> Result<Command> {
    let mut command = Command::new("nice");
    command.args(["-n", "19"]).arg(env::current_exe()?);
    Ok(command)
}

impl Neighbour {
    pub(super) async fn run(&self) -> Result<()> {
        let began = Instant::now();
        let until = began + Duration::from_millis(self.millis);
        let client = Client::new(&self.base)?.from(ADDRESS)?.with_key(&self.key);
        let is_owed = Arc::new(AtomicBool::new(false));
        for _ in 0..CALLERS {
            tokio::spawn(call_while(is_owed.clone(), client.clone()));
        }
        let own = std::process::id();
        let spins_on = Arc::new(AtomicBool::new(false));
        for _ in 0..=self.own as usize {
            let spins = spins_on.clone();
            std::thread::spawn(move || spin_while(&spins));
        }
        let gateway = || self.gateway_pids.iter().map(|pid| cpu_of(*pid)).sum::<f64>();
        let (gateway_before, own_before) = (gateway(), cpu_of(own));
        while Instant::now() < until {
            let span = began.elapsed().as_secs_f64();
            is_owed.store(gateway() - gateway_before < self.gateway * span, Ordering::Relaxed);
            spins_on.store(cpu_of(own) - own_before < self.own * span, Ordering::Relaxed);
            sleep(PERIOD).await;
        }
        Ok(())
    }
}

async fn call_while(is_owed: Arc<AtomicBool>, client: Client) {
    loop {
        if is_owed.load(Ordering::Relaxed) {
            let _ = send(client.request(Method::GET, "/v1/models")).await;
        } else {
            sleep(PERIOD).await;
        }
    }
}

fn spin_while(spins: &AtomicBool) {
    loop {
        if spins.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        } else {
            std::thread::sleep(PERIOD);
        }
    }
}
