//! What all calls of one configuration share in one Envoy worker: a VM is single-threaded.

mod health;

use crate::caller::Digest;
use crate::holdings::{Holdings, Limits};
use crate::mail::Mail;
use crate::source::Source;
use crate::verified::Verified;
pub(crate) use health::Health;
use sluice_policy::units::{AdmissionId, Millis, TenantId};
use sluice_policy::wire::Settlement;
use std::cell::RefCell;
use std::rc::Rc;

#[derive(Debug)]
pub(crate) struct Worker {
    /// Shared with the other configurations of this VM that reach the same service. Borrowed for pure calls only.
    pub(crate) mail: Rc<RefCell<Mail>>,
    pub(crate) verified: Verified,
    pub(crate) counters: Counters,
    /// What Envoy holds for this worker's calls. Every call takes its own off again.
    pub(crate) holdings: Holdings,
    /// Where the request at hand comes from. Asked for only if its caller is not known, as it costs a microsecond.
    pub(crate) locate: fn() -> Source,
    /// Admissions and settlements fail apart from each other (one may time out while the other is answered), so
    /// each has its own word in the log; that of settlements is the mail's.
    pub(crate) admissions: Health,
    bell: Bell,
}

/// Whether the root knows of the latest settlements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bell {
    Silent,
    /// There are some of which it does not know.
    Due,
    Rang,
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
    /// Calls of strangers that were refused for want of room.
    pub(crate) strangers_refused: u64,
}

impl Worker {
    pub(crate) fn new(limits: Limits, mail: Rc<RefCell<Mail>>, locate: fn() -> Source) -> Self {
        Self {
            mail,
            verified: Verified::default(),
            counters: Counters::default(),
            holdings: Holdings::new(limits),
            locate,
            admissions: Health::new(
                "the quota service does not admit: closed routes refuse, open ones pass keys verified lately",
                "the quota service admits again",
            ),
            bell: Bell::Silent,
        }
    }

    /// The service has said whose key this is.
    pub(crate) fn belongs(&mut self, key: Digest, tenant: &TenantId, now: Millis) {
        self.verified.belongs(key, tenant, now);
        self.holdings.verified(key, tenant);
    }

    pub(crate) fn mint(&mut self) -> AdmissionId {
        self.mail.borrow_mut().mint()
    }

    /// Nobody answers for this id any more: the service has refused it.
    pub(crate) fn is_over(&mut self, id: &AdmissionId) {
        self.mail.borrow_mut().is_over(id);
    }

    /// A settlement that must reach the service.
    pub(crate) fn settle(&mut self, settlement: Settlement) {
        if self.bell == Bell::Silent {
            self.bell = Bell::Due;
        }
        self.counters.settlements_dropped += u64::from(self.mail.borrow_mut().settle(settlement));
    }

    /// Whether the root is to be woken, once for all that it will send then.
    pub(crate) fn must_ring(&mut self) -> bool {
        let is_due = self.bell == Bell::Due;
        if is_due {
            self.bell = Bell::Rang;
        }
        is_due
    }

    /// The root is awake, and sends what there is.
    pub(crate) fn is_awake(&mut self) {
        self.bell = Bell::Silent;
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
        Worker::new(limits.unwrap().holdings, Rc::new(RefCell::new(Mail::new())), || Source::UNKNOWN)
    }

    fn end(worker: &mut Worker) {
        let (id, outcome, usage) = (worker.mint(), Outcome::Completed, Usage::default());
        worker.settle(Settlement { id, outcome, usage, charge_to: None, timing: None, abandoned: false });
    }

    /// The root is awake, and sends a batch unless too many are under way.
    fn sends(worker: &mut Worker) -> bool {
        worker.is_awake();
        let mut mail = worker.mail.borrow_mut();
        mail.is_to_send_at_once() && mail.next_batch(Millis(1)).is_some()
    }

    #[test]
    fn calls_that_end_before_the_root_is_awake_wake_it_once_and_the_next_one_again() {
        let mut worker = worker();
        assert!(!worker.must_ring(), "nothing has ended");
        (0..3).for_each(|_| end(&mut worker));
        assert_eq!([worker.must_ring(), worker.must_ring()], [true, false]);
        end(&mut worker);
        assert!(!worker.must_ring(), "the root will find it");
        assert!(sends(&mut worker));
        assert!(!sends(&mut worker), "all four are under way");
        end(&mut worker);
        assert!(worker.must_ring());
    }

    #[test]
    fn beside_many_batches_under_way_the_next_one_waits_for_the_tick() {
        let mut worker = worker();
        let mut sent = 0;
        loop {
            end(&mut worker);
            assert!(worker.must_ring());
            if !sends(&mut worker) {
                break;
            }
            sent += 1;
        }
        assert_eq!(sent, 512);
        let mut mail = worker.mail.borrow_mut();
        assert!(mail.has_mail(Millis(1)) && mail.next_batch(Millis(1)).is_some(), "which has room of its own");
    }
}
