//! Random rules against the words of the module's documentation, taken literally and minute by minute.

use super::tests::rule;
use super::*;
use jiff::civil::DateTime;
use jiff::{Span, Timestamp};
use proptest::prelude::*;

/// All at whole minutes from UTC since 1970, so that a scan by minutes misses nothing.
const ZONES: [&str; 14] = [
    "UTC",
    "Europe/Berlin",
    "Europe/Dublin",
    "America/New_York",
    "America/St_Johns",
    "America/Santiago",
    "America/Havana",
    "Australia/Sydney",
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "Asia/Shanghai",
    "Africa/Casablanca",
    "Pacific/Apia",
    "Asia/Kathmandu",
];
const MINUTE_MS: i64 = 60_000;
const LAST_MINUTE: i64 = 120_972_960; // 2200-01-01

fn wall_time() -> impl Strategy<Value = WallTime> {
    // Often near the hours in which clocks change.
    let minute = prop_oneof![0_u32..1_440, 0_u32..240, (0_u32..8).prop_map(|half| half * 30)];
    minute.prop_map(|minute| WallTime::parse(&format!("{:02}:{:02}", minute / 60, minute % 60)).unwrap())
}

fn window_in(zone: impl Strategy<Value = &'static str>) -> impl Strategy<Value = Window> {
    let days = prop_oneof![Just(Days::EVERY), (1_u8..128).prop_map(days_of)];
    (zone, days, wall_time(), wall_time()).prop_map(|(zone, days, from, to)| Window {
        zone: Zone::named(zone).unwrap(),
        days,
        from,
        to,
    })
}

fn days_of(bits: u8) -> Days {
    let names = Days::NAMES.iter().enumerate().filter(|(day, _)| bits & (1 << day) != 0);
    Days::named(names.map(|(_, name)| *name)).unwrap()
}

fn any_window() -> impl Strategy<Value = Window> {
    window_in(prop::sample::select(&ZONES[..]))
}

/// A whole minute, mostly within a day of a clock change of `zone`.
fn minute_near(zone: &Zone, minute: i64, from_change: Option<i64>) -> UnixMillis {
    let at = Timestamp::from_second(minute * 60).unwrap();
    let change = jiff::tz::TimeZone::get(zone.name()).unwrap();
    let change = change.following(at).next().map(|change| change.timestamp().as_second().div_euclid(60));
    let minute = from_change.and_then(|offset| change.map(|change| change + offset)).unwrap_or(minute);
    UnixMillis(minute.clamp(0, LAST_MINUTE) * MINUTE_MS)
}

fn any_minute() -> impl Strategy<Value = (i64, Option<i64>)> {
    let from_change = prop_oneof![-1_600_i64..1_600, -150_i64..150];
    (0..LAST_MINUTE, prop::option::weighted(0.75, from_change))
}

/// "From the first instant at which the clock shows `from` or later until the clock last shows less than `to`": the
/// clock has shown `from` by now, and shows less than `to` now or later. A change moves it by 26 hours at most.
fn naive_contains(window: &Window, now: UnixMillis) -> bool {
    let clock = |minute: i64| {
        let at = UnixMillis(now.0 + minute * MINUTE_MS);
        window.zone.wall(zone::timestamp(at))
    };
    let highest = (-26 * 60..=0).map(clock).max().unwrap();
    let lowest = (0..=26 * 60).map(clock).min().unwrap();
    let today = clock(0).date();
    (-3_i64..=3).any(|offset| {
        let day = today.checked_add(Span::new().days(offset)).unwrap();
        let name = Days::NAMES[usize::try_from(day.weekday().to_monday_zero_offset()).unwrap()];
        let listed = window.days == Days::EVERY || window.days.to_string().split(", ").any(|listed| listed == name);
        let last_day = if window.to > window.from { day } else { day.tomorrow().unwrap() };
        listed && highest >= wall(day, window.from) && lowest < wall(last_day, window.to)
    })
}

fn wall(day: jiff::civil::Date, time: WallTime) -> DateTime {
    format!("{day}T{time}").parse().unwrap()
}

fn names(rules: &TimeRules, now: UnixMillis) -> Vec<&str> {
    rules.active(now).map(|rule| rule.name.as_str()).collect()
}

fn rules_of(windows: Vec<Window>) -> TimeRules {
    TimeRules(windows.into_iter().enumerate().map(|(index, window)| rule(&index.to_string(), window, 1)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_window_is_active_when_the_wall_clock_says_so(window in any_window(), (minute, change) in any_minute()) {
        let now = minute_near(&window.zone, minute, change);
        prop_assert_eq!(window.contains(now), naive_contains(&window, now), "{} at {:?}", window, now);
    }

    #[test]
    fn an_answer_exists_at_every_instant_and_the_next_change_lies_ahead(
        windows in prop::collection::vec(any_window(), 1..4),
        now in prop_oneof![any::<i64>(), 0..LAST_MINUTE * MINUTE_MS],
    ) {
        let rules = rules_of(windows);
        let now = UnixMillis(now);
        prop_assert!(rules.active(now).count() <= 3);
        prop_assert!(rules.next_change(now).is_none_or(|next| next > now));
    }

    #[test]
    fn fixed_zones_overlap_when_both_windows_hold_at_some_minute_of_a_week(
        a in window_in(prop::sample::select(vec!["Asia/Kolkata", "UTC"])),
        b in window_in(prop::sample::select(vec!["Asia/Shanghai", "UTC"])),
    ) {
        let week = (0..7 * 1_440).map(|minute| UnixMillis(1_777_852_800_000 + minute * MINUTE_MS));
        let together = week.into_iter().any(|now| a.contains(now) && b.contains(now));
        let found = overlap::contradiction(&rule("a", a, 1), &rule("b", b, 2));
        prop_assert_eq!(found.is_some(), together);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_next_change_is_where_a_scan_by_minutes_finds_it(
        windows in prop::collection::vec(any_window(), 1..4),
        (minute, change) in any_minute(),
    ) {
        const SCANNED_MINUTES: i64 = 2 * 1_440;
        let start = minute_near(&windows[0].zone, minute, change);
        let rules = rules_of(windows);
        let before = names(&rules, start);
        let mut scan = (1..=SCANNED_MINUTES).map(|minute| UnixMillis(start.0 + minute * MINUTE_MS));
        let found = scan.find(|now| names(&rules, *now) != before);
        let told = rules.next_change(start);
        let horizon = UnixMillis(start.0 + SCANNED_MINUTES * MINUTE_MS);
        prop_assert_eq!(told.filter(|next| *next <= horizon), found, "from {:?}", start);
    }
}
