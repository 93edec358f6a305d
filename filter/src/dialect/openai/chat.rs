//! Chat completions.

use crate::dialect::raw::{self, Field, Use};
use crate::dialect::{Call, Fault, Reads, Spec, fields};
use crate::refusal::Style;
use crate::usage::Shape;
use sluice_policy::units::Tokens;

pub(in crate::dialect) const SPEC: Spec = Spec {
    name: "openai_chat",
    paths: &["/v1/chat/completions"],
    method: Some("POST"),
    reads: Reads::Json(parse),
    style: Style::OpenAi,
    reply: Shape::OpenAi,
};

const FIELDS: &[Field] = &[
    ("model", Use::Keep),
    ("messages", Use::Weigh),
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
];

fn parse(body: &[u8], sequences_max: u32) -> Result<Call, Fault> {
    let found = raw::read_with_model(body, FIELDS)?;
    let stream = fields::flag(&found, "stream")?.unwrap_or(false);
    let wants_usage = fields::usage_request(body, &found)?;
    let (model, place) = fields::model(body, &found)?;
    let limits = fields::limits(body, &found, &["max_tokens", "max_completion_tokens"], &["n_predict"])?;
    Ok(Call {
        model: Some(model),
        stream,
        max_tokens: limits.bound(),
        prompts: 1,
        sequences: fields::sequences(&found, 1, sequences_max)?,
        n: 0,
        input_tokens: Tokens(found.prompt.tokens()),
        usage_request: wants_usage.filter(|_| stream),
        model_place: Some(place),
        limits,
    })
}

#[cfg(test)]
mod tests;
