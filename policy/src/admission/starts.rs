//! When each running call of one tenant began.

use crate::units::Millis;
use std::collections::VecDeque;

/// Invariant: moments are in order, the first one has calls, and those without are no more than the others and
/// [`Starts::SPARE`] together.
#[derive(Clone, Debug, Default)]
pub(super) struct Starts {
    /// How many of the running calls began at a moment.
    moments: VecDeque<(Millis, u32)>,
    running: usize,
}

impl Starts {
    /// So that a tenant of few calls does not have them swept after each.
    const SPARE: usize = 16;

    pub(super) fn add(&mut self, at: Millis) {
        self.running += 1;
        match self.moments.back_mut() {
            Some((last, calls)) if *last >= at => *calls += 1,
            Some(_) | None => self.moments.push_back((at, 1)),
        }
    }

    /// A call that began at this moment has ended.
    pub(super) fn remove(&mut self, at: Millis) {
        let index = self.moments.partition_point(|(moment, _)| *moment < at);
        let Some((_, calls)) = self.moments.get_mut(index).filter(|(_, calls)| *calls > 0) else { return };
        *calls -= 1;
        self.running -= 1;
        while self.moments.front().is_some_and(|(_, calls)| *calls == 0) {
            self.moments.pop_front();
        }
        if self.moments.len() > 2 * self.running + Self::SPARE {
            self.moments.retain(|(_, calls)| *calls > 0);
        }
    }

    pub(super) fn oldest(&self) -> Option<Millis> {
        self.moments.front().map(|(moment, _)| *moment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Against a plain map of counts.
        #[test]
        fn the_oldest_is_the_oldest_and_memory_follows_what_runs(
            steps in prop::collection::vec((0_u64..3, any::<bool>(), 0_usize..64), 1..400),
        ) {
            let (mut starts, mut naive) = (Starts::default(), BTreeMap::<Millis, u32>::new());
            let mut now = 0;
            for (pause, begins, pick) in steps {
                now += pause;
                let ending = naive.keys().nth(pick).copied().filter(|_| !begins);
                match ending {
                    None => {
                        starts.add(Millis(now));
                        *naive.entry(Millis(now)).or_default() += 1;
                    }
                    Some(at) => {
                        starts.remove(at);
                        if let Some(calls) = naive.get_mut(&at) {
                            *calls -= 1;
                        }
                        naive.retain(|_, calls| *calls > 0);
                    }
                }
                let running: u32 = naive.values().sum();
                prop_assert_eq!(starts.oldest(), naive.keys().next().copied());
                prop_assert_eq!(starts.running, running as usize);
                prop_assert!(starts.moments.len() <= 2 * starts.running + Starts::SPARE);
            }
        }
    }
}
