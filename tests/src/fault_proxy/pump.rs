//! One direction of one connection.

use super::{Fault, Link};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::{Instant, sleep_until};

/// At most so much is read at once, and a slow link reads less.
const CHUNK_BYTES: usize = 16 * 1024;
/// A delayed direction holds at most so many chunks, then the sender has to wait.
const MOST_CHUNKS: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    ToServer,
    ToClient,
}

/// Why a connection did not end by itself.
#[derive(Debug)]
pub(super) enum Ended {
    /// Both ends shall see a reset.
    Reset,
    /// One end is gone.
    Broken,
}

impl From<io::Error> for Ended {
    fn from(_: io::Error) -> Self {
        Ended::Broken
    }
}

/// Carries bytes until the sender has closed its side and all of them are delivered.
pub(super) async fn pump(
    direction: Direction,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    link: &Link,
    mark: u64,
) -> Result<(), Ended> {
    let mut on_the_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut last_due = Instant::now();
    let mut is_open = true;
    while is_open || !on_the_way.is_empty() {
        let due = on_the_way.front().map(|(due, _)| *due);
        let mut chunk = vec![0; chunk_bytes(link.fault())];
        tokio::select! {
            read = from.read(&mut chunk), if is_open && on_the_way.len() < MOST_CHUNKS => {
                let read = read?;
                if read == 0 {
                    is_open = false;
                    continue;
                }
                chunk.truncate(read);
                last_due = arrival(direction, link.fault(), Instant::now(), last_due, read);
                on_the_way.push_back((last_due, chunk));
            }
            () = sleep_until(due.unwrap_or(last_due)), if due.is_some() => {
                let Some((_, chunk)) = on_the_way.pop_front() else { continue };
                deliver(direction, &chunk, &mut to, link, mark).await?;
            }
        }
    }
    // The end does not get through a cut link either: the receiver learns nothing until it goes itself.
    if link.is_cut(mark) && direction == Direction::ToClient {
        return std::future::pending().await;
    }
    to.shutdown().await?;
    Ok(())
}

async fn deliver(
    direction: Direction,
    chunk: &[u8],
    to: &mut WriteHalf<'_>,
    link: &Link,
    mark: u64,
) -> Result<(), Ended> {
    let bytes = chunk.len() as u64;
    if link.is_cut(mark) {
        link.swallowed_bytes.fetch_add(bytes, Ordering::SeqCst);
        return Ok(());
    }
    if link.fault() == Fault::LoseReplies && direction == Direction::ToClient {
        link.lost_replies.fetch_add(1, Ordering::SeqCst);
        return Err(Ended::Reset);
    }
    to.write_all(chunk).await?;
    let count = match direction {
        Direction::ToServer => &link.bytes_to_server,
        Direction::ToClient => &link.bytes_to_client,
    };
    count.fetch_add(bytes, Ordering::SeqCst);
    Ok(())
}

/// When so many bytes that enter `now` come out: not before those ahead of them.
pub(super) fn arrival(direction: Direction, fault: Fault, now: Instant, last_due: Instant, bytes: usize) -> Instant {
    let due = match fault {
        Fault::Delay { to_server, to_client } => match direction {
            Direction::ToServer => now + to_server,
            Direction::ToClient => now + to_client,
        },
        Fault::Throttle { bytes_per_s } => {
            now.max(last_due) + Duration::from_secs_f64(bytes as f64 / f64::from(bytes_per_s))
        }
        Fault::None | Fault::HalfOpen | Fault::LoseReplies | Fault::RefuseNew => now,
    };
    due.max(last_due)
}

/// A slow link delivers every 20 ms or so, or byte by byte.
fn chunk_bytes(fault: Fault) -> usize {
    match fault {
        Fault::Throttle { bytes_per_s } => {
            usize::try_from(bytes_per_s / 50).unwrap_or(usize::MAX).clamp(1, CHUNK_BYTES)
        }
        _ => CHUNK_BYTES,
    }
}
