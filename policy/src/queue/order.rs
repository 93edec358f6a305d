//! Which flow of a level is next: a knockout tournament (Knuth, The Art of Computer Programming 3, 5.4.1).
//!
//! Every flow that ever competed keeps a seat. Whoever's counter changes plays its matches again on the way up:
//! log₂(seats) comparisons in two small arrays, where a balanced tree would move entries between nodes all over memory.

use super::tree::FlowIndex;
use std::collections::BTreeSet;

/// The counter of a flow that does not compete: greater than any there is.
const ABSENT: u128 = u128::MAX;

/// A flow's place in the tournament of its level; it keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seat(u32);

/// Invariants: `counters` and `games` are as long as a power of two; game 1 is the final, and game `n` is between the
/// winners of 2n and 2n + 1, which are seats where there is no such game; the winner of game 1 stands in game 0; of two
/// equal counters the lower seat's wins; `present` counts the counters that are not [`ABSENT`].
#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    flows: Vec<FlowIndex>,
    counters: Vec<u128>,
    games: Vec<[Seat; 2]>,
    present: u32,
}

impl Order {
    /// A seat for a flow that is new and does not compete yet. The first seats win where counters are equal.
    pub(super) fn take_seat(&mut self, flow: FlowIndex) -> Seat {
        let seat = Seat(u32::try_from(self.flows.len()).unwrap_or(u32::MAX));
        self.flows.push(flow);
        if self.flows.len() > self.counters.len() {
            self.enlarge();
        }
        seat
    }

    /// The counter of a flow that competes, for the first time or anew.
    pub(super) fn set(&mut self, seat: Seat, counter: u128) {
        debug_assert!(counter != ABSENT, "a counter has run out of bits");
        self.change(seat, counter);
    }

    /// A flow competes no more.
    pub(super) fn leave(&mut self, seat: Seat) {
        self.change(seat, ABSENT);
    }

    /// Whether the flow of this seat competes.
    pub(super) fn has(&self, seat: Seat) -> bool {
        self.counter(seat) != ABSENT
    }

    /// The flow with the lowest counter of those that compete.
    pub(super) fn first(&self) -> Option<FlowIndex> {
        let [_, champion] = self.games.first().filter(|_| self.present > 0)?;
        self.flows.get(at(*champion)).copied()
    }

    /// At most `most` flows that compete, the one with the lowest counter first. Whoever would have won but for
    /// those before is among the losers of their games.
    pub(super) fn lowest_first(&self, most: usize) -> Vec<FlowIndex> {
        let mut lowest = Vec::new();
        let mut winners = BTreeSet::from_iter(self.games.first().map(|[_, champion]| self.winner_from(*champion, 1)));
        while let Some((counter, seat, mut game)) = winners.pop_first().filter(|_| lowest.len() < most) {
            if counter == ABSENT {
                break;
            }
            lowest.extend(self.flows.get(at(seat)));
            while let Some([left, right]) = self.games.get(game).copied() {
                let (loser, side) = if left == seat { (right, 1) } else { (left, 0) };
                winners.insert(self.winner_from(loser, 2 * game + side));
                game = 2 * game + 1 - side;
            }
        }
        lowest
    }

    /// The counter and the seat of who came out of a game.
    fn winner_from(&self, seat: Seat, game: usize) -> (u128, Seat, usize) {
        (self.counter(seat), seat, game)
    }

    /// The lowest counter of a flow that competes; the greatest number when none does.
    pub(super) fn lowest(&self) -> u128 {
        self.games.first().map_or(ABSENT, |[_, champion]| self.counter(*champion))
    }

    /// Flows that compete.
    pub(super) fn len(&self) -> u32 {
        self.present
    }

    fn change(&mut self, seat: Seat, counter: u128) {
        let Some(own) = self.counters.get_mut(at(seat)) else { return };
        self.present = self.present + u32::from(counter != ABSENT) - u32::from(*own != ABSENT);
        *own = counter;
        let mut game = (self.counters.len() + at(seat)) / 2;
        while game > 0 {
            let (winner, side) = (self.winner(game), game % 2);
            game /= 2;
            let Some(before) = self.games.get_mut(game).and_then(|sides| sides.get_mut(side)) else { return };
            // Where somebody else has won before and wins again, nothing changes further up.
            if *before == winner && winner != seat {
                return;
            }
            *before = winner;
        }
    }

    fn winner(&self, game: usize) -> Seat {
        let [left, right] = self.games.get(game).copied().unwrap_or_default();
        if self.counter(right) < self.counter(left) { right } else { left }
    }

    fn counter(&self, seat: Seat) -> u128 {
        self.counters.get(at(seat)).copied().unwrap_or(ABSENT)
    }

    /// Twice as many seats, and every match once.
    fn enlarge(&mut self) {
        let seats = self.flows.len().next_power_of_two().max(2);
        self.counters.resize(seats, ABSENT);
        let pairs = (0..).step_by(2).map(|seat| [Seat(seat), Seat(seat + 1)]);
        self.games = vec![[Seat(0); 2]; seats / 2];
        self.games.extend(pairs.take(seats / 2));
        for game in (1..seats).rev() {
            let winner = self.winner(game);
            if let Some(place) = self.games.get_mut(game / 2).and_then(|sides| sides.get_mut(game % 2)) {
                *place = winner;
            }
        }
    }
}

fn at(seat: Seat) -> usize {
    usize::try_from(seat.0).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a sorted set of counters and flows.
        #[test]
        fn the_first_is_the_lowest_counter_and_of_equals_the_earlier_flow(
            steps in prop::collection::vec((0_usize..40, prop::option::weighted(0.7, 0_u128..20)), 1..300),
        ) {
            let (mut order, mut seats) = (Order::default(), Vec::new());
            let mut naive: BTreeSet<(u128, FlowIndex)> = BTreeSet::new();
            for (pick, counter) in steps {
                if pick >= seats.len() {
                    let flow = FlowIndex(u32::try_from(seats.len()).unwrap());
                    seats.push((flow, order.take_seat(flow)));
                }
                let (flow, seat) = seats[pick.min(seats.len() - 1)];
                naive.retain(|(_, other)| *other != flow);
                match counter {
                    Some(counter) => {
                        order.set(seat, counter);
                        naive.insert((counter, flow));
                    }
                    None => order.leave(seat),
                }
                prop_assert_eq!(order.first(), naive.first().map(|(_, flow)| *flow));
                prop_assert_eq!(order.lowest(), naive.first().map_or(u128::MAX, |(counter, _)| *counter));
                prop_assert_eq!(order.len() as usize, naive.len());
                let lowest: Vec<FlowIndex> = naive.iter().map(|(_, flow)| *flow).take(7).collect();
                prop_assert_eq!(order.lowest_first(7), lowest);
            }
        }
    }
}
