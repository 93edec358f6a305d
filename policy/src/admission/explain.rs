//! Why a recent call was admitted, queued or refused: what the core knew when it decided.

use super::live::{Live, PoolIndex};
use super::refusals::{Limit, Refused};
use super::tenants::ModelIndex;
use crate::queue::{Branch, TenantIndex};
use crate::units::{AdmissionId, Millis, ModelName, PoolName, Priority, TenantId, Tokens};
use crate::wire::{AdmissionRequest, Outcome, Reason, Refusal, Usage};
use std::collections::VecDeque;

/// Bounds memory (I7): about 4 MB of records and texts of our own, beside 10 MB of branches.
const KEPT: u64 = 10_000;
/// Those of nobody whom we know: half a megabyte more.
const STRANGERS_KEPT: usize = 1_000;
/// What a call usually finds waiting, at most: one branch a level.
const USUAL_BRANCHES: usize = Priority::COUNT;
/// The most that is kept of what it finds, where many groups have shares.
const MOST_BRANCHES: usize = 3 * Priority::COUNT;

/// Where a newcomer would stand, or stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 1: who starts before it, if nobody else comes or goes, and itself.
    pub position: u64,
    pub estimated_wait: Millis,
    /// What waited then, and the counters that the choice goes by. The branch with the smallest counter is next.
    pub branches: Vec<Branch>,
}

/// One call as it was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Absent when nobody knows the key.
    pub tenant: Option<TenantId>,
    /// Absent unless it is a model that there is.
    pub model: Option<ModelName>,
    /// Known once a pool was found.
    pub pool: Option<PoolName>,
    pub level: Option<Priority>,
    pub reserved: Tokens,
    pub charge: Tokens,
    pub arrived: Millis,
    /// For a call that came to the queue, let in or not.
    pub queued_at: Option<Place>,
    pub fate: Fate,
}

/// What has become of a call so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Waiting,
    Running {
        since: Millis,
    },
    /// `limit`: the one that it was over, where it was one.
    Refused {
        at: Millis,
        reason: Reason,
        message: String,
        limit: Option<Limit>,
    },
    Ended {
        at: Millis,
        outcome: Outcome,
        usage: Usage,
        /// Abandoned while its model server may work on: it keeps its slot until then.
        slot_until: Option<Millis>,
    },
}

/// Where the explanation of a call is kept, while it is; never reused.
pub(super) type ExplanationKey = u64;

/// Whom a call was from and for. By index where both are known, since most explanations are never asked for.
#[derive(Clone, Debug)]
pub(super) enum Parties {
    Known {
        tenant: TenantIndex,
        model: ModelIndex,
        pool: PoolIndex,
    },
    /// As far as what the call named is configured: another name is a text of the client's own, and is not kept.
    Named {
        tenant: Option<TenantId>,
        route: Option<(ModelIndex, PoolIndex)>,
    },
}

/// One call as it is kept; the fields are those of [`Explanation`].
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) id: AdmissionId,
    pub(super) parties: Parties,
    pub(super) level: Option<Priority>,
    pub(super) reserved: Tokens,
    pub(super) charge: Tokens,
    pub(super) arrived: Millis,
    /// Position and estimated wait of a call that came to the queue, and how many of the kept branches are its.
    queued_at: Option<(u64, Millis, usize)>,
    pub(super) fate: Fate,
}

// So that the bound in bytes is what the constants say.
const _: () = assert!(size_of::<Record>() <= 256 && size_of::<Branch>() <= 32);

/// How far the decision about a call has come, for the explanation of a refusal.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) known: Option<(TenantIndex, ModelIndex, PoolIndex)>,
    pub(super) level: Option<Priority>,
    pub(super) reserved: Tokens,
    pub(super) charge: Tokens,
}

/// A position, an estimated wait, and what waited then.
type PlaceSeen<'a> = (u64, Millis, &'a [Branch]);

/// The most recent calls, found by key while they live, and by a walk through all when somebody asks.
///
/// Invariant: the record of a key is at key % [`KEPT`], and `branches` are those of the records, in the records' order.
/// Both are written in a circle, which costs the memory behind the processor far less than a list of its own for each
/// call, and is there from the start: one that grew would copy megabytes inside a decision.
#[derive(Debug)]
pub(super) struct Explanations {
    records: Vec<Record>,
    branches: VecDeque<Branch>,
    /// The key of the next record.
    next: ExplanationKey,
    /// Calls of nobody whom we know, apart: a flood of them must not push out what is kept of others.
    strangers: VecDeque<Record>,
}

