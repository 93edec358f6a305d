//! The short form of `just model`: what lies nearest of every scene, and all mutants.

use sluice_model::mutant::Mutant;
use sluice_model::search::{Effort, Violation, search};
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
    for scene in scenes::all() {
        let found = search(&scene, Effort { depth: None, steps: FEW });
        assert_eq!(found.violation.map(told), None, "{}", scene.name);
        assert!(found.is_complete || found.steps_tried >= FEW, "{}", scene.name);
    }
}

#[test]
fn every_mutant_is_caught() {
    for mutant in Mutant::ALL {
        let found = search(&scenes::habitat(mutant), Effort { depth: None, steps: MANY });
        assert!(found.violation.is_some(), "survived: {}", mutant.name());
    }
}
