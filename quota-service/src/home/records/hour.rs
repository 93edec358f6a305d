//! An hour of the calendar, in UTC.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Unit};
use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// Hours since 1970. Its text is that of the keys in Redis, `YYYYMMDDHH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour(u32);

/// Not an hour.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an hour in UTC such as 2026013114 (YYYYMMDDHH), found {0:?}")]
pub struct NotAnHour(String);

const SECONDS: i64 = 3_600;

impl Hour {
    /// The hour that it is.
    #[must_use]
    pub fn now() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u32::try_from(unix.as_secs() / 3_600).unwrap_or(u32::MAX))
    }

    /// So many hours earlier.
    #[must_use]
    pub fn before(self, hours: u32) -> Self {
        Self(self.0.saturating_sub(hours))
    }

    /// Hours since the other, which is not later.
    #[must_use]
    pub fn since(self, other: Hour) -> u32 {
        self.0.saturating_sub(other.0)
    }

    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    #[must_use]
    pub fn numbered(number: u32) -> Self {
        Self(number)
    }

    fn time(self) -> Timestamp {
        Timestamp::from_second(i64::from(self.0) * SECONDS).unwrap_or(Timestamp::MAX)
    }
}

impl fmt::Display for Hour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.time().to_zoned(TimeZone::UTC);
        write!(f, "{:04}{:02}{:02}{:02}", time.year(), time.month(), time.day(), time.hour())
    }
}

impl FromStr for Hour {
    type Err = NotAnHour;

    fn from_str(text: &str) -> Result<Self, NotAnHour> {
        parse(text).ok_or_else(|| NotAnHour(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Hour> {
    if text.len() != 10 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let part = |from, to| text.get(from..to)?.parse::<i16>().ok();
    let small = |from, to| i8::try_from(part(from, to)?).ok();
    let time = DateTime::new(part(0, 4)?, small(4, 6)?, small(6, 8)?, small(8, 10)?, 0, 0, 0).ok()?;
    let seconds = time.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second();
    Some(Hour(u32::try_from(seconds / SECONDS).ok().filter(|_| seconds >= 0)?))
}

impl serde::Serialize for Hour {
    /// As RFC 3339 has it, for people and programs: `2026-01-31T14:00:00Z`.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = self.time().round(Unit::Second).unwrap_or(Timestamp::MAX);
        serializer.collect_str(&time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_written_as_it_is_read() {
        for text in ["1970010100", "2024022923", "2026013114", "2099123123"] {
            assert_eq!(text.parse::<Hour>().unwrap().to_string(), text);
        }
        assert_eq!("2026013114".parse::<Hour>().unwrap().number(), 1_769_868_000 / 3_600);
        let hour: Hour = "2026013114".parse().unwrap();
        assert_eq!(serde_json::to_value(hour).unwrap(), "2026-01-31T14:00:00Z");
    }

    #[test]
    fn what_is_no_hour_is_refused() {
        for text in ["", "2026", "2026013124", "2026023000", "2026-01-31", "+026013114", "1969123123", "202601311é"] {
            assert_eq!(text.parse::<Hour>(), Err(NotAnHour(text.to_owned())));
        }
    }
}
