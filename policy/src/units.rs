//! The words of the product as types, so that a token is never added to a millisecond.

mod short_text;

use serde::{Deserialize, Serialize};
use short_text::ShortText;
use std::fmt;
use std::sync::Arc;

/// The longest name of anything, in bytes: of a model, pool, tenant or key. What a client chooses may be kept in some
/// ten thousand places (I7).
pub const NAME_BYTES_MAX: usize = 256;

/// Milliseconds: a duration, or a moment on the caller's monotonic clock. The origin is the caller's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    pub const ZERO: Millis = Millis(0);

    /// The time from `earlier` to `self`; zero when the clock seems to have gone backwards.
    #[must_use]
    pub fn since(self, earlier: Millis) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }

    #[must_use]
    pub fn plus(self, span: Millis) -> Millis {
        Millis(self.0.saturating_add(span.0))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// A count of model tokens, or of weighted tokens where a charge is meant. Never negative; a debt is the
/// bucket's business.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tokens(pub u64);

impl Tokens {
    pub const ZERO: Tokens = Tokens(0);

    #[must_use]
    pub fn plus(self, more: Tokens) -> Tokens {
        Tokens(self.0.saturating_add(more.0))
    }

    #[must_use]
    pub fn times(self, factor: u64) -> Tokens {
        Tokens(self.0.saturating_mul(factor))
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0)
    }
}

/// A priority level, P0 (first) to P9 (last).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Priority(u8);

impl Priority {
    pub const COUNT: usize = 10;
    pub const FIRST: Priority = Priority(0);
    pub const LAST: Priority = Priority(9);

    /// The level as an index, 0 to 9.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    pub fn all() -> impl DoubleEndedIterator<Item = Priority> {
        (0..=9).map(Priority)
    }

    /// Reads a client's `x-priority`: one decimal digit, nothing around it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Priority> {
        match text.as_bytes() {
            [digit @ b'0'..=b'9'] => Some(Priority(digit - b'0')),
            _ => None,
        }
    }

    /// What a client gets that asks for `self` under a tenant's ceiling: it may only lower its priority.
    #[must_use]
    pub fn at_most(self, ceiling: Priority) -> Priority {
        self.max(ceiling)
    }
}

impl TryFrom<u8> for Priority {
    type Error = String;
    fn try_from(level: u8) -> Result<Self, String> {
        if level <= 9 { Ok(Priority(level)) } else { Err(format!("priority must be 0 to 9, found {level}")) }
    }
}

impl From<Priority> for u8 {
    fn from(priority: Priority) -> u8 {
        priority.0
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "P{}", self.0)
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// Shared text: a clone costs a counter, not a copy.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The text itself, in the memory that it has.
            #[must_use]
            pub fn to_shared(&self) -> Arc<str> {
                self.0.clone()
            }
        }

        impl From<&str> for $name {
            fn from(name: &str) -> Self {
                Self(name.into())
            }
        }

        impl From<String> for $name {
            fn from(name: String) -> Self {
                Self(name.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// Who is limited and billed.
    TenantId
);
name_type!(
    /// Model pods that share capacity.
    PoolName
);
name_type!(
    /// A model, as clients name it.
    ModelName
);
name_type!(
    /// Tenants that share a part of a pool between them.
    GroupName
);
name_type!(
    /// A replica, or (later) an Envoy worker, that holds part of an account.
    HolderId
);

/// One call, as the filter has minted it by [`crate::seal`]; never reused.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AdmissionId(ShortText);

impl AdmissionId {
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl From<&str> for AdmissionId {
    fn from(id: &str) -> Self {
        Self(ShortText::new(id))
    }
}

impl From<String> for AdmissionId {
    fn from(id: String) -> Self {
        Self(ShortText::new(&id))
    }
}

impl fmt::Debug for AdmissionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AdmissionId").field(&self.as_str()).finish()
    }
}

impl fmt::Display for AdmissionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
