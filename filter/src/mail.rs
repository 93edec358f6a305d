//! What one instance of the filter owes the quota service: the ids that it answers for, and the ends of calls.
//!
//! An instance is a VM of one worker as far as it reaches one service. It outlives the configuration that it began with:
//! Envoy starts every configuration with a root context of its own, in the same VM where its code is the same, and ends the
//! old one with its last stream. What that had not sent the others send, as their own.

use crate::ids::IdMint;
use crate::outbox::{BatchNumber, Fate, Outbox};
use crate::worker::Health;
use log::warn;
use serde::{Deserialize, Serialize};
use sluice_policy::units::{AdmissionId, Millis};
use sluice_policy::wire::{EndedWorker, LiveIds, Settlement, SettlementBatch, WIRE_VERSION};

/// How often the service is told which calls live.
const REPORT_EVERY: Millis = Millis(5_000);
/// Of instances that have ended, so that those of a year do not add up where the service is away.
const ENDED_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Mail {
    ids: IdMint,
    outbox: Outbox,
    settlements: Health,
    has_dropped: bool,
    /// When the live ids were told last, and which of them was the latest then.
    reported: (Millis, u64),
    /// Instances whose end the service must hear of, after what they left to this one.
    ended: Vec<EndedWorker>,
    /// The batch that tells of the first so many of them.
    telling: Option<(BatchNumber, usize)>,
}

/// What an instance leaves to the others of its Envoy when its VM ends.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Legacy {
    /// Of the service.
    pub(crate) cluster: String,
    settlements: Vec<Settlement>,
    ended: Vec<EndedWorker>,
}

impl Mail {
    pub(crate) fn new() -> Self {
        Self {
            ids: IdMint::new(),
            outbox: Outbox::default(),
            settlements: Health::new(
                "the quota service does not acknowledge settlements: they are kept and sent again",
                "the quota service acknowledges settlements again",
            ),
            has_dropped: false,
            reported: (Millis::ZERO, 0),
            ended: Vec::new(),
            telling: None,
        }
    }

    pub(crate) fn incarnation(&self) -> &str {
        self.ids.incarnation()
    }

    pub(crate) fn mint(&mut self) -> AdmissionId {
        self.ids.mint()
    }

    /// Nobody answers for this id any more: the service has refused it, or has its settlement.
    pub(crate) fn is_over(&mut self, id: &AdmissionId) {
        self.ids.is_over(id);
    }

    pub(crate) fn has_minted(&self) -> bool {
        self.ids.live().minted > 0
    }

    /// Adds a settlement; tells whether another one was lost for it.
    pub(crate) fn settle(&mut self, settlement: Settlement) -> bool {
        let Some(lost) = self.outbox.add(settlement) else { return false };
        // The next report says that it has ended.
        self.ids.is_over(&lost.id);
        if !self.has_dropped {
            warn!(
                "the outbox is full: the oldest settlements are lost, and their calls are charged what they reserved"
            );
        }
        self.has_dropped = true;
        true
    }

    /// Whether settlements go out before the next tick: not where so many batches are under way that one for each call would
    /// leave no room for those of the ticks.
    pub(crate) fn is_to_send_at_once(&self) -> bool {
        self.outbox.has_waiting() && self.outbox.is_quick()
    }

    /// Whether there is anything to send, so that an idle tick costs nothing.
    pub(crate) fn has_mail(&self, now: Millis) -> bool {
        self.outbox.has_waiting() || self.owes_report(now) || self.owes_word() || self.outbox.unheard(now).is_some()
    }

    /// Nothing is owed, and nothing will be where no new call comes.
    pub(crate) fn is_empty(&self) -> bool {
        self.outbox.is_empty() && self.ended.is_empty() && self.ids.live().numbers.is_empty()
    }

    /// The body of the next settlement call, when one is due.
    pub(crate) fn next_batch(&mut self, now: Millis) -> Option<(BatchNumber, Vec<u8>)> {
        while let Some(number) = self.outbox.unheard(now) {
            self.batch_ended(number, Fate::Unheard, now);
        }
        let (owes_report, owes_word) = (self.owes_report(now), self.owes_word());
        let (number, settlements) = self.outbox.next_batch(now, owes_report || owes_word)?;
        let settlements = settlements.to_vec();
        let live = owes_report.then(|| {
            self.reported = (now, self.ids.live().minted);
            self.ids.live().clone()
        });
        // What the ended ones have left goes before, or with it.
        let ended = if owes_word && !self.outbox.has_new() { self.ended.clone() } else { Vec::new() };
        if !ended.is_empty() {
            self.telling = Some((number, ended.len()));
        }
        let worker = self.ids.incarnation().to_owned();
        let batch = SettlementBatch { version: WIRE_VERSION, worker, settlements, live, ended };
        Some((number, serde_json::to_vec(&batch).unwrap_or_default()))
    }

    /// A batch is not under way any more.
    pub(crate) fn batch_ended(&mut self, number: BatchNumber, fate: Fate, now: Millis) {
        for settled in self.outbox.ended(number, fate, now) {
            self.ids.is_over(&settled.id);
        }
        if let Some((_, told)) = self.telling.take_if(|(telling, _)| *telling == number)
            && matches!(fate, Fate::Acknowledged | Fate::Postponed)
        {
            // What it does is done at once, and a service that was killed since knows none of their calls.
            self.ended.drain(..told.min(self.ended.len()));
        }
        match fate {
            Fate::Acknowledged => self.settlements.answered(),
            Fate::Postponed | Fate::Lost => self.settlements.failed(),
            Fate::Unheard => {}
        }
        self.has_dropped &= self.outbox.has_waiting();
    }

