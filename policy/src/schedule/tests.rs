use super::*;
use crate::units::PoolName;
use std::collections::BTreeMap;

/// An instant, written with its offset.
pub(super) fn at(text: &str) -> UnixMillis {
    UnixMillis(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
}

pub(super) fn window(zone: &str, days: &[&str], from: &str, to: &str) -> Window {
    Window {
        zone: Zone::named(zone).unwrap(),
        days: if days.is_empty() { Days::EVERY } else { Days::named(days.iter().copied()).unwrap() },
        from: WallTime::parse(from).unwrap(),
        to: WallTime::parse(to).unwrap(),
    }
}

pub(super) fn rule(name: &str, window: Window, weight: u64) -> TimeRule {
    let change = Change { weights: Some([weight; 10]), pools: BTreeMap::new() };
    TimeRule { name: name.to_owned(), window, overrides: true, change }
}

/// The window's runs of activity in `[from, to)`, in minutes, found edge by edge.
fn runs(window: &Window, from: &str, to: &str) -> Vec<(String, i64)> {
    let (mut now, end) = (at(from), at(to));
    let mut runs = Vec::new();
    while let Some(next) = window.next_edge(now).filter(|next| *next < end) {
        if window.contains(now) && now > at(from) {
            let start = jiff::Timestamp::from_millisecond(now.0).unwrap();
            runs.push((start.to_string(), (next.0 - now.0) / 60_000));
        }
        now = next;
    }
    runs
}

fn assert_runs(window: &Window, from: &str, to: &str, expected: &[(&str, i64)]) {
    let expected: Vec<(String, i64)> =
        expected.iter().map(|(start, minutes)| ((*start).to_owned(), *minutes)).collect();
    assert_eq!(runs(window, from, to), expected, "{window}");
}

#[test]
fn a_window_holds_from_its_first_minute_to_just_before_its_end() {
    let office = window("Asia/Shanghai", &[], "08:00", "18:00");
    for (instant, inside) in [
        ("2026-05-04T07:59:59.999+08:00", false),
        ("2026-05-04T08:00:00+08:00", true),
        ("2026-05-04T17:59:59.999+08:00", true),
        ("2026-05-04T18:00:00+08:00", false),
    ] {
        assert_eq!(office.contains(at(instant)), inside, "{instant}");
    }
}

#[test]
fn the_part_after_midnight_belongs_to_the_day_it_began() {
    let night = window("Europe/Berlin", &["fri"], "22:00", "06:00");
    for (instant, inside) in [
        ("2026-05-08T05:00:00+02:00", false), // Friday's early morning is Thursday's night
        ("2026-05-08T22:00:00+02:00", true),
        ("2026-05-09T05:00:00+02:00", true), // Saturday
        ("2026-05-09T06:00:00+02:00", false),
        ("2026-05-09T23:00:00+02:00", false),
    ] {
        assert_eq!(night.contains(at(instant)), inside, "{instant}");
    }
}

#[test]
fn equal_ends_are_a_whole_day_and_neighbouring_days_are_one_run() {
    let weekend = window("UTC", &["sat", "sun"], "00:00", "00:00");
    assert_runs(&weekend, "2026-05-04T00:00Z", "2026-05-13T00:00Z", &[("2026-05-09T00:00:00Z", 48 * 60)]);
}

#[test]
fn a_window_without_a_break_has_no_edge() {
    let always = window("Europe/Berlin", &[], "02:30", "02:30");
    assert_eq!(always.next_edge(at("2026-03-28T12:00Z")), None);
    for minute in 0..4 * 24 * 60 {
        let now = UnixMillis(at("2026-03-28T00:00Z").0 + minute * 60_000);
        assert!(always.contains(now), "{now:?}");
    }
}

#[test]
fn a_night_on_which_berlin_changes_its_clocks_is_an_hour_shorter_or_longer() {
    let night = window("Europe/Berlin", &["sat"], "22:00", "06:00");
    assert_runs(&night, "2026-03-27T00:00Z", "2026-03-31T00:00Z", &[("2026-03-28T21:00:00Z", 7 * 60)]);
    assert_runs(&night, "2026-10-23T00:00Z", "2026-10-27T00:00Z", &[("2026-10-24T20:00:00Z", 9 * 60)]);
}

#[test]
fn a_whole_day_has_23_or_25_hours_when_clocks_change() {
    let berlin = window("Europe/Berlin", &["sun"], "00:00", "00:00");
    assert_runs(&berlin, "2026-03-27T00:00Z", "2026-03-31T00:00Z", &[("2026-03-28T23:00:00Z", 23 * 60)]);
    assert_runs(&berlin, "2026-10-23T00:00Z", "2026-10-27T00:00Z", &[("2026-10-24T22:00:00Z", 25 * 60)]);
    let new_york = window("America/New_York", &["sun"], "00:00", "00:00");
    assert_runs(&new_york, "2026-03-06T00:00Z", "2026-03-10T00:00Z", &[("2026-03-08T05:00:00Z", 23 * 60)]);
    assert_runs(&new_york, "2026-10-30T00:00Z", "2026-11-03T00:00Z", &[("2026-11-01T04:00:00Z", 25 * 60)]);
}

#[test]
fn a_start_in_the_gap_is_the_instant_after_it() {
    // Berlin skips 02:00–03:00 on 29 March; 03:00 there is 01:00 UTC.
    let berlin = window("Europe/Berlin", &["sun"], "02:30", "04:00");
    assert_runs(&berlin, "2026-03-27T00:00Z", "2026-03-31T00:00Z", &[("2026-03-29T01:00:00Z", 60)]);
    let new_york = window("America/New_York", &["sun"], "02:10", "03:30");
    assert_runs(&new_york, "2026-03-06T00:00Z", "2026-03-10T00:00Z", &[("2026-03-08T07:00:00Z", 30)]);
}

#[test]
fn an_end_in_the_gap_is_the_instant_after_it() {
    let berlin = window("Europe/Berlin", &["sun"], "01:00", "02:30");
    assert_runs(&berlin, "2026-03-27T00:00Z", "2026-03-31T00:00Z", &[("2026-03-29T00:00:00Z", 60)]);
}

#[test]
fn a_window_wholly_in_the_gap_does_not_happen_that_day() {
    let lost = window("Europe/Berlin", &["sun"], "02:15", "02:45");
    assert_runs(&lost, "2026-03-24T00:00Z", "2026-04-06T00:00Z", &[("2026-04-05T00:15:00Z", 30)]);
}

#[test]
fn in_the_repeated_hour_the_first_pass_begins_and_the_last_one_ends() {
    // Berlin repeats 02:00–03:00 on 25 October: first from 00:00 UTC, again from 01:00 UTC.
    let begins = window("Europe/Berlin", &["sun"], "02:30", "04:00");
    assert_runs(&begins, "2026-10-23T00:00Z", "2026-10-27T00:00Z", &[("2026-10-25T00:30:00Z", 150)]);
    let ends = window("Europe/Berlin", &["sun"], "01:00", "02:30");
    assert_runs(&ends, "2026-10-23T00:00Z", "2026-10-27T00:00Z", &[("2026-10-24T23:00:00Z", 150)]);
    let within = window("America/New_York", &["sun"], "01:15", "01:45");
    assert_runs(&within, "2026-10-30T00:00Z", "2026-11-03T00:00Z", &[("2026-11-01T05:15:00Z", 90)]);
}

#[test]
fn the_repeated_hour_belongs_to_the_window_that_begins_with_it() {
    let before = window("Europe/Berlin", &["sun"], "00:00", "02:00");
    assert_runs(&before, "2026-10-23T00:00Z", "2026-10-27T00:00Z", &[("2026-10-24T22:00:00Z", 120)]);
    let with = window("Europe/Berlin", &["sun"], "02:00", "03:00");
    assert_runs(&with, "2026-10-23T00:00Z", "2026-10-27T00:00Z", &[("2026-10-25T00:00:00Z", 120)]);
    let after = window("Europe/Berlin", &["sun"], "03:00", "04:00");
    assert_runs(&after, "2026-10-23T00:00Z", "2026-10-27T00:00Z", &[("2026-10-25T02:00:00Z", 60)]);
}

#[test]
fn southern_clocks_change_in_the_other_months() {
    let sydney = window("Australia/Sydney", &["sun"], "00:00", "00:00");
    assert_runs(&sydney, "2026-04-03T00:00Z", "2026-04-07T00:00Z", &[("2026-04-04T13:00:00Z", 25 * 60)]);
    assert_runs(&sydney, "2026-10-02T00:00Z", "2026-10-06T00:00Z", &[("2026-10-03T14:00:00Z", 23 * 60)]);
    // Lord Howe's summer is half an hour.
    let lord_howe = window("Australia/Lord_Howe", &["sun"], "00:00", "00:00");
    assert_runs(&lord_howe, "2026-04-03T00:00Z", "2026-04-07T00:00Z", &[("2026-04-04T13:00:00Z", 24 * 60 + 30)]);
}

#[test]
fn a_day_may_begin_at_one_o_clock() {
    // Santiago skips 00:00–01:00 on 6 September.
    let santiago = window("America/Santiago", &["sun"], "00:00", "08:00");
    assert_runs(&santiago, "2026-09-04T00:00Z", "2026-09-08T00:00Z", &[("2026-09-06T04:00:00Z", 7 * 60)]);
}

#[test]
fn a_window_that_began_goes_on_when_the_clock_is_set_back_to_the_day_before() {
    // St. John's went from 00:01 on Sunday back to 23:01 on Saturday.
    let sunday = window("America/St_Johns", &["sun"], "00:00", "08:00");
    assert_runs(&sunday, "2010-11-05T00:00Z", "2010-11-09T00:00Z", &[("2010-11-07T02:30:00Z", 9 * 60)]);
    assert!(sunday.contains(at("2010-11-06T23:30:00-03:30")), "Saturday again, half an hour into Sunday's window");
}

#[test]
fn a_zone_may_be_half_an_hour_off() {
    let kolkata = window("Asia/Kolkata", &["mon"], "09:00", "17:30");
    assert_runs(&kolkata, "2026-05-02T00:00Z", "2026-05-06T00:00Z", &[("2026-05-04T03:30:00Z", 510)]);
}

#[test]
fn a_day_that_the_calendar_skipped_has_no_window() {
    // Apia crossed the date line: Thursday 29 December 2011 was followed by Saturday 31.
    let friday = window("Pacific/Apia", &["fri"], "09:00", "17:00");
    assert_runs(&friday, "2011-12-25T00:00Z", "2012-01-05T00:00Z", &[]);
    let thursday_night = window("Pacific/Apia", &["thu"], "22:00", "06:00");
    assert_runs(&thursday_night, "2011-12-25T00:00Z", "2012-01-05T00:00Z", &[("2011-12-30T08:00:00Z", 120)]);
}

fn settings() -> Settings {
    let pool = PoolSettings {
        concurrent: 8,
        tokens_per_s: Some(4_000),
        burst_tokens: None,
        shares: [("internal".to_owned(), 80), ("external".to_owned(), 20)].into(),
    };
    Settings { weights: [1; 10], pools: [(PoolName::from("smol"), pool)].into() }
}

fn pool_change(change: PoolChange) -> Change {
    Change { weights: None, pools: [(PoolName::from("smol"), change)].into() }
}

#[test]
fn the_last_active_rule_wins_field_by_field_and_the_base_returns() {
    let mut night = rule("night", window("UTC", &[], "18:00", "08:00"), 7);
    night.change.pools = pool_change(PoolChange {
        concurrent: Some(4),
        shares: [("internal".to_owned(), 20), ("external".to_owned(), 80)].into(),
        ..PoolChange::default()
    })
    .pools;
    let mut weekend = rule("weekend", window("UTC", &["sat", "sun"], "00:00", "00:00"), 9);
    weekend.change.weights = None;
    weekend.change.pools = pool_change(PoolChange {
        concurrent: Some(2),
        tokens_per_s: Some(1_000),
        shares: [("internal".to_owned(), 50)].into(),
        ..PoolChange::default()
    })
    .pools;
    let rules = TimeRules(vec![night, weekend]);
    let base = settings();

    let saturday_night = at("2026-05-09T20:00Z");
    let names: Vec<&str> = rules.active(saturday_night).map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["night", "weekend"]);
    let both = rules.effective(&base, saturday_night);
    assert_eq!(both.weights, [7; 10]);
    let smol = &both.pools[&PoolName::from("smol")];
    assert_eq!(smol.concurrent, 2);
    assert_eq!(smol.shares, [("internal".to_owned(), 50), ("external".to_owned(), 80)].into());
    assert_eq!(smol.rate(), Some(crate::bucket::Rate::per_second(1_000, 1_000)));

    assert_eq!(rules.effective(&base, at("2026-05-11T12:00Z")), base);
    assert_eq!(rules.next_change(at("2026-05-11T12:00Z")), Some(at("2026-05-11T18:00Z")));
    assert_eq!(TimeRules::default().next_change(saturday_night), None);
}

