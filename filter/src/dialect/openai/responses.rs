//! Responses: streams always end with an event that bears the usage, so nothing has to be asked for.

use crate::dialect::raw::{self, Field, Known, Use};
use crate::dialect::turn::Turn;
use crate::dialect::{Call, Fault, Reads, Rules, Spec, fields};
use crate::refusal::Style;
use crate::usage::Shape;
use sluice_policy::units::Tokens;

pub(in crate::dialect) const SPEC: Spec = Spec {
    name: "openai_responses",
    paths: &["/v1/responses"],
    method: Some("POST"),
    query: &["api-version"],
    reads: Reads::Json(parse),
    style: Style::OpenAi,
    reply: Shape::Responses,
};

const FIELDS: &[Field] = &[
    ("model", Use::Keep),
    ("input", Use::Messages),
    ("instructions", Use::Weigh),
    ("tools", Use::Tools),
    ("stream", Use::Keep),
    ("background", Use::Keep),
    ("max_output_tokens", Use::Keep),
    ("max_completion_tokens", Use::Keep),
    ("max_tokens", Use::Keep),
    ("n_predict", Use::Keep),
    ("n", Use::Keep),
    ("n_cmpl", Use::Keep),
    ("metadata", Use::Labels),
    ("access_programs", Use::Pass),
    ("context_management", Use::Pass),
    ("conversation", Use::Pass),
    ("include", Use::Pass),
    ("max_tool_calls", Use::Keep),
    ("moderation", Use::Pass),
    ("parallel_tool_calls", Use::Pass),
    ("previous_response_id", Use::Pass),
    ("prompt", Use::Pass),
    ("prompt_cache_key", Use::Pass),
    ("prompt_cache_options", Use::Pass),
    ("prompt_cache_retention", Use::Pass),
    ("reasoning", Use::Pass),
    ("safety_identifier", Use::Pass),
    ("service_tier", Use::Pass),
    ("store", Use::Pass),
    ("stream_options", Use::Pass),
    ("temperature", Use::Pass),
    ("text", Use::Pass),
    ("tool_choice", Use::Pass),
    ("top_logprobs", Use::Pass),
    ("top_p", Use::Pass),
    ("truncation", Use::Pass),
    ("user", Use::Pass),
];

/// llama.cpp makes a call of chat of it and keeps what it does not know.
const OTHER_BOUNDS: &[&str] = &["max_completion_tokens", "max_tokens", "n_predict"];

fn parse(body: &[u8], rules: Rules) -> Result<Call, Fault> {
    let found = raw::read(body, Known::call(FIELDS, rules.strict_fields))?;
    if fields::flag(&found, "background")? == Some(true) {
        // The reply would come at once and its tokens later, where nobody counts them and no slot is held.
        return Err(Fault::field("background", "must be false: work that outlives its call cannot be metered"));
    }
    let (model, place) = fields::model(body, &found, rules)?;
    let limits = fields::limits(body, &found, &["max_output_tokens"], OTHER_BOUNDS)?;
    Ok(Call {
        model,
        stream: fields::flag(&found, "stream")?.unwrap_or(false),
        max_tokens: limits.bound(),
        prompts: 1,
        // The dialect has one; llama.cpp yields as many as chat would.
        sequences: fields::sequences(&found, 1, rules.sequences_max)?,
        n: 0,
        turns: fields::turns(&found, found.get("max_tool_calls").and_then(|text| text.parse().ok())),
        echoes: false,
        input_tokens: Tokens(found.prompt.tokens()),
        usage_request: None,
        model_place: place,
        turn: Turn::read(body, &found)?,
        limits,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_and_a_list_are_input() {
        let call = |input: &str| parse(format!(r#"{{"model":"m","input":{input}}}"#).as_bytes(), Rules::TEST).unwrap();
        assert_eq!(call(r#""12345678""#).input_tokens, Tokens(2));
        assert_eq!(call(r#"[{"content":"12345678"}]"#).input_tokens, Tokens(6));
    }

    #[test]
    fn bounds_of_chat_are_lowered_with_its_own_and_are_none_by_themselves() {
        let call =
            |bounds: &str| parse(format!(r#"{{"model":"m","input":"x",{bounds}}}"#).as_bytes(), Rules::TEST).unwrap();
        let both = call(r#""max_output_tokens":1,"max_completion_tokens":100000,"max_tokens":99"#);
        assert_eq!((both.max_tokens, both.limits.clamp(Tokens(7)).len()), (Some(Tokens(100_000)), 2));
        let alone = call(r#""max_tokens":1"#);
        assert_eq!((alone.max_tokens, alone.limits.clamp(Tokens(7)).len()), (None, 1));
    }

    #[test]
    fn sequences_that_llama_cpp_would_yield_are_counted() {
        assert_eq!(parse(br#"{"model":"m","input":"x","n":3,"n_cmpl":4}"#, Rules::TEST).unwrap().sequences, 4);
        assert_eq!(
            parse(br#"{"model":"m","input":"x","n_cmpl":17}"#, Rules::TEST).unwrap_err().param.as_deref(),
            Some("n_cmpl")
        );
    }

    #[test]
    fn work_in_the_background_is_refused() {
        let fault = parse(br#"{"model":"m","input":"x","background":true}"#, Rules::TEST).unwrap_err();
        assert_eq!(fault.param.as_deref(), Some("background"));
        assert!(parse(br#"{"model":"m","input":"x","background":false}"#, Rules::TEST).is_ok());
    }
}
