//! KServe v2 over HTTP, as Triton speaks it. The path names the model.
//!
//! Tensors are not tokens: `infer` is charged by the request and its body, which may be binary, is not read. The text
//! of `generate` is estimated, because Triton reports no usage.

use super::raw::{self, Field, Fields, Known, Use};
use super::servers::Harm;
use super::{Call, Fault, Limits, Reads, Rules, Spec, fields};
use crate::refusal::Style;
use crate::usage::Shape;
use sluice_policy::units::Tokens;

pub(super) const INFER: Spec = Spec {
    name: "kserve_infer",
    paths: &["/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"],
    method: Some("POST"),
    query: &[],
    reads: Reads::Length,
    style: Style::KServe,
    reply: Shape::Fixed,
};

pub(super) const GENERATE: Spec = Spec {
    name: "kserve_generate",
    paths: &["/v2/models/{model}/generate", "/v2/models/{model}/versions/{version}/generate"],
    method: Some("POST"),
    query: &[],
    reads: Reads::Json(generate),
    style: Style::KServe,
    reply: Shape::Text,
};

pub(super) const GENERATE_STREAM: Spec = Spec {
    name: "kserve_generate_stream",
    paths: &["/v2/models/{model}/generate_stream", "/v2/models/{model}/versions/{version}/generate_stream"],
    method: Some("POST"),
    query: &[],
    reads: Reads::Json(generate_stream),
    style: Style::KServe,
    reply: Shape::Text,
};

/// Inputs are whatever the model calls them; these are the names of vLLM's and TensorRT-LLM's backends.
const FIELDS: &[Field] = &[
    ("text_input", Use::Prompt),
    ("prompt", Use::Prompt),
    ("max_tokens", Use::Keep),
    ("n", Use::Keep),
    ("best_of", Use::Keep),
    ("beam_width", Use::Keep),
    ("num_return_sequences", Use::Keep),
    ("parameters", Use::Keep),
    ADAPTERS,
    (SAMPLING, Use::Keep),
    ("bad_words", Use::Pass),
    ("end_id", Use::Pass),
    ("exclude_input_in_output", Use::Pass),
    ("frequency_penalty", Use::Pass),
    ("id", Use::Pass),
    ("image", Use::Pass),
    ("length_penalty", Use::Pass),
    ("min_length", Use::Pass),
    ("pad_id", Use::Pass),
    ("presence_penalty", Use::Pass),
    ("random_seed", Use::Pass),
    ("repetition_penalty", Use::Pass),
    ("return_context_logits", Use::Pass),
    ("return_finish_reason", Use::Pass),
    ("return_generation_logits", Use::Pass),
    ("return_log_probs", Use::Pass),
    ("return_num_input_tokens", Use::Pass),
    ("return_num_output_tokens", Use::Pass),
    ("stop", Use::Pass),
    ("stop_words", Use::Pass),
    ("stream", Use::Pass),
    ("temperature", Use::Pass),
    ("top_k", Use::Pass),
    ("top_p", Use::Pass),
];
/// What stands among the parameters is read as if it stood beside them, inputs too.
const PARAMETERS: &[Field] = &[
    ("max_tokens", Use::Keep),
    ("n", Use::Keep),
    ("best_of", Use::Keep),
    ("beam_width", Use::Keep),
    ("num_return_sequences", Use::Keep),
    ADAPTERS,
    (SAMPLING, Use::Keep),
    ("text_input", Use::Keep),
    ("prompt", Use::Keep),
];
/// An input of vLLM's backend: a text, the JSON of parameters that take the place of all others.
const SAMPLING: &str = "sampling_parameters";
const COUNTED: &[Field] = &[("max_tokens", Use::Keep), ("n", Use::Keep), ("best_of", Use::Keep), ADAPTERS];
/// `lora_name` of vLLM's backend; `lora_task_id`, `lora_weights` and `lora_config` of TensorRT-LLM's.
const ADAPTERS: Field = ("lora_*", Use::Refuse(Harm::Model));

fn generate(body: &[u8], rules: Rules) -> Result<Call, Fault> {
    read(body, rules, false)
}

fn generate_stream(body: &[u8], rules: Rules) -> Result<Call, Fault> {
    read(body, rules, true)
}

fn read(body: &[u8], rules: Rules, stream: bool) -> Result<Call, Fault> {
    let found = raw::read(body, Known::inputs(FIELDS, rules.strict_fields))?;
    let mut limits = fields::limits(body, &found, &["max_tokens"], &[])?;
    let mut choices = fields::choices(&found, rules.sequences_max)?;
    check_sampling(&found)?;
    if let Some(parameters) = found.get("parameters") {
        let inner = read_inner("parameters", parameters, PARAMETERS)?;
        limits.given.extend(fields::limits(body, &inner, &["max_tokens"], &[])?.given);
        choices = choices.max(fields::choices(&inner, rules.sequences_max)?);
        check_sampling(&inner)?;
        if let Some(name) = ["text_input", "prompt"].into_iter().find(|name| inner.get(name).is_some()) {
            return Err(Fault::field(name, "must stand beside the 'parameters' and not among them"));
        }
    }
    Ok(Call {
        stream,
        max_tokens: limits.bound(),
        prompts: found.prompt.prompts(),
        sequences: fields::multiply(choices, found.prompt.prompts(), rules.sequences_max)?,
        turns: 1,
        // Triton's backends put the prompt in front of the text unless they are told not to.
        echoes: true,
        input_tokens: Tokens(found.prompt.tokens()),
        // A model without an input of that name would refuse the call, so a bound is lowered and never put in.
        limits: Limits { insert: None, ..limits },
        ..Call::default()
    })
}

