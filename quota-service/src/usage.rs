//! Who used how much, by tenant, model and hour: what bills are made of.
//!
//! Settlements are counted here, and what has changed is brought to the ledger every [`FLUSH_EVERY`]. It is written as
//! absolute counts of this process's own, in fields that bear its name and its start: so what is written twice, because an
//! answer was lost, counts once. Whoever reads adds up the fields.

mod counts;
mod hour;
mod tally;

pub use counts::{Counts, Field};
pub use hour::Hour;
pub use tally::Tally;

use crate::ledger::{Ledger, LedgerError};
use crate::metrics::Metrics;
use sluice_policy::admission::Settled;
use sluice_policy::config::Price;
use sluice_policy::units::{HolderId, ModelName, TenantId};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio::time::{Duration, sleep};

/// A busy tenant costs the ledger one write a second.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// One hour of one tenant, as one process writes it: counts by field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub tenant: TenantId,
    pub hour: Hour,
    pub fields: BTreeMap<Field, Counts>,
}

/// What was used in each hour in which anything was, by model.
pub type ByHour = BTreeMap<Hour, BTreeMap<ModelName, Counts>>;

pub struct Usage {
    tally: Mutex<Tally>,
    /// Up to which settlement the ledger has all counts.
    kept: watch::Sender<u64>,
    metrics: Arc<Metrics>,
}

impl Usage {
    /// `holder` and `incarnation` name this process.
    #[must_use]
    pub fn new(holder: &HolderId, incarnation: u64, metrics: Arc<Metrics>) -> Self {
        let tally = Mutex::new(Tally::new(holder, incarnation));
        Self { tally, kept: watch::Sender::new(0), metrics }
    }

    /// Counts a call that has ended now.
    pub fn count(&self, settled: &Settled, price: Price) {
        let counts = Counts::of(&settled.usage, price);
        if !self.tally().count(Hour::now(), &settled.tenant, &settled.model, &counts) {
            self.metrics.usage_dropped();
        }
    }

    /// How many calls have been counted.
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.tally().counted()
    }

    /// Of the calls that were counted, how many the ledger knows.
    #[must_use]
    pub fn kept(&self) -> u64 {
        *self.kept.borrow()
    }

    /// Brings what has changed to the ledger.
    ///
    /// # Errors
    /// The ledger may not have taken all; the next time brings it again.
    pub async fn flush(&self, ledger: &dyn Ledger) -> Result<(), LedgerError> {
        let (records, counted) = {
            let tally = self.tally();
            (tally.changed(), tally.counted())
        };
        if !records.is_empty() {
            ledger.keep_usage(&records).await?;
            self.tally().kept(&records, Hour::now());
        }
        self.kept.send_modify(|kept| *kept = counted.max(*kept));
        Ok(())
    }

    /// What a tenant has used in some hours, all replicas together.
    ///
    /// # Errors
    /// The ledger does not answer.
    pub async fn read(
        &self,
        ledger: &dyn Ledger,
        tenant: &TenantId,
        hours: RangeInclusive<Hour>,
    ) -> Result<ByHour, LedgerError> {
        // Of this replica it tells all, of others what is older than a second.
        self.flush(ledger).await?;
        let mut by_hour = ByHour::new();
        for record in ledger.usage(tenant, hours).await? {
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

/// Flushes until shutdown; whoever ends the process flushes once more, after the last settlement.
pub async fn run(usage: Arc<Usage>, ledger: Arc<dyn Ledger>, mut shutdown: watch::Receiver<bool>) {
    let mut is_failing = false;
    loop {
        tokio::select! {
            () = sleep(FLUSH_EVERY) => {}
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
        let outcome = usage.flush(&*ledger).await;
        match (&outcome, is_failing) {
            (Err(error), false) => tracing::warn!(%error, "usage records wait for the ledger"),
            (Ok(()), true) => tracing::info!("usage records are written again"),
            (Err(_), true) | (Ok(()), false) => {}
        }
        is_failing = outcome.is_err();
    }
}
