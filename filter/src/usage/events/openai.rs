//! Chunks of chat completions and of completions.

use super::{Event, from_json};
use crate::usage::Shape;
use crate::usage::reports::Reports;
use crate::usage::written::{TextBytes, Written};
use serde::Deserialize;
use serde_json::value::RawValue;

/// RawValue inside Option takes null as none: chunks before the last often bear a usage of null.
#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    object: Option<&'a RawValue>,
}

/// A chunk whose choices nobody knows how to read.
#[derive(Deserialize)]
struct OddChunk<'a> {
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    index: Option<&'a RawValue>,
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    /// Of completions.
    #[serde(default)]
    text: Option<TextBytes>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(default)]
    content: Option<TextBytes>,
    #[serde(default)]
    reasoning_content: Option<TextBytes>,
    #[serde(default)]
    reasoning: Option<TextBytes>,
    #[serde(default)]
    refusal: Option<TextBytes>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
}

pub(super) fn read(data: &[u8], reports: &mut Reports) -> Option<Event> {
    // An array of the right fields would do for the reader too, but is no chunk.
    if data.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let (written, choice, usage, is_error) = match from_json::<Chunk<'_>>(data) {
        Ok(chunk) => {
            let choices = chunk.choices.as_deref().unwrap_or_default();
            let only = if let [choice] = choices { choice.index() } else { None };
            let is_error = chunk.error.is_some() || chunk.object.is_some_and(|kind| kind.get() == "\"error\"");
            (choices.iter().map(Choice::written).sum(), only, chunk.usage, is_error)
        }
        // They still are output.
        Err(_) => (Written::UNREADABLE, None, from_json::<OddChunk<'_>>(data).ok()?.usage, false),
    };
    let Some(usage) = usage else { return Some(Event { written, choice, is_error, ..Event::default() }) };
    let is_report = reports.take(usage.get(), Shape::OpenAi, choice);
    let is_usage_only = written.is_empty() && !is_error && bears_only_usage(data);
    Some(Event { written, choice, is_report, is_usage_only, is_error, ..Event::default() })
}

/// Whether no choice adds or ends anything: LiteLLM's usage event has one choice with an empty delta, and some servers
/// leave the choices out or write null. An event without choices that has a type is of another API.
fn bears_only_usage(data: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Bare<'a> {
        #[serde(borrow, default)]
        choices: Option<Vec<BareChoice<'a>>>,
        #[serde(borrow, default, rename = "type")]
        kind: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct BareChoice<'a> {
        #[serde(borrow, default)]
        delta: Option<&'a RawValue>,
        #[serde(borrow, default)]
        text: Option<&'a RawValue>,
        #[serde(borrow, default)]
        finish_reason: Option<&'a RawValue>,
    }
    let is_bare = |choice: &BareChoice<'_>| {
        let delta = choice.delta.map_or("", RawValue::get);
        let has_delta = !delta.trim_matches(['{', '}', ' ', '\t', '\r', '\n']).is_empty();
        !has_delta && choice.text.is_none() && choice.finish_reason.is_none()
    };
    let bare = from_json::<Bare<'_>>(data).ok();
    bare.is_some_and(|bare| match bare.choices {
        Some(choices) => choices.iter().all(is_bare),
        None => bare.kind.is_none(),
    })
}

impl Choice<'_> {
    fn index(&self) -> Option<u32> {
        self.index?.get().parse().ok()
    }

    fn written(&self) -> Written {
        let TextBytes(text) = self.text.unwrap_or_default();
        Written::piece(self.delta.as_ref().map_or(0, Delta::bytes) + text)
    }
}

impl Delta<'_> {
    fn bytes(&self) -> usize {
        let texts = [self.content, self.reasoning_content, self.reasoning, self.refusal];
        let text: usize = texts.into_iter().flatten().map(|TextBytes(bytes)| bytes).sum();
        let calls = self.tool_calls.map(RawValue::get).filter(|json| *json != "[]").map_or(0, str::len);
        text + calls
    }
}
