//! Reports as an aligned table, one or more side by side.

use super::report::{Report, Row};
use std::fmt::Write;

/// A column: its title, and what it shows of a row.
type Column = (&'static str, fn(&Row, &Report) -> String);

const COLUMNS: [Column; 8] = [
    ("of charge", |row, report| percent(row.charge, report.total.charge)),
    ("served", |row, _| row.served.to_string()),
    ("refused", |row, _| row.refused_in_all().to_string()),
    ("left", |row, _| (row.left_waiting + row.left_running).to_string()),
    ("wait p50", |row, _| seconds(row.wait_ms.p50)),
    ("p95", |row, _| seconds(row.wait_ms.p95)),
    ("p99", |row, _| seconds(row.wait_ms.p99)),
    ("max", |row, _| seconds(row.wait_ms.max)),
];

/// The reports of one trace under several configurations, each named. Where there is more than one, every cell holds
/// their values in that order.
#[must_use]
pub fn table(reports: &[(&str, &Report)]) -> String {
    let mut lines: Vec<Vec<String>> = vec![titles()];
    if let Some((_, first)) = reports.first() {
        for (index, row) in first.rows.iter().enumerate() {
            let beside = reports.iter().map(|(_, report)| Some((same_row(report, index, row)?, *report)));
            lines.push(line(row, &beside.collect::<Vec<_>>()));
        }
        let totals = reports.iter().map(|(_, report)| Some((&report.total, *report)));
        lines.push(line(&first.total, &totals.collect::<Vec<_>>()));
    }
    let mut text = aligned(&lines);
    for (name, report) in reports {
        text.push('\n');
        summary(&mut text, name, report);
    }
    text
}

fn titles() -> Vec<String> {
    let titles = COLUMNS.iter().map(|(title, _)| (*title).to_owned());
    ["tenant", "level", "asked"].into_iter().map(str::to_owned).chain(titles).collect()
}

/// The same tenant and level in another report; levels differ where the configurations do.
fn same_row<'r>(report: &'r Report, index: usize, row: &Row) -> Option<&'r Row> {
    let same = |other: &&Row| other.tenant == row.tenant && other.level == row.level;
    report.rows.get(index).filter(same).or_else(|| report.rows.iter().find(same))
}

fn line(row: &Row, beside: &[Option<(&Row, &Report)>]) -> Vec<String> {
    let level = row.level.map_or_else(String::new, |level| level.to_string());
    let mut cells = vec![row.tenant.clone(), level, row.asked.to_string()];
    for (_, show) in COLUMNS {
        let show = |(row, report): &(&Row, &Report)| show(row, report);
        let values: Vec<String> = beside.iter().map(|of| of.as_ref().map_or_else(|| "-".to_owned(), show)).collect();
        cells.push(values.join(" | "));
    }
    cells
}

/// Milliseconds as seconds, to the tenth where that says something.
fn seconds(ms: u64) -> String {
    format!("{}.{:02} s", ms / 1_000, ms % 1_000 / 10)
}

fn percent(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1_000 / u128::from(whole.max(1));
    format!("{}.{}%", tenths / 10, tenths % 10)
}

fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in lines {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            // Names to the left, numbers to the right. Writing to a string does not fail.
            let _ = if column == 0 { write!(text, "{cell:<width$}") } else { write!(text, "  {cell:>width$}") };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

fn summary(text: &mut String, name: &str, report: &Report) {
    let (charge, served) = (thousandths(report.fairness.charge_ppm), thousandths(report.fairness.served_ppm));
    let _ = writeln!(text, "{name}: ended after {}; decisions {}", seconds(report.ended_ms), report.digest);
    let _ = writeln!(text, "  Jain's index over tenants: {charge} of charge per weight, {served} of calls served");
    for pool in &report.pools {
        let percent = pool.utilisation_ppm / 100;
        let _ = writeln!(text, "  {}: {}.{:02}% of its slots in use", pool.pool, percent / 100, percent % 100);
    }
    let adapted: Vec<String> = report.adapted.iter().map(|(tenant, percent)| format!("{tenant} {percent}%")).collect();
    if !adapted.is_empty() {
        let _ = writeln!(text, "  adaptive weights at the end, of those configured: {}", adapted.join(", "));
    }
    for (reason, count) in &report.total.refused {
        let _ = writeln!(text, "  refused {count}: {reason}");
    }
}

fn thousandths(ppm: u64) -> String {
    format!("{}.{:04}", ppm / 1_000_000, ppm % 1_000_000 / 100)
}
