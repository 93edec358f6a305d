//! Which ids of a worker have ended, for as long as it may repeat their ends: until it reports that they are over.
//!
//! A worker numbers its calls and tells which numbers it still answers for. So an end is a bit, from the lowest number that
//! is not over, whatever the rate; what lies below has ended, told or not.

use crate::seal::IdReader;
use crate::units::{AdmissionId, Millis};
use crate::wire::LiveIds;
use std::collections::VecDeque;

/// Workers that are known. Of more, the one heard of longest ago is forgotten.
const MOST_WORKERS: usize = 256;
/// Bits of all workers together, in words: 8 MB (I7), or 67 million calls since the oldest that is not over.
const MOST_WORDS: usize = 1 << 20;
const WORD: u64 = 64;

/// Invariant: `words` counts those of all workers.
#[derive(Debug, Default)]
pub(super) struct EndedNumbers {
    workers: Vec<Worker>,
    words: usize,
}

#[derive(Debug)]
struct Worker {
    ids: IdReader,
    heard: Millis,
    /// All before have ended.
    over_below: u64,
    /// The number of the first bit, a multiple of [`WORD`].
    base: u64,
    ended: VecDeque<u64>,
}

impl EndedNumbers {
    /// A worker has told which of its calls are not over.
    pub(super) fn reported(&mut self, worker: &str, live: &LiveIds, now: Millis) {
        let over_below = live.numbers.first().copied().unwrap_or(live.minted.saturating_add(1));
        if !self.workers.iter().any(|known| known.ids.worker() == worker) {
            self.make_room();
            let ids = live.reader(worker);
            self.workers.push(Worker { ids, heard: now, over_below: 0, base: 0, ended: VecDeque::new() });
        }
        let Some(known) = self.workers.iter_mut().find(|known| known.ids.worker() == worker) else { return };
        known.heard = now;
        let before = known.ended.len();
        known.forget_below(over_below);
        self.words -= before - known.ended.len();
    }

    pub(super) fn reader(&self, worker: &str) -> Option<&IdReader> {
        self.workers.iter().map(|known| &known.ids).find(|ids| ids.worker() == worker)
    }

    /// Whether the id is one of a known worker's and has ended.
    pub(super) fn has(&self, id: &AdmissionId) -> bool {
        self.find(id).is_some_and(|(worker, number)| worker.has(number))
    }

    /// Notes an end; `false` for the id of no known worker, or where it is far ahead of all others.
    pub(super) fn note(&mut self, id: &AdmissionId) -> bool {
        let room = MOST_WORDS - self.words.min(MOST_WORDS);
        let mut read = self.workers.iter_mut().filter_map(|worker| Some((worker.ids.number(id)?, worker)));
        let Some((number, worker)) = read.next() else { return false };
        let Some(more) = worker.note(number, room) else { return false };
        self.words += more;
        true
    }

    fn find(&self, id: &AdmissionId) -> Option<(&Worker, u64)> {
        self.workers.iter().find_map(|worker| Some((worker, worker.ids.number(id)?)))
    }

    fn make_room(&mut self) {
        if self.workers.len() < MOST_WORKERS {
            return;
        }
        let oldest = self.workers.iter().enumerate().min_by_key(|(_, worker)| worker.heard).map(|(index, _)| index);
        if let Some(oldest) = oldest {
            self.words -= self.workers.swap_remove(oldest).ended.len();
        }
    }
}

impl Worker {
    fn has(&self, number: u64) -> bool {
        let (word, bit) = self.place(number);
        let is_noted = || word.and_then(|word| self.ended.get(word)).is_some_and(|word| word & bit != 0);
        number < self.over_below || is_noted()
    }

    /// Gives how many words that took; `None` where it would take more than `room`.
    fn note(&mut self, number: u64, room: usize) -> Option<usize> {
        if number < self.over_below {
            return Some(0);
        }
        let (word, bit) = self.place(number);
        let word = word?;
        let more = (word + 1).saturating_sub(self.ended.len());
        if more > room {
            return None;
        }
        self.ended.extend(std::iter::repeat_n(0, more));
        *self.ended.get_mut(word)? |= bit;
        Some(more)
    }

