use super::*;
use proptest::prelude::*;

fn level(level: u8) -> Priority {
    Priority::try_from(level).unwrap()
}

fn flow(tenant: u32, at: u8) -> Flow {
    Flow { group: GroupIndex(0), tenant: TenantIndex(tenant), level: level(at) }
}

fn waiter(key: u64, flow: Flow, charge: u64) -> Waiter {
    Waiter { key, flow, charge: Tokens(charge), bytes: 100, deadline: Millis(60_000 + key) }
}

fn roomy() -> QueueSettings {
    QueueSettings { depth_per_level: 1_000_000, depth_per_tenant: 1_000_000, bytes: u64::MAX, ..Default::default() }
}

/// Takes the next one out and charges it, as a pool does.
fn start_next(queue: &mut FairQueue) -> Option<Waiter> {
    let (ticket, _) = queue.head()?;
    let waiter = queue.leave(ticket)?;
    queue.charge(waiter.flow, waiter.charge);
    Some(waiter)
}

/// Serves `count` calls of flows that are always backlogged, and returns the tokens each flow was served.
fn serve_backlogged(queue: &mut FairQueue, flows: &[(Flow, u64)], count: usize) -> Vec<u64> {
    for (key, (flow, charge)) in (0..).zip(flows) {
        queue.join(waiter(key, *flow, *charge)).unwrap();
        queue.join(waiter(key, *flow, *charge)).unwrap();
    }
    let mut served = vec![0; flows.len()];
    for _ in 0..count {
        let started = start_next(queue).unwrap();
        served[usize::try_from(started.key).unwrap()] += started.charge.0;
        queue.join(started).unwrap();
    }
    served
}

#[test]
fn p0_goes_before_everyone_under_hybrid() {
    let mut queue = FairQueue::new(QueueSettings::default());
    for key in 0..5 {
        queue.join(waiter(key, flow(1, 9), 100)).unwrap();
    }
    for key in 5..10 {
        queue.join(waiter(key, flow(2, 0), 1_000_000)).unwrap();
    }
    let order: Vec<u64> = std::iter::from_fn(|| start_next(&mut queue)).map(|waiter| waiter.key).collect();
    assert_eq!(order, [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]);
    assert!(queue.is_empty());
}

/// A counter that is clamped after each round, as deficit round robin does, collapses to strict order at 32,000
/// tokens a request; virtual counters do not.
#[test]
fn served_tokens_follow_the_weights_within_two_percent_at_any_size() {
    for size in [500, 32_000] {
        let flows: Vec<(Flow, u64)> = (1..=9).map(|at| (flow(u32::from(at), at), size)).collect();
        let mut queue = FairQueue::new(roomy());
        let served = serve_backlogged(&mut queue, &flows, 20_000);
        let weights = &Shares::default().levels[1..];
        let (total, all) = (20_000 * size, weights.iter().sum::<u64>());
        for (level, (tokens, weight)) in served.iter().zip(weights).enumerate() {
            let expected = total * weight / all;
            let off = tokens.abs_diff(expected) * 100;
            assert!(off <= expected * 2, "P{} got {tokens} of {expected} at {size}", level + 1);
        }
    }
}

#[test]
fn strict_starves_the_lower_level_and_wfq_shares_with_p0() {
    let flows = [(flow(1, 0), 100), (flow(2, 1), 100)];
    let shares = |policy| QueueSettings { shares: Shares { policy, ..Shares::default() }, ..roomy() };
    let mut strict = FairQueue::new(shares(SharePolicy::Strict));
    assert_eq!(serve_backlogged(&mut strict, &flows, 300), [30_000, 0]);
    let mut wfq = FairQueue::new(shares(SharePolicy::Wfq));
    assert_eq!(serve_backlogged(&mut wfq, &flows, 300), [20_000, 10_000]);
}

