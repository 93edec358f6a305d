//! Replicas that come late, whose clocks are wrong, or that all were away.

use super::server::command;
use super::{A_WHILE, Kind};
use crate::faults::world::Home::{Clock, Server};
use crate::faults::world::World;
use crate::fleet::LONGEST_REQUEST;
use crate::wait::let_pass;
use anyhow::Result;
use nix::sys::signal::Signal;
use std::time::Duration;

const A_YEAR_S: i64 = 365 * 86_400;
/// Where the longest call takes ten minutes; here it is as many of those.
const AN_HOUR: Duration = LONGEST_REQUEST.saturating_mul(6);

pub(super) const KINDS: [Kind; 5] = [
    Kind::new("Redis is back empty, and a replica comes late", Server, |world| {
        Box::pin(async move {
            world.fleet.gates[1].sidecar.signal(Signal::SIGSTOP)?;
            world.server()?.forget()?;
            world.server()?.restart().await?;
            // The others have long been answered.
            let_pass(A_WHILE * 2).await;
            world.fleet.gates[1].sidecar.signal(Signal::SIGCONT)
        })
    })
    .forgetting(),
    Kind::new("a replica starts while maxmemory is reached", Server, |world| {
        Box::pin(async move {
            command(world, &["CONFIG", "SET", "maxmemory", "1"])?;
            world.fleet.gates[0].sidecar.restart().await?;
            let_pass(A_WHILE).await;
            command(world, &["CONFIG", "SET", "maxmemory", "0"])
        })
    })
    .killing(),
    Kind::new("the whole fleet and Redis are down for an hour, scaled", Server, |world| {
        Box::pin(async move {
            world.fleet.gates.iter_mut().for_each(|gate| gate.sidecar.kill());
            command(world, &["SAVE"])?;
            world.server()?.kill();
            let_pass(AN_HOUR).await;
            world.server()?.restart().await?;
            for gate in &mut world.fleet.gates {
                gate.sidecar.restart().await?;
            }
            Ok(())
        })
    })
    .killing(),
    Kind::new("a replica starts whose clock is a year ahead", Clock, |world| {
        Box::pin(async move { start_with_clock(world, A_YEAR_S).await })
    })
    .killing(),
    Kind::new("the same, and its clock is set right", Clock, |world| {
        Box::pin(async move {
            start_with_clock(world, A_YEAR_S).await?;
            let_pass(A_WHILE).await;
            start_with_clock(world, 0).await
        })
    })
    .killing(),
];

async fn start_with_clock(world: &mut World, offset_s: i64) -> Result<()> {
    let replica = &mut world.fleet.gates[0].sidecar;
    replica.set_clock(offset_s);
    replica.restart().await
}
