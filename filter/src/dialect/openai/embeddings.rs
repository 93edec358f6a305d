//! Embeddings: input only.

use crate::dialect::raw::{self, Field, Known, Use};
use crate::dialect::turn::Turn;
use crate::dialect::{Call, Fault, Limits, Reads, Rules, Spec, fields};
use crate::refusal::Style;
use crate::usage::Shape;
use sluice_policy::units::Tokens;

pub(in crate::dialect) const SPEC: Spec = Spec {
    name: "openai_embeddings",
    paths: &["/v1/embeddings"],
    method: Some("POST"),
    query: &["api-version"],
    reads: Reads::Json(parse),
    style: Style::OpenAi,
    reply: Shape::Embeddings,
};

const FIELDS: &[Field] = &[
    ("model", Use::Keep),
    ("input", Use::Prompt),
    ("dimensions", Use::Pass),
    ("encoding_format", Use::Pass),
    ("user", Use::Pass),
];

fn parse(body: &[u8], rules: Rules) -> Result<Call, Fault> {
    let found = raw::read(body, Known::call(FIELDS, rules.strict_fields))?;
    let (model, place) = fields::model(body, &found, rules)?;
    Ok(Call {
        model,
        stream: false,
        max_tokens: Some(Tokens::ZERO),
        prompts: found.prompt.prompts(),
        sequences: 1,
        n: 0,
        turns: 1,
        echoes: false,
        input_tokens: Tokens(found.prompt.tokens()),
        usage_request: None,
        model_place: place,
        turn: Turn::read(body, &found)?,
        limits: Limits::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_token_ids_are_input_and_nothing_is_output() {
        for (input, prompts, tokens) in
            [(r#""12345678""#, 1, 2), (r#"["1234","5678"]"#, 2, 2), ("[1,2,3]", 1, 3), ("[[1,2],[3]]", 2, 3)]
        {
            let call = parse(format!(r#"{{"model":"m","input":{input}}}"#).as_bytes(), Rules::TEST).unwrap();
            assert_eq!((call.prompts, call.input_tokens), (prompts, Tokens(tokens)), "{input}");
            assert_eq!(call.max_tokens, Some(Tokens::ZERO));
        }
    }
}
