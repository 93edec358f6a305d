//! What must be over soon at the constants that are shipped, since nothing was lost: there the longest call is ten minutes,
//! and no slot may wait for that.

use super::server::{command, stand_still};
use super::{A_MOMENT, Kind};
use crate::fault_proxy::Fault;
use crate::faults::world::Home::Shipped;
use crate::faults::world::World;
use crate::wait::{let_pass, wait_until};
use anyhow::Result;
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

/// Longer than the lease of this home.
const A_LONG_WHILE: Duration = Duration::from_secs(3);
const LONGER_STILL: Duration = Duration::from_secs(10);
/// Until Redis has found out that it cannot write.
const FOUND_OUT_WITHIN: Duration = Duration::from_secs(20);
/// What Redis calls the file that it appends to while it begins to.
const APPENDED: &str = "appendonlydir/temp-appendonly.aof.incr";

pub(super) const KINDS: [Kind; 11] = [
    Kind::new("as shipped: Redis stands still for 3 s", Shipped, |world| {
        Box::pin(async move { stand_still(world.server()?, A_LONG_WHILE).await })
    }),
    Kind::new("as shipped: Redis stands still for 10 s", Shipped, |world| {
        Box::pin(async move { stand_still(world.server()?, LONGER_STILL).await })
    }),
    Kind::new("as shipped: all links are half open", Shipped, |world| {
        Box::pin(async move {
            world.set_links(Fault::HalfOpen).await?;
            let_pass(A_LONG_WHILE).await;
            world.set_links(Fault::None).await
        })
    }),
    Kind::new("as shipped: Redis is back with what it had saved", Shipped, |world| {
        Box::pin(async move { save_and_restart(world, Duration::ZERO).await })
    }),
    Kind::new("as shipped: the same, when leases have ended", Shipped, |world| {
        Box::pin(async move { save_and_restart(world, A_LONG_WHILE).await })
    }),
    Kind::new("as shipped: the same, twice in a row", Shipped, |world| {
        Box::pin(async move {
            save_and_restart(world, Duration::ZERO).await?;
            let_pass(A_MOMENT).await;
            save_and_restart(world, Duration::ZERO).await
        })
    }),
    Kind::new("as shipped: Redis cannot save", Shipped, |world| Box::pin(cannot_save(world))),
    Kind::new("as shipped: the disk of Redis is full", Shipped, |world| Box::pin(fill_disk(world))),
    Kind::new("as shipped: too few replicas follow Redis", Shipped, |world| {
        Box::pin(async move {
            command(world, &["CONFIG", "SET", "min-replicas-to-write", "1"])?;
            let_pass(A_LONG_WHILE).await;
            command(world, &["CONFIG", "SET", "min-replicas-to-write", "0"])
        })
    }),
    Kind::new("as shipped: maxmemory is reached", Shipped, |world| {
        Box::pin(async move {
            command(world, &["CONFIG", "SET", "maxmemory", "1"])?;
            let_pass(A_LONG_WHILE).await;
            command(world, &["CONFIG", "SET", "maxmemory", "0"])
        })
    }),
    Kind::new("as shipped: a replica is told to end, and is started again", Shipped, |world| {
        Box::pin(async move {
            let replica = &mut world.fleet.gates[2].sidecar;
            replica.signal(Signal::SIGTERM)?;
            replica.ended(LONGER_STILL).await?;
            replica.restart().await
        })
    }),
];

async fn save_and_restart(world: &mut World, away: Duration) -> Result<()> {
    command(world, &["SAVE"])?;
    world.server()?.kill();
    let_pass(away).await;
    world.server()?.restart().await
}

/// A folder lies where the file goes.
async fn cannot_save(world: &mut World) -> Result<()> {
    world.server()?.forget()?;
    let file = world.server()?.folder().join("dump.rdb");
    fs::create_dir(&file)?;
    fs::write(file.join("in-the-way"), "")?;
    command(world, &["CONFIG", "SET", "save", "3600 1"])?;
    command(world, &["BGSAVE"])?;
    is_told(world, "rdb_last_bgsave_status").await?;
    let_pass(A_LONG_WHILE).await;
    fs::remove_dir_all(file)?;
    command(world, &["CONFIG", "SET", "save", ""])
}

/// No byte can be appended.
async fn fill_disk(world: &mut World) -> Result<()> {
    let file = world.server()?.folder().join(APPENDED);
    fs::create_dir_all(file.parent().unwrap_or(&file))?;
    symlink("/dev/full", &file)?;
    command(world, &["CONFIG", "SET", "appendonly", "yes"])?;
    is_told(world, "aof_last_write_status").await?;
    let_pass(A_LONG_WHILE).await;
    command(world, &["CONFIG", "SET", "appendonly", "no"])?;
    Ok(fs::remove_dir_all(file.parent().unwrap_or(&file))?)
}

/// Waits until Redis says that this has failed.
async fn is_told(world: &mut World, field: &str) -> Result<()> {
    let server = world.server()?;
    wait_until(&format!("{field} is an error"), FOUND_OUT_WITHIN, || async {
        tokio::task::block_in_place(|| server.info()).is_ok_and(|info| info.get(field).is_some_and(|is| is == "err"))
    })
    .await
    .map(drop)
}
