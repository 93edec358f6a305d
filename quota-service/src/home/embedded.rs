//! The home in this process: for one replica, with nothing to install.
//!
//! With a file it outlives the process. Calls are answered from memory, and what they changed is committed every
//! [`COMMIT_EVERY`], with one exception: whoever is granted more slots than the file knows of hears of it when the file
//! does. So after a crash the file never knows of fewer slots than may be in use (I1), and what a crash loses is what was
//! drawn of rates and budgets since the last commit.

mod book;
mod committer;
mod store;
#[cfg(test)]
mod tests;

pub use store::StoreError;

use super::contract::{Accounts, Answer, AuditTrail, Documents, Lifecycle, UsageRecords};
use super::error::HomeError;
use super::overlay::Overlay;
use super::records::{Entry, Hour, Record};
use crate::ledger::{Account, Notice};
use book::Book;
use committer::{COMMIT_EVERY, Committer};
use sluice_policy::ledger::{SyncReply, SyncRequest};
use sluice_policy::schedule::Change;
use sluice_policy::units::TenantId;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::{Contents, Store};
use tokio::sync::mpsc;
use tokio::time::{Duration, timeout};

/// A disk that is slower has failed for this call.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same of the last one.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

pub struct EmbeddedHome {
    book: Arc<Mutex<Book>>,
    /// `None` in memory.
    committer: Option<Committer>,
    patience: Duration,
}

impl Default for EmbeddedHome {
    /// One that ends with the process.
    fn default() -> Self {
        Self { book: Arc::new(Mutex::new(Book::new(Contents::default()))), committer: None, patience: PATIENCE }
    }
}

impl EmbeddedHome {
    /// One that lives in a file, which is made if there is none. `incarnation` is what this start would be called,
    /// `retention` how long usage records are kept.
    ///
    /// # Errors
    /// The file cannot be used, with what to do about it.
    pub fn open(path: &Path, incarnation: u64, retention: Duration) -> Result<Self, StoreError> {
        let (store, contents) = Store::open(path, incarnation, retention)?;
        let book = Arc::new(Mutex::new(Book::new(contents)));
        let committer = Committer::start(store, Arc::clone(&book));
        Ok(Self { book, committer: Some(committer), patience: PATIENCE })
    }

    /// What this start is called: later than every start before it that used the file. `None` in memory.
    #[must_use]
    pub fn incarnation(&self) -> Option<u64> {
        self.committer.as_ref().map(Committer::incarnation)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // A panic elsewhere cannot leave an account half changed: `sync` itself does not panic.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer_when_safe(&self, account: &Account, request: &SyncRequest) -> Result<SyncReply, HomeError> {
        let (reply, change) = {
            let mut book = self.book();
            let kept = book.take_answer(account, request);
            let reply = kept.unwrap_or_else(|| book.answer(account, request));
            (reply, book.latest_change())
        };
        self.kept(change, self.patience).await?;
        Ok(reply)
    }

    /// Waits until the file knows of a change; not at all in memory.
    async fn kept(&self, change: u64, patience: Duration) -> Result<(), HomeError> {
        let Some(committer) = &self.committer else { return Ok(()) };
        committer.hurry();
        let committed = timeout(patience, committer.committed(change)).await;
        committed.map_err(|_| HomeError::File(committer.trouble()))
    }
}

impl Accounts for EmbeddedHome {
    fn sync<'a>(&'a self, account: &'a Account, request: &'a SyncRequest) -> Answer<'a, SyncReply> {
        Box::pin(self.answer_when_safe(account, request))
    }

    fn sync_at_once(&self, account: &Account, request: &SyncRequest) -> Option<SyncReply> {
        let mut book = self.book();
        let reply = book.answer(account, request);
        let Some(committer) = &self.committer else { return Some(reply) };
        if book.is_safe(account, &reply) {
            committer.note();
            return Some(reply);
        }
        book.keep_answer(account, reply);
        None
    }

    fn notices(&self) -> mpsc::Receiver<Notice> {
        // It is the only holder, so nobody else has to hear of anything.
        mpsc::channel(1).1
    }

    fn outlives_us(&self) -> bool {
        self.committer.is_some()
    }
}

impl Documents for EmbeddedHome {
    fn overlay(&self) -> Answer<'_, Overlay> {
        let overlay = self.book().overlay().clone();
        Box::pin(async { Ok(overlay) })
    }

    fn replace_overlay<'a>(&'a self, after: u64, change: Option<&'a Change>) -> Answer<'a, Overlay> {
        Box::pin(async move {
            let (latest, overlay) = {
                let mut book = self.book();
                (book.replace_overlay(after, change), book.overlay().clone())
            };
            self.kept(latest, self.patience).await?;
            Ok(overlay)
        })
    }

    fn overlay_changes(&self) -> mpsc::Receiver<()> {
        mpsc::channel(1).1
    }
}

impl UsageRecords for EmbeddedHome {
    fn flush_every(&self) -> Duration {
        COMMIT_EVERY
    }

    fn keep_usage<'a>(&'a self, records: &'a [Record]) -> Answer<'a, ()> {
        Box::pin(async move {
            let change = self.book().keep_usage(records);
            let Some(committer) = &self.committer else {
                self.book().forget_usage(Hour::now());
                return Ok(());
            };
            committer.note();
            let committed = timeout(LAST_PATIENCE, committer.committed(change)).await;
            committed.map_err(|_| HomeError::File(committer.trouble()))
        })
    }

    fn kept_usage<'a>(&'a self, records: &'a [Record]) -> Answer<'a, Vec<Record>> {
        Box::pin(async move {
            match &self.committer {
                Some(committer) => committer.kept_usage(records.to_vec()).await,
                None => Ok(self.book().kept_usage(records)),
            }
        })
    }

    fn usage<'a>(&'a self, tenant: &'a TenantId, hours: RangeInclusive<Hour>) -> Answer<'a, Vec<Record>> {
        Box::pin(async move {
            match &self.committer {
                Some(committer) => committer.usage(tenant.clone(), hours).await,
                None => Ok(self.book().usage(tenant, &hours)),
            }
        })
    }
}

impl AuditTrail for EmbeddedHome {
    fn record<'a>(&'a self, _entry: &'a Entry) -> Answer<'a, ()> {
        // The process's own log has it already.
        Box::pin(async { Ok(()) })
    }
}

impl Lifecycle for EmbeddedHome {
    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            let change = self.book().settle_down();
            self.kept(change, LAST_PATIENCE).await
        })
    }
}
