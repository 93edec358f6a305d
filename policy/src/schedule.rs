//! Time rules: at which instants which weights, capacities and group shares hold.
//!
//! Pure like its neighbours: `now` is an argument, and the time-zone data are part of the program, so a rule means
//! the same on every machine, in the service, the simulator and the browser.
//!
//! # When a rule is active
//! A window begins at `from` on each of its days and ends at the next `to`, both as the zone's wall clock shows them;
//! the part after midnight belongs to the day it began, and `to` equal to `from` is a whole day. Where the clock is
//! changed, a window lasts *from the first instant at which the clock shows `from` or later until the clock last shows
//! less than `to`*. So a `from` or `to` that the clock skips is the instant after the gap; in a repeated hour the first
//! pass begins a window and the last one ends it; no window is cut short or runs twice. One that lies wholly in the gap
//! does not happen that day.
//!
//! # Which rule wins
//! The last active rule of the list, field by field: the weights, a pool's `concurrent`, `tokens_per_s` and
//! `burst_tokens`, and each group's share in a pool. When no active rule sets a field, its base value holds.
//!
//! That one rule beats another must be meant: two rules whose windows overlap and that set a field to different values
//! are an error, unless the later one says `overrides: true`. Windows are compared as weekly patterns of the wall
//! clock, those of two zones under every difference of their clocks that lasts a day or longer in the years
//! 2026 to 2037. Hence neighbours such as 08:00–18:00 and 18:00–08:00 never count as overlapping, although once a year
//! both hold between the two times that a repeated hour shows their common end; the later rule wins there.

mod change;
mod overlap;
mod read;
mod window;
mod zone;

pub use change::{Change, PoolChange, PoolSettings, Settings};
pub use window::{Days, WallTime, Window};
pub use zone::Zone;

use serde::{Deserialize, Serialize};

/// An instant: milliseconds since 1970-01-01T00:00:00Z without leap seconds.
///
/// Not [`crate::units::Millis`], whose origin is the caller's; windows need the calendar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub i64);

/// What holds during a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeRule {
    pub name: String,
    pub window: Window,
    /// Whether it may contradict an earlier rule while both are active.
    pub overrides: bool,
    pub change: Change,
}

/// All rules, in the order of the configuration. Invariants, kept by the reader: names differ, and of two rules that
/// contradict each other at some time the later one has `overrides`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimeRules(Vec<TimeRule>);

impl TimeRules {
    /// Every rule, active or not, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, TimeRule> {
        self.0.iter()
    }

    /// The rules that hold at `now`, in order: a later one wins.
    pub fn active(&self, now: UnixMillis) -> impl Iterator<Item = &TimeRule> {
        self.iter().filter(move |rule| rule.window.contains(now))
    }

    /// What holds at `now`: `base` with the changes of the active rules upon it.
    #[must_use]
    pub fn effective(&self, base: &Settings, now: UnixMillis) -> Settings {
        let mut settings = base.clone();
        for rule in self.active(now) {
            settings.apply(&rule.change);
        }
        settings
    }

    /// The first instant after `now` at which another set of rules is active; `None` when that never happens.
    #[must_use]
    pub fn next_change(&self, now: UnixMillis) -> Option<UnixMillis> {
        self.iter().filter_map(|rule| rule.window.next_edge(now)).min()
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
