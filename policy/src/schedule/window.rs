//! A weekly window of wall time, and the instants at which it begins and ends.

use super::UnixMillis;
use super::zone::{Zone, timestamp};
use jiff::Timestamp;
use jiff::civil::{Date, Time, Weekday};
use std::fmt;

/// A time of day as a wall clock shows it, 00:00 to 23:59.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallTime(Time);

impl WallTime {
    /// Reads `HH:MM`, two digits each.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (hour, minute) = text.split_once(':')?;
        Time::new(two_digits(hour)?, two_digits(minute)?, 0, 0).ok().map(Self)
    }

    fn since_midnight_s(self) -> i64 {
        i64::from(self.0.hour()) * 3_600 + i64::from(self.0.minute()) * 60
    }
}

fn two_digits(text: &str) -> Option<i8> {
    let plain = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0.hour(), self.0.minute())
    }
}

/// Days of the week; bit 0 is Monday.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Days(u8);

impl Days {
    pub const EVERY: Days = Days(0b111_1111);
    pub const NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

    /// The days named, each as in [`Days::NAMES`]. `None` when a name is unknown or there is none.
    #[must_use]
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut days = Days(0);
        for name in names {
            days.0 |= 1 << Self::NAMES.iter().position(|known| *known == name)?;
        }
        (days != Days(0)).then_some(days)
    }

    fn has(self, day: Weekday) -> bool {
        self.0 & (1 << day.to_monday_zero_offset()) != 0
    }

    /// The days' positions after Monday, 0 to 6.
    fn positions(self) -> impl Iterator<Item = i64> {
        (0..7).filter(move |position| self.0 & (1 << position) != 0)
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Days::EVERY {
            return f.write_str("every day");
        }
        let names = Days::NAMES.iter().enumerate().filter(|(position, _)| self.0 & (1 << position) != 0);
        for (index, (_, name)) in names.enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

/// When a rule is active; the parent module tells how clock changes count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    pub zone: Zone,
    /// The days on which it begins.
    pub days: Days,
    pub from: WallTime,
    /// Not after `from`: on the next day.
    pub to: WallTime,
}

/// More days in a row than any window covers without a break, so that the search for its end ends.
const MOST_JOINED: usize = 16;
/// A window on one day of the week may fall into a gap; it does not do so three weeks in a row.
const SEARCHED_DAYS: usize = 22;

impl Window {
    #[must_use]
    pub fn contains(&self, now: UnixMillis) -> bool {
        self.covered_until(timestamp(now)).is_some()
    }

    /// The first instant after `now` at which the window begins or ends. `None` for one that never does, and at the
    /// end of the calendar.
    #[must_use]
    pub fn next_edge(&self, now: UnixMillis) -> Option<UnixMillis> {
        if self.days == Days::EVERY && self.from == self.to {
            return None;
        }
        let now = timestamp(now);
        let edge = match self.covered_until(now) {
            Some(end) => self.joined_end(end),
            None => self.next_start(now)?,
        };
        Some(UnixMillis(edge.as_millisecond()))
    }

    /// Where the run of days ends that covers the instant before `end`: a whole day may be followed by another.
    fn joined_end(&self, end: Timestamp) -> Timestamp {
        let ends = std::iter::successors(Some(end), |end| self.covered_until(*end));
        ends.take(MOST_JOINED).last().unwrap_or(end)
    }

    fn next_start(&self, now: Timestamp) -> Option<Timestamp> {
        let today = self.zone.wall(now).date();
        let days = today.series(jiff::Span::new().days(1)).take(SEARCHED_DAYS);
        days.filter_map(|day| self.on(day)).map(|(start, _)| start).find(|start| *start > now)
    }

    /// The latest end among the days whose window covers `at`.
    ///
    /// Yesterday's window may last until today; and tomorrow's may have begun, where a clock that reached tomorrow
    /// was set back to today.
    fn covered_until(&self, at: Timestamp) -> Option<Timestamp> {
        let today = self.zone.wall(at).date();
        let days = [today.yesterday().ok(), Some(today), today.tomorrow().ok()];
        let windows = days.into_iter().flatten().filter_map(|day| self.on(day));
        windows.filter(|(start, end)| *start <= at && at < *end).map(|(_, end)| end).max()
    }

    /// The window that begins on `day`; `None` when there is none, or it lies wholly in a gap.
    fn on(&self, day: Date) -> Option<(Timestamp, Timestamp)> {
        if !self.days.has(day.weekday()) {
            return None;
        }
        let last_day = if self.to > self.from { day } else { day.tomorrow().ok()? };
        let start = self.zone.first(day.to_datetime(self.from.0))?;
        let end = self.zone.last(last_day.to_datetime(self.to.0))?;
        (start < end).then_some((start, end))
    }

    /// The windows of any week without clock changes: seconds after Monday 00:00, and length in seconds.
    pub(super) fn weekly(&self) -> impl Iterator<Item = (i64, i64)> {
        let from = self.from.since_midnight_s();
        let length = self.to.since_midnight_s() - from;
        let length = if length > 0 { length } else { length + 86_400 };
        self.days.positions().map(move |day| (day * 86_400 + from, length))
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}–{} {}", self.days, self.from, self.to, self.zone)
    }
}
