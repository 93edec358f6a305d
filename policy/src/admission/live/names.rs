//! What has become of ids: live in a place, or ended. An end that is told twice must not be charged twice, and a
//! cancellation may overtake the request that it cancels.

use super::ended::EndedNumbers;
use super::{Place, at};
use crate::admission::hashed::{hash, spread, whole_hash};
use crate::seal::IdReader;
use crate::units::{AdmissionId, Millis};
use crate::wire::LiveIds;
use hashbrown::HashTable;
use std::collections::VecDeque;

/// Where an id stands that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stands {
    /// In this place of the table of live admissions.
    Live(u32),
    Ended,
}

/// An id by half of its hash and by where it stands: eight bytes instead of the id's thirty-two.
#[derive(Clone, Copy, Debug)]
struct Name {
    hash: u32,
    /// The place of a live one; or, with the top bit, how many had ended before it, modulo 2^31.
    stands: u32,
}

const ENDED: u32 = 1 << 31;

/// Invariants: `known` has one name for every id that is in a place or in `ended`, and `stale` others, about as many as
/// those at most; `ended` is in the order of time.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashTable<Name>,
    /// Of ids that no report tells how to read, a hash: it takes a fifth of the memory.
    ended: VecDeque<(Millis, u64)>,
    /// The others.
    numbers: EndedNumbers,
    /// How many ended before the first one in `ended`.
    forgotten: u32,
    /// Names in `known` whose ids are not in `ended` any more.
    stale: usize,
}

impl Names {
    /// A filter repeats what was not acknowledged within a second or so, and within a minute it is.
    const KEPT: Millis = Millis(120_000);
    /// Bounds memory (I7): as many as end in two minutes at 4,000 a second.
    const MOST: usize = 524_288;
    /// So that few names are not swept again and again.
    const SPARE: usize = 64;

    pub(super) fn find(&self, id: &AdmissionId, places: &[Place]) -> Option<Stands> {
        let name = self.known.find(spread(hash(id)), |name| name.hash == hash(id) && self.is_of(*name, id, places));
        match name {
            Some(name) if name.stands < ENDED => Some(Stands::Live(name.stands)),
            Some(_) => Some(Stands::Ended),
            None => self.numbers.has(id).then_some(Stands::Ended),
        }
    }

    /// A new id is in a place now.
    pub(super) fn add(&mut self, id: &AdmissionId, place: u32) {
        self.insert(Name { hash: hash(id), stands: place });
    }

    /// The id in a place has ended, and leaves it.
    pub(super) fn end(&mut self, id: AdmissionId, place: u32, now: Millis) {
        let next = self.next_ended();
        let Ok(mut name) = self.known.find_entry(spread(hash(&id)), |name| name.stands == place) else { return };
        if self.numbers.note(&id) {
            name.remove();
        } else {
            name.get_mut().stands = next;
            self.ended.push_back((now, whole_hash(&id)));
        }
    }

    /// An id has ended that was not known.
    pub(super) fn end_unknown(&mut self, id: &AdmissionId, now: Millis) {
        if !self.numbers.note(id) {
            self.insert(Name { hash: hash(id), stands: self.next_ended() });
            self.ended.push_back((now, whole_hash(id)));
        }
    }

    /// How to read a worker's ids, if it has told.
    pub(super) fn reader(&self, worker: &str) -> Option<&IdReader> {
        self.numbers.reader(worker)
    }

    /// A worker has told which of its calls are not over.
    pub(super) fn reported(&mut self, worker: &str, live: &LiveIds, now: Millis) {
        self.numbers.reported(worker, live, now);
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
            self.known.retain(|name| name.stands < ENDED || nth_of(name.stands, forgotten) < kept);
            self.stale = 0;
        }
    }

    fn insert(&mut self, name: Name) {
        self.known.insert_unique(spread(name.hash), name, |name| spread(name.hash));
    }

    fn is_of(&self, name: Name, id: &AdmissionId, places: &[Place]) -> bool {
        if name.stands < ENDED {
            return places
                .get(at(name.stands))
                .and_then(|place| place.live.as_ref())
                .is_some_and(|live| live.id == *id);
        }
        self.ended.get(nth_of(name.stands, self.forgotten)).is_some_and(|(_, hash)| *hash == whole_hash(id))
    }

    fn next_ended(&self) -> u32 {
        let count = u32::try_from(self.ended.len()).unwrap_or(0);
        self.forgotten.wrapping_add(count) | ENDED
    }
}

/// Which of those in `ended` stands so; beyond all of them when it was forgotten.
fn nth_of(stands: u32, forgotten: u32) -> usize {
    at(stands.wrapping_sub(forgotten) % ENDED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> AdmissionId {
        AdmissionId::from(format!("worker-{number}"))
    }

    #[test]
    fn an_end_is_known_for_two_minutes_and_its_name_does_not_outlive_it_for_long() {
        // The count of ends passes the end of its bits on the way.
        let mut names = Names { forgotten: ENDED - 5_000, ..Names::default() };
        for number in 0..300_000 {
            let now = Millis(u64::try_from(number).unwrap() * 12);
            names.forget(now);
            assert_eq!(names.find(&id(number), &[]), None);
            names.end_unknown(&id(number), now);
            assert_eq!(names.find(&id(number.saturating_sub(9_999)), &[]), Some(Stands::Ended));
            assert_eq!(names.find(&id(number.wrapping_sub(10_001)), &[]), None);
            assert!(names.known.len() <= 2 * names.ended.len() + 2 * Names::SPARE + 1);
        }
        assert_eq!(names.ended.len(), 10_000);
    }

    #[test]
    fn no_more_ends_are_known_than_memory_is_for() {
        let mut names = Names::default();
        for number in 0..2 * Names::MOST {
            names.forget(Millis(0));
            names.end_unknown(&id(number), Millis(0));
        }
        assert_eq!(names.ended.len(), Names::MOST);
        assert!((Names::MOST..2 * Names::MOST).all(|number| names.find(&id(number), &[]).is_some()));
        assert!((0..Names::MOST).all(|number| names.find(&id(number), &[]).is_none()));
    }
}
