//! The one Redis server.

use super::{A_MOMENT, A_WHILE, Kind};
use crate::faults::world::Home::{Clock, Server};
use crate::faults::world::World;
use crate::fleet::ledger_key;
use crate::stack::Redis;
use crate::wait::let_pass;
use anyhow::Result;
use nix::sys::signal::Signal;
use std::time::Duration;

const AN_HOUR_S: i64 = 3_600;

pub(super) const KINDS: [Kind; 20] = [
    Kind::new("Redis is killed, and is back empty", Server, |world| {
        Box::pin(async move {
            world.server()?.forget()?;
            world.server()?.restart().await
        })
    })
    .forgetting()
    .quick(),
    Kind::new("Redis is killed, and is back with what it had saved", Server, |world| {
        Box::pin(async move {
            command(world, &["SAVE"])?;
            world.server()?.restart().await
        })
    }),
    Kind::new("Redis is back with what it had saved a while ago", Server, |world| {
        Box::pin(async move {
            command(world, &["SAVE"])?;
            let_pass(A_WHILE).await;
            world.server()?.restart().await
        })
    }),
    Kind::new("Redis is away for longer than a lease", Server, |world| {
        Box::pin(async move {
            world.server()?.forget()?;
            world.server()?.kill();
            let_pass(A_WHILE).await;
            world.server()?.restart().await
        })
    })
    .forgetting(),
    Kind::new("Redis stands still for longer than a lease", Server, |world| {
        Box::pin(async move { stand_still(world.server()?, A_WHILE).await })
    }),
    Kind::new("Redis stands still for a moment", Server, |world| {
        Box::pin(async move { stand_still(world.server()?, A_MOMENT).await })
    }),
    Kind::new("Redis stands still for 0.6 s", Server, |world| {
        Box::pin(async move { stand_still(world.server()?, Duration::from_millis(600)).await })
    }),
    Kind::new("Redis stands still for 3 s", Server, |world| {
        Box::pin(async move { stand_still(world.server()?, Duration::from_secs(3)).await })
    }),
    Kind::new("Redis stands still for 10 s, longer than any call lives", Server, |world| {
        Box::pin(async move { stand_still(world.server()?, Duration::from_secs(10)).await })
    }),
    Kind::new("DEBUG SLEEP", Server, |world| Box::pin(async move { command(world, &["DEBUG", "SLEEP", "1.5"]) })),
    Kind::new("SCRIPT FLUSH", Server, |world| Box::pin(async move { command(world, &["SCRIPT", "FLUSH"]) })).quick(),
    Kind::new("FLUSHALL", Server, |world| Box::pin(async move { command(world, &["FLUSHALL"]) })).forgetting().quick(),
    Kind::new("the pool's key is deleted", Server, |world| {
        Box::pin(async move { command(world, &["DEL", &ledger_key()]) })
    }),
    Kind::new("maxmemory is reached", Server, |world| {
        Box::pin(async move {
            command(world, &["CONFIG", "SET", "maxmemory", "1"])?;
            let_pass(A_WHILE).await;
            command(world, &["CONFIG", "SET", "maxmemory", "0"])
        })
    }),
    Kind::new("CLIENT PAUSE", Server, |world| {
        Box::pin(async move {
            command(world, &["CLIENT", "PAUSE", "1500"])?;
            let_pass(A_WHILE).await;
            Ok(())
        })
    })
    .quick(),
    Kind::new("CLIENT KILL, again and again", Server, |world| {
        Box::pin(async move {
            for _ in 0..15 {
                command(world, &["CLIENT", "KILL", "TYPE", "normal"])?;
                let_pass(A_WHILE / 15).await;
            }
            Ok(())
        })
    }),
    Kind::new("notices are lost", Server, |world| {
        Box::pin(async move {
            command(world, &["ACL", "SETUSER", "default", "resetchannels"])?;
            let_pass(A_WHILE).await;
            command(world, &["ACL", "SETUSER", "default", "allchannels"])
        })
    })
    .quick(),
    Kind::new("Redis' clock jumps an hour ahead, and back", Clock, |world| {
        Box::pin(async move { jump(world.server()?, AN_HOUR_S).await })
    }),
    Kind::new("Redis' clock jumps an hour back, and ahead again", Clock, |world| {
        Box::pin(async move { jump(world.server()?, -AN_HOUR_S).await })
    }),
    Kind::new("Redis' clock jumps an hour ahead, and stays", Clock, |world| {
        Box::pin(async move { world.server()?.set_clock(AN_HOUR_S) })
    }),
];

pub(super) async fn stand_still(server: &Redis, span: Duration) -> Result<()> {
    server.signal(Signal::SIGSTOP)?;
    let_pass(span).await;
    server.signal(Signal::SIGCONT)
}

async fn jump(server: &Redis, offset_s: i64) -> Result<()> {
    server.set_clock(offset_s)?;
    let_pass(A_WHILE).await;
    server.set_clock(0)
}

pub(super) fn command(world: &mut World, words: &[&str]) -> Result<()> {
    let server = world.server()?;
    // Some take long, and the upstream must go on counting meanwhile.
    tokio::task::block_in_place(|| server.cli(words)).map(drop)
}