    fn forget_below(&mut self, number: u64) {
        self.over_below = self.over_below.max(number);
        while self.base + WORD <= self.over_below && self.ended.pop_front().is_some() {
            self.base += WORD;
        }
        if self.ended.is_empty() {
            self.base = self.over_below / WORD * WORD;
        }
    }

    /// The word of a number, if that is not below all, and its bit.
    fn place(&self, number: u64) -> (Option<usize>, u64) {
        let word = number.checked_sub(self.base).and_then(|offset| usize::try_from(offset / WORD).ok());
        (word, 1 << (number % WORD))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{Seal, SealKey};

    fn report(key: &SealKey, minted: u64, numbers: &[u64]) -> LiveIds {
        LiveIds { minted, numbers: numbers.iter().copied().collect(), seal: Some(key.clone()) }
    }

    #[test]
    fn an_end_is_known_until_its_worker_reports_it_over_and_then_as_one_below() {
        let key = SealKey::new(7);
        let (seal, mut ended) = (Seal::new(&key), EndedNumbers::default());
        assert!(!ended.note(&seal.seal(1)), "nobody has told how to read it");
        ended.reported("w", &report(&key, 0, &[]), Millis(0));
        // Five times as many as ends were once counted out after.
        for number in 1..=330_000 {
            assert!(ended.note(&seal.seal(number)));
        }
        assert!(ended.has(&seal.seal(1)) && ended.has(&seal.seal(330_000)) && !ended.has(&seal.seal(330_001)));
        assert!(ended.words * 8 < 45_000, "{} words", ended.words);
        ended.reported("w", &report(&key, 330_000, &[325_000, 330_000]), Millis(1));
        assert!(ended.words * 8 < 800, "{} words", ended.words);
        assert!(ended.has(&seal.seal(1)) && ended.has(&seal.seal(325_000)) && !ended.has(&seal.seal(330_001)));
        ended.reported("w", &report(&key, 330_000, &[]), Millis(2));
        assert!(ended.words <= 1 && ended.has(&seal.seal(330_000)));
    }

    #[test]
    fn each_worker_has_its_own_numbers_also_one_that_does_not_seal_them() {
        let (one, two) = (SealKey::new(1), SealKey::new(2));
        let mut ended = EndedNumbers::default();
        ended.reported("one", &report(&one, 9, &[3]), Millis(0));
        ended.reported("two", &report(&two, 9, &[7]), Millis(0));
        ended.reported("three", &LiveIds { minted: 9, numbers: [5].into(), seal: None }, Millis(0));
        let has = |ended: &EndedNumbers, number: u64| {
            let ids = [Seal::new(&one).seal(number), Seal::new(&two).seal(number), format!("three-{number}").into()];
            ids.map(|id| ended.has(&id))
        };
        assert_eq!(has(&ended, 4), [false, true, true]);
        assert!(ended.note(&"three-8".into()));
        assert_eq!((has(&ended, 8), has(&ended, 2)), ([false, false, true], [true; 3]));
    }

    #[test]
    fn memory_is_bounded_by_words_and_by_workers() {
        let mut ended = EndedNumbers::default();
        let plain = |minted| LiveIds { minted, numbers: [].into(), seal: None };
        ended.reported("w", &plain(0), Millis(0));
        assert!(!ended.note(&format!("w-{}", u64::MAX).into()), "far ahead of all others");
        assert!(ended.note(&"w-64000".into()));
        for worker in 0..2 * MOST_WORKERS {
            ended.reported(&format!("other-{worker}"), &plain(0), Millis(1 + u64::try_from(worker).unwrap()));
        }
        assert_eq!((ended.workers.len(), ended.words), (MOST_WORKERS, 0));
    }
}
