//! An upstream's own numbers: believed only when they can be true.

use super::Shape;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
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

/// A `usage` object in any dialect, under every name that servers are known to use. Values, not integers: one wrong number
/// must not hide the others.
#[derive(Deserialize)]
struct UsageBlock<'a> {
    #[serde(default)]
    prompt_tokens: Value,
    #[serde(default)]
    completion_tokens: Value,
    #[serde(default)]
    input_tokens: Value,
    #[serde(default)]
    output_tokens: Value,
    #[serde(default)]
    total_tokens: Value,
    #[serde(borrow, default)]
    prompt_tokens_details: Option<&'a RawValue>,
    #[serde(borrow, default)]
    completion_tokens_details: Option<&'a RawValue>,
    #[serde(borrow, default)]
    input_tokens_details: Option<&'a RawValue>,
    #[serde(borrow, default)]
    output_tokens_details: Option<&'a RawValue>,
    /// Anthropic's, beside the input; LiteLLM copies it next to OpenAI's fields, and there it is a part of the input.
    #[serde(default)]
    cache_read_input_tokens: Value,
    #[serde(default)]
    cache_creation_input_tokens: Value,
    /// Moonshot's and SGLang's place for it.
    #[serde(default)]
    cached_tokens: Value,
    /// DeepSeek's name for it.
    #[serde(default)]
    prompt_cache_hit_tokens: Value,
    /// SGLang's place for it.
    #[serde(default)]
    reasoning_tokens: Value,
}

#[derive(Default, Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Value,
    #[serde(default)]
    reasoning_tokens: Value,
}

/// What has been reported so far. A part that a later report leaves out, or gives as zero, keeps its value, and nothing is
/// ever added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reported {
    input: Option<u64>,
    output: Option<u64>,
    total: Option<u64>,
    cached: Option<u64>,
    /// Anthropic's input that was written to the cache, beside `input`.
    created: Option<u64>,
    reasoning: Option<u64>,
}

impl Reported {
    /// Takes a `usage` object over. Returns whether it reports any output.
    pub(super) fn take(&mut self, json: &str, shape: Shape) -> bool {
        let Some(report) = Reported::read(json, shape) else { return false };
        let later = |old: Option<u64>, new: Option<u64>| new.filter(|number| *number > 0).or(old).or(new);
        *self = Reported {
            input: later(self.input, report.input),
            output: later(self.output, report.output),
            total: later(self.total, report.total),
            cached: later(self.cached, report.cached),
            created: later(self.created, report.created),
            reasoning: later(self.reasoning, report.reasoning),
        };
        report.counts(shape).is_some_and(|counts| counts.output > Tokens::ZERO)
    }

    fn read(json: &str, shape: Shape) -> Option<Self> {
        let block: UsageBlock<'_> = serde_json::from_str(json).ok()?;
        let details = |given: Option<&RawValue>| -> Details {
            // A list of the right values would do for the reader too.
            let object = given.map(RawValue::get).filter(|text| text.starts_with('{'));
            object.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
        };
        let is_anthropic = match shape {
            Shape::Fixed | Shape::Text => return None,
            Shape::Anthropic => true,
            Shape::OpenAi | Shape::Embeddings | Shape::Responses => false,
        };
        let of_input = details(block.prompt_tokens_details.or(block.input_tokens_details));
        let of_output = details(block.completion_tokens_details.or(block.output_tokens_details));
        let cached = if is_anthropic {
            number(&block.cache_read_input_tokens)
        } else {
            first([
                &of_input.cached_tokens,
                &block.cached_tokens,
                &block.prompt_cache_hit_tokens,
                &block.cache_read_input_tokens,
            ])
        };
        let total = if is_anthropic { None } else { number(&block.total_tokens) };
        Some(Reported {
            input: first([&block.prompt_tokens, &block.input_tokens]),
            output: first([&block.completion_tokens, &block.output_tokens]),
            total,
            cached,
            created: number(&block.cache_creation_input_tokens).filter(|_| is_anthropic),
            reasoning: first([&of_output.reasoning_tokens, &block.reasoning_tokens]),
        })
    }

