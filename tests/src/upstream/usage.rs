//! The token counts in a reply, as the upstream wrote them.

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

    /// The value of a `usage` field in whichever dialect it is written.
    #[must_use]
    pub fn from_any(field: &Value) -> Option<Self> {
        let count = |name: &str| field[name].as_u64();
        if let Some(input) = count("input_tokens") {
            // Anthropic's cache stands beside the input, the responses API's is a part of it.
            let read = count("cache_read_input_tokens");
            let beside = read.unwrap_or(0) + count("cache_creation_input_tokens").unwrap_or(0);
            let within = field["input_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
            return Some(Self {
                input: input + beside,
                output: count("output_tokens")?,
                cached: read.unwrap_or(within),
            });
        }
        Self::from_openai(field)
    }

    /// Finds the counts in a whole reply: a JSON document, or the events of a stream.
    #[must_use]
    pub fn in_reply(body: &[u8]) -> Option<Self> {
        if let Ok(document) = serde_json::from_slice::<Value>(body) {
            return Self::from_any(&document["usage"]);
        }
        let text = String::from_utf8_lossy(body);
        let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
        data.filter_map(|data| serde_json::from_str::<Value>(data).ok()).fold(None, Self::after)
    }

    /// What is known after one more event: Anthropic tells the input first and the output last, the others tell all at
    /// once, and what comes later holds.
    fn after(known: Option<Self>, event: Value) -> Option<Self> {
        match event["type"].as_str() {
            Some("message_start") => Self::from_any(&event["message"]["usage"]),
            // LiteLLM tells the input only here, the others not again.
            Some("message_delta") => Self::from_any(&event["usage"]).or_else(|| {
                let output = event["usage"]["output_tokens"].as_u64()?;
                Some(Self { output, ..known? })
            }),
            Some(_) => Self::from_any(&event["response"]["usage"]).or(known),
            None => Self::from_openai(&event["usage"]).or(known),
        }
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
    fn usage_is_found_in_every_dialect() {
        let expected = Some(Usage { input: 7, output: 3, cached: 2 });
        for body in [
            r#"{"usage":{"input_tokens":7,"output_tokens":3,"input_tokens_details":{"cached_tokens":2}}}"#,
            r#"{"usage":{"input_tokens":5,"output_tokens":3,"cache_read_input_tokens":2}}"#,
            "data: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\n\
             data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":7,\"output_tokens\":3,\
             \"input_tokens_details\":{\"cached_tokens\":2}}}}\n\n",
            "data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":5,\"output_tokens\":1,\
             \"cache_read_input_tokens\":2}}}\n\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":3}}\n\n",
        ] {
            assert_eq!(Usage::in_reply(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn usage_is_found_in_the_last_event_that_bears_it() {
        let body = "data: {\"usage\":null}\n\ndata: {\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}\n\n\
                    data: [DONE]\n\n";
        assert_eq!(Usage::in_reply(body.as_bytes()), Some(Usage { input: 7, output: 3, cached: 0 }));
    }
}
