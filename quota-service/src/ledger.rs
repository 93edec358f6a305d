//! Where an account's total is known: in Redis, or in this process.
//!
//! Both homes answer alike; `tests/ledger_conformance.rs` replays the same calls on both.

mod embedded;
pub mod link;
mod redis;

pub use embedded::EmbeddedLedger;
pub use redis::RedisLedger;

use crate::audit::Entry;
use sluice_policy::ledger::{SyncReply, SyncRequest};
use sluice_policy::units::{PoolName, TenantId};
use std::fmt;
use std::future::Future;
use std::pin::Pin;

/// What a call is charged to, by the name of its key in Redis.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Account {
    Pool(PoolName),
    Tenant(TenantId),
}

impl fmt::Display for Account {
    /// The braces are a hash tag, so that all that ever belongs to an account lies in one slot of a Redis Cluster.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Account::Pool(name) => write!(f, "sluice:{{pool:{name}}}"),
            Account::Tenant(id) => write!(f, "sluice:{{tenant:{id}}}"),
        }
    }
}

/// The ledger did not answer. The call may have been applied all the same; the next one makes up for it.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("Redis: {0}")]
    Redis(#[from] ::redis::RedisError),
    #[error("Redis did not answer within {0} ms")]
    Timeout(u128),
    #[error("Redis answered in a form that this release does not know: {0}")]
    Malformed(String),
    #[error("Redis is away: {0}")]
    Away(String),
    #[error("Redis is not used: {0}")]
    Unfit(String),
}

pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, LedgerError>> + Send + 'a>>;

pub trait Ledger: Send + Sync {
    /// One idempotent call; see [`sluice_policy::ledger`].
    fn sync<'a>(&'a self, account: &'a Account, request: &'a SyncRequest) -> Answer<'a, SyncReply>;

    /// Keeps an entry of the audit log, where the ledger outlives this process.
    fn record<'a>(&'a self, entry: &'a Entry) -> Answer<'a, ()>;
}
