//! Texts that must not show: in a log, in a panic, in an error.

use std::fmt;
use std::path::Path;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

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
    /// What is wrong with the file, for an error message that already names it: it cannot be read, is not UTF-8, or
    /// holds fewer than `least` bytes.
    pub fn from_file(path: &Path, least: usize) -> Result<Self, String> {
        let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|error| error.to_string())?);
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

#[cfg(test)]
mod tests {
    use super::*;

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
