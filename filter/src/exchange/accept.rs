//! What a request's headers must be before its body is even looked at.

use super::Caller;
use crate::caller;
use crate::config::Config;
use crate::dialect::Dialect;
use crate::headers::{self, Headers};
use crate::path;
use crate::refusal;
use sluice_policy::units::{Millis, Priority};
use sluice_policy::wire::{Reason, Refusal};

/// What a body of unknown length is taken for in headers mode: a prompt of 1,024 tokens.
pub(super) const UNKNOWN_LENGTH_BYTES: u64 = 4096;

type Refused = (Refusal, Dialect);

/// Accepts a request's headers, and returns its `content-length` beside the caller.
pub(super) fn accept(config: &Config, headers: &Headers, is_end: bool) -> Result<(Caller, Option<u64>), Refused> {
    // Before a route is known, errors are written as most of our clients expect them.
    let unrouted = |refusal| (refusal, Dialect::OpenAiChat);
    check_upgrade(headers).map_err(unrouted)?;
    let path = read_path(headers).map_err(unrouted)?;
    let route = config.route(path).ok_or_else(|| {
        unrouted(refusal::own(Reason::PathNotListed, "Unknown request URL: no route lists this path."))
    })?;
    let routed = |refusal| (refusal, route.dialect);
    if headers.text(":method") != Some("POST") {
        let message = "Only POST is allowed here.";
        return Err(routed(refusal::own(Reason::MethodNotAllowed, message)));
    }
    let key = caller::identify(headers, &config.key_headers)
        .map_err(|(reason, message)| routed(refusal::own(reason, message)))?;
    let priority = read_priority(headers).map_err(routed)?;
    let deadline = read_deadline(headers).map_err(routed)?;
    check_encoding(headers).map_err(routed)?;
    let content_length = read_length(headers);
    check_length(content_length.unwrap_or(0), config.body_max_bytes).map_err(routed)?;
    if is_end {
        return Err(routed(refusal::own(Reason::InvalidBody, "The request has no body.")));
    }
    let removals = headers.removals(|name| {
        headers::is_forged_by_client(name)
            || config.key_headers.iter().any(|key_header| key_header == name)
            // Compressed replies could not be metered.
            || name == "accept-encoding"
    });
    let has_length = content_length.is_some();
    Ok((Caller { route: route.clone(), key, priority, deadline, has_length, removals }, content_length))
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

fn read_path(headers: &Headers) -> Result<&str, Refusal> {
    let path = headers.text(":path").ok_or("is not ASCII").and_then(path::normal);
    path.map_err(|problem| refusal::own(Reason::PathNotNormalized, format!("The path of the request {problem}.")))
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

fn check_encoding(headers: &Headers) -> Result<(), Refusal> {
    if headers.spelled("content-encoding").all(|value| value.eq_ignore_ascii_case(b"identity")) {
        return Ok(());
    }
    let message = "Encoded request bodies are not read; send plain JSON without content-encoding.";
    Err(refusal::own(Reason::UnsupportedEncoding, message))
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
