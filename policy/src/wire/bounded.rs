//! Names as they come over the wire: read only up to a bound, because what is read may be kept.

use crate::units::NAME_BYTES_MAX;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::marker::PhantomData;

/// Reads a name of at most [`NAME_BYTES_MAX`] bytes.
pub(super) fn name<'de, T: for<'a> From<&'a str>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    text_up_to(NAME_BYTES_MAX, deserializer)
}

/// The same where the name may be absent.
pub(super) fn optional_name<'de, T: for<'a> From<&'a str>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Ok(Option::<Name<T>>::deserialize(deserializer)?.map(|Name(name)| name))
}

/// Reads a text of at most `most` bytes. A longer one is refused before it is copied.
pub(crate) fn text_up_to<'de, T: for<'a> From<&'a str>, D: Deserializer<'de>>(
    most: usize,
    deserializer: D,
) -> Result<T, D::Error> {
    deserializer.deserialize_str(UpTo { most, text: PhantomData })
}

struct Name<T>(T);

impl<'de, T: for<'a> From<&'a str>> Deserialize<'de> for Name<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        name(deserializer).map(Self)
    }
}

struct UpTo<T> {
    most: usize,
    text: PhantomData<T>,
}

impl<T: for<'a> From<&'a str>> Visitor<'_> for UpTo<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a text of at most {} bytes", self.most)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        if text.len() > self.most { Err(E::invalid_length(text.len(), &self)) } else { Ok(T::from(text)) }
    }
}
