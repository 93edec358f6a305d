//! Admissions that are queued or running, by ticket and by id.

use crate::queue::Ticket;
use crate::units::{AdmissionId, Millis, PoolName, Priority, TenantId, Tokens};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// One admission between its request and its settlement.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) id: AdmissionId,
    pub(super) tenant: TenantId,
    pub(super) pool: PoolName,
    pub(super) model: String,
    pub(super) priority: Priority,
    /// What was charged to the tenant on arrival and to the pool at the start; given back or corrected at the end.
    pub(super) reserved: Tokens,
    /// The part of `reserved` that the prompt was estimated at.
    pub(super) input: Tokens,
    pub(super) sequences: u32,
    pub(super) arrived: Millis,
    pub(super) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Queued,
    Running { since: Millis },
}

/// Invariant: `by_id` names exactly the tickets in `by_ticket`; `expiries` exactly those that run.
#[derive(Debug, Default)]
pub(super) struct LiveTable {
    by_ticket: BTreeMap<Ticket, Live>,
    by_id: BTreeMap<AdmissionId, Ticket>,
    expiries: BTreeSet<(Millis, Ticket)>,
    tombstones: Tombstones,
    last_ticket: u64,
}

impl LiveTable {
    pub(super) fn next_ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        Ticket(self.last_ticket)
    }

    /// Whether the id is live, or ended before it was asked for.
    pub(super) fn knows(&mut self, id: &AdmissionId, now: Millis) -> bool {
        self.by_id.contains_key(id) || self.has_ended(id, now)
    }

    /// Whether the id's end has been told before, while it was not live.
    pub(super) fn has_ended(&mut self, id: &AdmissionId, now: Millis) -> bool {
        self.tombstones.contains(id, now)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_ticket.is_empty()
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&Live> {
        self.by_ticket.get(&ticket)
    }

    pub(super) fn insert(&mut self, ticket: Ticket, live: Live) {
        self.by_id.insert(live.id.clone(), ticket);
        self.by_ticket.insert(ticket, live);
    }

    /// A call begins to run; it will have ended by `ends`, whatever happens.
    pub(super) fn start(&mut self, ticket: Ticket, now: Millis, ends: Millis) -> Option<&Live> {
        let live = self.by_ticket.get_mut(&ticket)?;
        live.state = State::Running { since: now };
        self.expiries.insert((ends, ticket));
        Some(live)
    }

    /// Takes an admission out by id. An id that is not live is remembered for a while, in case its request comes
    /// after its end.
    pub(super) fn remove(&mut self, id: &AdmissionId, longest: Millis, now: Millis) -> Option<(Ticket, Live)> {
        let Some(&ticket) = self.by_id.get(id) else {
            self.tombstones.add(id, now);
            return None;
        };
        let live = self.remove_ticket(ticket, longest)?;
        Some((ticket, live))
    }

    pub(super) fn remove_ticket(&mut self, ticket: Ticket, longest: Millis) -> Option<Live> {
        let live = self.by_ticket.remove(&ticket)?;
        self.by_id.remove(&live.id);
        if let State::Running { since } = live.state {
            self.expiries.remove(&(since.plus(longest), ticket));
        }
        Some(live)
    }

    /// Running calls that must have ended by now.
    pub(super) fn overdue(&self, now: Millis) -> Vec<Ticket> {
        let due = self.expiries.iter().take_while(|(ends, _)| *ends <= now);
        due.map(|(_, ticket)| *ticket).collect()
    }

    pub(super) fn next_expiry(&self) -> Option<Millis> {
        self.expiries.first().map(|(ends, _)| *ends)
    }
}

/// Ids that ended before they were asked for: a client left at once, and the cancellation overtook the request.
#[derive(Debug, Default)]
struct Tombstones {
    order: VecDeque<(Millis, AdmissionId)>,
    ids: BTreeSet<AdmissionId>,
}

impl Tombstones {
    /// Far longer than two streams of one connection can overtake each other.
    const KEPT: Millis = Millis(30_000);
    /// Bounds memory (I7) when a filter repeats settlements of a service that has restarted.
    const MOST: usize = 65_536;

    fn add(&mut self, id: &AdmissionId, now: Millis) {
        self.forget(now);
        if self.ids.insert(id.clone()) {
            self.order.push_back((now, id.clone()));
        }
    }

    fn contains(&mut self, id: &AdmissionId, now: Millis) -> bool {
        self.forget(now);
        self.ids.contains(id)
    }

    fn forget(&mut self, now: Millis) {
        while let Some((added, _)) = self.order.front() {
            if now.since(*added) < Self::KEPT && self.order.len() < Self::MOST {
                break;
            }
            if let Some((_, id)) = self.order.pop_front() {
                self.ids.remove(&id);
            }
        }
    }
}
