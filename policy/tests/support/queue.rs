//! The fair queue by itself: its walk against the naive one, its bounds, and what weights and corrections mean.

use crate::chance::cases;
use crate::naive_tree::{Flow as NaiveFlow, NaiveTree, Weights};
use proptest::prelude::*;
use sluice_policy::queue::{
    ChargedBy, FairQueue, Flow, Full, GroupIndex, QueueSettings, SharePolicy, Shares, TenantIndex, Waiter,
};
use sluice_policy::units::{Millis, Priority, Tokens};
use std::collections::BTreeMap;

fn flow(group: u16, tenant: u32, level: u8) -> Flow {
    Flow { group: GroupIndex(group), tenant: TenantIndex(tenant), level: Priority::try_from(level).unwrap() }
}

fn naive(flow: Flow) -> NaiveFlow {
    NaiveFlow { pool: 0, group: usize::from(flow.group.0), level: u8::from(flow.level), tenant: flow.tenant.0 as usize }
}

fn roomy(shares: Shares) -> QueueSettings {
    let most = usize::MAX;
    QueueSettings { shares, depth_per_level: most, depth_per_tenant: most, bytes: u64::MAX, ..QueueSettings::default() }
}

fn waiter(key: u64, flow: Flow, charge: u64) -> Waiter {
    Waiter { key, flow, charge: Tokens(charge), bytes: 1, deadline: Millis(60_000) }
}

fn start_next(queue: &mut FairQueue) -> Option<Waiter> {
    start_charged(queue).map(|(waiter, _)| waiter)
}

fn start_charged(queue: &mut FairQueue) -> Option<(Waiter, ChargedBy)> {
    let (ticket, _) = queue.head()?;
    let waiter = queue.leave(ticket)?;
    Some((waiter, queue.charge(waiter.flow, waiter.charge)))
}

/// Keeps all of `flows` backlogged for `count` starts, and tells what each was served.
fn serve(queue: &mut FairQueue, flows: &[(Flow, u64)], count: usize) -> Vec<u64> {
    for (key, (flow, charge)) in (0..).zip(flows) {
        queue.join(waiter(key, *flow, *charge)).unwrap();
        queue.join(waiter(key, *flow, *charge)).unwrap();
    }
    let mut served = vec![0; flows.len()];
    for _ in 0..count {
        let started = start_next(queue).unwrap();
        served[started.key as usize] += started.charge.0;
        queue.join(started).unwrap();
    }
    served
}

#[derive(Clone, Debug)]
enum Turn {
    Join {
        flow: (u16, u32, u8),
        charge: u64,
    },
    Start,
    /// Past the queue, as far as the queue can tell.
    Charge {
        flow: (u16, u32, u8),
        charge: u64,
    },
    Leave {
        nth: usize,
    },
    Correct {
        nth: usize,
        percent: u64,
    },
    Reshare {
        policy: SharePolicy,
        levels: [u64; 10],
        groups: Vec<u64>,
    },
    Weigh {
        tenant: u32,
        weight: u64,
    },
}

fn any_flow() -> impl Strategy<Value = (u16, u32, u8)> {
    (0_u16..3, 0_u32..4, 0_u8..10)
}

fn policy() -> impl Strategy<Value = SharePolicy> {
    prop_oneof![Just(SharePolicy::Hybrid), Just(SharePolicy::Wfq), Just(SharePolicy::Strict)]
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        8 => (any_flow(), 1_u64..50_000).prop_map(|(flow, charge)| Turn::Join { flow, charge }),
        7 => Just(Turn::Start),
        1 => (any_flow(), 1_u64..50_000).prop_map(|(flow, charge)| Turn::Charge { flow, charge }),
        2 => (0_usize..50).prop_map(|nth| Turn::Leave { nth }),
        4 => (0_usize..50, 0_u64..300).prop_map(|(nth, percent)| Turn::Correct { nth, percent }),
        1 => (policy(), prop::array::uniform10(1_u64..300), prop::collection::vec(1_u64..100, 0..4))
            .prop_map(|(policy, levels, groups)| Turn::Reshare { policy, levels, groups }),
        1 => (0_u32..4, 1_u64..9).prop_map(|(tenant, weight)| Turn::Weigh { tenant, weight }),
    ]
}

