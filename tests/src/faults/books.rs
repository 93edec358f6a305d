//! What a tenant's budget was charged, against the tokens that its callers were given.

use crate::fleet::{Caller, Fleet};
use crate::paths;
use crate::stack::quota_service;
use crate::tenant::Tenant;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) const TENANT: &str = "limited";
/// Nobody reaches it.
const BUDGET: i64 = 1_000_000_000_000;

#[derive(Default)]
pub(super) struct Books {
    /// Tokens of whole replies.
    delivered: Arc<AtomicU64>,
    /// Charged beyond that, when they were last settled.
    before: i64,
}

impl Books {
    /// The tenant that they are kept of. Its day begins in half a day, whenever that is.
    pub(super) fn tenant() -> Result<Tenant> {
        let hour = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / 3_600 % 24;
        // In these names the sign is the other way round.
        let zone = if hour < 12 { format!("Etc/GMT-{}", 12 - hour) } else { format!("Etc/GMT+{}", hour - 12) };
        Ok(Tenant::new(TENANT).with("budgets", json!({"tokens_per_day": BUDGET, "time_zone": zone})))
    }

    /// The same caller, who counts what it is given.
    pub(super) fn keep(&self, caller: Caller) -> Caller {
        Caller { delivered: self.delivered.clone(), ..caller }
    }

    /// How they stand, through the product's own window.
    pub(super) fn balance(&self, fleet: &Fleet) -> Result<Balance> {
        let delivered = i64::try_from(self.delivered.load(Ordering::Relaxed))?;
        let (mut balance, mut charged) = (Balance { excess: 0, is_told: true }, 0);
        for account in inspect(fleet)?.as_array().into_iter().flatten() {
            balance.is_told &= account["granted"] == 0;
            let meters = account["meters"].as_array().into_iter().flatten();
            for meter in meters.filter(|meter| meter["meter"] == "tokens_per_day") {
                let number = |field: &str| meter[field].as_i64().with_context(|| format!("no {field}"));
                balance.is_told &= number("lent")? == 0;
                charged += BUDGET - number("level")? - number("lent")?;
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

fn inspect(fleet: &Fleet) -> Result<Value> {
    let folder = fleet.gates.first().context("there is no gateway")?.folder.path();
    let mut inspect = Command::new(paths::built("quota-service")?);
    inspect.args(["inspect", "--json", "--config", quota_service::CONFIG, TENANT]).current_dir(folder);
    let told = inspect.output().context("quota-service inspect")?;
    ensure!(told.status.success(), "quota-service inspect: {}", String::from_utf8_lossy(&told.stderr));
    Ok(serde_json::from_slice(&told.stdout)?)
}
