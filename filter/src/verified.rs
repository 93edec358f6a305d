//! The keys that this worker knows, because the service lately said whose they are.
//!
//! A call of a known key is its tenant's before its body has come. A route that fails open needs more: what the key was
//! admitted for, since the service decides on both. Open never opens identity.

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

/// Whose a key is, when that was last said, and what it was admitted for.
#[derive(Debug)]
struct Known {
    tenant: TenantId,
    at: Millis,
    targets: Vec<Target>,
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
    young: HashMap<Digest, Known>,
    old: HashMap<Digest, Known>,
}

impl Verified {
    /// The service said whose key this is.
    pub(crate) fn belongs(&mut self, key: Digest, tenant: &TenantId, now: Millis) {
        self.learn(key, tenant, now);
    }

    /// The service admitted a call of this key.
    pub(crate) fn admitted(&mut self, key: Digest, target: &str, tags: Tags, now: Millis) {
        let targets = &mut self.learn(key, &tags.tenant, now).targets;
        targets.retain(|known| known.name != target);
        if targets.len() >= TARGETS_MAX {
            targets.remove(0);
        }
        targets.push(Target { name: target.to_owned(), tags, at: now });
    }

    fn learn(&mut self, key: Digest, tenant: &TenantId, now: Millis) -> &mut Known {
        let mut known = None;
        if !self.young.contains_key(&key) {
            if self.young.len() >= GENERATION_KEYS {
                self.old = std::mem::take(&mut self.young);
            }
            known = self.old.remove(&key);
        }
        let new = || known.unwrap_or_else(|| Known { tenant: tenant.clone(), at: now, targets: Vec::new() });
        let known = self.young.entry(key).or_insert_with(new);
        known.at = now;
        if known.tenant != *tenant {
            *known = Known { tenant: tenant.clone(), at: now, targets: Vec::new() };
        }
        known
    }

    /// Whose key this is; `None` when the service did not say so for `ttl`.
    pub(crate) fn tenant(&self, key: Digest, now: Millis, ttl: Millis) -> Option<&TenantId> {
        let known = self.young.get(&key).or_else(|| self.old.get(&key))?;
        is_fresh(known.at, now, ttl).then_some(&known.tenant)
    }

    /// The service said that this key is nobody's or may not pass.
    pub(crate) fn evict(&mut self, key: Digest) {
        self.young.remove(&key);
        self.old.remove(&key);
    }

    /// The service said that this key may not use this any more, or that there is no such thing.
    pub(crate) fn forget(&mut self, key: Digest, target: &str) {
        for generation in [&mut self.young, &mut self.old] {
            if let Some(known) = generation.get_mut(&key) {
                known.targets.retain(|target_of| target_of.name != target);
            }
        }
    }

    /// How to tag a call of this key that nobody can admit; `None` when it was not seen for `ttl`.
    pub(crate) fn find(&self, key: Digest, target: &str, now: Millis, ttl: Millis) -> Option<&Tags> {
        let known = self.young.get(&key).or_else(|| self.old.get(&key))?;
        let found = known.targets.iter().find(|known| known.name == target)?;
        is_fresh(found.at, now, ttl).then_some(&found.tags)
    }
}

/// A clock that went backwards proves nothing.
fn is_fresh(at: Millis, now: Millis, ttl: Millis) -> bool {
    at <= now && now.since(at) < ttl
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
    fn a_key_is_its_tenant_s_for_a_while_whatever_it_was_admitted_for() {
        let mut verified = Verified::default();
        verified.belongs(key(1), &"a".into(), Millis(1000));
        assert_eq!(verified.tenant(key(1), Millis(1099), TTL), Some(&"a".into()));
        assert_eq!(verified.tenant(key(1), Millis(1100), TTL), None);
        assert_eq!(verified.tenant(key(1), Millis(999), TTL), None);
        assert_eq!(verified.find(key(1), "m", Millis(1001), TTL), None, "that is for an admission to say");
        verified.admitted(key(1), "m", tags("a"), Millis(1050));
        assert_eq!(verified.tenant(key(1), Millis(1149), TTL), Some(&"a".into()));
    }

    #[test]
    fn a_key_that_moved_to_another_tenant_takes_nothing_along() {
        let mut verified = Verified::default();
        verified.admitted(key(1), "m", tags("a"), Millis(1));
        verified.belongs(key(1), &"b".into(), Millis(2));
        assert_eq!(verified.tenant(key(1), Millis(3), TTL), Some(&"b".into()));
        assert_eq!(verified.find(key(1), "m", Millis(3), TTL), None);
    }

    #[test]
    fn an_evicted_key_is_forgotten_for_everything() {
        let mut verified = Verified::default();
        verified.admitted(key(1), "m", tags("a"), Millis(1));
        verified.evict(key(1));
        assert_eq!(verified.find(key(1), "m", Millis(2), TTL), None);
    }

    #[test]
    fn what_a_key_may_not_use_any_more_is_forgotten_and_nothing_else() {
        let mut verified = Verified::default();
        verified.admitted(key(1), "m", tags("a"), Millis(1));
        verified.admitted(key(1), "n", tags("a"), Millis(1));
        verified.forget(key(1), "m");
        assert_eq!(verified.find(key(1), "m", Millis(2), TTL), None);
        assert!(verified.find(key(1), "n", Millis(2), TTL).is_some());
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
        assert_eq!(verified.young.get(&key(0)).map(|known| known.targets.len()), Some(TARGETS_MAX));
    }
}
