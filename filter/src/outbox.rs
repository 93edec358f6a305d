//! What must reach the quota service: settlements, kept until they are acknowledged.
//!
//! The service hears of a batch at once, and acknowledges it when what it says would survive the service: that takes up to
//! a few ticks of its ledger. A batch leaves when a call has ended, with what else has by then. So many batches are under way
//! at a time, and a call that ends frees its slot without waiting for those before it. A batch that is not acknowledged is sent again; every entry is idempotent there.

use sluice_policy::units::Millis;
use sluice_policy::wire::Settlement;
use std::collections::{BTreeMap, VecDeque};

/// About 10 MB, and 45 MB with the longest names (I7); at 500 calls a second this is two minutes without the service.
const ENTRIES_MAX: usize = 65_536;
const BATCH_MAX: usize = 256;
/// Five seconds of a batch a tick, which is as long as one may be under way, beside those that are sent at once.
const UNDER_WAY_MAX: usize = 1_024;
/// While so many are under way, a call that ends waits for the tick.
const AT_ONCE_MAX: usize = 512;
/// Twice as long as a callout may take: whoever sent the batch is gone.
const UNHEARD_AFTER: Millis = Millis(10_000);
const BACKOFF_FIRST: Millis = Millis(50);
const BACKOFF_MAX: Millis = Millis(1000);

/// Names a batch under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BatchNumber(u64);

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Acknowledged,
    /// The service has it, and does not vouch for it yet.
    Postponed,
    /// Nobody answered.
    Lost,
    /// Who sent it is gone, so that nobody hears the answer.
    Unheard,
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<Settlement>,
    /// What the service has heard and not acknowledged. It hurries nobody, so what is new goes first.
    postponed: VecDeque<Settlement>,
    postponed_at: Millis,
    /// With when each was sent.
    under_way: BTreeMap<BatchNumber, (Millis, Vec<Settlement>)>,
    under_way_entries: usize,
    latest: u64,
    /// Zero while all goes well.
    backoff: Millis,
    failed_at: Millis,
}

impl Outbox {
    /// Adds a settlement; returns the oldest one if that had to be dropped for it.
    #[must_use]
    pub(crate) fn add(&mut self, settlement: Settlement) -> Option<Settlement> {
        self.waiting.push_back(settlement);
        let entries = self.waiting.len() + self.postponed.len() + self.under_way_entries;
        if entries <= ENTRIES_MAX {
            return None;
        }
        self.postponed.pop_front().or_else(|| self.waiting.pop_front())
    }

    /// The next batch, if there is something to send and it is time; an empty one if it is to carry something else. The
    /// caller reports its fate by [`Outbox::ended`].
    pub(crate) fn next_batch(&mut self, now: Millis, or_empty: bool) -> Option<(BatchNumber, &[Settlement])> {
        if !has_passed(self.failed_at, self.backoff, now) || self.under_way.len() >= UNDER_WAY_MAX {
            return None;
        }
        let is_time_again = has_passed(self.postponed_at, BACKOFF_MAX, now);
        let from = match (self.waiting.is_empty(), is_time_again) {
            (false, _) => &mut self.waiting,
            (true, true) if !self.postponed.is_empty() => &mut self.postponed,
            (true, _) if or_empty => &mut self.waiting,
            (true, _) => return None,
        };
        let count = from.len().min(BATCH_MAX);
        let batch: Vec<Settlement> = from.drain(..count).collect();
        self.latest += 1;
        self.under_way_entries += batch.len();
        let (_, batch) = self.under_way.entry(BatchNumber(self.latest)).or_insert((now, batch));
        Some((BatchNumber(self.latest), batch))
    }

