//! Events of KServe's `generate_stream`: text, and nobody counts it but we.

use super::{Event, from_json};
use crate::usage::written::{TextBytes, Written};
use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow, default)]
    text_output: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

pub(super) fn read(data: &[u8]) -> Option<Event> {
    let payload: Payload<'_> = from_json(data).ok()?;
    let bytes = payload.text_output.map_or(0, |output| {
        let text = serde_json::from_str::<TextBytes>(output.get());
        text.map_or(output.get().len(), |TextBytes(bytes)| bytes)
    });
    Some(Event { written: Written::piece(bytes), is_error: payload.error.is_some(), ..Event::default() })
}
