//! Text that is mostly short, kept where it is used.

use crate::wire::bounded::text_up_to;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Fills the type up to 32 bytes, and holds a sealed id, which has 26.
const INLINE_BYTES: usize = 30;

/// The longest text that is read, about twice what any release of the filter has written (I7).
const MOST_BYTES: usize = 64;

/// Text of up to 30 bytes inside the value, longer text shared. A queue of many calls keeps each id in several places;
/// were it shared text, every copy and comparison would touch memory of its own.
///
/// Invariant: text that fits is inline, so that equal texts are equal values.
#[derive(Clone)]
pub(super) enum ShortText {
    Inline { length: u8, bytes: [u8; INLINE_BYTES] },
    Shared(Arc<str>),
}

impl ShortText {
    pub(super) fn new(text: &str) -> Self {
        let mut bytes = [0; INLINE_BYTES];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(text.as_bytes());
                Self::Inline { length, bytes }
            }
            _ => Self::Shared(text.into()),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        match self {
            // It was text when it came in.
            Self::Inline { .. } => std::str::from_utf8(self.as_bytes()).unwrap_or_default(),
            Self::Shared(text) => text,
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Inline { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Self::Shared(text) => text.as_bytes(),
        }
    }
}

impl From<&str> for ShortText {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl PartialEq for ShortText {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            // What lies behind a text is zero; comparing all of it at once is faster than looking where it ends.
            (Self::Inline { length, bytes }, Self::Inline { length: others, bytes: other }) => {
                length == others && bytes == other
            }
            (Self::Shared(text), Self::Shared(other)) => text == other,
            (Self::Inline { .. }, Self::Shared(_)) | (Self::Shared(_), Self::Inline { .. }) => false,
        }
    }
}

impl Eq for ShortText {}

impl Hash for ShortText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.as_bytes());
    }
}

impl PartialOrd for ShortText {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ShortText {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Serialize for ShortText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ShortText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_up_to(MOST_BYTES, deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_the_text_it_was_made_of(one in ".{0,40}", other in ".{0,40}") {
            let (short, shorter) = (ShortText::new(&one), ShortText::new(&other));
            prop_assert_eq!(short.as_str(), &one);
            prop_assert_eq!(short == shorter, one == other);
            prop_assert_eq!(short.cmp(&shorter), one.as_bytes().cmp(other.as_bytes()));
            let json = serde_json::to_string(&short).unwrap();
            prop_assert_eq!(&json, &serde_json::to_string(&one).unwrap());
            let read = serde_json::from_str::<ShortText>(&json);
            prop_assert_eq!(read.is_ok_and(|read| read == short), one.len() <= MOST_BYTES);
        }
    }
}
