//! How a pool's queue shares, and how much it holds.

use crate::units::{Millis, Priority};
use serde::{Deserialize, Serialize};

/// How levels share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SharePolicy {
    /// The better level always first.
    Strict,
    /// All levels by weight.
    Wfq,
    /// P0 always first, P1 to P9 by weight.
    Hybrid,
}

/// A tenant, by its place in the admission core's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantIndex(pub u32);

/// A group of tenants with a share of its own, by its place in the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupIndex(pub u16);

/// Weights of the three storeys of the tree. They may change at any time: counters keep what has been had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shares {
    pub policy: SharePolicy,
    /// Per level, 1 to 1,000,000.
    pub levels: [u64; Priority::COUNT],
    /// Per group, 1 to 1,000,000, by [`GroupIndex`]; a group beyond its end has 1.
    pub groups: Vec<u64>,
}

impl Default for Shares {
    fn default() -> Self {
        Self { policy: SharePolicy::Hybrid, levels: [256, 128, 64, 32, 16, 8, 4, 2, 1, 1], groups: Vec::new() }
    }
}

/// How much a queue holds, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    pub shares: Shares,
    /// The longest anyone waits.
    pub timeout: Millis,
    /// For calls that bring none: whoever would wait longer is refused on arrival. Absent: only `timeout` bounds it.
    pub deadline: Option<Millis>,
    pub depth_per_level: usize,
    /// Of one tenant, at all levels together: more levels are not more room.
    pub depth_per_tenant: usize,
    /// Request bytes that Envoy holds for all waiters of all pools together.
    pub bytes: u64,
    /// The same for one tenant, so that nobody closes the queue to the others.
    pub bytes_per_tenant: u64,
    /// How long a call that is over its tenant's `concurrent` alone waits for one of the tenant's own to end, outside of
    /// every queue. A report takes a millisecond or two, and up to a tick of the filter (10 ms, and Envoy's timer slack)
    /// where it is sent again.
    pub concurrent_wait: Millis,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            shares: Shares::default(),
            timeout: Millis(60_000),
            deadline: None,
            depth_per_level: 10_000,
            depth_per_tenant: 1_000,
            bytes: 256 << 20,
            bytes_per_tenant: 64 << 20,
            concurrent_wait: Millis(50),
        }
    }
}