    /// A batch is not under way any more. Gives the settlements that are acknowledged by it.
    pub(crate) fn ended(&mut self, number: BatchNumber, fate: Fate, now: Millis) -> Vec<Settlement> {
        let Some((_, batch)) = self.under_way.remove(&number) else { return Vec::new() };
        self.under_way_entries -= batch.len();
        match fate {
            Fate::Acknowledged => {
                self.backoff = Millis::ZERO;
                return batch;
            }
            Fate::Postponed => {
                self.backoff = Millis::ZERO;
                self.postponed.extend(batch);
                self.postponed_at = now;
            }
            Fate::Unheard => self.send_again(batch),
            Fate::Lost => {
                self.send_again(batch);
                // Of several that were lost together the first tells it.
                if has_passed(self.failed_at, self.backoff, now) {
                    self.backoff = Millis(self.backoff.0.saturating_mul(2)).clamp(BACKOFF_FIRST, BACKOFF_MAX);
                    self.failed_at = now;
                }
            }
        }
        Vec::new()
    }

    /// The oldest batch under way, where its answer cannot come any more.
    pub(crate) fn unheard(&self, now: Millis) -> Option<BatchNumber> {
        let (number, (sent, _)) = self.under_way.first_key_value()?;
        has_passed(*sent, UNHEARD_AFTER, now).then_some(*number)
    }

    fn send_again(&mut self, batch: Vec<Settlement>) {
        for settlement in batch.into_iter().rev() {
            self.waiting.push_front(settlement);
        }
    }

    /// Takes out all that is not acknowledged.
    pub(crate) fn take_all(&mut self) -> Vec<Settlement> {
        let under_way = std::mem::take(&mut self.under_way).into_values().flat_map(|(_, batch)| batch);
        let all = under_way.chain(self.waiting.drain(..)).chain(self.postponed.drain(..)).collect();
        self.under_way_entries = 0;
        all
    }

    /// Whether nothing is kept.
    pub(crate) fn is_empty(&self) -> bool {
        !self.has_waiting() && self.under_way.is_empty()
    }

    /// Whether there is anything that the service has not been sent.
    pub(crate) fn has_new(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether few enough batches are under way that one may be sent for a single call.
    pub(crate) fn is_quick(&self) -> bool {
        self.under_way.len() < AT_ONCE_MAX
    }

    /// Whether there is anything that a batch could take.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty() || !self.postponed.is_empty()
    }
}

