mod adoption;
mod budgets;
mod instances;
mod orphans;
mod pools;
mod repeats;
mod successors;
mod yields;

use super::*;
use crate::config::reader::read_document;
use crate::holder::LeaseTerms;
use crate::ledger::{Account, AccountLedger, MeterName, Server};
use crate::units::{Priority, Tokens};
use crate::wire::{AdmissionRequest, KeyProof, Outcome, Reason, Settlement, UsageSource, WIRE_VERSION};
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;

/// The server's clock at the start, after all days of these tests.
const SERVER_EPOCH: Millis = Millis(1_800_000_000_000);
const LEASE: LeaseTerms = LeaseTerms { lease: Millis(2_000), longest_request: Millis(600_000), shared: false };

/// An admission core with a ledger beside it that always answers.
struct World {
    core: Admission,
    ledgers: BTreeMap<Account, AccountLedger>,
    now: Millis,
    asked: u64,
    /// What was told while a decision was waited for, and is not about it.
    unheard: Vec<Event>,
}

impl World {
    fn new(limits: serde_json::Value) -> Self {
        Self::with(json!({"id": "a", "priority": {"default": 5, "ceiling": 0}, "limits": limits}), json!([]))
    }

    /// With a first tenant, and models that cost something.
    fn with(first: serde_json::Value, models: serde_json::Value) -> Self {
        let document = json!({
            "queue": {"depth_per_level": 30},
            "pools": [{"name": "smol", "models": ["m"], "capacity": {"concurrent": 2}, "context_length": 1_000}],
            "models": models,
            "tenants": [
                first,
                {"id": "b", "priority": {"default": 9}},
                {"id": "gone", "disabled": true},
                {"id": "other", "models": []},
            ],
        });
        let config = read_document(&document, Config::read).unwrap();
        let core = Admission::new(config, &Replica { id: "gate-0".into(), incarnation: 1, lease: LEASE }, Millis(0));
        let mut world = World { core, ledgers: BTreeMap::new(), now: Millis(0), asked: 0, unheard: Vec::new() };
        world.sync();
        world
    }

    fn sync(&mut self) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.unheard);
        events.extend(self.core.advance(self.now));
        while let Some((account, request)) = self.core.ask_ledger(self.now) {
            let ledger = self.ledgers.entry(account.clone()).or_default();
            let reply = ledger.sync(&request, Server { run: "test", now: SERVER_EPOCH.plus(self.now) }).reply;
            self.core.ledger_answered(&account, Some(&reply), self.now);
            events.extend(self.core.advance(self.now));
        }
        events
    }

    fn wait(&mut self, span: u64) -> Vec<Event> {
        let mut events = Vec::new();
        let end = self.now.plus(Millis(span));
        while self.now < end {
            self.now = end.min(self.now.plus(Millis(200)));
            events.extend(self.sync());
        }
        events
    }

    /// The first answer, before the ledger is heard.
    fn send(&mut self, tenant: &str, change: impl FnOnce(&mut AdmissionRequest)) -> (AdmissionId, Decision) {
        self.asked += 1;
        let mut request = AdmissionRequest {
            version: WIRE_VERSION,
            id: format!("w-{}", self.asked).into(),
            key: KeyProof { id: None, digest: String::new() },
            model: Some("m".to_owned()),
            pool: None,
            input_tokens: Tokens(10),
            max_tokens: Some(Tokens(20)),
            prompts: 1,
            sequences: 1,
            stream: false,
            body_bytes: 100,
            priority: None,
            deadline_ms: None,
        };
        change(&mut request);
        let decision = self.core.request(&tenant.into(), None, &request, self.now);
        (request.id, decision)
    }

    fn ask(&mut self, tenant: &str, change: impl FnOnce(&mut AdmissionRequest)) -> (AdmissionId, Decision) {
        let (asked, decision) = self.send(tenant, change);
        let (own, others): (Vec<Event>, Vec<Event>) = self.sync().into_iter().partition(|event| match event {
            Event::Started(id, _) | Event::Refused(id, _) => *id == asked,
        });
        self.unheard = others;
        let decided = own.into_iter().next().map(|event| match event {
            Event::Started(_, grant) => Decision::Admitted(grant),
            Event::Refused(_, refusal) => Decision::Rejected(refusal),
        });
        (asked, decided.unwrap_or(decision))
    }

    /// The answer of a call that waits for its tenant's next slot as long as it may.
    fn decide(&mut self, tenant: &str) -> (AdmissionId, Decision) {
        let (asked, decision) = self.ask(tenant, |_| ());
        if decision != Decision::Queued {
            return (asked, decision);
        }
        let told = self.wait(50).into_iter().find_map(|event| match event {
            Event::Refused(id, refusal) if id == asked => Some(Decision::Rejected(refusal)),
            Event::Started(id, grant) if id == asked => Some(Decision::Admitted(grant)),
            Event::Started(..) | Event::Refused(..) => None,
        });
        (asked, told.unwrap_or(Decision::Queued))
    }

    fn admit(&mut self, tenant: &str) -> AdmissionId {
        let (id, decision) = self.ask(tenant, |_| ());
        assert!(matches!(decision, Decision::Admitted(_)), "{decision:?}");
        id
    }

    fn end(&mut self, id: &AdmissionId, outcome: Outcome, tokens: u64) -> Option<Settled> {
        let source = if tokens == 0 { UsageSource::None } else { UsageSource::Reported };
        let usage = Usage { source, output: Tokens(tokens), ..Usage::default() };
        let settlement = Settlement { id: id.clone(), outcome, usage, charge_to: None, timing: None, abandoned: false };
        self.core.settle(&settlement, self.now)
    }
}

