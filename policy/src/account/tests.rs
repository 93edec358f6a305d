use super::*;
use crate::holder::LeaseTerms;
use crate::ledger::{AccountLedger, Server};
use proptest::prelude::*;

const NONE: Millis = Millis::ZERO;

/// An account with a ledger of its own, which answers at once.
#[derive(Clone)]
struct Desk {
    account: TenantAccount,
    ledger: AccountLedger,
    /// Of the ledger's server.
    run: &'static str,
}

impl Desk {
    fn new(limits: &Limits) -> Self {
        Self::start(limits, 1, AccountLedger::default())
    }

    /// The same process again, with nothing but the ledger left.
    fn restarted(&self, limits: &Limits) -> Self {
        Self::start(limits, 2, self.ledger.clone())
    }

    fn start(limits: &Limits, incarnation: u64, ledger: AccountLedger) -> Self {
        let lease = LeaseTerms { lease: Millis(2_000), longest_request: Millis(600_000), shared: false };
        let replica = Replica { id: "gate-0".into(), incarnation, lease };
        let clocks = Clocks { now: NONE, wall: UnixMillis(0) };
        let account = TenantAccount::new(limits, Version::default(), &replica, clocks);
        Self { account, ledger, run: "1" }
    }

    /// Tells the ledger what it must know; `first` applies.
    fn sync(&mut self, first: Option<Tokens>, now: Millis) {
        let id = "t".into();
        for _ in 0..5 {
            let applicants = u32::from(first.is_some());
            let first = first.map(|tokens| (Draw::from(tokens), now));
            let Some(request) = self.account.ask_ledger(&id, applicants, first, now) else { return };
            let reply = self.ledger.sync(&request, Server { run: self.run, now }).reply;
            assert!(self.account.ledger_answered(&id, Some(&reply), now));
            if first.is_some() {
                return;
            }
        }
        panic!("it asks for ever");
    }

    /// What becomes of a call that applies where it must.
    fn charge(&mut self, tokens: u64, now: Millis) -> Result<(), Limited> {
        let draw = Draw::from(Tokens(tokens));
        let mut said = self.account.charge(draw, 0, now);
        if said == Charge::Ask {
            self.sync(Some(Tokens(tokens)), now);
            said = self.account.charge_applicant(draw, now, now);
            self.account.stopped_applying();
        }
        self.sync(None, now);
        match said {
            Charge::Charged => Ok(()),
            Charge::Refused(limited) => Err(limited),
            Charge::Ask => panic!("a ledger of one's own leaves nothing open"),
        }
    }

    /// Hears what there is, before anything is charged.
    fn get_to_know(&mut self) {
        self.sync(Some(Tokens(0)), NONE);
        self.account.stopped_applying();
        self.sync(None, NONE);
    }

    fn settle(&mut self, reserved: u64, actual: u64, now: Millis) {
        self.account.settle(Tokens(reserved).into(), Tokens(actual).into(), NONE);
        self.sync(None, now);
    }

    fn release(&mut self, tokens: u64, now: Millis) {
        self.account.release(Tokens(tokens).into(), NONE);
        self.sync(None, now);
    }

    fn state(&self, now: Millis) -> (BTreeMap<MeterName, i64>, u32) {
        (self.account.levels(now), self.account.in_flight())
    }
}

fn limits() -> Limits {
    Limits {
        concurrent: Some(3),
        requests_per_s: Some(Rate::per_second(5, 5)),
        requests_per_min: Some(Rate::per_minute(60)),
        tokens_per_min: Some(Rate::per_minute(1_000)),
        ..Limits::default()
    }
}

fn any_limits() -> impl Strategy<Value = Limits> {
    let amount = |most| prop::option::of(1_u64..most);
    (prop::option::of(1_u32..5), amount(6), amount(40), amount(4_000)).prop_map(
        |(concurrent, second, minute, tokens)| Limits {
            concurrent,
            requests_per_s: second.map(|amount| Rate::per_second(amount, amount)),
            requests_per_min: minute.map(Rate::per_minute),
            tokens_per_min: tokens.map(Rate::per_minute),
            ..Limits::default()
        },
    )
}

#[test]
fn the_fourth_of_three_concurrent_calls_is_refused_until_one_ends() {
    let mut desk = Desk::new(&limits());
    for _ in 0..3 {
        desk.charge(10, NONE).unwrap();
    }
    let refused = Limited { reason: Reason::TenantConcurrency, most: 3, wait: None };
    assert_eq!(desk.charge(10, NONE), Err(refused));
    desk.settle(10, 10, Millis(1));
    assert_eq!(desk.charge(10, Millis(1)), Ok(()));
}

/// The first of a burst asks for itself and a few more; the others come before it is answered.
#[test]
fn a_burst_is_not_refused_what_the_ledger_was_not_asked_for() {
    let mut desk = Desk::new(&Limits { concurrent: Some(80), ..Limits::default() });
    let (draw, now) = (Draw::from(Tokens(10)), Millis(200));
    let mut applicants = 1;
    for call in 0..80 {
        loop {
            match desk.account.charge_applicant(draw, NONE, now) {
                Charge::Charged => break,
                Charge::Refused(limited) => panic!("{call} of 80 run, and the next one is refused: {limited:?}"),
                Charge::Ask => {}
            }
            let request = desk.account.ask_ledger(&"t".into(), applicants, Some((draw, NONE)), now).unwrap();
            let reply = desk.ledger.sync(&request, Server { run: "1", now }).reply;
            assert!(desk.account.ledger_answered(&"t".into(), Some(&reply), now));
            applicants = 80 - call;
        }
        desk.account.stopped_applying();
    }
    let refused = Limited { reason: Reason::TenantConcurrency, most: 80, wait: None };
    assert_eq!(desk.account.charge_applicant(draw, NONE, now), Charge::Refused(refused));
}

