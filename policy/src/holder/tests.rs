use super::*;
use crate::ledger::{AccountLedger, Row, Server, SyncReply, SyncRequest, Version};
use crate::queue::{GroupIndex, Shares, TenantIndex};
use proptest::prelude::*;

const FLOW: Flow = Flow { group: GroupIndex(0), tenant: TenantIndex(0), level: Priority::LAST };

struct Names;

impl FlowNames for Names {
    fn name(&self, flow: Flow) -> Option<FlowName> {
        Some(FlowName { group: "".into(), level: flow.level, tenant: "t".into() })
    }

    fn flow(&self, _: &FlowName) -> Option<Flow> {
        Some(FLOW)
    }
}

fn terms(version: u64, capacity: u32) -> Terms {
    let Shares { policy, levels, .. } = Shares::default();
    let version = Version { file: version, ..Version::default() };
    Terms { version, capacity, policy, levels, groups: BTreeMap::new(), meters: BTreeMap::new() }
}

/// A holder of a pool of eight slots, which nobody guards against a loss.
fn holder(id: &str) -> Holder {
    let lease = LeaseTerms { lease: Millis(2_000), longest_request: Millis(60_000), shared: false };
    Holder::new(&Replica { id: id.into(), incarnation: 1, lease }, terms(1, 8))
}

fn ask(holder: &mut Holder, running: u32, waiting: u32, now: u64) -> SyncRequest {
    let flow = Names.name(FLOW).unwrap();
    let row = Row { flow, weight: 1, head: crate::units::Tokens(1), money: 0, waiting, waited: Millis(0) };
    let rows = if waiting > 0 { vec![row] } else { Vec::new() };
    holder.ask(Demand { running, waiting }, rows, &Names, Millis(now))
}

fn answer(ledger: &mut AccountLedger, request: &SyncRequest, now: u64) -> SyncReply {
    ledger.sync(request, Server { run: "1", now: Millis(now) }).reply
}

#[test]
fn a_lease_counts_from_sending_less_the_drift() {
    let (mut holder, mut ledger) = (holder("a"), AccountLedger::default());
    let request = ask(&mut holder, 0, 0, 1_000);
    let reply = answer(&mut ledger, &request, 1_900);
    assert!(holder.answered(&reply, &Names, Millis(1_950)));
    assert_eq!((holder.usable(Millis(2_959)), holder.usable(Millis(2_960))), (2, 0));
}

#[test]
fn an_open_account_stays_open_while_the_call_that_was_to_renew_its_lease_is_out() {
    let (mut holder, mut ledger) = (holder("a"), AccountLedger::default());
    holder.set_outage(Outage::Open);
    let request = ask(&mut holder, 0, 0, 1_000);
    assert!(!holder.is_open(Millis(1_000)), "the ledger has lent nothing yet, and may still answer");
    let reply = answer(&mut ledger, &request, 1_001);
    holder.answered(&reply, &Names, Millis(1_001));
    ask(&mut holder, 0, 0, 1_667);
    for now in 1_667..4_000 {
        assert!(holder.is_open(Millis(now)), "at {now}");
    }
    holder.failed();
    assert!(holder.is_open(Millis(4_000)));
}

#[test]
fn a_smaller_capacity_holds_at_once_and_gives_away_no_slot_that_is_in_use() {
    let (mut holder, mut ledger) = (holder("a"), AccountLedger::default());
    let outstanding = ask(&mut holder, 5, 3, 0);
    holder.set_terms(terms(2, 1), Millis(0));
    let reply = answer(&mut ledger, &outstanding, 0);
    holder.answered(&reply, &Names, Millis(0));
    assert_eq!(holder.usable(Millis(1)), 1);
    let next = ask(&mut holder, 5, 0, 1);
    assert_eq!((next.keep, next.want, next.terms.capacity), (5, 1, 1));
}

#[test]
fn only_the_answer_to_the_latest_call_counts() {
    let (mut holder, mut ledger) = (holder("a"), AccountLedger::default());
    let first = ask(&mut holder, 0, 4, 0);
    let late = answer(&mut ledger, &first, 1);
    holder.failed();
    let second = ask(&mut holder, 0, 0, 200);
    assert!(!holder.answered(&late, &Names, Millis(201)));
    let reply = answer(&mut ledger, &second, 201);
    assert!(holder.answered(&reply, &Names, Millis(202)));
    assert!(!holder.answered(&reply, &Names, Millis(203)), "a copy");
}

#[test]
fn it_asks_at_once_when_something_waits_that_the_ledger_does_not_know_of() {
    let (mut holder, mut ledger) = (holder("a"), AccountLedger::default());
    let request = ask(&mut holder, 0, 0, 0);
    let reply = answer(&mut ledger, &request, 0);
    holder.answered(&reply, &Names, Millis(0));
    let waiting = Demand { running: 2, waiting: 1 };
    assert!(!holder.is_due(Demand::default(), Millis(1)));
    assert!(holder.is_due(waiting, Millis(1)));
    assert!(holder.is_due(Demand::default(), Millis(667)), "a third of the lease");
    holder.ask(waiting, Vec::new(), &Names, Millis(1));
    assert!(!holder.is_due(waiting, Millis(667)), "one call at a time");
}

