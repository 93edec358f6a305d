//! Keeps what this replica may run: one task a pool asks the ledger in time.

use super::Engine;
use crate::ledger::{Account, Ledger, LedgerError};
use crate::metrics::Metrics;
use sluice_policy::ledger::{SyncReply, SyncRequest};
use sluice_policy::units::PoolName;
use std::sync::{Arc, PoisonError};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

impl Engine {
    /// Keeps the leases of all pools, also of those that a reload brings. Runs until shutdown.
    pub(super) async fn run_leases(self: &Arc<Self>, ledger: &Arc<dyn Ledger>, mut shutdown: watch::Receiver<bool>) {
        let mut leases = JoinSet::new();
        loop {
            let pools: Vec<PoolName> = self.lock().core.config().pools.keys().cloned().collect();
            for pool in pools {
                let Some(changed) = self.new_ledger_timer(&pool) else { continue };
                let (engine, ledger, stop) = (Arc::clone(self), Arc::clone(ledger), shutdown.clone());
                leases.spawn(async move { engine.run_lease(&pool, &changed, &*ledger, stop).await });
            }
            tokio::select! {
                () = self.pools_changed.notified() => {}
                _ = shutdown.wait_for(|stop| *stop) => break,
            }
        }
        while leases.join_next().await.is_some() {}
    }

    /// `None` when the pool's lease is kept already.
    fn new_ledger_timer(&self, pool: &PoolName) -> Option<Arc<Notify>> {
        let mut timers = self.ledger_timers.lock().unwrap_or_else(PoisonError::into_inner);
        if timers.contains_key(pool) {
            return None;
        }
        let timer = Arc::new(Notify::new());
        timers.insert(pool.clone(), Arc::clone(&timer));
        Some(timer)
    }

    /// Keeps a pool's lease. Runs until shutdown, and then gives back what it holds.
    async fn run_lease(
        &self,
        pool: &PoolName,
        changed: &Notify,
        ledger: &dyn Ledger,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let account = Account::Pool(pool.clone());
        let mut outage = Outage::default();
        loop {
            let due = self.lock().core.ask_ledger(pool, self.now());
            if let Some(request) = due {
                let reply = self.ask(ledger, &account, &request, &mut outage).await;
                let mut state = self.lock();
                let taken = state.core.ledger_answered(pool, reply.as_ref(), self.now());
                outage.note_stale(&account, reply.is_some() && !taken, &self.metrics);
                self.pump(&mut state);
                continue;
            }
            let next = self.lock().core.next_ledger_call(pool, self.now());
            tokio::select! {
                () = self.sleep_until(next) => {}
                () = changed.notified() => {}
                _ = shutdown.wait_for(|stop| *stop) => break,
            }
        }
        let farewell = self.lock().core.give_back(pool, self.now());
        if let Some(request) = farewell {
            self.ask(ledger, &account, &request, &mut outage).await;
        }
    }

    /// One call to the ledger, counted; `None` when it did not answer.
    pub(super) async fn ask(
        &self,
        ledger: &dyn Ledger,
        account: &Account,
        request: &SyncRequest,
        outage: &mut Outage,
    ) -> Option<SyncReply> {
        let answer = ledger.sync(account, request).await;
        self.metrics.ledger_call(if answer.is_ok() { "answered" } else { "failed" });
        match answer {
            Ok(reply) => {
                outage.over(account);
                Some(reply)
            }
            Err(error) => {
                outage.met(account, &error);
                None
            }
        }
    }
}

/// Logs the beginning and the end of a ledger's silence, not every failed call.
#[derive(Default)]
pub(super) struct Outage {
    is_silent: bool,
    is_stale: bool,
}

impl Outage {
    /// The ledger answers, but to a later incarnation of this holder's name.
    fn note_stale(&mut self, account: &Account, is_stale: bool, metrics: &Metrics) {
        if is_stale {
            metrics.ledger_call("stale");
        }
        if !std::mem::replace(&mut self.is_stale, is_stale) && is_stale {
            tracing::warn!(
                %account,
                "the ledger knows a later start of this holder: either another replica has the same ledger.holder, or \
                 this machine's clock was set back"
            );
        }
    }

    fn met(&mut self, account: &Account, error: &LedgerError) {
        if !std::mem::replace(&mut self.is_silent, true) {
            tracing::warn!(%account, %error, "the ledger does not answer; what is leased goes on until it ends");
        }
    }

    fn over(&mut self, account: &Account) {
        if std::mem::replace(&mut self.is_silent, false) {
            tracing::info!(%account, "the ledger answers again");
        }
    }
}
