//! Callers without a thought between two calls.

use crate::client::{Chat, Client};
use crate::upstream::Usage;
use crate::wait::let_pass;
use anyhow::Result;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// Counts the tokens of replies that came whole, of all that share it.
    pub delivered: Arc<AtomicU64>,
}

/// What became of calls: how many by status and reason. A call without a reply has the status 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<(u16, String), u64>);

/// Callers that go on calling until they are told to end. Dropping it makes them hang up.
pub struct Load {
    word: watch::Sender<Word>,
    callers: JoinSet<Tally>,
}

/// What callers are told, each of them before its next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    GoOn,
    Wait,
    End,
}

impl Default for Load {
    fn default() -> Self {
        Self { word: watch::Sender::new(Word::GoOn), callers: JoinSet::new() }
    }
}

impl Load {
    /// Lets so many more callers of this kind begin.
    pub fn add(&mut self, caller: &Caller, count: usize) {
        for _ in 0..count {
            self.callers.spawn(caller.clone().go_on(self.word.subscribe()));
        }
    }

    /// Lets everybody finish the call they are in, and wait for [`Load::resume`].
    pub fn pause(&self) {
        self.word.send_replace(Word::Wait);
    }

    pub fn resume(&self) {
        self.word.send_replace(Word::GoOn);
    }

    /// Lets everybody finish the call they are in, and tells how calls fared.
    ///
    /// # Errors
    /// When a caller has panicked.
    pub async fn end(mut self) -> Result<Tally> {
        self.word.send_replace(Word::End);
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
    /// One of the tenant's own level.
    #[must_use]
    pub fn new(client: Client, chat: Chat) -> Self {
        Self { client, chat, level: None, delivered: Arc::default() }
    }

    async fn go_on(self, mut word: watch::Receiver<Word>) -> Tally {
        let mut tally = Tally::default();
        let body = self.chat.text();
        // Fails only when whoever gives the word is gone, and all callers with it.
        while word.wait_for(|word| *word != Word::Wait).await.is_ok_and(|word| *word == Word::GoOn) {
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
                    let usage = Usage::from_openai(&reply.json()["usage"]).unwrap_or_default();
                    self.delivered.fetch_add(usage.total(), Ordering::Relaxed);
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
