use super::*;
use crate::units::Priority;
use serde_json::{Value, json};

fn setup(change: impl FnOnce(&mut Value)) -> Setup {
    let mut document: Value = serde_json::from_str(DAY_NIGHT).unwrap();
    change(&mut document);
    Setup::read(&document, Setup::START).unwrap()
}

/// The same company with a sixteenth of the slots, so that a day of it is soon over.
fn small() -> Setup {
    setup(|document| {
        document["pools"][0]["capacity"] = json!({"concurrent": 4});
        document["pools"][1]["capacity"] = json!({"concurrent": 2});
    })
}

fn scene(text: &str, setup: &Setup) -> Trace {
    Scene::parse(text).unwrap().trace(&setup.config)
}

/// `count` calls of a tenant, all at once, of a second each.
fn burst(tenant: &str, count: usize, more: &Value) -> String {
    let mut call = json!({"at_ms": 0, "tenant": tenant, "model": "shop-small", "input_tokens": 10, "output_tokens": 10,
        "max_tokens": 10, "service_ms": 1_000});
    for (name, value) in more.as_object().into_iter().flatten() {
        call[name] = value.clone();
    }
    format!("{call}\n").repeat(count)
}

#[test]
fn one_seed_gives_one_report_and_another_seed_another() {
    let setup = small();
    let [first, again, other] =
        ["7,hours=1", "7,hours=1", "8,hours=1"].map(|seed| simulate(&setup, &scene(seed, &setup)));
    assert_eq!(first, again);
    assert_ne!(first.digest, other.digest);
}

#[test]
fn every_call_is_served_refused_or_left() {
    let setup = small();
    let trace = scene("3,hours=2,load=150", &setup);
    let report = simulate(&setup, &trace);
    assert_eq!(report.total.asked, trace.arrivals().len() as u64);
    for row in report.rows.iter().chain([&report.total]) {
        assert_eq!(row.asked, row.served + row.refused_in_all() + row.left_waiting + row.left_running, "{row:?}");
        assert_eq!(row.wait_ms.started, row.served + row.left_running);
        let wait = &row.wait_ms;
        assert!(wait.p50 <= wait.p95 && wait.p95 <= wait.p99 && wait.p99 <= wait.max && wait.max <= 60_016);
    }
    assert!(report.pools.iter().all(|pool| pool.utilisation_ppm > 900_000), "{:?}", report.pools);
}

#[test]
fn waits_are_those_of_a_line_before_one_counter() {
    let setup = setup(|document| document["pools"][1]["capacity"]["concurrent"] = json!(1));
    let report = simulate(&setup, &Trace::parse(&burst("dept-a", 5, &json!({}))).unwrap());
    let wait = &report.total.wait_ms;
    assert_eq!((wait.started, wait.waited, wait.mean), (5, 4, 2_000));
    assert_eq!((wait.p50, wait.max, report.ended_ms), (2_000, 4_000, 5_000));
    assert_eq!(report.pools[1].utilisation_ppm, 1_000_000);
}

#[test]
fn the_share_of_the_day_flips_at_night() {
    let setup = small();
    let trace = scene("5,hours=24,load=400", &setup);
    let by_group = |hours: [u64; 2]| {
        let within = |call: &&Arrival| (hours[0]..hours[1]).contains(&(call.at.0 / 3_600_000));
        let calls = trace.arrivals().iter().filter(within).cloned().collect();
        let report = simulate(&setup, &Trace::new(trace.tenants.clone(), trace.models.clone(), calls));
        let sum = |departments: bool| -> u64 {
            let of_group = report.rows.iter().filter(|row| row.tenant.starts_with("dept") == departments);
            of_group.map(|row| row.charge).sum()
        };
        sum(true) * 100 / (sum(true) + sum(false))
    };
    let (day, night) = (by_group([12, 14]), by_group([2, 4]));
    assert!(day >= 75 && night <= 30, "departments had {day}% by day and {night}% by night");
}

#[test]
fn a_client_that_leaves_frees_its_place_or_its_slot() {
    let setup = setup(|document| document["pools"][1]["capacity"]["concurrent"] = json!(1));
    let text = burst("dept-a", 2, &json!({"cancel_after_ms": 500})) + &burst("dept-b", 1, &json!({}));
    let report = simulate(&setup, &Trace::parse(&text).unwrap());
    let row = |tenant: &str| report.rows.iter().find(|row| row.tenant == tenant).unwrap();
    assert_eq!((row("dept-a").left_running, row("dept-a").left_waiting), (1, 1));
    assert_eq!(row("dept-a").output_tokens, 5);
    assert_eq!((row("dept-b").served, row("dept-b").wait_ms.max), (1, 500));
}

