//! An upstream's own numbers: believed only when they can be true.

use super::Shape;
use serde::Deserialize;
use serde_json::Value;
use sluice_policy::units::Tokens;

/// No call costs more; a larger number is a bug or a lie.
const TOKENS_MAX: u64 = i32::MAX as u64;

/// Tokens as an upstream reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Those from the cache included.
    pub(crate) input: Tokens,
    /// Those of reasoning included.
    pub(crate) output: Tokens,
    pub(crate) cached: Tokens,
    pub(crate) reasoning: Tokens,
}

/// A `usage` object in any dialect. Values, not integers: one wrong number must not hide what it is.
#[derive(Deserialize)]
struct UsageBlock {
    #[serde(default)]
    prompt_tokens: Value,
    #[serde(default)]
    completion_tokens: Value,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
    #[serde(default)]
    completion_tokens_details: Option<Details>,
    #[serde(default)]
    input_tokens: Value,
    #[serde(default)]
    output_tokens: Value,
    #[serde(default)]
    input_tokens_details: Option<Details>,
    #[serde(default)]
    output_tokens_details: Option<Details>,
    #[serde(default)]
    cache_read_input_tokens: Value,
    #[serde(default)]
    cache_creation_input_tokens: Value,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Value,
    #[serde(default)]
    reasoning_tokens: Value,
}

/// What has been reported so far: fields that a later report leaves out keep their value, and nothing is ever added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reported {
    input: Option<u64>,
    output: Option<u64>,
    cached: Option<u64>,
    /// Anthropic's input that was written to the cache, beside `input`.
    created: Option<u64>,
    reasoning: Option<u64>,
    /// A number was negative, fractional or beyond 2³¹ − 1: what else is told is no better.
    is_absurd: bool,
}

impl Reported {
    /// Takes a `usage` object over.
    pub(super) fn take(&mut self, json: &str, shape: Shape) {
        let Ok(block) = serde_json::from_str::<UsageBlock>(json) else { return };
        let cached =
            |details: &Option<Details>| details.as_ref().map_or(Value::Null, |part| part.cached_tokens.clone());
        let thought =
            |details: &Option<Details>| details.as_ref().map_or(Value::Null, |part| part.reasoning_tokens.clone());
        match shape {
            Shape::OpenAi | Shape::Embeddings => {
                self.set(|all| &mut all.input, &block.prompt_tokens);
                self.set(|all| &mut all.output, &block.completion_tokens);
                self.set(|all| &mut all.cached, &cached(&block.prompt_tokens_details));
                self.set(|all| &mut all.reasoning, &thought(&block.completion_tokens_details));
            }
            Shape::Responses => {
                self.set(|all| &mut all.input, &block.input_tokens);
                self.set(|all| &mut all.output, &block.output_tokens);
                self.set(|all| &mut all.cached, &cached(&block.input_tokens_details));
                self.set(|all| &mut all.reasoning, &thought(&block.output_tokens_details));
            }
            Shape::Anthropic => {
                self.set(|all| &mut all.input, &block.input_tokens);
                self.set(|all| &mut all.output, &block.output_tokens);
                self.set(|all| &mut all.cached, &block.cache_read_input_tokens);
                self.set(|all| &mut all.created, &block.cache_creation_input_tokens);
            }
            Shape::Fixed | Shape::Text => {}
        }
    }

    /// The numbers, if they are all there and can all be true.
    pub(super) fn counts(&self, shape: Shape) -> Option<Counts> {
        let output = match shape {
            Shape::Embeddings => self.output.unwrap_or(0),
            _ => self.output?,
        };
        let (cached, reasoning) = (self.cached.unwrap_or(0), self.reasoning.unwrap_or(0));
        // Anthropic counts what came from the cache, or went into it, beside the input and not as a part of it.
        let beside = if shape == Shape::Anthropic { cached + self.created.unwrap_or(0) } else { 0 };
        let input = self.input? + beside;
        let is_sane = !self.is_absurd && cached <= input && reasoning <= output && input <= TOKENS_MAX;
        is_sane.then_some(Counts {
            input: Tokens(input),
            output: Tokens(output),
            cached: Tokens(cached),
            reasoning: Tokens(reasoning),
        })
    }

