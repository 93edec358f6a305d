//! Accounts as aligned columns. Parts that would be empty are left out.

use super::{Holder, Inspected, Meter};
use std::fmt::Write;

/// All accounts, one after the other.
#[must_use]
pub fn table(accounts: &[Inspected]) -> String {
    if accounts.is_empty() {
        return "Redis holds no such account\n".to_owned();
    }
    accounts.iter().map(account).collect::<Vec<_>>().join("\n")
}

fn account(account: &Inspected) -> String {
    let mut text = summary(account);
    let holders = account.holders.iter().map(holder);
    let names =
        ["HOLDER", "INCARNATION", "SEQ", "GRANTED", "ZOMBIES", "LEASE ENDS IN", "ROWS", "WAITING", "PICKED", ""];
    columns(&mut text, names, holders);
    let gone = account.gone.iter().filter(|gone| gone.free_in_ms > 0);
    let gone = gone.map(|gone| ["vanished".to_owned(), gone.slots.to_string(), time(gone.free_in_ms)]);
    columns(&mut text, ["ZOMBIES", "SLOTS", "FREE IN"], gone);
    let rows = account.rows.iter().map(|row| {
        let numbers = [row.weight, row.head, row.waiting.into()].map(|number| number.to_string());
        let [weight, head, waiting] = numbers;
        [row.flow.clone(), row.holder.clone(), weight, head, waiting, time(row.waited_ms), row.picked.to_string()]
    });
    columns(&mut text, ["ROW", "HOLDER", "WEIGHT", "HEAD", "WAITING", "WAITED", "PICKED"], rows);
    let names = ["METER", "LEVEL", "LENT", "BURST", "RATE", "FRACTION", "PERIOD", "REFILLED"];
    columns(&mut text, names, account.meters.iter().map(meter));
    let counters = account.counters.iter().map(|counter| {
        let time = counter.time.map_or_else(String::new, |time| time.to_string());
        [counter.branch.clone(), counter.counter.to_string(), time]
    });
    columns(&mut text, ["COUNTER", "VALUE", "TIME BELOW"], counters);
    text
}

fn summary(account: &Inspected) -> String {
    let Inspected { capacity, granted, zombies, policy, spent, clock_offset_ms, .. } = account;
    let [file, overlay, since] = account.version;
    let mut text = format!("{}\n", account.account);
    let _ = write!(text, "  slots: capacity {capacity}, granted {granted}, zombies {zombies}");
    if granted + zombies > u64::from(*capacity) {
        text.push_str(" (more than there are)");
    }
    if let Some(left) = account.frozen_for_ms {
        let _ = write!(text, "; frozen for {}, {} may move", time(left), account.movable);
    }
    let _ = write!(text, "\n  terms: {policy}, file {file}, overlay {overlay}, since {since}; spent {spent}");
    if *clock_offset_ms != 0 {
        let _ = write!(text, "; the server's clock is set right by {}", time(*clock_offset_ms));
    }
    text.push('\n');
    text
}

fn holder(holder: &Holder) -> [String; 10] {
    let zombies = match holder.zombies_for_ms {
        Some(left) if left <= 0 => "0".to_owned(),
        Some(left) => format!("{} for {}", holder.zombies, time(left)),
        None => holder.zombies.to_string(),
    };
    let lease = if holder.lease_ends_in_ms > 0 { time(holder.lease_ends_in_ms) } else { "ended".to_owned() };
    let mut notes = Vec::new();
    if holder.contended {
        notes.push("contended");
    }
    if holder.rows > 0 && !holder.competes {
        notes.push("its rows are too old to compete");
    }
    let [incarnation, seq, waiting] = [holder.incarnation, holder.seq, holder.waiting].map(|number| number.to_string());
    let (granted, rows, picked) = (holder.granted.to_string(), holder.rows.to_string(), holder.picked.to_string());
    [holder.holder.clone(), incarnation, seq, granted, zombies, lease, rows, waiting, picked, notes.join(", ")]
}

fn meter(meter: &Meter) -> [String; 8] {
    let (rate, fraction) = match meter.period {
        Some(_) => (meter.amount.to_string(), String::new()),
        None => (
            format!("{} in {}", meter.amount, time(i64::try_from(meter.window_ms).unwrap_or(i64::MAX))),
            format!("{}/{}", meter.fraction, meter.window_ms),
        ),
    };
    let period = meter.period.map_or_else(String::new, |period| period.to_string());
    let refilled = if meter.period.is_some() { String::new() } else { format!("{} ago", time(meter.refilled_ms_ago)) };
    let (level, lent, burst) = (meter.level.to_string(), meter.lent.to_string(), meter.burst.to_string());
    [meter.meter.clone(), level, lent, burst, rate, fraction, period, refilled]
}

/// A name to the left, the rest to the right; nothing at all without rows.
fn columns<const N: usize>(text: &mut String, names: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let rows: Vec<[String; N]> = rows.collect();
    if rows.is_empty() {
        return;
    }
    let lines: Vec<[String; N]> = std::iter::once(names.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            // Notes stand last, under no name.
            let is_text = column == 0 || names[column].is_empty() || names[column] == "HOLDER";
            if is_text { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "  {}", line.trim_end());
    }
}

/// As people say it: `250 ms`, `1.5 s`, `10 min`, `3 h`.
fn time(ms: i64) -> String {
    let sign = if ms < 0 { "-" } else { "" };
    match ms.unsigned_abs() {
        ms @ 0..1_000 => format!("{sign}{ms} ms"),
        ms @ 1_000..120_000 if ms % 1_000 < 100 => format!("{sign}{} s", ms / 1_000),
        ms @ 1_000..120_000 => format!("{sign}{}.{} s", ms / 1_000, ms % 1_000 / 100),
        ms @ 120_000..7_200_000 => format!("{sign}{} min", ms / 60_000),
        ms => format!("{sign}{} h", ms / 3_600_000),
    }
}