    /// Another instance has ended.
    pub(crate) fn has_ended(&mut self, ended: EndedWorker) {
        if self.ended.len() < ENDED_MAX {
            self.ended.push(ended);
        }
    }

    /// The VM ends: gives what is owed, none of it under way, for others to send.
    pub(crate) fn leave(&mut self, cluster: &str) -> Option<Legacy> {
        let mut ended = std::mem::take(&mut self.ended);
        if self.has_minted() {
            let (worker, seal) = (self.ids.incarnation().to_owned(), self.ids.live().seal.clone());
            ended.push(EndedWorker { worker, seal, silent_ms: None });
        }
        let settlements = self.outbox.take_all();
        let is_some = !settlements.is_empty() || !ended.is_empty();
        is_some.then(|| Legacy { cluster: cluster.to_owned(), settlements, ended })
    }

    /// Takes over what another instance has left; gives how many settlements were lost for want of room.
    pub(crate) fn inherit(&mut self, legacy: Legacy) -> u64 {
        let lost = legacy.settlements.into_iter().map(|settlement| u64::from(self.settle(settlement))).sum();
        legacy.ended.into_iter().for_each(|ended| self.has_ended(ended));
        lost
    }

    /// Whether the service is to be told which calls live: now and then, as long as there are any or have been.
    fn owes_report(&self, now: Millis) -> bool {
        let (at, minted) = self.reported;
        let is_time = now < at || now.since(at) >= REPORT_EVERY;
        let live: &LiveIds = self.ids.live();
        is_time && (live.minted != minted || !live.numbers.is_empty())
    }

    fn owes_word(&self) -> bool {
        !self.ended.is_empty() && self.telling.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use sluice_policy::wire::{Outcome, Usage};

    fn end(mail: &mut Mail) -> AdmissionId {
        let id = mail.mint();
        let (outcome, usage) = (Outcome::Completed, Usage::default());
        assert!(!mail.settle(Settlement {
            id: id.clone(),
            outcome,
            usage,
            charge_to: None,
            timing: None,
            abandoned: false
        }));
        id
    }

    fn sent(mail: &mut Mail, now: u64) -> Option<(BatchNumber, SettlementBatch)> {
        let (number, body) = mail.next_batch(Millis(now))?;
        Some((number, serde_json::from_slice(&body).unwrap()))
    }

    fn ids(batch: &SettlementBatch) -> Vec<&AdmissionId> {
        batch.settlements.iter().map(|settlement| &settlement.id).collect()
    }

    #[test]
    fn a_batch_whose_answer_nobody_hears_is_sent_again_at_once_by_whoever_is_left() {
        let mut mail = Mail::new();
        let id = end(&mut mail);
        let (number, _) = sent(&mut mail, 1).unwrap();
        mail.batch_ended(number, Fate::Unheard, Millis(1));
        let (number, batch) = sent(&mut mail, 1).unwrap();
        assert_eq!(ids(&batch), [&id]);
        assert!(!mail.is_empty(), "it is under way");
        mail.batch_ended(number, Fate::Acknowledged, Millis(2));
        assert!(mail.is_empty());
    }

    #[test]
    fn what_an_instance_leaves_another_one_sends_and_the_end_not_before_it() {
        let (mut old, mut new) = (Mail::new(), Mail::new());
        let under_way = end(&mut old);
        sent(&mut old, 1).unwrap();
        let others: Vec<AdmissionId> = (0..300).map(|_| end(&mut old)).collect();
        let legacy = serde_json::to_string(&old.leave("sluice").unwrap()).unwrap();
        assert!(old.leave("sluice").is_some_and(|again| again.settlements.is_empty()));
        assert_eq!(new.inherit(serde_json::from_str(&legacy).unwrap()), 0);

        let (_, first) = sent(&mut new, 5).unwrap();
        assert_eq!((ids(&first)[0], first.settlements.len(), first.ended.len()), (&under_way, 256, 0));
        let (number, second) = sent(&mut new, 5).unwrap();
        assert_eq!(second.settlements.len(), 45);
        assert_eq!(ids(&second).last(), others.iter().collect::<Vec<_>>().last());
        let [ended] = second.ended.as_slice() else { panic!("{second:?}") };
        assert_eq!((ended.worker.as_str(), ended.silent_ms), (old.incarnation(), None));
        assert!(ended.seal.is_some() && second.worker == new.incarnation());
        // Lost, it is told again; heard, it is not.
        new.batch_ended(number, Fate::Lost, Millis(10));
        let (number, again) = sent(&mut new, 1_000).unwrap();
        assert_eq!((again.settlements.len(), again.ended.len()), (45, 1));
        new.batch_ended(number, Fate::Postponed, Millis(1_000));
        let (_, last) = sent(&mut new, 3_000).unwrap();
        assert_eq!(last.ended, []);
    }

    #[test]
    fn an_instance_that_served_nobody_leaves_nothing() {
        assert!(Mail::new().leave("sluice").is_none());
    }

    #[test]
    fn the_last_release_s_service_reads_a_batch_without_an_end_as_ever() {
        let mut mail = Mail::new();
        end(&mut mail);
        let (_, body) = mail.next_batch(Millis(1)).unwrap();
        let batch: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(batch.get("ended"), None);
    }
}
