//! What others publish, heard over a connection of its own that is opened again whenever it breaks.

use super::keeper::State;
use crate::home::error::HomeError;
use futures_util::StreamExt;
use redis::{Client, RedisError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

/// How long a connection that hears nothing may be dead unnoticed, give or take a timeout.
const PING_EVERY: Duration = Duration::from_secs(1);
/// After a failed attempt.
const PAUSE: Duration = Duration::from_millis(100);
/// A reader that is this far behind has no use for more.
const UNREAD: usize = 1024;

/// Something that was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub channel: String,
    pub payload: String,
}

/// Listens until the receiver or the link is gone.
pub(super) fn listen(
    channels: Vec<String>,
    state: watch::Receiver<State>,
    patience: Duration,
) -> mpsc::Receiver<Notice> {
    let (heard, notices) = mpsc::channel(UNREAD);
    tokio::spawn(async move {
        let reader = heard.clone();
        tokio::select! {
            () = keep_listening(&channels, state, patience, &heard) => {}
            () = reader.closed() => {}
        }
    });
    notices
}

async fn keep_listening(
    channels: &[String],
    mut state: watch::Receiver<State>,
    patience: Duration,
    heard: &mpsc::Sender<Notice>,
) {
    let mut attempt = 0;
    loop {
        let Ok(wire) = state.wait_for(|state| state.wire().is_some()).await.map(|state| state.wire().cloned()) else {
            return;
        };
        let Some(wire) = wire else { continue };
        // The next time at the next node of a cluster.
        let Some(post) = wire.listening_posts.get(attempt % wire.listening_posts.len().max(1)) else { return };
        attempt += 1;
        tokio::select! {
            result = listen_at(post, channels, patience, heard) => {
                if let Err(problem) = result {
                    tracing::debug!("no notices from {}: {problem}", post.get_connection_info().addr());
                }
                tokio::time::sleep(PAUSE).await;
            }
            // The master may be somewhere else now.
            is_replaced = replaced(&mut state, wire.generation) => if !is_replaced { return }
        }
    }
}

/// Waits for another connection than that of `generation`; false when the link is gone and there will never be one.
async fn replaced(state: &mut watch::Receiver<State>, generation: u64) -> bool {
    state.wait_for(|state| state.wire().is_some_and(|wire| wire.generation != generation)).await.is_ok()
}

/// Returns when the connection has ended, or fell silent.
async fn listen_at(
    post: &Client,
    channels: &[String],
    patience: Duration,
    heard: &mpsc::Sender<Notice>,
) -> Result<(), HomeError> {
    let too_late = |_| HomeError::Timeout(patience.as_millis());
    let connected = timeout(patience, async {
        let mut connection = post.get_async_pubsub().await?;
        connection.subscribe(channels).await?;
        Ok::<_, RedisError>(connection)
    });
    let (mut sink, mut messages) = connected.await.map_err(too_late)??.split();
    let mut pings = interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = messages.next() => {
                let Some(message) = message else { return Ok(()) };
                let channel = message.get_channel_name().to_owned();
                if let Ok(payload) = message.get_payload() {
                    // A full queue loses the notice, which the next tick makes up for.
                    let _ = heard.try_send(Notice { channel, payload });
                }
            }
            _ = pings.tick() => { let _: redis::Value = timeout(patience, sink.ping()).await.map_err(too_late)??; }
        }
    }
}
