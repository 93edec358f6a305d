//! The ledger's function in `policy` and the script in Redis are one state machine in two homes: the same calls have the
//! same answers, and the same notices, in the function, in Redis, in Valkey and in a Redis Cluster of six nodes.

// Helpers of a test are tests too, but the lint knows only functions marked as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "conformance/cases.rs"]
mod cases;
#[path = "conformance/homes.rs"]
mod homes;
#[path = "conformance/measure.rs"]
mod measure;
#[path = "../../policy/tests/support/outage.rs"]
mod outage;
#[path = "conformance/production.rs"]
mod production;
#[path = "conformance/recovery.rs"]
mod recovery;
#[path = "conformance/replay.rs"]
mod replay;
#[path = "conformance/rig.rs"]
mod rig;
#[path = "conformance/story.rs"]
mod story;

use replay::Trace;
use rig::{Rig, Where};
use sluice_policy::ledger::{MOST_ROWS, MOST_SPENT};

/// Random calls in all, unless `./justw soak ledger` asks for more, and of one account.
const CALLS: usize = 5_000;
const CALLS_OF_AN_ACCOUNT: usize = 2_500;
/// Far above what the script takes of a server (docs/LEDGER.md), and far below what would hold up others.
const MOST_MICROSECONDS: f64 = 5_000.0;

/// Tells every case to an engine, and calls it as the service does.
fn conforms(place: Where) {
    let runtime = runtime();
    let Some(rig) = runtime.block_on(Rig::start(place)) else { return };
    assert_eq!(cases::tell_all(&mut rig.home()), [""; 0]);
    runtime.block_on(production::check(&rig));
    println!("{} cases on {}", cases::all().len(), rig.version());
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

#[test]
fn random_calls_have_the_answers_of_the_function_everywhere() {
    let runtime = runtime();
    let start = |place| runtime.block_on(Rig::start(place));
    let rigs: Vec<Rig> = [Where::Redis, Where::Valkey, Where::Cluster].into_iter().filter_map(start).collect();
    let mut homes: Vec<_> = rigs.iter().map(Rig::home).collect();
    let calls = std::env::var("SLUICE_SOAK_RUNS").map_or(CALLS, |calls| calls.parse().unwrap());
    for seed in 0..calls.div_ceil(CALLS_OF_AN_ACCOUNT) {
        let trace = Trace::random(seed as u64, CALLS_OF_AN_ACCOUNT);
        std::thread::scope(|scope| {
            for home in &mut homes {
                scope.spawn(|| trace.replay(home));
            }
        });
    }
    let engines: Vec<String> = rigs.iter().map(Rig::version).collect();
    println!("{calls} random calls on {}", engines.join(", "));
}

#[test]
fn all_slots_run_soon_after_an_outage_of_the_script() {
    let Some(rig) = runtime().block_on(Rig::start(Where::Redis)) else { return };
    assert_eq!(recovery::late(rig.home()), [""; 0]);
}

#[test]
fn the_ledger_in_this_process_conforms() {
    assert_eq!(cases::tell_all(&mut homes::Pure::default()), [""; 0]);
}

#[test]
fn the_ledger_in_redis_conforms() {
    conforms(Where::Redis);
}

#[test]
fn the_ledger_in_valkey_conforms() {
    conforms(Where::Valkey);
}

#[test]
fn the_ledger_in_a_cluster_conforms() {
    conforms(Where::Cluster);
}

#[test]
fn a_call_with_all_its_rows_and_charges_does_not_hold_up_the_server() {
    let runtime = runtime();
    for place in [Where::Redis, Where::Valkey] {
        let Some(rig) = runtime.block_on(Rig::start(place)) else { continue };
        for (rows, charges) in [(0, 1), (1, 1), (8, 1), (MOST_ROWS as u64, 1), (MOST_ROWS as u64, MOST_SPENT as u64)] {
            let taken = measure::microseconds(&rig, rows, charges);
            println!("{}: {taken:.0} µs with {rows} rows at each of two holders and {charges} charges", rig.version());
            assert!(taken < MOST_MICROSECONDS, "{taken} µs with {rows} rows and {charges} charges");
        }
    }
}

#[test]
fn there_are_sixty_cases_and_more_each_told_once() {
    let names: std::collections::BTreeSet<&str> = cases::all().iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), cases::all().len());
    assert!(names.len() >= 60, "{} cases", names.len());
}
