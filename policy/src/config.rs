//! Tenants, pools and the queue as an operator writes them, turned into types that cannot hold nonsense.
//!
//! The sections that concern the service's surroundings (listeners, files, Redis, exporters) are read by
//! `quota-service` with the same [`reader`].

pub mod reader;
mod aborts;
mod pools;
mod models;
mod tenants;
pub(crate) mod weights;

pub use aborts::{AfterAbort, OnAbort};
pub use models::{Price, Rewrite};
pub use pools::{ChargeWeights, Model, Pool};
pub use tenants::{KeyRecord, KeyRule, Pattern, Tenant, parse_digest};

use crate::adaptive::Adaptive;
use crate::budget::Days;
use crate::holder::Outage;
use crate::queue::{GroupIndex, QueueSettings, SharePolicy, Shares};
use crate::schedule::{PoolSettings, Settings, TimeRules, UnixMillis, Zone};
use crate::units::{GroupName, Millis, ModelName, PoolName, TenantId};
use reader::Section;
use std::collections::{BTreeMap, BTreeSet};
use weights::read_weights;

/// Everything that the admission core decides by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub pools: BTreeMap<PoolName, Pool>,
    pub tenants: BTreeMap<TenantId, Tenant>,
    /// Every model is served by exactly one pool, which exists.
    pub models: BTreeMap<ModelName, Model>,
    /// Other names, each for a model that exists; none is a model's own name.
    pub aliases: BTreeMap<ModelName, ModelName>,
    /// Groups by their name; index 0 is everyone who is in none.
    pub groups: BTreeMap<GroupName, GroupIndex>,
    pub queue: QueueSettings,
    /// What changes by the hour.
    pub time_rules: TimeRules,
    pub adaptive: Adaptive,
    /// Of two replicas with different files, the one with the higher number is believed.
    pub revision: u64,
    /// Where the days of tenants' budgets begin, each zone once.
    budget_zones: Vec<Zone>,
}

pub(crate) const MOST_SLOTS: u64 = 1_000_000;
/// Keeps a bucket's arithmetic exact, also in the numbers of Lua, which have 53 bits.
pub(crate) const MOST_PER_WINDOW: u64 = 10_000_000_000;
pub(crate) const MOST_WEIGHT: u64 = 1_000_000;

impl Config {
    /// Reads `queue`, `groups`, `pools`, `models`, `tenants`, `keys` and `key_rules` from the document's root.
    pub fn read(root: &Section<'_>) -> Option<Self> {
        let queue = read_queue(&root.section("queue"));
        let mut groups = tenants::Groups::read(root);
        let (pools, mut models) = pools::read(root, &groups);
        let aliases = models::read(root, &mut models);
        let tenants = tenants::read(root, &models, &mut groups);
        let adaptive = Adaptive::read(&root.section("adaptive"));
        // JSON's and Lua's integers are exact up to 2^53.
        let revision = root.integer("revision", 0..=1 << 53).unwrap_or(0);
        let (groups, time_rules) = (groups.by_name, TimeRules::default());
        let budget_zones = zones(&tenants);
        let mut config =
            Self { pools, tenants, models, aliases, groups, queue, time_rules, adaptive, revision, budget_zones };
        config.time_rules = TimeRules::read(root, &config.settings(), &config.group_names());
        Some(config)
    }
}

impl Config {
    /// A configuration of nothing, to begin with.
    pub(crate) fn empty() -> Self {
        Self {
            pools: BTreeMap::new(),
            tenants: BTreeMap::new(),
            models: BTreeMap::new(),
            aliases: BTreeMap::new(),
            groups: BTreeMap::new(),
            queue: QueueSettings::default(),
            time_rules: TimeRules::default(),
            adaptive: Adaptive::default(),
            revision: 0,
            budget_zones: Vec::new(),
        }
    }

