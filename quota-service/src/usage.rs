//! Who used how much, by tenant, model and hour: what bills are made of.
//!
//! Settlements are counted here, and what has changed is brought to the ledger every so often. It is written as
//! absolute counts of this process's own, in fields that bear its name and its start: so what is written twice, because an
//! answer was lost, counts once. Whoever reads adds up the fields. What is written leaves memory, and is read again when
//! its tenant comes back within the hour.

mod tally;

pub use tally::Tally;

use crate::home::contract::UsageRecords;
use crate::home::error::HomeError;
use crate::home::records::{Counts, Hour};
use crate::metrics::Metrics;
use sluice_policy::admission::Settled;
use sluice_policy::config::Price;
use sluice_policy::units::{HolderId, ModelName, TenantId};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What was used in each hour in which anything was, by model.
pub type ByHour = BTreeMap<Hour, BTreeMap<ModelName, Counts>>;

pub struct Usage {
    tally: Mutex<Tally>,
    /// Held by who writes: what was written last is what was counted last.
    writes: tokio::sync::Mutex<()>,
    metrics: Arc<Metrics>,
}

impl Usage {
    /// `holder` and `incarnation` name this process.
    #[must_use]
    pub fn new(holder: &HolderId, incarnation: u64, metrics: Arc<Metrics>) -> Self {
        let tally = Mutex::new(Tally::new(holder, incarnation));
        Self { tally, writes: tokio::sync::Mutex::default(), metrics }
    }

    /// Counts a call that has ended now.
    pub fn count(&self, settled: &Settled, price: Price) {
        let counts = Counts::of(&settled.usage, price);
        if !self.tally().count(Hour::now(), &settled.tenant, &settled.model, &counts) {
            self.metrics.usage_dropped();
        }
    }

    /// Brings what has changed to the ledger, together with all that the ledger has answered so far.
    ///
    /// # Errors
    /// The ledger may not have taken all; the next time brings it again.
    pub async fn flush(&self, home: &dyn UsageRecords) -> Result<(), HomeError> {
        let _alone = self.writes.lock().await;
        let unknown = self.tally().unknown();
        if !unknown.is_empty() {
            let found = home.kept_usage(&unknown).await?;
            self.tally().know(&unknown, &found);
        }
        let records = self.tally().changed();
        home.keep_usage(&records).await?;
        self.tally().kept(&records);
        Ok(())
    }

    /// What a tenant has used in some hours, all replicas together.
    ///
    /// # Errors
    /// The ledger does not answer.
    pub async fn read(
        &self,
        home: &dyn UsageRecords,
        tenant: &TenantId,
        hours: RangeInclusive<Hour>,
    ) -> Result<ByHour, HomeError> {
        // Of this replica it tells all, of others what they have written.
        self.flush(home).await?;
        let mut by_hour = ByHour::new();
        for record in home.usage(tenant, hours).await? {
            let models = by_hour.entry(record.hour).or_default();
            for (field, counts) in record.fields {
                models.entry(field.model).or_default().add(&counts);
            }
        }
        Ok(by_hour)
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        // Counts that a panic left half added are off by one call.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
