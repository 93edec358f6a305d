//! Where things lie: the repository, its tools and what cargo built.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// The root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// A program that `./justw setup` installs, such as `bin/envoy`.
///
/// # Errors
/// When it is missing; the error says what to run.
pub fn tool(name: &str) -> Result<PathBuf> {
    let path = root().join(".tools").join(name);
    if !path.exists() {
        bail!(".tools/{name} is missing: run ./justw setup");
    }
    Ok(path)
}

/// A binary of this workspace, built with the same profile as the running test.
///
/// # Errors
/// When it has not been built; the error says what to run.
pub fn built(name: &str) -> Result<PathBuf> {
    let profile = profile_folder()?;
    let path = profile.join(name);
    if !path.exists() {
        bail!("{} is missing: run ./justw build", path.display());
    }
    Ok(path)
}

/// The filter as Envoy loads it. Always the release build: a debug one is not what anybody deploys.
///
/// # Errors
/// When it has not been built; the error says what to run.
pub fn filter_module() -> Result<PathBuf> {
    let path = target()?.join("wasm32-wasip1/release/sluice_filter.wasm");
    if !path.exists() {
        bail!("{} is missing: run ./justw build", path.display());
    }
    Ok(path)
}

/// The folder that cargo builds into, wherever the user has put it.
///
/// # Errors
/// When the running program does not lie in one.
pub fn target() -> Result<PathBuf> {
    let profile = profile_folder()?;
    Ok(profile.parent().context("no target folder above the profile's")?.to_path_buf())
}

/// `target/debug`: a test lies in its `deps/`, a binary directly in it.
fn profile_folder() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let folder = program.parent().context("the running program has no folder")?;
    if folder.ends_with("deps") {
        return Ok(folder.parent().context("no profile folder above deps")?.to_path_buf());
    }
    Ok(folder.to_path_buf())
}
