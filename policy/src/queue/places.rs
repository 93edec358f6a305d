//! Where waiters stand: one slab, and a doubly linked line through it for every flow, so that anybody can leave from
//! anywhere in constant time.

use super::{Ticket, Waiter};
use crate::units::Tokens;

/// The end of a chain.
const NOBODY: u32 = u32::MAX;

/// The line of one flow, in order of arrival.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    first: u32,
    last: u32,
    pub(super) len: u32,
    /// What their starts will be charged.
    pub(super) charge: Tokens,
}

impl Default for Line {
    fn default() -> Self {
        Self { first: NOBODY, last: NOBODY, len: 0, charge: Tokens::ZERO }
    }
}

/// Aligned to a cache line, which it fills: of a hundred thousand places none is near, and each is one wait.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Place {
    /// Who stands here, or stood here last.
    waiter: Waiter,
    /// Counts the comings and goings, so that an old ticket is not taken for a new one: odd while somebody stands here.
    generation: u32,
    ahead: u32,
    behind: u32,
    /// Neighbours in the deadline bucket.
    earlier: u32,
    later: u32,
}

const _: () = assert!(size_of::<Place>() == 64);

/// Invariants: a place is in `free` exactly when nobody stands there; a line and a chain lead to places where somebody
/// does.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    slab: Vec<Place>,
    free: Vec<u32>,
}

impl Places {
    pub(super) fn len(&self) -> usize {
        self.slab.len() - self.free.len()
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&Waiter> {
        self.slab.get(at(ticket.index)).filter(|place| place.generation == ticket.generation).map(|place| &place.waiter)
    }

    pub(super) fn first(&self, line: &Line) -> Option<(Ticket, &Waiter)> {
        let place = self.slab.get(at(line.first))?;
        Some((Ticket { index: line.first, generation: place.generation }, &place.waiter))
    }

    /// Who stands behind a waiter in its line.
    pub(super) fn behind(&self, ticket: Ticket) -> Option<(Ticket, &Waiter)> {
        let index = self.slab.get(at(ticket.index)).filter(|place| place.generation == ticket.generation)?.behind;
        let place = self.slab.get(at(index))?;
        Some((Ticket { index, generation: place.generation }, &place.waiter))
    }

    /// Everyone who waits, in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Ticket, &Waiter)> {
        let taken = self.slab.iter().zip(0..).filter(|(place, _)| place.generation % 2 == 1);
        taken.map(|(place, index)| (Ticket { index, generation: place.generation }, &place.waiter))
    }

    /// Puts a waiter at the end of a line; `None` when four billion wait already.
    pub(super) fn join(&mut self, waiter: Waiter, line: &mut Line) -> Option<Ticket> {
        let fresh =
            |generation| Place { waiter, generation, ahead: line.last, behind: NOBODY, earlier: NOBODY, later: NOBODY };
        let index = match self.free.pop() {
            Some(index) => {
                let old = self.slab.get_mut(at(index))?;
                *old = fresh(old.generation.wrapping_add(1));
                index
            }
            None => {
                let index = u32::try_from(self.slab.len()).ok().filter(|index| *index != NOBODY)?;
                self.slab.push(fresh(1));
                index
            }
        };
        match self.slab.get_mut(at(line.last)) {
            Some(last) => last.behind = index,
            None => line.first = index,
        }
        line.last = index;
        line.len += 1;
        line.charge = line.charge.plus(waiter.charge);
        let generation = self.slab.get(at(index))?.generation;
        Some(Ticket { index, generation })
    }

    /// Takes a waiter out of its line.
    pub(super) fn leave(&mut self, ticket: Ticket, line: &mut Line) -> Option<Waiter> {
        let place = self.slab.get_mut(at(ticket.index)).filter(|place| place.generation == ticket.generation)?;
        place.generation = place.generation.wrapping_add(1);
        let (waiter, ahead, behind) = (place.waiter, place.ahead, place.behind);
        match self.slab.get_mut(at(ahead)) {
            Some(ahead) => ahead.behind = behind,
            None => line.first = behind,
        }
        match self.slab.get_mut(at(behind)) {
            Some(behind) => behind.ahead = ahead,
            None => line.last = ahead,
        }
        line.len -= 1;
        line.charge = Tokens(line.charge.0.saturating_sub(waiter.charge.0));
        self.free.push(ticket.index);
        Some(waiter)
    }

    /// Puts a place before `first` in a chain of equal deadlines, and returns the chain's new first.
    pub(super) fn link(&mut self, ticket: Ticket, first: Option<u32>) -> u32 {
        if let Some(place) = self.slab.get_mut(at(ticket.index)) {
            place.later = first.unwrap_or(NOBODY);
        }
        if let Some(next) = first.and_then(|first| self.slab.get_mut(at(first))) {
            next.earlier = ticket.index;
        }
        ticket.index
    }

    /// Takes a place out of its chain. When it was the first one, the new first is returned: `Some(None)` says that
    /// the chain is empty now.
    pub(super) fn unlink(&mut self, ticket: Ticket) -> Option<Option<u32>> {
        let place = self.slab.get_mut(at(ticket.index))?;
        let (earlier, later) = (place.earlier, place.later);
        (place.earlier, place.later) = (NOBODY, NOBODY);
        if let Some(next) = self.slab.get_mut(at(later)) {
            next.earlier = earlier;
        }
        match self.slab.get_mut(at(earlier)) {
            Some(previous) => {
                previous.later = later;
                None
            }
            None => Some((later != NOBODY).then_some(later)),
        }
    }

    /// The tickets of a chain of equal deadlines.
    pub(super) fn chain(&self, first: u32) -> impl Iterator<Item = Ticket> {
        std::iter::successors(self.slab.get(at(first)).map(|place| (first, place)), |(_, place)| {
            self.slab.get(at(place.later)).map(|next| (place.later, next))
        })
        .map(|(index, place)| Ticket { index, generation: place.generation })
    }
}

/// An index of the slab; an end of a chain is beyond every slab.
fn at(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}
