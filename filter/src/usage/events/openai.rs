//! Chunks of chat completions and of completions.

use super::Event;
use crate::usage::Shape;
use crate::usage::report::Reported;
use crate::usage::written::Written;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

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
    /// Of completions.
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
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

pub(super) fn read(data: &[u8], reported: &mut Reported) -> Option<Event> {
    // An array of the right fields would do for the reader too, but is no chunk.
    if data.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let payload: Payload<'_> = serde_json::from_slice(data).ok()?;
    let choices = payload.choices.map_or("[]", RawValue::get);
    let has_choices = !choices.trim_matches(['[', ']', ' ', '\t', '\r', '\n']).is_empty();
    // RawValue inside Option takes null as none: chunks before the last often bear a usage of null.
    let usage = payload.usage.map(RawValue::get);
    if let Some(usage) = usage {
        reported.take(usage, Shape::OpenAi);
    }
    Some(Event {
        written: if has_choices { written_in(choices) } else { Written::default() },
        is_report: usage.is_some(),
        // Without a list of choices it is no chunk at all, and so not the one that we asked for.
        is_usage_only: usage.is_some() && payload.choices.is_some() && (!has_choices || bear_nothing(choices)),
    })
}

/// Whether no choice adds or ends anything: LiteLLM's usage event has one choice with an empty delta.
fn bear_nothing(choices: &str) -> bool {
    #[derive(Deserialize)]
    struct Bare<'a> {
        #[serde(borrow, default)]
        delta: Option<&'a RawValue>,
        #[serde(borrow, default)]
        text: Option<&'a RawValue>,
        #[serde(borrow, default)]
        finish_reason: Option<&'a RawValue>,
    }
    let is_bare = |choice: &Bare<'_>| {
        let delta = choice.delta.map_or("", RawValue::get);
        let has_delta = !delta.trim_matches(['{', '}', ' ', '\t', '\r', '\n']).is_empty();
        !has_delta && choice.text.is_none() && choice.finish_reason.is_none()
    };
    serde_json::from_str::<Vec<Bare<'_>>>(choices).is_ok_and(|choices| choices.iter().all(is_bare))
}

fn written_in(choices: &str) -> Written {
    // Choices of a shape that nobody knows still are output.
    let Ok(choices) = serde_json::from_str::<Vec<Choice<'_>>>(choices) else { return Written::UNREADABLE };
    choices.iter().map(Choice::written).sum()
}

impl Choice<'_> {
    fn written(&self) -> Written {
        let text = self.text.as_ref().map_or(0, |text| text.len());
        Written::piece(self.delta.as_ref().map_or(0, Delta::bytes) + text)
    }
}

impl Delta<'_> {
    fn bytes(&self) -> usize {
        let texts = [&self.content, &self.reasoning_content, &self.reasoning, &self.refusal];
        let text: usize = texts.iter().filter_map(|text| text.as_ref()).map(|text| text.len()).sum();
        let calls = self.tool_calls.map(RawValue::get).filter(|json| *json != "[]").map_or(0, str::len);
        text + calls
    }
}