#[test]
fn ten_tenants_of_a_level_get_equal_tokens_whatever_the_size_of_their_requests() {
    let sizes = [50, 100, 300, 1_000, 2_500, 5_000, 9_000, 15_000, 32_000, 50_000];
    let flows: Vec<(Flow, u64)> = sizes.iter().zip(0..).map(|(size, tenant)| (flow(tenant, 5), *size)).collect();
    let served = serve_backlogged(&mut FairQueue::new(roomy()), &flows, 200_000);
    let (sum, squares) = served.iter().fold((0_u128, 0_u128), |(sum, squares), tokens| {
        let tokens = u128::from(*tokens);
        (sum + tokens, squares + tokens * tokens)
    });
    // Jain's index: (Σx)² / (n·Σx²) ≥ 0.99.
    assert!(sum * sum * 100 >= 10 * squares * 99, "{served:?}");
}

#[test]
fn a_tenant_back_from_idle_cannot_claim_the_past() {
    let mut queue = FairQueue::new(roomy());
    for key in 0..100 {
        queue.join(waiter(key, flow(1, 5), 100)).unwrap();
    }
    for _ in 0..50 {
        start_next(&mut queue);
    }
    for key in 100..150 {
        queue.join(waiter(key, flow(2, 5), 100)).unwrap();
    }
    let next: Vec<u32> = std::iter::from_fn(|| start_next(&mut queue)).take(20).map(|w| w.flow.tenant.0).collect();
    assert_eq!(next.iter().filter(|tenant| **tenant == 2).count(), 10, "{next:?}");
}

#[test]
fn who_had_the_pool_to_itself_is_not_punished_for_it() {
    for (old, new, fair) in [(flow(1, 5), flow(2, 5), 10), (flow(1, 5), flow(2, 7), 4), (flow(1, 0), flow(1, 5), 0)] {
        let mut queue = FairQueue::new(roomy());
        for _ in 0..1_000 {
            queue.charge(old, Tokens(100));
        }
        for key in 0..500 {
            queue.join(waiter(key, new, 100)).unwrap();
            queue.join(waiter(key, old, 100)).unwrap();
        }
        let started: Vec<Flow> =
            std::iter::from_fn(|| start_next(&mut queue)).map(|waiter| waiter.flow).take(20).collect();
        let to_new = started.iter().filter(|flow| **flow == new).count();
        assert!(to_new.abs_diff(fair) <= 1, "{old:?} {new:?} {started:?}");
    }
}

#[test]
fn groups_share_eighty_to_twenty_lend_when_idle_and_flip_when_told() {
    let grouped = |group, tenant, at| Flow { group: GroupIndex(group), ..flow(tenant, at) };
    let (internal, external) = (grouped(0, 1, 5), grouped(1, 2, 5));
    let shares = |groups: &[u64]| Shares { groups: groups.to_vec(), ..Shares::default() };
    let mut queue = FairQueue::new(QueueSettings { shares: shares(&[80, 20]), ..roomy() });
    assert_eq!(serve_backlogged(&mut queue, &[(internal, 10), (external, 10)], 1_000), [8_000, 2_000]);
    queue.set_shares(shares(&[20, 80]));
    let mut served = [0_u32, 0];
    for _ in 0..1_000 {
        let started = start_next(&mut queue).unwrap();
        served[usize::from(started.flow.group.0)] += 1;
        queue.join(started).unwrap();
    }
    assert!(served[0].abs_diff(200_u32) <= 1, "{served:?}");
    // P0 of either group goes before all.
    queue.join(waiter(9, grouped(1, 3, 0), 10)).unwrap();
    assert_eq!(start_next(&mut queue).unwrap().key, 9);
    // With one group idle, the other has everything.
    let leaving = queue.waiters().filter(|(_, waiter)| waiter.flow == internal).map(|(ticket, _)| ticket);
    for ticket in leaving.collect::<Vec<_>>() {
        queue.leave(ticket);
    }
    assert!(std::iter::from_fn(|| start_next(&mut queue)).all(|waiter| waiter.flow == external));
}

#[test]
fn a_tenants_weight_counts_inside_its_level() {
    let mut queue = FairQueue::new(roomy());
    queue.set_weight(TenantIndex(1), 3);
    assert_eq!(serve_backlogged(&mut queue, &[(flow(1, 5), 100), (flow(2, 5), 100)], 400), [30_000, 10_000]);
}

