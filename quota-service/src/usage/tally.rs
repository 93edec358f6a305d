//! The counts of this process that the ledger may not know yet.

use super::{Counts, Field, Hour, Record};
use sluice_policy::units::{HolderId, ModelName, TenantId};
use std::collections::BTreeMap;

/// Rows of a tenant, a model and an hour that are kept: about 20 MB. Only a ledger that is away for hours brings it there.
const MOST_ROWS: usize = 65_536;

/// Invariants: hours do not go back; a row is dropped only when its hour is over and the ledger has it, since what is
/// written are absolute counts.
pub struct Tally {
    holder: HolderId,
    incarnation: u64,
    hour: Hour,
    rows: BTreeMap<(Hour, TenantId), BTreeMap<ModelName, Row>>,
    size: usize,
}

#[derive(Clone, Copy, Default)]
struct Row {
    counts: Counts,
    /// As the ledger has it.
    kept: Counts,
}

impl Tally {
    pub(super) fn new(holder: &HolderId, incarnation: u64) -> Self {
        let rows = BTreeMap::new();
        Self { holder: holder.clone(), incarnation, hour: Hour::numbered(0), rows, size: 0 }
    }

    /// Counts a call; `false` when there is no room for it, and it is lost.
    pub(super) fn count(&mut self, now: Hour, tenant: &TenantId, model: &ModelName, counts: &Counts) -> bool {
        // A clock that is set back would write over what is kept of an hour that was dropped here.
        self.hour = self.hour.max(now);
        let at = (self.hour, tenant.clone());
        if let Some(row) = self.rows.get_mut(&at).and_then(|models| models.get_mut(model)) {
            row.counts.add(counts);
            return true;
        }
        if self.size >= MOST_ROWS {
            return false;
        }
        self.size += 1;
        let row = Row { counts: *counts, kept: Counts::default() };
        self.rows.entry(at).or_default().insert(model.clone(), row);
        true
    }

    /// What the ledger does not know yet, by tenant and hour.
    pub(super) fn changed(&self) -> Vec<Record> {
        let record = |((hour, tenant), models): (&(Hour, TenantId), &BTreeMap<ModelName, Row>)| {
            let changed = models.iter().filter(|(_, row)| row.counts != row.kept);
            let fields: BTreeMap<_, _> = changed.map(|(model, row)| (self.field(model), row.counts)).collect();
            (!fields.is_empty()).then(|| Record { tenant: tenant.clone(), hour: *hour, fields })
        };
        self.rows.iter().filter_map(record).collect()
    }

    /// The ledger has these. What it need not be told any more is forgotten.
    pub(super) fn kept(&mut self, records: &[Record], now: Hour) {
        for record in records {
            let Some(models) = self.rows.get_mut(&(record.hour, record.tenant.clone())) else { continue };
            for (field, counts) in &record.fields {
                if let Some(row) = models.get_mut(&field.model) {
                    row.kept = *counts;
                }
            }
        }
        self.hour = self.hour.max(now);
        let hour = self.hour;
        self.rows.retain(|(of, _), models| *of >= hour || models.values().any(|row| row.counts != row.kept));
        self.size = self.rows.values().map(BTreeMap::len).sum();
    }

    fn field(&self, model: &ModelName) -> Field {
        Field { holder: self.holder.clone(), incarnation: self.incarnation, model: model.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u32 = 500_000;

    fn call(input: u64) -> Counts {
        Counts { requests: 1, input, ..Counts::default() }
    }

    fn count(tally: &mut Tally, hour: u32, input: u64) -> bool {
        tally.count(Hour::numbered(hour), &"a".into(), &"m".into(), &call(input))
    }

    fn inputs(records: &[Record]) -> Vec<(u32, u64)> {
        let each = |record: &Record| (record.hour.number(), record.fields.values().map(|counts| counts.input).sum());
        records.iter().map(each).collect()
    }

    #[test]
    fn what_is_written_is_the_hours_total_until_the_hour_is_over_and_kept() {
        let mut tally = Tally::new(&"gate-0".into(), 1);
        count(&mut tally, HOUR, 3);
        let first = tally.changed();
        count(&mut tally, HOUR, 4);
        tally.kept(&first, Hour::numbered(HOUR));
        assert_eq!(inputs(&tally.changed()), [(HOUR, 7)], "the second call is not kept yet");
        tally.kept(&tally.changed(), Hour::numbered(HOUR));
        assert_eq!(inputs(&tally.changed()), []);
        count(&mut tally, HOUR, 5);
        assert_eq!(inputs(&tally.changed()), [(HOUR, 12)]);
        count(&mut tally, HOUR + 1, 1);
        tally.kept(&tally.changed(), Hour::numbered(HOUR + 1));
        assert_eq!(tally.size, 1, "the old hour is over");
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_write_over_an_old_hour() {
        let mut tally = Tally::new(&"gate-0".into(), 1);
        count(&mut tally, HOUR, 3);
        tally.kept(&tally.changed(), Hour::numbered(HOUR + 2));
        count(&mut tally, HOUR, 1);
        assert_eq!(inputs(&tally.changed()), [(HOUR + 2, 1)]);
    }

    #[test]
    fn a_ledger_that_is_away_costs_bounded_memory_and_no_count_that_has_a_place() {
        let mut tally = Tally::new(&"gate-0".into(), 1);
        for hour in 0..u32::try_from(MOST_ROWS).unwrap() {
            assert!(count(&mut tally, hour, 1));
        }
        let last = u32::try_from(MOST_ROWS).unwrap() - 1;
        assert!(!count(&mut tally, last + 1, 1));
        assert_eq!(inputs(&tally.changed()).len(), MOST_ROWS);
    }
}
