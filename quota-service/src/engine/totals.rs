//! Counts for the operators' stats page.

use sluice_policy::admission::Admission;
use sluice_policy::units::{Millis, PoolName, Priority};

/// What has happened since the start, and what stands where now.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub scheduled: u64,
    pub rejected: u64,
    pub pools: Vec<PoolStats>,
}

#[derive(Clone, Debug)]
pub struct PoolStats {
    pub name: PoolName,
    pub capacity: u32,
    pub held: u32,
    pub running: u32,
    /// Waiting calls by level.
    pub depths: [usize; Priority::COUNT],
    pub max_depth: usize,
}

impl Totals {
    pub(super) fn with_pools(&self, core: &Admission, now: Millis) -> Self {
        let pools = core.config().pools.keys().map(|name| {
            let mut depths = [0; Priority::COUNT];
            for (depth, level) in depths.iter_mut().zip(Priority::all()) {
                *depth = core.queue_depth(name, level);
            }
            PoolStats {
                name: name.clone(),
                capacity: core.capacity(name),
                held: core.held(name, now),
                running: core.running(name),
                depths,
                max_depth: core.config().queue.depth_per_level,
            }
        });
        Self { pools: pools.collect(), ..self.clone() }
    }
}
