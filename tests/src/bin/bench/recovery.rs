//! `bench recovery`: how soon the slots of a pool are in use again after Redis was away and came back with all it knew, at
//! the lease and the longest call that are shipped; and whether too many ever were.
//!
//! Sidecars are driven over their sockets, without Envoy. Each of them has three pools, one for each length of a call, so
//! that an outage is measured for all three at once. The outages of two fleets run side by side.

mod crowd;
mod open_loop;
mod outage;
mod world;

use super::{Figure, doing, figure};
use anyhow::Result;
use outage::Kind;
use std::collections::BTreeMap;
use std::time::Duration;
use world::World;

pub(super) const FIGURES: &[&str] = &["recovery_s", "overshoot", "recovery_at_90_percent_s"];

/// A pool of the fleet, by the calls that it gets.
#[derive(Clone, Copy)]
struct Pool {
    call: Duration,
    capacity: u32,
}

impl Pool {
    const fn of(call_ms: u64, capacity: u32) -> Self {
        Self { call: Duration::from_millis(call_ms), capacity }
    }

    /// So many slots are 95% of them.
    fn most_slots(self) -> usize {
        (self.capacity as usize * 95).div_ceil(100)
    }

    fn call_ms(self) -> u64 {
        u64::try_from(self.call.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Short calls get fewer slots: 400 of them a second would leave two cores nothing for the recovery itself.
const POOLS: &[Pool] = &[Pool::of(100, 20), Pool::of(1_000, 40), Pool::of(10_000, 40)];

/// What is measured, and how often.
struct Plan {
    pools: &'static [Pool],
    /// Milliseconds, and how often.
    outages: &'static [(u64, usize)],
    /// Stalls while as much arrives as takes 90% of the slots.
    stalls_ms: &'static [u64],
    /// Of a server without a replica.
    kinds: &'static [Kind],
    /// For so long after an outage at least. Longer than any recovery that is promised, so that one that does not last is
    /// seen.
    watched: Duration,
}

impl Plan {
    const FULL: Self = Self {
        pools: POOLS,
        outages: &[(300, 3), (3_000, 3), (30_000, 1)],
        stalls_ms: &[600, 3_000, 10_000],
        kinds: &[Kind::Partition, Kind::Stall, Kind::Restart],
        watched: Duration::from_secs(6),
    };
    const QUICK: Self = Self {
        pools: POOLS.split_at(2).0,
        outages: &[(300, 1)],
        stalls_ms: &[600],
        kinds: &[Kind::Partition, Kind::Restart],
        watched: Duration::from_secs(2),
    };
}

/// What one outage showed of one pool.
struct Seen {
    kind: Kind,
    outage_ms: u64,
    replicas: usize,
    call_ms: u64,
    load_percent: Option<u64>,
    recovery: Duration,
    overshoot: usize,
}

pub(super) async fn measure(quick: bool, only: Option<usize>) -> Result<Vec<Figure>> {
    if quick {
        return Ok(figures(of_one_server(only.unwrap_or(3), &Plan::QUICK).await?));
    }
    let plan = &Plan::FULL;
    let of = |replicas: usize| only.is_none_or(|only| only == replicas);
    let few = async {
        let mut seen = Vec::new();
        for replicas in [1, 3].into_iter().filter(|replicas| of(*replicas)) {
            seen.extend(of_one_server(replicas, plan).await?);
        }
        anyhow::Ok(seen)
    };
    let others = async {
        let mut seen = Vec::new();
        for replicas in [1, 3, 10].into_iter().filter(|replicas| of(*replicas)) {
            seen.extend(of_failovers(replicas, plan).await?);
        }
        for replicas in [10].into_iter().filter(|replicas| of(*replicas)) {
            seen.extend(of_one_server(replicas, plan).await?);
        }
        anyhow::Ok(seen)
    };
    let (few, others) = tokio::try_join!(few, others)?;
    Ok(figures(few.into_iter().chain(others).collect()))
}

/// Outages of a single Redis.
async fn of_one_server(replicas: usize, plan: &Plan) -> Result<Vec<Seen>> {
    let mut world = World::of_one_server(replicas, plan.pools).await?;
    let mut seen = Vec::new();
    for kind in plan.kinds {
        seen.extend(of_kind(&mut world, *kind, plan).await?);
    }
    world.disperse().await?;
    for stall_ms in plan.stalls_ms.iter().copied() {
        doing(format!("{replicas} replicas, a stall of {stall_ms} ms at 90% load"));
        seen.extend(world.stall_under_load(stall_ms, plan.watched).await?);
    }
    Ok(seen)
}

/// Outages in which a replica of Redis takes over.
async fn of_failovers(replicas: usize, plan: &Plan) -> Result<Vec<Seen>> {
    let mut world = World::of_sentinels(replicas, plan.pools).await?;
    let seen = of_kind(&mut world, Kind::Failover, plan).await?;
    world.disperse().await?;
    Ok(seen)
}

async fn of_kind(world: &mut World, kind: Kind, plan: &Plan) -> Result<Vec<Seen>> {
    let mut seen = Vec::new();
    for (outage_ms, times) in plan.outages.iter().copied() {
        for time in 1..=times {
            doing(format!("{} replicas, {} of {outage_ms} ms, {time} of {times}", world.replicas(), kind.name()));
            seen.extend(world.go_through(kind, outage_ms, plan.watched).await?);
        }
    }
    Ok(seen)
}

/// Two rows for each combination.
fn figures(seen: Vec<Seen>) -> Vec<Figure> {
    let mut combinations: BTreeMap<_, Vec<Seen>> = BTreeMap::new();
    for one in seen {
        let key = (one.load_percent, one.kind, one.outage_ms, one.replicas, one.call_ms);
        combinations.entry(key).or_default().push(one);
    }
    let mut figures = Vec::new();
    for ((load_percent, kind, outage_ms, replicas, call_ms), seen) in combinations {
        let name = if load_percent.is_some() { "recovery_at_90_percent_s" } else { "recovery_s" };
        let recovery = hundredths(name, "s", seen.iter().map(|one| one.recovery.as_secs_f64()).collect());
        // The worst of them: a median would hide one.
        let most = seen.iter().map(|one| one.overshoot).max().unwrap_or(0);
        let overshoot = Figure { n: seen.len(), ..figure("overshoot", "slots", vec![most as f64]) };
        figures.extend([recovery, overshoot].map(|figure| Figure {
            kind: Some(kind.name()),
            outage_ms: Some(outage_ms),
            replicas: Some(replicas),
            call_ms: Some(call_ms),
            load_percent,
            ..figure
        }));
    }
    figures
}

fn hundredths(name: &'static str, unit: &'static str, values: Vec<f64>) -> Figure {
    let hundred = figure(name, unit, values.into_iter().map(|value| value * 100.0).collect());
    let rounded = |value: f64| value.round() / 100.0;
    Figure { value: rounded(hundred.value), spread: rounded(hundred.spread), ..hundred }
}