fn reason(decision: &Decision) -> Option<(u16, Reason)> {
    match decision {
        Decision::Rejected(refusal) => Some((refusal.status, refusal.reason)),
        Decision::Admitted(_) | Decision::Queued => None,
    }
}

fn started(events: &[Event]) -> Vec<&AdmissionId> {
    let starts = events.iter().filter_map(|event| match event {
        Event::Started(id, _) => Some(id),
        Event::Refused(..) => None,
    });
    starts.collect()
}

#[test]
fn what_does_not_fit_waits_and_p0_starts_first() {
    let mut world = World::new(json!({}));
    let running = world.admit("b");
    world.admit("b");
    let (_, last) = world.ask("b", |_| ());
    let (urgent, first) = world.ask("a", |request| request.priority = Priority::parse("0"));
    assert_eq!((last, first), (Decision::Queued, Decision::Queued));
    world.end(&running, Outcome::Completed, 5);
    assert_eq!(started(&world.core.advance(world.now)), [&urgent]);
}

#[test]
fn a_client_may_lower_its_priority_and_never_raise_it() {
    let mut world = World::new(json!({}));
    for (tenant, asked, got) in [("a", "9", 9), ("a", "0", 0), ("b", "0", 9)] {
        let (id, decision) = world.ask(tenant, |request| request.priority = Priority::parse(asked));
        let Decision::Admitted(grant) = decision else { panic!("{decision:?}") };
        assert_eq!(u8::from(grant.priority), got);
        world.end(&id, Outcome::Completed, 1);
    }
}

#[test]
fn refusals_say_why() {
    let mut world = World::new(json!({}));
    let mut ask = |tenant: &str, change: fn(&mut AdmissionRequest)| reason(&world.ask(tenant, change).1);
    assert_eq!(ask("gone", |_| ()), Some((403, Reason::TenantDisabled)));
    assert_eq!(ask("other", |_| ()), Some((404, Reason::ModelNotAllowed)));
    assert_eq!(ask("nobody", |_| ()), Some((401, Reason::UnknownKey)));
    assert_eq!(ask("a", |request| request.model = Some("x".into())), Some((404, Reason::ModelNotFound)));
    assert_eq!(ask("a", |request| request.model = None), Some((404, Reason::ModelNotFound)));
    let too_long = |request: &mut AdmissionRequest| request.max_tokens = Some(Tokens(1_000));
    assert_eq!(ask("a", too_long), Some((400, Reason::ContextLengthExceeded)));
}

