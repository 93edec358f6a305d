//! Keeps a link connected: a reconciler, driven by complaints.

use super::dial::{Connection, Dialer};
use super::fitness::Unfit;
use redis::Client;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// After a failed attempt; doubled with every further one.
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
}

impl State {
    pub(super) fn wire(&self) -> Option<Wire> {
        match self {
            State::Up(wire) => Some(wire.clone()),
            State::Starting | State::Away(_) | State::Unfit(_) => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub(super) generation: u64,
    /// Otherwise it is only silent, and may serve until there is a better one.
    pub(super) is_lost: bool,
}

/// Runs until the link is gone.
pub(super) async fn keep(dialer: Dialer, state: watch::Sender<State>, mut complaints: mpsc::Receiver<Complaint>) {
    let mut generation = 0;
    loop {
        let (connection, listening_posts) = connect(&dialer, &state, generation == 0).await;
        generation += 1;
        state.send_replace(State::Up(Wire { generation, connection, listening_posts }));
        loop {
            match complaints.recv().await {
                None => return,
                Some(complaint) if complaint.generation < generation => {}
                Some(complaint) => {
                    if complaint.is_lost {
                        state.send_replace(State::Away("the connection was lost".to_owned()));
                    }
                    tracing::warn!(lost = complaint.is_lost, "Redis does not answer; connecting anew");
                    break;
                }
            }
        }
    }
}

/// Dials until a server is there that may be used.
async fn connect(dialer: &Dialer, state: &watch::Sender<State>, is_first: bool) -> (Connection, Arc<[Client]>) {
    let mut pause = FIRST_PAUSE;
    let mut told = BTreeSet::new();
    loop {
        let (problem, is_unfit) = match dialer.dial().await {
            Ok(mut dialed) => match dialed.check().await {
                Ok(facts) => {
                    tracing::info!(server = %dialed.name, %facts, "connected to Redis");
                    return (dialed.connection, dialed.listening_posts.into());
                }
                // A ledger that has worked until now is not closed because of a setting: one that forgets accounts
                // freezes for a while, which is bad, while a closed one admits nobody.
                Err(Unfit::Setting(problem)) if !is_first => {
                    tracing::error!(server = %dialed.name, "used all the same, since Redis was fit before: {problem}");
                    return (dialed.connection, dialed.listening_posts.into());
                }
                Err(Unfit::Setting(problem)) => (format!("{}: {problem}", dialed.name), true),
                Err(Unfit::NotNow(problem)) => (format!("{}: {problem}", dialed.name), false),
            },
            Err(problem) => (problem, false),
        };
        // Once each: what fails four times a second may fail in turn for two reasons.
        if told.len() < MOST_TOLD && told.insert(problem.clone()) {
            tracing::warn!("cannot use Redis, going on trying: {problem}");
        }
        let next = if is_unfit { State::Unfit(problem) } else { State::Away(problem) };
        state.send_if_modified(|state| {
            // A silent connection goes on serving until there is another.
            let replace = !matches!(state, State::Up(_));
            if replace {
                *state = next;
            }
            replace
        });
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
