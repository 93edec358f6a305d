//! What a search prints.

use crate::mutant::Mutant;
use crate::scene::Scene;
use crate::scenes::habitat;
use crate::search::{Effort, Found, Violation, search};
use crate::seen::Event;
use crate::trace;

/// Of one search: far more than any scene has.
const MOST_STEPS: usize = 100_000_000;

const TO_THE_END: Effort = Effort { depth: None, steps: MOST_STEPS };

/// What was searched so far.
#[derive(Default)]
pub struct Report {
    unique_states: usize,
    scenes: usize,
    caught: usize,
    failures: usize,
}

impl Report {
    /// Times are in steps of 100 ms.
    pub fn begin() -> Self {
        println!("{:<14} {:>9} {:>9} {:>5} {:>7}  bounds", "searched", "states", "steps", "depth", "seconds");
        Self::default()
    }

    /// Searches a scene to its end. It must keep every invariant.
    pub fn scene(&mut self, scene: &Scene) {
        let found = search(scene, TO_THE_END);
        let (states, steps, depth) = (found.unique_states, found.steps_tried, found.depth);
        let (name, seconds) = (scene.name, found.took.as_secs_f64());
        let end = if found.is_complete { "to the end" } else { "NOT TO THE END" };
        println!("{name:<14} {states:>9} {steps:>9} {depth:>5} {seconds:>7.1}  {}; {end}", scene.bounds());
        println!("{:<14} {}", "", happened(&found));
        if let Some(violation) = &found.violation {
            print_violation(violation);
        }
        self.unique_states += states;
        self.scenes += 1;
        self.failures += usize::from(!found.is_complete);
    }

    /// Searches for a mutant. It must be found, and nothing where it is not.
    pub fn mutant(&mut self, mutant: Mutant) {
        let scene = habitat(mutant);
        let found = search(&scene, TO_THE_END);
        let states = found.unique_states;
        self.unique_states += states;
        let Some(violation) = &found.violation else {
            println!("\nSURVIVED: {} ({states} states)", mutant.name());
            self.failures += 1;
            return;
        };
        let steps = violation.steps();
        let is_expected = violation.invariant.starts_with(mutant.breaks());
        println!("\n{}: {}", if is_expected { "caught" } else { "CAUGHT BY ANOTHER INVARIANT" }, mutant.name());
        self.failures += usize::from(!is_expected);
        println!("        in {steps} steps, after {states} states; {}", scene.bounds());
        print_violation(violation);
        let control = search(&Scene { mutant: None, ..scene }, Effort { depth: Some(steps), ..TO_THE_END });
        if let Some(violation) = &control.violation {
            println!("  and without it");
            print_violation(violation);
            self.failures += 1;
        }
        self.caught += 1;
    }

    /// Tells whether all was as it must be.
    pub fn end(self) -> bool {
        let Self { unique_states, scenes, caught, failures } = self;
        println!("\n{unique_states} unique states, {scenes} scenes, {caught} mutants caught, {failures} failures");
        failures == 0
    }
}

fn happened(found: &Found) -> String {
    let events = Event::ALL.into_iter().filter(|event| found.saw(*event));
    let told: Vec<String> = events.map(|event| format!("{} ×{}", event.name(), found.seen.times(event))).collect();
    told.join(", ")
}

fn print_violation(violation: &Violation) {
    println!("        breaks {}", violation.invariant);
    for line in trace::lines(&violation.trace) {
        println!("  {line}");
    }
}
