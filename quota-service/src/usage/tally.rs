//! The counts of this process that the ledger may not know yet.

use crate::home::records::{Counts, Field, Hour, Record};
use sluice_policy::units::{HolderId, ModelName, TenantId};
use std::collections::BTreeMap;

/// Rows of a tenant, a model and an hour that are kept: about 20 MB. Only a ledger that is away brings it there.
const MOST_ROWS: usize = 65_536;

/// What is written are absolute counts, so a row begins with what the ledger has of it: it may have been here before.
///
/// Invariant: a row leaves as soon as the ledger has it and no call is counted in it any more.
pub struct Tally {
    holder: HolderId,
    incarnation: u64,
    rows: BTreeMap<(Hour, TenantId), BTreeMap<ModelName, Row>>,
    size: usize,
}

#[derive(Clone, Copy, Default)]
struct Row {
    counts: Counts,
    /// As the ledger has it; `None` while it has not been asked, and `counts` lacks that.
    stored: Option<Counts>,
    /// Since the ledger last took something, calls were counted in it.
    is_used: bool,
}

impl Row {
    fn is_stored(&self) -> bool {
        self.stored == Some(self.counts)
    }
}

impl Tally {
    pub(super) fn new(holder: &HolderId, incarnation: u64) -> Self {
        Self { holder: holder.clone(), incarnation, rows: BTreeMap::new(), size: 0 }
    }

    /// Counts a call; `false` when there is no room for it, and it is lost.
    pub(super) fn count(&mut self, now: Hour, tenant: &TenantId, model: &ModelName, counts: &Counts) -> bool {
        let at = (now, tenant.clone());
        if let Some(row) = self.rows.get_mut(&at).and_then(|models| models.get_mut(model)) {
            row.counts.add(counts);
            row.is_used = true;
            return true;
        }
        if self.size >= MOST_ROWS {
            return false;
        }
        self.size += 1;
        let row = Row { counts: *counts, stored: None, is_used: true };
        self.rows.entry(at).or_default().insert(model.clone(), row);
        true
    }

    /// Fields of which it must be known what the ledger has, before anything is written there.
    pub(super) fn unknown(&self) -> Vec<Record> {
        self.records(|row| row.stored.is_none())
    }

    /// The ledger has been asked for fields, and has these of them.
    pub(super) fn know(&mut self, asked: &[Record], found: &[Record]) {
        let found: BTreeMap<_, _> = found.iter().map(|record| ((record.hour, &record.tenant), record)).collect();
        for record in asked {
            let stored = found.get(&(record.hour, &record.tenant)).map(|found| &found.fields);
            for field in record.fields.keys() {
                let before = stored.and_then(|fields| fields.get(field)).copied().unwrap_or_default();
                if let Some(row) = self.row(record, field).filter(|row| row.stored.is_none()) {
                    row.counts.add(&before);
                    row.stored = Some(before);
                }
            }
        }
    }

    /// What the ledger does not know yet, by tenant and hour.
    pub(super) fn changed(&self) -> Vec<Record> {
        self.records(|row| row.stored.is_some() && !row.is_stored())
    }

    /// The ledger has these.
    pub(super) fn kept(&mut self, records: &[Record]) {
        for record in records {
            for (field, counts) in &record.fields {
                if let Some(row) = self.row(record, field) {
                    row.stored = Some(*counts);
                }
            }
        }
        self.rows.retain(|_, models| {
            models.retain(|_, row| std::mem::take(&mut row.is_used) || !row.is_stored());
            !models.is_empty()
        });
        self.size = self.rows.values().map(BTreeMap::len).sum();
    }

    fn records(&self, which: impl Fn(&Row) -> bool) -> Vec<Record> {
        let record = |((hour, tenant), models): (&(Hour, TenantId), &BTreeMap<ModelName, Row>)| {
            let chosen = models.iter().filter(|(_, row)| which(row));
            let fields: BTreeMap<_, _> = chosen.map(|(model, row)| (self.field(model), row.counts)).collect();
            (!fields.is_empty()).then(|| Record { tenant: tenant.clone(), hour: *hour, fields })
        };
        self.rows.iter().filter_map(record).collect()
    }

    fn row(&mut self, record: &Record, field: &Field) -> Option<&mut Row> {
        self.rows.get_mut(&(record.hour, record.tenant.clone()))?.get_mut(&field.model)
    }

