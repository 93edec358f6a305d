//! What holds on every engine.

use super::rig::Rig;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use sluice_policy::ledger::{AccountLedger, SyncRequest};
use sluice_policy::units::{HolderId, Millis};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

pub(crate) type Case = for<'a> fn(&'a Rig) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Names a case after the function that it is.
macro_rules! cases {
    ($($case:ident),* $(,)?) => { &[$((stringify!($case), |rig| Box::pin($case(rig)))),*] };
}

pub(crate) const ALL: &[(&str, Case)] = cases![
    a_new_holder_gets_what_is_free,
    a_flushed_script_is_loaded_again,
    random_traces_have_the_answers_of_the_pure_ledger,
];

const RANDOM_TRACES: u32 = 200;
const LONGEST_TRACE: usize = 40;

fn request(seq: u64, keep: u32, want: u32) -> SyncRequest {
    SyncRequest {
        holder: "gate-0".into(),
        incarnation: 1,
        seq,
        keep,
        want,
        capacity: 2,
        lease: Millis(2_000),
        longest_request: Millis(2_000),
        spent: 0,
        levels: BTreeMap::new(),
    }
}

async fn a_new_holder_gets_what_is_free(rig: &Rig) {
    let account = rig.account();
    assert_eq!(rig.sync(&account, &request(1, 0, 5)).await.granted, 2);
}

async fn a_flushed_script_is_loaded_again(rig: &Rig) {
    let account = rig.account();
    assert_eq!(rig.sync(&account, &request(1, 0, 2)).await.granted, 2);
    rig.everywhere(&["SCRIPT", "FLUSH"]);
    assert_eq!(rig.sync(&account, &request(2, 1, 1)).await.granted, 1);
}

async fn random_traces_have_the_answers_of_the_pure_ledger(rig: &Rig) {
    let config = Config { rng_seed: RngSeed::Fixed(2), failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let traces = prop::collection::vec(any_request(), 1..LONGEST_TRACE);
    for trace in 0..RANDOM_TRACES {
        let account = rig.account();
        let mut pure = AccountLedger::default();
        for (step, request) in traces.new_tree(&mut runner).unwrap().current().into_iter().enumerate() {
            let answer = rig.sync(&account, &request).await;
            let expected = pure.sync(&request, answer.now);
            assert_eq!(answer, expected, "trace {trace}, step {step}, asked {request:?}");
        }
    }
}

fn any_request() -> impl Strategy<Value = SyncRequest> {
    let names = prop::sample::subsequence(vec!["a", "b"], 0..=2);
    // A lease of 0 ms has ended by the next call, so expiry is exercised without waiting.
    let terms = (prop_oneof![Just(0_u64), Just(60_000)], prop_oneof![Just(0_u64), Just(1), Just(60_000)]);
    ((0_u8..3, 0_u64..3, 0_u64..6), (0_u32..12, 0_u32..12, 0_u32..12), terms, names, any::<i32>()).prop_map(
        |((holder, incarnation, seq), (keep, want, capacity), (lease, longest), names, level)| SyncRequest {
            holder: HolderId::from(format!("gate-{holder}")),
            // As large as in real life: milliseconds since 1970.
            incarnation: 1_790_000_000_000 + incarnation,
            seq,
            keep,
            want,
            capacity,
            lease: Millis(lease),
            longest_request: Millis(longest),
            spent: 3_000_000_000_000_000 + seq,
            levels: names.into_iter().map(|name| (name.to_owned(), i64::from(level))).collect(),
        },
    )
}
