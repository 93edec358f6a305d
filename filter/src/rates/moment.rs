//! A moment of the wall clock as text.

use sluice_policy::units::Millis;

const MS_PER_S: u64 = 1000;
const S_PER_DAY: u64 = 86_400;

/// RFC 3339 in UTC, to the second; the clock counts from 1970.
pub(super) fn rfc3339(moment: Millis) -> String {
    let seconds = moment.0 / MS_PER_S;
    let (year, month, day) = date(seconds / S_PER_DAY);
    let time = seconds % S_PER_DAY;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", time / 3600, time / 60 % 60, time % 60)
}

/// The date so many days after 1970-01-01: Howard Hinnant's `civil_from_days`, for days that are not negative. Years
/// begin in March there, so that the day that may be missing is the last.
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_PER_ERA: u64 = 146_097;
    const TO_MARCH_OF_YEAR_0: u64 = 719_468;
    let shifted = days.saturating_add(TO_MARCH_OF_YEAR_0);
    let (era, day_of_era) = (shifted / DAYS_PER_ERA, shifted % DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_read_as_a_calendar_has_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_308_822, "2026-11-22T00:53:42Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(Millis(seconds * 1000 + 999)), text);
        }
    }

    #[test]
    fn days_follow_each_other_for_four_hundred_years() {
        let mut before = date(0);
        for day in 1..=146_097 {
            let (year, month, number) = date(day);
            let next_day = (before.0, before.1, before.2 + 1) == (year, month, number);
            let next_month = number == 1 && (before.0 * 12 + before.1 + 1) == year * 12 + month;
            assert!(next_day || next_month, "{before:?} {year} {month} {number}");
            before = (year, month, number);
        }
        assert_eq!(before, (2370, 1, 1));
    }
}
