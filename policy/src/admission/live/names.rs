//! What has become of ids: live in a place, or ended. An end that is told twice must not be charged twice, and a
//! cancellation may overtake the request that it cancels.

use super::{Place, at};
use crate::units::{AdmissionId, Millis};
use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;
use std::collections::VecDeque;
use std::hash::BuildHasher;

/// Where an id stands that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// In a place of the table of live admissions.
    Live(u32),
    /// Among those that have ended, by how many ended before it (modulo 2^32).
    Ended(u32),
}

/// Invariants: `known` has one name for every id that is in a place or in `ended`, and `stale` others, about as many as
/// those at most; `ended` is in the order of time.
///
/// The names are a table of places and not of ids: eight bytes instead of fifty for each of a hundred thousand, so that
/// most looks find it near the processor, and no id is kept twice.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashTable<Name>,
    ended: VecDeque<(Millis, AdmissionId)>,
    /// How many ended before the first one in `ended`.
    forgotten: u32,
    /// Names in `known` whose ids are not in `ended` any more.
    stale: usize,
}

impl Names {
    /// A filter repeats what was not acknowledged within a second or so.
    const KEPT: Millis = Millis(120_000);
    /// Bounds memory (I7).
    const MOST: usize = 65_536;
    /// So that few names are not swept again and again.
    const SPARE: usize = 64;

    pub(super) fn find(&self, id: &AdmissionId, places: &[Place]) -> Option<Name> {
        self.known.find(hash(id), |name| self.id(*name, places) == Some(id)).copied()
    }

    /// A new id is in a place now.
    pub(super) fn add(&mut self, id: &AdmissionId, place: u32, places: &[Place]) {
        self.insert(id, Name::Live(place), places);
    }

    /// The id in a place has ended, and leaves it.
    pub(super) fn end(&mut self, id: AdmissionId, place: u32, now: Millis) {
        let name = self.known.find_mut(hash(&id), |name| *name == Name::Live(place));
        if let Some(name) = name {
            *name = Name::Ended(self.forgotten.wrapping_add(count(self.ended.len())));
            self.ended.push_back((now, id));
        }
    }

    /// An id has ended that was not known.
    pub(super) fn end_unknown(&mut self, id: &AdmissionId, now: Millis, places: &[Place]) {
        let name = Name::Ended(self.forgotten.wrapping_add(count(self.ended.len())));
        self.ended.push_back((now, id.clone()));
        self.insert(id, name, places);
    }

    /// Forgets ids whose end is long ago, or too many. Their names stay for a while: a sweep through all names takes less
    /// time than it would take to find each of them.
    pub(super) fn forget(&mut self, now: Millis) {
        while let Some((ended, _)) = self.ended.front() {
            if now.since(*ended) < Self::KEPT && self.ended.len() < Self::MOST {
                break;
            }
            self.ended.pop_front();
            self.forgotten = self.forgotten.wrapping_add(1);
            self.stale += 1;
        }
        if self.stale > self.known.len() / 2 + Self::SPARE {
            let (forgotten, kept) = (self.forgotten, self.ended.len());
            self.known.retain(|name| match name {
                Name::Live(_) => true,
                Name::Ended(nth) => at(nth.wrapping_sub(forgotten)) < kept,
            });
            self.stale = 0;
        }
    }

    fn insert(&mut self, id: &AdmissionId, name: Name, places: &[Place]) {
        let Self { known, ended, forgotten, .. } = self;
        known.insert_unique(hash(id), name, |name| id_of(*name, ended, *forgotten, places).map_or(0, hash));
    }

    fn id<'a>(&'a self, name: Name, places: &'a [Place]) -> Option<&'a AdmissionId> {
        id_of(name, &self.ended, self.forgotten, places)
    }
}

fn id_of<'a>(
    name: Name,
    ended: &'a VecDeque<(Millis, AdmissionId)>,
    forgotten: u32,
    places: &'a [Place],
) -> Option<&'a AdmissionId> {
    match name {
        Name::Live(place) => Some(&places.get(at(place))?.live.as_ref()?.id),
        Name::Ended(nth) => ended.get(at(nth.wrapping_sub(forgotten))).map(|(_, id)| id),
    }
}

/// No secret seed: ids are made up by our own filter.
fn hash(id: &AdmissionId) -> u64 {
    FxBuildHasher.hash_one(id)
}

fn count(ended: usize) -> u32 {
    u32::try_from(ended).unwrap_or(u32::MAX)
}
