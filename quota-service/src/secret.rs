//! Texts that must not show: in a log, in a panic, in an error, or to another user of the machine.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// What others and the group may do with a file, and what the group may but for reading it.
const OTHERS_OR_GROUP: u32 = 0o077;
const MORE_THAN_GROUP_READS: u32 = 0o037;

/// A secret. It is compared in constant time, wiped when dropped, and its `Debug` prints `[redacted]`.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// Reads a secret from a file, without the line break at its end.
    ///
    /// # Errors
    /// What is wrong with the file, for an error message that already names it: it cannot be read, others can read it,
    /// it is not UTF-8, or holds fewer than `least` bytes.
    pub fn from_file(path: &Path, least: usize) -> Result<Self, String> {
        let text = read_private(path)?;
        let text = text.trim_end_matches(['\n', '\r']);
        if text.len() < least {
            return Err(format!("holds {} bytes, at least {least} are needed", text.len()));
        }
        Ok(Self::new(text.to_owned()))
    }

    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether a presented text is the secret.
    #[must_use]
    pub fn matches(&self, presented: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(presented).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Reads a file that nobody else may read.
///
/// # Errors
/// As [`Secret::from_file`].
pub(crate) fn read_private(path: &Path) -> Result<Zeroizing<String>, String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    // Of the file that is open, so that another one cannot take its place in between.
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    check_mode(metadata.mode(), is_ours(&metadata), path)?;
    let mut text = Zeroizing::new(String::new());
    file.read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

/// Our own file is for us alone. Where it is somebody else's we can read it only as a member of its group: so Kubernetes
/// mounts secrets, as root's, for the group `fsGroup`.
fn check_mode(mode: u32, is_ours: bool, path: &Path) -> Result<(), String> {
    let forbidden = if is_ours { OTHERS_OR_GROUP } else { MORE_THAN_GROUP_READS };
    if mode & forbidden == 0 {
        return Ok(());
    }
    let right = if is_ours { "600" } else { "440" };
    Err(format!("other users may read or write it (mode {:04o}); run: chmod {right} {}", mode & 0o7777, path.display()))
}

/// Where the system does not say who we are, every file counts as ours.
fn is_ours(file: &Metadata) -> bool {
    std::fs::metadata("/proc/self").map_or(true, |us| us.uid() == file.uid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_that_other_users_can_read_is_refused_with_what_to_run() {
        let path = std::env::temp_dir().join(format!("sluice-secret-{}", std::process::id()));
        std::fs::write(&path, "0123456789\n").unwrap();
        let read = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Secret::from_file(&path, 10).map(|secret| secret.expose().to_owned())
        };
        assert_eq!(read(0o600), Ok("0123456789".to_owned()));
        assert!(read(0o400).is_ok());
        for mode in [0o644, 0o604, 0o640, 0o660, 0o602] {
            let problem = read(mode).unwrap_err();
            assert!(problem.contains(&format!("mode {mode:04o}")), "{problem}");
            assert!(problem.ends_with(&format!("run: chmod 600 {}", path.display())), "{problem}");
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_secret_that_is_mounted_for_our_group_is_read() {
        let path = Path::new("pepper");
        assert_eq!(check_mode(0o100_440, false, path), Ok(()));
        for mode in [0o444, 0o460, 0o441] {
            assert!(check_mode(mode, false, path).unwrap_err().ends_with("chmod 440 pepper"), "{mode:o}");
        }
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".into())), "[redacted]");
    }

    #[test]
    fn only_the_whole_secret_matches() {
        let secret = Secret::new("hunter2".into());
        assert!(secret.matches(b"hunter2"));
        assert!(!secret.matches(b"hunter") && !secret.matches(b"hunter22"));
    }
}
