//! What all calls of one Envoy worker share: a VM is single-threaded and its workers share nothing.

mod health;

use crate::caller::Digest;
use crate::holdings::{Holdings, Limits};
use crate::ids::IdMint;
use crate::outbox::{BatchNumber, Fate, Outbox};
use crate::source::Source;
use crate::verified::Verified;
use health::Health;
use log::warn;
use sluice_policy::units::{Millis, TenantId};
use sluice_policy::wire::{Settlement, SettlementBatch, WIRE_VERSION};

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) ids: IdMint,
    pub(crate) verified: Verified,
    pub(crate) counters: Counters,
    /// What Envoy holds for this worker's calls. Every call takes its own off again.
    pub(crate) holdings: Holdings,
    /// Where the request at hand comes from. Asked for only if its caller is not known, as it costs a microsecond.
    pub(crate) locate: fn() -> Source,
    /// Admissions and settlements fail apart from each other (one may time out while the other is answered), so
    /// each has its own word in the log.
    pub(crate) admissions: Health,
    settlements: Health,
    outbox: Outbox,
    bell: Bell,
    has_dropped: bool,
    /// When the live ids were told last, and which of them was the latest then.
    reported: (Millis, u64),
}

/// Whether the root knows of the latest settlements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bell {
    Silent,
    /// There are some of which it does not know.
    Due,
    Rang,
}

/// How often the service is told which calls live.
const REPORT_EVERY: Millis = Millis(5_000);

/// Events since they were last taken to Envoy's metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Calls that passed an open route while the service was away.
    pub(crate) failed_open: u64,
    /// Calls refused because the service was away.
    pub(crate) failed_closed: u64,
    /// Settlements that were lost because the outbox was full.
    pub(crate) settlements_dropped: u64,
    /// Replies whose usage was missing or could not be true.
    pub(crate) usage_estimated: u64,
    /// Calls of strangers that were refused for want of room.
    pub(crate) strangers_refused: u64,
}

impl Worker {
    pub(crate) fn new(limits: Limits, locate: fn() -> Source) -> Self {
        Self {
            ids: IdMint::new(),
            verified: Verified::default(),
            counters: Counters::default(),
            holdings: Holdings::new(limits),
            locate,
            admissions: Health::new(
                "the quota service does not admit: closed routes refuse, open ones pass keys verified lately",
                "the quota service admits again",
            ),
            settlements: Health::new(
                "the quota service does not acknowledge settlements: they are kept and sent again",
                "the quota service acknowledges settlements again",
            ),
            outbox: Outbox::default(),
            bell: Bell::Silent,
            has_dropped: false,
            reported: (Millis::ZERO, 0),
        }
    }

    /// The service has said whose key this is.
    pub(crate) fn belongs(&mut self, key: Digest, tenant: &TenantId, now: Millis) {
        self.verified.belongs(key, tenant, now);
        self.holdings.verified(key, tenant);
    }

    /// A settlement that must reach the service.
    pub(crate) fn settle(&mut self, settlement: Settlement) {
        if self.bell == Bell::Silent {
            self.bell = Bell::Due;
        }
        if let Some(lost) = self.outbox.add(settlement) {
            self.counters.settlements_dropped += 1;
            // The next report says that it has ended.
            self.ids.is_over(&lost.id);
            if !self.has_dropped {
                warn!(
                    "the outbox is full: the oldest settlements are lost, and their calls are charged what they reserved"
                );
            }
            self.has_dropped = true;
        }
    }

    /// Whether the root is to be woken, once for all that it will send then.
    pub(crate) fn must_ring(&mut self) -> bool {
        let is_due = self.bell == Bell::Due;
        if is_due {
            self.bell = Bell::Rang;
        }
        is_due
    }

    /// Whether settlements go out before the next tick: not where so many batches are under way that one for each call would
    /// leave no room for those of the ticks.
    pub(crate) fn is_to_send_at_once(&mut self) -> bool {
        self.bell = Bell::Silent;
        self.outbox.has_waiting() && self.outbox.is_quick()
    }