#[test]
fn refusals_that_precede_the_limits_have_one_of_their_own_and_keep_nothing_of_what_was_asked() {
    let mut world = World::new(json!({}));
    let unknown = |request: &mut AdmissionRequest| request.model = Some("x".repeat(256));
    let (first, decision) = world.ask("a", unknown);
    assert_eq!(reason(&decision), Some((404, Reason::ModelNotFound)));
    let told = world.core.explain(&first).unwrap();
    assert_eq!((told.tenant, told.model), (Some("a".into()), None));
    assert!(!format!("{:?}", told.fate).contains("xx"), "{:?}", told.fate);
    for _ in 1..100 {
        assert_eq!(reason(&world.ask("a", unknown).1), Some((404, Reason::ModelNotFound)));
    }
    let (over, decision) = world.ask("a", unknown);
    assert_eq!(reason(&decision), Some((429, Reason::TenantRequestsPerSecond)));
    assert_eq!(world.core.explain(&over), None);
    assert!(matches!(world.ask("a", |_| ()).1, Decision::Admitted(_)), "what is right goes on");
    assert_eq!(reason(&world.ask("other", |_| ()).1), Some((404, Reason::ModelNotAllowed)), "others are not concerned");
    world.wait(100);
    assert_eq!(reason(&world.ask("a", unknown).1), Some((404, Reason::ModelNotFound)));
}

#[test]
fn a_route_may_name_the_pool_when_the_body_was_not_read() {
    let mut world = World::new(json!({}));
    let by_route = |request: &mut AdmissionRequest| {
        request.model = None;
        request.pool = Some("smol".into());
    };
    assert!(matches!(world.ask("a", by_route).1, Decision::Admitted(_)));
    assert_eq!(reason(&world.ask("other", by_route).1), Some((404, Reason::ModelNotAllowed)));
}

#[test]
fn the_fourth_concurrent_call_of_three_is_refused_and_others_do_not_notice() {
    let mut world = World::new(json!({"concurrent": 3}));
    for _ in 0..3 {
        world.ask("a", |_| ());
    }
    let (_, fourth) = world.decide("a");
    assert_eq!(reason(&fourth), Some((429, Reason::TenantConcurrency)));
    assert_eq!(world.ask("b", |_| ()).1, Decision::Queued);
}

#[test]
fn a_client_that_waits_as_told_for_calls_of_4_seconds_is_refused_at_most_twice() {
    let mut world = World::new(json!({"concurrent": 2}));
    let mut running = vec![world.admit("a"), world.admit("a")];
    let (end, mut refused) = (Millis(4_000), 0);
    while let (_, Decision::Rejected(refusal)) = world.decide("a") {
        refused += 1;
        assert!(refused <= 2, "{refusal:?} at {}", world.now);
        // In whole seconds, as its header tells it.
        let back = world.now.plus(Millis(refusal.retry_after_ms.unwrap().0.div_ceil(1_000) * 1_000));
        if back >= end && !running.is_empty() {
            world.wait(end.since(world.now).0);
            running.drain(..).for_each(|id| drop(world.end(&id, Outcome::Completed, 5)));
        }
        world.wait(back.since(world.now).0);
    }
    assert!(running.is_empty() && refused > 0, "{refused}");
}

