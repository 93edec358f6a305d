//! Calls that have ended for their client while the model server may work on: each keeps its slot, at the pool and in its
//! tenant's `concurrent`, until the time that the pool's `on_abort` states. All else about it is settled.

use super::live::PoolIndex;
use crate::queue::TenantIndex;
use crate::units::{Millis, Tokens};
use std::collections::BTreeMap;

/// One abandoned call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Orphan {
    pub(super) pool: PoolIndex,
    pub(super) tenant: TenantIndex,
    /// When it started.
    pub(super) since: Millis,
    /// What it was charged at the start, and what it cost, in the pool's weighted tokens.
    pub(super) charge: Tokens,
    pub(super) cost: Tokens,
}

/// Invariant: each has a slot of its pool, so there are no more of them than slots (I7).
#[derive(Debug, Default)]
pub(super) struct Orphans {
    /// By the end of their time; the number tells those of one moment apart.
    by_end: BTreeMap<(Millis, u64), Orphan>,
    added: u64,
}

impl Orphans {
    pub(super) fn add(&mut self, until: Millis, orphan: Orphan) {
        self.added += 1;
        self.by_end.insert((until, self.added), orphan);
    }

    /// The next one whose time is over.
    pub(super) fn take_due(&mut self, now: Millis) -> Option<Orphan> {
        let first = self.by_end.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }

    pub(super) fn next_end(&self) -> Option<Millis> {
        self.by_end.keys().next().map(|(until, _)| *until)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_end.is_empty()
    }
}
