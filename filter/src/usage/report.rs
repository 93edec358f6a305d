//! An upstream's own numbers: believed only when they can be true.

use serde::Deserialize;
use serde_json::Value;
use sluice_policy::units::Tokens;

/// No call costs more; a larger number is a bug or a lie.
const TOKENS_MAX: u64 = i32::MAX as u64;

/// Tokens as an upstream reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) input: Tokens,
    pub(crate) output: Tokens,
    pub(crate) cached: Tokens,
}

/// OpenAI's `usage`. Values, not integers: one wrong number must not hide what it is.
#[derive(Deserialize)]
struct UsageBlock {
    #[serde(default)]
    prompt_tokens: Value,
    #[serde(default)]
    completion_tokens: Value,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Value,
}

/// Reads a `usage` object. `None`: there is none, or a number in it is negative, fractional, beyond 2³¹ − 1, or
/// more was cached than read.
pub(super) fn believe(json: &str) -> Option<Counts> {
    let block: UsageBlock = serde_json::from_str(json).ok()?;
    let counts = Counts {
        input: count(&block.prompt_tokens)?,
        output: count(&block.completion_tokens)?,
        cached: match block.prompt_tokens_details.map(|details| details.cached_tokens) {
            None | Some(Value::Null) => Tokens::ZERO,
            Some(value) => count(&value)?,
        },
    };
    (counts.cached <= counts.input).then_some(counts)
}

fn count(value: &Value) -> Option<Tokens> {
    value.as_u64().filter(|number| *number <= TOKENS_MAX).map(Tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn true_numbers_are_believed() {
        let counts = believe(
            r#"{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":8}}"#,
        );
        assert_eq!(counts, Some(Counts { input: Tokens(9), output: Tokens(4), cached: Tokens(8) }));
        let plain = believe(r#"{"prompt_tokens":9,"completion_tokens":0,"prompt_tokens_details":null}"#);
        assert_eq!(plain.map(|counts| counts.cached), Some(Tokens::ZERO));
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
        ] {
            assert_eq!(believe(json), None, "{json}");
        }
    }
}
