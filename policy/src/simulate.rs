//! The seeded simulator: a trace of calls against the very core that decides in the service.
//!
//! It is as pure as what it drives: no clock, no files, no threads, and integers only, so the same trace under the
//! same configuration gives the same [`Report`], bit for bit, natively, in wasm32 and in the browser.
//!
//! What it supposes: one replica with a ledger that always answers; a call holds its slot for exactly the time that
//! the trace says; a model server that stops when its client leaves; clients that do not try again.

mod agenda;
mod random;
mod report;
mod scene;
mod table;
mod tally;
mod trace;
mod world;

pub use random::SplitMix64;
pub use report::{Fairness, PoolUse, Report, Row, Waits};
pub use scene::Scene;
pub use table::table;
pub use trace::{Arrival, Trace, TraceError, TraceErrors};

use crate::config::Config;
use crate::config::reader::{ConfigErrors, read_document};
use crate::schedule::UnixMillis;
use jiff::Timestamp;
use serde_json::Value;

/// A configuration to be tried.
#[derive(Clone, Debug)]
pub struct Setup {
    pub config: Config,
    /// The instant of the trace's millisecond 0; it matters to time rules only.
    pub start: UnixMillis,
}

/// An e-commerce company: departments that go first by day, customers that go first by night (80/20 and 20/80).
pub const DAY_NIGHT: &str = include_str!("../scenes/day-night.json");

impl Setup {
    /// Monday, 2026-01-05, midnight in Taipei: a day on which nothing is special.
    pub const START: UnixMillis = UnixMillis(1_767_542_400_000);

    /// Reads what decides (`queue`, `groups`, `pools`, `charges`, `tenants`, `keys`, `key_rules`, `time_rules`) from a
    /// document that holds nothing else.
    ///
    /// # Errors
    /// All that is wrong with it at once, each with its path.
    pub fn read(document: &Value, start: UnixMillis) -> Result<Self, ConfigErrors> {
        read_document(document, |root| Some(Self { config: Config::read(root)?, start }))
    }

    /// Reads an instant such as `2026-01-05T00:00:00+08:00`.
    #[must_use]
    pub fn parse_start(text: &str) -> Option<UnixMillis> {
        text.parse::<Timestamp>().ok().map(|start| UnixMillis(start.as_millisecond()))
    }
}

/// Lets all calls of the trace arrive, and follows them until the last one has ended.
#[must_use]
pub fn simulate(setup: &Setup, trace: &Trace) -> Report {
    world::World::new(setup, trace).run()
}

#[cfg(test)]
mod tests;
