//! Abandoned calls whose model server may work on.

use super::*;

/// Tenant `a` may have two calls; the pool has two slots.
fn world(on_abort: serde_json::Value) -> World {
    let mut world = World::new(json!({"concurrent": 2}));
    reconfigure(&mut world, on_abort);
    world
}

fn reconfigure(world: &mut World, on_abort: serde_json::Value) {
    let mut config = Config::clone(world.core.config());
    let document = json!({
        "pools": [{"name": "smol", "models": ["m"], "capacity": {"concurrent": 2}, "on_abort": on_abort}],
    });
    let read = read_document(&document, Config::read).unwrap();
    config.pools = read.pools;
    world.core.configure(config, UnixMillis(0), world.now);
    world.sync();
}

fn pool(world: &World) -> (u32, u32) {
    (world.core.running(&"smol".into()), world.core.orphaned(&"smol".into()))
}

fn in_flight(world: &World) -> u32 {
    world.core.in_flight(&"a".into())
}

#[test]
fn an_abandoned_call_keeps_its_slot_and_its_tenant_s_for_the_grace_that_the_pool_states() {
    let mut world = world(json!({"grace_ms": 5_000}));
    let (left, _) = (world.admit("a"), world.admit("a"));
    world.end(&left, Outcome::Aborted, 3).unwrap();
    assert_eq!((pool(&world), in_flight(&world)), ((2, 1), 2));
    assert_eq!(reason(&world.decide("a").1), Some((429, Reason::TenantConcurrency)));
    let (waits, decision) = world.ask("b", |_| ());
    assert_eq!(decision, Decision::Queued);
    assert!(world.end(&left, Outcome::Aborted, 3).is_none(), "it is settled");
    assert_eq!(started(&world.wait(4_750)), Vec::<&AdmissionId>::new());
    assert_eq!(started(&world.wait(200)), [&waits]);
    assert_eq!((pool(&world), in_flight(&world)), ((2, 0), 1));
}

#[test]
fn the_core_wakes_by_itself_when_an_orphan_s_time_is_over() {
    let mut world = world(json!({"grace_ms": 5_000}));
    let left = world.admit("a");
    world.end(&left, Outcome::Aborted, 3).unwrap();
    assert_eq!(world.core.next_wake(), Some(world.now.plus(Millis(5_000))));
    assert!(!world.core.is_idle());
    world.wait(5_000);
    assert!(world.core.is_idle());
    assert_eq!(world.core.next_wake(), None);
}

#[test]
fn a_call_that_runs_on_keeps_its_slot_for_so_long_from_its_start() {
    let mut world = world(json!({"runs_on_ms": 10_000}));
    let (early, late) = (world.admit("a"), world.admit("a"));
    world.wait(4_000);
    world.end(&early, Outcome::Aborted, 1).unwrap();
    world.wait(5_800);
    assert_eq!(pool(&world), (2, 1));
    world.wait(200);
    assert_eq!(pool(&world), (1, 0));
    world.end(&late, Outcome::Aborted, 1).unwrap();
    assert_eq!(pool(&world), (0, 0), "it has run for as long as it could");
}

#[test]
fn streams_and_documents_are_abandoned_each_in_their_own_way() {
    let mut world = world(json!({"streams": "cancels", "documents": {"grace_ms": 1_000}}));
    let (stream, _) = world.ask("a", |request| request.stream = true);
    let (document, _) = world.ask("a", |request| request.stream = false);
    world.end(&stream, Outcome::Aborted, 1).unwrap();
    assert_eq!(pool(&world), (1, 0));
    world.end(&document, Outcome::Aborted, 1).unwrap();
    assert_eq!(pool(&world), (1, 1));
}

#[test]
fn only_what_may_run_on_keeps_its_slot() {
    for (outcome, abandoned, kept) in [
        (Outcome::Completed, false, 0),
        (Outcome::Failed, false, 0),
        (Outcome::Cancelled, false, 0),
        (Outcome::Failed, true, 1),
        (Outcome::Aborted, true, 1),
        // As filters of the release before say it.
        (Outcome::Aborted, false, 1),
    ] {
        let mut world = world(json!({"grace_ms": 1_000}));
        let id = world.admit("a");
        let usage = Usage::default();
        let settlement = Settlement { id, outcome, usage, charge_to: None, timing: None, abandoned };
        world.core.settle(&settlement, world.now).unwrap();
        assert_eq!(pool(&world), (kept, kept), "{settlement:?}");
    }
}

