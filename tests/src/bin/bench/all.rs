//! `bench all`: every area in a process of its own, so that one that hangs or dies is found and named, and whether its file
//! bears every figure that it should.

use super::{dialects, doing, estimator, first_light, growth, instructions, ledger, queue, recovery};
use anyhow::{Context, Result, ensure};
use e2e::paths;
use serde_json::Value;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// What each area's file must bear. A new area joins by a line here.
const AREAS: [(&str, &[&[&str]]); 7] = [
    ("first-light", &[first_light::FIGURES]),
    ("queue", &[queue::FIGURES]),
    ("dialects", &[estimator::FIGURES, dialects::FIGURES]),
    ("ledger", &[ledger::FIGURES]),
    ("growth", &[growth::FIGURES]),
    ("recovery", &[recovery::FIGURES]),
    ("instructions", &[instructions::FIGURES]),
];

/// An area that takes longer never ends.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// Quickly it takes 20 seconds, and some more on a machine that does other things.
const QUICK_PATIENCE: Duration = Duration::from_secs(180);

pub(super) fn measure(quick: bool) -> Result<()> {
    let mut missing = Vec::new();
    for (area, figures) in AREAS {
        if area == "instructions" && !instructions::can_count() {
            println!("{area}: not measured, as valgrind is missing here");
            continue;
        }
        let begun = Instant::now();
        let found = run(area, quick).map(|report| {
            let is_there = |name: &&str| report.iter().any(|row| row["figure"] == *name && row["value"].is_f64());
            figures.concat().into_iter().filter(|name| !is_there(name)).map(str::to_owned).collect::<Vec<_>>()
        });
        let lacks = found.unwrap_or_else(|error| vec![format!("everything: {error:#}")]);
        println!("{area}: {} s{}", begun.elapsed().as_secs(), if lacks.is_empty() { "" } else { ", and not complete" });
        missing.extend(lacks.into_iter().map(|figure| format!("{area} lacks {figure}")));
    }
    ensure!(missing.is_empty(), "{}", missing.join("\n"));
    Ok(())
}

/// The rows of the area's file.
fn run(area: &str, quick: bool) -> Result<Vec<Value>> {
    let file = paths::target()?.join("bench").join(format!("{area}.json"));
    if file.exists() {
        fs::remove_file(&file)?;
    }
    doing(format!("bench {area}"));
    // `timeout` ends what the area has started as well.
    let patience = if quick { QUICK_PATIENCE } else { PATIENCE };
    let mut command = Command::new("timeout");
    command.arg(patience.as_secs().to_string()).arg(std::env::current_exe()?).arg(area);
    let ended = command.args(quick.then_some("--quick")).status().context("timeout, of coreutils, is missing")?;
    ensure!(ended.success(), "it ended with {ended}");
    Ok(serde_json::from_slice(&fs::read(&file)?)?)
}
