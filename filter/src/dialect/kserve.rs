//! KServe v2 over HTTP, as Triton speaks it. The path names the model.
//!
//! Tensors are not tokens: `infer` is charged by the request and its body, which may be binary, is not read. The text
//! of `generate` is estimated, because Triton reports no usage.

use super::raw::{self, Field, Use};
use super::{Call, Fault, Limits, Reads, Spec, fields};
use crate::refusal::Style;
use crate::usage::Shape;
use sluice_policy::units::Tokens;

pub(super) const INFER: Spec = Spec {
    name: "kserve_infer",
    paths: &["/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"],
    method: Some("POST"),
    reads: Reads::Length,
    style: Style::KServe,
    reply: Shape::Fixed,
};

pub(super) const GENERATE: Spec = Spec {
    name: "kserve_generate",
    paths: &["/v2/models/{model}/generate", "/v2/models/{model}/versions/{version}/generate"],
    method: Some("POST"),
    reads: Reads::Json(generate),
    style: Style::KServe,
    reply: Shape::Text,
};

pub(super) const GENERATE_STREAM: Spec = Spec {
    name: "kserve_generate_stream",
    paths: &["/v2/models/{model}/generate_stream", "/v2/models/{model}/versions/{version}/generate_stream"],
    method: Some("POST"),
    reads: Reads::Json(generate_stream),
    style: Style::KServe,
    reply: Shape::Text,
};

/// Inputs are whatever the model calls them; these are the names of vLLM's and TensorRT-LLM's backends.
const FIELDS: &[Field] =
    &[("text_input", Use::Prompt), ("prompt", Use::Prompt), ("max_tokens", Use::Keep), ("parameters", Use::Keep)];
const PARAMETERS: &[Field] = &[("max_tokens", Use::Keep)];

fn generate(body: &[u8], sequences_max: u32) -> Result<Call, Fault> {
    read(body, sequences_max, false)
}

fn generate_stream(body: &[u8], sequences_max: u32) -> Result<Call, Fault> {
    read(body, sequences_max, true)
}

fn read(body: &[u8], sequences_max: u32, stream: bool) -> Result<Call, Fault> {
    let found = raw::read(body, FIELDS)?;
    let mut limits = fields::limits(body, &found, &["max_tokens"], &[])?;
    if let Some(parameters) = found.get("parameters") {
        let wrong = |fault: Fault| Fault::field("parameters", format!("is wrong: {}", fault.message));
        let inner = raw::read(parameters.as_bytes(), PARAMETERS).map_err(wrong)?;
        limits.given.extend(fields::limits(body, &inner, &["max_tokens"], &[])?.given);
    }
    Ok(Call {
        stream,
        max_tokens: limits.bound(),
        prompts: found.prompt.prompts(),
        sequences: fields::sequences(&found, found.prompt.prompts(), sequences_max)?,
        input_tokens: Tokens(found.prompt.tokens()),
        // A model without an input of that name would refuse the call, so a bound is lowered and never put in.
        limits: Limits { insert: None, ..limits },
        ..Call::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_found_beside_the_text_and_among_the_parameters() {
        let call = |body: &str| generate(body.as_bytes(), 16).unwrap();
        let both = call(r#"{"text_input":"12345678","max_tokens":5,"parameters":{"max_tokens":9,"stream":false}}"#);
        assert_eq!((both.max_tokens, both.input_tokens, both.model), (Some(Tokens(9)), Tokens(2), None));
        assert_eq!(both.limits.clamp(Tokens(3)).len(), 2);
        assert!(call(r#"{"text_input":"x"}"#).limits.clamp(Tokens(3)).is_empty());
        assert!(generate_stream(br#"{"text_input":"x"}"#, 16).unwrap().stream);
        assert_eq!(generate(br#"{"parameters":{"max_tokens":-1}}"#, 16).unwrap_err().param, Some("max_tokens"));
        assert_eq!(generate(br#"{"parameters":7}"#, 16).unwrap_err().param, Some("parameters"));
    }
}