#[test]
fn a_call_whose_settlement_was_lost_may_run_on_and_one_that_only_waited_may_not() {
    let mut world = world(json!({"grace_ms": 1_000}));
    world.admit("b");
    world.admit("b");
    world.ask("b", |_| ());
    for settlement in world.core.settlements_of(|_| true) {
        world.core.settle(&settlement, world.now).unwrap();
    }
    assert_eq!(pool(&world), (2, 2));
    world.wait(1_000);
    assert_eq!(pool(&world), (0, 0));
}

#[test]
fn an_orphan_survives_a_reload_and_is_told_by_its_explanation() {
    let mut world = world(json!({"grace_ms": 5_000}));
    let id = world.admit("a");
    world.end(&id, Outcome::Aborted, 1).unwrap();
    let until = world.now.plus(Millis(5_000));
    let fate = world.core.explain(&id).unwrap().fate;
    assert!(matches!(fate, Fate::Ended { slot_until: Some(told), .. } if told == until), "{fate:?}");
    reconfigure(&mut world, json!("cancels"));
    assert_eq!((pool(&world), in_flight(&world)), ((1, 1), 1));
    let kept = world.core.give_back(world.now).into_iter().map(|(_, request)| request.keep).max();
    assert_eq!(kept, Some(1), "the ledger keeps its slot after this process, too");
    world.wait(5_000);
    assert_eq!((pool(&world), in_flight(&world)), ((0, 0), 0));
}

#[test]
fn no_orphan_outlives_the_longest_request() {
    let mut world = world(json!({"grace_ms": 86_400_000}));
    let id = world.admit("a");
    world.wait(1_000);
    world.end(&id, Outcome::Aborted, 1).unwrap();
    assert_eq!(world.core.next_wake(), Some(LEASE.longest_request));
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Ask,
    End { nth: usize, is_abandoned: bool },
    Wait { span: u64 },
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        3 => Just(Move::Ask),
        3 => (0_usize..4, any::<bool>()).prop_map(|(nth, is_abandoned)| Move::End { nth, is_abandoned }),
        2 => (0_u64..3_000).prop_map(|span| Move::Wait { span }),
    ]
}

proptest! {
    /// Against a plain list of what the servers work on: a server that works on for as long as the pool states never has
    /// more than two calls (I1), and no slot is kept for longer.
    #[test]
    fn servers_that_work_on_never_have_more_calls_than_slots(
        steps in prop::collection::vec(moves(), 1..100), grace in 1_u64..4_000, runs_on in any::<bool>(),
    ) {
        let mut world = world(if runs_on { json!({"runs_on_ms": grace}) } else { json!({"grace_ms": grace}) });
        // Ids with their start, and ends of those that were left.
        let (mut running, mut left) = (Vec::<(AdmissionId, Millis)>::new(), Vec::<Millis>::new());
        for step in steps {
            let events = match step {
                Move::Ask => {
                    let (id, decision) = world.ask("b", |_| ());
                    if let Decision::Admitted(_) = decision {
                        running.push((id, world.now));
                    }
                    world.sync()
                }
                Move::End { nth, is_abandoned } if nth < running.len() => {
                    let (id, since) = running.remove(nth);
                    let outcome = if is_abandoned { Outcome::Aborted } else { Outcome::Completed };
                    prop_assert!(world.end(&id, outcome, 1).is_some());
                    let until = if runs_on { since.plus(Millis(grace)) } else { world.now.plus(Millis(grace)) };
                    if is_abandoned && until > world.now {
                        left.push(until);
                    }
                    world.sync()
                }
                Move::End { .. } => Vec::new(),
                Move::Wait { span } => {
                    let end = world.now.plus(Millis(span));
                    while world.now < end {
                        let wake = world.core.next_wake().unwrap_or(end);
                        world.now = end.min(wake.max(world.now.plus(Millis(1)))).min(world.now.plus(Millis(200)));
                        let now = world.now;
                        left.retain(|until| *until > now);
                        let events = world.sync();
                        running.extend(started(&events).into_iter().map(|id| (id.clone(), now)));
                        prop_assert!(running.len() + left.len() <= 2);
                    }
                    Vec::new()
                }
            };
            running.extend(started(&events).into_iter().map(|id| (id.clone(), world.now)));
            prop_assert!(running.len() + left.len() <= 2);
            prop_assert_eq!(pool(&world).0 as usize, running.len() + left.len());
            prop_assert_eq!(pool(&world).1 as usize, left.len());
        }
    }
}
