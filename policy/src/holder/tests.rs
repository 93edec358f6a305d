use super::*;
use crate::ledger::{AccountLedger, Server, Version};
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
