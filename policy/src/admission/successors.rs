//! Calls that came before the end of their tenant's last call was reported.
//!
//! A client that makes one call after the other has the whole reply before the service hears that the call has ended: the
//! report comes from another connection, perhaps from another gateway. So a call that is refused for `concurrent` alone
//! waits a moment for such an end. It is charged nothing meanwhile and stands in no pool's queue.

use super::arrival::Patience;
use super::live::LiveKey;
use crate::queue::TenantIndex;
use crate::units::Millis;
use std::collections::{BTreeMap, BTreeSet};

/// Where a call came in the order of all arrivals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn(u64);

/// A call that waits for its tenant's next slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Successor {
    pub(super) key: LiveKey,
    pub(super) patience: Patience,
    pub(super) until: Millis,
}

/// Invariant: `by_end` and `lines` have the same calls, and no line is empty. A tenant has at most as many as its
/// `concurrent` when the latest joined (I7).
#[derive(Debug, Default)]
pub(super) struct Successors {
    /// Of each tenant, in the order of arrival.
    lines: BTreeMap<TenantIndex, BTreeMap<Turn, Successor>>,
    by_end: BTreeSet<(Millis, TenantIndex, Turn)>,
    /// Tenants whose account has changed since their line was heard.
    stirred: BTreeSet<TenantIndex>,
    arrived: u64,
}

impl Successors {
    /// The turn of a call that arrives now; it keeps it wherever it waits for its tenant's account.
    pub(super) fn next_turn(&mut self) -> Turn {
        self.arrived += 1;
        Turn(self.arrived)
    }

    pub(super) fn count(&self, tenant: TenantIndex) -> usize {
        self.lines.get(&tenant).map_or(0, BTreeMap::len)
    }

    pub(super) fn add(&mut self, tenant: TenantIndex, turn: Turn, successor: Successor) {
        self.by_end.insert((successor.until, tenant, turn));
        self.lines.entry(tenant).or_default().insert(turn, successor);
    }

    pub(super) fn first(&self, tenant: TenantIndex) -> Option<(Turn, Successor)> {
        self.lines.get(&tenant)?.first_key_value().map(|(turn, successor)| (*turn, *successor))
    }

    /// The call waits no longer; nothing happens where it did not.
    pub(super) fn remove(&mut self, tenant: TenantIndex, turn: Turn) {
        let Some(line) = self.lines.get_mut(&tenant) else { return };
        if let Some(successor) = line.remove(&turn) {
            self.by_end.remove(&(successor.until, tenant, turn));
        }
        if line.is_empty() {
            self.lines.remove(&tenant);
        }
    }

    /// A tenant's account has changed, so its line is to be heard.
    pub(super) fn stir(&mut self, tenant: TenantIndex) {
        if self.lines.contains_key(&tenant) {
            self.stirred.insert(tenant);
        }
    }

    pub(super) fn take_stirred(&mut self) -> Option<TenantIndex> {
        self.stirred.pop_first()
    }

    /// The next call that has waited long enough.
    pub(super) fn take_due(&mut self, now: Millis) -> Option<Successor> {
        let (_, tenant, turn) = self.by_end.first().copied().filter(|(until, ..)| *until <= now)?;
        let successor = self.lines.get(&tenant).and_then(|line| line.get(&turn)).copied();
        self.remove(tenant, turn);
        successor
    }

    pub(super) fn next_end(&self) -> Option<Millis> {
        self.by_end.first().map(|(until, ..)| *until)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = LiveKey> {
        self.lines.values().flat_map(|line| line.values().map(|successor| successor.key))
    }
}