    /// Whether there is anything to send, so that an idle tick costs nothing.
    pub(crate) fn has_mail(&self, now: Millis) -> bool {
        self.outbox.has_waiting() || self.owes_report(now)
    }

    /// The body of the next settlement call, when one is due.
    pub(crate) fn next_batch(&mut self, now: Millis) -> Option<(BatchNumber, Vec<u8>)> {
        self.bell = Bell::Silent;
        let owes_report = self.owes_report(now);
        let (number, settlements) = self.outbox.next_batch(now, owes_report)?;
        let settlements = settlements.to_vec();
        let live = owes_report.then(|| {
            self.reported = (now, self.ids.live().minted);
            self.ids.live().clone()
        });
        let worker = self.ids.incarnation().to_owned();
        let batch = SettlementBatch { version: WIRE_VERSION, worker, settlements, live };
        Some((number, serde_json::to_vec(&batch).unwrap_or_default()))
    }

    /// Whether the service is to be told which calls live: now and then, as long as there are any or have been.
    fn owes_report(&self, now: Millis) -> bool {
        let (at, minted) = self.reported;
        let is_time = now < at || now.since(at) >= REPORT_EVERY;
        let live = self.ids.live();
        is_time && (live.minted != minted || !live.numbers.is_empty())
    }

    /// A batch is not under way any more.
    pub(crate) fn batch_ended(&mut self, number: BatchNumber, fate: Fate, now: Millis) {
        for settled in self.outbox.ended(number, fate, now) {
            self.ids.is_over(&settled.id);
        }
        match fate {
            Fate::Acknowledged => self.settlements.answered(),
            Fate::Postponed | Fate::Lost => self.settlements.failed(),
        }
        self.has_dropped &= self.outbox.has_waiting();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_policy::wire::{Outcome, Usage};

    fn worker() -> Worker {
        let limits = crate::config::Config::parse(
            br#"{"version": 1, "mode": "body", "service": {"cluster": "sluice"}, "routes": [{"path": "/v1/embeddings", "dialect": "openai_embeddings"}]}"#,
        );
        Worker::new(limits.unwrap().holdings, || Source::UNKNOWN)
    }

    fn end(worker: &mut Worker) {
        let (id, outcome, usage) = (worker.ids.mint(), Outcome::Completed, Usage::default());
        worker.settle(Settlement { id, outcome, usage, charge_to: None, timing: None, abandoned: false });
    }

    #[test]
    fn calls_that_end_before_the_root_is_awake_wake_it_once_and_the_next_one_again() {
        let mut worker = worker();
        assert!(!worker.must_ring(), "nothing has ended");
        (0..3).for_each(|_| end(&mut worker));
        assert_eq!([worker.must_ring(), worker.must_ring()], [true, false]);
        end(&mut worker);
        assert!(!worker.must_ring(), "the root will find it");
        assert!(worker.is_to_send_at_once());
        assert!(worker.next_batch(Millis(1)).is_some());
        assert!(!worker.is_to_send_at_once(), "all four are under way");
        end(&mut worker);
        assert!(worker.must_ring());
    }

    #[test]
    fn what_the_tick_has_sent_needs_no_bell() {
        let mut worker = worker();
        end(&mut worker);
        assert!(worker.next_batch(Millis(1)).is_some());
        assert!(!worker.must_ring());
    }

    #[test]
    fn beside_many_batches_under_way_the_next_one_waits_for_the_tick() {
        let mut worker = worker();
        let mut sent = 0;
        loop {
            end(&mut worker);
            assert!(worker.must_ring());
            if !worker.is_to_send_at_once() {
                break;
            }
            sent += usize::from(worker.next_batch(Millis(1)).is_some());
        }
        assert_eq!(sent, 512);
        assert!(worker.has_mail(Millis(1)) && worker.next_batch(Millis(1)).is_some(), "which has room of its own");
    }
}