#[test]
fn a_refusal_charges_nothing() {
    let mut desk = Desk::new(&limits());
    desk.charge(900, NONE).unwrap();
    let before = desk.state(NONE);
    let refused = desk.charge(200, NONE).unwrap_err();
    assert_eq!((refused.reason, refused.wait), (Reason::TenantTokensPerMinute, Some(Millis(6_000))));
    assert_eq!(desk.state(NONE), before);
}

#[test]
fn settlement_refunds_or_indebts_by_the_difference() {
    let mut desk = Desk::new(&limits());
    desk.charge(100, NONE).unwrap();
    desk.settle(100, 1_500, NONE);
    assert_eq!(desk.account.levels(NONE)[&MeterName::TokensPerMinute], -500);
}

#[test]
fn a_tenant_that_has_only_a_rate_lacks_no_slot_after_a_failover() {
    let limits = Limits { tokens_per_min: Some(Rate::per_minute(1_000)), ..Limits::default() };
    let mut old = Desk::new(&limits);
    old.charge(10, NONE).unwrap();
    let mut new = Desk { run: "2", ..old.restarted(&limits) };
    assert_eq!(new.charge(10, NONE), Ok(()));
}

#[test]
fn a_restart_does_not_refill_a_minute() {
    let mut old = Desk::new(&limits());
    old.charge(900, NONE).unwrap();
    let mut new = old.restarted(&limits());
    let refused = new.charge(200, NONE).unwrap_err();
    assert_eq!(refused.reason, Reason::TenantTokensPerMinute);
    new.charge(50, NONE).unwrap();
    assert_eq!(new.account.levels(NONE)[&MeterName::TokensPerMinute], 50);
}

proptest! {
    /// A call that was refused a model gets everything back, whatever happened beside it.
    #[test]
    fn charge_and_release_leave_no_trace(reserve in 0_u64..1_000, others in 0_usize..3) {
        let mut desk = Desk::new(&limits());
        desk.get_to_know();
        for _ in 0..others {
            let _ = desk.charge(1, NONE);
        }
        let before = desk.state(NONE);
        if desk.charge(reserve, NONE).is_ok() {
            desk.release(reserve, NONE);
        }
        prop_assert_eq!(desk.state(NONE), before);
    }

    /// All limits are charged or none, and who waits as he was told is not refused for the same reason again.
    #[test]
    fn an_account_charges_every_limit_or_none_and_waits_are_honest(
        limits in any_limits(), calls in prop::collection::vec((0_u64..4_000, 1_u64..3_000, any::<bool>()), 1..60),
    ) {
        let mut desk = Desk::new(&limits);
        let (mut now, mut open) = (NONE, Vec::new());
        for (pause, tokens, ends) in calls {
            now = now.plus(Millis(pause));
            desk.sync(None, now);
            let before = desk.state(now);
            match desk.charge(tokens, now) {
                Ok(()) => open.push(tokens),
                Err(limited) => {
                    let told = desk.state(now);
                    prop_assert_eq!(told.1, before.1);
                    prop_assert!(before.0.iter().all(|(name, level)| told.0[name] == *level), "{before:?} {told:?}");
                    prop_assert_eq!(limited.wait.is_none(), limited.reason == Reason::TenantConcurrency);
                    let later = limited.wait.map(|wait| desk.clone().charge(tokens, now.plus(wait)));
                    prop_assert!(!matches!(later, Some(Err(again)) if again.reason == limited.reason), "{limited:?}");
                }
            }
            prop_assert_eq!(desk.account.in_flight() as usize, open.len());
            prop_assert!(limits.concurrent.is_none_or(|limit| desk.account.in_flight() <= limit));
            if ends && let Some(reserved) = open.pop() {
                desk.settle(reserved, reserved / 2, now);
            }
        }
    }

    /// Whoever gets everything back stands where it stood.
    #[test]
    fn an_account_returns_to_full_when_everything_was_released(
        limits in any_limits(), calls in prop::collection::vec(1_u64..3_000, 1..30),
    ) {
        let mut desk = Desk::new(&limits);
        desk.get_to_know();
        let full = desk.state(NONE);
        let charged: Vec<u64> = calls.into_iter().filter(|tokens| desk.charge(*tokens, NONE).is_ok()).collect();
        for tokens in charged {
            desk.release(tokens, NONE);
        }
        prop_assert_eq!(desk.state(NONE), full);
    }

    /// A restart gives nobody a fresh minute: what the old process had drawn and the new one draws are both gone.
    #[test]
    fn a_restarted_account_has_no_more_than_the_ledger_knew(
        limits in any_limits(), before in 1_u64..5_000, since in 1_u64..5_000, age in 0_u64..90_000,
    ) {
        let (mut old, now) = (Desk::new(&limits), Millis(age));
        let _ = old.charge(before, NONE);
        let mut new = old.restarted(&limits);
        let drawn = new.charge(since, now).is_ok();
        for (name, level) in new.account.levels(now) {
            let taken = if drawn { name.amount(Tokens(since).into()) } else { 0 };
            let known = |at| old.ledger.left(name, at).unwrap() - i64::try_from(taken).unwrap();
            // Calls of the old process may still run, and the new one cannot tell a pause from a clock that was set: then
            // nothing has come in meanwhile.
            let expected = if level == known(NONE) { known(NONE) } else { known(now) };
            prop_assert_eq!(level, expected, "{:?}", name);
            prop_assert!(age > 2_000 || level == known(now), "{:?}", name);
        }
    }
}
