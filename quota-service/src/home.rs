//! The home: where a replica keeps what outlives it. There are two, Redis and embedded in this process, with a file or
//! without.
//!
//! A home keeps four things, each behind a small trait of [`contract`]: accounts, documents, usage records and the audit
//! trail. [`records`] and [`error`] lie below the traits, [`link`] is the way to Redis.

pub mod error;
pub mod records;
pub mod overlay;
pub mod contract;
pub mod link;
pub mod redis;
pub mod embedded;

use contract::{Accounts, AuditTrail, Documents, Lifecycle, UsageRecords};
use std::sync::Arc;

/// One home, as its users see it: each takes the part that it needs.
#[derive(Clone)]
pub struct Home {
    pub accounts: Arc<dyn Accounts>,
    pub documents: Arc<dyn Documents>,
    pub usage: Arc<dyn UsageRecords>,
    pub audit: Arc<dyn AuditTrail>,
    pub lifecycle: Arc<dyn Lifecycle>,
}

impl Home {
    #[must_use]
    pub fn new(home: impl Accounts + Documents + UsageRecords + AuditTrail + Lifecycle + 'static) -> Self {
        let home = Arc::new(home);
        Self {
            accounts: Arc::clone(&home) as Arc<dyn Accounts>,
            documents: Arc::clone(&home) as Arc<dyn Documents>,
            usage: Arc::clone(&home) as Arc<dyn UsageRecords>,
            audit: Arc::clone(&home) as Arc<dyn AuditTrail>,
            lifecycle: home,
        }
    }
}
