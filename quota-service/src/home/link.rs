//! The way to Redis, whatever kind of Redis it is: run this script on this key, run this command, listen to this
//! channel.
//!
//! A task of the link's own dials, and dials again when somebody complains: at once when the connection was lost, and
//! beside the old connection when that merely did not answer. This is why the crate's own `ConnectionManager` is not
//! used: it goes on with a connection that no longer answers but was not closed (a stopped server, a cut cable) until
//! the kernel gives up on it, and it never asks the Sentinels for a new master.

mod credentials;
mod dial;
mod fitness;
mod keeper;
mod lua;
mod notices;
mod scan;
mod sentinel;
mod settings;

pub use credentials::RedisSecrets;
pub use lua::{Lua, LuaCall};
pub use notices::Notice;
pub use settings::{Login, Password, Place, RedisSettings, TlsFiles};

use super::error::HomeError;
use dial::Dialer;
use keeper::{Complaint, State, Wire};
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{error::Elapsed, timeout};

/// Of one call of a script, so that it does not hold up the server.
const MOST_KEYS: usize = 64;

pub struct Link {
    state: Arc<watch::Sender<State>>,
    timeout: Duration,
    keys_at_once: usize,
    /// Ends with the link.
    _keeper: JoinSet<()>,
}

/// What the first look at Redis found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstContact {
    Reached,
    /// It may come up later than we do.
    NotYet,
}

impl Link {
    /// Begins to connect, in the background.
    ///
    /// # Errors
    /// The certificates cannot be used; the text holds no secret.
    pub fn new(settings: &RedisSettings, secrets: &RedisSecrets) -> Result<Self, String> {
        let dialer = Dialer::new(settings, secrets).map_err(|error| error.to_string())?;
        let state = Arc::new(watch::Sender::new(State::Starting));
        let mut keeper = JoinSet::new();
        keeper.spawn(keeper::keep(dialer, Arc::clone(&state)));
        let keys_at_once = if matches!(settings.place, Place::Cluster(_)) { 1 } else { MOST_KEYS };
        Ok(Self { state, timeout: settings.timeout, keys_at_once, _keeper: keeper })
    }

    /// How many keys one call of a script may touch: in a cluster each may be on another node.
    #[must_use]
    pub fn keys_at_once(&self) -> usize {
        self.keys_at_once
    }

    /// Waits for the first connection, as long as a call may take.
    ///
    /// # Errors
    /// What is wrong with the server, and the line that mends it, where it must not be used.
    pub async fn first_contact(&self) -> Result<FirstContact, String> {
        let mut state = self.state.subscribe();
        let is_known = |state: &State| state.wire().is_some() || matches!(state, State::Unfit(_));
        match timeout(self.timeout, state.wait_for(is_known)).await {
            Ok(Ok(known)) => match &*known {
                State::Unfit(problem) => Err(problem.clone()),
                State::Starting | State::Away(_) | State::Up(_) | State::Doubted(_) => Ok(FirstContact::Reached),
            },
            Ok(Err(_)) | Err(_) => Ok(FirstContact::NotYet),
        }
    }

    /// Runs a script on its key, loading it where Redis does not have it (any more).
    ///
    /// # Errors
    /// No answer in time, or Redis refused. The script may have run all the same.
    pub async fn run<T: FromRedisValue>(&self, call: &LuaCall<'_>) -> Result<T, HomeError> {
        let answer = self.within_time(async |wire: &mut Wire| {
            match call.by_hash().query_async(&mut wire.connection).await {
                // Not SCRIPT LOAD, which in a cluster goes to every node and fails while any one of them is away.
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    call.by_text().query_async(&mut wire.connection).await
                }
                answer => answer,
            }
        });
        answer.await
    }

    /// Runs a command.
    ///
    /// # Errors
    /// No answer in time, or Redis refused. The command may have run all the same.
    pub async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, HomeError> {
        self.within_time(async |wire: &mut Wire| command.query_async(&mut wire.connection).await).await
    }

    /// The names of all keys that match a pattern, of every master. Each step of the way has the time of one call.
    ///
    /// # Errors
    /// No answer in time, or Redis refused.
    pub async fn keys(&self, pattern: &str) -> Result<BTreeSet<String>, HomeError> {
        let mut keys = BTreeSet::new();
        let mut steps = self.within_time(async |wire| wire.connection.scan(pattern).await).await?;
        while let Some(mut step) = steps.pop() {
            keys.extend(std::mem::take(&mut step.keys));
            if !step.is_last() {
                steps.push(self.within_time(async |wire| wire.connection.scan_on(step, pattern).await).await?);
            }
        }
        Ok(keys)
    }

    /// Listens to channels for as long as the receiver lives, again after every reconnect. What is published
    /// meanwhile is lost, and so is what the receiver leaves lying: notices hurry, they promise nothing.
    #[must_use]
    pub fn subscribe(&self, channels: Vec<String>) -> mpsc::Receiver<Notice> {
        notices::listen(channels, self.state.subscribe(), self.timeout)
    }

    /// One deadline over everything: waiting for a connection, asking, and loading a script.
    async fn within_time<T>(&self, ask: impl AsyncFnOnce(&mut Wire) -> Result<T, RedisError>) -> Result<T, HomeError> {
        let mut generation = None;
        let answer = timeout(self.timeout, async {
            let mut wire = self.wire().await?;
            generation = Some(wire.generation);
            ask(&mut wire).await.map_err(HomeError::from)
        });
        let answer = answer.await;
        if let (Some(generation), Some(complaint)) = (generation, complaint(&answer)) {
            self.state.send_if_modified(|state| state.hear(complaint, generation));
        }
        answer.unwrap_or_else(|_| Err(self.no_answer()))
    }

    async fn wire(&self) -> Result<Wire, HomeError> {
        let mut changes = self.state.subscribe();
        let is_decided = |state: &State| state.wire().is_some() || matches!(state, State::Unfit(_));
        let wire = changes.wait_for(is_decided).await.map(|state| match &*state {
            State::Unfit(problem) => Err(HomeError::Unfit(problem.clone())),
            state => Ok(state.wire().cloned()),
        });
        match wire {
            Ok(Ok(Some(wire))) => Ok(wire),
            Ok(Err(unfit)) => Err(unfit),
            Ok(Ok(None)) | Err(_) => Err(self.no_answer()),
        }
    }

    fn no_answer(&self) -> HomeError {
        match &*self.state.borrow() {
            State::Away(why) => HomeError::Away(why.clone()),
            State::Starting | State::Unfit(_) | State::Up(_) | State::Doubted(_) => {
                HomeError::Timeout(self.timeout.as_millis())
            }
        }
    }
}

/// What an answer says about the connection it came over, if anything is wrong with that.
fn complaint<T>(answer: &Result<Result<T, HomeError>, Elapsed>) -> Option<Complaint> {
    let error = match answer {
        Err(_) => return Some(Complaint::Silent),
        Ok(Err(HomeError::Redis(error))) => error,
        Ok(Ok(_) | Err(_)) => return None,
    };
    match error.kind() {
        // It was the master once. Sentinel knows who is now.
        ErrorKind::Server(ServerErrorKind::ReadOnly) => Some(Complaint::Lost),
        ErrorKind::Io if error.is_timeout() => Some(Complaint::Silent),
        ErrorKind::Io => Some(Complaint::Lost),
        _ => error.is_unrecoverable_error().then_some(Complaint::Lost),
    }
}
