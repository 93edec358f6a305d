//! Counts for the operators' stats page.

use sluice_policy::admission::{Admission, PoolView};
use sluice_policy::units::Millis;

/// What has happened since the start, and what stands where now.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub scheduled: u64,
    pub rejected: u64,
    /// Those of the configuration, by name.
    pub pools: Vec<PoolView>,
    /// Waiting calls that a level of a pool has room for.
    pub max_depth: usize,
}

impl Totals {
    pub(super) fn with_pools(&self, core: &Admission, now: Millis) -> Self {
        let config = core.config();
        let mut pools: Vec<_> = core.pool_views(now).filter(|pool| config.pools.contains_key(&pool.name)).collect();
        pools.sort_by(|one, other| one.name.cmp(&other.name));
        Self { pools, max_depth: config.queue.depth_per_level, ..self.clone() }
    }
}