/// A weight that changes while a call runs neither gives credit nor takes it: the correction undoes what was charged.
#[test]
fn a_correction_goes_by_the_weights_of_its_charge() {
    for (before, after) in [(1, 100), (100, 1)] {
        let weighted = |weight| Shares { groups: vec![weight, 7], levels: [weight; 10], ..Shares::default() };
        let mut queue = FairQueue::new(QueueSettings { shares: weighted(before), ..roomy() });
        queue.set_weight(TenantIndex(1), before);
        // Both have had 1,000 tokens in the end, though the first had ten times as many reserved.
        let (one, other) = (flow(1, 5), flow(2, 5));
        queue.charge(other, Tokens(1_000));
        let by = queue.charge(one, Tokens(10_000));
        let counters = |queue: &mut FairQueue| {
            queue.join(waiter(0, one, 1)).unwrap();
            queue.branches().first().map(|branch| (branch.group_counter, branch.level_counter)).unwrap()
        };
        queue.set_shares(weighted(after));
        queue.set_weight(TenantIndex(1), after);
        queue.correct(one, by, Tokens(10_000), Tokens(1_000));
        assert_eq!(counters(&mut queue), (2_000 / before, 2_000 / before));
        queue.join(waiter(1, other, 1)).unwrap();
        let first = start_next(&mut queue).unwrap();
        assert_eq!(first.flow, if before == 1 { other } else { one }, "1,000 at weight {before} beside 1,000 at 1");
    }
}

#[test]
fn a_queue_is_bounded_by_level_tenant_and_bytes() {
    let settings = QueueSettings { depth_per_level: 3, depth_per_tenant: 2, bytes: 450, ..Default::default() };
    let mut queue = FairQueue::new(settings);
    queue.join(waiter(0, flow(1, 9), 1)).unwrap();
    queue.join(waiter(1, flow(1, 9), 1)).unwrap();
    assert_eq!(queue.join(waiter(2, flow(1, 9), 1)), Err(Full::Tenant));
    assert_eq!(queue.join(waiter(2, flow(1, 3), 1)), Err(Full::Tenant), "another level is no way around it");
    queue.join(waiter(3, flow(2, 9), 1)).unwrap();
    assert_eq!(queue.join(waiter(4, flow(3, 9), 1)), Err(Full::Level));
    queue.join(waiter(5, flow(3, 8), 1)).unwrap();
    assert_eq!(queue.join(waiter(6, flow(3, 8), 1)), Err(Full::Bytes));
    assert_eq!(queue.len(), 4);
}

#[test]
fn the_overdue_are_named_and_an_old_ticket_opens_nothing() {
    let mut queue = FairQueue::new(QueueSettings::default());
    let first = queue.join(waiter(0, flow(1, 9), 1)).unwrap();
    queue.join(waiter(30, flow(1, 9), 1)).unwrap();
    assert_eq!(queue.next_deadline(), Some(Millis(60_000)));
    assert_eq!(queue.overdue(Millis(60_000)), [first]);
    assert!(queue.leave(first).is_some());
    let second = queue.join(waiter(2, flow(1, 9), 1)).unwrap();
    assert!(queue.leave(first).is_none());
    assert_eq!(queue.get(second).map(|waiter| waiter.key), Some(2));
    assert_eq!((queue.depth(Priority::LAST), queue.bytes), (2, 200));
}