#[test]
fn who_waits_too_long_is_told_and_gets_everything_back() {
    let mut world = World::new(json!({"tokens_per_min": 1_000}));
    world.admit("b");
    world.admit("b");
    let (id, _) = world.ask("a", |_| ());
    let events = world.wait(60_200);
    let [Event::Refused(refused, refusal)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((refused, refusal.reason, refusal.status), (&id, Reason::QueueTimeout, 503));
    // With nobody left in the queue it would be the first.
    assert_eq!((refusal.position, refusal.estimated_wait_ms), (Some(1), refusal.retry_after_ms));
    assert!(refusal.retry_after_ms.is_some_and(|wait| wait > Millis::ZERO));
    assert_eq!(world.core.in_flight(&"a".into()), 0);
    assert_eq!(world.end(&id, Outcome::Cancelled, 0), None);
}

#[test]
fn who_waits_through_an_outage_is_told_of_the_outage() {
    let mut world = World::new(json!({}));
    world.admit("a");
    world.admit("a");
    world.ask("a", |_| ());
    world.now = Millis(61_000);
    let (pool, _) = world.core.ask_ledger(world.now).unwrap();
    world.core.ledger_answered(&pool, None, world.now);
    let events = world.core.advance(world.now);
    let [Event::Refused(_, refusal)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((refusal.reason, refusal.status), (Reason::LedgerUnavailable, 503));
    // How soon the ledger is back nobody knows, so there is no place to estimate.
    assert_eq!((refusal.position, refusal.retry_after_ms), (None, Some(Millis(1_000))));
}

#[test]
fn a_cancellation_that_overtakes_its_request_wins() {
    let mut world = World::new(json!({}));
    world.end(&"w-1".into(), Outcome::Cancelled, 0);
    let (_, decision) = world.ask("a", |_| ());
    assert_eq!(reason(&decision), Some((503, Reason::DuplicateAdmission)));
}

#[test]
fn without_a_lease_nothing_starts() {
    let mut world = World::new(json!({}));
    world.now = Millis(3_000);
    assert_eq!(reason(&world.ask("a", |_| ()).1), Some((503, Reason::LedgerUnavailable)));
    world.sync();
    world.admit("a");
}

#[test]
fn a_call_that_nobody_settles_frees_its_slot_after_the_longest_request() {
    let mut world = World::new(json!({}));
    world.admit("a");
    world.wait(599_000);
    assert_eq!(world.core.running(&"smol".into()), 1);
    world.wait(1_000);
    assert_eq!((world.core.running(&"smol".into()), world.core.in_flight(&"a".into())), (0, 0));
}

#[test]
fn draining_answers_everyone_who_waits() {
    let mut world = World::new(json!({}));
    world.admit("a");
    world.admit("a");
    world.ask("a", |_| ());
    let events = world.core.drain(world.now);
    assert!(matches!(events.as_slice(), [Event::Refused(_, refusal)] if refusal.reason == Reason::ShuttingDown));
    assert_eq!(reason(&world.ask("b", |_| ()).1), Some((503, Reason::ShuttingDown)));
}

#[test]
fn usage_of_a_call_that_nobody_admitted_is_charged_to_its_tenant() {
    let mut world = World::new(json!({"tokens_per_min": 1_000}));
    let passed = crate::wire::ChargeTo {
        tenant: "a".into(),
        pool: "smol".into(),
        model: None,
        prompts: 1,
        sequences: 1,
        turns: 1,
    };
    let usage = Usage { source: UsageSource::Reported, output: Tokens(400), ..Usage::default() };
    let settlement = Settlement {
        id: "x-1".into(),
        outcome: Outcome::Completed,
        usage,
        charge_to: Some(passed),
        timing: None,
        abandoned: false,
    };
    let settled = world.core.settle(&settlement, world.now).unwrap();
    assert_eq!((settled.usage.output, world.core.settle(&settlement, world.now)), (Tokens(400), None));
    world.sync();
    assert_eq!(world.core.levels(&"a".into(), world.now)[&MeterName::TokensPerMinute], 600);
}

/// The pool's context is 1,000 tokens.
#[test]
fn each_prompt_of_a_list_has_the_context_to_itself() {
    let mut world = World::new(json!({"tokens_per_min": 100_000}));
    let batch = |prompts: u32, input: u64| {
        move |request: &mut AdmissionRequest| {
            (request.prompts, request.input_tokens, request.max_tokens) = (prompts, Tokens(input), Some(Tokens::ZERO));
        }
    };
    let (_, too_long) = world.ask("a", batch(2, 8_004));
    assert_eq!(reason(&too_long), Some((400, Reason::ContextLengthExceeded)));
    let (id, admitted) = world.ask("a", batch(9, 8_004));
    let Decision::Admitted(grant) = admitted else { panic!("{admitted:?}") };
    assert_eq!(grant.reserved, Tokens(8_004));
    let usage = Usage { source: UsageSource::Reported, input: Tokens(8_500), ..Usage::default() };
    let settlement =
        Settlement { id, outcome: Outcome::Completed, usage, charge_to: None, timing: None, abandoned: false };
    let settled = world.core.settle(&settlement, world.now).unwrap();
    assert_eq!((settled.usage.source, settled.usage.input), (UsageSource::Reported, Tokens(8_500)));
    // The same of a call that nobody here admitted.
    let charge_to = crate::wire::ChargeTo {
        tenant: "a".into(),
        pool: "smol".into(),
        model: None,
        prompts: 9,
        sequences: 1,
        turns: 1,
    };
    let settlement = Settlement { id: "x-9".into(), charge_to: Some(charge_to), ..settlement };
    assert_eq!(world.core.settle(&settlement, world.now).map(|settled| settled.usage.input), Some(Tokens(8_500)));
}

#[test]
fn a_fixed_charge_has_nothing_to_do_with_a_context() {
    let mut world = World::new(json!({"tokens_per_min": 100_000}));
    let (_, decision) = world.ask("a", |request| {
        (request.prompts, request.input_tokens, request.max_tokens) = (0, Tokens(20_000), Some(Tokens::ZERO));
    });
    assert!(matches!(&decision, Decision::Admitted(grant) if grant.reserved == Tokens(20_000)), "{decision:?}");
}

/// Its tenant's account is asked for, which takes until the pool's lease has ended.
#[test]
fn who_applies_while_the_pools_lease_ends_is_refused_and_charged_nothing() {
    let mut world = World::new(json!({"tokens_per_min": 1_000}));
    world.now = Millis(1_900);
    let (id, _) = world.send("a", |_| ());
    let mut calls = std::iter::from_fn(|| world.core.ask_ledger(world.now));
    let (account, request) = calls.find(|(account, _)| *account == Account::Tenant("a".into())).unwrap();
    world.now = Millis(2_100);
    let reply = world
        .ledgers
        .entry(account.clone())
        .or_default()
        .sync(&request, Server { run: "test", now: SERVER_EPOCH.plus(world.now) })
        .reply;
    world.core.ledger_answered(&account, Some(&reply), world.now);
    let events = world.core.advance(world.now);
    assert!(
        matches!(events.as_slice(), [Event::Refused(of, refusal)] if *of == id && refusal.reason == Reason::LedgerUnavailable),
        "{events:?}"
    );
    assert_eq!(world.core.levels(&"a".into(), world.now)[&MeterName::TokensPerMinute], 1_000);
}

#[test]
fn usage_that_the_context_does_not_allow_is_estimated_instead() {
    let mut world = World::new(json!({"tokens_per_min": 1_000}));
    let id = world.admit("a");
    let settled = world.end(&id, Outcome::Completed, 1_000_000_000).unwrap();
    assert_eq!(
        (settled.usage.source, settled.usage.input, settled.usage.output),
        (UsageSource::Estimated, Tokens(10), Tokens(20))
    );
    assert_eq!(world.core.levels(&"a".into(), world.now)[&MeterName::TokensPerMinute], 970);
}

/// The pool's context is 1,000 tokens.
#[test]
fn each_turn_of_a_server_that_runs_tools_has_the_context_to_itself() {
    for (turns, source) in [(1, UsageSource::Estimated), (2, UsageSource::Estimated), (3, UsageSource::Reported)] {
        let mut world = World::new(json!({}));
        let charge_to = crate::wire::ChargeTo {
            tenant: "a".into(),
            pool: "smol".into(),
            model: None,
            prompts: 1,
            sequences: 1,
            turns,
        };
        let usage =
            Usage { source: UsageSource::Reported, input: Tokens(2_500), output: Tokens(1_200), ..Usage::default() };
        let settlement = Settlement {
            id: world.admit("a"),
            outcome: Outcome::Completed,
            usage,
            charge_to: Some(charge_to),
            timing: None,
            abandoned: false,
        };
        let settled = world.core.settle(&settlement, world.now).unwrap();
        assert_eq!(settled.usage.source, source, "{turns} turns");
        // The same of a call that this process did not admit.
        let afterwards = Settlement { id: "x-9".into(), ..settlement };
        assert_eq!(world.core.settle(&afterwards, world.now).is_some(), source == UsageSource::Reported);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Ask { tenant: bool, level: u8, max_tokens: u64 },
    End { nth: usize, outcome: u8, tokens: u64 },
    Wait { span: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), 0_u8..10, 1_u64..900)
            .prop_map(|(tenant, level, max_tokens)| Step::Ask { tenant, level, max_tokens }),
        3 => (0_usize..40, 0_u8..4, 0_u64..2_000).prop_map(|(nth, outcome, tokens)| Step::End { nth, outcome, tokens }),
        1 => (0_u64..30_000).prop_map(|span| Step::Wait { span }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Against a naive list of who is where: never more than two run (I1), nobody is lost or answered twice (I6),
    /// nothing waits while a slot is free (work conservation), and in the end everything has been given back.
    #[test]
    fn nobody_is_lost_and_capacity_is_neither_exceeded_nor_wasted(steps in prop::collection::vec(step(), 1..150)) {
        let mut world = World::new(json!({"concurrent": 9, "tokens_per_min": 20_000}));
        let mut config = Config::clone(world.core.config());
        // Such calls stand in no queue; they have a test of their own.
        config.queue.concurrent_wait = Millis::ZERO;
        world.core.configure(config, UnixMillis(0), world.now);
        world.sync();
        let (mut running, mut queued): (Vec<AdmissionId>, Vec<AdmissionId>) = (Vec::new(), Vec::new());
        for step in steps {
            let events = match step {
                Step::Ask { tenant, level, max_tokens } => {
                    let (id, decision) = world.ask(if tenant { "a" } else { "b" }, |request| {
                        request.priority = Priority::try_from(level).ok();
                        request.max_tokens = Some(Tokens(max_tokens));
                    });
                    match decision {
                        Decision::Admitted(_) => running.push(id),
                        Decision::Queued => queued.push(id),
                        Decision::Rejected(_) => {}
                    }
                    world.sync()
                }
                Step::End { nth, outcome, tokens } => {
                    let all: Vec<AdmissionId> = running.iter().chain(&queued).cloned().collect();
                    if let Some(id) = all.get(nth) {
                        let outcome = [Outcome::Completed, Outcome::Failed, Outcome::Aborted, Outcome::Cancelled][usize::from(outcome)];
                        prop_assert!(world.end(id, outcome, tokens).is_some());
                        prop_assert!(world.end(id, outcome, tokens).is_none());
                        running.retain(|other| other != id);
                        queued.retain(|other| other != id);
                    }
                    world.sync()
                }
                Step::Wait { span } => world.wait(span),
            };
            for event in events {
                let (Event::Started(id, _) | Event::Refused(id, _)) = &event;
                let place = queued.iter().position(|waiting| waiting == id);
                prop_assert!(place.is_some(), "an answer for nobody: {:?}", event);
                queued.remove(place.unwrap_or(0));
                if let Event::Started(id, _) = event {
                    running.push(id);
                }
            }
            prop_assert!(running.len() <= 2);
            prop_assert_eq!(world.core.running(&"smol".into()) as usize, running.len());
            let depth: usize = Priority::all().map(|level| world.core.queue_depth(&"smol".into(), level)).sum();
            prop_assert_eq!(depth, queued.len());
            prop_assert!(queued.is_empty() || running.len() == 2, "a slot is free while {} wait", queued.len());
            let in_flight = world.core.in_flight(&"a".into()) + world.core.in_flight(&"b".into());
            prop_assert_eq!(in_flight as usize, running.len() + queued.len());
        }
    }
}
