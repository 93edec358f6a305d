//! A time zone: between a wall clock's readings and instants.

use super::UnixMillis;
use crate::budget::Today;
use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone, TimeZoneDatabase};
use std::collections::BTreeSet;
use std::fmt;

/// A zone of the IANA database, with its rules from the data in the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(TimeZone);

impl Zone {
    /// A zone by its IANA name, in any case.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let zone = TimeZoneDatabase::bundled().get(name).ok()?;
        (!zone.is_unknown()).then_some(Self(zone))
    }

    #[must_use]
    pub fn utc() -> Self {
        Self(TimeZone::UTC)
    }

    /// The day and the month that the clock shows, and when they end.
    #[must_use]
    pub fn today(&self, now: UnixMillis) -> Today {
        let date = self.wall(timestamp(now)).date();
        let starts = |date: Result<Date, jiff::Error>| {
            let start = date.ok().and_then(|date| self.first(date.at(0, 0, 0, 0)));
            UnixMillis(start.unwrap_or(Timestamp::MAX).as_millisecond())
        };
        let number = |part: i8| u64::try_from(part).unwrap_or(0);
        let month = u64::try_from(date.year()).unwrap_or(0) * 100 + number(date.month());
        Today {
            day: month * 100 + number(date.day()),
            month,
            day_ends: starts(date.tomorrow()),
            month_ends: starts(date.last_of_month().tomorrow()),
        }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        self.0.iana_name().unwrap_or_default()
    }

    /// The date and time that the clock shows.
    pub(super) fn wall(&self, at: Timestamp) -> DateTime {
        self.0.to_datetime(at)
    }

    /// The first instant at which the clock shows `wall` or later. `None` beyond the calendar's range.
    pub(super) fn first(&self, wall: DateTime) -> Option<Timestamp> {
        let readings = self.0.to_ambiguous_timestamp(wall);
        match readings.offset() {
            AmbiguousOffset::Gap { before, after } => self.end_of_gap(wall, before, after),
            AmbiguousOffset::Fold { before: offset, .. } | AmbiguousOffset::Unambiguous { offset } => {
                offset.to_timestamp(wall).ok()
            }
        }
    }

    /// The end of the last time that the clock shows less than `wall`. `None` beyond the calendar's range.
    pub(super) fn last(&self, wall: DateTime) -> Option<Timestamp> {
        let readings = self.0.to_ambiguous_timestamp(wall);
        match readings.offset() {
            AmbiguousOffset::Gap { before, after } => self.end_of_gap(wall, before, after),
            AmbiguousOffset::Fold { before, after } => {
                let again = after.to_timestamp(wall).ok()?;
                let just_before = Timestamp::from_second(again.as_second() - 1).ok()?;
                // Set back to `wall` itself, the clock shows nothing less a second time.
                let set_back_to_wall = self.0.to_offset(just_before) == before;
                if set_back_to_wall { before.to_timestamp(wall).ok() } else { Some(again) }
            }
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(wall).ok(),
        }
    }

    /// The instant at which the clock jumps over `wall`. Read with the offset that comes after it, a skipped time is
    /// an instant before the jump; read with the one before, it is the jump or an instant after it.
    fn end_of_gap(&self, wall: DateTime, before: Offset, after: Offset) -> Option<Timestamp> {
        let early = after.to_timestamp(wall).ok()?;
        let late = before.to_timestamp(wall).ok()?;
        let jump = self.0.following(early).find(|jump| jump.offset() == after || jump.timestamp() > late);
        jump.map(|jump| jump.timestamp()).filter(|jump| *jump <= late).or(Some(late))
    }

    /// By how many seconds this zone's clock may be ahead of `other`'s, in the time [`COMPARED`]. Differences that last
    /// less than a day are left out: between two zones that change their clocks on the same night they are a seam, as
    /// the repeated hour is within one zone.
    pub(super) fn differences(&self, other: &Zone) -> BTreeSet<i64> {
        let [from, to] = COMPARED;
        let jumps = |zone: &Zone| -> Vec<Timestamp> {
            zone.0.following(from).map(|jump| jump.timestamp()).take_while(|at| *at < to).collect()
        };
        let mut edges: Vec<Timestamp> = [from, to].into_iter().chain(jumps(self)).chain(jumps(other)).collect();
        edges.sort_unstable();
        let ahead = |at| i64::from(self.0.to_offset(at).seconds()) - i64::from(other.0.to_offset(at).seconds());
        edges
            .windows(2)
            .filter_map(|pair| match pair {
                [start, end] => (end.as_second() - start.as_second() >= DAY_S).then(|| ahead(*start)),
                _ => None,
            })
            .collect()
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// From 2026-01-01 to 2038-01-01: constants, because reading a configuration knows no "now". What zones did before
/// does not matter to a rule that is written today, and nobody knows what they will do later.
const COMPARED: [Timestamp; 2] = [Timestamp::constant(1_767_225_600, 0), Timestamp::constant(2_145_916_800, 0)];
const DAY_S: i64 = 86_400;

/// The calendar ends in the year 9999; beyond it, its last instant is as good as any.
pub(super) fn timestamp(at: UnixMillis) -> Timestamp {
    let edge = if at.0 < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_millisecond(at.0).unwrap_or(edge)
}
