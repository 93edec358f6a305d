//! The last release, built beside this one: what is stored must serve both.
//!
//! `tests/previous-release` names its commit, and changes with a release only.

use crate::{document, paths};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Below the repository's root.
const COMMIT: &str = "tests/previous-release";
/// Variables by which a hook of git would point our own git somewhere else.
const OF_A_HOOK: [&str; 3] = ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"];

#[derive(Clone, Debug)]
pub struct PreviousRelease {
    source: PathBuf,
    program: PathBuf,
}

impl PreviousRelease {
    /// Builds its `quota-service`, in debug mode like the one of this release. `None`, which is said aloud, where neither
    /// this repository nor the one it was cloned from has the commit.
    ///
    /// # Errors
    /// When it does not build.
    pub fn built() -> Result<Option<Self>> {
        static BUILT: OnceLock<Result<Option<PreviousRelease>, String>> = OnceLock::new();
        let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
        built.clone().map_err(anyhow::Error::msg)
    }

    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The configuration that it shipped. The next release must take that too.
    ///
    /// # Errors
    /// When there is none.
    pub fn shipped_config(&self) -> Result<Value> {
        document::load(&self.source.join("envoy/quota-service.yaml"))
    }
}

fn build() -> Result<Option<PreviousRelease>> {
    let root = paths::root();
    let commit = fs::read_to_string(root.join(COMMIT)).context(COMMIT)?.trim().to_owned();
    let folder = paths::target()?.join("previous-release");
    fs::create_dir_all(&folder)?;
    // Of two test runs one builds, and the other waits for it.
    let lock = File::create(folder.join("lock"))?;
    lock.lock()?;
    let is_there = || run(git(&root).args(["cat-file", "-e", &format!("{commit}^{{commit}}")])).is_ok();
    if !is_there()
        && let Err(error) = run(git(&root).args(["fetch", "--quiet", "--depth", "1", "origin", &commit]))
    {
        aloud(&format!("NOT TESTED beside the last release, {commit} of {COMMIT}: {error:#}"));
        return Ok(None);
    }
    let (source, target) = (folder.join("source"), folder.join("build"));
    check_out(&root, &source, &commit)?;
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&source).env("CARGO_TARGET_DIR", &target);
    // It is built by the toolchain that it names itself.
    cargo.env_remove("RUSTUP_TOOLCHAIN");
    run(cargo.args(["build", "--quiet", "--locked", "-p", "quota-service", "--bin", "quota-service"]))?;
    Ok(Some(PreviousRelease { source, program: target.join("debug/quota-service") }))
}

fn check_out(root: &Path, source: &Path, commit: &str) -> Result<()> {
    let head = run(git(source).args(["rev-parse", "--show-toplevel", "HEAD"]));
    if head.is_ok_and(|head| head.trim() == format!("{}\n{commit}", source.display())) {
        return Ok(());
    }
    if source.exists() {
        fs::remove_dir_all(source)?;
    }
    // Forced, since git may remember one that was removed together with the target folder.
    run(git(root).args(["worktree", "add", "--force", "--detach"]).arg(source).arg(commit)).map(drop)
}

fn git(folder: &Path) -> Command {
    let mut git = Command::new("git");
    git.arg("-C").arg(folder);
    for variable in OF_A_HOOK {
        git.env_remove(variable);
    }
    git
}

/// Runs a command to its end, and gives what it printed.
fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Past the test harness, which shows what a test prints only when it fails.
fn aloud(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