#[test]
fn who_cannot_be_served_is_refused_by_name_of_the_reason() {
    let setup = setup(|document| document["tenants"][0]["limits"] = json!({"concurrent": 2}));
    let text =
        burst("dept-a", 5, &json!({})) + &burst("nobody", 2, &json!({})) + &burst("dept-b", 1, &json!({"model": "x"}));
    let report = simulate(&setup, &Trace::parse(&text).unwrap());
    let refused: Vec<(&str, u64)> =
        report.total.refused.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
    assert_eq!(refused, [("model_not_found", 1), ("tenant_concurrency", 3), ("unknown_key", 2)]);
}

/// What the service would do: who has used less than its share has gained weight by the time it calls.
#[test]
fn adaptive_weights_move_in_a_simulation_as_in_the_service() {
    let of = |enabled: bool| {
        setup(|document| {
            document["queue"] = json!({"timeout_ms": 3_600_000});
            document["pools"][1]["capacity"]["concurrent"] = json!(1);
            document["adaptive"] = json!({"enabled": enabled, "window_ms": 10_000});
        })
    };
    let late = json!({"at_ms": 100_000, "level": 7});
    let text = burst("dept-b", 200, &json!({"level": 7})) + &burst("dept-c", 20, &late);
    let trace = Trace::parse(&text).unwrap();
    let (plain, adapted) = (simulate(&of(false), &trace), simulate(&of(true), &trace));
    let wait = |report: &Report| report.rows.iter().find(|row| row.tenant == "dept-c").unwrap().wait_ms.mean;
    assert_eq!(plain.adapted.get("dept-c"), None);
    assert!(wait(&adapted) * 3 < wait(&plain) * 2, "{} and {}", wait(&adapted), wait(&plain));
    assert_eq!(adapted.adapted.get("dept-b"), Some(&50));
    assert!(table(&[("adaptive", &adapted)]).contains("dept-b 50%"));
}

#[test]
fn a_trace_survives_being_written_and_read() {
    let setup = setup(|_| ());
    let trace = scene("9,calls=500", &setup);
    let read = Trace::parse(&trace.to_json_lines()).unwrap();
    assert_eq!(simulate(&setup, &read), simulate(&setup, &trace));
}

#[test]
fn every_wrong_line_of_a_trace_is_reported_with_its_number() {
    let good = burst("a", 1, &json!({}));
    let text = format!(
        "# comment\n{good}not json\n\n{{\"at_ms\": 1}}\n{}",
        burst("a", 1, &json!({"input_tokens": 2_000_000_000}))
    );
    let errors = Trace::parse(&text).unwrap_err();
    let lines: Vec<usize> = errors.0.iter().map(|error| error.line).collect();
    assert_eq!(lines, [3, 5, 6], "{errors}");
    assert!(Trace::parse(&burst("a", 1, &json!({"level": 10}))).is_err());
    assert!(Trace::parse(&burst("a", 1, &json!({"sise": 1}))).is_err());
    assert!(Trace::parse("\n").is_err());
}

#[test]
fn a_level_of_the_trace_may_lower_and_not_raise() {
    let setup = setup(|_| ());
    let text = burst("dept-b", 1, &json!({"level": 0})) + &burst("dept-b", 1, &json!({"level": 7}));
    let report = simulate(&setup, &Trace::parse(&text).unwrap());
    let levels: Vec<Option<Priority>> = report.rows.iter().map(|row| row.level).collect();
    assert_eq!(levels, [Priority::parse("2"), Priority::parse("7")]);
}

#[test]
fn jains_index_is_one_when_all_have_the_same_and_a_share_when_one_has_all() {
    assert_eq!(tally::jain_ppm(&[7, 7, 7]), 1_000_000);
    assert_eq!(tally::jain_ppm(&[9, 0, 0]), 333_333);
    assert_eq!(tally::jain_ppm(&[]), 1_000_000);
    assert_eq!(tally::jain_ppm(&[u64::MAX; 1_000]), 1_000_000);
}

#[test]
fn a_table_of_two_configurations_shows_both_values_in_every_cell() {
    let (wide, narrow) = (setup(|_| ()), setup(|document| document["pools"][1]["capacity"]["concurrent"] = json!(1)));
    let trace = Trace::parse(&burst("dept-a", 3, &json!({}))).unwrap();
    let (wide, narrow) = (simulate(&wide, &trace), simulate(&narrow, &trace));
    let text = table(&[("wide", &wide), ("narrow", &narrow)]);
    assert!(text.contains("0.00 s | 2.00 s"), "{text}");
}
