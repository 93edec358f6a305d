//! Streams that nobody recorded, from a seed.

use crate::usage::{Counts, Shape};
use serde_json::{Value, json};
use sluice_policy::units::Tokens;

/// A stream, and what it truly says.
pub(crate) struct Stream {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) shape: Shape,
    pub(crate) reported: Option<Counts>,
}

/// Streams of which every prefix can be counted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// vLLM with `continuous_usage_stats`: each chunk tells all that was generated so far.
    Vllm,
    /// The same of three choices, each of which tells its own.
    VllmOfThree,
    /// SGLang with the same, and its own fields beside.
    Sglang,
    /// Chat with a token a chunk, and no usage.
    ChatToken,
    /// Completions with a token a chunk, of two sequences.
    CompletionToken,
}

/// A xorshift generator: a failing seed must fail again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn pick<'a>(&mut self, among: &[&'a str]) -> &'a str {
        let index = usize::try_from(self.below(among.len() as u64)).unwrap();
        among[index]
    }

    fn word(&mut self) -> &'static str {
        self.pick(&[
            "a",
            " the",
            "Mühle",
            "\n\n",
            "data: x",
            "\"quoted\"",
            "𝄞",
            "{\"usage\":",
            "",
            "[DONE]",
            "\r",
            "\\",
        ])
    }
}

impl Stream {
    pub(crate) fn make_up(seed: u64) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        dice.below(2);
        let counts = Counts {
            input: Tokens(dice.below(5_000) + 10),
            output: Tokens(dice.below(900) + 10),
            cached: Tokens(dice.below(10)),
            reasoning: Tokens(dice.below(10)),
        };
        let (shape, events, reported) = match seed % 5 {
            0 => (Shape::OpenAi, chat(&mut dice, counts), Some(counts)),
            1 => (Shape::OpenAi, completions(&mut dice, counts), Some(counts)),
            2 => (Shape::Responses, responses(&mut dice, counts), Some(counts)),
            3 => {
                let counts = Counts { reasoning: Tokens::ZERO, ..counts };
                (Shape::Anthropic, messages(&mut dice, counts), Some(counts))
            }
            _ => (Shape::Text, texts(&mut dice), None),
        };
        let line_end = dice.pick(&["\n", "\n", "\n", "\r\n", "\r"]);
        Self { name: format!("seed {seed}"), text: write(&mut dice, &events, line_end), shape, reported }
    }

    /// The stream without the events that bear a usage and nothing else: an oracle that reads line by line.
    pub(crate) fn without_usage_event(&self) -> String {
        let line_end = if self.text.contains("\r\n") {
            "\r\n"
        } else if self.text.contains('\r') {
            "\r"
        } else {
            "\n"
        };
        let end = line_end.repeat(2);
        let is_ours = |event: &&str| {
            let data = event.lines().flat_map(|line| line.split('\r')).find_map(|line| line.strip_prefix("data:"));
            let payload: Value = data.and_then(|data| serde_json::from_str(data).ok()).unwrap_or_default();
            payload["usage"].is_object() && payload["choices"].as_array().is_some_and(Vec::is_empty)
        };
        self.text.split_inclusive(&end).filter(|event| !is_ours(event)).collect()
    }
}

