//! The keys that this worker lately saw admitted, for routes that fail open: open never opens identity.
//!
//! An entry holds for a key *and* what it asked for, since the service decides on both.

use crate::caller::Digest;
use sluice_policy::units::{Millis, ModelName, PoolName, Priority, TenantId, Tokens};
use sluice_policy::wire::Grant;
use std::collections::HashMap;
use std::sync::Arc;

/// Keys in each of two generations; so at most twice as many are held, in about 10 MB.
const GENERATION_KEYS: usize = 8192;
/// Different targets that are remembered for one key.
const TARGETS_MAX: usize = 16;

/// How a call was tagged, and rewritten, when it was last admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tags {
    pub(crate) tenant: TenantId,
    pub(crate) namespace: Arc<str>,
    pub(crate) tier: Arc<str>,
    pub(crate) priority: Priority,
    pub(crate) pool: PoolName,
    /// The name to write into the call in place of the client's.
    pub(crate) upstream_model: Option<ModelName>,
    /// The most that one sequence may yield; bounds above it are lowered.
    pub(crate) max_tokens: Option<Tokens>,
}

impl From<&Grant> for Tags {
    fn from(grant: &Grant) -> Self {
        Self {
            tenant: grant.tenant.clone(),
            namespace: grant.namespace.clone(),
            tier: grant.tier.clone(),
            priority: grant.priority,
            pool: grant.pool.clone(),
            upstream_model: grant.upstream_model.clone(),
            max_tokens: grant.max_tokens,
        }
    }
}

/// What a key was admitted for: the model, or the route's path where no model is known.
#[derive(Debug)]
struct Target {
    name: String,
    tags: Tags,
    at: Millis,
}

/// A bounded cache of two generations: when the young one is full it becomes the old one, and the old one is
/// forgotten, so nothing is ever searched for what to evict.
#[derive(Debug, Default)]
pub(crate) struct Verified {
    young: HashMap<Digest, Vec<Target>>,
    old: HashMap<Digest, Vec<Target>>,
}

impl Verified {
    pub(crate) fn admitted(&mut self, key: Digest, target: &str, tags: Tags, now: Millis) {
        if !self.young.contains_key(&key) {
            if self.young.len() >= GENERATION_KEYS {
                self.old = std::mem::take(&mut self.young);
            }
            let known = self.old.remove(&key).unwrap_or_default();
            self.young.insert(key, known);
        }
        let targets = self.young.entry(key).or_default();
        targets.retain(|known| known.name != target);
        if targets.len() >= TARGETS_MAX {
            targets.remove(0);
        }
        targets.push(Target { name: target.to_owned(), tags, at: now });
    }

    /// The service said that this key is nobody's or may not pass.
    pub(crate) fn evict(&mut self, key: Digest) {
        self.young.remove(&key);
        self.old.remove(&key);
    }

    /// How to tag a call of this key that nobody can admit; `None` when it was not seen for `ttl`. A clock that
    /// went backwards proves nothing, so it finds nothing.
    pub(crate) fn find(&self, key: Digest, target: &str, now: Millis, ttl: Millis) -> Option<&Tags> {
        let targets = self.young.get(&key).or_else(|| self.old.get(&key))?;
        let found = targets.iter().find(|known| known.name == target)?;
        (found.at <= now && now.since(found.at) < ttl).then_some(&found.tags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::caller_key;

    const TTL: Millis = Millis(100);

    fn tags(tenant: &str) -> Tags {
        Tags {
            tenant: tenant.into(),
            namespace: "ns".into(),
            tier: "gold".into(),
            priority: Priority::FIRST,
            pool: "p".into(),
            upstream_model: None,
            max_tokens: None,
        }
    }

    fn key(number: usize) -> Digest {
        caller_key(&format!("sk-{number}")).digest()
    }

    #[test]
    fn a_key_is_found_for_what_it_was_admitted_for_and_only_for_a_while() {
        let mut verified = Verified::default();
        verified.admitted(key(1), "m", tags("a"), Millis(1000));
        assert_eq!(verified.find(key(1), "m", Millis(1099), TTL), Some(&tags("a")));
        assert_eq!(verified.find(key(1), "m", Millis(1100), TTL), None);
        assert_eq!(verified.find(key(1), "m", Millis(999), TTL), None);
        assert_eq!(verified.find(key(1), "other", Millis(1001), TTL), None);
        assert_eq!(verified.find(key(2), "m", Millis(1001), TTL), None);
    }

    #[test]
    fn an_evicted_key_is_forgotten_for_everything() {
        let mut verified = Verified::default();
        verified.admitted(key(1), "m", tags("a"), Millis(1));
        verified.evict(key(1));
        assert_eq!(verified.find(key(1), "m", Millis(2), TTL), None);
    }

    #[test]
    fn the_cache_stays_bounded_and_keeps_the_latest() {
        let mut verified = Verified::default();
        let count = 3 * GENERATION_KEYS;
        for number in 0..count {
            verified.admitted(key(number), "m", tags("a"), Millis(1));
        }
        assert!(verified.young.len() + verified.old.len() <= 2 * GENERATION_KEYS);
        assert!(verified.find(key(count - 1), "m", Millis(1), TTL).is_some());
        assert!(verified.find(key(count - GENERATION_KEYS), "m", Millis(1), TTL).is_some());
        assert!(verified.find(key(0), "m", Millis(1), TTL).is_none());
        for number in 0..100 {
            verified.admitted(key(0), &number.to_string(), tags("a"), Millis(1));
        }
        assert_eq!(verified.young.get(&key(0)).map(Vec::len), Some(TARGETS_MAX));
    }
}
