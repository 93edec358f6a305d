//! Brings what changed to the file: together, in the background, at most every [`COMMIT_EVERY`] unless somebody waits.

use super::book::Book;
use super::store::{Store, StoreError};
use crate::home::error::HomeError;
use crate::home::records::{Hour, Record};
use sluice_policy::units::TenantId;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Duration, sleep};

/// What changed waits so long for more, so that a busy ledger costs ten flushes of the disk a second.
pub(super) const COMMIT_EVERY: Duration = Duration::from_millis(100);
/// After a commit that failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// While the file says that more is in use than is.
const LOWER_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Committer {
    shared: Arc<Shared>,
    incarnation: u64,
    task: JoinHandle<()>,
}

struct Shared {
    store: Store,
    book: Arc<Mutex<Book>>,
    /// Something has changed.
    changed: Notify,
    /// Somebody waits for the file.
    urgent: Notify,
    /// Up to which change the file knows everything.
    committed: watch::Sender<u64>,
    trouble: Mutex<Option<String>>,
}

impl Committer {
    pub(super) fn start(store: Store, book: Arc<Mutex<Book>>) -> Self {
        let incarnation = store.incarnation();
        let shared = Arc::new(Shared {
            store,
            book,
            changed: Notify::new(),
            urgent: Notify::new(),
            committed: watch::Sender::new(0),
            trouble: Mutex::default(),
        });
        let task = tokio::spawn(Arc::clone(&shared).run());
        Self { shared, incarnation, task }
    }

    pub(super) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Something has changed.
    pub(super) fn note(&self) {
        self.shared.changed.notify_one();
    }

    /// Somebody waits for what has changed.
    pub(super) fn hurry(&self) {
        self.shared.changed.notify_one();
        self.shared.urgent.notify_one();
    }

    /// Waits until the file knows of a change.
    pub(super) async fn committed(&self, change: u64) {
        // The sender lives as long as this does.
        let _ = self.shared.committed.subscribe().wait_for(|committed| *committed >= change).await;
    }

    /// The usage records of a tenant that the file has.
    pub(super) async fn usage(&self, tenant: TenantId, hours: RangeInclusive<Hour>) -> Result<Vec<Record>, HomeError> {
        let shared = Arc::clone(&self.shared);
        let read = spawn_blocking(move || shared.store.usage(&tenant, &hours)).await;
        let failed = |error: StoreError| HomeError::File(error.to_string());
        read.map_err(|error| HomeError::File(error.to_string()))?.map_err(failed)
    }

    pub(super) async fn kept_usage(&self, records: Vec<Record>) -> Result<Vec<Record>, HomeError> {
        let shared = Arc::clone(&self.shared);
        let read = spawn_blocking(move || shared.store.kept_usage(&records)).await;
        let failed = |error: StoreError| HomeError::File(error.to_string());
        read.map_err(|error| HomeError::File(error.to_string()))?.map_err(failed)
    }

    /// Why it takes so long.
    pub(super) fn trouble(&self) -> String {
        let trouble = self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.clone().unwrap_or_else(|| "the disk is too slow".to_owned())
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    async fn run(self: Arc<Self>) {
        loop {
            let is_high = self.book().is_high();
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep(LOWER_EVERY), if is_high => {}
            }
            let committing = Arc::clone(&self);
            let is_committed = spawn_blocking(move || committing.commit()).await.unwrap_or(false);
            let pause = if is_committed { COMMIT_EVERY } else { RETRY_AFTER };
            tokio::select! {
                () = self.urgent.notified(), if is_committed => {}
                () = sleep(pause) => {}
            }
            if !is_committed {
                self.changed.notify_one();
            }
        }
    }

    fn commit(&self) -> bool {
        let (changes, change) = self.book().changes();
        let Some(changes) = changes else {
            self.committed.send_replace(change);
            return true;
        };
        let outcome = self.store.commit(&changes);
        match &outcome {
            Ok(()) => {
                self.book().committed(&changes);
                self.committed.send_replace(change);
            }
            Err(_) => self.book().failed(changes),
        }
        let failure = outcome.err().map(|error| error.to_string());
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match (&failure, trouble.is_some()) {
            (Some(error), false) => tracing::error!(error, "the ledger's file cannot be written; nothing more is lent"),
            (None, true) => tracing::info!("the ledger's file is written again"),
            (Some(_), true) | (None, false) => {}
        }
        *trouble = failure;
        trouble.is_none()
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
