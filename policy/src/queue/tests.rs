use super::*;
use proptest::prelude::*;

fn waiter(ticket: u64, tenant: &str, level: u8, charge: u64) -> Waiter {
    Waiter {
        ticket: Ticket(ticket),
        tenant: tenant.into(),
        priority: Priority::try_from(level).unwrap(),
        charge: Tokens(charge),
        bytes: 100,
        deadline: Millis(60_000 + ticket),
    }
}

fn start_next(queue: &mut FairQueue) -> Option<Waiter> {
    let ticket = queue.head()?.ticket;
    let waiter = queue.leave(ticket)?;
    queue.charge(waiter.priority, &waiter.tenant, waiter.charge);
    Some(waiter)
}

#[test]
fn p0_goes_before_everyone_under_hybrid() {
    let mut queue = FairQueue::new(QueueSettings::default());
    for ticket in 0..5 {
        queue.join(waiter(ticket, "free", 9, 100)).unwrap();
    }
    for ticket in 5..10 {
        queue.join(waiter(ticket, "dept-a", 0, 1_000_000)).unwrap();
    }
    let order: Vec<u64> = std::iter::from_fn(|| start_next(&mut queue)).map(|waiter| waiter.ticket.0).collect();
    assert_eq!(order, [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]);
    assert!(queue.is_empty());
}

#[test]
fn levels_share_by_weight_whatever_the_size_of_requests() {
    for size in [500, 32_000] {
        let mut queue = FairQueue::new(QueueSettings { depth_per_tenant: 10_000, ..Default::default() });
        for ticket in 0..20_000 {
            let level = 1 + ticket % 2;
            queue.join(waiter(ticket, "t", u8::try_from(level).unwrap(), size)).unwrap();
        }
        let mut served = [0_u64; 3];
        for _ in 0..9_000 {
            served[start_next(&mut queue).unwrap().priority.index()] += 1;
        }
        // 128 : 64
        assert!(served[1].abs_diff(6_000) <= 2, "{served:?}");
    }
}

#[test]
fn tenants_of_a_level_take_turns_and_nobody_claims_the_past() {
    let mut queue = FairQueue::new(QueueSettings::default());
    for ticket in 0..100 {
        queue.join(waiter(ticket, "busy", 5, 100)).unwrap();
    }
    for _ in 0..50 {
        start_next(&mut queue);
    }
    for ticket in 100..150 {
        queue.join(waiter(ticket, "back", 5, 100)).unwrap();
    }
    let tenants: Vec<String> =
        std::iter::from_fn(|| start_next(&mut queue)).take(20).map(|waiter| waiter.tenant.to_string()).collect();
    assert_eq!(tenants.iter().filter(|name| *name == "back").count(), 10, "{tenants:?}");
}

#[test]
fn a_queue_is_bounded_by_level_tenant_and_bytes() {
    let settings = QueueSettings { depth_per_level: 3, depth_per_tenant: 2, bytes: 450, ..Default::default() };
    let mut queue = FairQueue::new(settings);
    queue.join(waiter(0, "a", 9, 1)).unwrap();
    queue.join(waiter(1, "a", 9, 1)).unwrap();
    assert_eq!(queue.join(waiter(2, "a", 9, 1)), Err(Full::Tenant));
    queue.join(waiter(3, "b", 9, 1)).unwrap();
    assert_eq!(queue.join(waiter(4, "c", 9, 1)), Err(Full::Level));
    queue.join(waiter(5, "c", 8, 1)).unwrap();
    assert_eq!(queue.join(waiter(6, "c", 8, 1)), Err(Full::Bytes));
    assert_eq!(queue.len(), 4);
}

#[test]
fn the_overdue_are_named_and_a_left_place_is_free() {
    let mut queue = FairQueue::new(QueueSettings::default());
    queue.join(waiter(0, "a", 9, 1)).unwrap();
    queue.join(waiter(1, "a", 9, 1)).unwrap();
    assert_eq!(queue.next_deadline(), Some(Millis(60_000)));
    assert_eq!(queue.overdue(Millis(60_000)), [Ticket(0)]);
    assert!(queue.leave(Ticket(0)).is_some());
    assert!(queue.leave(Ticket(0)).is_none());
    assert_eq!((queue.depth(Priority::LAST), queue.bytes), (1, 100));
}

#[derive(Clone, Debug)]
enum Step {
    Join { tenant: u8, level: u8, charge: u64 },
    Start,
    Leave { nth: usize },
    Correct { tenant: u8, level: u8, reserved: u64, actual: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..4, 0_u8..10, 1_u64..50_000)
            .prop_map(|(tenant, level, charge)| Step::Join { tenant, level, charge }),
        3 => Just(Step::Start),
        1 => (0_usize..50).prop_map(|nth| Step::Leave { nth }),
        1 => (0_u8..4, 0_u8..10, 0_u64..50_000, 0_u64..50_000)
            .prop_map(|(tenant, level, reserved, actual)| Step::Correct { tenant, level, reserved, actual }),
    ]
}

proptest! {
    /// The queue against a list: the same set waits, each flow is served in order of arrival, P0 is first, depth
    /// and bytes are the sums, and whoever is first has the smallest counters.
    #[test]
    fn the_queue_agrees_with_a_naive_list(steps in prop::collection::vec(step(), 1..200)) {
        let mut queue = FairQueue::new(QueueSettings::default());
        let mut naive: Vec<Waiter> = Vec::new();
        for (ticket, step) in steps.into_iter().enumerate() {
            match step {
                Step::Join { tenant, level, charge } => {
                    let joins = waiter(ticket as u64, &format!("t{tenant}"), level, charge);
                    queue.join(joins.clone()).unwrap();
                    naive.push(joins);
                }
                Step::Start => {
                    let started = start_next(&mut queue);
                    prop_assert_eq!(started.is_none(), naive.is_empty());
                    if let Some(started) = started {
                        let first_of_flow = naive
                            .iter()
                            .position(|other| other.tenant == started.tenant && other.priority == started.priority);
                        prop_assert_eq!(first_of_flow.map(|at| naive.remove(at)), Some(started.clone()));
                        let p0_waits = naive.iter().any(|other| other.priority == Priority::FIRST);
                        prop_assert!(started.priority == Priority::FIRST || !p0_waits);
                    }
                }
                Step::Leave { nth } if nth < naive.len() => {
                    let leaving = naive.remove(nth);
                    prop_assert_eq!(queue.leave(leaving.ticket), Some(leaving));
                }
                Step::Leave { .. } => {}
                Step::Correct { tenant, level, reserved, actual } => {
                    let level = Priority::try_from(level).unwrap();
                    queue.correct(level, &format!("t{tenant}").as_str().into(), Tokens(reserved), Tokens(actual));
                }
            }
            prop_assert_eq!(queue.len(), naive.len());
            prop_assert_eq!(queue.bytes, naive.iter().map(|waiter| waiter.bytes).sum::<u64>());
            for level in Priority::all() {
                let expected = naive.iter().filter(|waiter| waiter.priority == level).count();
                prop_assert_eq!(queue.depth(level), expected);
            }
            prop_assert_eq!(queue.next_deadline(), naive.iter().map(|waiter| waiter.deadline).min());
        }
    }
}
