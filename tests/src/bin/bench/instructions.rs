//! `bench instructions`: what a call costs in the filter, in instructions of its native build. A machine that is busy with
//! other things counts the same, so that two releases can be compared anywhere.

use super::{Figure, doing, figure};
use anyhow::{Context, Result, bail, ensure};
use e2e::paths;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Two lengths of a run, whose difference is free of what starting costs.
const CALLS: [u64; 2] = [100, 600];
/// Words of a stream; 0 is a document.
const WORDS: [u64; 4] = [0, 1, 20, 1_000];

pub(super) const FIGURES: &[&str] = &["instructions_per_call"];

/// Whether this machine has what counts.
pub(super) fn can_count() -> bool {
    Command::new("valgrind").arg("--version").output().is_ok()
}

/// `quick`: of a build that is not optimised, and of short replies.
pub(super) fn measure(repeats: usize, quick: bool) -> Result<Vec<Figure>> {
    ensure!(repeats > 0, "--repeats must be at least 1");
    ensure!(
        can_count(),
        "valgrind is missing: install the package of this name, as root by `apt-get install valgrind`"
    );
    doing("building the filter for this machine");
    let program = if quick { build_unoptimised()? } else { build()? };
    let (calls, repeats) = if quick { ([10, 20], 1) } else { (CALLS, repeats) };
    let mut figures = Vec::new();
    for words in WORDS.into_iter().filter(|words| !quick || *words <= 20) {
        doing(format!("calls with replies of {words} words (0: a document)"));
        let counts = (0..repeats).map(|_| of_a_call(&program, words, calls)).collect::<Result<Vec<f64>>>()?;
        let counted = figure("instructions_per_call", "", counts);
        figures.push(Figure { dialect: Some("openai_chat"), words: Some(words), ..counted });
    }
    Ok(figures)
}

/// In a folder of its own: with other features cargo would build the workspace's crates twice.
fn build() -> Result<PathBuf> {
    let folder = paths::target()?.join("instructions");
    cargo(&["--release", "-p", "sluice-filter", "--features", "fuzzing"], &folder)?;
    Ok(folder.join("release/examples/instructions"))
}

fn cargo(what: &[&str], folder: &Path) -> Result<()> {
    let built = Command::new("cargo")
        .current_dir(paths::root())
        .args(["build", "--locked", "--example", "instructions", "--target-dir"])
        .arg(folder)
        .args(what)
        .status()
        .context("cargo is missing")?;
    ensure!(built.success(), "cargo could not build the filter's example `instructions`");
    Ok(())
}

/// With what tests are built from: only the filter itself is compiled once more.
fn build_unoptimised() -> Result<PathBuf> {
    let folder = paths::target()?;
    cargo(&["--workspace", "--features", "sluice-filter/fuzzing"], &folder)?;
    Ok(folder.join("debug/examples/instructions"))
}

fn of_a_call(program: &Path, words: u64, calls: [u64; 2]) -> Result<f64> {
    let [few, many] = calls;
    let more = counted(program, words, many)?.saturating_sub(counted(program, words, few)?);
    Ok((more as f64 / (many - few) as f64).round())
}

/// Instructions of a whole run.
fn counted(program: &Path, words: u64, calls: u64) -> Result<u64> {
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([words.to_string(), calls.to_string()])
        .output()?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "{said}");
    let Some((_, collected)) = said.split_once("Collected :") else { bail!("no count of instructions in: {said}") };
    collected.split_whitespace().next().context("no number")?.parse().context("no number of instructions")
}
