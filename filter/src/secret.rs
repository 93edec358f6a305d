//! A secret of the configuration. It travels in a header and shows in nothing else.

use std::fmt;

/// `Debug` shows none of it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// `None` for text that cannot be the value of a header.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_value = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_value.then(|| Self(text.to_owned()))
    }

    /// For the header that carries it, and for nothing else.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}
