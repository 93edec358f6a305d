//! The short form of `just model`: what lies nearest of every scene, and all mutants.

use sluice_model::mutant::Mutant;
use sluice_model::scene::Scene;
use sluice_model::search::{Effort, Violation, search};
use sluice_model::seen::Event;
use sluice_model::{scenes, trace};

/// Of each scene. The nearest are tried first.
const FEW: usize = 10_000;
/// More than it takes to find any mutant.
const MANY: usize = 1_000_000;

fn told(violation: Violation) -> String {
    format!("{}\n{}", violation.invariant, trace::lines(&violation.trace).join("\n"))
}

#[test]
fn every_scene_keeps_its_invariants() {
    let mut missing = Event::ALL.to_vec();
    for scene in scenes::all() {
        let found = search(&scene, Effort { depth: None, steps: FEW });
        missing.retain(|event| !found.saw(*event));
        assert_eq!(found.violation.map(told), None, "{}", scene.name);
    }
    assert_eq!(missing, [], "where nothing happens nothing breaks");
}

#[test]
fn every_mutant_is_caught_by_the_invariant_that_it_breaks_and_nothing_without_it() {
    for mutant in Mutant::ALL {
        let scene = scenes::habitat(mutant);
        let found = search(&scene, Effort { depth: None, steps: MANY }).violation;
        let Some(violation) = found else { panic!("survived: {}", mutant.name()) };
        assert!(violation.invariant.starts_with(mutant.breaks()), "{}: {}", mutant.name(), violation.invariant);
        let nearer = Effort { depth: Some(violation.steps()), steps: MANY };
        let without = search(&Scene { mutant: None, ..scene }, nearer).violation;
        assert_eq!(without.map(told), None, "{}", mutant.name());
    }
}