/// An event: its name, where the dialect gives it one, and its data.
type Event = (Option<&'static str>, String);

fn write(dice: &mut Dice, events: &[Event], line_end: &str) -> String {
    let mut text = String::new();
    for (name, data) in events {
        if dice.below(8) == 0 {
            text += &format!(": keep-alive{line_end}{line_end}");
        }
        if let Some(name) = name {
            text += &format!("event: {name}{line_end}");
        }
        let space = dice.pick(&[" ", " ", ""]);
        text += &format!("data:{space}{data}{line_end}{line_end}");
    }
    text
}

fn unnamed(document: &Value) -> Event {
    (None, document.to_string())
}

fn openai_usage(counts: Counts) -> Value {
    json!({
        "prompt_tokens": counts.input.0,
        "completion_tokens": counts.output.0,
        "total_tokens": counts.input.0 + counts.output.0,
        "prompt_tokens_details": {"cached_tokens": counts.cached.0},
        "completion_tokens_details": {"reasoning_tokens": counts.reasoning.0},
    })
}

fn chat(dice: &mut Dice, counts: Counts) -> Vec<Event> {
    let choices = dice.below(3) + 1;
    let (is_continuous, tells_null) = (dice.below(3) == 0, dice.below(2) == 0);
    let mut events = Vec::new();
    for step in 0..dice.below(5) + 1 {
        let index = step % choices;
        let delta = match dice.below(4) {
            0 => json!({"reasoning_content": dice.word()}),
            1 => json!({"tool_calls": [{"index": 0, "function": {"arguments": dice.word()}}]}),
            _ => json!({"role": "assistant", "content": dice.word()}),
        };
        let mut chunk = json!({"id": "c", "choices": [{"index": index, "delta": delta, "finish_reason": null}]});
        if is_continuous {
            // No report may be added to another, and only the last holds.
            chunk["usage"] = openai_usage(Counts { output: Tokens(step), reasoning: Tokens::ZERO, ..counts });
        } else if tells_null {
            chunk["usage"] = Value::Null;
        }
        events.push(unnamed(&chunk));
    }
    events.push(unnamed(&json!({"choices": [], "usage": openai_usage(counts)})));
    events.push((None, "[DONE]".to_owned()));
    events
}

fn completions(dice: &mut Dice, counts: Counts) -> Vec<Event> {
    let mut events: Vec<Event> = (0..dice.below(6))
        .map(|step| unnamed(&json!({"choices": [{"index": step % 2, "text": dice.word(), "finish_reason": null}]})))
        .collect();
    // llama.cpp's last chunk has both.
    let choices =
        if dice.below(2) == 0 { json!([]) } else { json!([{"index": 0, "text": "", "finish_reason": "stop"}]) };
    events.push(unnamed(&json!({"choices": choices, "usage": openai_usage(counts)})));
    events.push((None, "[DONE]".to_owned()));
    events
}

fn responses(dice: &mut Dice, counts: Counts) -> Vec<Event> {
    let event = |kind: &'static str, mut body: Value| {
        body["type"] = json!(kind);
        (Some(kind), body.to_string())
    };
    let mut events = vec![event("response.created", json!({"response": {"status": "in_progress", "usage": null}}))];
    for _ in 0..dice.below(5) {
        let kind = ["response.output_text.delta", "response.reasoning_text.delta"][usize::from(dice.below(4) == 0)];
        events.push(event(kind, json!({"item_id": "i", "delta": dice.word()})));
    }
    let usage = json!({
        "input_tokens": counts.input.0,
        "input_tokens_details": {"cached_tokens": counts.cached.0},
        "output_tokens": counts.output.0,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning.0},
    });
    let kind = ["response.completed", "response.incomplete"][usize::from(dice.below(4) == 0)];
    events.push(event(kind, json!({"response": {"output": [{"text": dice.word()}], "usage": usage}})));
    events
}

fn messages(dice: &mut Dice, counts: Counts) -> Vec<Event> {
    let event = |kind: &'static str, mut body: Value| {
        body["type"] = json!(kind);
        (Some(kind), body.to_string())
    };
    let created = dice.below(5);
    let usage = json!({
        "input_tokens": counts.input.0.saturating_sub(counts.cached.0 + created),
        "cache_read_input_tokens": counts.cached.0,
        "cache_creation_input_tokens": created.min(counts.input.0.saturating_sub(counts.cached.0)),
        "output_tokens": dice.below(3),
    });
    let mut events = vec![event("message_start", json!({"message": {"id": "m", "usage": usage}}))];
    if dice.below(2) == 0 {
        events.push(event("ping", json!({})));
    }
    for step in 0..dice.below(5) {
        let delta = match dice.below(3) {
            0 => json!({"type": "input_json_delta", "partial_json": dice.word()}),
            1 => json!({"type": "thinking_delta", "thinking": dice.word()}),
            _ => json!({"type": "text_delta", "text": dice.word()}),
        };
        events.push(event("content_block_delta", json!({"index": 0, "delta": delta})));
        if dice.below(4) == 0 {
            events.push(event("message_delta", json!({"delta": {}, "usage": {"output_tokens": step}})));
        }
    }
    let last = json!({"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": counts.output.0}});
    events.push(event("message_delta", last));
    events.push(event("message_stop", json!({})));
    events
}

