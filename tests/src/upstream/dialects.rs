//! How a model server writes its replies, in each dialect that counts tokens. The path of a call says which it is.

use super::usage::Usage;
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// On every path that is no other's.
    Chat,
    Completions,
    Responses,
    Messages,
    /// KServe's `generate` and `generate_stream`.
    Generate,
}

impl Dialect {
    pub(super) fn of(path: &str) -> Self {
        match path.rsplit('/').next() {
            Some("responses") => Dialect::Responses,
            Some("messages") => Dialect::Messages,
            Some("generate" | "generate_stream") => Dialect::Generate,
            Some("completions") if !path.ends_with("/chat/completions") => Dialect::Completions,
            _ => Dialect::Chat,
        }
    }

    /// Whether this call's reply is a stream.
    pub(super) fn streams(self, path: &str, call: &Value) -> bool {
        call["stream"] == json!(true) || path.ends_with("/generate_stream")
    }

    /// What a stream tells of its usage: OpenAI's older APIs only if asked, KServe never.
    pub(super) fn told(self, call: &Value, usage: Option<Usage>) -> Option<Usage> {
        let is_told = match self {
            Dialect::Chat | Dialect::Completions => call["stream_options"]["include_usage"] == json!(true),
            Dialect::Responses | Dialect::Messages => true,
            Dialect::Generate => false,
        };
        usage.filter(|_| is_told)
    }

    /// A whole reply.
    pub(super) fn document(self, call: &Value, text: &str, usage: Option<Usage>) -> Value {
        let (mut document, reported) = match self {
            Dialect::Chat => {
                let message = json!({"role": "assistant", "content": text});
                let choices = json!([{"index": 0, "message": message, "finish_reason": "stop"}]);
                (openai(call, "chat.completion", choices), usage.map(Usage::to_openai))
            }
            Dialect::Completions => {
                let choices = json!([{"index": 0, "text": text, "finish_reason": "stop"}]);
                (openai(call, "text_completion", choices), usage.map(Usage::to_openai))
            }
            Dialect::Responses => (response(call, "completed", text), usage.map(to_responses)),
            Dialect::Messages => (message(call, text), usage.map(to_messages)),
            Dialect::Generate => (generated(text), None),
        };
        if let Some(usage) = reported {
            document["usage"] = usage;
        }
        document
    }

    /// The events before the text.
    pub(super) fn opening(self, call: &Value, usage: Option<Usage>) -> Vec<String> {
        match self {
            Dialect::Responses => {
                let response = response(call, "in_progress", "");
                vec![named("response.created", json!({"response": response}))]
            }
            Dialect::Messages => {
                let mut message = message(call, "");
                message["usage"] = usage.map_or(Value::Null, |usage| to_messages(Usage { output: 0, ..usage }));
                let block = json!({"index": 0, "content_block": {"type": "text", "text": ""}});
                vec![named("message_start", json!({"message": message})), named("content_block_start", block)]
            }
            Dialect::Chat | Dialect::Completions | Dialect::Generate => Vec::new(),
        }
    }

    /// The event of a piece of text.
    pub(super) fn piece(self, call: &Value, text: &str) -> String {
        match self {
            Dialect::Chat => chunk(call, json!([{"index": 0, "delta": {"content": text}, "finish_reason": null}])),
            Dialect::Completions => {
                let choices = json!([{"index": 0, "text": text, "finish_reason": null}]);
                unnamed(&openai(call, "text_completion", choices))
            }
            Dialect::Responses => {
                let delta = json!({"item_id": "msg-scripted", "output_index": 0, "content_index": 0, "delta": text});
                named("response.output_text.delta", delta)
            }
            Dialect::Messages => {
                named("content_block_delta", json!({"index": 0, "delta": {"type": "text_delta", "text": text}}))
            }
            Dialect::Generate => unnamed(&generated(text)),
        }
    }

    /// The events after the text, but for `[DONE]`.
    pub(super) fn closing(self, call: &Value, text: &str, usage: Option<Usage>) -> Vec<String> {
        let told = usage.map(|usage| {
            let mut last = openai(call, if self == Dialect::Chat { CHUNK } else { "text_completion" }, json!([]));
            last["usage"] = usage.to_openai();
            unnamed(&last)
        });
        match self {
            Dialect::Chat => {
                let stop = chunk(call, json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]));
                std::iter::once(stop).chain(told).collect()
            }
            Dialect::Completions => {
                let stop = json!([{"index": 0, "text": "", "finish_reason": "stop"}]);
                std::iter::once(unnamed(&openai(call, "text_completion", stop))).chain(told).collect()
            }
            Dialect::Responses => {
                let mut response = response(call, "completed", text);
                response["usage"] = usage.map_or(Value::Null, to_responses);
                vec![named("response.completed", json!({"response": response}))]
            }
            Dialect::Messages => {
                let output = usage.map_or(Value::Null, |usage| json!({"output_tokens": usage.output}));
                let delta = json!({"delta": {"stop_reason": "end_turn", "stop_sequence": null}, "usage": output});
                vec![
                    named("content_block_stop", json!({"index": 0})),
                    named("message_delta", delta),
                    named("message_stop", json!({})),
                ]
            }
            Dialect::Generate => Vec::new(),
        }
    }

    /// Whether a stream ends with `[DONE]`.
    pub(super) fn says_done(self) -> bool {
        matches!(self, Dialect::Chat | Dialect::Completions)
    }
}

const CHUNK: &str = "chat.completion.chunk";

fn openai(call: &Value, object: &str, choices: Value) -> Value {
    json!({"id": "scripted", "object": object, "created": 0, "model": call["model"], "choices": choices})
}

fn chunk(call: &Value, choices: Value) -> String {
    unnamed(&openai(call, CHUNK, choices))
}

fn response(call: &Value, status: &str, text: &str) -> Value {
    let content = json!([{"type": "output_text", "text": text, "annotations": []}]);
    let output = json!([{"id": "msg-scripted", "type": "message", "role": "assistant", "content": content}]);
    json!({
        "id": "resp-scripted", "object": "response", "created_at": 0, "model": call["model"], "status": status,
        "output": output, "usage": null,
    })
}

fn message(call: &Value, text: &str) -> Value {
    json!({
        "id": "msg-scripted", "type": "message", "role": "assistant", "model": call["model"],
        "content": [{"type": "text", "text": text}], "stop_reason": null, "usage": null,
    })
}

fn generated(text: &str) -> Value {
    json!({"model_name": "scripted", "model_version": "1", "text_output": text})
}

fn to_responses(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.input, "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": usage.output, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total(),
    })
}

/// Anthropic's cached tokens stand beside the input.
fn to_messages(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.input - usage.cached, "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": 0, "output_tokens": usage.output,
    })
}

fn unnamed(document: &Value) -> String {
    format!("data: {document}\n\n")
}

fn named(name: &str, mut document: Value) -> String {
    document["type"] = json!(name);
    format!("event: {name}\n{}", unnamed(&document))
}