#[test]
fn while_somebody_waits_elsewhere_freed_slots_are_owed_and_only_picks_start() {
    let (mut ours, mut theirs, mut ledger) = (holder("a"), holder("b"), AccountLedger::default());
    let request = ask(&mut ours, 0, 8, 0);
    let reply = answer(&mut ledger, &request, 0);
    ours.answered(&reply, &Names, Millis(0));
    assert_eq!(ours.usable(Millis(1)), 8);
    let request = ask(&mut theirs, 0, 1, 10);
    let synced = ledger.sync(&request, Server { run: "1", now: Millis(10) });
    assert!(ours.noticed(&synced.notices[&"a".into()], &Names));
    let (all, fewer) = (Demand { running: 8, waiting: 0 }, Demand { running: 7, waiting: 0 });
    assert!(!ours.is_due(all, Millis(11)) && ours.is_due(fewer, Millis(11)));
    let request = ask(&mut ours, 7, 0, 11);
    assert_eq!(request.keep, 7);
    let reply = answer(&mut ledger, &request, 11);
    ours.answered(&reply, &Names, Millis(11));
    assert!(!ours.may_start(FLOW, crate::units::Tokens(1), 7, Millis(12)), "it was the other's turn");
}

#[test]
fn who_asks_on_demand_gives_everything_back_after_so_many_idle_calls() {
    let (mut holder, mut ledger) = (holder("a").on_demand(2), AccountLedger::default());
    assert!(!holder.is_due(Demand::default(), Millis(0)), "nobody needs it");
    let mut call = |running: u32, now: u64| {
        assert!(holder.is_due(Demand { running, waiting: 0 }, Millis(now)));
        let request = ask(&mut holder, running, 0, now);
        let reply = answer(&mut ledger, &request, now);
        holder.answered(&reply, &Names, Millis(now));
        reply.granted
    };
    let granted = [(1, 0), (0, 700), (0, 1_400), (1, 2_100), (0, 2_800), (0, 3_500), (0, 4_200)];
    let granted = granted.map(|(running, now)| call(running, now));
    assert_eq!(granted, [3, 2, 2, 3, 2, 2, 0]);
    assert!(!holder.is_due(Demand::default(), Millis(60_000)));
}

#[test]
fn while_its_last_call_is_unanswered_a_holder_gives_nothing_back() {
    let (mut holder, mut ledger) = (holder("a"), AccountLedger::default());
    let request = ask(&mut holder, 0, 8, 0);
    holder.answered(&answer(&mut ledger, &request, 0), &Names, Millis(0));
    ask(&mut holder, 6, 3, 100);
    holder.failed();
    for (running, now) in [(4, 700), (1, 1_300), (0, 2_500)] {
        assert_eq!(ask(&mut holder, running, 3, now).keep, 6, "at {now} ms");
        holder.failed();
    }
    let request = ask(&mut holder, 0, 3, 3_100);
    // Another run of the ledger, which hands out nothing but what is given up.
    let reply = ledger.sync(&request, Server { run: "2", now: Millis(3_100) }).reply;
    assert!(holder.answered(&reply, &Names, Millis(3_100)));
    assert_eq!((holder.usable(Millis(3_100)), ask(&mut holder, 3, 0, 3_200).keep), (6, 5));
}

#[test]
fn who_asks_on_demand_rests_only_when_what_it_gives_back_has_arrived() {
    let (mut holder, mut ledger) = (holder("a").on_demand(0), AccountLedger::default());
    let request = ask(&mut holder, 0, 1, 0);
    holder.answered(&answer(&mut ledger, &request, 0), &Names, Millis(0));
    assert!(holder.usable(Millis(1)) > 0);
    ask(&mut holder, 0, 0, 700);
    holder.failed();
    for now in [1_400, 2_100] {
        assert!(holder.is_due(Demand::default(), Millis(now)));
        let request = ask(&mut holder, 0, 0, now);
        holder.answered(&answer(&mut ledger, &request, now), &Names, Millis(now));
    }
    assert_eq!((ledger.granted(), holder.is_due(Demand::default(), Millis(60_000))), (0, false));
}

#[test]
fn what_is_drawn_of_a_budget_before_the_first_answer_is_told() {
    let (budget, amount) = (MeterName::TokensPerDay, 100);
    let limited = Terms { meters: [(budget, Limit::Budget { amount, period: 20_260_131 })].into(), ..terms(1, 8) };
    let (mut holder, mut ledger) = (holder("a"), AccountLedger::default());
    holder.set_terms(limited, Millis(0));
    // A call that an earlier incarnation had let in.
    holder.correct(FLOW, 1, Draw::default(), Draw::from(crate::units::Tokens(30)), Millis(0));
    let request = ask(&mut holder, 0, 0, 0);
    answer(&mut ledger, &request, 0);
    assert_eq!(ledger.left(budget, Millis(0)), Some(70));
}

