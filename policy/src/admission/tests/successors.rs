//! Calls that come before the end of their tenant's last call is reported.

use super::*;
use std::collections::VecDeque;

/// A pool with room for all; tenant `a` may have so many calls.
fn world(limits: serde_json::Value) -> World {
    let mut world = World::new(limits);
    let mut config = Config::clone(world.core.config());
    let document = json!({"pools": [{"name": "smol", "models": ["m"], "capacity": {"concurrent": 50}}]});
    config.pools = read_document(&document, Config::read).unwrap().pools;
    world.core.configure(config, UnixMillis(0), world.now);
    world.sync();
    world
}

fn told(events: &[Event]) -> Vec<(&AdmissionId, Option<Reason>)> {
    let all = events.iter().map(|event| match event {
        Event::Started(id, _) => (id, None),
        Event::Refused(id, refusal) => (id, Some(refusal.reason)),
    });
    all.collect()
}

#[test]
fn a_thousand_calls_one_after_the_other_are_all_served_though_each_end_is_reported_late() {
    let mut world = world(json!({"concurrent": 1}));
    let mut last = world.admit("a");
    for call in 0..1_000_u32 {
        let (next, decision) = world.ask("a", |request| {
            request.priority = u8::try_from(call % 10).ok().and_then(|level| Priority::try_from(level).ok())
        });
        assert_eq!(decision, Decision::Queued, "call {call}");
        world.now = world.now.plus(Millis(u64::from(call) % 50));
        world.end(&last, Outcome::Completed, 5).unwrap();
        let events = world.sync();
        let [Event::Started(id, grant)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((id, grant.waited_ms), (&next, Millis(u64::from(call) % 50)));
        last = next;
    }
}

#[test]
fn for_whom_no_slot_comes_in_50_ms_is_refused_then_and_is_explained() {
    let mut world = world(json!({"concurrent": 1}));
    world.admit("a");
    let came = world.now;
    let (late, decision) = world.ask("a", |_| ());
    assert_eq!((decision, world.core.next_wake()), (Decision::Queued, Some(came.plus(Millis(50)))));
    assert_eq!(world.wait(49), []);
    let events = world.wait(1);
    let [Event::Refused(id, refusal)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((id, refusal.reason, refusal.waited_ms), (&late, Reason::TenantConcurrency, Millis(50)));
    assert!(refusal.retry_after_ms.is_some());
    let told = world.core.explain(&late).unwrap();
    let Fate::Refused { reason, limit, .. } = told.fate else { panic!("{told:?}") };
    assert_eq!(reason, Reason::TenantConcurrency);
    assert_eq!(limit, Some(Limit { name: LimitName::TenantConcurrent, most: 1 }));
    assert_eq!(world.core.in_flight(&"a".into()), 1);
}

#[test]
fn no_more_wait_than_may_run_and_the_rest_are_refused_at_once() {
    let mut world = world(json!({"concurrent": 3}));
    (0..3).for_each(|_| drop(world.admit("a")));
    (0..3).for_each(|_| assert_eq!(world.ask("a", |_| ()).1, Decision::Queued));
    assert_eq!(reason(&world.ask("a", |_| ()).1), Some((429, Reason::TenantConcurrency)));
    let depth: usize = Priority::all().map(|level| world.core.queue_depth(&"smol".into(), level)).sum();
    assert_eq!(depth, 0, "they stand in no queue");
    assert!(matches!(world.ask("b", |_| ()).1, Decision::Admitted(_)), "and in nobody's way");
}

#[test]
fn a_rate_that_is_hit_as_well_refuses_at_once() {
    let mut world = world(json!({"concurrent": 1, "requests_per_min": 1}));
    world.admit("a");
    assert_eq!(reason(&world.ask("a", |_| ()).1), Some((429, Reason::TenantConcurrency)));
}

#[test]
fn a_call_s_own_deadline_is_not_outwaited_and_a_wait_of_zero_refuses_at_once() {
    let mut world = world(json!({"concurrent": 1}));
    world.admit("a");
    let (hasty, _) = world.ask("a", |request| request.deadline_ms = Some(Millis(20)));
    assert_eq!(world.wait(19), []);
    assert_eq!(told(&world.wait(1)), [(&hasty, Some(Reason::TenantConcurrency))]);
    let mut config = Config::clone(world.core.config());
    config.queue.concurrent_wait = Millis::ZERO;
    world.core.configure(config, UnixMillis(0), world.now);
    world.sync();
    assert_eq!(reason(&world.ask("a", |_| ()).1), Some((429, Reason::TenantConcurrency)));
}

#[test]
fn who_leaves_makes_room_and_whoever_drains_answers_them() {
    let mut world = world(json!({"concurrent": 1}));
    let first = world.admit("a");
    let (left, _) = world.ask("a", |_| ());
    world.end(&left, Outcome::Cancelled, 0).unwrap();
    let (second, decision) = world.ask("a", |_| ());
    assert_eq!(decision, Decision::Queued);
    let events = world.core.drain(world.now);
    assert_eq!(told(&events), [(&second, Some(Reason::ShuttingDown))]);
    world.end(&first, Outcome::Completed, 5).unwrap();
    assert_eq!(world.sync(), []);
    assert!(world.core.is_idle());
}

#[test]
fn a_larger_limit_lets_in_who_waits() {
    let mut world = world(json!({"concurrent": 1}));
    world.admit("a");
    let (next, _) = world.ask("a", |_| ());
    let mut config = Config::clone(world.core.config());
    config.tenants.get_mut(&"a".into()).unwrap().limits.concurrent = Some(2);
    world.core.configure(config, UnixMillis(1), world.now);
    assert_eq!(started(&world.sync()), [&next]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Against a list: a call is admitted beside fewer than the limit, else it waits behind at most `most` others for 50 ms;
    /// a slot goes to who has waited longest, in the moment in which it comes free.
    #[test]
    fn slots_go_in_the_order_of_arrival_and_nobody_waits_beside_a_free_one(
        most in 1_usize..5,
        steps in prop::collection::vec((0_u8..5, 0_usize..8, 0_u64..30), 1..200),
    ) {
        let mut world = world(json!({"concurrent": most}));
        let (mut running, mut waiting) = (Vec::new(), VecDeque::new());
        for (kind, nth, span) in steps {
            match kind {
                0 | 1 => {
                    let (id, decision) = world.ask("a", |_| ());
                    match decision {
                        Decision::Admitted(_) => {
                            prop_assert!(running.len() < most && waiting.is_empty());
                            running.push(id);
                        }
                        Decision::Queued => {
                            prop_assert!(running.len() == most && waiting.len() < most);
                            waiting.push_back((world.now.plus(Millis(50)), id));
                        }
                        Decision::Rejected(refusal) => {
                            prop_assert_eq!(refusal.reason, Reason::TenantConcurrency);
                            prop_assert!(running.len() == most && waiting.len() == most);
                        }
                    }
                }
                2 if !running.is_empty() => {
                    let id = running.remove(nth % running.len());
                    prop_assert!(world.end(&id, Outcome::Completed, 5).is_some());
                    prop_assert!(world.end(&id, Outcome::Completed, 5).is_none());
                }
                3 if !waiting.is_empty() => {
                    let (_, id) = waiting.remove(nth % waiting.len()).unwrap();
                    prop_assert!(world.end(&id, Outcome::Cancelled, 0).is_some());
                }
                _ => world.now = world.now.plus(Millis(span)),
            }
            let mut expected = Vec::new();
            while running.len() < most && !waiting.is_empty() {
                let (_, id) = waiting.pop_front().unwrap();
                expected.push((id.clone(), None));
                running.push(id);
            }
            while waiting.front().is_some_and(|(until, _)| *until <= world.now) {
                let (_, id) = waiting.pop_front().unwrap();
                expected.push((id, Some(Reason::TenantConcurrency)));
            }
            let mut events: Vec<_> = told(&world.sync()).into_iter().map(|(id, why)| (id.clone(), why)).collect();
            // Refusals are told first.
            events.sort_by_key(|(_, why)| why.is_some());
            prop_assert_eq!(events, expected);
            prop_assert_eq!(world.core.in_flight(&"a".into()) as usize, running.len());
            let next = waiting.front().map(|(until, _): &(Millis, AdmissionId)| *until);
            prop_assert!(next.is_none_or(|next| world.core.next_wake().is_some_and(|wake| wake <= next)));
        }
    }
}