proptest! {
    #![proptest_config(cases(300))]

    /// Group, level, tenant: whoever starts is who the naive walk chooses, with every weight and policy, after
    /// corrections, departures, starts past the queue, and changes of weight.
    #[test]
    fn the_walk_agrees_with_one_that_looks_at_everybody(turns in prop::collection::vec(turn(), 1..250)) {
        let shares = Shares::default();
        let mut queue = FairQueue::new(roomy(shares.clone()));
        let mut weights =
            Weights { policy: shares.policy, levels: shares.levels, groups: vec![shares.groups], tenants: vec![1; 4] };
        let (mut tree, mut waiting, mut running) = (NaiveTree::default(), Vec::new(), Vec::new());
        for (key, turn) in (0..).zip(turns) {
            let flows = |waiting: &Vec<(_, Waiter)>| -> Vec<NaiveFlow> {
                waiting.iter().map(|(_, waiter)| naive(waiter.flow)).collect()
            };
            match turn {
                Turn::Join { flow: (group, tenant, level), charge } => {
                    let (joins, before) = (waiter(key, flow(group, tenant, level), charge), flows(&waiting));
                    waiting.push((queue.join(joins).unwrap(), joins));
                    tree.changed(&before, &flows(&waiting), weights.policy);
                }
                Turn::Start => {
                    let next = tree.next(&flows(&waiting), &weights);
                    let Some((started, by)) = start_charged(&mut queue) else {
                        prop_assert!(waiting.is_empty());
                        continue;
                    };
                    prop_assert!(next.contains(&naive(started.flow)), "{:?} is not in {:?}", started, next);
                    let first = waiting.iter().position(|(_, other)| other.flow == started.flow).unwrap();
                    let before = flows(&waiting);
                    prop_assert_eq!(waiting.remove(first).1.key, started.key);
                    tree.changed(&before, &flows(&waiting), weights.policy);
                    tree.start(&flows(&waiting), naive(started.flow), started.charge.0, &weights);
                    running.push((started, by, weights.above(naive(started.flow))));
                }
                Turn::Charge { flow: (group, tenant, level), charge } => {
                    let started = waiter(key, flow(group, tenant, level), charge);
                    let by = queue.charge(started.flow, started.charge);
                    tree.start(&flows(&waiting), naive(started.flow), charge, &weights);
                    running.push((started, by, weights.above(naive(started.flow))));
                }
                Turn::Leave { nth } if nth < waiting.len() => {
                    let before = flows(&waiting);
                    let (ticket, leaves) = waiting.remove(nth);
                    prop_assert_eq!(queue.leave(ticket).map(|left| left.key), Some(leaves.key));
                    tree.changed(&before, &flows(&waiting), weights.policy);
                }
                Turn::Correct { nth, percent } if nth < running.len() => {
                    let (ended, by, above) = running.remove(nth);
                    let actual = ended.charge.0 * percent / 100;
                    queue.correct(ended.flow, by, ended.charge, Tokens(actual));
                    let charges = (actual, ended.charge.0);
                    tree.correct(&flows(&waiting), naive(ended.flow), charges, above, &weights);
                }
                Turn::Leave { .. } | Turn::Correct { .. } => {}
                Turn::Reshare { policy, levels, groups } => {
                    queue.set_shares(Shares { policy, levels, groups: groups.clone() });
                    tree.ruled(&flows(&waiting), weights.policy, policy);
                    weights = Weights { policy, levels, groups: vec![groups], ..weights };
                }
                Turn::Weigh { tenant, weight } => {
                    queue.set_weight(TenantIndex(tenant), weight);
                    weights.tenants[tenant as usize] = weight;
                }
            }
        }
    }

    /// Whom an operator is shown as next are those who start next, in that order.
    #[test]
    fn the_first_of_a_level_are_those_who_start_first(
        joins in prop::collection::vec((0_u16..3, 0_u32..5, 1_u64..50_000), 1..80), most in 0_usize..40,
        groups in prop::collection::vec(1_u64..100, 0..4), weights in prop::collection::vec(1_u64..9, 5),
    ) {
        let mut queue = FairQueue::new(roomy(Shares { groups, ..Shares::default() }));
        for (tenant, weight) in (0..).zip(weights) {
            queue.set_weight(TenantIndex(tenant), weight);
        }
        for (key, (group, tenant, charge)) in (0..).zip(joins) {
            queue.join(waiter(key, flow(group, tenant, 5), charge)).unwrap();
            // Some have had something before.
            if key % 3 == 0 {
                start_next(&mut queue);
            }
        }
        let level = Priority::try_from(5).unwrap();
        let told: Vec<u64> = queue.first(level, most).iter().map(|waiter| waiter.key).collect();
        let started: Vec<u64> = std::iter::from_fn(|| start_next(&mut queue)).map(|waiter| waiter.key).collect();
        prop_assert_eq!(&told, &started[..most.min(started.len())]);
        prop_assert!(queue.first(level, most).is_empty());
    }

    /// I7: no bound is ever exceeded, whoever is refused is told the bound that is reached, and a refusal changes
    /// nothing.
    #[test]
    fn no_bound_of_the_queue_is_ever_exceeded(
        levels in 1_usize..8, tenants in 1_usize..6, bytes in 100_u64..2_000,
        joins in prop::collection::vec((any_flow(), 1_u64..400, any::<bool>()), 1..120),
    ) {
        let mut queue = FairQueue::new(QueueSettings {
            depth_per_level: levels, depth_per_tenant: tenants, bytes, ..QueueSettings::default()
        });
        for (key, ((group, tenant, level), size, starts)) in (0..).zip(joins) {
            let joins = Waiter { bytes: size, ..waiter(key, flow(group, tenant, level), 10) };
            let held: u64 = queue.waiters().map(|(_, waiter)| waiter.bytes).sum();
            let of_tenant = queue.waiters().filter(|(_, waiter)| waiter.flow.tenant == joins.flow.tenant).count();
            prop_assert_eq!(queue.tenant_depth(joins.flow.tenant), of_tenant);
            let before = (queue.len(), queue.depth(joins.flow.level), of_tenant);
            match queue.join(joins) {
                Ok(_) => prop_assert!(held + size <= bytes && before.1 < levels && before.2 < tenants),
                Err(full) => {
                    match full {
                        Full::Bytes => prop_assert!(held + size > bytes),
                        Full::Level => prop_assert_eq!(before.1, levels),
                        Full::Tenant => prop_assert_eq!(before.2, tenants),
                    }
                    let after = (queue.len(), queue.depth(joins.flow.level), queue.tenant_depth(joins.flow.tenant));
                    prop_assert_eq!(after, before);
                }
            }
            if starts {
                start_next(&mut queue);
            }
        }
    }

    /// I4 for one slot, at every storey: tokens follow the weights within two of the largest requests.
    #[test]
    fn backlogged_branches_are_served_by_weight_within_two_requests(
        storey in 0_usize..3, branches in prop::collection::vec((1_u64..300, 1_u64..50_000), 2..8),
    ) {
        let mut shares = Shares { groups: vec![1], ..Shares::default() };
        let mut weights = BTreeMap::new();
        let flows: Vec<(Flow, u64)> = (1_u8..).zip(&branches).map(|(at, (weight, size))| {
            match storey {
                0 => shares.groups.push(*weight),
                1 => shares.levels[usize::from(at)] = *weight,
                _ => drop(weights.insert(TenantIndex(u32::from(at)), *weight)),
            }
            let place = [(u16::from(at), 0, 5), (0, u32::from(at), at), (0, u32::from(at), 5)][storey];
            (flow(place.0, place.1, place.2), *size)
        }).collect();
        let mut queue = FairQueue::new(roomy(shares));
        for (tenant, weight) in weights {
            queue.set_weight(tenant, weight);
        }
        let served = serve(&mut queue, &flows, 3_000);
        let per_weight = |tokens: u64, weight: u64| u128::from(tokens) * 1_000 / u128::from(weight);
        for (a, (weight_a, size_a)) in branches.iter().enumerate() {
            for (b, (weight_b, size_b)) in branches.iter().enumerate() {
                let largest = per_weight(*size_a, *weight_a).max(per_weight(*size_b, *weight_b));
                let apart = per_weight(served[a], *weight_a).abs_diff(per_weight(served[b], *weight_b));
                prop_assert!(apart <= 2 * largest + 10, "{served:?} of {branches:?}");
            }
        }
    }

    /// Whoever comes back from idle, and however long either had the pool to itself, shares from then on.
    #[test]
    fn nobody_claims_the_past_and_nobody_pays_for_it(
        storey in 0_usize..3, alone in prop::collection::vec((any::<bool>(), 1_u64..50_000), 0..200),
        sizes in (1_u64..5_000, 1_u64..5_000),
    ) {
        let places = [[(1, 0, 5), (2, 0, 5)], [(0, 0, 4), (0, 1, 6)], [(0, 1, 5), (0, 2, 5)]][storey];
        let [a, b] = places.map(|(group, tenant, level)| flow(group, tenant, level));
        let shares = Shares { levels: [7; 10], groups: vec![7; 3], ..Shares::default() };
        let mut queue = FairQueue::new(roomy(shares));
        for (first, size) in alone {
            queue.charge(if first { a } else { b }, Tokens(size));
        }
        let served = serve(&mut queue, &[(a, sizes.0), (b, sizes.1)], 200);
        // What either started last, alone, may still count against it once.
        prop_assert!(served[0].abs_diff(served[1]) <= 50_000 + 2 * sizes.0.max(sizes.1), "{served:?}");
    }

    /// A wrong estimate that is corrected leaves no trace: the order is the one of the true charges.
    #[test]
    fn a_corrected_estimate_counts_like_the_truth(
        calls in prop::collection::vec((0_u32..4, 1_u64..50_000, 0_u64..100_000), 1..120),
    ) {
        // At weight 1 nothing is rounded.
        let settings = roomy(Shares { levels: [1; 10], ..Shares::default() });
        let (mut guessed, mut known) = (FairQueue::new(settings.clone()), FairQueue::new(settings));
        for (key, (tenant, actual, _)) in (0..).zip(&calls) {
            let joins = waiter(key, flow(0, *tenant, 5), *actual);
            guessed.join(joins).unwrap();
            known.join(joins).unwrap();
        }
        while let Some((ticket, _)) = guessed.head() {
            let starts = guessed.leave(ticket).unwrap();
            let reserved = Tokens(calls[starts.key as usize].2);
            let by = guessed.charge(starts.flow, reserved);
            guessed.correct(starts.flow, by, reserved, starts.charge);
            prop_assert_eq!(start_next(&mut known).map(|other| other.key), Some(starts.key));
        }
    }

    /// Whoever leaves before its turn is not charged: the rest start as if it had never come.
    #[test]
    fn who_leaves_the_queue_pays_nothing(
        calls in prop::collection::vec((0_u32..3, 1_u64..50_000, any::<bool>()), 1..80),
    ) {
        let mut with = FairQueue::new(roomy(Shares::default()));
        let mut without = with.clone();
        // Somebody of each tenant stays, so that nobody falls asleep.
        let mut leaving = Vec::new();
        for (key, (tenant, charge, leaves)) in (0..).zip((0..3).map(|tenant| (tenant, 10, false)).chain(calls)) {
            let joins = waiter(key, flow(0, tenant, 5), charge);
            let ticket = with.join(joins).unwrap();
            if leaves {
                leaving.push(ticket);
            } else {
                without.join(joins).unwrap();
            }
        }
        for ticket in leaving {
            prop_assert!(with.leave(ticket).is_some());
        }
        while let Some(started) = start_next(&mut without) {
            prop_assert_eq!(start_next(&mut with).map(|other| other.key), Some(started.key));
        }
        prop_assert!(with.is_empty());
    }
}
