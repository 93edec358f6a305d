//! One copy of what many worlds have in common: a search holds a hundred thousand of them at once.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Values of one kind that some world still holds.
#[derive(Debug)]
pub(crate) struct Pool<T> {
    known: Mutex<Known<T>>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Known<T> {
    by_hash: HashMap<u64, Weak<T>>,
    /// When so many are known, those that nobody holds any more are dropped.
    sweep_at: usize,
}

const FIRST_SWEEP: usize = 10_000;

impl<T> Default for Pool<T> {
    fn default() -> Self {
        let known = Known { by_hash: HashMap::new(), sweep_at: FIRST_SWEEP };
        Self { known: Mutex::new(known), hasher: RandomState::new() }
    }
}

impl<T: Hash + Eq> Pool<T> {
    /// Replaces a value by the copy that others hold.
    pub(crate) fn share(&self, value: &mut Arc<T>) {
        let hash = self.hasher.hash_one(&**value);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.by_hash.get(&hash).and_then(Weak::upgrade) {
            Some(other) if *other == **value => *value = other,
            _ => {
                known.by_hash.insert(hash, Arc::downgrade(value));
                known.sweep();
            }
        }
    }
}

impl<T> Known<T> {
    fn sweep(&mut self) {
        if self.by_hash.len() >= self.sweep_at {
            self.by_hash.retain(|_, value| value.strong_count() > 0);
            self.by_hash.shrink_to_fit();
            self.sweep_at = FIRST_SWEEP.max(2 * self.by_hash.len());
        }
    }
}
