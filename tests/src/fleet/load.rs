//! Callers without a thought between two calls.

use crate::client::{Chat, Client};
use crate::wait::let_pass;
use anyhow::Result;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A caller that was not served looks up before it tries again; else those whose gateway is away would do nothing but
/// try.
const BREATH: Duration = Duration::from_millis(20);

/// One kind of caller: who, through which gateway, and with what.
#[derive(Clone)]
pub struct Caller {
    pub client: Client,
    pub chat: Chat,
    /// `None`: the tenant's own.
    pub level: Option<u8>,
}

/// What became of calls: how many by status and reason. A call without a reply has the status 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<(u16, String), u64>);

/// Callers that go on calling until they are told to end. Dropping it makes them hang up.
pub struct Load {
    stop: watch::Sender<bool>,
    callers: JoinSet<Tally>,
}

impl Default for Load {
    fn default() -> Self {
        Self { stop: watch::Sender::new(false), callers: JoinSet::new() }
    }
}

impl Load {
    /// Lets so many more callers of this kind begin.
    pub fn add(&mut self, caller: &Caller, count: usize) {
        for _ in 0..count {
            self.callers.spawn(caller.clone().go_on(self.stop.subscribe()));
        }
    }

    /// Lets everybody finish the call they are in, and tells how calls fared.
    ///
    /// # Errors
    /// When a caller has panicked.
    pub async fn end(mut self) -> Result<Tally> {
        self.stop.send_replace(true);
        let mut tally = Tally::default();
        while let Some(of_caller) = self.callers.join_next().await {
            for (outcome, count) in of_caller?.0 {
                *tally.0.entry(outcome).or_default() += count;
            }
        }
        Ok(tally)
    }
}

impl Tally {
    #[must_use]
    pub fn served(&self) -> u64 {
        self.0.iter().filter(|((status, _), _)| *status == 200).map(|(_, count)| count).sum()
    }

    /// Calls that were not served.
    #[must_use]
    pub fn others(&self) -> u64 {
        self.0.values().sum::<u64>() - self.served()
    }

    fn note(&mut self, status: u16, reason: &str) {
        *self.0.entry((status, reason.to_owned())).or_default() += 1;
    }
}

impl Caller {
    async fn go_on(self, stop: watch::Receiver<bool>) -> Tally {
        let mut tally = Tally::default();
        let body = self.chat.text();
        while !*stop.borrow() {
            let mut request = self.client.chat_request(body.clone());
            if let Some(level) = self.level {
                request = request.header("x-priority", level.to_string());
            }
            let served = match crate::client::send(request).await {
                Ok(reply) if reply.broken => {
                    tally.note(0, "broken off");
                    false
                }
                Ok(reply) => {
                    tally.note(reply.status, reply.reason().unwrap_or_default());
                    reply.status == 200
                }
                Err(_) => {
                    tally.note(0, "no reply");
                    false
                }
            };
            if !served {
                let_pass(BREATH).await;
            }
        }
        tally
    }
}