    /// The numbers; `None` if neither input nor output is among them. What was not reported is zero, and the caller knows
    /// whether zero can be true.
    pub(super) fn counts(&self, shape: Shape) -> Option<Counts> {
        let (input, output) = self.totals(shape);
        if input.is_none() && output.is_none() {
            return None;
        }
        let (cached, reasoning) = (self.cached.unwrap_or(0), self.reasoning.unwrap_or(0));
        // Anthropic counts what came from the cache, or went into it, beside the input and not as a part of it.
        let beside = if shape == Shape::Anthropic { cached + self.created.unwrap_or(0) } else { 0 };
        let input = Some(input.unwrap_or(0) + beside).filter(|input| *input <= TOKENS_MAX).unwrap_or(0);
        let output = output.unwrap_or(0);
        Some(Counts {
            input: Tokens(input),
            output: Tokens(output),
            cached: Tokens(cached.min(input)),
            reasoning: Tokens(reasoning.min(output)),
        })
    }

    /// Input and output. The sum of both stands in for one that is absent or zero, and tells whether reasoning was counted
    /// beside the output instead of within it.
    fn totals(&self, shape: Shape) -> (Option<u64>, Option<u64>) {
        let some = |number: Option<u64>| number.filter(|number| *number > 0);
        let rest = |part: Option<u64>| some(self.total?.checked_sub(part?));
        if shape == Shape::Embeddings {
            return (some(self.input).or(self.total).or(self.input), None);
        }
        let input = some(self.input).or_else(|| rest(some(self.output))).or(self.input);
        let output = some(self.output).or_else(|| rest(some(self.input))).or(self.output);
        let beside = self.reasoning.filter(|reasoning| {
            let told = [self.input, self.output].map(|part| part.unwrap_or(0));
            self.output.is_some() && self.total == Some(told.iter().sum::<u64>() + reasoning)
        });
        (input, self.output.zip(beside).map(|(output, beside)| output + beside).or(output))
    }

    pub(super) fn has_output(&self) -> bool {
        self.output.is_some_and(|output| output > 0)
    }
}

/// The first that is a number.
fn first<const COUNT: usize>(values: [&Value; COUNT]) -> Option<u64> {
    values.into_iter().find_map(number)
}