#[test]
fn windows_are_shown_as_they_are_written() {
    let shown = window("asia/shanghai", &["fri", "mon"], "18:00", "08:00").to_string();
    assert_eq!(shown, "mon, fri 18:00–08:00 Asia/Shanghai");
    assert_eq!(window("UTC", &[], "00:00", "00:00").to_string(), "every day 00:00–00:00 UTC");
}

#[test]
fn a_burst_that_is_written_stays_and_one_that_is_not_follows_the_rate() {
    let slower = pool_change(PoolChange { tokens_per_s: Some(1_000), ..PoolChange::default() });
    for (burst_tokens, expected) in [(None, 1_000), (Some(8_000), 8_000)] {
        let mut settings = settings();
        let name = PoolName::from("smol");
        settings.pools.get_mut(&name).unwrap().burst_tokens = burst_tokens;
        settings.apply(&slower);
        assert_eq!(settings.pools[&name].rate(), Some(crate::bucket::Rate::per_second(1_000, expected)));
    }
}

fn overlap(earlier: &Window, later: &Window) -> Option<String> {
    let (earlier, later) = (rule("a", earlier.clone(), 1), rule("b", later.clone(), 2));
    overlap::contradiction(&earlier, &later).map(|found| found.since)
}

#[test]
fn windows_that_only_touch_do_not_overlap() {
    let day = window("Europe/Berlin", &[], "02:30", "18:00");
    assert_eq!(overlap(&day, &window("Europe/Berlin", &[], "18:00", "02:30")), None);
    assert_eq!(overlap(&day, &window("Europe/Berlin", &[], "18:00", "02:31")).unwrap(), "mon 02:30 Europe/Berlin");
}

