//! Events of Anthropic's messages: the input stands in `message_start`, the output so far in every `message_delta`.

use super::{Event, from_json};
use crate::usage::Shape;
use crate::usage::reports::Reports;
use crate::usage::written::{TextBytes, Written};
use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    message: Option<Message<'a>>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    text: Option<TextBytes>,
    #[serde(default)]
    thinking: Option<TextBytes>,
    #[serde(default)]
    partial_json: Option<TextBytes>,
}

pub(super) fn read(data: &[u8], reports: &mut Reports) -> Option<Event> {
    let payload: Payload<'_> = from_json(data).ok()?;
    let usage = payload.message.and_then(|message| message.usage).or(payload.usage);
    let is_report = usage.is_some_and(|usage| reports.take(usage.get(), Shape::Anthropic, None));
    let bytes = payload.delta.map_or(0, |delta| {
        let texts = [delta.text, delta.thinking, delta.partial_json];
        texts.into_iter().flatten().map(|TextBytes(bytes)| bytes).sum()
    });
    let is_kind = |wanted| payload.kind.is_some_and(|kind| kind.get() == wanted);
    Some(Event {
        written: Written::piece(bytes),
        is_report,
        is_error: payload.error.is_some() || is_kind("\"error\""),
        is_last: is_kind("\"message_stop\""),
        ..Event::default()
    })
}
