//! Chat completions.

use crate::dialect::raw::{self, Field, Known, Use};
use crate::dialect::turn::Turn;
use crate::dialect::{Call, Fault, Reads, Rules, Spec, fields};
use crate::refusal::Style;
use crate::usage::Shape;
use sluice_policy::units::Tokens;

pub(in crate::dialect) const SPEC: Spec = Spec {
    name: "openai_chat",
    paths: &["/v1/chat/completions"],
    method: Some("POST"),
    query: &["api-version"],
    reads: Reads::Json(parse),
    style: Style::OpenAi,
    reply: Shape::OpenAi,
};

const FIELDS: &[Field] = &[
    ("model", Use::Keep),
    ("messages", Use::Messages),
    ("tools", Use::Weigh),
    ("functions", Use::Weigh),
    ("stream", Use::Keep),
    ("stream_options", Use::Keep),
    ("max_tokens", Use::Keep),
    ("max_completion_tokens", Use::Keep),
    ("n_predict", Use::Keep),
    ("n", Use::Keep),
    ("n_cmpl", Use::Keep),
    ("best_of", Use::Keep),
    ("metadata", Use::Labels),
    ("audio", Use::Pass),
    ("frequency_penalty", Use::Pass),
    ("function_call", Use::Pass),
    ("logit_bias", Use::Pass),
    ("logprobs", Use::Pass),
    ("modalities", Use::Pass),
    ("moderation", Use::Pass),
    ("parallel_tool_calls", Use::Pass),
    ("prediction", Use::Pass),
    ("presence_penalty", Use::Pass),
    ("prompt_cache_key", Use::Pass),
    ("prompt_cache_options", Use::Pass),
    ("prompt_cache_retention", Use::Pass),
    ("reasoning_effort", Use::Pass),
    ("response_format", Use::Pass),
    ("safety_identifier", Use::Pass),
    ("seed", Use::Pass),
    ("service_tier", Use::Pass),
    ("stop", Use::Pass),
    ("store", Use::Pass),
    ("temperature", Use::Pass),
    ("tool_choice", Use::Pass),
    ("top_logprobs", Use::Pass),
    ("top_p", Use::Pass),
    ("user", Use::Pass),
    ("verbosity", Use::Pass),
    ("web_search_options", Use::Pass),
];

fn parse(body: &[u8], rules: Rules) -> Result<Call, Fault> {
    let found = raw::read(body, Known::call(FIELDS, rules.strict_fields))?;
    let stream = fields::flag(&found, "stream")?.unwrap_or(false);
    let wants_usage = fields::usage_request(body, &found)?;
    let (model, place) = fields::model(body, &found, rules)?;
    let limits = fields::limits(body, &found, &["max_tokens", "max_completion_tokens"], &["n_predict"])?;
    Ok(Call {
        model,
        stream,
        max_tokens: limits.bound(),
        prompts: 1,
        sequences: fields::sequences(&found, 1, rules.sequences_max)?,
        n: 0,
        turns: 1,
        echoes: false,
        input_tokens: Tokens(found.prompt.tokens()),
        usage_request: wants_usage.filter(|_| stream),
        model_place: place,
        turn: Turn::read(body, &found)?,
        limits,
    })
}

#[cfg(test)]
mod tests;