/// The fields of an object within the body, or in a text of it.
fn read_inner<'de>(name: &'static str, json: &'de str, known: &'static [Field]) -> Result<Fields<'de>, Fault> {
    raw::read(json.as_bytes(), Known::part(known))
        .map_err(|fault| Fault::field(name, format!("is wrong: {}", fault.message)))
}

/// Refuses what is counted or bounded where it cannot be lowered: in a text.
fn check_sampling(fields: &Fields<'_>) -> Result<(), Fault> {
    let Some(json) = fields.get(SAMPLING) else { return Ok(()) };
    let text: String =
        serde_json::from_str(json).map_err(|_| Fault::field(SAMPLING, "must be the text of a JSON object"))?;
    let inner = read_inner(SAMPLING, &text, COUNTED)?;
    match COUNTED.iter().find(|(name, _)| inner.raw(name).is_some()) {
        Some((name, _)) => {
            Err(Fault::field(SAMPLING, format!("must not name '{name}'; give all of them as 'parameters' instead")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_found_beside_the_text_and_among_the_parameters() {
        let call = |body: &str| generate(body.as_bytes(), Rules::TEST).unwrap();
        let both = call(r#"{"text_input":"12345678","max_tokens":5,"parameters":{"max_tokens":9,"stream":false}}"#);
        assert_eq!((both.max_tokens, both.input_tokens, both.model), (Some(Tokens(9)), Tokens(2), None));
        assert_eq!(both.limits.clamp(Tokens(3)).len(), 2);
        assert!(call(r#"{"text_input":"x"}"#).limits.clamp(Tokens(3)).is_empty());
        assert!(generate_stream(br#"{"text_input":"x"}"#, Rules::TEST).unwrap().stream);
        assert_eq!(
            generate(br#"{"parameters":{"max_tokens":-1}}"#, Rules::TEST).unwrap_err().param.as_deref(),
            Some("max_tokens")
        );
        assert_eq!(generate(br#"{"parameters":7}"#, Rules::TEST).unwrap_err().param.as_deref(), Some("parameters"));
    }

    #[test]
    fn sequences_are_found_beside_the_text_and_among_the_parameters() {
        let sequences = |body: &str| generate(body.as_bytes(), Rules::TEST).map(|call| call.sequences);
        assert_eq!(sequences(r#"{"text_input":"x","n":3,"parameters":{"best_of":5,"n":2}}"#), Ok(5));
        assert_eq!(sequences(r#"{"text_input":["x","y"],"parameters":{"n":8}}"#), Ok(16));
        for (body, param) in [
            (r#"{"text_input":"x","n":17}"#, "n"),
            (r#"{"text_input":"x","parameters":{"best_of":17}}"#, "best_of"),
            (r#"{"text_input":"x","parameters":{"n":"17"}}"#, "n"),
            (r#"{"text_input":["x","y"],"parameters":{"n":9}}"#, "prompt"),
            (r#"{"text_input":"x","beam_width":17}"#, "beam_width"),
            (r#"{"text_input":"x","parameters":{"num_return_sequences":17}}"#, "num_return_sequences"),
            (r#"{"text_input":"x","lora_task_id":0}"#, "lora_*"),
            (r#"{"text_input":"x","parameters":{"lora_name":"other"}}"#, "parameters"),
            (r#"{"parameters":{"text_input":["x","y"]}}"#, "text_input"),
        ] {
            assert_eq!(sequences(body).unwrap_err().param.as_deref(), Some(param), "{body}");
        }
    }

    #[test]
    fn parameters_in_a_text_may_not_name_what_is_counted() {
        let fault = |sampling: &str| {
            let bodies = [
                format!(r#"{{"text_input":"x","sampling_parameters":{sampling}}}"#),
                format!(r#"{{"text_input":"x","parameters":{{"sampling_parameters":{sampling}}}}}"#),
            ];
            let [beside, among] = bodies.map(|body| generate(body.as_bytes(), Rules::TEST).err());
            assert_eq!(beside, among, "{sampling}");
            beside
        };
        for sampling in [
            r#""{\"max_tokens\":5}""#,
            r#""{\"max_tokens\":null}""#,
            r#""{\"temperature\":0, \"n\":2}""#,
            r#""{\"best_of\":\"2\"}""#,
            r#""{\"\\u006e\":2}""#,
            r#""{\"N\":2}""#,
            r#""{\"lora_name\":\"other\"}""#,
            r#""[]""#,
            r#""""#,
            r#"["{}"]"#,
            r#"{"n":1}"#,
        ] {
            assert_eq!(fault(sampling).unwrap().param.as_deref(), Some("sampling_parameters"), "{sampling}");
        }
        assert_eq!(fault(r#""{\"temperature\":0}""#), None);
        assert_eq!(fault("null"), None);
    }
}
