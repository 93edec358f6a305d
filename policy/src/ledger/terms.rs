//! Which configuration counts when holders have different ones, and which day it is when their clocks differ.
//!
//! The highest version counts among those that holders go by which live: a file that was put back is believed once nobody
//! goes by the later one. By the server's clock nobody knows what will be in force, or which day has begun, in the future;
//! what a replica says of that, whose clock is ahead, counts only where nobody says anything better.

use super::AccountLedger;
use super::message::{Terms, Version};
use super::meter::{Meter, MeterName};
use crate::units::{HolderId, Millis};

/// Clocks of machines that are set by the network differ by less.
const MOST_AHEAD: Millis = Millis(60_000);
/// Where days begin first.
const EASTERNMOST: Millis = Millis(14 * 3_600_000);
const DAY_MS: u64 = 86_400_000;

/// What the server's clock says, which is not the ledger's time.
#[derive(Clone, Copy)]
pub(super) struct Calendar(pub(super) Millis);

impl Calendar {
    /// Versions are compared by it.
    fn rank(self, version: Version) -> (u64, u64, bool, u64) {
        let is_known = version.since <= self.0.plus(MOST_AHEAD).0;
        (version.file, version.overlay, is_known, version.since)
    }

    /// Whether a budget's period has begun nowhere on Earth.
    fn is_early(self, name: MeterName, period: u64) -> bool {
        let date = date(self.0.plus(EASTERNMOST));
        period > if name.is_of_a_day() { date } else { date / 100 }
    }
}

/// A moment's day in UTC, as 20260131. (By Howard Hinnant's `civil_from_days`.)
fn date(moment: Millis) -> u64 {
    // Years begin in March, so that the day that some have comes last.
    let days = moment.0 / DAY_MS + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (year + era * 400 + next_year) * 10_000 + month * 100 + day
}

impl AccountLedger {
    /// Takes over a holder's terms, unless they are outdated; of two equal versions the one that was told last counts.
    pub(super) fn take_terms(&mut self, holder: &HolderId, terms: &Terms, server: Millis, now: Millis) {
        let calendar = Calendar(server);
        if self.is_outdated(holder, terms.version, calendar, now) {
            return;
        }
        let is_over = |name: &MeterName| !terms.meters.contains_key(name);
        let mut over: Vec<MeterName> = self.meters.keys().copied().filter(is_over).collect();
        self.meters.retain(|name, _| !is_over(name));
        for (name, limit) in &terms.meters {
            let meter = self.meters.entry(*name).or_insert_with(|| Meter::new(*limit, now));
            meter.refill(now);
            if meter.limit() != *limit && meter.set_limit(*limit, |period| calendar.is_early(*name, period)) {
                over.push(*name);
            }
        }
        // What was lent of a limit that is no more, or of another period, is worth nothing.
        for lent in self.shares.values_mut().flat_map(|share| &mut share.lent) {
            if over.contains(lent.0) {
                lent.1.held = 0;
            }
        }
        if self.terms.as_ref() != Some(terms) {
            self.terms = Some(terms.clone());
        }
    }

    /// Whether another holder that lives goes by later terms. The release before does not tell by which it goes.
    fn is_outdated(&self, holder: &HolderId, told: Version, calendar: Calendar, now: Millis) -> bool {
        let Some(known) = self.terms.as_ref().map(|terms| calendar.rank(terms.version)) else { return false };
        let goes_by_later = |version: Option<Version>| version.is_none_or(|version| calendar.rank(version) >= known);
        let mut others = self.shares.iter().filter(|(other, share)| *other != holder && share.is_leased(now));
        calendar.rank(told) < known && others.any(|(_, share)| goes_by_later(share.version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_that_of_the_calendar() {
        let at = |text: &str| {
            let moment: jiff::Timestamp = text.parse().unwrap();
            date(Millis(u64::try_from(moment.as_millisecond()).unwrap()))
        };
        for (text, day) in [
            ("1970-01-01T00:00:00Z", 19_700_101),
            ("2000-02-29T23:59:59Z", 20_000_229),
            ("2026-12-31T23:59:59.999Z", 20_261_231),
            ("2027-01-01T00:00:00Z", 20_270_101),
            ("2100-03-01T00:00:00Z", 21_000_301),
        ] {
            assert_eq!(at(text), day, "{text}");
        }
    }

    #[test]
    fn a_period_is_early_until_it_has_begun_in_the_east() {
        let new_year: jiff::Timestamp = "2026-12-31T10:00:00Z".parse().unwrap();
        let calendar = Calendar(Millis(u64::try_from(new_year.as_millisecond()).unwrap()));
        let early = |name, period| calendar.is_early(name, period);
        assert!(!early(MeterName::TokensPerDay, 20_270_101) && early(MeterName::TokensPerDay, 20_270_102));
        assert!(!early(MeterName::MoneyPerMonth, 202_701) && early(MeterName::MoneyPerMonth, 202_702));
    }
}
