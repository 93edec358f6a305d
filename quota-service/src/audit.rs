//! The audit log: what operators and rules have changed. One line each in the service's log, under the target `audit`,
//! and one entry each in Redis' stream `sluice:audit`, where there is a Redis.

use crate::home::contract::AuditTrail;
use crate::home::records::Entry;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Entries that wait for Redis; beyond that they are in the log only.
const MOST_WAITING: usize = 1_024;

#[derive(Clone)]
pub struct Audit(mpsc::Sender<Entry>);

impl Audit {
    /// The log, and the queue that [`run`] writes out.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Entry>) {
        let (sender, receiver) = mpsc::channel(MOST_WAITING);
        (Self(sender), receiver)
    }

    pub fn log(&self, what: &'static str, how: String) {
        tracing::info!(target: "audit", what, how);
        if self.0.try_send(Entry { what, how }).is_err() {
            tracing::warn!("an audit entry is in this log only: the ledger does not take them fast enough");
        }
    }
}

/// Writes entries to the home, in order. Runs until shutdown.
pub async fn run(mut entries: mpsc::Receiver<Entry>, trail: Arc<dyn AuditTrail>, mut shutdown: watch::Receiver<bool>) {
    loop {
        let entry = tokio::select! {
            Some(entry) = entries.recv() => entry,
            _ = shutdown.wait_for(|stop| *stop) => return,
        };
        if let Err(error) = trail.record(&entry).await {
            tracing::warn!(%error, what = entry.what, "an audit entry is in this log only");
        }
    }
}