/// A clock that went backwards does not make anyone wait.
fn has_passed(since: Millis, wait: Millis, now: Millis) -> bool {
    now < since || now.since(since) >= wait
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
            abandoned: false,
        }
    }

    /// The number of the next batch, and the ids in it.
    fn next(outbox: &mut Outbox, now: u64) -> Option<(BatchNumber, Vec<String>)> {
        let (number, batch) = outbox.next_batch(Millis(now), false)?;
        Some((number, batch.iter().map(|entry| entry.id.to_string()).collect()))
    }

    fn filled(count: usize) -> Outbox {
        let mut outbox = Outbox::default();
        assert_eq!((0..count).filter_map(|number| outbox.add(settlement(number))).count(), 0);
        outbox
    }

    #[test]
    fn an_empty_outbox_sends_nothing() {
        assert!(Outbox::default().next_batch(Millis(5), false).is_none());
        let mut outbox = Outbox::default();
        let (number, batch) = outbox.next_batch(Millis(5), true).unwrap();
        assert!(batch.is_empty(), "unless it is to carry something else");
        assert_eq!(outbox.ended(number, Fate::Acknowledged, Millis(5)), []);
    }

    #[test]
    fn a_batch_does_not_wait_for_the_one_before() {
        let mut outbox = filled(BATCH_MAX + 2);
        let (first, ids) = next(&mut outbox, 0).unwrap();
        assert_eq!(ids.len(), BATCH_MAX);
        let (second, ids) = next(&mut outbox, 0).unwrap();
        assert_eq!(ids, ["256", "257"]);
        let _ = outbox.ended(second, Fate::Acknowledged, Millis(0));
        let _ = outbox.ended(first, Fate::Acknowledged, Millis(0));
        assert!(!outbox.has_waiting());
        assert_eq!(outbox.under_way_entries, 0);
    }

    #[test]
    fn a_lost_batch_is_tried_again_in_order_and_later_each_time() {
        let mut outbox = filled(2);
        let mut now = 1000;
        for wait in [50, 100, 200, 400, 800, 1000, 1000] {
            let (number, ids) = next(&mut outbox, now).unwrap();
            assert_eq!(ids, ["0", "1"]);
            let _ = outbox.ended(number, Fate::Lost, Millis(now));
            assert!(next(&mut outbox, now + wait - 1).is_none());
            now += wait;
        }
        let (number, _) = next(&mut outbox, now).unwrap();
        let _ = outbox.ended(number, Fate::Acknowledged, Millis(now));
        assert!(outbox.add(settlement(2)).is_none());
        assert_eq!(next(&mut outbox, now).unwrap().1, ["2"]);
    }

    #[test]
    fn batches_that_are_lost_together_delay_the_next_once() {
        let mut outbox = filled(2 * BATCH_MAX);
        let batches = [next(&mut outbox, 0).unwrap().0, next(&mut outbox, 0).unwrap().0];
        for number in batches {
            let _ = outbox.ended(number, Fate::Lost, Millis(10));
        }
        assert!(next(&mut outbox, 59).is_none());
        assert!(next(&mut outbox, 60).is_some());
    }

    #[test]
    fn a_batch_whose_answer_never_came_is_known_after_ten_seconds() {
        let mut outbox = filled(1);
        let (number, _) = next(&mut outbox, 1_000).unwrap();
        assert_eq!((outbox.unheard(Millis(10_999)), outbox.unheard(Millis(11_000))), (None, Some(number)));
        let _ = outbox.ended(number, Fate::Unheard, Millis(11_000));
        assert_eq!(next(&mut outbox, 11_000).unwrap().1, ["0"]);
    }

    #[test]
    fn what_is_postponed_delays_nothing_that_is_new() {
        let mut outbox = filled(1);
        let (number, _) = next(&mut outbox, 0).unwrap();
        let _ = outbox.ended(number, Fate::Postponed, Millis(3000));
        assert!(outbox.add(settlement(1)).is_none());
        assert_eq!(next(&mut outbox, 3000).unwrap().1, ["1"]);
        assert!(next(&mut outbox, 3999).is_none());
        assert_eq!(next(&mut outbox, 4000).unwrap().1, ["0"]);
    }

    #[test]
    fn a_clock_that_jumps_back_delays_nothing() {
        let mut outbox = filled(1);
        let (number, _) = next(&mut outbox, 1_000_000).unwrap();
        let _ = outbox.ended(number, Fate::Lost, Millis(1_000_000));
        assert_eq!(next(&mut outbox, 5).unwrap().1, ["0"]);
    }

    #[test]
    fn a_service_that_hangs_is_not_sent_ever_more_batches() {
        let mut outbox = Outbox::default();
        for number in 0..UNDER_WAY_MAX {
            assert!(outbox.add(settlement(number)).is_none());
            assert!(next(&mut outbox, 0).is_some());
        }
        assert!(outbox.add(settlement(UNDER_WAY_MAX)).is_none());
        assert!(next(&mut outbox, 0).is_none());
    }

    #[test]
    fn a_full_outbox_drops_its_oldest_entry_and_first_what_the_service_has_heard() {
        let mut outbox = filled(ENTRIES_MAX);
        assert!(outbox.add(settlement(ENTRIES_MAX)).is_some());
        let (number, ids) = next(&mut outbox, 0).unwrap();
        assert_eq!(ids.first().map(String::as_str), Some("1"));
        assert!(outbox.add(settlement(ENTRIES_MAX + 1)).is_some());
        let _ = outbox.ended(number, Fate::Postponed, Millis(0));
        assert!(outbox.add(settlement(ENTRIES_MAX + 2)).is_some());
        assert_eq!(outbox.postponed.len(), BATCH_MAX - 1);
        assert_eq!(outbox.waiting.len() + outbox.postponed.len(), ENTRIES_MAX);
    }
}
