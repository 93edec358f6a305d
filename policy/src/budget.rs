//! Budgets: how much a tenant may use in a calendar day or month of its own time zone.

use crate::ledger::{Limit, MeterName};
use crate::schedule::{UnixMillis, Zone};
use std::collections::BTreeMap;

/// Limits that begin anew with the calendar; an absent one does not limit. A period that has passed takes nothing over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budgets {
    /// Units a day or a month: tokens, or millionths of a currency unit.
    pub amounts: BTreeMap<MeterName, u64>,
    /// `None` for UTC.
    pub zone: Option<Zone>,
}

/// The day and the month that it is somewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Today {
    /// As 20260131.
    pub day: u64,
    /// As 202601.
    pub month: u64,
    pub day_ends: UnixMillis,
    pub month_ends: UnixMillis,
}

/// The days that it is in several time zones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Days(Vec<Today>);

impl Days {
    pub(crate) fn of(zones: &[Zone], now: UnixMillis) -> Self {
        Self(zones.iter().map(|zone| zone.today(now)).collect())
    }

    /// When the first of them ends; every month ends with a day.
    pub(crate) fn first_end(&self) -> Option<UnixMillis> {
        self.0.iter().map(|today| today.day_ends).min()
    }
}

impl Budgets {
    /// The day and the month of the tenant at `now`.
    #[must_use]
    pub fn today(&self, now: UnixMillis) -> Today {
        self.zone.clone().unwrap_or_else(Zone::utc).today(now)
    }

    /// What limits a tenant today.
    pub fn limits(&self, today: Today) -> impl Iterator<Item = (MeterName, Limit)> {
        self.amounts.iter().map(move |(name, amount)| {
            let period = if name.is_of_a_day() { today.day } else { today.month };
            (*name, Limit::Budget { amount: *amount, period })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> UnixMillis {
        UnixMillis(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    fn budgets(zone: Option<&str>) -> Budgets {
        let amounts = [(MeterName::TokensPerDay, 100), (MeterName::TokensPerMonth, 1_000)];
        Budgets { amounts: amounts.into(), zone: zone.map(|name| Zone::named(name).unwrap()) }
    }

    #[test]
    fn a_day_begins_at_the_tenants_own_midnight() {
        let (utc, berlin) = (budgets(None), budgets(Some("Europe/Berlin")));
        let late = at("2026-12-31T23:30:00Z");
        assert_eq!((utc.today(late).day, utc.today(late).month), (20_261_231, 202_612));
        assert_eq!((berlin.today(late).day, berlin.today(late).month), (20_270_101, 202_701));
        assert_eq!(utc.today(late).day_ends, at("2027-01-01T00:00:00Z"));
        assert_eq!(berlin.today(late).day_ends, at("2027-01-01T23:00:00Z"));
    }

    #[test]
    fn a_day_on_which_the_clock_is_changed_is_shorter_or_longer() {
        let berlin = budgets(Some("Europe/Berlin"));
        for (morning, end) in
            [("2026-03-29T08:00:00Z", "2026-03-29T22:00:00Z"), ("2026-10-25T08:00:00Z", "2026-10-25T23:00:00Z")]
        {
            assert_eq!(berlin.today(at(morning)).day_ends, at(end));
        }
    }

    #[test]
    fn where_midnight_is_skipped_the_day_begins_after_the_gap() {
        let beirut = budgets(Some("Asia/Beirut"));
        let before = at("2026-03-28T20:00:00Z");
        let turn = beirut.today(before).day_ends;
        assert_eq!(beirut.today(UnixMillis(turn.0 - 1)).day, 20_260_328);
        assert_eq!(beirut.today(turn).day, 20_260_329);
    }

    #[test]
    fn later_periods_have_larger_numbers() {
        let utc = budgets(None);
        let days = (0..800).map(|day| utc.today(UnixMillis(1_767_225_600_000 + day * 86_400_000)));
        let days: Vec<Today> = days.collect();
        assert!(days.windows(2).all(|pair| pair[0].day < pair[1].day && pair[0].month <= pair[1].month));
    }
}
