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
    /// How long the media are as they stand in the body.
    media_bytes: u64,
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

    /// `is_media`: where a picture or a sound stands.
    fn text(&mut self, text: &str, is_media: bool) {
        /// Shorter texts are words, or addresses.
        const MEDIA_BYTES_MIN: usize = 256;
        let length = text.len() as u64;
        if is_media && text.len() >= MEDIA_BYTES_MIN {
            self.media += 1;
            self.media_bytes = self.media_bytes.saturating_add(length);
        } else {
            self.bytes = self.bytes.saturating_add(length);
        }
    }

    /// Adds what one part carries, which may say of itself that it is a text.
    fn add(&mut self, part: Tally, is_text: bool) {
        let of_media = if is_text { part.media_bytes } else { 0 };
        self.bytes = self.bytes.saturating_add(part.bytes).saturating_add(of_media);
        self.media += if is_text { 0 } else { part.media };
    }
}

/// One value on the walk.
pub(super) struct Weigh<'a> {
    tally: Option<&'a mut Tally>,
    at: At,
}

/// Where a value stands: what is counted of it beside its texts, and whether it may be a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// A list whose elements are counted: messages.
    Messages,
    /// The same: tools, and texts that are no messages.
    List,
    /// A message, or an item of a response's input.
    Message,
    /// What a message says: a text, or parts.
    Content,
    /// One part of it.
    Part,
    /// The object in a part that carries a picture or a sound, or its address.
    Source,
    /// An address, which may hold the picture itself.
    Address,
    /// Base64.
    Data,
    /// Nothing yet: a prompt by itself, or a list of token ids or of prompts.
    Prompts,
    /// Itself as a prompt, unless it is a number, which is a token id.
    Prompt,
    /// Numbers, as token ids.
    Ids,
    Text,
}

impl At {
    /// An element of a list that stands here.
    fn element(self) -> At {
        match self {
            At::Messages => At::Message,
            At::Content => At::Part,
            At::Prompts => At::Prompt,
            At::Prompt | At::Ids => At::Ids,
            At::List | At::Message | At::Part | At::Source | At::Address | At::Data | At::Text => At::Text,
        }
    }

    /// A field of an object that stands here. Only these are pictures and sounds, as the APIs write them: a text that
    /// looks like one is a text.
    fn field(self, name: Option<&'static str>) -> At {
        match (self, name.unwrap_or_default()) {
            (At::Message, "content" | "output") => At::Content,
            (At::Content | At::Part | At::Source, "content") => At::Content,
            (At::Content | At::Part, "image_url" | "video_url" | "audio_url" | "input_audio" | "file" | "source") => {
                At::Source
            }
            (At::Source, "url") => At::Address,
            (At::Source, "data") | (At::Source | At::Content | At::Part, "file_data") => At::Data,
            (At::Prompts, _) => At::Prompt,
            (At::Prompt | At::Ids, _) => At::Ids,
            _ => At::Text,
        }
    }

    /// Whether a text that stands here is a picture or a sound.
    fn is_media(self, text: &str) -> bool {
        match self {
            At::Data => true,
            At::Source | At::Address => text.starts_with("data:"),
            _ => false,
        }
    }
}

impl<'a> Weigh<'a> {
    /// The value of a field whose elements are tools, or that is a text.
    pub(super) fn list(tally: &'a mut Tally) -> Self {
        Self { tally: Some(tally), at: At::List }
    }

    /// The value of a field whose elements are messages.
    pub(super) fn messages(tally: &'a mut Tally) -> Self {
        Self { tally: Some(tally), at: At::Messages }
    }

    /// The value of a field that is a text, a list of token ids, or a list of those.
    pub(super) fn prompt(tally: &'a mut Tally) -> Self {
        Self { tally: Some(tally), at: At::Prompts }
    }

    /// A value that only must not be too deep.
    pub(super) fn skip() -> Self {
        Self { tally: None, at: At::Text }
    }

    fn child(&mut self, at: At) -> Weigh<'_> {
        Weigh { tally: self.tally.as_deref_mut(), at }
    }

    fn begin(&mut self) {
        if let (Some(tally), At::Prompt) = (self.tally.as_deref_mut(), self.at) {
            tally.prompts = tally.prompts.saturating_add(1);
        }
    }

    fn id<E>(self) -> Result<bool, E> {
        if let (Some(tally), At::Prompt | At::Ids) = (self.tally, self.at) {
            tally.ids = tally.ids.saturating_add(1);
        }
        Ok(false)
    }
}

/// The walk tells of each value whether it is the text `text`: so a part says that its data are no picture.
impl<'de> DeserializeSeed<'de> for Weigh<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Weigh<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<bool, E> {
        self.id()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<bool, E> {
        self.id()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_unit<E: Error>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_str<E: Error>(mut self, text: &str) -> Result<bool, E> {
        self.begin();
        if let Some(tally) = self.tally {
            tally.text(text, self.at.is_media(text));
        }
        Ok(text == "text")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<bool, A::Error> {
        self.begin();
        let mut elements: u64 = 0;
        while list.next_element_seed(self.child(self.at.element()))?.is_some() {
            elements += 1;
        }
        if let (Some(tally), At::Messages | At::List) = (self.tally, self.at) {
            tally.elements = tally.elements.saturating_add(elements);
        }
        Ok(false)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<bool, A::Error> {
        self.begin();
        let (mut carried, mut is_text) = (Tally::default(), false);
        while let Some(name) = map.next_key_seed(Name)? {
            match self.at.field(name) {
                at @ At::Data => {
                    map.next_value_seed(Weigh { tally: Some(&mut carried), at })?;
                }
                at => is_text |= map.next_value_seed(self.child(at))? && name == Some("type"),
            }
        }
        if let Some(tally) = self.tally {
            // The type may stand behind the data.
            tally.add(carried, is_text);
        }
        Ok(false)
    }
}

/// The name of a field, if the walk goes by it.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        const NAMES: [&str; 12] = [
            "type",
            "content",
            "output",
            "image_url",
            "video_url",
            "audio_url",
            "input_audio",
            "file",
            "source",
            "url",
            "data",
            "file_data",
        ];
        Ok(NAMES.into_iter().find(|known| *known == name))
    }
}

#[cfg(test)]
mod tests;
