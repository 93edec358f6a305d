//! What is decided at the door: levels, deadlines, context, limits, and ids that come twice.

use crate::chance::{Chance, cases};
use crate::setup::{Setup, TenantSetup};
use crate::world::{Ask, World, id, started};
use proptest::prelude::*;
use sluice_policy::admission::{Decision, Event};
use sluice_policy::units::{Millis, Priority, Tokens};
use sluice_policy::wire::{Outcome, Reason, Refusal, Usage};
use std::collections::BTreeSet;

fn refusal(decision: Decision) -> Option<Refusal> {
    match decision {
        Decision::Rejected(refusal) => Some(refusal),
        Decision::Admitted(_) | Decision::Queued => None,
    }
}

fn admitted(decision: &Decision) -> bool {
    matches!(decision, Decision::Admitted(_))
}

proptest! {
    #![proptest_config(cases(300))]

    /// `x-priority` may only lower: below the level of the key's own rule, or else below the tenant's ceiling.
    #[test]
    fn a_client_never_gets_a_better_level_than_its_key_or_tenant_has(
        ceiling in 0_u8..10, below in 0_u8..10,
        granted in prop::option::of(0_u8..10), asked in prop::option::of(0_u8..10),
    ) {
        let default = (ceiling + below).min(9);
        let setup = Setup::plain(1, vec![TenantSetup { default, ceiling, ..TenantSetup::plain(0) }]);
        let mut world = World::new(&setup);
        let decision = world.ask(0, &Ask { level: asked, granted, ..Ask::of(0, 100) });
        let Decision::Admitted(grant) = decision else { panic!("{decision:?}") };
        let got = u8::from(grant.priority);
        prop_assert!(asked.is_none_or(|asked| got >= asked), "P{got} where {asked:?} was asked");
        let best = granted.unwrap_or(ceiling);
        prop_assert_eq!(got, asked.or(granted).unwrap_or(default).max(best));
    }

    /// Whoever would wait longer than its deadline is refused on arrival, with where it would have stood, how long, and
    /// when to come again; whoever would not is let in, and answered by then.
    #[test]
    fn a_deadline_that_cannot_be_met_is_refused_on_arrival(
        slots in 1_u32..5, service in 1_u64..400, waiting in 0_usize..60, deadline in 1_u64..20_000, of_config: bool,
    ) {
        let mut setup = Setup::plain(slots, vec![TenantSetup::plain(5); 3]);
        setup.timeout = 60_000;
        setup.deadline = of_config.then_some(deadline);
        let patient = Ask { deadline: Some(60_000), ..Ask::of(0, 100) };
        let mut world = World::new(&setup);
        // The pool learns its pace from a few calls.
        for number in 0..5 {
            prop_assert!(admitted(&world.ask(number, &patient)));
            world.wait(service);
            world.end(number, 100);
            world.turn();
        }
        for number in 5..5 + slots as usize + waiting {
            world.ask(number, &patient);
            world.turn();
        }
        let last = 100;
        let decision = world.ask(last, &Ask { deadline: (!of_config).then_some(deadline), ..Ask::of(1, 100) });
        match refusal(decision.clone()) {
            Some(refusal) => {
                prop_assert_eq!((refusal.status, refusal.reason), (503, Reason::DeadlineUnreachable));
                prop_assert!(refusal.estimated_wait_ms.unwrap().0 > deadline);
                prop_assert!((1..=waiting as u64 + 1).contains(&refusal.position.unwrap()));
                prop_assert!(refusal.retry_after_ms.unwrap().0 > 0);
                prop_assert_eq!(world.core.in_flight(&"t1".into()), 0);
            }
            None => {
                prop_assert_eq!(decision, Decision::Queued);
                let place = world.core.explain(&id(last)).unwrap().queued_at.clone().unwrap();
                prop_assert!(place.estimated_wait.0 <= deadline);
                // Nobody ends, so it is told so at its deadline, rounded up to 16 ms.
                let events = world.wait(deadline + 16);
                let told = events.iter().any(|event| matches!(event, Event::Refused(of, refusal)
                    if *of == id(last) && refusal.reason == Reason::QueueTimeout));
                prop_assert!(told, "{events:?}");
            }
        }
    }

    /// The estimate is about right where its suppositions hold: one level, equal calls, a steady pace.
    #[test]
    fn the_estimated_wait_of_a_steady_queue_is_right_within_a_half(
        slots in 1_u32..6, service in 20_u64..500, waiting in 5_usize..40,
    ) {
        let mut world = World::new(&Setup::plain(slots, vec![TenantSetup::plain(5)]));
        let (mut ends, mut asked, mut ended) = (BTreeSet::new(), 0, 0);
        let mut watched: Option<(usize, u64, u64)> = None;
        let waited = loop {
            // A steady backlog until the pool has learned its pace; then nobody comes after the watched one.
            while watched.is_none() && world.waiting() < waiting {
                let decision = world.ask(asked, &Ask::of(0, 100));
                if admitted(&decision) {
                    ends.insert((world.now + service * (ends.len() as u64 + 1) / u64::from(slots), asked));
                } else if ended >= 40 && world.waiting() == waiting {
                    let place = world.core.explain(&id(asked)).unwrap().queued_at.clone().unwrap();
                    watched = Some((asked, world.now, place.estimated_wait.0));
                }
                asked += 1;
                for number in started(world.turn()) {
                    ends.insert((world.now + service * (ends.len() as u64 + 1) / u64::from(slots), number));
                }
            }
            let (at, number) = ends.pop_first().unwrap();
            prop_assert!(started(world.wait(at.saturating_sub(world.now))).is_empty());
            world.end(number, 100);
            ended += 1;
            let starts = started(world.turn());
            ends.extend(starts.iter().map(|number| (world.now + service, *number)));
            if let Some((number, since, _)) = watched && starts.contains(&number) {
                break world.now - since;
            }
        };
        let estimated = watched.unwrap().2;
        prop_assert!(estimated <= waited * 3 / 2 + service, "{waited} of {estimated}");
        prop_assert!(waited <= estimated * 3 / 2 + service, "{waited} of {estimated}");
    }

    /// What certainly does not fit the context is refused at once and charged to nobody; else no more is reserved than
    /// the context leaves.
    #[test]
    fn no_call_reserves_more_than_the_context(
        context in 10_u64..5_000, input in 0_u64..20_000, max in prop::option::of(1_u64..10_000), sequences in 1_u32..5,
    ) {
        let mut setup = Setup::plain(1, vec![TenantSetup { tokens_per_min: Some(1_000_000), ..TenantSetup::plain(5) }]);
        setup.pools[0].context = Some(context);
        let mut world = World::new(&setup);
        let decision = world.ask(0, &Ask { input, max, sequences, ..Ask::of(0, 100) });
        if input / 4 + max.unwrap_or(1) > context {
            let refusal = refusal(decision).unwrap();
            prop_assert_eq!((refusal.status, refusal.reason), (400, Reason::ContextLengthExceeded));
            prop_assert_eq!(refusal.retry_after_ms, None);
            prop_assert_eq!((refusal.rates[0].remaining, world.running()), (1_000_000, 0));
        } else {
            let Decision::Admitted(grant) = decision else { panic!("{decision:?}") };
            // Where the prompt fills the context by itself, one token a sequence is left to answer with.
            let most = input.min(context) + u64::from(sequences) * (context - input.min(context)).max(1);
            prop_assert!(grant.reserved <= Tokens(most), "{grant:?} of {most}");
        }
    }

    /// Tenants that are disabled, unknown or not allowed the model never hold anything, and no others notice.
    #[test]
    fn who_may_not_call_takes_nothing_from_who_may(calls in prop::collection::vec(0_usize..4, 1..60)) {
        let plain = TenantSetup::plain(5);
        let mut setup = Setup::plain(2, vec![
            plain.clone(),
            TenantSetup { disabled: true, ..plain.clone() },
            TenantSetup { absent: true, ..plain.clone() },
            TenantSetup { only_first_model: true, ..plain },
        ]);
        setup.pools.push(setup.pools[0].clone());
        setup.depth_per_level = 10;
        let (mut world, mut allowed) = (World::new(&setup), 0);
        for (number, tenant) in calls.into_iter().enumerate() {
            let decision = world.ask(number, &Ask { pool: 1, ..Ask::of(tenant, 100) });
            let expected = match tenant {
                0 => { allowed += 1; (allowed > 12).then_some((503, Reason::QueueFull)) }
                1 => Some((403, Reason::TenantDisabled)),
                2 => Some((401, Reason::UnknownKey)),
                _ => Some((404, Reason::ModelNotAllowed)),
            };
            prop_assert_eq!(refusal(decision).map(|refusal| (refusal.status, refusal.reason)), expected);
            world.turn();
            let held: u32 = (1..4).map(|tenant| world.core.in_flight(&format!("t{tenant}").into())).sum();
            prop_assert_eq!(held, 0);
            prop_assert_eq!(world.core.in_flight(&"t0".into()) as usize, allowed.min(12));
        }
    }

    /// I7: a flood of any shape leaves no more waiting than the bounds allow, and every other call an answer.
    #[test]
    fn a_flood_leaves_no_more_waiting_than_the_bounds_allow(
        per_level in 1_usize..20, per_tenant in 1_usize..10, bytes in 500_u64..5_000, seed: u64,
    ) {
        let mut chance = Chance::seeded(seed);
        let mut setup = Setup::plain(1, vec![TenantSetup::plain(5); 5]);
        (setup.depth_per_level, setup.depth_per_tenant) = (per_level, per_tenant);
        (setup.bytes, setup.bytes_per_tenant) = (bytes, bytes / 2);
        let mut world = World::new(&setup);
        let mut held = [0; 5];
        for number in 0..300 {
            let (tenant, size) = (chance.index(5), chance.size(1, 600));
            let ask = Ask { level: Some(chance.index(10) as u8), bytes: size, ..Ask::of(tenant, 100) };
            match world.ask(number, &ask) {
                Decision::Queued => held[tenant] += size,
                Decision::Admitted(_) => prop_assert_eq!(number, 0),
                Decision::Rejected(refusal) => prop_assert_eq!(refusal.reason, Reason::QueueFull),
            }
            prop_assert!(held.iter().sum::<u64>() <= bytes && held.iter().all(|held| *held <= bytes / 2));
            prop_assert!(world.waiting() <= per_level * 10);
        }
        prop_assert!(Priority::all().all(|level| world.core.queue_depth(&world.pools[0], level) <= per_level));
        let events = world.core.drain(Millis(world.now));
        prop_assert!(events.len() <= per_level * 10);
        prop_assert_eq!((world.waiting(), world.running()), (0, 1));
    }

    /// I6: whatever is repeated and in whatever order, an id reserves once and is settled once. All within 24 seconds:
    /// no call outlives the longest request.
    #[test]
    fn an_id_reserves_once_and_settles_once_whatever_is_repeated(
        messages in prop::collection::vec((0_usize..4, any::<bool>(), 0_u64..400), 1..60),
    ) {
        let setup = Setup::plain(2, vec![TenantSetup { concurrent: Some(9), ..TenantSetup::plain(5) }]);
        let mut world = World::new(&setup);
        let (mut reserved, mut settled, mut told) = ([0; 4], [0; 4], [false; 4]);
        for (number, ask, pause) in messages {
            world.wait(pause);
            if ask {
                let decision = world.ask(number, &Ask::of(0, 100));
                let new = refusal(decision).is_none();
                prop_assert_eq!(new, reserved[number] == 0 && !told[number]);
                reserved[number] += usize::from(new);
            } else {
                settled[number] += usize::from(world.settle(number, Outcome::Completed, Usage::default()).is_some());
                told[number] = true;
            }
            world.turn();
            let once = |(settled, reserved): (&usize, &usize)| settled <= reserved && *reserved <= 1;
            prop_assert!(settled.iter().zip(&reserved).all(once));
            let open: usize = reserved.iter().sum::<usize>() - settled.iter().sum::<usize>();
            prop_assert_eq!(world.core.in_flight(&"t0".into()) as usize, open);
        }
    }
}

/// I6 again, for a call that gave up in the queue: its request, repeated late, must not stand in line once more.
#[test]
fn a_request_that_is_repeated_after_its_time_out_is_known() {
    let mut setup = Setup::plain(1, vec![TenantSetup::plain(5)]);
    setup.timeout = 500;
    let mut world = World::new(&setup);
    assert!(admitted(&world.ask(0, &Ask::of(0, 100))));
    assert_eq!(world.ask(1, &Ask::of(0, 100)), Decision::Queued);
    assert_eq!(world.wait(600).len(), 1);
    let again = refusal(world.ask(1, &Ask::of(0, 100)));
    assert_eq!(again.map(|refusal| refusal.reason), Some(Reason::DuplicateAdmission));
}
