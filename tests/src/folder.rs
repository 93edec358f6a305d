//! A folder of its own for every stack: configurations, sockets, secrets and logs.

use crate::paths;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Laid out like the repository's root, so that the relative paths in the shipped files hold in it. Removed at the
/// end, but kept when the test fails.
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes `target/e2e/<name>-<n>` with the first free `n`.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create(name: &str) -> Result<Self> {
        let parent = paths::target()?.join("e2e");
        fs::create_dir_all(&parent)?;
        let path = (1..)
            .map(|n: u32| parent.join(format!("{name}-{n}")))
            // Creating is the test for being free: it is atomic.
            .find_map(|path| match fs::create_dir(&path) {
                Ok(()) => Some(Ok(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => None,
                Err(error) => Some(Err(error)),
            })
            .context("no folder name left")??;
        fs::create_dir_all(path.join("envoy/run"))?;
        Ok(Self { path })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file below the folder and gives its full path.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Writes a file that only its owner may read.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write_secret(&self, name: &str, content: &str) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.write(name, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kept for inspection: {}", self.path.display());
        } else {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
