//! The calls to the ledger: made in the same breath as what they tell of, answered here.

use super::Engine;
use crate::home::contract::Accounts;
use crate::home::error::HomeError;
use crate::ledger::{Account, Notice};
use sluice_policy::ledger::{SyncReply, SyncRequest};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, timeout_at};

/// A call on its way; of every account there is at most one.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) account: Account,
    pub(super) request: SyncRequest,
}

type Answered = (Account, Result<SyncReply, HomeError>);

/// How long the last calls of all accounts may take together.
const FAREWELL: Duration = Duration::from_secs(2);

impl Engine {
    /// Sends the calls that the engine makes, and takes in answers and notices. Runs until shutdown, and then gives back
    /// what this replica holds.
    pub(super) async fn run_calls(
        &self,
        ledger: &Arc<dyn Accounts>,
        mut calls: mpsc::UnboundedReceiver<Call>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let mut under_way = JoinSet::new();
        let mut notices = ledger.notices();
        let mut silence = Silence::default();
        loop {
            tokio::select! {
                Some(call) = calls.recv() => send(ledger, call, &mut under_way),
                Some(Ok((account, answer))) = under_way.join_next() => self.hear(&account, answer, &mut silence),
                Some(notice) = notices.recv() => self.notice(&notice),
                _ = shutdown.wait_for(|stop| *stop) => break,
            }
        }
        // Their answers are nobody's business any more: what follows is later than they are.
        under_way.detach_all();
        self.give_back(ledger).await;
    }

    fn hear(&self, account: &Account, answer: Result<SyncReply, HomeError>, silence: &mut Silence) {
        self.metrics.ledger_call(match &answer {
            Ok(_) => "answered",
            Err(HomeError::NoWrites { .. }) => "refused",
            Err(_) => "failed",
        });
        silence.note(account, answer.as_ref().err());
        let reply = answer.ok();
        let mut state = self.lock();
        let taken = state.core.ledger_answered(account, reply.as_ref(), self.now());
        if !taken {
            state.core.back_off(account, chance(), self.now());
        }
        state.keeping.answered(account, taken);
        self.pump(&mut state);
        drop(state);
        if reply.is_some_and(|reply| !reply.late) && !taken {
            self.metrics.ledger_call("stale");
            silence.note_stale(account);
        }
    }

    fn notice(&self, Notice { account, holder, reply }: &Notice) {
        if *holder == self.holder {
            self.metrics.ledger_call("notice");
            self.change(|core, now| core.ledger_noticed(account, reply, now));
        }
    }

    async fn give_back(&self, ledger: &Arc<dyn Accounts>) {
        let ends = Instant::now() + FAREWELL;
        let mut last = JoinSet::new();
        let calls = self.lock().core.give_back(self.now());
        calls.into_iter().for_each(|(account, request)| send(ledger, Call { account, request }, &mut last));
        while let Ok(Some(_)) = timeout_at(ends, last.join_next()).await {}
    }
}

/// Anything: what is asked again at once by everybody would hold the ledger up.
fn chance() -> u16 {
    let mut bytes = [0; 2];
    // Without a source of chance the longest pause is as good as any.
    getrandom::fill(&mut bytes).map_or(u16::MAX, |()| u16::from_le_bytes(bytes))
}

fn send(ledger: &Arc<dyn Accounts>, Call { account, request }: Call, under_way: &mut JoinSet<Answered>) {
    let ledger = Arc::clone(ledger);
    under_way.spawn(async move {
        let answer = ledger.sync(&account, &request).await;
        (account, answer)
    });
}

/// Logs the beginning and the end of a ledger's silence, not every failed call.
#[derive(Default)]
struct Silence {
    is_silent: bool,
    takes_no_writes: bool,
    is_stale: bool,
}

impl Silence {
    fn note(&mut self, account: &Account, error: Option<&HomeError>) {
        let was_silent = std::mem::replace(&mut self.is_silent, error.is_some());
        let takes_no_writes = matches!(error, Some(HomeError::NoWrites { .. }));
        let is_news = takes_no_writes && !std::mem::replace(&mut self.takes_no_writes, takes_no_writes);
        match error {
            Some(error) if is_news => {
                tracing::error!(%account, %error, "what is leased goes on until it ends");
            }
            Some(error) if !was_silent => {
                tracing::warn!(%account, %error, "the ledger does not answer; what is leased goes on until it ends");
            }
            None if was_silent => tracing::info!(%account, "the ledger answers again"),
            Some(_) | None => {}
        }
    }

    /// The ledger answers, but to a later incarnation of this holder's name.
    fn note_stale(&mut self, account: &Account) {
        if !std::mem::replace(&mut self.is_stale, true) {
            tracing::warn!(
                %account,
                "the ledger knows a later start of this holder: either another replica has the same ledger.holder, or \
                 this machine's clock was set back"
            );
        }
    }
}
