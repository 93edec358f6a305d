//! Budgets of a day and a month, through the whole core.

use super::*;
use crate::schedule::UnixMillis;

/// 2026-01-31, an hour before midnight in Berlin.
const EVENING: i64 = 1_769_896_800_000;
const HOUR: i64 = 3_600_000;

fn world(budgets: serde_json::Value) -> World {
    let first = json!({"id": "a", "priority": {"default": 5}, "budgets": budgets});
    let price = json!({"input_micros_per_million": 1_000_000, "output_micros_per_million": 10_000_000});
    let mut world = World::with(first, json!([{"name": "m", "price": price}]));
    world.core.turn_budgets(UnixMillis(EVENING), world.now);
    world
}

fn left(world: &World, budget: MeterName) -> i64 {
    world.core.levels(&"a".into(), world.now)[&budget]
}

#[test]
fn an_exhausted_budget_refuses_until_the_tenants_own_midnight() {
    let mut world = world(json!({"tokens_per_day": 100, "time_zone": "Europe/Berlin"}));
    let first = world.admit("a");
    assert!(world.end(&first, Outcome::Completed, 80).is_some());
    world.sync();
    let (_, refused) = world.ask("a", |_| ());
    assert_eq!(reason(&refused), Some((429, Reason::TenantTokensPerDay)));
    let Decision::Rejected(refusal) = refused else { panic!("{refused:?}") };
    assert_eq!(refusal.retry_after_ms, Some(Millis(3_600_000)));
    assert!(!refusal.reason.is_worth_a_retry());
    world.core.turn_budgets(UnixMillis(EVENING + HOUR), world.now);
    world.admit("a");
}

#[test]
fn a_month_counts_on_when_a_day_begins_and_ends_with_it_at_its_own_time() {
    let mut world = world(json!({"tokens_per_day": 500, "tokens_per_month": 1_000}));
    let first = world.admit("a");
    world.end(&first, Outcome::Completed, 200);
    world.sync();
    // In UTC the month has two hours left.
    world.core.turn_budgets(UnixMillis(EVENING + HOUR), world.now);
    world.sync();
    assert_eq!((left(&world, MeterName::TokensPerDay), left(&world, MeterName::TokensPerMonth)), (300, 800));
    world.core.turn_budgets(UnixMillis(EVENING + 2 * HOUR), world.now);
    let second = world.admit("a");
    world.end(&second, Outcome::Completed, 50);
    world.sync();
    assert_eq!((left(&world, MeterName::TokensPerDay), left(&world, MeterName::TokensPerMonth)), (450, 950));
}

#[test]
fn what_yesterdays_call_did_not_use_is_not_given_back_today() {
    let mut world = world(json!({"tokens_per_day": 100}));
    let yesterday = world.admit("a");
    world.core.turn_budgets(UnixMillis(EVENING + 2 * HOUR), Millis(1));
    world.now = Millis(1);
    let today = world.admit("a");
    world.end(&yesterday, Outcome::Completed, 1);
    world.sync();
    // Ten of input and twenty of output are reserved.
    assert_eq!(left(&world, MeterName::TokensPerDay), 70);
    world.end(&today, Outcome::Completed, 1);
    world.sync();
    assert_eq!(left(&world, MeterName::TokensPerDay), 99);
}

#[test]
fn money_is_counted_by_the_models_price() {
    let mut world = world(json!({"micros_per_month": 1_000}));
    let first = world.admit("a");
    world.sync();
    assert_eq!(left(&world, MeterName::MoneyPerMonth), 1_000 - 10 - 200);
    world.end(&first, Outcome::Completed, 79);
    world.sync();
    // The reply told no input.
    assert_eq!(left(&world, MeterName::MoneyPerMonth), 1_000 - 790);
    let (_, refused) = world.ask("a", |request| request.max_tokens = Some(Tokens(21)));
    assert_eq!(reason(&refused), Some((429, Reason::TenantMoneyPerMonth)));
    world.admit("a");
}

#[test]
fn a_budget_that_is_no_budget_is_refused_with_its_path() {
    let document = json!({
        "pools": [{"name": "smol", "models": ["m"], "capacity": {"concurrent": 2}}],
        "tenants": [{"id": "a", "budgets": {"tokens_per_day": 0, "time_zone": "Berlin"}}],
    });
    let errors = read_document(&document, Config::read).unwrap_err().to_string();
    assert!(errors.contains("tenants[0].budgets.tokens_per_day"), "{errors}");
    assert!(errors.contains("tenants[0].budgets.time_zone: \"Berlin\" is no time zone"), "{errors}");
}