fn texts(dice: &mut Dice) -> Vec<Event> {
    (0..dice.below(6) + 1).map(|_| unnamed(&json!({"model_name": "m", "text_output": dice.word()}))).collect()
}

/// Tokens as real vocabularies have them: words, parts of words, long ones, and those of other scripts.
const TOKENS: [&str; 16] = [
    "a",
    " the",
    "Mühle",
    "!",
    " of",
    "ing",
    "\n",
    " 1",
    "{",
    " self",
    "日本",
    "語",
    "🙂",
    " responsibilities",
    " international",
    "                ",
];

/// A stream of which every chunk can be counted.
pub(super) struct Countable {
    pub(super) text: String,
    /// Where each chunk ends, and how many tokens there are up to there.
    pub(super) chunks: Vec<(usize, u64)>,
}

impl Countable {
    fn push(&mut self, chunk: &Value, tokens: u64) {
        self.text += &format!("data: {chunk}\n\n");
        let before = self.chunks.last().map_or(0, |(_, tokens)| *tokens);
        self.chunks.push((self.text.len(), before + tokens));
    }
}

pub(super) fn countable(seed: u64, kind: Kind) -> Countable {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    dice.below(2);
    let mut stream = Countable { text: String::new(), chunks: Vec::new() };
    let usage = |tokens: u64| match kind {
        Kind::Vllm | Kind::VllmOfThree => {
            json!({"prompt_tokens": 7, "total_tokens": 7 + tokens, "completion_tokens": tokens})
        }
        Kind::Sglang => json!({
            "prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens,
            "prompt_tokens_details": null, "reasoning_tokens": 0,
        }),
        Kind::ChatToken | Kind::CompletionToken => Value::Null,
    };
    let choice =
        |index: usize, delta: Value| json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": null}]);
    if !matches!(kind, Kind::CompletionToken) {
        let role = choice(0, json!({"role": "assistant", "content": ""}));
        stream.push(&json!({"choices": role, "usage": usage(0)}), 0);
    }
    let mut produced = [0; 3];
    for _ in 0..dice.below(60) + 1 {
        // With its usage told, a chunk may bear several tokens or text that cannot be seen; otherwise it bears one.
        let (tokens, text) = match kind {
            Kind::Vllm | Kind::VllmOfThree | Kind::Sglang => (dice.below(4) + 1, dice.word()),
            Kind::ChatToken | Kind::CompletionToken => (1, dice.pick(&TOKENS)),
        };
        let index = if matches!(kind, Kind::VllmOfThree) { usize::try_from(dice.below(3)).unwrap() } else { 0 };
        produced[index] += tokens;
        let choices = match kind {
            Kind::CompletionToken => json!([{"index": dice.below(2), "text": text, "finish_reason": null}]),
            Kind::Sglang if dice.below(3) == 0 => choice(0, json!({"content": null, "reasoning_content": text})),
            Kind::Vllm | Kind::VllmOfThree | Kind::Sglang | Kind::ChatToken => choice(index, json!({"content": text})),
        };
        stream.push(&json!({"id": "c", "choices": choices, "usage": usage(produced[index])}), tokens);
    }
    let stop = json!([{"index": 0, "delta": {}, "text": "", "finish_reason": "stop"}]);
    stream.push(&json!({"choices": stop, "usage": usage(produced[0])}), 0);
    stream
}

/// Where a stream breaks off, and how long the pieces are in which it comes.
pub(super) fn moment(seed: u64, bytes: usize) -> (usize, usize) {
    let mut dice = Dice(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
    dice.below(2);
    let mut below = |sides: usize| usize::try_from(dice.below(sides as u64)).unwrap();
    (below(bytes + 1), below(400) + 1)
}