#[derive(Clone, Debug)]
enum Step {
    Join { group: u16, tenant: u32, level: u8, charge: u64 },
    Start,
    Leave { nth: usize },
    Correct { group: u16, tenant: u32, level: u8, reserved: u64, actual: u64 },
    Reweigh { levels: [u64; 10], groups: Vec<u64> },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u16..3, 0_u32..4, 0_u8..10, 1_u64..50_000)
            .prop_map(|(group, tenant, level, charge)| Step::Join { group, tenant, level, charge }),
        4 => Just(Step::Start),
        1 => (0_usize..50).prop_map(|nth| Step::Leave { nth }),
        1 => (0_u16..3, 0_u32..4, 0_u8..10, 0_u64..50_000, 0_u64..50_000)
            .prop_map(|(group, tenant, level, reserved, actual)| Step::Correct { group, tenant, level, reserved, actual }),
        1 => (prop::array::uniform10(1_u64..300), prop::collection::vec(1_u64..100, 0..4))
            .prop_map(|(levels, groups)| Step::Reweigh { levels, groups }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// The queue against a list: the same set waits, each flow is served in order of arrival, P0 is first, and depth,
    /// bytes and deadlines are what the list says.
    #[test]
    fn the_queue_agrees_with_a_naive_list(steps in prop::collection::vec(step(), 1..200)) {
        let mut queue = FairQueue::new(roomy());
        let mut naive: Vec<(Ticket, Waiter)> = Vec::new();
        for (key, step) in (0..).zip(steps) {
            match step {
                Step::Join { group, tenant, level, charge } => {
                    let flow = Flow { group: GroupIndex(group), ..flow(tenant, level) };
                    let joins = waiter(key, flow, charge);
                    naive.push((queue.join(joins).unwrap(), joins));
                }
                Step::Start => {
                    let started = start_next(&mut queue);
                    prop_assert_eq!(started.is_none(), naive.is_empty());
                    if let Some(started) = started {
                        let first = naive.iter().position(|(_, other)| other.flow == started.flow);
                        prop_assert_eq!(first.map(|at| naive.remove(at).1.key), Some(started.key));
                        let p0_waits = naive.iter().any(|(_, other)| other.flow.level == Priority::FIRST);
                        prop_assert!(started.flow.level == Priority::FIRST || !p0_waits);
                    }
                }
                Step::Leave { nth } if nth < naive.len() => {
                    let (ticket, leaving) = naive.remove(nth);
                    prop_assert_eq!(queue.leave(ticket).map(|left| left.key), Some(leaving.key));
                    prop_assert_eq!(queue.leave(ticket), None);
                }
                Step::Leave { .. } => {}
                Step::Correct { group, tenant, level, reserved, actual } => {
                    let flow = Flow { group: GroupIndex(group), ..flow(tenant, level) };
                    let by = queue.charge(flow, Tokens(reserved));
                    queue.correct(flow, by, Tokens(reserved), Tokens(actual));
                }
                Step::Reweigh { levels, groups } => queue.set_shares(Shares { levels, groups, ..Shares::default() }),
            }
            prop_assert_eq!(queue.len(), naive.len());
            prop_assert_eq!(queue.bytes, naive.iter().map(|(_, waiter)| waiter.bytes).sum::<u64>());
            for level in Priority::all() {
                let expected = naive.iter().filter(|(_, waiter)| waiter.flow.level == level).count();
                prop_assert_eq!(queue.depth(level), expected);
            }
            let earliest = naive.iter().map(|(_, waiter)| deadlines::rounded(waiter.deadline)).min();
            prop_assert_eq!(queue.next_deadline(), earliest);
            let now = Millis(60_050);
            let mut overdue = queue.overdue(now);
            let late = naive.iter().filter(|(_, waiter)| deadlines::rounded(waiter.deadline) <= now);
            let mut expected: Vec<Ticket> = late.map(|(ticket, _)| *ticket).collect();
            overdue.sort();
            expected.sort();
            prop_assert_eq!(overdue, expected);
        }
    }

    /// I4 inside a level, for one slot: two backlogged tenants differ by at most two of their largest charges.
    #[test]
    fn two_backlogged_tenants_differ_by_at_most_two_largest_charges(
        sizes in prop::collection::vec((1_u64..50_000, 1_u64..50_000), 1..200),
    ) {
        let mut queue = FairQueue::new(roomy());
        let (a, b) = (flow(1, 5), flow(2, 5));
        for (key, (small, large)) in (0..).zip(&sizes) {
            queue.join(waiter(key, a, *small)).unwrap();
            queue.join(waiter(key, b, *large)).unwrap();
        }
        let largest = sizes.iter().map(|(x, y)| x.max(y)).max().copied().unwrap_or(0);
        let (mut served, mut left) = ([0_u64; 2], [sizes.len(); 2]);
        while let Some(started) = start_next(&mut queue) {
            let which = usize::from(started.flow == b);
            served[which] += started.charge.0;
            left[which] -= 1;
            if left.contains(&0) {
                break;
            }
            prop_assert!(served[0].abs_diff(served[1]) <= 2 * largest, "{:?}", served);
        }
    }
}
