//! What will happen when, apart from arrivals.

use crate::units::Millis;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A call ends, or its client leaves; calls by their place in the trace. At the same moment what belongs to an
/// earlier call comes first, and its end before its client's leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Task {
    pub(super) at: Millis,
    pub(super) call: usize,
    pub(super) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    Ends,
    Leaves,
}

#[derive(Debug, Default)]
pub(super) struct Agenda(BinaryHeap<Reverse<Task>>);

impl Agenda {
    pub(super) fn add(&mut self, at: Millis, call: usize, what: What) {
        self.0.push(Reverse(Task { at, call, what }));
    }

    pub(super) fn next(&self) -> Option<Millis> {
        self.0.peek().map(|Reverse(task)| task.at)
    }

    /// The next task that is due.
    pub(super) fn take_due(&mut self, now: Millis) -> Option<Task> {
        let due = self.next().is_some_and(|at| at <= now);
        due.then(|| self.0.pop()).flatten().map(|Reverse(task)| task)
    }
}
