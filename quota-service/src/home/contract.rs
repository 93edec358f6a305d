//! What a home does, in traits of which each concerns one thing. All that waits may fail: see [`HomeError`].

use super::error::HomeError;
use super::overlay::Overlay;
use super::records::{Entry, Hour, Record};
use crate::ledger::{Account, Notice};
use sluice_policy::ledger::{SyncReply, SyncRequest};
use sluice_policy::schedule::Change;
use sluice_policy::units::TenantId;
use std::future::Future;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::mpsc;

pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, HomeError>> + Send + 'a>>;

/// The ledger: what each account has, and which replica holds how much of it.
pub trait Accounts: Send + Sync {
    /// One idempotent call; see [`sluice_policy::ledger`].
    fn sync<'a>(&'a self, account: &'a Account, request: &'a SyncRequest) -> Answer<'a, SyncReply>;

    /// The same without waiting, where the ledger is in this process.
    fn sync_at_once(&self, account: &Account, request: &SyncRequest) -> Option<SyncReply>;

    /// What holders' calls have changed for other holders, as far as it is heard. It may be lost: the tick repairs that.
    fn notices(&self) -> mpsc::Receiver<Notice>;

    /// Whether what it has answered is known to the next process too.
    fn outlives_us(&self) -> bool;
}

/// Named values that all replicas follow.
pub trait Documents: Send + Sync {
    /// The operators' overlay.
    fn overlay(&self) -> Answer<'_, Overlay>;

    /// Puts another in the place of all up to version `after`. Tells which holds then: somebody else may have been faster.
    fn replace_overlay<'a>(&'a self, after: u64, change: Option<&'a Change>) -> Answer<'a, Overlay>;

    /// Rings when somebody has changed the overlay; it may be missed.
    fn overlay_changes(&self) -> mpsc::Receiver<()>;
}

/// Who used how much, by tenant, model and hour.
pub trait UsageRecords: Send + Sync {
    /// How long usage records wait for more: what it costs to keep them is the home's to know.
    fn flush_every(&self) -> Duration;

    /// Takes usage records: what it has of their fields is replaced. All are kept, and all that was answered before, or the
    /// caller brings them again.
    fn keep_usage<'a>(&'a self, records: &'a [Record]) -> Answer<'a, ()>;

    /// What it has of these records' fields.
    fn kept_usage<'a>(&'a self, records: &'a [Record]) -> Answer<'a, Vec<Record>>;

    /// The usage records of a tenant, of those hours of which there are any.
    fn usage<'a>(&'a self, tenant: &'a TenantId, hours: RangeInclusive<Hour>) -> Answer<'a, Vec<Record>>;
}

/// What operators and rules have changed.
pub trait AuditTrail: Send + Sync {
    /// Keeps an entry of the audit log, where the home outlives this process.
    fn record<'a>(&'a self, entry: &'a Entry) -> Answer<'a, ()>;
}

/// A home's own beginning and end.
pub trait Lifecycle: Send + Sync {
    /// The last word: returns when all that was answered is where it outlives the process.
    fn close(&self) -> Answer<'_, ()>;
}
