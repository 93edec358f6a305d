//! The quicker part of `./justw faults`: what breaks under load never lets too much run, and leaves no slot behind.

use e2e::faults::{Home, KINDS, Kind, LATE, Outcome, Patience, World};
use std::time::Duration;

/// The promise is L + D + 2Δ, which `./justw faults` measures. Here the rest is for a busy machine: what never recovers is
/// not whole after any time.
const SLACK: Duration = LATE;

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_under_load_lets_never_too_much_run_and_leaves_no_slot_behind() {
    let quick: Vec<&Kind> = KINDS.into_iter().flatten().filter(|kind| kind.is_quick).collect();
    assert!(quick.iter().all(|kind| kind.home == Home::Server), "one home is started");
    let mut world = World::start("faults-short", Home::Server).await.unwrap();
    let mut outcomes = Vec::new();
    for kind in quick {
        outcomes.push(Outcome::of(kind, &mut world, Patience::Short).await.unwrap());
    }
    let lines: Vec<String> = outcomes.iter().map(ToString::to_string).collect();
    let told = format!("{}\n{}", Outcome::head(), lines.join("\n"));
    println!("{told}");
    assert!(outcomes.iter().all(|outcome| outcome.held(SLACK)), "\n{told}");
    world.end().await.unwrap();
}
