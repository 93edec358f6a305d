//! The keys that this worker does not know, each with the calls that bear it, and when the service was asked about it.

use super::HoldingId;
use crate::caller::{CallerKey, Digest};
use sluice_policy::units::Millis;
use std::collections::{BTreeSet, HashMap};

/// An ordinary first call is admitted by then, which says the same: it costs no question.
const DUE_AFTER: Millis = Millis(5);
/// Longer than the service takes to answer; an answer that was lost is asked for again.
const ASK_AGAIN: Millis = Millis(1_000);
/// On one tick. The others follow on the next.
const AT_ONCE: usize = 64;

/// As many as there are strangers at most.
#[derive(Debug, Default)]
pub(super) struct Questions(HashMap<Digest, Question>);

#[derive(Debug)]
struct Question {
    key: CallerKey,
    /// When the first of its calls came.
    since: Millis,
    asked_at: Option<Millis>,
    calls: BTreeSet<HoldingId>,
}

impl Questions {
    pub(super) fn concerns(&mut self, key: &CallerKey, call: HoldingId, now: Millis) {
        let new = || Question { key: key.clone(), since: now, asked_at: None, calls: BTreeSet::new() };
        self.0.entry(key.digest()).or_insert_with(new).calls.insert(call);
    }

    pub(super) fn ends(&mut self, key: Digest, call: HoldingId) {
        let Some(question) = self.0.get_mut(&key) else { return };
        question.calls.remove(&call);
        if question.calls.is_empty() {
            self.0.remove(&key);
        }
    }

    /// The calls that waited for an answer about this key.
    pub(super) fn answered(&mut self, key: Digest) -> BTreeSet<HoldingId> {
        self.0.remove(&key).map(|question| question.calls).unwrap_or_default()
    }

    /// The key, unless it was asked about lately; from now on it was.
    pub(super) fn of(&mut self, key: Digest, now: Millis) -> Option<CallerKey> {
        self.0.get_mut(&key)?.ask(now)
    }

    pub(super) fn due(&mut self, now: Millis) -> Vec<CallerKey> {
        let due = self.0.values_mut().filter(|question| has_passed(question.since, DUE_AFTER, now));
        due.filter_map(|question| question.ask(now)).take(AT_ONCE).collect()
    }
}

impl Question {
    fn ask(&mut self, now: Millis) -> Option<CallerKey> {
        if self.asked_at.is_some_and(|at| !has_passed(at, ASK_AGAIN, now)) {
            return None;
        }
        self.asked_at = Some(now);
        Some(self.key.clone())
    }
}

/// A clock that went backwards delays nothing.
fn has_passed(since: Millis, wait: Millis, now: Millis) -> bool {
    now < since || now.since(since) >= wait
}
