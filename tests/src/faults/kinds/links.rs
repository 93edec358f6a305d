//! What lies between the gateways and Redis.

use super::{A_WHILE, Kind};
use crate::fault_proxy::{Fault, FaultProxy};
use crate::faults::world::Home::Server;
use crate::faults::world::World;
use crate::wait::let_pass;
use anyhow::Result;
use std::time::Duration;

const SLOW: Fault = Fault::Delay { to_server: Duration::from_millis(80), to_client: Duration::from_millis(120) };
/// A call and its answer have about a kilobyte.
const NARROW: Fault = Fault::Throttle { bytes_per_s: 8_000 };

pub(super) const KINDS: [Kind; 9] = [
    Kind::new("one link is half open", Server, |world| Box::pin(async move { one(world, Fault::HalfOpen).await }))
        .quick(),
    Kind::new("all links are half open", Server, |world| Box::pin(async move { all(world, Fault::HalfOpen).await })),
    Kind::new("one replica's calls are applied, the answers lost", Server, |world| {
        Box::pin(async move { one(world, Fault::LoseReplies).await })
    })
    .quick(),
    Kind::new("all calls are applied, the answers lost", Server, |world| {
        Box::pin(async move { all(world, Fault::LoseReplies).await })
    }),
    Kind::new("links are slow: 200 ms there and back", Server, |world| Box::pin(async move { all(world, SLOW).await })),
    Kind::new("one link is slow", Server, |world| Box::pin(async move { one(world, SLOW).await })),
    Kind::new("links are narrow: 8 kB a second", Server, |world| Box::pin(async move { all(world, NARROW).await })),
    Kind::new("connections are reset, again and again", Server, |world| {
        Box::pin(async move {
            for _ in 0..30 {
                world.links.iter().for_each(FaultProxy::reset_all);
                let_pass(A_WHILE / 30).await;
            }
            Ok(())
        })
    }),
    Kind::new("connections are reset, and refused", Server, |world| {
        Box::pin(async move {
            world.set_links(Fault::RefuseNew).await?;
            world.links.iter().for_each(FaultProxy::reset_all);
            let_pass(A_WHILE).await;
            world.set_links(Fault::None).await
        })
    }),
];

async fn one(world: &World, fault: Fault) -> Result<()> {
    world.link(1)?.set(fault).await?;
    let_pass(A_WHILE).await;
    world.link(1)?.set(Fault::None).await
}

async fn all(world: &World, fault: Fault) -> Result<()> {
    world.set_links(fault).await?;
    let_pass(A_WHILE).await;
    world.set_links(Fault::None).await
}
