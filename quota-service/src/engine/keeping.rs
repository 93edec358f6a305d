//! Which settlements are safe: what they did would be known after this process was killed.
//!
//! A settlement is counted in a usage record and charged to its tenant's account. It is safe when the ledger has the record,
//! and has answered a call that told of the charge; until then its batch is not acknowledged, and the filter goes on keeping
//! it. Nobody is asked anything for it: it waits for the calls that are made anyway, so that the ledger's load does not grow
//! with settlements.

use super::Engine;
use crate::home::contract::UsageRecords;
use crate::ledger::Account;
use crate::usage::Usage;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep};

/// Numbers batches of settlements, and knows whose accounts the ledger has not heard of since.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    latest: u64,
    untold: BTreeMap<Account, Untold>,
    /// Whose accounts the latest batch has charged.
    charged: Vec<Account>,
    /// Accounts that have been asked for; others have nothing to tell.
    asked: BTreeSet<Account>,
}

/// The first batch that charged an account since it was told of, by how far the word has come.
#[derive(Clone, Copy, Debug, Default)]
struct Untold {
    here: Option<u64>,
    on_the_way: Option<u64>,
}

impl Keeping {
    /// A batch begins. Its number is larger than any before.
    pub(super) fn begin(&mut self) -> u64 {
        self.latest += 1;
        self.charged.clear();
        self.latest
    }

    /// The batch that began last has charged an account.
    pub(super) fn charged(&mut self, account: Account) {
        self.charged.push(account.clone());
        self.untold.entry(account).or_default().here.get_or_insert(self.latest);
    }

    /// The ledger is asked for an account, and told of all that was charged to it.
    pub(super) fn asked(&mut self, account: &Account) {
        if !self.asked.contains(account) {
            self.asked.insert(account.clone());
        }
        if let Some(untold) = self.untold.get_mut(account) {
            untold.on_the_way = first(untold.on_the_way, untold.here.take());
        }
    }

    /// The ledger has answered, or not.
    pub(super) fn answered(&mut self, account: &Account, is_told: bool) {
        let Some(untold) = self.untold.get_mut(account) else { return };
        let on_the_way = untold.on_the_way.take();
        if !is_told {
            untold.here = first(untold.here, on_the_way);
        }
        if untold.here.is_none() {
            self.untold.remove(account);
        }
    }

    /// Forgets those accounts of the latest batch that the ledger need not know of.
    pub(super) fn forget_unlimited(&mut self) {
        for account in self.charged.drain(..).filter(|account| !self.asked.contains(account)) {
            self.untold.remove(&account);
        }
    }

    /// The last batch of which, and of all before it, the ledger has been told.
    pub(super) fn told(&self) -> u64 {
        let open = self.untold.values().filter_map(|untold| first(untold.here, untold.on_the_way)).min();
        open.map_or(self.latest, |open| open.saturating_sub(1))
    }

    pub(super) fn latest(&self) -> u64 {
        self.latest
    }
}

fn first(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

impl Engine {
    /// Waits until a batch of settlements, and all before it, are safe; at once where nothing outlives this process.
    pub async fn safe(&self, batch: u64) {
        if self.ledger.as_ref().is_some_and(|ledger| ledger.outlives_us()) {
            // The sender lives as long as this does.
            let _ = self.safe_up_to.subscribe().wait_for(|safe| *safe >= batch).await;
        }
    }

    /// For how long no settlement has become safe.
    pub fn unsafe_for(&self) -> Duration {
        self.safe_since.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Waits until all settlements so far are safe.
    pub async fn all_safe(&self) {
        let latest = self.lock().keeping.latest();
        self.safe(latest).await;
    }

    /// Brings usage records to the ledger, again and again, and acknowledges what is safe by it. Runs until shutdown.
    pub async fn keep(&self, usage: &Usage, home: &dyn UsageRecords, mut shutdown: watch::Receiver<bool>) {
        let mut is_failing = false;
        loop {
            tokio::select! {
                () = sleep(home.flush_every()) => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
            // Whatever was settled by now has been counted by now.
            let (told, latest) = {
                let state = self.lock();
                (state.keeping.told(), state.keeping.latest())
            };
            let outcome = usage.flush(home).await;
            match (&outcome, is_failing) {
                (Err(error), false) => tracing::warn!(%error, "usage records wait for the ledger"),
                (Ok(()), true) => tracing::info!("usage records are written again"),
                (Err(_), true) | (Ok(()), false) => {}
            }
            is_failing = outcome.is_err();
            if !is_failing {
                let is_more = self.safe_up_to.send_if_modified(|safe| std::mem::replace(safe, told) != told);
                if is_more || told == latest {
                    *self.safe_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                }
            }
        }
    }
}

/// As [`Engine::keep`], for a task of its own.
pub async fn run(engine: Arc<Engine>, usage: Arc<Usage>, home: Arc<dyn UsageRecords>, shutdown: watch::Receiver<bool>) {
    engine.keep(&usage, &*home, shutdown).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(id: &str) -> Account {
        Account::Tenant(id.into())
    }

    #[test]
    fn a_batch_is_told_when_a_call_that_was_made_after_it_is_answered() {
        let mut keeping = Keeping::default();
        keeping.asked(&tenant("a"));
        keeping.begin();
        keeping.charged(tenant("a"));
        keeping.answered(&tenant("a"), true);
        assert_eq!(keeping.told(), 0, "that call was made before");
        keeping.asked(&tenant("a"));
        keeping.begin();
        keeping.charged(tenant("a"));
        keeping.answered(&tenant("a"), true);
        assert_eq!(keeping.told(), 1);
        keeping.asked(&tenant("a"));
        keeping.answered(&tenant("a"), false);
        assert_eq!(keeping.told(), 1, "that call may be lost");
        keeping.asked(&tenant("a"));
        keeping.answered(&tenant("a"), true);
        assert_eq!(keeping.told(), 2);
    }

    #[test]
    fn a_batch_waits_for_every_tenant_and_for_those_before_it() {
        let mut keeping = Keeping::default();
        for id in ["a", "b"] {
            keeping.begin();
            keeping.charged(tenant(id));
            keeping.asked(&tenant(id));
        }
        keeping.answered(&tenant("b"), true);
        assert_eq!(keeping.told(), 0);
        keeping.answered(&tenant("a"), true);
        assert_eq!(keeping.told(), 2);
    }

    #[test]
    fn a_tenant_without_limits_is_nothing_to_wait_for() {
        let mut keeping = Keeping::default();
        keeping.begin();
        keeping.charged(tenant("free"));
        keeping.forget_unlimited();
        assert_eq!(keeping.told(), 1);
    }
}