#[test]
fn an_overlap_across_the_end_of_the_week_is_found() {
    let sunday_night = window("UTC", &["sun"], "22:00", "06:00");
    assert_eq!(overlap(&sunday_night, &window("UTC", &["mon"], "05:00", "07:00")).unwrap(), "mon 05:00 UTC");
    assert_eq!(overlap(&sunday_night, &window("UTC", &["mon"], "06:00", "07:00")), None);
}

#[test]
fn zones_are_compared_in_the_weeks_between_their_clock_changes_too() {
    // Mostly six hours apart, and five for some weeks in March and one in autumn.
    let new_york = window("America/New_York", &[], "09:00", "10:00");
    assert_eq!(overlap(&new_york, &window("Europe/Berlin", &[], "15:00", "16:00")).unwrap(), "mon 15:00 Europe/Berlin");
    assert_eq!(overlap(&new_york, &window("Europe/Berlin", &[], "14:00", "15:00")).unwrap(), "mon 14:00 Europe/Berlin");
    assert_eq!(overlap(&new_york, &window("Europe/Berlin", &[], "16:00", "14:00")), None);
}

#[test]
fn zones_that_change_their_clocks_on_the_same_night_may_hold_neighbouring_windows() {
    // For one hour of that night Chicago is two hours or none behind New York.
    let day = window("America/New_York", &[], "08:00", "01:30");
    assert_eq!(overlap(&day, &window("America/Chicago", &[], "00:30", "07:00")), None);
}

#[test]
fn rules_that_set_different_fields_or_the_same_value_do_not_contradict() {
    let every_day = window("UTC", &[], "00:00", "00:00");
    let set = |change| TimeRule { name: "a".into(), window: every_day.clone(), overrides: false, change };
    let concurrent = set(pool_change(PoolChange { concurrent: Some(4), ..PoolChange::default() }));
    let other = set(pool_change(PoolChange { tokens_per_s: Some(4), ..PoolChange::default() }));
    assert_eq!(overlap::contradiction(&concurrent, &other), None);
    assert_eq!(overlap::contradiction(&concurrent, &concurrent), None);
    let less = set(pool_change(PoolChange { concurrent: Some(3), ..PoolChange::default() }));
    assert_eq!(overlap::contradiction(&concurrent, &less).unwrap().fields, ["pool smol concurrent"]);
}
