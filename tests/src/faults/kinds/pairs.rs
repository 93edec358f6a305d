//! Two things at once.

use super::server::command;
use super::{A_WHILE, Kind};
use crate::fault_proxy::Fault;
use crate::faults::world::Home::Server;
use crate::faults::world::{CAPACITY, World};
use crate::scene::changed;
use crate::stack::POOL;
use crate::wait::{let_pass, wait_until};
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;
use std::time::Duration;

const OVERLAY: &str = "/admin/scheduler/overlay";
/// What an operator leaves of the pool.
const SHRUNK: usize = CAPACITY / 2;

pub(super) const KINDS: [Kind; 5] = [
    Kind::new("a replica is killed while Redis stands still", Server, |world| {
        Box::pin(async move {
            world.server()?.signal(Signal::SIGSTOP)?;
            world.fleet.gates[0].sidecar.restart_without_waiting()?;
            let_pass(A_WHILE).await;
            world.server()?.signal(Signal::SIGCONT)?;
            world.fleet.gates[0].sidecar.ready().await
        })
    })
    .killing(),
    Kind::new("a replica is killed, and FLUSHALL", Server, |world| {
        Box::pin(async move {
            world.fleet.gates[2].sidecar.kill();
            command(world, &["FLUSHALL"])?;
            world.fleet.gates[2].sidecar.restart().await
        })
    })
    .forgetting(),
    Kind::new("one link is half open, and Redis comes back empty", Server, |world| {
        Box::pin(async move {
            world.link(1)?.set(Fault::HalfOpen).await?;
            world.server()?.forget()?;
            world.server()?.restart().await?;
            let_pass(A_WHILE).await;
            world.link(1)?.set(Fault::None).await
        })
    })
    .forgetting(),
    Kind::new("an Envoy and another gateway's replica are killed", Server, |world| {
        Box::pin(async move {
            world.fleet.gates[0].sidecar.kill();
            world.fleet.gates[1].envoy_mut()?.restart().await?;
            world.fleet.gates[0].sidecar.restart().await
        })
    })
    .killing(),
    Kind::new("the pool shrinks while a link is half open, and grows", Server, |world| {
        Box::pin(shrink_and_grow(world))
    }),
];

async fn shrink_and_grow(world: &mut World) -> Result<()> {
    world.link(1)?.set(Fault::HalfOpen).await?;
    let overlay = json!({"pools": [{"name": POOL, "concurrent": SHRUNK}]});
    // One replica does not hear of it for now.
    let operators = world.fleet.gates[0].operators();
    changed(operators, Method::PUT, OVERLAY, Some(&overlay)).await?;
    let_pass(A_WHILE).await;
    world.link(1)?.set(Fault::None).await?;
    let calls = world.fleet.upstream.calls();
    wait_until("no more runs than the pool has now", Server.bound(), || async { calls.running() <= SHRUNK }).await?;
    let before = calls.take_max_running();
    let_pass(Duration::from_secs(1)).await;
    let most = calls.take_max_running();
    changed(operators, Method::DELETE, OVERLAY, None).await?;
    ensure!(before <= CAPACITY, "{before} calls ran before the pool had shrunk");
    ensure!(most <= SHRUNK, "{most} calls ran when the pool had {SHRUNK} slots");
    Ok(())
}
