//! What a request's headers must be before its body is even looked at.

use super::{Caller, PathModel};
use crate::caller;
use crate::config::{Config, Found};
use crate::dialect::{self, Reads};
use crate::headers::{self, Headers};
use crate::path;
use crate::refusal::{self, Style, style};
use crate::route::{Pattern, Route};
use crate::usage::Shape;
use sluice_policy::units::{Millis, NAME_BYTES_MAX, Priority};
use sluice_policy::wire::{Reason, Refusal};
use std::borrow::Cow;
use std::rc::Rc;

/// What a body of unknown length is taken for in headers mode: a prompt of 1,024 tokens.
pub(super) const UNKNOWN_LENGTH_BYTES: u64 = 4096;

const JSON: &str = "application/json";
/// What may stand behind it, as clients write it.
const UTF8: [&str; 4] = ["charset=utf-8", "charset=\"utf-8\"", "charset=utf8", ""];

/// A refusal, in whose words, and which method would have been allowed.
pub(super) struct Refused {
    pub(super) refusal: Refusal,
    pub(super) style: Style,
    pub(super) allow: Option<String>,
}

/// Accepts a request's headers, and returns its `content-length` beside the caller.
pub(super) fn accept(config: &Config, headers: &Headers, is_end: bool) -> Result<(Caller, Option<u64>), Box<Refused>> {
    let (content_type, is_anthropic) = (headers.text("content-type"), headers.first("anthropic-version").is_some());
    // Before a route is known, errors are written as the stranger most probably expects them.
    let raw_path = headers.text(":path").unwrap_or_default();
    let stranger = Style::of_stranger(raw_path, content_type, is_anthropic);
    let unrouted = |refusal| Box::new(Refused { refusal, style: stranger, allow: None });
    check_upgrade(headers).map_err(unrouted)?;
    let path = read_path(config, headers).map_err(unrouted)?;
    let Found { route, pattern, model } = config.route(&path).ok_or_else(|| {
        unrouted(refusal::own(Reason::PathNotListed, "Unknown request URL: no route lists this path."))
    })?;
    let style = match route.dialect.reads() {
        _ if style::is_grpc(content_type) => Style::Grpc,
        Reads::Models if is_anthropic => Style::Anthropic,
        _ => route.dialect.style(),
    };
    let routed = |refusal| Box::new(Refused { refusal, style, allow: None });
    check_method(headers, route, style)?;
    let key = caller::identify(headers, &config.key_headers)
        .map_err(|(reason, message)| routed(refusal::own(reason, message)))?;
    let priority = read_priority(headers).map_err(routed)?;
    let deadline = read_deadline(headers).map_err(routed)?;
    check_encoding(headers, route.dialect.reads()).map_err(routed)?;
    let content_length = read_length(headers);
    check_length(content_length.unwrap_or(0), config.body_max_bytes).map_err(routed)?;
    if is_end && matches!(route.dialect.reads(), Reads::Json(_) | Reads::Messages { .. }) {
        return Err(routed(refusal::own(Reason::InvalidBody, "The request has no body.")));
    }
    let outgoing = route.outgoing(raw_path);
    let model = match (model, route.dialect.reads()) {
        // Nothing goes upstream, so its name may be escaped.
        (Some(model), Reads::Models) => Some(path::unescaped(model).map_or(Cow::Borrowed(model), Cow::Owned)),
        (model, _) => model.map(Cow::Borrowed),
    };
    let path_model =
        model.map(|model| read_path_model(pattern, &outgoing, &model, route)).transpose().map_err(routed)?;
    let path = outgoing;
    let path = Some(path).filter(|path| path != raw_path);
    let is_metered = route.dialect.reply() != Shape::Fixed;
    let removals = headers.removals(|name| {
        headers::is_forged_by_client(name)
            || dialect::steers(name)
            || config.key_headers.iter().any(|key_header| key_header == name)
            // Compressed replies could not be metered.
            || (is_metered && name == "accept-encoding")
    });
    let has_length = content_length.is_some();
    let route = Rc::clone(route);
    // A body is what it was read as, whatever its server would make of another word or none.
    let says_json = !matches!(route.dialect.reads(), Reads::Json(_)) || content_type == Some(JSON);
    let caller = Caller { route, style, path_model, path, key, priority, deadline, has_length, says_json, removals };
    Ok((caller, content_length))
}

fn check_method(headers: &Headers, route: &Route, style: Style) -> Result<(), Box<Refused>> {
    match &route.method {
        Some(method) if headers.text(":method") != Some(method) => {
            let refusal = refusal::own(Reason::MethodNotAllowed, format!("Only {method} is allowed here."));
            Err(Box::new(Refused { refusal, style, allow: Some(method.clone()) }))
        }
        Some(_) | None => Ok(()),
    }
}

fn read_path_model(pattern: &Pattern, path_and_query: &str, model: &str, route: &Route) -> Result<PathModel, Refusal> {
    if model.len() > NAME_BYTES_MAX {
        let message = format!("No model has a name of more than {NAME_BYTES_MAX} bytes.");
        return Err(refusal::own(Reason::ModelNotFound, message));
    }
    if model.contains('%') && !matches!(route.dialect.reads(), Reads::Models) {
        let message = "The model in the path must be written without percent signs.";
        return Err(refusal::own(Reason::PathNotNormalized, message));
    }
    Ok(PathModel { pattern: pattern.clone(), path: path_and_query.to_owned(), model: model.to_owned() })
}

