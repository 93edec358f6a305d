//! What several dialects have in common in a JSON body: the model, flags, numbers and bounds.

use super::edit::{Bound, UNLIMITED};
use super::raw::{self, Field, Fields, Known, Use};
use super::{BodyEdit, Fault, Limits, Rules, UsageRequest};
use sluice_policy::units::{NAME_BYTES_MAX, Tokens};
use std::ops::Range;

/// Token counts travel as 32-bit signed integers in most model servers.
pub(super) const TOKENS_MAX: u64 = i32::MAX as u64;

const OPTIONS: &[Field] = &[("include_usage", Use::Keep)];

/// The model's name, and its place in the body. None where the path names the model and the body does not.
pub(super) fn model(
    body: &[u8],
    fields: &Fields<'_>,
    rules: Rules,
) -> Result<(Option<String>, Option<Range<usize>>), Fault> {
    let fault = || Fault::field("model", format!("is required: a text of 1 to {NAME_BYTES_MAX} bytes"));
    let text = match fields.get("model") {
        Some(text) => text,
        None if rules.path_names_model => return Ok((None, None)),
        None => return Err(fault()),
    };
    let model: String = serde_json::from_str(text).map_err(|_| fault())?;
    let fits = (1..=NAME_BYTES_MAX).contains(&model.len());
    if fits { Ok((Some(model), Some(place(body, text)))) } else { Err(fault()) }
}

pub(super) fn flag(fields: &Fields<'_>, name: &'static str) -> Result<Option<bool>, Fault> {
    match fields.get(name) {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(_) => Err(Fault::field(name, "must be true or false")),
    }
}

pub(super) fn integer(fields: &Fields<'_>, name: &'static str, max: u64) -> Result<Option<u64>, Fault> {
    number(fields, name, 1, max)
}

fn number(fields: &Fields<'_>, name: &'static str, least: u64, max: u64) -> Result<Option<u64>, Fault> {
    let Some(text) = fields.get(name) else { return Ok(None) };
    match text.parse::<u64>() {
        Ok(number) if (least..=max).contains(&number) => Ok(Some(number)),
        _ => Err(Fault::field(name, format!("must be an integer from {least} to {max}"))),
    }
}

/// How often a server that runs tools may ask its model, where the request does not say: OpenAI's own bound on tools.
const TURNS: u32 = 128;

/// How often the server may ask its model for this call: once, and once more for each tool that it runs itself.
pub(super) fn turns(fields: &Fields<'_>, tool_calls_max: Option<u64>) -> u32 {
    if !fields.prompt.has_server_tools() {
        return 1;
    }
    let of_request = tool_calls_max.and_then(|most| u32::try_from(most).ok()).map(|most| most.saturating_add(1));
    of_request.map_or(TURNS, |turns| turns.min(TURNS))
}

/// How many sequences a call yields: what it asks for, times its prompts.
pub(super) fn sequences(fields: &Fields<'_>, prompts: u32, max: u32) -> Result<u32, Fault> {
    multiply(choices(fields, max)?, prompts, max)
}

/// How many sequences a prompt is to yield: `n`, llama.cpp's `n_cmpl`, which it reads before `n`, vLLM's `best_of`, which
/// generates that many and returns `n`, or TensorRT-LLM's two names, where the dialect knows them. As with bounds, the
/// largest counts.
pub(super) fn choices(fields: &Fields<'_>, max: u32) -> Result<Option<u64>, Fault> {
    let mut largest = None;
    for name in ["n", "n_cmpl", "best_of", "beam_width", "num_return_sequences"] {
        largest = largest.max(integer(fields, name, u64::from(max))?);
    }
    Ok(largest)
}

/// `n`, and 0 without it.
pub(super) fn returned(fields: &Fields<'_>, max: u32) -> Result<u32, Fault> {
    let n = integer(fields, "n", u64::from(max))?;
    Ok(n.and_then(|n| u32::try_from(n).ok()).unwrap_or(0))
}

