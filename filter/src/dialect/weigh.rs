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
    /// Tools that the server runs itself, and then asks the model again.
    server_tools: u64,
}

impl Tally {
    /// The estimate: a token for every 4 bytes of text (rounded up), 4 for every message, 1,024 for every image or
    /// sound that the body carries, one for every token id of a prompt. Settlement replaces it by the upstream's own count.
    pub(super) fn tokens(self) -> u64 {
        let framing = self.elements.saturating_mul(ELEMENT_TOKENS);
        let media = self.media.saturating_mul(MEDIA_TOKENS);
        self.bytes.div_ceil(BYTES_PER_TOKEN).saturating_add(framing).saturating_add(media).saturating_add(self.ids)
    }

    /// Whether any of the tools is the server's own to run.
    pub(super) fn has_server_tools(self) -> bool {
        self.server_tools > 0
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
    /// The same: texts that are no messages, and tools that the client runs.
    List,
    /// The same: tools that the client or the server runs.
    Tools,
    /// One of them.
    Tool,
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
            At::Tools => At::Tool,
            At::Data => At::Data,
            At::List | At::Tool | At::Message | At::Part | At::Source | At::Address | At::Text => At::Text,
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
            // vLLM's tensors in place of pictures and the like: base64, or an object or a list of it.
            (At::Content | At::Part, "image_embeds" | "audio_embeds" | "video_embeds") => At::Data,
            (At::Data, _) => At::Data,
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
    /// The value of a field whose elements are counted, or that is a text.
    pub(super) fn list(tally: &'a mut Tally) -> Self {
        Self { tally: Some(tally), at: At::List }
    }

    /// The value of a field whose elements are tools, some of which the server may run.
    pub(super) fn tools(tally: &'a mut Tally) -> Self {
        Self { tally: Some(tally), at: At::Tools }
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

    fn id<E>(self) -> Result<Said, E> {
        if let (Some(tally), At::Prompt | At::Ids) = (self.tally, self.at) {
            tally.ids = tally.ids.saturating_add(1);
        }
        Ok(Said::Other)
    }
}

/// What a value says, where it is the `type` of a part or a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// The part's data are no picture.
    Text,
    /// The client runs the tool.
    Function,
    Other,
}

impl Said {
    fn by(text: &str) -> Self {
        match text {
            "text" => Said::Text,
            "function" | "custom" => Said::Function,
            _ => Said::Other,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Weigh<'_> {
    type Value = Said;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Said, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Weigh<'_> {
    type Value = Said;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Said, E> {
        Ok(Said::Other)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Said, E> {
        self.id()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Said, E> {
        self.id()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Said, E> {
        Ok(Said::Other)
    }

    fn visit_unit<E: Error>(self) -> Result<Said, E> {
        Ok(Said::Other)
    }

    fn visit_str<E: Error>(mut self, text: &str) -> Result<Said, E> {
        self.begin();
        if let Some(tally) = self.tally {
            tally.text(text, self.at.is_media(text));
        }
        Ok(Said::by(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Said, A::Error> {
        self.begin();
        let mut elements: u64 = 0;
        while list.next_element_seed(self.child(self.at.element()))?.is_some() {
            elements += 1;
        }
        if let (Some(tally), At::Messages | At::List | At::Tools) = (self.tally, self.at) {
            tally.elements = tally.elements.saturating_add(elements);
        }
        Ok(Said::Other)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Said, A::Error> {
        self.begin();
        let (mut carried, mut said) = (Tally::default(), None);
        while let Some(name) = map.next_key_seed(Name)? {
            match self.at.field(name) {
                at @ At::Data if self.at != At::Data => {
                    map.next_value_seed(Weigh { tally: Some(&mut carried), at })?;
                }
                at => {
                    let value = map.next_value_seed(self.child(at))?;
                    if name == Some("type") {
                        // Should it stand there twice, a text is a text.
                        said = said.filter(|said| *said == Said::Text).or(Some(value));
                    }
                }
            }
        }
        if let Some(tally) = self.tally {
            // The type may stand behind the data.
            tally.add(carried, said == Some(Said::Text));
            if self.at == At::Tool && said.is_some_and(|said| said != Said::Function) {
                tally.server_tools = tally.server_tools.saturating_add(1);
            }
        }
        Ok(Said::Other)
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
        const NAMES: [&str; 15] = [
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
            "image_embeds",
            "audio_embeds",
            "video_embeds",
        ];
        Ok(NAMES.into_iter().find(|known| *known == name))
    }
}

#[cfg(test)]
mod tests;
