//! What must reach the quota service: settlements, kept until they are acknowledged.
//!
//! At most one batch is under way. A batch that fails goes back to the front and is tried again, later each time;
//! every entry is idempotent there, so a lost acknowledgement costs nothing.

use sluice_policy::units::Millis;
use sluice_policy::wire::Settlement;
use std::collections::VecDeque;

/// About 10 MB; at 500 calls a second this is two minutes without the service.
const ENTRIES_MAX: usize = 65_536;
const BATCH_MAX: usize = 256;
const BACKOFF_FIRST: Millis = Millis(50);
const BACKOFF_MAX: Millis = Millis(1000);

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<Settlement>,
    under_way: Vec<Settlement>,
    /// Zero while all goes well.
    backoff: Millis,
    failed_at: Millis,
}

impl Outbox {
    /// Adds a settlement; returns the oldest one if that had to be dropped for it.
    #[must_use]
    pub(crate) fn add(&mut self, settlement: Settlement) -> Option<Settlement> {
        self.waiting.push_back(settlement);
        let is_full = self.waiting.len() + self.under_way.len() > ENTRIES_MAX;
        if is_full { self.waiting.pop_front() } else { None }
    }

    /// The next batch, if there is something to send, nothing is under way, and it is time. The caller reports its
    /// fate by [`Outbox::acknowledged`] or [`Outbox::failed`].
    pub(crate) fn next_batch(&mut self, now: Millis) -> Option<&[Settlement]> {
        // A clock that went backwards does not make anyone wait.
        let is_time = now < self.failed_at || now.since(self.failed_at) >= self.backoff;
        if self.waiting.is_empty() || !self.under_way.is_empty() || !is_time {
            return None;
        }
        let count = self.waiting.len().min(BATCH_MAX);
        self.under_way = self.waiting.drain(..count).collect();
        Some(&self.under_way)
    }

    /// The batch was taken; these are the settlements that it was of.
    pub(crate) fn acknowledged(&mut self) -> Vec<Settlement> {
        self.backoff = Millis::ZERO;
        std::mem::take(&mut self.under_way)
    }

    /// Whether a batch has been sent and not answered yet.
    pub(crate) fn is_under_way(&self) -> bool {
        !self.under_way.is_empty()
    }

    pub(crate) fn failed(&mut self, now: Millis) {
        for settlement in std::mem::take(&mut self.under_way).into_iter().rev() {
            self.waiting.push_front(settlement);
        }
        let doubled = Millis(self.backoff.0.saturating_mul(2));
        self.backoff = doubled.clamp(BACKOFF_FIRST, BACKOFF_MAX);
        self.failed_at = now;
    }

    /// Whether there is anything that a batch could take.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty() && self.under_way.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_policy::units::AdmissionId;
    use sluice_policy::wire::{Outcome, Usage};

    fn settlement(number: usize) -> Settlement {
        Settlement {
            id: AdmissionId::from(number.to_string()),
            outcome: Outcome::Completed,
            usage: Usage::default(),
            charge_to: None,
            timing: None,
        }
    }

    fn ids(batch: Option<&[Settlement]>) -> Vec<String> {
        batch.unwrap_or_default().iter().map(|entry| entry.id.to_string()).collect()
    }

    fn filled(count: usize) -> Outbox {
        let mut outbox = Outbox::default();
        assert_eq!((0..count).filter_map(|number| outbox.add(settlement(number))).count(), 0);
        outbox
    }

    #[test]
    fn an_empty_outbox_sends_nothing() {
        assert!(Outbox::default().next_batch(Millis(5)).is_none());
    }

    #[test]
    fn one_batch_is_under_way_at_a_time_and_in_order() {
        let mut outbox = filled(BATCH_MAX + 2);
        assert_eq!(ids(outbox.next_batch(Millis(0))).len(), BATCH_MAX);
        assert!(outbox.next_batch(Millis(0)).is_none());
        let _ = outbox.acknowledged();
        assert_eq!(ids(outbox.next_batch(Millis(0))), ["256", "257"]);
        let _ = outbox.acknowledged();
        assert!(!outbox.has_waiting());
    }

    #[test]
    fn a_failed_batch_is_tried_again_in_order_and_later_each_time() {
        let mut outbox = filled(2);
        let mut now = Millis(1000);
        for wait in [50, 100, 200, 400, 800, 1000, 1000] {
            assert_eq!(ids(outbox.next_batch(now)), ["0", "1"]);
            outbox.failed(now);
            assert!(outbox.next_batch(now.plus(Millis(wait - 1))).is_none());
            now = now.plus(Millis(wait));
        }
        assert_eq!(ids(outbox.next_batch(now)), ["0", "1"]);
        let _ = outbox.acknowledged();
        assert!(outbox.add(settlement(2)).is_none());
        assert_eq!(ids(outbox.next_batch(now)), ["2"]);
    }

    #[test]
    fn a_clock_that_jumps_back_delays_nothing() {
        let mut outbox = filled(1);
        outbox.next_batch(Millis(1_000_000));
        outbox.failed(Millis(1_000_000));
        assert_eq!(ids(outbox.next_batch(Millis(5))), ["0"]);
    }

    #[test]
    fn a_full_outbox_drops_its_oldest_entry() {
        let mut outbox = filled(ENTRIES_MAX);
        assert!(outbox.add(settlement(ENTRIES_MAX)).is_some());
        assert_eq!(ids(outbox.next_batch(Millis(0))).first().map(String::as_str), Some("1"));
        assert!(outbox.add(settlement(ENTRIES_MAX + 1)).is_some());
        outbox.failed(Millis(0));
        assert_eq!(outbox.waiting.len(), ENTRIES_MAX);
    }
}
