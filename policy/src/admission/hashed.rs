//! Hashes for tables whose keys stand elsewhere. With the hash beside it, an entry needs eight bytes, most looks end in
//! the table, and it can grow without a look at the keys.

use rustc_hash::FxBuildHasher;
use std::hash::{BuildHasher, Hash};

/// No secret seed: ids are made up by our own filter, and tenants by the operator.
pub(super) fn hash(key: &impl Hash) -> u32 {
    u32::try_from(whole_hash(key) >> 32).unwrap_or(0)
}

/// Of which a million have two alike once in 30 million times.
pub(super) fn whole_hash(key: &impl Hash) -> u64 {
    FxBuildHasher.hash_one(key)
}

/// Over the 64 bits that a table looks at: the lowest choose the place, the topmost tell neighbours apart.
pub(super) fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
