//! Tenants take over what changes one by one, and what is decided does not depend on whose turn it is.

use super::*;
use crate::schedule::UnixMillis;

const TENANTS: usize = 1_000;
const DAY: i64 = 86_400_000;

/// As many tenants as are named, each with this weight and these budgets.
fn config(tenants: impl Iterator<Item = usize>, weight: u64, budgets: &serde_json::Value) -> Config {
    let tenant = |number| json!({"id": format!("t-{number}"), "weight": weight, "budgets": budgets});
    let document = json!({
        "pools": [{"name": "smol", "models": ["m"], "capacity": {"concurrent": 10}}],
        "tenants": tenants.map(tenant).collect::<Vec<_>>(),
    });
    read_document(&document, Config::read).unwrap()
}

fn limited_to(tokens: u64) -> Config {
    config(0..TENANTS, 1, &json!({"tokens_per_day": tokens}))
}

/// A core whose tenants have all called once.
fn world(config: Config) -> World {
    let core = Admission::new(config, &Replica { id: "gate-0".into(), incarnation: 1, lease: LEASE }, Millis(0));
    let mut world = World { core, ledgers: BTreeMap::new(), now: Millis(0), asked: 0, unheard: Vec::new() };
    world.sync();
    for number in 0..TENANTS {
        let id = world.admit(&format!("t-{number}"));
        world.end(&id, Outcome::Completed, 15);
    }
    world.sync();
    world
}

/// How often the core is to be called, a millisecond apart, until every tenant has taken over what has changed.
fn slices(world: &mut World) -> usize {
    let mut slices = 0;
    while world.core.next_slice().is_some() {
        world.core.advance(world.now);
        let behind = world.core.next_slice();
        assert!(behind.is_none_or(|at| at == world.now.plus(Millis(1)) && world.core.next_wake() == Some(at)));
        world.core.advance(world.now);
        assert_eq!(world.core.next_slice(), behind, "one slice a millisecond, however often the core is called");
        world.now = world.now.plus(Millis(1));
        slices += 1;
    }
    slices
}

#[test]
fn a_tenant_that_has_never_called_has_no_state() {
    let config = config(0..TENANTS, 1, &json!({}));
    let core = Admission::new(config, &Replica { id: "gate-0".into(), incarnation: 1, lease: LEASE }, Millis(0));
    let mut world = World { core, ledgers: BTreeMap::new(), now: Millis(0), asked: 0, unheard: Vec::new() };
    world.sync();
    world.admit("t-7");
    assert_eq!(world.core.tenants.len(), 1);
    assert_eq!(reason(&world.ask("nobody", |_| ()).1), Some((401, Reason::UnknownKey)));
    assert_eq!(world.core.tenants.len(), 1, "nor has a name that nobody has configured");
}

#[test]
fn a_reload_takes_slices_and_the_last_tenant_is_decided_by_it_at_once() {
    let mut world = world(limited_to(1_000));
    let (last, second) = (format!("t-{}", TENANTS - 1), format!("t-{}", TENANTS - 2));
    drop(world.core.configure(limited_to(20), UnixMillis(1), world.now));
    assert_eq!(reason(&world.send(&last, |_| ()).1), None, "the ledger is asked");
    assert_eq!(reason(&world.ask(&last, |_| ()).1), Some((429, Reason::TenantTokensPerDay)));
    drop(world.core.configure(config(0..TENANTS - 2, 1, &json!({})), UnixMillis(2), world.now));
    for tenant in [&last, &second] {
        assert_eq!(reason(&world.ask(tenant, |_| ()).1), Some((401, Reason::UnknownKey)));
    }
    drop(world.core.configure(limited_to(1_000), UnixMillis(3), world.now));
    assert_eq!(slices(&mut world), TENANTS.div_ceil(128));
    assert_eq!(slices(&mut world), 0);
    world.sync();
    world.admit(&last);
}

#[test]
fn a_day_begins_for_a_tenant_that_calls_before_its_slice_and_for_the_others_with_theirs() {
    let mut world = world(limited_to(40));
    let last = format!("t-{}", TENANTS - 1);
    assert_eq!(reason(&world.ask(&last, |_| ()).1), Some((429, Reason::TenantTokensPerDay)));
    world.core.turn_budgets(UnixMillis(DAY), world.now);
    let (id, decision) = world.send(&last, |_| ());
    assert_eq!(decision, Decision::Queued, "yesterday's refusal is forgotten, and the ledger asked");
    assert_eq!(slices(&mut world), TENANTS.div_ceil(128));
    assert_eq!(started(&world.sync()), [&id]);
    world.core.turn_budgets(UnixMillis(DAY + 1), world.now);
    assert_eq!(slices(&mut world), 0, "it is the same day");
}

#[test]
fn a_call_that_waits_for_the_ledger_is_decided_by_the_limits_of_the_moment_it_answers() {
    let mut world = world(limited_to(1_000));
    world.wait(10_000);
    let last = format!("t-{}", TENANTS - 1);
    assert_eq!(world.send(&last, |_| ()).1, Decision::Queued, "what was lent is back at the ledger");
    drop(world.core.configure(limited_to(20), UnixMillis(1), world.now));
    let events = world.sync();
    assert!(matches!(events.as_slice(), [Event::Refused(..)]), "{events:?}");
}

#[test]
fn a_weight_that_changes_while_a_call_waits_for_its_tenants_account_counts_where_it_then_queues() {
    let weighed = |weight| config(0..TENANTS + 1, weight, &json!({"tokens_per_day": 1_000}));
    let mut world = world(weighed(2));
    for _ in 0..10 {
        world.admit("t-0");
    }
    let newcomer = format!("t-{TENANTS}");
    assert_eq!(world.send(&newcomer, |_| ()).1, Decision::Queued);
    let index = world.core.tenants.index(&newcomer.as_str().into()).unwrap();
    drop(world.core.configure(weighed(7), UnixMillis(1), world.now));
    slices(&mut world);
    world.sync();
    let pool = world.core.pools.named(&"smol".into()).unwrap();
    assert_eq!((pool.queue.weight(index), pool.queue.tenant_depth(index)), (7, 1));
}

#[test]
fn weights_that_change_count_for_calls_that_wait_and_for_those_that_come() {
    let mut world = world(config(0..TENANTS, 2, &json!({})));
    let weight = |world: &World, number| {
        let index = world.core.tenants.index(&format!("t-{number}").into()).unwrap();
        world.core.pools.named(&"smol".into()).unwrap().queue.weight(index)
    };
    for _ in 0..10 {
        world.admit("t-0");
    }
    assert_eq!(world.ask("t-998", |_| ()).1, Decision::Queued);
    assert_eq!(weight(&world, 998), 2);
    let weights = (0..TENANTS).map(|number| (TenantId::from(format!("t-{number}").as_str()), 7));
    drop(world.core.weigh_tenants(Arc::new(weights.collect())));
    assert_eq!(world.send("t-999", |_| ()).1, Decision::Queued);
    assert_eq!((weight(&world, 998), weight(&world, 999)), (2, 7));
    assert_eq!(slices(&mut world), TENANTS.div_ceil(128));
    assert_eq!(weight(&world, 998), 7);
    drop(world.core.weigh_tenants(Arc::default()));
    assert_eq!(slices(&mut world), TENANTS.div_ceil(128));
    assert_eq!((weight(&world, 998), weight(&world, 999)), (2, 2));
}
