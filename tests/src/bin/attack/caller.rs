//! A known caller of the first priority: one call after the other, each of which must be served.

use super::neighbour::Shares;
use super::watch::cpu_of;
use super::{Figure, figure};
use anyhow::{Result, ensure};
use e2e::client::{Chat, Client};
use e2e::stack::MODEL;
use std::time::{Duration, Instant};

/// Between two calls, so that the caller itself is no load.
const PAUSE: Duration = Duration::from_millis(5);

/// By turn.
#[derive(Default)]
pub(super) struct Latencies(Vec<Vec<f64>>);

/// What was measured beside one process, turn by turn.
#[derive(Default)]
pub(super) struct Turns {
    pub(super) latencies: Latencies,
    shares: Vec<Shares>,
}

impl Turns {
    /// One turn, for as long as the process `beside` runs; returns what it and the gateway took.
    pub(super) async fn measure(
        &mut self,
        client: &Client,
        span: Duration,
        gateway: [u32; 2],
        beside: u32,
    ) -> Result<Shares> {
        let taken = || gateway.map(cpu_of).iter().sum::<f64>();
        let (began, gateway_before) = (Instant::now(), taken());
        let latencies = measure(client, span).await?;
        let per_s = |seconds: f64| seconds / began.elapsed().as_secs_f64();
        let shares = Shares { own: per_s(cpu_of(beside)), gateway: per_s(taken() - gateway_before) };
        self.latencies.add(latencies);
        self.shares.push(shares);
        Ok(shares)
    }

    pub(super) fn own(&self, name: String) -> Figure {
        self.share(name, |shares| shares.own)
    }

    pub(super) fn gateway(&self, name: String) -> Figure {
        self.share(name, |shares| shares.gateway)
    }

    /// The mean of all turns, with the distance between the least and the most as its spread.
    fn share(&self, name: String, of: impl Fn(&Shares) -> f64) -> Figure {
        let all: Vec<f64> = self.shares.iter().map(of).collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let (least, most) = (all.iter().copied().fold(f64::MAX, f64::min), all.iter().copied().fold(0.0, f64::max));
        figure(name, mean, "cores", all.len(), most - least)
    }
}

async fn measure(client: &Client, span: Duration) -> Result<Vec<f64>> {
    let until = Instant::now() + span;
    let mut took = Vec::new();
    while Instant::now() < until {
        let reply = client.chat(&Chat::to(MODEL)).await?;
        ensure!(reply.status == 200, "a known caller was not served: {}", reply.summary());
        took.push(reply.took.as_secs_f64() * 1_000.0);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(took)
}

impl Latencies {
    pub(super) fn add(&mut self, turn: Vec<f64>) {
        self.0.push(turn);
    }

    pub(super) fn count(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// Over all turns.
    pub(super) fn p99_ms(&self) -> f64 {
        p99(self.0.concat())
    }

    /// With the distance between the best turn and the worst as its spread.
    pub(super) fn figure(&self, name: String) -> Figure {
        let turns: Vec<f64> = self.0.iter().cloned().map(p99).collect();
        let worst = turns.iter().copied().fold(0.0, f64::max);
        let best = turns.iter().copied().fold(f64::MAX, f64::min);
        figure(name, self.p99_ms(), "ms", self.count(), worst - best)
    }
}

fn p99(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() * 99 / 100).copied().unwrap_or(0.0)
}