    pub(super) fn has_output(&self) -> bool {
        self.output.is_some_and(|output| output > 0)
    }

    fn set(&mut self, field: impl Fn(&mut Self) -> &mut Option<u64>, value: &Value) {
        match value.as_u64().filter(|number| *number <= TOKENS_MAX) {
            Some(number) => *field(self) = Some(number),
            None => self.is_absurd |= !value.is_null(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn believe(shape: Shape, reports: &[&str]) -> Option<Counts> {
        let mut reported = Reported::default();
        reports.iter().for_each(|json| reported.take(json, shape));
        reported.counts(shape)
    }

    fn counts(input: u64, output: u64, cached: u64, reasoning: u64) -> Option<Counts> {
        let [input, output, cached, reasoning] = [input, output, cached, reasoning].map(Tokens);
        Some(Counts { input, output, cached, reasoning })
    }

    #[test]
    fn true_numbers_are_believed_in_every_dialect() {
        for (shape, json, expected) in [
            (
                Shape::OpenAi,
                r#"{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":8},
                    "completion_tokens_details":{"reasoning_tokens":3}}"#,
                counts(9, 4, 8, 3),
            ),
            (
                Shape::OpenAi,
                r#"{"prompt_tokens":9,"completion_tokens":0,"prompt_tokens_details":null}"#,
                counts(9, 0, 0, 0),
            ),
            (Shape::Embeddings, r#"{"prompt_tokens":9,"total_tokens":9}"#, counts(9, 0, 0, 0)),
            (
                Shape::Responses,
                r#"{"input_tokens":9,"input_tokens_details":{"cached_tokens":2},"output_tokens":4,
                    "output_tokens_details":{"reasoning_tokens":1},"total_tokens":13}"#,
                counts(9, 4, 2, 1),
            ),
            (
                Shape::Anthropic,
                r#"{"input_tokens":1,"cache_read_input_tokens":31,"cache_creation_input_tokens":5,"output_tokens":4}"#,
                counts(37, 4, 31, 0),
            ),
        ] {
            assert_eq!(believe(shape, &[json]), expected, "{json}");
        }
    }

    #[test]
    fn later_reports_replace_and_never_add() {
        let start = r#"{"input_tokens":1,"cache_read_input_tokens":31,"output_tokens":1}"#;
        let deltas = [start, r#"{"output_tokens":5}"#, r#"{"output_tokens":8}"#];
        assert_eq!(believe(Shape::Anthropic, &deltas), counts(32, 8, 31, 0));
    }

    #[test]
    fn numbers_that_cannot_be_true_are_not() {
        for json in [
            "null",
            "{}",
            "[]",
            r#"{"prompt_tokens":9}"#,
            r#"{"prompt_tokens":-9,"completion_tokens":4}"#,
            r#"{"prompt_tokens":9,"completion_tokens":4.5}"#,
            r#"{"prompt_tokens":9,"completion_tokens":"4"}"#,
            r#"{"prompt_tokens":9,"completion_tokens":2147483648}"#,
            r#"{"prompt_tokens":9,"completion_tokens":99999999999999999999999}"#,
            r#"{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":10}}"#,
            r#"{"prompt_tokens":9,"completion_tokens":4,"completion_tokens_details":{"reasoning_tokens":5}}"#,
        ] {
            assert_eq!(believe(Shape::OpenAi, &[json]), None, "{json}");
        }
        let absurd = r#"{"prompt_tokens":-1,"completion_tokens":4}"#;
        let sane = r#"{"prompt_tokens":9,"completion_tokens":4}"#;
        assert_eq!(believe(Shape::OpenAi, &[absurd, sane]), None);
    }
}
