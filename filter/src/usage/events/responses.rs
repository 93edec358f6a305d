//! Events of the responses API: text comes as `delta`, the usage with the response's last event.

use super::{Event, tokens_of};
use crate::usage::Shape;
use crate::usage::report::Reported;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow, default)]
    delta: Option<&'a RawValue>,
    #[serde(borrow, default)]
    response: Option<Response<'a>>,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
}

pub(super) fn read(data: &[u8], reported: &mut Reported) -> Option<Event> {
    let payload: Payload<'_> = serde_json::from_slice(data).ok()?;
    // Every event of the response as a whole repeats it; only the last has a usage that is not null.
    let usage = payload.response.and_then(|response| response.usage);
    if let Some(usage) = usage {
        reported.take(usage.get(), Shape::Responses);
    }
    Some(Event {
        tokens: payload.delta.map_or(0, |delta| tokens_in(delta.get())),
        is_report: usage.is_some(),
        is_usage_only: false,
    })
}

fn tokens_in(delta: &str) -> u64 {
    let text = serde_json::from_str::<Cow<'_, str>>(delta);
    tokens_of(text.map_or(delta.len(), |text| text.len()))
}
