//! One event of a chat completion stream.

use crate::usage::{Counts, report};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// A server may put several tokens into one chunk (speculative decoding, coalescing proxies); text beyond this many
/// bytes counts as more than one.
const BYTES_PER_TOKEN_MAX: usize = 8;

/// What one event tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) usage: Option<Counts>,
    /// Our count of the output in it: one for each choice that adds something, or one for every 8 bytes.
    pub(super) tokens: u64,
    /// It has a usage and no choices.
    pub(super) is_usage_only: bool,
}

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow, default)]
    choices: Option<&'a RawValue>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    reasoning_content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    reasoning: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    refusal: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
}

impl Chunk {
    /// Reads the data of an event; `None` when it bears none, or nothing that is a chunk (`[DONE]`, a comment).
    pub(super) fn read(event: &[u8]) -> Option<Chunk> {
        let data = data_of(event)?;
        let payload: Payload<'_> = serde_json::from_slice(&data).ok()?;
        let choices = payload.choices.map_or("[]", RawValue::get);
        let has_choices = !choices.trim_matches(['[', ']', ' ', '\t', '\r', '\n']).is_empty();
        // RawValue inside Option takes null as none.
        let usage = payload.usage.map(RawValue::get);
        Some(Chunk {
            usage: usage.and_then(report::believe),
            tokens: if has_choices { tokens_in(choices) } else { 0 },
            is_usage_only: usage.is_some() && !has_choices,
        })
    }
}

/// The data lines of an event, joined as the specification says.
fn data_of(event: &[u8]) -> Option<Cow<'_, [u8]>> {
    // Between the two halves of a CRLF stands an empty line, which bears no data.
    let mut lines = event.split(|byte| matches!(byte, b'\n' | b'\r')).filter_map(|line| {
        let value = line.strip_prefix(b"data:")?;
        Some(value.strip_prefix(b" ").unwrap_or(value))
    });
    let first = lines.next()?;
    let Some(second) = lines.next() else { return Some(Cow::Borrowed(first)) };
    let mut joined = first.to_vec();
    for line in std::iter::once(second).chain(lines) {
        joined.push(b'\n');
        joined.extend_from_slice(line);
    }
    Some(Cow::Owned(joined))
}

fn tokens_in(choices: &str) -> u64 {
    // Choices of a shape that nobody knows still are output.
    let Ok(choices) = serde_json::from_str::<Vec<Choice<'_>>>(choices) else { return 1 };
    choices.iter().filter_map(|choice| choice.delta.as_ref()).map(Delta::tokens).sum()
}

impl Delta<'_> {
    fn tokens(&self) -> u64 {
        let texts = [&self.content, &self.reasoning_content, &self.reasoning, &self.refusal];
        let text: usize = texts.iter().filter_map(|text| text.as_ref()).map(|text| text.len()).sum();
        let calls = self.tool_calls.map(RawValue::get).filter(|json| *json != "[]").map_or(0, str::len);
        (text + calls).div_ceil(BYTES_PER_TOKEN_MAX) as u64
    }
}
