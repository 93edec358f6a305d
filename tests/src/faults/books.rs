//! What a tenant's budget was charged, against the tokens that its callers were given.

use crate::fleet::{Caller, Fleet};
use crate::stack::quota_service;
use crate::tenant::Tenant;
use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) const TENANT: &str = "limited";
/// Nobody reaches it.
const BUDGET: u64 = 1_000_000_000_000;

#[derive(Default)]
pub(super) struct Books {
    /// Tokens of whole replies.
    delivered: Arc<AtomicU64>,
    /// Charged beyond that, when they were last settled.
    before: i64,
}

impl Books {
    /// The tenant that they are kept of.
    pub(super) fn tenant() -> Tenant {
        Tenant::new(TENANT).tokens_per_day(BUDGET)
    }

    /// The same caller, who counts what it is given.
    pub(super) fn keep(&self, caller: Caller) -> Caller {
        Caller { delivered: self.delivered.clone(), ..caller }
    }

    /// How they stand, through the product's own window.
    pub(super) fn balance(&self, fleet: &Fleet) -> Result<Balance> {
        let delivered = i64::try_from(self.delivered.load(Ordering::Relaxed))?;
        let (mut balance, mut charged) = (Balance { excess: 0, is_told: true }, 0);
        let gate = fleet.gates.first().context("there is no gateway")?;
        for account in quota_service::inspect(&gate.folder, TENANT)? {
            balance.is_told &= account["granted"] == 0;
            let meters = account["meters"].as_array().into_iter().flatten();
            for meter in meters.filter(|meter| meter["meter"] == "tokens_per_day") {
                let number = |field: &str| meter[field].as_i64().with_context(|| format!("no {field}"));
                balance.is_told &= number("lent")? == 0;
                charged += BUDGET.cast_signed() - number("level")? - number("lent")?;
            }
        }
        balance.excess = charged - delivered - self.before;
        Ok(balance)
    }

    pub(super) fn settle(&mut self, excess: i64) {
        self.before += excess;
    }
}

/// What a look at them shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Balance {
    /// Tokens charged in excess of those delivered, of all that is over since the last time they were settled; below zero
    /// so many are missing.
    pub(super) excess: i64,
    /// All holders have given everything back, so that they have also told what they drew.
    pub(super) is_told: bool,
}