    fn field(&self, model: &ModelName) -> Field {
        Field { holder: self.holder.clone(), incarnation: self.incarnation, model: model.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u32 = 500_000;

    /// A ledger that keeps what it is brought.
    #[derive(Default)]
    struct Home(BTreeMap<(Hour, TenantId, Field), Counts>);

    impl Home {
        fn find(&self, asked: &[Record]) -> Vec<Record> {
            let find = |record: &Record| {
                let at = |field: &Field| (record.hour, record.tenant.clone(), field.clone());
                let has = record.fields.keys().filter_map(|field| Some((field.clone(), *self.0.get(&at(field))?)));
                Record { fields: has.collect(), ..record.clone() }
            };
            asked.iter().map(find).collect()
        }

        fn keep(&mut self, records: &[Record]) {
            for record in records {
                for (field, counts) in &record.fields {
                    self.0.insert((record.hour, record.tenant.clone(), field.clone()), *counts);
                }
            }
        }

        fn requests(&self) -> u64 {
            self.0.values().map(|counts| counts.requests).sum()
        }
    }

    fn flush(tally: &mut Tally, home: &mut Home) {
        let unknown = tally.unknown();
        tally.know(&unknown, &home.find(&unknown));
        let changed = tally.changed();
        home.keep(&changed);
        tally.kept(&changed);
    }

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
    fn a_hundred_thousand_tenants_in_an_hour_lose_nothing_and_leave_nothing_behind() {
        let (mut tally, mut home) = (Tally::new(&"gate-0".into(), 1), Home::default());
        for round in 0..2 {
            for tenant in 0..100_000 {
                let tenant = TenantId::from(format!("tenant-{tenant}").as_str());
                assert!(tally.count(Hour::numbered(HOUR), &tenant, &"m".into(), &call(1)), "{tenant} in round {round}");
                // As many as come in half a second.
                if tally.size == 1_000 {
                    flush(&mut tally, &mut home);
                    flush(&mut tally, &mut home);
                    assert_eq!(tally.size, 0);
                }
            }
        }
        assert_eq!((home.0.len(), home.requests()), (100_000, 200_000));
    }

    #[test]
    fn what_is_written_is_the_hours_total_though_the_row_has_left_meanwhile() {
        let (mut tally, mut home) = (Tally::new(&"gate-0".into(), 1), Home::default());
        count(&mut tally, HOUR, 3);
        flush(&mut tally, &mut home);
        assert_eq!(tally.size, 1, "calls may follow each other");
        flush(&mut tally, &mut home);
        assert_eq!(tally.size, 0);
        count(&mut tally, HOUR, 4);
        let unknown = tally.unknown();
        tally.know(&unknown, &home.find(&unknown));
        assert_eq!(inputs(&tally.changed()), [(HOUR, 7)]);
    }

    #[test]
    fn what_is_counted_while_the_ledger_is_asked_and_written_to_is_written_next_time() {
        let (mut tally, mut home) = (Tally::new(&"gate-0".into(), 1), Home::default());
        count(&mut tally, HOUR, 3);
        let unknown = tally.unknown();
        count(&mut tally, HOUR, 4);
        tally.know(&unknown, &home.find(&unknown));
        let first = tally.changed();
        home.keep(&first);
        count(&mut tally, HOUR, 5);
        // The answer was lost: it is written again.
        assert_eq!((inputs(&first), inputs(&tally.changed())), (vec![(HOUR, 7)], vec![(HOUR, 12)]));
        tally.kept(&first);
        assert_eq!(inputs(&tally.changed()), [(HOUR, 12)]);
        flush(&mut tally, &mut home);
        assert_eq!(home.requests(), 3);
    }

    #[test]
    fn a_clock_that_is_set_back_counts_on_in_the_old_hour() {
        let (mut tally, mut home) = (Tally::new(&"gate-0".into(), 1), Home::default());
        for (hour, input) in [(HOUR, 3), (HOUR + 2, 1), (HOUR, 4)] {
            count(&mut tally, hour, input);
            flush(&mut tally, &mut home);
            flush(&mut tally, &mut home);
        }
        let kept: Vec<u64> = home.0.values().map(|counts| counts.input).collect();
        assert_eq!(kept, [7, 1]);
    }

    #[test]
    fn a_ledger_that_is_away_costs_bounded_memory_and_no_count_that_has_a_place() {
        let mut tally = Tally::new(&"gate-0".into(), 1);
        for hour in 0..u32::try_from(MOST_ROWS).unwrap() {
            assert!(count(&mut tally, hour, 1));
        }
        let last = u32::try_from(MOST_ROWS).unwrap() - 1;
        assert!(!count(&mut tally, last + 1, 1));
        assert_eq!(tally.unknown().len(), MOST_ROWS);
    }
}
