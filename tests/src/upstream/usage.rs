//! The token counts in an OpenAI reply, as the upstream wrote them.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::iter::Sum;
use std::ops::Add;

/// `cached` is a part of `input`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Usage {
    pub input: u64,
    pub output: u64,
    pub cached: u64,
}

impl Usage {
    #[must_use]
    pub fn total(self) -> u64 {
        self.input + self.output
    }

    /// The value of a reply's `usage` field.
    #[must_use]
    pub fn from_openai(field: &Value) -> Option<Self> {
        Some(Self {
            input: field["prompt_tokens"].as_u64()?,
            output: field["completion_tokens"].as_u64()?,
            cached: field["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0),
        })
    }

    #[must_use]
    pub fn to_openai(self) -> Value {
        json!({
            "prompt_tokens": self.input,
            "completion_tokens": self.output,
            "total_tokens": self.total(),
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }

    /// Finds the counts in a whole reply: a JSON document, or the last event of a stream that bears any.
    #[must_use]
    pub fn in_reply(body: &[u8]) -> Option<Self> {
        if let Ok(document) = serde_json::from_slice::<Value>(body) {
            return Self::from_openai(&document["usage"]);
        }
        let text = String::from_utf8_lossy(body);
        text.lines()
            .rev()
            .filter_map(|line| line.strip_prefix("data:"))
            .filter_map(|data| serde_json::from_str::<Value>(data).ok())
            .find_map(|event| Self::from_openai(&event["usage"]))
    }
}

impl Add for Usage {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { input: self.input + other.input, output: self.output + other.output, cached: self.cached + other.cached }
    }
}

impl Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Self::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_found_in_a_document() {
        let body = json!({"usage": Usage { input: 7, output: 3, cached: 2 }.to_openai()}).to_string();
        assert_eq!(Usage::in_reply(body.as_bytes()), Some(Usage { input: 7, output: 3, cached: 2 }));
    }

    #[test]
    fn usage_is_found_in_the_last_event_that_bears_it() {
        let body = "data: {\"usage\":null}\n\ndata: {\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}\n\n\
                    data: [DONE]\n\n";
        assert_eq!(Usage::in_reply(body.as_bytes()), Some(Usage { input: 7, output: 3, cached: 0 }));
    }
}
