//! An end that is told again, long after and after many others.

use super::*;
use crate::seal::{Seal, SealKey};
use crate::wire::{ChargeTo, LiveIds};

/// A minute of 2,200 calls a second, twice as many as ends were once counted out after.
const CALLS: u64 = 132_000;

fn ended(id: AdmissionId) -> Settlement {
    let usage = Usage { source: UsageSource::Reported, input: Tokens(10), output: Tokens(5), ..Usage::default() };
    let charge_to = ChargeTo {
        tenant: "a".into(),
        pool: "smol".into(),
        model: Some("m".to_owned()),
        prompts: 1,
        sequences: 1,
        turns: 1,
    };
    Settlement { id, outcome: Outcome::Completed, usage, charge_to: Some(charge_to), timing: None, abandoned: false }
}

/// Calls end one after the other, each 0.45 ms after the one before; `report` says what the worker tells after each.
fn charged_twice(world: &mut World, id: impl Fn(u64) -> AdmissionId, report: impl Fn(u64) -> Option<LiveIds>) -> usize {
    let mut again = 0;
    for call in 1..=CALLS {
        world.now = Millis(call * 1_000 / 2_200);
        assert!(world.core.settle(&ended(id(call)), world.now).is_some());
        if let Some(live) = report(call) {
            world.core.reported("w", &live, world.now);
        }
        // The oldest that the worker still answers for, half a minute later.
        if let Some(repeated) = call.checked_sub(66_000).filter(|repeated| *repeated > 0) {
            again += usize::from(world.core.settle(&ended(id(repeated)), world.now).is_some());
        }
    }
    again
}

#[test]
fn an_end_that_is_repeated_half_a_minute_later_at_2200_calls_a_second_is_charged_once() {
    let (key, mut world) = (SealKey::new(1), World::new(json!({})));
    let seal = Seal::new(&key);
    let report = |call: u64| {
        let numbers = [call.saturating_sub(66_000) + 1].into();
        (call % 5_000 == 1).then(|| LiveIds { minted: call, numbers, seal: Some(key.clone()) })
    };
    assert_eq!(charged_twice(&mut world, |call| seal.seal(call), report), 0);
}

#[test]
fn so_is_one_of_a_worker_that_tells_nothing_of_its_calls() {
    let mut world = World::new(json!({}));
    assert_eq!(charged_twice(&mut world, |call| format!("x-{call}").into(), |_| None), 0);
}
