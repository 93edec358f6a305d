//! Anthropic's messages, and the count of their tokens.

use super::raw::{self, Field, Known, Use};
use super::turn::Turn;
use super::{Call, Fault, Reads, Rules, Spec, fields};
use crate::refusal::Style;
use crate::usage::Shape;
use sluice_policy::units::Tokens;

pub(super) const MESSAGES: Spec = Spec {
    name: "anthropic_messages",
    paths: &["/v1/messages"],
    method: Some("POST"),
    query: &["beta"],
    reads: Reads::Json(messages),
    style: Style::Anthropic,
    reply: Shape::Anthropic,
};

/// Charged by the request: the model's tokeniser runs, the model does not.
pub(super) const COUNT_TOKENS: Spec = Spec {
    name: "anthropic_count_tokens",
    paths: &["/v1/messages/count_tokens"],
    method: Some("POST"),
    query: &["beta"],
    reads: Reads::Json(count_tokens),
    style: Style::Anthropic,
    reply: Shape::Fixed,
};

const FIELDS: &[Field] = &[
    ("model", Use::Keep),
    ("messages", Use::Messages),
    ("system", Use::Weigh),
    ("tools", Use::Tools),
    ("stream", Use::Keep),
    ("max_tokens", Use::Keep),
    ("n_predict", Use::Keep),
    ("metadata", Use::Labels),
    ("billing_policy", Use::Pass),
    ("cache_control", Use::Pass),
    ("compaction", Use::Pass),
    ("container", Use::Pass),
    ("context_management", Use::Pass),
    ("diagnostics", Use::Pass),
    ("fallback_credit_token", Use::Pass),
    ("inference_geo", Use::Pass),
    ("mcp_servers", Use::Tools),
    ("output_config", Use::Pass),
    ("output_format", Use::Pass),
    ("service_tier", Use::Pass),
    ("speed", Use::Pass),
    ("stop_sequences", Use::Pass),
    ("temperature", Use::Pass),
    ("thinking", Use::Pass),
    ("thread", Use::Pass),
    ("tool_choice", Use::Pass),
    ("top_k", Use::Pass),
    ("top_p", Use::Pass),
    ("user_profile_id", Use::Pass),
    ("workspace_id", Use::Pass),
];

fn messages(body: &[u8], rules: Rules) -> Result<Call, Fault> {
    let found = raw::read(body, Known::call(FIELDS, rules.strict_fields))?;
    let (model, place) = fields::model(body, &found, rules)?;
    let limits = fields::limits(body, &found, &["max_tokens"], &["n_predict"])?;
    Ok(Call {
        model,
        stream: fields::flag(&found, "stream")?.unwrap_or(false),
        max_tokens: limits.bound(),
        prompts: 1,
        sequences: 1,
        n: 0,
        turns: fields::turns(&found, None),
        echoes: false,
        input_tokens: Tokens(found.prompt.tokens()),
        usage_request: None,
        model_place: place,
        turn: Turn::read(body, &found)?,
        limits,
    })
}

fn count_tokens(body: &[u8], rules: Rules) -> Result<Call, Fault> {
    let found = raw::read(body, Known::call(FIELDS, rules.strict_fields))?;
    let (model, place) = fields::model(body, &found, rules)?;
    Ok(Call { model, max_tokens: Some(Tokens::ZERO), prompts: 1, sequences: 1, model_place: place, ..Call::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"model":"m","max_tokens":9,"stream":true,"system":"12345678",
        "messages":[{"role":"user","content":[{"type":"text","text":"abcd"}]}]}"#;

    #[test]
    fn a_call_is_read() {
        let call = messages(BODY, Rules::TEST).unwrap();
        assert_eq!((call.model.as_deref(), call.stream, call.max_tokens), (Some("m"), true, Some(Tokens(9))));
        // "12345678", "user", "text" and "abcd" are 20 bytes: 5 tokens, and 4 for the message.
        assert_eq!((call.input_tokens, call.usage_request), (Tokens(9), None));
        assert_eq!(BODY.get(call.model_place.unwrap()), Some(&br#""m""#[..]));
    }

    #[test]
    fn counting_costs_no_tokens() {
        let call = count_tokens(BODY, Rules::TEST).unwrap();
        assert_eq!((call.input_tokens, call.max_tokens), (Tokens::ZERO, Some(Tokens::ZERO)));
    }

    #[test]
    fn a_field_that_matters_may_not_stand_twice() {
        let twice = br#"{"model":"m","max_tokens":1,"max_tokens":2}"#;
        assert_eq!(messages(twice, Rules::TEST).unwrap_err().param.as_deref(), Some("max_tokens"));
    }
}
