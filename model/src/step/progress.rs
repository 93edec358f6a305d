//! Progress (I8): what becomes of a world when nothing more goes wrong.

use super::{Step, change};
use crate::scene::LINES;
use crate::world::{Gate, Letter, World};

/// More letters than this are never needed until nobody has anything to say.
const MOST_LETTERS: usize = 200;

impl Step<'_> {
    /// Whether every free slot is in use within so many steps while anybody waits. Every letter arrives at once, in the
    /// order in which they were sent; whoever waits in vain for an answer gives up; who is down stays down.
    pub(crate) fn progresses(&self, world: &World, steps: u8) -> bool {
        if is_busy(world) {
            return true;
        }
        let mut world = world.clone();
        for _ in 0..=steps {
            self.calm_down(&mut world);
            if is_busy(&world) {
                return true;
            }
            self.pass(&mut world);
        }
        false
    }

    fn calm_down(&self, world: &mut World) {
        for index in 0..world.gates.len() {
            let is_lost = world.gates.get(index).is_some_and(|gate| gate.told.awaits && gate.told.sent < world.now);
            if is_lost && !world.letters.iter().any(|letter| concerns(letter, index)) {
                change(world, index, Gate::time_out);
            }
        }
        self.start_all(world);
        self.ask_all(world);
        for _ in 0..MOST_LETTERS {
            if world.letters.is_empty() {
                return;
            }
            let letter = world.letters.remove(0);
            self.arrive(world, &letter);
            self.start_all(world);
            self.ask_all(world);
        }
    }
}

fn concerns(letter: &Letter, index: usize) -> bool {
    match letter {
        Letter::Request(gate, _) | Letter::Reply(gate, _) => *gate == index,
        Letter::Notice(..) | Letter::Booking(..) => false,
    }
}

/// Nobody waits, or no slot is free.
fn is_busy(world: &World) -> bool {
    let waits = world.gates.iter().any(|gate| gate.waiting != [0; LINES]);
    !waits || world.running() >= usize::try_from(world.bound).unwrap_or(usize::MAX)
}