/// The sequences of all prompts together.
pub(super) fn multiply(choices: Option<u64>, prompts: u32, max: u32) -> Result<u32, Fault> {
    let count = choices.unwrap_or(1).saturating_mul(u64::from(prompts.max(1)));
    let fits = u32::try_from(count).ok().filter(|count| *count <= max);
    fits.ok_or_else(|| Fault::field("prompt", format!("and 'n' ask for more than {max} sequences together")))
}

/// Where a body bounds one sequence. `own`: the names that every server of the dialect obeys, the one to put in first.
/// `other`: what some servers read as well, or even before those.
///
/// Servers differ in which of them they obey, so the largest counts: never less is reserved than may be generated. For
/// the same reason a bound of another spelling alone counts as none.
pub(super) fn limits(
    body: &[u8],
    fields: &Fields<'_>,
    own: &[&'static str],
    other: &[&'static str],
) -> Result<Limits, Fault> {
    limits_from(1, body, fields, own, other)
}

/// The same, where the least bound is another one: a prompt that is repeated in the reply needs no output.
pub(super) fn limits_from(
    least: u64,
    body: &[u8],
    fields: &Fields<'_>,
    own: &[&'static str],
    other: &[&'static str],
) -> Result<Limits, Fault> {
    let mut given = Vec::new();
    for (name, is_own) in own.iter().map(|name| (name, true)).chain(other.iter().map(|name| (name, false))) {
        let Some(text) = fields.raw(name) else { continue };
        // llama.cpp's own name, in which -1 is for ever and -2 until the context is full.
        let value = match text {
            "-1" | "-2" if *name == "n_predict" => Some(UNLIMITED),
            _ => number(fields, name, least, TOKENS_MAX)?.map(Tokens),
        };
        given.push(Bound { place: place(body, text), value, is_own });
    }
    Ok(Limits { given, insert: own.first().map(|name| (start(body), *name)) })
}

/// What makes a stream report its usage; `None` when the client asks for that itself.
///
/// Options that do not name it mean yes to vLLM and no to others. There the wish is made plain and the event left in
/// the reply: one client gets an event that it can ignore, where another would miss one that it is used to.
pub(super) fn usage_request(body: &[u8], fields: &Fields<'_>) -> Result<Option<UsageRequest>, Fault> {
    const NAME: &str = "stream_options";
    let hidden = |edit| Ok(Some(UsageRequest { edit, hides_event: true }));
    let Some(options) = fields.raw(NAME) else {
        // A comma is right here: the object holds at least the wish for a stream.
        return hidden(BodyEdit::insert(start(body), r#""stream_options":{"include_usage":true},"#));
    };
    let at = place(body, options);
    if options == "null" {
        return hidden(BodyEdit::replace(at, r#"{"include_usage":true}"#));
    }
    let inner = raw::read(options.as_bytes(), Known::part(OPTIONS))
        .map_err(|fault| Fault::field(NAME, format!("is wrong: {}", fault.message)))?;
    let Some(value) = inner.raw("include_usage") else {
        let is_empty = options.trim_matches(['{', '}', ' ', '\t', '\r', '\n']).is_empty();
        let text = if is_empty { r#""include_usage":true"# } else { r#""include_usage":true,"# };
        return Ok(Some(UsageRequest { edit: BodyEdit::insert(at.start + 1, text), hides_event: false }));
    };
    let asked =
        flag(&inner, "include_usage").map_err(|_| Fault::field(NAME, "must have true or false as include_usage"))?;
    if asked == Some(true) { Ok(None) } else { hidden(BodyEdit::replace(place(body, value), "true")) }
}

/// Right behind the brace that opens the body.
pub(super) fn start(body: &[u8]) -> usize {
    body.iter().position(|byte| *byte == b'{').unwrap_or_default() + 1
}

/// Where a part of the body stands in it.
pub(super) fn place(body: &[u8], part: &str) -> Range<usize> {
    let start = part.as_ptr().addr().saturating_sub(body.as_ptr().addr());
    start..start + part.len()
}
