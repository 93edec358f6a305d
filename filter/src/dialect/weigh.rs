//! Walks a JSON value without building it, and counts what may become prompt tokens.
//!
//! Every value is asked for by `deserialize_any`, which is what serde_json's limit of 127 levels guards; its
//! `IgnoredAny` has no such limit.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// An image or a sound counts this many tokens, however long its base64 is. Vision models use 85 to about 1,500.
const MEDIA_TOKENS: u64 = 1024;
/// Tokens that a chat template puts around each message.
const ELEMENT_TOKENS: u64 = 4;
/// English text has about four bytes a token.
const BYTES_PER_TOKEN: u64 = 4;

/// What has been counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Elements of the outermost lists.
    elements: u64,
    /// Bytes of text, after unescaping.
    bytes: u64,
    media: u64,
}

impl Tally {
    /// The estimate: a token for every 4 bytes of text (rounded up), 4 for every message, 1,024 for every image or
    /// sound that the body carries. Settlement replaces it by the upstream's own count.
    pub(super) fn tokens(self) -> u64 {
        let framing = self.elements.saturating_mul(ELEMENT_TOKENS);
        let media = self.media.saturating_mul(MEDIA_TOKENS);
        self.bytes.div_ceil(BYTES_PER_TOKEN).saturating_add(framing).saturating_add(media)
    }

    fn text(&mut self, text: &str, under_data: bool) {
        /// Shorter texts are words, whatever field they stand in.
        const MEDIA_BYTES_MIN: usize = 256;
        if text.len() >= MEDIA_BYTES_MIN && (under_data || text.starts_with("data:")) {
            self.media += 1;
        } else {
            self.bytes = self.bytes.saturating_add(text.len() as u64);
        }
    }
}

/// One value on the walk.
pub(super) struct Weigh<'a> {
    tally: Option<&'a mut Tally>,
    is_list: bool,
    under_data: bool,
}

impl<'a> Weigh<'a> {
    /// The value of a field whose elements are messages (or tools).
    pub(super) fn list(tally: &'a mut Tally) -> Self {
        Self { tally: Some(tally), is_list: true, under_data: false }
    }

    /// A value that only must not be too deep.
    pub(super) fn skip() -> Self {
        Self { tally: None, is_list: false, under_data: false }
    }

    fn child(&mut self, under_data: bool) -> Weigh<'_> {
        Weigh { tally: self.tally.as_deref_mut(), is_list: false, under_data }
    }
}

impl<'de> DeserializeSeed<'de> for Weigh<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Weigh<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        if let Some(tally) = self.tally {
            tally.text(text, self.under_data);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self.child(false))?.is_some() {
            if let Some(tally) = self.tally.as_deref_mut().filter(|_| self.is_list) {
                tally.elements += 1;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(under_data) = map.next_key_seed(IsData)? {
            map.next_value_seed(self.child(under_data))?;
        }
        Ok(())
    }
}

/// Whether a field is named `data`, as the payload of a sound is.
struct IsData;

impl<'de> DeserializeSeed<'de> for IsData {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for IsData {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<bool, E> {
        Ok(name == "data")
    }
}
