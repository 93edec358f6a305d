//! Admissions that are queued or running, by key and by id.

mod ended;
mod names;

use super::successors::Turn;
use super::tenants::ModelIndex;
use crate::config::Price;
use crate::ledger::Draw;
use crate::queue::{ChargedBy, Flow, Ticket};
use crate::seal::IdReader;
use crate::units::{AdmissionId, Millis, Tokens};
use crate::wire::LiveIds;
use names::{Names, Stands};
use std::collections::VecDeque;

/// Names a live admission inside one core: its place in the table, and how many had that place before it. Never
/// reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LiveKey {
    place: u32,
    generation: u32,
}

impl LiveKey {
    /// The key as the queue carries it for us.
    pub(super) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.place)
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        let low = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        Self { place: low(bits), generation: low(bits >> 32) }
    }
}

/// A pool, by its place in the core's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PoolIndex(u32);

impl PoolIndex {
    pub(super) fn new(place: usize) -> Self {
        Self(u32::try_from(place).unwrap_or(u32::MAX))
    }

    pub(super) fn at(self) -> usize {
        at(self.0)
    }
}

/// One admission between its request and its settlement.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) id: AdmissionId,
    pub(super) pool: PoolIndex,
    pub(super) flow: Flow,
    pub(super) model: ModelIndex,
    /// Tokens charged to the tenant on arrival.
    pub(super) reserved: Tokens,
    /// Weighted tokens charged to the pool and the queue's counters at the start.
    pub(super) charge: Tokens,
    /// The part of `reserved` that the prompt was estimated at.
    pub(super) input: Tokens,
    /// 0 where the charge is fixed; of more than fit here, as many as do.
    pub(super) prompts: u16,
    pub(super) sequences: u16,
    /// Its reply is a stream of events.
    pub(super) streams: bool,
    pub(super) arrived: Millis,
    /// Where its explanation is kept.
    pub(super) explained: u64,
    pub(super) state: State,
}

impl Live {
    /// What its tenant was charged on arrival. (Where a reload changes a price, calls in flight are counted by the new
    /// one at both ends.)
    pub(super) fn draw(&self, price: Price) -> Draw {
        let output = Tokens(self.reserved.0.saturating_sub(self.input.0));
        Draw { tokens: self.reserved, money: price.of_reservation(self.input, output) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The ledger is asked for its tenant; nothing is charged yet.
    Applying,
    /// Its tenant's calls are as many as may be, and the end of one may be about to be reported; nothing is charged yet.
    Succeeding(Turn),
    Queued(Ticket),
    Running {
        since: Millis,
        by: ChargedBy,
    },
}

/// What came of taking an id out.
pub(super) enum Removed {
    Live(Live),
    /// Its end has been told already.
    Before,
    /// This core has never heard of it, or has forgotten.
    Unknown,
}

/// Aligned so that each lies in two cache lines; of a hundred thousand none is near the processor.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Place {
    generation: u32,
    live: Option<Live>,
}

const _: () = assert!(size_of::<Place>() <= 128);

/// Invariants: a place is in `free` exactly when nothing has it; `names` knows where everything stands that has a place.
#[derive(Debug, Default)]
pub(super) struct LiveTable {
    places: Vec<Place>,
    free: Vec<u32>,
    names: Names,
    expiries: Expiries,
}

impl LiveTable {
    /// The key of the next admission that is inserted.
    pub(super) fn next_key(&self) -> LiveKey {
        let fresh = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        let place = self.free.last().copied().unwrap_or(fresh);
        LiveKey { place, generation: self.places.get(at(place)).map_or(0, |place| place.generation) }
    }

    /// Changes what is known of an admission; its id stays.
    pub(super) fn update(&mut self, key: LiveKey, live: Live) {
        if let Some(place) = self.places.get_mut(at(key.place)).filter(|place| place.generation == key.generation) {
            place.live = Some(live);
        }
    }

    /// Whether the id is live, or has ended lately.
    pub(super) fn knows(&mut self, id: &AdmissionId, now: Millis) -> bool {
        self.names.forget(now);
        self.names.find(id, &self.places).is_some()
    }

    pub(super) fn get(&self, key: LiveKey) -> Option<&Live> {
        self.places.get(at(key.place)).filter(|place| place.generation == key.generation)?.live.as_ref()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.len() == self.free.len()
    }

