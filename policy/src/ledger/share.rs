//! What one holder has of an account.

use super::message::{FlowName, Row, Version};
use super::meter::{Draw, Lent, MeterName};
use crate::units::Millis;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Invariant: `granted` and `zombies` are never both above zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Share {
    pub(super) incarnation: u64,
    pub(super) seq: u64,
    pub(super) granted: u32,
    /// What was granted when the lease ended. The same incarnation may take them up again: it knows what runs.
    pub(super) zombies: u32,
    pub(super) zombies_until: Millis,
    pub(super) renewed_at: Millis,
    pub(super) lease: Millis,
    /// How long a call of this holder may run.
    pub(super) longest_request: Millis,
    /// Of the terms that it goes by; `None` where the release before has written last.
    #[serde(default)]
    pub(super) version: Option<Version>,
    /// At its latest call the ledger's time was that of its own clock.
    #[serde(default)]
    pub(super) agreed: bool,
    /// It has said what it holds since the ledger may last have lost something.
    pub(super) asserted: bool,
    /// It holds nothing, wants nothing, and nobody waits there.
    #[serde(default)]
    pub(super) has_left: bool,
    /// It was told that somebody else waits.
    pub(super) contended: bool,
    pub(super) rows: BTreeMap<FlowName, WaitingRow>,
    /// Of the rows, the one that the holder would serve first.
    pub(super) first: Option<FlowName>,
    /// Slots whose turn it was, given since its last call.
    pub(super) picks: BTreeMap<FlowName, Pick>,
    pub(super) lent: BTreeMap<MeterName, Lent>,
}

/// A row as it was told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct WaitingRow {
    pub(super) weight: u64,
    pub(super) head: Draw,
    pub(super) waiting: u32,
    /// Since when its first call waits, by the ledger's clock.
    pub(super) since: Millis,
}

/// Slots that were given to one row, and what was charged for them; charged virtually, until the holder reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Pick {
    pub(super) slots: u32,
    pub(super) weight: u64,
    /// Of each of them: a row's head is charged for all of its picks.
    pub(super) head: Draw,
}

/// Rows older than this do not compete, and none whose lease has ended: a holder that has died would go on winning.
const FRESH: Millis = Millis(250);

impl Share {
    pub(super) fn is_leased(&self, now: Millis) -> bool {
        self.renewed_at.plus(self.lease) > now
    }

    /// When the calls of a holder have ended that starts none after `now`, and none after its lease.
    pub(super) fn calls_end_by(&self, now: Millis) -> Millis {
        self.renewed_at.plus(self.lease).min(now).plus(self.longest_request)
    }

    pub(super) fn has_fresh_rows(&self, now: Millis) -> bool {
        self.is_leased(now) && now.since(self.renewed_at) <= FRESH
    }

    /// Calls that wait and have no slot.
    pub(super) fn unserved(&self, now: Millis) -> bool {
        self.has_fresh_rows(now) && self.open_rows().next().is_some()
    }

    /// Rows that have more calls than slots.
    pub(super) fn open_rows(&self) -> impl Iterator<Item = (&FlowName, &WaitingRow)> {
        let picked = |flow| self.picks.get(flow).map_or(0, |pick: &Pick| pick.slots);
        self.rows.iter().filter(move |(flow, row)| row.waiting > picked(*flow))
    }

    pub(super) fn holds_nothing(&self) -> bool {
        self.granted == 0 && self.lent.values().all(|lent| lent.held == 0)
    }

    /// What of a meter its picks will draw.
    pub(super) fn promised(&self, meter: MeterName) -> u64 {
        let draws = self.picks.values().map(|pick| meter.amount(pick.head).saturating_mul(u64::from(pick.slots)));
        draws.fold(0, u64::saturating_add)
    }

    /// Lent of a meter and not promised to a pick.
    pub(super) fn spare(&self, meter: MeterName) -> u64 {
        self.lent.get(&meter).map_or(0, |lent| lent.held).saturating_sub(self.promised(meter))
    }

    pub(super) fn take_rows(&mut self, rows: &[Row], now: Millis) {
        let waiting = |row: &Row| WaitingRow {
            weight: row.weight,
            head: Draw { tokens: row.head, money: row.money },
            waiting: row.waiting,
            since: Millis(now.0.saturating_sub(row.waited.0)),
        };
        self.rows = rows.iter().map(|row| (row.flow.clone(), waiting(row))).collect();
    }
}
