//! Prints what was searched, and how each mutant was found. Arguments choose: parts of the names of scenes and mutants.

use sluice_model::mutant::Mutant;
use sluice_model::report::Report;
use sluice_model::scenes;
use std::process::ExitCode;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str()));
    let mut report = Report::begin();
    for scene in scenes::all().iter().filter(|scene| is_wanted(scene.name)) {
        report.scene(scene);
    }
    for mutant in Mutant::ALL.into_iter().filter(|mutant| is_wanted(mutant.name())) {
        report.mutant(mutant);
    }
    if report.end() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
