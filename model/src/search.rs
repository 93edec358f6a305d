//! The search itself: all worlds that a scene's bounds allow, the nearest first.

use crate::action::Action;
use crate::check::{INVARIANTS, PROGRESS};
use crate::pool::Pool;
use crate::scene::Scene;
use crate::seen::{Event, Seen};
use crate::step::Step;
use crate::world::{Gate, Letter, World};
use sluice_policy::ledger::AccountLedger;
use stateright::{Checker, HasDiscoveries, Model, Property};
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Searched {
    scene: Scene,
    seen: Arc<Seen>,
    ledgers: Pool<AccountLedger>,
    gates: Pool<Gate>,
    letters: Pool<Letter>,
}

impl Searched {
    fn share_parts(&self, before: &World, world: &mut World) {
        if !Arc::ptr_eq(&before.ledger, &world.ledger) {
            self.ledgers.share(&mut world.ledger);
        }
        for (before, gate) in before.gates.iter().zip(&mut world.gates) {
            if !Arc::ptr_eq(before, gate) {
                self.gates.share(gate);
            }
        }
        for letter in &mut world.letters {
            if Arc::strong_count(letter) == 1 {
                self.letters.share(letter);
            }
        }
    }
}

impl Model for Searched {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![Step { scene: &self.scene, seen: &self.seen }.first()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if !world.server.is_excused {
            Action::all(world, &self.scene, actions);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = Step { scene: &self.scene, seen: &self.seen }.take(world, action)?;
        self.share_parts(world, &mut next);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        // Stateright takes plain functions: one for each place in the list.
        let conditions: [fn(&Self, &World) -> bool; INVARIANTS.len()] =
            [keeps::<0>, keeps::<1>, keeps::<2>, keeps::<3>, keeps::<4>, keeps::<5>, keeps::<6>];
        let named = INVARIANTS.iter().zip(conditions);
        let named = named.map(|(invariant, condition)| Property::always(invariant.name, condition));
        named.chain([Property::always(PROGRESS, progresses)]).collect()
    }
}

fn progresses(model: &Searched, world: &World) -> bool {
    let seen = Seen::default();
    let step = Step { scene: &model.scene, seen: &seen };
    // What was under way when an account was lost is free only when no call can run any more. One gate has it all back.
    let is_missing = world.server.run > 0 && (world.ledger.capacity() == 0 || world.ledger.has_lost_everything());
    let is_excused = world.server.is_excused || is_missing && world.gates.len() > 1;
    model.scene.progress.is_none_or(|steps| is_excused || step.progresses(world, steps))
}

fn keeps<const PLACE: usize>(model: &Searched, world: &World) -> bool {
    INVARIANTS.get(PLACE).is_none_or(|invariant| (invariant.holds)(&model.scene, world))
}

/// How far a search goes at most.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Steps from the start; `None` for all.
    pub depth: Option<usize>,
    /// Steps tried in all: a search that does not come to its end by then is cut off, and says so.
    pub steps: usize,
}

/// What a search has found.
pub struct Found {
    pub unique_states: usize,
    pub steps_tried: usize,
    pub depth: usize,
    pub took: Duration,
    /// Everything within the scene's bounds was searched.
    pub is_complete: bool,
    pub seen: Arc<Seen>,
    pub violation: Option<Violation>,
}

/// A broken invariant, and the shortest way there.
pub struct Violation {
    pub invariant: &'static str,
    pub trace: Vec<(World, Option<Action>)>,
}

impl Violation {
    pub fn steps(&self) -> usize {
        self.trace.len().saturating_sub(1)
    }
}

impl Found {
    pub fn saw(&self, event: Event) -> bool {
        self.seen.times(event) > 0
    }
}

/// Searches a scene until something is violated or nothing is left.
pub fn search(scene: &Scene, effort: Effort) -> Found {
    let seen = Arc::new(Seen::default());
    let started = Instant::now();
    let model = Searched {
        scene: scene.clone(),
        seen: Arc::clone(&seen),
        ledgers: Pool::default(),
        gates: Pool::default(),
        letters: Pool::default(),
    };
    let mut builder = model
        .checker()
        // One, so that the first violation found is a nearest one.
        .threads(1)
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(effort.steps);
    if let Some(depth) = effort.depth {
        builder = builder.target_max_depth(depth + 1);
    }
    report(effort, started, seen, &builder.spawn_bfs().join())
}

fn report(effort: Effort, started: Instant, seen: Arc<Seen>, checker: &impl Checker<Searched>) -> Found {
    let took = started.elapsed();
    let violation =
        checker.discoveries().into_iter().min_by_key(|(name, path)| (path.clone().into_actions().len(), *name));
    let violation = violation.map(|(invariant, path)| Violation { invariant, trace: path.into_vec() });
    Found {
        unique_states: checker.unique_state_count(),
        steps_tried: checker.state_count(),
        depth: checker.max_depth().saturating_sub(1),
        took,
        is_complete: effort.depth.is_none() && violation.is_none() && checker.state_count() < effort.steps,
        seen,
        violation,
    }
}