impl Default for Explanations {
    fn default() -> Self {
        let kept = usize::try_from(KEPT).unwrap_or(usize::MAX);
        let branches = VecDeque::with_capacity(kept * USUAL_BRANCHES);
        Self { records: Vec::with_capacity(kept), branches, next: 0, strangers: VecDeque::new() }
    }
}

impl Explanations {
    /// The latest record of an id, and where it stood.
    pub(super) fn get(&self, id: &AdmissionId) -> Option<(&Record, Option<Place>)> {
        let (newer, older) = self.records.split_at_checked(at(self.next)).unwrap_or((&self.records, &[]));
        let in_order = older.iter().chain(newer);
        let known = in_order.clone().enumerate().filter(|(_, record)| record.id == *id).last();
        let Some((index, record)) = known else {
            return self.strangers.iter().rfind(|record| record.id == *id).map(|record| (record, None));
        };
        let before = in_order.take(index).map(Record::branches).sum();
        let place = record.queued_at.map(|(position, estimated_wait, count)| {
            let branches = self.branches.iter().skip(before).take(count).copied().collect();
            Place { position, estimated_wait, branches }
        });
        Some((record, place))
    }

    /// Keeps a call that was admitted, or that waits at this place.
    pub(super) fn add(&mut self, live: &Live, place: Option<PlaceSeen<'_>>, fate: Fate) -> ExplanationKey {
        let record = Record {
            id: live.id.clone(),
            parties: Parties::Known { tenant: live.flow.tenant, model: live.model, pool: live.pool },
            level: Some(live.flow.level),
            reserved: live.reserved,
            charge: live.charge,
            arrived: live.arrived,
            queued_at: None,
            fate,
        };
        self.push(record, place)
    }

    /// Keeps a call that was refused on arrival, with as much as was found out about it.
    pub(super) fn refused(
        &mut self,
        request: &AdmissionRequest,
        named: Parties,
        seen: &Seen,
        refused: &Refused,
        place: Option<PlaceSeen<'_>>,
        now: Millis,
    ) {
        let parties = match seen.known {
            Some((tenant, model, pool)) => Parties::Known { tenant, model, pool },
            None => named,
        };
        let level = seen.level.or(request.priority);
        let (reserved, charge) = (seen.reserved, seen.charge);
        let record = record(request, parties, &refused.refusal, refused.limit, now);
        self.push(Record { level, reserved, charge, ..record }, place);
    }

    /// Keeps a call whose key nobody knows.
    pub(super) fn refused_stranger(
        &mut self,
        request: &AdmissionRequest,
        named: Parties,
        refusal: &Refusal,
        now: Millis,
    ) {
        if self.strangers.len() >= STRANGERS_KEPT {
            self.strangers.pop_front();
        }
        self.strangers.push_back(record(request, named, refusal, None, now));
    }

    /// What has become of a call since.
    pub(super) fn turn(&mut self, key: ExplanationKey, fate: Fate) {
        let is_kept = self.next - key <= KEPT;
        if let Some(record) = self.records.get_mut(at(key)).filter(|_| is_kept) {
            record.fate = fate;
        }
    }

    fn push(&mut self, mut record: Record, place: Option<PlaceSeen<'_>>) -> ExplanationKey {
        let place = place.map(|(position, wait, all)| (position, wait, all.get(..MOST_BRANCHES).unwrap_or(all)));
        record.queued_at = place.map(|(position, wait, branches)| (position, wait, branches.len()));
        match self.records.get_mut(at(self.next)) {
            Some(oldest) => {
                let gone = oldest.branches().min(self.branches.len());
                self.branches.drain(..gone);
                *oldest = record;
            }
            None => self.records.push(record),
        }
        if let Some((_, _, branches)) = place {
            self.branches.extend(branches);
        }
        self.next += 1;
        self.next - 1
    }
}

/// A call that was refused before anything was found out about it.
fn record(
    request: &AdmissionRequest,
    parties: Parties,
    refusal: &Refusal,
    limit: Option<Limit>,
    now: Millis,
) -> Record {
    Record {
        id: request.id.clone(),
        parties,
        level: request.priority,
        reserved: Tokens::ZERO,
        charge: Tokens::ZERO,
        arrived: now,
        queued_at: None,
        fate: Fate::Refused { at: now, reason: refusal.reason, message: refusal.message.clone(), limit },
    }
}

/// The place of a key's record.
fn at(key: ExplanationKey) -> usize {
    usize::try_from(key % KEPT).unwrap_or(usize::MAX)
}

impl Record {
    fn branches(&self) -> usize {
        self.queued_at.map_or(0, |(_, _, count)| count)
    }
}
