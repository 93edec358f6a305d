//! Keeps a link connected: a reconciler, driven by complaints.

use super::dial::{Connection, Dialed, Dialer};
use redis::Client;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// From one attempt to the next; doubled with every further one.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// A new master is found within this, and a dead one is not bothered more often.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Problems of one outage that are worth a line in the log.
const MOST_TOLD: usize = 20;

/// An established connection; clones share it.
#[derive(Clone)]
pub(super) struct Wire {
    /// Counts the connections, so that a complaint about an old one is known as such.
    pub(super) generation: u64,
    pub(super) connection: Connection,
    /// Servers on any of which everything can be heard that is published.
    pub(super) listening_posts: Arc<[Client]>,
}

pub(super) enum State {
    /// Nobody has tried to connect yet.
    Starting,
    /// And why the last attempt failed.
    Away(String),
    /// Reached, but must not be used: what is wrong, and what mends it.
    Unfit(String),
    Up(Wire),
    /// It was silent when it should have answered. It serves until there is another.
    Doubted(Wire),
}

/// What a call tells of the connection that failed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    Lost,
    Silent,
}

impl State {
    /// What may be used now.
    pub(super) fn wire(&self) -> Option<&Wire> {
        match self {
            State::Up(wire) | State::Doubted(wire) => Some(wire),
            State::Starting | State::Away(_) | State::Unfit(_) => None,
        }
    }

    /// Takes note, unless another connection has taken the place of `generation`. Whether anything has changed.
    pub(super) fn hear(&mut self, complaint: Complaint, generation: u64) -> bool {
        let Some(wire) = self.wire().filter(|wire| wire.generation == generation) else { return false };
        let next = match (complaint, &*self) {
            // Of a cluster only one node may be gone, and the accounts on the others go on.
            (Complaint::Lost, _) if !wire.connection.is_cluster() => State::Away("the connection was lost".to_owned()),
            (_, State::Up(_)) => State::Doubted(wire.clone()),
            _ => return false,
        };
        *self = next;
        true
    }
}

/// Connects, and connects again whenever the state is no longer [`State::Up`]; until the link is gone.
pub(super) async fn keep(dialer: Dialer, state: Arc<watch::Sender<State>>) {
    let mut changes = state.subscribe();
    for generation in 1.. {
        let dialed = connect(&dialer, &state, generation == 1).await;
        let listening_posts = dialed.listening_posts.into();
        state.send_replace(State::Up(Wire { generation, connection: dialed.connection, listening_posts }));
        if changes.wait_for(|state| !matches!(state, State::Up(_))).await.is_err() {
            return;
        }
        tracing::warn!("Redis does not answer; connecting anew");
    }
}

/// Dials until a server is there that may be used.
async fn connect(dialer: &Dialer, state: &watch::Sender<State>, is_first: bool) -> Dialed {
    let mut pause = FIRST_PAUSE;
    let mut told = BTreeSet::new();
    loop {
        let next_attempt = Instant::now() + pause;
        let next = match dialer.dial().await {
            Ok(dialed) => match &dialed.verdict {
                Ok(facts) => {
                    tracing::info!(server = %dialed.name, %facts, "connected to Redis");
                    return dialed;
                }
                // A ledger that has worked until now is not closed because of a setting: one that forgets accounts
                // freezes for a while, which is bad, while a closed one admits nobody.
                Err(problem) if !is_first => {
                    tracing::error!("used all the same, since Redis was fit before: {problem}");
                    return dialed;
                }
                Err(problem) => State::Unfit(problem.clone()),
            },
            Err(problem) => State::Away(problem),
        };
        if let State::Away(problem) | State::Unfit(problem) = &next {
            // Once each: what fails four times a second may fail in turn for two reasons.
            if told.len() < MOST_TOLD && told.insert(problem.clone()) {
                tracing::warn!("cannot use Redis, going on trying: {problem}");
            }
        }
        state.send_if_modified(|state| {
            let replace = state.wire().is_none();
            if replace {
                *state = next;
            }
            replace
        });
        sleep_until(next_attempt).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