/// A whole number that can be tokens, also where it is written with a point.
fn number(value: &Value) -> Option<u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "it is within"
    )]
    let whole =
        |number: f64| ((0.0..=TOKENS_MAX as f64).contains(&number) && number.fract() == 0.0).then_some(number as u64);
    let number = value.as_u64().or_else(|| value.as_f64().and_then(whole));
    number.filter(|number| *number <= TOKENS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn believe(shape: Shape, reports: &[&str]) -> Option<Counts> {
        let mut reported = Reported::default();
        for json in reports {
            reported.take(json, shape);
        }
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
    fn a_later_part_that_is_zero_or_absent_erases_nothing() {
        let start = r#"{"input_tokens":25,"cache_read_input_tokens":1000,"output_tokens":1}"#;
        for later in [
            r#"{"output_tokens":5}"#,
            r#"{"input_tokens":0,"output_tokens":5}"#,
            r#"{"input_tokens":0,"cache_read_input_tokens":0,"output_tokens":5}"#,
            r#"{"input_tokens":null,"cache_read_input_tokens":-1,"output_tokens":5}"#,
        ] {
            assert_eq!(believe(Shape::Anthropic, &[start, later]), counts(1025, 5, 1000, 0), "{later}");
        }
        let zero = r#"{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}"#;
        let sane = r#"{"prompt_tokens":9,"completion_tokens":4}"#;
        assert_eq!(believe(Shape::OpenAi, &[sane, zero]), counts(9, 4, 0, 0));
        assert_eq!(believe(Shape::OpenAi, &[zero, sane]), counts(9, 4, 0, 0));
    }

    #[test]
    fn a_total_that_cannot_be_true_is_none_and_the_other_one_stays() {
        for json in ["null", "{}", "[]", r#"{"prompt_tokens":"9"}"#, r#"{"total_tokens":9}"#] {
            assert_eq!(believe(Shape::OpenAi, &[json]), None, "{json}");
        }
        for (json, expected) in [
            (r#"{"prompt_tokens":9}"#, counts(9, 0, 0, 0)),
            (r#"{"prompt_tokens":-9,"completion_tokens":4}"#, counts(0, 4, 0, 0)),
            (r#"{"prompt_tokens":9,"completion_tokens":4.5}"#, counts(9, 0, 0, 0)),
            (r#"{"prompt_tokens":9,"completion_tokens":"4"}"#, counts(9, 0, 0, 0)),
            (r#"{"prompt_tokens":9,"completion_tokens":2147483648}"#, counts(9, 0, 0, 0)),
            (r#"{"prompt_tokens":9,"completion_tokens":99999999999999999999999}"#, counts(9, 0, 0, 0)),
            (r#"{"prompt_tokens":9.0,"completion_tokens":4.0}"#, counts(9, 4, 0, 0)),
            (r#"{"prompt_tokens":9,"total_tokens":13}"#, counts(9, 4, 0, 0)),
            (r#"{"completion_tokens":4,"total_tokens":13}"#, counts(9, 4, 0, 0)),
            (r#"{"input_tokens":9,"output_tokens":4}"#, counts(9, 4, 0, 0)),
        ] {
            assert_eq!(believe(Shape::OpenAi, &[json]), expected, "{json}");
        }
        assert_eq!(believe(Shape::Embeddings, &[r#"{"total_tokens":9}"#]), counts(9, 0, 0, 0));
    }

    #[test]
    fn a_detail_is_clamped_or_ignored_and_the_totals_stay() {
        for (details, expected) in [
            (r#""prompt_tokens_details":{"cached_tokens":10}"#, counts(9, 4, 9, 0)),
            (r#""prompt_tokens_details":{"cached_tokens":-1}"#, counts(9, 4, 0, 0)),
            (r#""prompt_tokens_details":7"#, counts(9, 4, 0, 0)),
            (r#""prompt_tokens_details":[]"#, counts(9, 4, 0, 0)),
            (r#""completion_tokens_details":{"reasoning_tokens":5}"#, counts(9, 4, 0, 4)),
            (r#""completion_tokens_details":{"reasoning_tokens":"3"}"#, counts(9, 4, 0, 0)),
            (r#""total_tokens":18,"completion_tokens_details":{"reasoning_tokens":5}"#, counts(9, 9, 0, 5)),
            (r#""total_tokens":15,"completion_tokens_details":{"reasoning_tokens":2}"#, counts(9, 6, 0, 2)),
            (r#""total_tokens":13,"completion_tokens_details":{"reasoning_tokens":2}"#, counts(9, 4, 0, 2)),
            (r#""total_tokens":99"#, counts(9, 4, 0, 0)),
            (r#""cached_tokens":8"#, counts(9, 4, 8, 0)),
            (r#""reasoning_tokens":3"#, counts(9, 4, 0, 3)),
            (r#""prompt_cache_hit_tokens":8,"prompt_cache_miss_tokens":1"#, counts(9, 4, 8, 0)),
            (r#""cache_read_input_tokens":8"#, counts(9, 4, 8, 0)),
        ] {
            let json = format!(r#"{{"prompt_tokens":9,"completion_tokens":4,{details}}}"#);
            assert_eq!(believe(Shape::OpenAi, &[&json]), expected, "{json}");
        }
    }
}