/// An upgraded stream is no longer requests and replies, so nothing of it could be limited or metered.
fn check_upgrade(headers: &Headers) -> Result<(), Refusal> {
    let is_upgrade = headers.spelled("upgrade").next().is_some()
        || headers.first(":protocol").is_some()
        || headers.text(":method") == Some("CONNECT");
    if is_upgrade {
        return Err(refusal::own(Reason::UpgradeNotAllowed, "Upgrades and tunnels are not allowed."));
    }
    Ok(())
}

/// The path, in its one reading. The name of a model that is asked about may have escaped slashes, as clients write it;
/// everywhere else they are refused.
fn read_path<'a>(config: &Config, headers: &'a Headers) -> Result<Cow<'a, str>, Refusal> {
    let raw_path = headers.text(":path").ok_or("is not ASCII");
    raw_path.and_then(|raw_path| path::normal(raw_path).map(Cow::Borrowed)).or_else(|problem| {
        let plain = raw_path.ok().and_then(path::with_plain_slashes);
        let asks_about = |path: &String| {
            let found = config.route(path).map(|found| found.pattern);
            found.is_some_and(|pattern| pattern.takes_rest() && raw_path.is_ok_and(|raw_path| pattern.begins(raw_path)))
        };
        plain
            .filter(asks_about)
            .map(Cow::Owned)
            .ok_or_else(|| refusal::own(Reason::PathNotNormalized, format!("The path of the request {problem}.")))
    })
}

fn read_priority(headers: &Headers) -> Result<Option<Priority>, Refusal> {
    let mut values = headers.spelled(headers::PRIORITY);
    let Some(value) = values.next() else { return Ok(None) };
    let priority = std::str::from_utf8(value).ok().and_then(Priority::parse);
    match priority {
        Some(priority) if values.next().is_none() => Ok(Some(priority)),
        _ => {
            let message = "x-priority must be one digit, 0 (first) to 9 (last), and be sent once.";
            Err(refusal::own(Reason::InvalidPriority, message))
        }
    }
}

fn read_deadline(headers: &Headers) -> Result<Option<Millis>, Refusal> {
    let mut values = headers.spelled(headers::DEADLINE);
    let Some(value) = values.next() else { return Ok(None) };
    let deadline = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|digit| digit.is_ascii_digit()));
    match deadline.and_then(|text| text.parse().ok()) {
        Some(deadline) if values.next().is_none() => Ok(Some(Millis(deadline))),
        _ => {
            let message = "x-sluice-deadline-ms must be a number of milliseconds, and be sent once.";
            Err(refusal::own(Reason::InvalidDeadline, message))
        }
    }
}

/// What is looked into must be plain, and be said to be what it is read as; what passes unread may be packed as its
/// server likes it.
fn check_encoding(headers: &Headers, reads: Reads) -> Result<(), Refusal> {
    let is_plain = || headers.spelled("content-encoding").all(|value| value.eq_ignore_ascii_case(b"identity"));
    let message = match reads {
        Reads::Length | Reads::Models => return Ok(()),
        Reads::Json(_) if is_plain() && is_json(headers) => return Ok(()),
        Reads::Json(_) if is_plain() => "The body must be JSON: content-type application/json, once, in UTF-8.",
        Reads::Json(_) => "Encoded request bodies are not read; send plain JSON without content-encoding.",
        Reads::Messages { .. } if is_plain() && style::is_grpc(headers.text("content-type")) => return Ok(()),
        Reads::Messages { .. } => "Only plain gRPC is spoken here: content-type application/grpc.",
    };
    Err(refusal::own(Reason::UnsupportedEncoding, message))
}

/// Whether the content type is JSON's, or none: servers differ in what they make of none, so ours is set then. Of other
/// types some read other fields than we do, LiteLLM those of a form.
fn is_json(headers: &Headers) -> bool {
    let mut values = headers.spelled("content-type");
    let Some(value) = values.next() else { return true };
    let is_one = values.next().is_none() && headers.first("content-type").is_some();
    let mut parts = std::str::from_utf8(value).unwrap_or_default().split(';').map(str::trim);
    let is_json = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case(JSON));
    let is_utf8 = |part: &str| UTF8.iter().any(|charset| part.eq_ignore_ascii_case(charset));
    is_one && is_json && parts.all(is_utf8)
}

fn read_length(headers: &Headers) -> Option<u64> {
    headers.text("content-length").and_then(|text| text.parse().ok())
}

/// Checks the bytes of a body, come or announced, against the configured bound.
pub(super) fn check_length(bytes: u64, max_bytes: u64) -> Result<(), Refusal> {
    if bytes <= max_bytes {
        return Ok(());
    }
    let message = format!("The request body is larger than {max_bytes} bytes.");
    Err(refusal::own(Reason::BodyTooLarge, message))
}
