//! OpenAI's chat completions, as OpenAI, vLLM, llama.cpp and LiteLLM speak it.

use super::raw::{self, Field, Fields, Use};
use super::{BodyEdit, Call, Fault};
use serde::Serialize;
use sluice_policy::units::Tokens;
use sluice_policy::wire::{Reason, Refusal};

const MODEL_BYTES_MAX: usize = 256;
/// Token counts travel as 32-bit signed integers in most model servers.
const TOKENS_MAX: u64 = i32::MAX as u64;

const FIELDS: &[Field] = &[
    ("model", Use::Keep),
    ("messages", Use::Weigh),
    ("tools", Use::Weigh),
    ("functions", Use::Weigh),
    ("stream", Use::Keep),
    ("stream_options", Use::Keep),
    ("max_tokens", Use::Keep),
    ("max_completion_tokens", Use::Keep),
    ("n", Use::Keep),
    ("best_of", Use::Keep),
];
const OPTIONS: &[Field] = &[("include_usage", Use::Keep)];

pub(super) fn parse(body: &[u8], sequences_max: u32) -> Result<Call, Fault> {
    let fields = raw::read(body, FIELDS)?;
    let stream = flag(&fields, "stream")?.unwrap_or(false);
    let wants_usage = includes_usage(body, &fields)?;
    Ok(Call {
        model: model(&fields)?,
        stream,
        max_tokens: max_tokens(&fields)?,
        sequences: sequences(&fields, sequences_max)?,
        input_tokens: Tokens(fields.prompt.tokens()),
        usage_request: wants_usage.filter(|_| stream),
    })
}

fn model(fields: &Fields<'_>) -> Result<String, Fault> {
    let fault = || {
        let problem = format!("is required: a text of 1 to {MODEL_BYTES_MAX} bytes");
        Fault::field("model", problem)
    };
    let text = fields.get("model").ok_or_else(fault)?;
    let model: String = serde_json::from_str(text).map_err(|_| fault())?;
    let fits = (1..=MODEL_BYTES_MAX).contains(&model.len());
    if fits { Ok(model) } else { Err(fault()) }
}

/// The bound for one sequence. With both spellings present servers differ in which they obey, so the larger is
/// reserved: never less than what may be generated.
fn max_tokens(fields: &Fields<'_>) -> Result<Option<Tokens>, Fault> {
    let older = integer(fields, "max_tokens", TOKENS_MAX)?;
    let newer = integer(fields, "max_completion_tokens", TOKENS_MAX)?;
    Ok(older.max(newer).map(Tokens))
}

/// `best_of` is vLLM's: it generates that many and returns `n`.
fn sequences(fields: &Fields<'_>, max: u32) -> Result<u32, Fault> {
    let returned = integer(fields, "n", u64::from(max))?;
    let generated = integer(fields, "best_of", u64::from(max))?;
    Ok(returned.max(generated).map_or(1, |count| u32::try_from(count).unwrap_or(max)))
}

fn integer(fields: &Fields<'_>, name: &'static str, max: u64) -> Result<Option<u64>, Fault> {
    let Some(text) = fields.get(name) else { return Ok(None) };
    match text.parse::<u64>() {
        Ok(number) if (1..=max).contains(&number) => Ok(Some(number)),
        _ => Err(Fault::field(name, format!("must be an integer from 1 to {max}"))),
    }
}

fn flag(fields: &Fields<'_>, name: &'static str) -> Result<Option<bool>, Fault> {
    match fields.get(name) {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(_) => Err(Fault::field(name, "must be true or false")),
    }
}

/// The edit that makes a stream report its usage; `None` when the client asks for that itself.
fn includes_usage(body: &[u8], fields: &Fields<'_>) -> Result<Option<BodyEdit>, Fault> {
    const NAME: &str = "stream_options";
    let Some(options) = fields.raw(NAME) else {
        let start = body.iter().position(|byte| *byte == b'{').unwrap_or_default() + 1;
        // A comma is right here: the object holds at least the model.
        let text = r#""stream_options":{"include_usage":true},"#;
        return Ok(Some(BodyEdit { range: start..start, text }));
    };
    let at = offset(body, options);
    if options == "null" {
        return Ok(Some(BodyEdit { range: at..at + options.len(), text: r#"{"include_usage":true}"# }));
    }
    let inner = raw::read(options.as_bytes(), OPTIONS)
        .map_err(|fault| Fault::field(NAME, format!("is wrong: {}", fault.message)))?;
    let Some(value) = inner.raw("include_usage") else {
        let is_empty = options.trim_matches(['{', '}', ' ', '\t', '\r', '\n']).is_empty();
        let text = if is_empty { r#""include_usage":true"# } else { r#""include_usage":true,"# };
        return Ok(Some(BodyEdit { range: at + 1..at + 1, text }));
    };
    let asked =
        flag(&inner, "include_usage").map_err(|_| Fault::field(NAME, "must have true or false as include_usage"))?;
    let start = offset(body, value);
    Ok((asked != Some(true)).then(|| BodyEdit { range: start..start + value.len(), text: "true" }))
}

/// Where a part of the body begins in it.
fn offset(body: &[u8], part: &str) -> usize {
    part.as_ptr().addr().saturating_sub(body.as_ptr().addr())
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorDetail<'a>,
}

#[derive(Serialize)]
struct ErrorDetail<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

pub(super) fn error_body(refusal: &Refusal) -> Vec<u8> {
    let (kind, code) = kind_and_code(refusal.reason);
    let param = refusal.param.as_deref();
    let error = ErrorDetail { message: &refusal.message, kind, param, code };
    serde_json::to_vec(&ErrorBody { error }).unwrap_or_default()
}

/// OpenAI's own words where it has them, else our reason as the code.
fn kind_and_code(reason: Reason) -> (&'static str, &'static str) {
    match reason {
        Reason::TenantConcurrency | Reason::TenantRequestsPerSecond | Reason::TenantRequestsPerMinute => {
            ("requests", "rate_limit_exceeded")
        }
        Reason::TenantTokensPerMinute => ("tokens", "rate_limit_exceeded"),
        Reason::UnknownKey | Reason::MissingKey | Reason::ConflictingKeys | Reason::MalformedKey => {
            ("invalid_request_error", "invalid_api_key")
        }
        Reason::TenantDisabled | Reason::ModelNotAllowed => ("permission_error", reason.as_str()),
        Reason::PathNotListed => ("invalid_request_error", "unknown_url"),
        Reason::QueueFull
        | Reason::QueueTimeout
        | Reason::DeadlineUnreachable
        | Reason::LedgerUnavailable
        | Reason::ShuttingDown
        | Reason::DuplicateAdmission
        | Reason::ServiceUnavailable => ("server_error", reason.as_str()),
        Reason::ModelNotFound
        | Reason::ContextLengthExceeded
        | Reason::InvalidPriority
        | Reason::InvalidDeadline
        | Reason::PathNotNormalized
        | Reason::MethodNotAllowed
        | Reason::UpgradeNotAllowed
        | Reason::InvalidBody
        | Reason::UnsupportedEncoding
        | Reason::BodyTooLarge
        | Reason::RequestTimeout => ("invalid_request_error", reason.as_str()),
    }
}

#[cfg(test)]
mod tests;
