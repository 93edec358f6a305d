//! The events of a stream, in each dialect.

mod anthropic;
mod openai;
mod responses;
mod text;

use super::reports::Reports;
use super::work;
use super::written::Written;
use super::{Sequences, Shape};
use memchr::memchr2;
use serde::Deserialize;
use std::borrow::Cow;

/// What one event tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) written: Written,
    /// The choice that is all it bears.
    pub(super) choice: Option<u32>,
    /// It bears a usage, and what it reports covers everything of its choice, or of all, up to and with this event.
    pub(super) is_report: bool,
    /// It bears nothing but a usage.
    pub(super) is_usage_only: bool,
    /// It says that the server has failed.
    pub(super) is_error: bool,
    /// Nothing follows it that a client waits for.
    pub(super) is_last: bool,
}

/// With this OpenAI's streams end, and whatever borrows from them.
const DONE: &[u8] = b"[DONE]";

/// Reads an event, and takes over what it reports. `None`: it bears no data that can be read, like a
/// comment.
pub(super) fn read(event: &[u8], shape: Shape, reports: &mut Reports) -> Option<Event> {
    // To find its data and to read it.
    work::on(event.len() * 2);
    let data = data_of(event)?;
    if data.trim_ascii() == DONE {
        return Some(Event { is_last: true, ..Event::default() });
    }
    match shape {
        Shape::OpenAi | Shape::Embeddings => openai::read(&data, reports),
        Shape::Responses => responses::read(&data, reports),
        Shape::Anthropic => anthropic::read(&data, reports),
        Shape::Text => text::read(&data),
        Shape::Fixed => None,
    }
}

/// Whether an event bears a usage and nothing else.
pub(super) fn bears_only_usage(event: &[u8], shape: Shape) -> bool {
    read(event, shape, &mut Reports::of(Sequences::ONE)).is_some_and(|event| event.is_usage_only)
}

/// Reads data that are text as such: of bytes, serde_json checks each name and each string by itself, which takes longer
/// than to check all of them once.
fn from_json<'de, T: Deserialize<'de>>(data: &'de [u8]) -> serde_json::Result<T> {
    std::str::from_utf8(data).map_or_else(|_| serde_json::from_slice(data), serde_json::from_str)
}

/// The data lines of an event, joined as the specification says.
fn data_of(event: &[u8]) -> Option<Cow<'_, [u8]>> {
    // Between the two halves of a CRLF stands an empty line, which bears no data.
    let mut lines = lines(event).filter_map(|line| {
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

/// What stands between the ends of lines; CR, LF and the place between them are one end each.
fn lines(event: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(event);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let Some((line, tail)) = memchr2(b'\n', b'\r', text).and_then(|end| text.split_at_checked(end)) else {
            return Some(text);
        };
        rest = tail.get(1..);
        Some(line)
    })
}
