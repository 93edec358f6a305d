//! Events of the responses API: text comes as `delta`, the usage with the response's last event.

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
    delta: Option<&'a RawValue>,
    #[serde(borrow, default)]
    response: Option<Response<'a>>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
}

/// How a response may end, each as the JSON of an event's type.
const LAST: [&str; 3] = ["\"response.completed\"", "\"response.incomplete\"", "\"response.failed\""];

/// How a server says that it has failed.
const FAILED: [&str; 2] = ["\"error\"", "\"response.failed\""];

pub(super) fn read(data: &[u8], reports: &mut Reports) -> Option<Event> {
    let payload: Payload<'_> = from_json(data).ok()?;
    // Every event of the response as a whole repeats it; only the last has a usage that is not null.
    let usage = payload.response.and_then(|response| response.usage);
    let is_report = usage.is_some_and(|usage| reports.take(usage.get(), Shape::Responses, None));
    Some(Event {
        written: payload.delta.map_or(Written::default(), |delta| written_in(delta.get())),
        is_report,
        is_error: payload.error.is_some() || payload.kind.is_some_and(|kind| FAILED.contains(&kind.get())),
        is_last: payload.kind.is_some_and(|kind| LAST.contains(&kind.get())),
        ..Event::default()
    })
}

fn written_in(delta: &str) -> Written {
    let text = serde_json::from_str::<TextBytes>(delta);
    Written::piece(text.map_or(delta.len(), |TextBytes(bytes)| bytes))
}
