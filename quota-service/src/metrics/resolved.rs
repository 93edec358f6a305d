//! Series that are looked up by one name, once, instead of by all of their labels at every call.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};

/// Names come from the configuration, so there are as many as it has or had.
pub(super) struct Resolved<K, V>(RwLock<HashMap<K, Arc<V>>>);

impl<K, V> Default for Resolved<K, V> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<K: Clone + Eq + Hash, V> Resolved<K, V> {
    /// What was made for this name.
    pub(super) fn of(&self, name: &K, make: impl FnOnce() -> V) -> Arc<V> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        known.unwrap_or_else(|| {
            let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(name.clone()).or_insert_with(|| Arc::new(make())))
        })
    }
}
