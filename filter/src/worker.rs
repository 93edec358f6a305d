//! What all calls of one Envoy worker share: a VM is single-threaded and its workers share nothing.

mod health;

use crate::ids::IdMint;
use crate::outbox::Outbox;
use crate::verified::Verified;
use health::Health;
use log::warn;
use sluice_policy::units::Millis;
use sluice_policy::wire::{Settlement, SettlementBatch, WIRE_VERSION};

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) ids: IdMint,
    pub(crate) verified: Verified,
    pub(crate) counters: Counters,
    /// Bytes of bodies that Envoy holds for this worker's calls. Every call takes its own off again.
    pub(crate) paused_bytes: u64,
    /// Admissions and settlements fail apart from each other (one may time out while the other is answered), so
    /// each has its own word in the log.
    pub(crate) admissions: Health,
    settlements: Health,
    outbox: Outbox,
    has_dropped: bool,
}

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
}

impl Worker {
    pub(crate) fn new() -> Self {
        Self {
            ids: IdMint::new(),
            verified: Verified::default(),
            counters: Counters::default(),
            paused_bytes: 0,
            admissions: Health::new(
                "the quota service does not admit: closed routes refuse, open ones pass keys verified lately",
                "the quota service admits again",
            ),
            settlements: Health::new(
                "the quota service does not take settlements: they are kept and sent again",
                "the quota service takes settlements again",
            ),
            outbox: Outbox::default(),
            has_dropped: false,
        }
    }

    /// A settlement that must reach the service.
    pub(crate) fn settle(&mut self, settlement: Settlement) {
        if self.outbox.add(settlement) {
            self.counters.settlements_dropped += 1;
            if !self.has_dropped {
                warn!("the outbox is full: the oldest settlements are lost, and their slots come free only by time");
            }
            self.has_dropped = true;
        }
    }

    /// Whether there is anything to send, so that an idle tick costs nothing.
    pub(crate) fn has_mail(&self) -> bool {
        self.outbox.has_waiting()
    }

    /// The body of the next settlement call, when one is due.
    pub(crate) fn next_batch(&mut self, now: Millis) -> Option<Vec<u8>> {
        let settlements = self.outbox.next_batch(now)?.to_vec();
        let worker = self.ids.incarnation().to_owned();
        let batch = SettlementBatch { version: WIRE_VERSION, worker, settlements };
        Some(serde_json::to_vec(&batch).unwrap_or_default())
    }

    /// The batch under way was taken, or was not.
    pub(crate) fn batch_ended(&mut self, taken: bool, now: Millis) {
        if taken {
            self.outbox.acknowledged();
            self.settlements.answered();
        } else {
            self.outbox.failed(now);
            self.settlements.failed();
        }
        self.has_dropped &= self.outbox.has_waiting();
    }
}
