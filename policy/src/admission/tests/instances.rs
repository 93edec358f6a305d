//! Instances of the filter live side by side, and each answers for its own calls alone.

use super::*;
use crate::seal::{Seal, SealKey};
use crate::wire::{EndedWorker, LiveIds};

const OLD: &str = "old";

/// A pool of two slots, and an instance with three calls: two run, started at 0 and 1,500 ms, and one waits.
fn world() -> (World, Seal) {
    let (key, mut world) = (SealKey::new(1), World::new(json!({})));
    let seal = Seal::new(&key);
    world.core.reported(OLD, &LiveIds { minted: 3, numbers: [1, 2, 3].into(), seal: Some(key) }, world.now);
    for (number, later) in [(1, 1_500), (2, 500), (3, 0)] {
        let id = seal.seal(number);
        let (_, decision) = world.ask("a", |request| request.id = id);
        assert_eq!(decision == Decision::Queued, number == 3);
        world.wait(later);
    }
    (world, seal)
}

fn ended(silent: Option<u64>) -> EndedWorker {
    EndedWorker { worker: OLD.to_owned(), seal: None, silent_ms: silent.map(Millis) }
}

fn told(world: &World, ended: &EndedWorker, seal: &Seal) -> Vec<(u64, Outcome, UsageSource, bool)> {
    let all = world.core.settlements_of_ended(ended, world.now).into_iter();
    all.map(|one| (seal.open(&one.id).unwrap(), one.outcome, one.usage.source, one.abandoned)).collect()
}

#[test]
fn absence_from_another_instance_s_report_frees_nothing() {
    let (world, _) = world();
    let live = LiveIds { minted: 9, numbers: [].into(), seal: Some(SealKey::new(2)) };
    let report = live.of("new");
    assert_eq!(world.core.settlements_of(|id| report.is_over(id)), []);
    let unknown = EndedWorker { worker: "new".to_owned(), ..ended(None) };
    assert_eq!(world.core.settlements_of_ended(&unknown, world.now), []);
}

#[test]
fn what_an_instance_that_ended_has_not_settled_is_charged_as_aborted_and_who_waits_leaves() {
    let (mut world, seal) = world();
    let all = told(&world, &ended(None), &seal);
    let aborted = |number| (number, Outcome::Aborted, UsageSource::Estimated, true);
    assert_eq!(all, [aborted(1), aborted(2), (3, Outcome::Cancelled, UsageSource::None, false)]);
    for settlement in world.core.settlements_of_ended(&ended(None), world.now) {
        world.core.settle(&settlement, world.now).unwrap();
    }
    world.sync();
    assert!(world.core.is_idle());
}

#[test]
fn its_key_may_come_with_the_end() {
    let (mut world, key) = (World::new(json!({})), SealKey::new(7));
    let id = Seal::new(&key).seal(1);
    world.ask("a", |request| request.id = id.clone());
    assert_eq!(world.core.settlements_of_ended(&ended(None), world.now), [], "nobody has told how to read its ids");
    let ended = EndedWorker { seal: Some(key), ..ended(None) };
    assert_eq!(world.core.settlements_of_ended(&ended, world.now).len(), 1);
}

#[test]
fn of_an_instance_that_trapped_only_what_cannot_have_gone_on_is_given_up() {
    let (world, seal) = world();
    // It is 2,000 ms: it ticked at 400 for the last time, so that what started at 1,500 found it dead.
    let given_up = |number| (number, Outcome::Cancelled, UsageSource::None, false);
    assert_eq!(told(&world, &ended(Some(1_600)), &seal), [given_up(2), given_up(3)]);
    // It may have lived at 1,500.
    assert_eq!(told(&world, &ended(Some(1_000)), &seal), [given_up(3)]);
}

#[test]
fn the_pool_s_on_abort_applies_to_what_an_instance_left_running() {
    let (mut world, _) = world();
    let mut config = Config::clone(world.core.config());
    let document = json!({
        "pools": [{"name": "smol", "models": ["m"], "capacity": {"concurrent": 2}, "on_abort": {"grace_ms": 5_000}}],
    });
    config.pools = read_document(&document, Config::read).unwrap().pools;
    world.core.configure(config, UnixMillis(0), world.now);
    for settlement in world.core.settlements_of_ended(&ended(None), world.now) {
        world.core.settle(&settlement, world.now).unwrap();
    }
    assert_eq!((world.core.running(&"smol".into()), world.core.orphaned(&"smol".into())), (2, 2));
    world.wait(5_000);
    assert!(world.core.is_idle());
}
