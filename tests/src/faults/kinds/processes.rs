//! A gateway's own processes.

use super::{A_WHILE, Kind};
use crate::faults::world::Home::Server;
use crate::fleet::{LEASE, LONGEST_REQUEST};
use crate::wait::let_pass;
use nix::sys::signal::Signal;

pub(super) const KINDS: [Kind; 7] = [
    Kind::new("a replica is killed, and is back at once", Server, |world| {
        Box::pin(async move { world.fleet.gates[0].sidecar.restart().await })
    })
    .killing()
    .quick(),
    Kind::new("a replica is killed, and is back after leases ended", Server, |world| {
        Box::pin(async move {
            let replica = &mut world.fleet.gates[1].sidecar;
            replica.kill();
            let_pass(A_WHILE).await;
            replica.restart().await
        })
    })
    .killing(),
    Kind::new("a replica is told to end, and is started again", Server, |world| {
        Box::pin(async move {
            let replica = &mut world.fleet.gates[2].sidecar;
            replica.signal(Signal::SIGTERM)?;
            replica.ended(A_WHILE * 10).await?;
            replica.restart().await
        })
    }),
    Kind::new("all replicas are killed, and are back when no call can run", Server, |world| {
        Box::pin(async move {
            world.fleet.gates.iter_mut().for_each(|gate| gate.sidecar.kill());
            let_pass(LEASE + LONGEST_REQUEST + A_WHILE).await;
            for gate in &mut world.fleet.gates {
                gate.sidecar.restart().await?;
            }
            Ok(())
        })
    })
    .killing(),
    Kind::new("a replica stands still for longer than its lease", Server, |world| {
        Box::pin(async move {
            let replica = &world.fleet.gates[0].sidecar;
            replica.signal(Signal::SIGSTOP)?;
            let_pass(A_WHILE).await;
            replica.signal(Signal::SIGCONT)
        })
    }),
    Kind::new("an Envoy is killed, and is back at once", Server, |world| {
        Box::pin(async move { world.fleet.gates[1].envoy_mut()?.restart().await })
    })
    .killing(),
    Kind::new("an Envoy stands still", Server, |world| {
        Box::pin(async move {
            let envoy = world.fleet.gates[2].envoy_mut()?;
            envoy.signal(Signal::SIGSTOP)?;
            let_pass(A_WHILE).await;
            envoy.signal(Signal::SIGCONT)
        })
    }),
];