    /// Gives groups that were there before the indices they had, so that counters and waiting calls stay theirs. A group
    /// that is gone keeps its name's index out of use. [`crate::admission::Admission::configure`] sees to it too; who has a lock
    /// to take does it before, since it looks at every tenant where an index changes.
    pub fn keep_group_indices(&mut self, before: &BTreeMap<GroupName, GroupIndex>) {
        let mut next = before.values().map(|index| index.0).max().unwrap_or(0);
        let mut renamed = BTreeMap::from([(GroupIndex::default(), GroupIndex::default())]);
        for (name, index) in &mut self.groups {
            let kept = before.get(name).copied().unwrap_or_else(|| {
                next = next.saturating_add(1);
                GroupIndex(next)
            });
            renamed.insert(*index, kept);
            *index = kept;
        }
        if renamed.iter().all(|(before, after)| before == after) {
            return;
        }
        let rename = |index: GroupIndex| renamed.get(&index).copied().unwrap_or_default();
        for tenant in self.tenants.values_mut() {
            tenant.group = rename(tenant.group);
        }
        for pool in self.pools.values_mut() {
            pool.shares = pool.shares.iter().map(|(group, share)| (rename(*group), *share)).collect();
        }
    }

    /// The days that it is for tenants with budgets.
    #[must_use]
    pub fn days(&self, wall: UnixMillis) -> Days {
        Days::of(&self.budget_zones, wall)
    }

    /// When a day ends for tenants with budgets; `None` without budgets.
    #[must_use]
    pub fn next_turn(&self, wall: UnixMillis) -> Option<UnixMillis> {
        self.days(wall).first_end()
    }

    #[must_use]
    pub fn group_names(&self) -> BTreeSet<String> {
        self.groups.keys().map(ToString::to_string).collect()
    }

    /// What time rules and operators may change, as it is configured.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let pools = self.pools.iter().map(|(name, pool)| {
            let named = |(group, share): (&GroupIndex, &u64)| {
                let name = self.groups.iter().find(|(_, index)| *index == group)?.0;
                Some((name.to_string(), *share))
            };
            let settings = PoolSettings {
                concurrent: pool.concurrent,
                tokens_per_s: pool.tokens_per_s.map(|rate| rate.amount),
                // A burst that nobody wrote follows what a rule makes of the rate.
                burst_tokens: pool.tokens_per_s.filter(|rate| rate.burst != rate.amount).map(|rate| rate.burst),
                shares: pool.shares.iter().filter_map(named).collect(),
            };
            (name.clone(), settings)
        });
        Settings { weights: self.queue.shares.levels, pools: pools.collect() }
    }
}

/// The time zones of all budgets.
fn zones(tenants: &BTreeMap<TenantId, Tenant>) -> Vec<Zone> {
    let budgets = tenants.values().map(|tenant| &tenant.limits.budgets).filter(|budgets| !budgets.amounts.is_empty());
    let mut zones = Vec::new();
    for zone in budgets.map(|budgets| budgets.zone.clone().unwrap_or_else(Zone::utc)) {
        if !zones.contains(&zone) {
            zones.push(zone);
        }
    }
    zones
}

/// What happens to an account's calls while the ledger does not answer.
fn read_outage(section: &Section<'_>) -> Outage {
    section.choice("on_ledger_outage", &[("closed", Outage::Closed), ("open", Outage::Open)]).unwrap_or_default()
}

fn read_queue(section: &Section<'_>) -> QueueSettings {
    let default = QueueSettings::default();
    let policies = [("strict", SharePolicy::Strict), ("wfq", SharePolicy::Wfq), ("hybrid", SharePolicy::Hybrid)];
    let count = |name, range| section.integer(name, range).and_then(|count| usize::try_from(count).ok());
    let bytes = section.integer("bytes", 1..=1 << 40).unwrap_or(default.bytes);
    let settings = QueueSettings {
        shares: Shares {
            policy: section.choice("policy", &policies).unwrap_or(default.shares.policy),
            levels: read_weights(section, "weights").unwrap_or(default.shares.levels),
            groups: Vec::new(),
        },
        timeout: section.integer("timeout_ms", 1..=3_600_000).map_or(default.timeout, Millis),
        deadline: section.integer("deadline_ms", 1..=3_600_000).map(Millis),
        depth_per_level: count("depth_per_level", 1..=1_000_000).unwrap_or(default.depth_per_level),
        depth_per_tenant: count("depth_per_tenant", 1..=1_000_000).unwrap_or(default.depth_per_tenant),
        bytes,
        bytes_per_tenant: section.integer("bytes_per_tenant", 1..=1 << 40).unwrap_or(bytes.div_ceil(4)),
        concurrent_wait: section.integer("concurrent_wait_ms", 0..=1_000).map_or(default.concurrent_wait, Millis),
    };
    section.finish();
    settings
}

#[cfg(test)]
mod tests;
