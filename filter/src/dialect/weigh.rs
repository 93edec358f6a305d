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
    /// Elements of a prompt that is a list: texts, or lists of token ids.
    prompts: u32,
    /// Bytes of text, after unescaping.
    bytes: u64,
    media: u64,
    /// Token ids in prompts.
    ids: u64,
}

impl Tally {
    /// The estimate: a token for every 4 bytes of text (rounded up), 4 for every message, 1,024 for every image or
    /// sound that the body carries, one for every token id of a prompt. Settlement replaces it by the upstream's own count.
    pub(super) fn tokens(self) -> u64 {
        let framing = self.elements.saturating_mul(ELEMENT_TOKENS);
        let media = self.media.saturating_mul(MEDIA_TOKENS);
        self.bytes.div_ceil(BYTES_PER_TOKEN).saturating_add(framing).saturating_add(media).saturating_add(self.ids)
    }

    /// How many prompts the call has: one, unless its prompt is a list of them.
    pub(super) fn prompts(self) -> u32 {
        self.prompts.max(1)
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
    counts: Counts,
    under_data: bool,
}

/// What is counted of a value beside its texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counts {
    /// Elements, as messages.
    Messages,
    /// Nothing yet: a prompt by itself, or a list of token ids or of prompts.
    Prompts,
    /// Itself as a prompt, unless it is a number, which is a token id.
    Prompt,
    /// Numbers, as token ids.
    Ids,
    Nothing,
}

impl<'a> Weigh<'a> {
    /// The value of a field whose elements are messages (or tools).
    pub(super) fn list(tally: &'a mut Tally) -> Self {
        Self { tally: Some(tally), counts: Counts::Messages, under_data: false }
    }

    /// The value of a field that is a text, a list of token ids, or a list of those.
    pub(super) fn prompt(tally: &'a mut Tally) -> Self {
        Self { tally: Some(tally), counts: Counts::Prompts, under_data: false }
    }

    /// A value that only must not be too deep.
    pub(super) fn skip() -> Self {
        Self { tally: None, counts: Counts::Nothing, under_data: false }
    }

    fn child(&mut self, under_data: bool) -> Weigh<'_> {
        let counts = match self.counts {
            Counts::Prompts => Counts::Prompt,
            Counts::Prompt | Counts::Ids => Counts::Ids,
            Counts::Messages | Counts::Nothing => Counts::Nothing,
        };
        Weigh { tally: self.tally.as_deref_mut(), counts, under_data }
    }

    fn begin(&mut self) {
        if let (Some(tally), Counts::Prompt) = (self.tally.as_deref_mut(), self.counts) {
            tally.prompts = tally.prompts.saturating_add(1);
        }
    }

    fn id<E>(self) -> Result<(), E> {
        if let (Some(tally), Counts::Prompt | Counts::Ids) = (self.tally, self.counts) {
            tally.ids = tally.ids.saturating_add(1);
        }
        Ok(())
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
        self.id()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.id()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(mut self, text: &str) -> Result<(), E> {
        self.begin();
        if let Some(tally) = self.tally {
            tally.text(text, self.under_data);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        self.begin();
        let mut elements: u64 = 0;
        while list.next_element_seed(self.child(false))?.is_some() {
            elements += 1;
        }
        if let (Some(tally), Counts::Messages) = (self.tally, self.counts) {
            tally.elements = tally.elements.saturating_add(elements);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        self.begin();
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