#[test]
fn a_notice_renews_no_lease() {
    let (mut ours, mut ledger) = (holder("a"), AccountLedger::default());
    let request = ask(&mut ours, 0, 1, 0);
    let reply = answer(&mut ledger, &request, 0);
    ours.answered(&reply, &Names, Millis(0));
    assert!(ours.noticed(&SyncReply { now: Millis(1_900), ..reply }, &Names));
    assert!(ours.is_leased(Millis(1_959)) && !ours.is_leased(Millis(1_960)));
}

/// A holder that shares its ledger with others, and that the ledger has just answered at 0.
fn sharing(ledger: &mut AccountLedger) -> Holder {
    let lease = LeaseTerms { lease: Millis(2_000), longest_request: Millis(60_000), shared: true };
    let mut holder = Holder::new(&Replica { id: "a".into(), incarnation: 1, lease }, terms(1, 8)).on_demand(3);
    let request = ask(&mut holder, 0, 8, 0);
    assert!(holder.answered(&answer(ledger, &request, 0), &Names, Millis(0)));
    holder
}

#[test]
fn attempts_back_off_by_chance_and_by_half_a_second_at_most() {
    let mut holder = sharing(&mut AccountLedger::default());
    let waits = Demand { running: 0, waiting: 8 };
    let mut pause_after = |chance, now| {
        ask(&mut holder, 0, 8, now);
        holder.failed();
        holder.back_off(chance, Millis(now + 200));
        holder.next_sync(waits, Millis(now + 200)).since(Millis(now + 200)).0
    };
    let longest = [1_000, 2_000, 3_000, 4_000, 5_000].map(|now| pause_after(u16::MAX, now));
    assert_eq!(longest, [100, 200, 400, 500, 500]);
    assert_eq!((pause_after(u16::MAX / 2, 6_000), pause_after(0, 7_000)), (249, 0));
}

#[test]
fn a_late_answer_is_none_and_the_next_call_says_how_far_the_clock_has_jumped() {
    let mut ledger = AccountLedger::default();
    let mut holder = sharing(&mut ledger);
    let request = ask(&mut holder, 0, 8, 300);
    let late = answer(&mut ledger, &request, 3_600_305);
    assert!(late.late && !holder.answered(&late, &Names, Millis(310)));
    holder.failed();
    let request = ask(&mut holder, 0, 8, 410);
    assert_eq!(request.jump, Some(Millis(3_599_995)));
    let reply = answer(&mut ledger, &request, 3_600_415);
    // By no more than the way back of the late answer, time runs as if the clock had not jumped.
    assert_eq!((reply.late, reply.granted, reply.now), (false, 8, Millis(420)));
    assert!(holder.answered(&reply, &Names, Millis(420)));
    assert_eq!(ask(&mut holder, 0, 8, 520).jump, None);
}

#[test]
fn the_last_call_of_a_holder_counts_however_late_it_comes() {
    let mut ledger = AccountLedger::default();
    let mut holder = sharing(&mut ledger);
    let last = holder.give_back(0, &Names, Millis(100));
    assert!(!answer(&mut ledger, &last, 1_900).late);
    assert_eq!((ledger.granted(), ledger.zombies()), (0, 0));
}

proptest! {
    /// I1 between the halves: whatever is lost, late or doubled, a holder never uses more than the ledger has granted.
    #[test]
    fn a_holder_never_exceeds_its_grant(
        steps in prop::collection::vec((0_u32..12, 0_u64..1_500, any::<bool>(), any::<bool>(), any::<bool>()), 1..60),
    ) {
        let (mut holder, mut ledger) = (holder("a"), AccountLedger::default());
        let (mut now, mut running) = (0, 0_u32);
        for (demand, pause, applied, answered, copied) in steps {
            now += pause;
            running = running.min(demand);
            let request = ask(&mut holder, running, demand - running, now);
            let reply = applied.then(|| answer(&mut ledger, &request, now));
            match reply.filter(|_| answered) {
                Some(reply) => {
                    holder.answered(&reply, &Names, Millis(now));
                    if copied {
                        holder.answered(&reply, &Names, Millis(now));
                        holder.noticed(&reply, &Names);
                    }
                }
                None => holder.failed(),
            }
            running = running.max(demand.min(holder.usable(Millis(now))));
            prop_assert!(holder.usable(Millis(now)) <= ledger.granted() || !holder.is_leased(Millis(now)));
            prop_assert!(holder.usable(Millis(now)) <= 8);
        }
    }
}
