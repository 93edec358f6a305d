//! Where an account's total is known: in Redis, or in this process, which may keep it in a file.
//!
//! Both homes answer alike; `tests/ledger_conformance.rs` replays the same calls on both.

mod embedded;
pub mod link;
mod overlay;
mod redis;
pub mod stored;
pub mod wire;

pub use embedded::{EmbeddedLedger, StoreError};
pub use overlay::Overlay;
pub use redis::RedisLedger;
pub use sluice_policy::ledger::Account;
pub use wire::Notice;

use crate::audit::Entry;
use crate::usage::{Hour, Record};
use sluice_policy::ledger::{SyncReply, SyncRequest};
use sluice_policy::schedule::Change;
use sluice_policy::units::TenantId;
use std::future::Future;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::mpsc;

/// The ledger did not answer. The call may have been applied all the same; the next one makes up for it.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("Redis: {0}")]
    Redis(::redis::RedisError),
    #[error("Redis takes no writes ({code}): {mend}")]
    NoWrites { code: String, mend: &'static str },
    #[error("Redis did not answer within {0} ms")]
    Timeout(u128),
    #[error("Redis answered in a form that this release does not know: {0}")]
    Malformed(String),
    #[error("Redis is away: {0}")]
    Away(String),
    #[error("Redis is not used: {0}")]
    Unfit(String),
    #[error("the ledger's file: {0}")]
    File(String),
}

impl From<::redis::RedisError> for LedgerError {
    fn from(error: ::redis::RedisError) -> Self {
        let mend = match error.code() {
            Some("OOM") => "it is out of memory: free some, or raise `maxmemory`",
            Some("MISCONF") => "it cannot save what it knows: look for a full disk, and into its log",
            Some("NOREPLICAS") => "too few replicas follow it: see `min-replicas-to-write`",
            _ => return Self::Redis(error),
        };
        Self::NoWrites { code: error.code().unwrap_or_default().to_owned(), mend }
    }
}

pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, LedgerError>> + Send + 'a>>;

pub trait Ledger: Send + Sync {
    /// One idempotent call; see [`sluice_policy::ledger`].
    fn sync<'a>(&'a self, account: &'a Account, request: &'a SyncRequest) -> Answer<'a, SyncReply>;

    /// The same without waiting, where the ledger is in this process.
    fn sync_at_once(&self, account: &Account, request: &SyncRequest) -> Option<SyncReply>;

    /// What holders' calls have changed for other holders, as far as it is heard. It may be lost: the tick repairs that.
    fn notices(&self) -> mpsc::Receiver<Notice>;

    /// The operators' overlay.
    fn overlay(&self) -> Answer<'_, Overlay>;

    /// Puts another in the place of all up to version `after`. Tells which holds then: somebody else may have been faster.
    fn replace_overlay<'a>(&'a self, after: u64, change: Option<&'a Change>) -> Answer<'a, Overlay>;

    /// Rings when somebody has changed the overlay; it may be missed.
    fn overlay_changes(&self) -> mpsc::Receiver<()>;

    /// Keeps an entry of the audit log, where the ledger outlives this process.
    fn record<'a>(&'a self, entry: &'a Entry) -> Answer<'a, ()>;

    /// Whether what it has answered is known to the next process too.
    fn outlives_us(&self) -> bool;

    /// How long usage records wait for more: what it costs to keep them is the ledger's to know.
    fn flush_every(&self) -> Duration;

    /// Takes usage records: what it has of their fields is replaced. All are kept, and all that was answered before, or the
    /// caller brings them again.
    fn keep_usage<'a>(&'a self, records: &'a [Record]) -> Answer<'a, ()>;

    /// What it has of these records' fields.
    fn kept_usage<'a>(&'a self, records: &'a [Record]) -> Answer<'a, Vec<Record>>;

    /// The usage records of a tenant, of those hours of which there are any.
    fn usage<'a>(&'a self, tenant: &'a TenantId, hours: RangeInclusive<Hour>) -> Answer<'a, Vec<Record>>;

    /// The last word: returns when all that was answered is where it outlives the process.
    fn close(&self) -> Answer<'_, ()>;
}
