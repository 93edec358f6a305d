//! Completions of bare prompts, one or a list of them.

use crate::dialect::raw::{self, Field, Known, Use};
use crate::dialect::turn::Turn;
use crate::dialect::{Call, Fault, Reads, Rules, Spec, fields};
use crate::refusal::Style;
use crate::usage::Shape;
use sluice_policy::units::Tokens;

pub(in crate::dialect) const SPEC: Spec = Spec {
    name: "openai_completions",
    paths: &["/v1/completions"],
    method: Some("POST"),
    query: &["api-version"],
    reads: Reads::Json(parse),
    style: Style::OpenAi,
    reply: Shape::OpenAi,
};

const FIELDS: &[Field] = &[
    ("model", Use::Keep),
    ("prompt", Use::Prompt),
    ("suffix", Use::Weigh),
    ("stream", Use::Keep),
    ("stream_options", Use::Keep),
    ("max_tokens", Use::Keep),
    ("max_completion_tokens", Use::Keep),
    ("n_predict", Use::Keep),
    ("n", Use::Keep),
    ("n_cmpl", Use::Keep),
    ("best_of", Use::Keep),
    ("echo", Use::Keep),
    ("frequency_penalty", Use::Pass),
    ("logit_bias", Use::Pass),
    ("logprobs", Use::Pass),
    ("presence_penalty", Use::Pass),
    ("seed", Use::Pass),
    ("stop", Use::Pass),
    ("temperature", Use::Pass),
    ("top_p", Use::Pass),
    ("user", Use::Pass),
];

fn parse(body: &[u8], rules: Rules) -> Result<Call, Fault> {
    let found = raw::read(body, Known::call(FIELDS, rules.strict_fields))?;
    let stream = fields::flag(&found, "stream")?.unwrap_or(false);
    let wants_usage = fields::usage_request(body, &found)?;
    let (model, place) = fields::model(body, &found, rules)?;
    let echoes = fields::flag(&found, "echo")?.unwrap_or(false);
    let (least, others) = (u64::from(!echoes), ["max_completion_tokens", "n_predict"]);
    let limits = fields::limits_from(least, body, &found, &["max_tokens"], &others)?;
    Ok(Call {
        model,
        stream,
        max_tokens: limits.bound(),
        prompts: found.prompt.prompts(),
        sequences: fields::sequences(&found, found.prompt.prompts(), rules.sequences_max)?,
        n: fields::returned(&found, rules.sequences_max)?,
        turns: 1,
        echoes,
        input_tokens: Tokens(found.prompt.tokens()),
        usage_request: wants_usage.filter(|_| stream),
        model_place: place,
        turn: Turn::read(body, &found)?,
        limits,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(body: &str) -> Call {
        parse(body.as_bytes(), Rules::TEST).unwrap()
    }

    #[test]
    fn every_prompt_of_a_list_is_a_sequence_and_a_list_of_ids_is_one_prompt() {
        for (prompt, sequences, input) in [
            (r#""12345678""#, 1, 2),
            (r#"["1234","5678"]"#, 2, 2),
            ("[1,2,3]", 1, 3),
            ("[[1,2],[3]]", 2, 3),
            ("[[1],[2]]", 2, 2),
            ("[]", 1, 0),
        ] {
            let call = call(&format!(r#"{{"model":"m","prompt":{prompt}}}"#));
            assert_eq!((call.sequences, call.input_tokens), (sequences, Tokens(input)), "{prompt}");
        }
        assert_eq!(call(r#"{"model":"m","prompt":["a","b"],"n":2,"best_of":3}"#).sequences, 6);
        assert_eq!(call(r#"{"model":"m","prompt":["a","b"],"n":2,"n_cmpl":5}"#).sequences, 10);
        let too_many = parse(br#"{"model":"m","prompt":["a","b","c"],"n":6}"#, Rules::TEST).unwrap_err();
        assert_eq!(too_many.param.as_deref(), Some("prompt"));
    }

    #[test]
    fn a_stream_is_asked_for_its_usage_and_llama_cpps_own_bound_counts() {
        let call = call(r#"{"model":"m","prompt":"x","stream":true,"max_tokens":5,"n_predict":9}"#);
        assert!(call.usage_request.is_some());
        assert_eq!(call.max_tokens, Some(Tokens(9)));
        let endless = parse(br#"{"model":"m","prompt":"x","max_tokens":5,"n_predict":-1}"#, Rules::TEST).unwrap();
        assert_eq!(endless.max_tokens, None);
        assert_eq!(endless.limits.clamp(Tokens(7)).len(), 1);
    }

    #[test]
    fn a_prompt_that_is_repeated_needs_no_output() {
        let body = |echo: &str| format!(r#"{{"model":"m","prompt":"x","max_tokens":0{echo}}}"#);
        assert_eq!(call(&body(r#","echo":true"#)).max_tokens, Some(Tokens(0)));
        for echo in ["", r#","echo":false"#, r#","echo":null"#] {
            let fault = parse(body(echo).as_bytes(), Rules::TEST).unwrap_err();
            assert_eq!(fault.param.as_deref(), Some("max_tokens"), "{echo}");
        }
    }

    #[test]
    fn a_bound_that_llama_cpp_reads_first_counts_as_well() {
        let call = call(r#"{"model":"m","prompt":"x","max_tokens":1,"max_completion_tokens":100000}"#);
        assert_eq!((call.max_tokens, call.limits.clamp(Tokens(7)).len()), (Some(Tokens(100_000)), 1));
    }
}
