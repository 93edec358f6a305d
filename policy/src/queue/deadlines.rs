//! Who gives up when: chains of waiters by deadline, rounded up to 16 ms, so that a queue of a million whose calls all
//! wait a minute has four thousand chains and not a million entries.

use super::Ticket;
use super::places::Places;
use crate::units::Millis;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

const GRAIN_MS: u64 = 16;

/// Invariant: a chain is never empty.
#[derive(Clone, Debug, Default)]
pub(super) struct Deadlines {
    /// First place of each chain, by deadline.
    chains: BTreeMap<Millis, u32>,
}

pub(super) fn rounded(deadline: Millis) -> Millis {
    Millis(deadline.0.checked_next_multiple_of(GRAIN_MS).unwrap_or(u64::MAX))
}

impl Deadlines {
    pub(super) fn add(&mut self, ticket: Ticket, deadline: Millis, places: &mut Places) {
        // Most calls bring no deadline of their own, so theirs is the last one or later, and found without a search.
        if let Some(mut last) = self.chains.last_entry().filter(|last| *last.key() == deadline) {
            let first = *last.get();
            last.insert(places.link(ticket, Some(first)));
            return;
        }
        match self.chains.entry(deadline) {
            Entry::Vacant(entry) => drop(entry.insert(places.link(ticket, None))),
            Entry::Occupied(mut entry) => {
                let first = *entry.get();
                entry.insert(places.link(ticket, Some(first)));
            }
        }
    }

    /// Call it before the waiter leaves its place.
    pub(super) fn remove(&mut self, ticket: Ticket, deadline: Millis, places: &mut Places) {
        match places.unlink(ticket) {
            None => {}
            Some(Some(first)) => {
                self.chains.insert(deadline, first);
            }
            Some(None) => {
                self.chains.remove(&deadline);
            }
        }
    }

    pub(super) fn next(&self) -> Option<Millis> {
        self.chains.first_key_value().map(|(deadline, _)| *deadline)
    }

    pub(super) fn overdue(&self, now: Millis, places: &Places) -> Vec<Ticket> {
        self.chains.range(..=now).flat_map(|(_, first)| places.chain(*first)).collect()
    }
}
