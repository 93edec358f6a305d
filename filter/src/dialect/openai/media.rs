//! Pictures and sounds: passed on, and charged by the request.

use crate::dialect::raw::{self, Field, Known, Use};
use crate::dialect::turn::Turn;
use crate::dialect::{Call, Fault, Reads, Rules, Spec, fields};
use crate::refusal::Style;
use crate::usage::Shape;
use sluice_policy::units::Tokens;

pub(in crate::dialect) const SPEC: Spec = Spec {
    name: "openai_media",
    paths: &["/v1/images/generations", "/v1/audio/speech"],
    method: Some("POST"),
    query: &["api-version"],
    reads: Reads::Json(parse),
    style: Style::OpenAi,
    reply: Shape::Fixed,
};

/// Forms with files in them. They name their model in a part that is not looked for, so the route names the pool.
pub(in crate::dialect) const UPLOADS: Spec = Spec {
    name: "openai_uploads",
    paths: &["/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits", "/v1/images/variations"],
    method: Some("POST"),
    query: &["api-version"],
    reads: Reads::Length,
    style: Style::OpenAi,
    reply: Shape::Fixed,
};

const FIELDS: &[Field] = &[
    ("model", Use::Keep),
    ("n", Use::Keep),
    ("background", Use::Pass),
    ("complexity", Use::Pass),
    ("frame_count", Use::Pass),
    ("frame_duration_ms", Use::Pass),
    ("input", Use::Pass),
    ("instructions", Use::Pass),
    ("moderation", Use::Pass),
    ("output_compression", Use::Pass),
    ("output_format", Use::Pass),
    ("partial_images", Use::Pass),
    ("prompt", Use::Pass),
    ("quality", Use::Pass),
    ("response_format", Use::Pass),
    ("safety_identifier", Use::Pass),
    ("size", Use::Pass),
    ("speed", Use::Pass),
    ("stream", Use::Pass),
    ("stream_format", Use::Pass),
    ("style", Use::Pass),
    ("svg", Use::Pass),
    ("user", Use::Pass),
    ("voice", Use::Pass),
];

fn parse(body: &[u8], rules: Rules) -> Result<Call, Fault> {
    let found = raw::read(body, Known::call(FIELDS, rules.strict_fields))?;
    let (model, place) = fields::model(body, &found, rules)?;
    Ok(Call {
        model,
        max_tokens: Some(Tokens::ZERO),
        prompts: 1,
        sequences: fields::sequences(&found, 1, rules.sequences_max)?,
        model_place: place,
        turn: Turn::read(body, &found)?,
        ..Call::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_a_request_of_its_model() {
        let call = parse(br#"{"model":"dall-e","prompt":"a cat","n":2}"#, Rules::TEST).unwrap();
        assert_eq!((call.model.as_deref(), call.input_tokens, call.sequences), (Some("dall-e"), Tokens::ZERO, 2));
        assert_eq!(parse(br#"{"prompt":"a cat"}"#, Rules::TEST).unwrap_err().param.as_deref(), Some("model"));
    }
}
