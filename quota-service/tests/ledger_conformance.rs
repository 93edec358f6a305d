//! The same calls have the same answers wherever the ledger lives: in this process, in Redis, in Valkey, and in a Redis
//! Cluster of six nodes.
//!
//! Every engine gets the same list of cases. The last of them replays random traces against the pure state machine.

// Helpers of a test are tests too, but the lint knows only functions marked as such.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "conformance/cases.rs"]
mod cases;
#[path = "conformance/rig.rs"]
mod rig;

use rig::{Rig, Where};

/// Runs every case on an engine, each on accounts of its own.
fn conforms(place: Where) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let Some(rig) = Rig::start(place).await else { return };
        for (name, case) in cases::ALL {
            rig.begin(name);
            case(&rig).await;
        }
        rig.finish(cases::ALL.len());
    });
}

#[test]
fn the_ledger_in_this_process_conforms() {
    conforms(Where::Embedded);
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
