//! What rules change, and the settings they change.

use crate::bucket::Rate;
use crate::units::{PoolName, Priority};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything a rule may change, with the values that hold: the base, or what is effective at some instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Of the levels P0 to P9, each 1 to 1,000,000.
    pub weights: [u64; Priority::COUNT],
    pub pools: BTreeMap<PoolName, PoolSettings>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PoolSettings {
    /// Calls that run at once, 1 to 1,000,000.
    pub concurrent: u32,
    /// Absent: tokens are not limited.
    pub tokens_per_s: Option<u64>,
    /// Absent: one second's tokens.
    pub burst_tokens: Option<u64>,
    /// By group, each 1 to 1,000,000; a group without one has the scheduler's default.
    pub shares: BTreeMap<String, u64>,
}

impl PoolSettings {
    #[must_use]
    pub fn rate(&self) -> Option<Rate> {
        self.tokens_per_s.map(|amount| Rate::per_second(amount, self.burst_tokens.unwrap_or(amount)))
    }
}

/// What a rule sets; what is absent stays as it is. Ranges as in [`Settings`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    pub weights: Option<[u64; Priority::COUNT]>,
    pub pools: BTreeMap<PoolName, PoolChange>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolChange {
    pub concurrent: Option<u32>,
    pub tokens_per_s: Option<u64>,
    pub burst_tokens: Option<u64>,
    pub shares: BTreeMap<String, u64>,
}

impl Settings {
    /// Sets what `change` sets. A pool that does not exist is passed over.
    pub fn apply(&mut self, change: &Change) {
        self.weights = change.weights.unwrap_or(self.weights);
        for (name, change) in &change.pools {
            if let Some(pool) = self.pools.get_mut(name) {
                pool.apply(change);
            }
        }
    }
}

impl PoolSettings {
    fn apply(&mut self, change: &PoolChange) {
        self.concurrent = change.concurrent.unwrap_or(self.concurrent);
        self.tokens_per_s = change.tokens_per_s.or(self.tokens_per_s);
        self.burst_tokens = change.burst_tokens.or(self.burst_tokens);
        self.shares.extend(change.shares.iter().map(|(group, share)| (group.clone(), *share)));
    }
}

impl Change {
    /// The fields that both set, to different values, as an operator would look for them.
    pub(super) fn contradicts(&self, other: &Change) -> Vec<String> {
        let mut fields = Vec::new();
        if differ(self.weights, other.weights) {
            fields.push("weights".to_owned());
        }
        for (name, ours) in &self.pools {
            let theirs = other.pools.get(name).map(|theirs| ours.contradicts(theirs)).unwrap_or_default();
            fields.extend(theirs.into_iter().map(|field| format!("pool {name} {field}")));
        }
        fields
    }
}

impl PoolChange {
    fn contradicts(&self, other: &PoolChange) -> Vec<String> {
        let plain = [
            ("concurrent", differ(self.concurrent, other.concurrent)),
            ("tokens_per_s", differ(self.tokens_per_s, other.tokens_per_s)),
            ("burst_tokens", differ(self.burst_tokens, other.burst_tokens)),
        ];
        let plain = plain.into_iter().filter(|(_, differ)| *differ).map(|(name, _)| name.to_owned());
        let shares = self.shares.iter().filter(|(group, share)| differ(Some(*share), other.shares.get(*group)));
        plain.chain(shares.map(|(group, _)| format!("shares {group}"))).collect()
    }
}

fn differ<T: PartialEq>(ours: Option<T>, theirs: Option<T>) -> bool {
    matches!((ours, theirs), (Some(ours), Some(theirs)) if ours != theirs)
}
