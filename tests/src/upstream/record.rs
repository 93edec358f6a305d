//! Who ran when: what is said about a whole run is worked out from it afterwards, exactly.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// One call in the model.
#[derive(Clone, Debug)]
pub struct Span {
    pub tenant: String,
    /// As the filter tagged it.
    pub level: Option<u8>,
    pub began: Instant,
    /// `None` while it runs.
    pub ended: Option<Instant>,
    /// Whoever called has hung up before the upstream was done. Of that it learns a little later.
    pub was_cut: bool,
}

impl Span {
    pub(super) fn begun(tenant: &str, level: Option<u8>) -> Self {
        Self { tenant: tenant.to_owned(), level, began: Instant::now(), ended: None, was_cut: false }
    }

    fn runs_until(&self, end: Instant) -> Instant {
        self.ended.map_or(end, |ended| ended.min(end))
    }
}

/// All calls of a run, in the order in which they began.
#[derive(Clone, Debug, Default)]
pub struct Record {
    spans: Vec<Span>,
}

impl Record {
    #[must_use]
    pub fn new(spans: Vec<Span>) -> Self {
        Self { spans }
    }

    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The mean of how many ran, over the time from `from` to `to`.
    #[must_use]
    pub fn mean_running(&self, from: Instant, to: Instant) -> f64 {
        let within = |span: &Span| span.runs_until(to).saturating_duration_since(span.began.max(from));
        let busy: Duration = self.spans.iter().map(within).sum();
        busy.as_secs_f64() / to.duration_since(from).as_secs_f64()
    }

    /// How many calls were hung up on, from `from` to before `to`.
    #[must_use]
    pub fn cut(&self, from: Instant, to: Instant) -> usize {
        let within = |span: &&Span| span.was_cut && span.ended.is_some_and(|ended| (from..to).contains(&ended));
        self.spans.iter().filter(within).count()
    }

    /// How many calls began from `from` to before `to`, by tenant and level.
    #[must_use]
    pub fn starts(&self, from: Instant, to: Instant) -> BTreeMap<(&str, Option<u8>), u64> {
        let mut starts = BTreeMap::new();
        for span in self.spans.iter().filter(|span| (from..to).contains(&span.began)) {
            *starts.entry((span.tenant.as_str(), span.level)).or_default() += 1;
        }
        starts
    }

    /// How long after `from` so many ran at once for the first time, and from then on until `to` again and again, never
    /// not for longer than `blink` at a stretch: between two calls a slot is free. `None` where that is not so at `to`.
    #[must_use]
    pub fn full_again_after(&self, slots: usize, from: Instant, to: Instant, blink: Duration) -> Option<Duration> {
        let steps = self.steps(to);
        let later = steps.partition_point(|(at, _)| *at <= from);
        let was_full = steps[..later].last().is_some_and(|(_, running)| *running >= slots);
        let (mut full, mut short_since) = if was_full { (Some(from), None) } else { (None, Some(from)) };
        for (at, running) in steps[later..].iter().copied() {
            match (short_since, running >= slots) {
                (Some(since), true) => {
                    let goes_on = full.filter(|_| at.duration_since(since) <= blink);
                    full = goes_on.or(Some(at));
                    short_since = None;
                }
                (None, false) => short_since = Some(at),
                (Some(_), false) | (None, true) => {}
            }
        }
        let is_full = short_since.is_none_or(|since| to.duration_since(since) <= blink);
        full.filter(|_| is_full).map(|full| full.duration_since(from))
    }

    /// Of a run in which somebody always waited for one of so many slots: how long after each end the next call began.
    #[must_use]
    pub fn hand_overs(&self, slots: usize) -> Vec<Duration> {
        let mut begun: Vec<Instant> = self.spans.iter().map(|span| span.began).collect();
        let mut ended: Vec<Instant> = self.spans.iter().filter_map(|span| span.ended).collect();
        begun.sort_unstable();
        ended.sort_unstable();
        // The first ones found a free slot.
        let next = begun.iter().skip(slots);
        ended.iter().zip(next).map(|(ended, began)| began.saturating_duration_since(*ended)).collect()
    }

    /// How many ran from each moment on at which that changed.
    fn steps(&self, end: Instant) -> Vec<(Instant, usize)> {
        let begun = self.spans.iter().filter(|span| span.began <= end);
        let mut changes: Vec<(Instant, bool)> = begun
            .flat_map(|span| [Some((span.began, true)), span.ended.filter(|at| *at <= end).map(|at| (at, false))])
            .flatten()
            .collect();
        // Of two changes at one moment the end comes first.
        changes.sort_unstable();
        let mut running: isize = 0;
        let step = |(at, begins): (Instant, bool)| {
            running += if begins { 1 } else { -1 };
            (at, usize::try_from(running).unwrap_or(0))
        };
        changes.into_iter().map(step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Calls of one tenant, each from and to so many milliseconds after `zero`.
    fn record(zero: Instant, spans: &[(u32, u32)]) -> Record {
        let span = |&(from, to): &(u32, u32)| Span {
            began: zero + MS * from,
            ended: Some(zero + MS * to),
            ..Span::begun("t", Some(5))
        };
        Record::new(spans.iter().map(span).collect())
    }

    #[test]
    fn the_mean_counts_what_lies_within_the_window() {
        let zero = Instant::now();
        let record = record(zero, &[(0, 100), (50, 150), (190, 300)]);
        assert!((record.mean_running(zero, zero + MS * 200) - 1.05).abs() < 1e-9);
        assert_eq!(record.starts(zero + MS * 50, zero + MS * 190), BTreeMap::from([(("t", Some(5)), 1)]));
    }

    #[test]
    fn each_end_is_followed_by_the_next_start_that_found_no_slot() {
        let zero = Instant::now();
        let record = record(zero, &[(0, 50), (1, 60), (52, 90), (63, 100)]);
        assert_eq!(record.hand_overs(2), [MS * 2, MS * 3]);
    }

    #[test]
    fn a_slot_that_stands_empty_between_two_calls_is_not_an_outage() {
        let zero = Instant::now();
        let record = record(zero, &[(0, 1_000), (0, 100), (110, 200), (700, 800), (805, 1_000)]);
        let full_again = |from: u32, to: u32| record.full_again_after(2, zero + MS * from, zero + MS * to, MS * 50);
        assert_eq!(full_again(50, 1_000), Some(MS * 650));
        assert_eq!(full_again(720, 1_000), Some(Duration::ZERO));
        assert_eq!(full_again(802, 1_000), Some(MS * 3));
        assert_eq!(full_again(50, 600), None);
    }
}