    /// Takes an admission in whose id is not known, under the key that [`LiveTable::next_key`] told.
    pub(super) fn insert(&mut self, live: Live) -> LiveKey {
        debug_assert!(self.names.find(&live.id, &self.places).is_none(), "an id is admitted twice");
        let key = self.next_key();
        if self.free.pop().is_none() {
            self.places.push(Place::default());
        }
        self.names.add(&live.id, key.place);
        if let Some(place) = self.places.get_mut(at(key.place)) {
            place.live = Some(live);
        }
        key
    }

    /// A call begins to run, and is to be given that state; it will have ended by `ends`, whatever happens. Calls that
    /// start later end no earlier.
    pub(super) fn start(&mut self, key: LiveKey, ends: Millis) -> Option<&mut Live> {
        let live = self.places.get_mut(at(key.place)).filter(|place| place.generation == key.generation)?;
        let live = live.live.as_mut()?;
        self.expiries.add(ends, key);
        Some(live)
    }

    /// Takes an admission out by id. The id is remembered for a while: its end may be told again, and its request may
    /// come after its end.
    pub(super) fn remove(&mut self, id: &AdmissionId, now: Millis) -> Removed {
        self.names.forget(now);
        match self.names.find(id, &self.places) {
            Some(Stands::Ended) => Removed::Before,
            Some(Stands::Live(place)) => self.vacate(place, now).map_or(Removed::Unknown, Removed::Live),
            None => {
                self.names.end_unknown(id, now);
                Removed::Unknown
            }
        }
    }

    /// How to read a worker's ids, if it has told.
    pub(super) fn reader(&self, worker: &str) -> Option<&IdReader> {
        self.names.reader(worker)
    }

    /// A worker has told which of its calls are not over.
    pub(super) fn reported(&mut self, worker: &str, live: &LiveIds, now: Millis) {
        self.names.reported(worker, live, now);
    }

    /// Takes an admission out of which nobody has told the end. Its id is remembered too: the end may yet be told, and
    /// must not be charged then.
    pub(super) fn remove_key(&mut self, key: LiveKey, now: Millis) -> Option<Live> {
        self.names.forget(now);
        self.places.get(at(key.place)).filter(|place| place.generation == key.generation)?;
        self.vacate(key.place, now)
    }

    fn vacate(&mut self, index: u32, now: Millis) -> Option<Live> {
        let place = self.places.get_mut(at(index))?;
        let live = place.live.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(index);
        self.names.end(live.id.clone(), index, now);
        if let State::Running { .. } = live.state {
            self.expiries.running -= 1;
            self.forget_ended();
        }
        Some(live)
    }

    /// Running calls that must have ended by now.
    /// Everything that is queued or runs. Looks at every place.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Live> {
        self.places.iter().filter_map(|place| place.live.as_ref())
    }

    pub(super) fn overdue(&self, now: Millis) -> Vec<LiveKey> {
        if self.next_expiry().is_none_or(|next| next > now) {
            return Vec::new();
        }
        let due = self.expiries.order.iter().take_while(|(ends, _)| *ends <= now);
        due.map(|(_, key)| *key).filter(|key| self.runs(*key)).collect()
    }

    pub(super) fn next_expiry(&self) -> Option<Millis> {
        self.expiries.order.front().map(|(ends, _)| *ends)
    }

    fn runs(&self, key: LiveKey) -> bool {
        runs(&self.places, key)
    }

    /// Drops what has ended from the front of `expiries`, and all of it before it outweighs what runs.
    fn forget_ended(&mut self) {
        let order = &mut self.expiries.order;
        while order.front().is_some_and(|(_, key)| !runs(&self.places, *key)) {
            order.pop_front();
        }
        if order.len() > 2 * self.expiries.running + Expiries::SPARE {
            order.retain(|(_, key)| runs(&self.places, *key));
        }
    }
}

/// Invariant: what runs is in `order`, the first to end first; `running` counts it. What has ended may be in it still,
/// yet never first.
#[derive(Debug, Default)]
struct Expiries {
    order: VecDeque<(Millis, LiveKey)>,
    running: usize,
}

impl Expiries {
    /// So that a few calls that run do not have the order swept after each of them.
    const SPARE: usize = 64;

    fn add(&mut self, ends: Millis, key: LiveKey) {
        debug_assert!(self.order.back().is_none_or(|(last, _)| *last <= ends), "calls start in the order of time");
        self.order.push_back((ends, key));
        self.running += 1;
    }
}

fn runs(places: &[Place], key: LiveKey) -> bool {
    places.get(at(key.place)).is_some_and(|place| place.generation == key.generation && place.live.is_some())
}

fn at(place: u32) -> usize {
    usize::try_from(place).unwrap_or(usize::MAX)
}
