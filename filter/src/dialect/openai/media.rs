//! Pictures and sounds: passed on, and charged by the request.

use crate::dialect::raw::{self, Field, Use};
use crate::dialect::{Call, Fault, Reads, Spec, fields};
use crate::refusal::Style;
use crate::usage::Shape;
use sluice_policy::units::Tokens;

pub(in crate::dialect) const SPEC: Spec = Spec {
    name: "openai_media",
    paths: &["/v1/images/generations", "/v1/audio/speech"],
    method: Some("POST"),
    reads: Reads::Json(parse),
    style: Style::OpenAi,
    reply: Shape::Fixed,
};

/// Forms with files in them. They name their model in a part that is not looked for, so the route names the pool.
pub(in crate::dialect) const UPLOADS: Spec = Spec {
    name: "openai_uploads",
    paths: &["/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits", "/v1/images/variations"],
    method: Some("POST"),
    reads: Reads::Length,
    style: Style::OpenAi,
    reply: Shape::Fixed,
};

const FIELDS: &[Field] = &[("model", Use::Keep), ("n", Use::Keep)];

fn parse(body: &[u8], sequences_max: u32) -> Result<Call, Fault> {
    let found = raw::read_with_model(body, FIELDS)?;
    let (model, place) = fields::model(body, &found)?;
    Ok(Call {
        model: Some(model),
        max_tokens: Some(Tokens::ZERO),
        prompts: 1,
        sequences: fields::sequences(&found, 1, sequences_max)?,
        model_place: Some(place),
        ..Call::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_a_request_of_its_model() {
        let call = parse(br#"{"model":"dall-e","prompt":"a cat","n":2}"#, 16).unwrap();
        assert_eq!((call.model.as_deref(), call.input_tokens, call.sequences), (Some("dall-e"), Tokens::ZERO, 2));
        assert_eq!(parse(br#"{"prompt":"a cat"}"#, 16).unwrap_err().param, Some("model"));
    }
}
