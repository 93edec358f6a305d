//! Whole calls through the state machine, as fast as they can be made: what `just bench instructions` counts. Envoy's part,
//! and the copies between it and the module, are not in it.
//!
//! Built with the feature `fuzzing`, and with the tests, which see that a call still goes through.

use crate::config::Config;
use crate::dialect::apply;
use crate::exchange::{Answer, Exchange, Step};
use crate::headers::Headers;
use crate::mail::Mail;
use crate::outbox::Fate;
use crate::source::Source;
use crate::worker::Worker;
use sluice_policy::units::{Millis, Priority, Tokens};
use sluice_policy::wire::{AdmissionReply, Grant, RateKind, RateStatus};
use std::cell::RefCell;
use std::rc::Rc;

const CONFIG: &[u8] = br#"{
    "version": 1, "mode": "body", "service": {"cluster": "sluice"}, "body": {"max_bytes": 16777216},
    "routes": [{"dialect": "openai_chat"}]
}"#;
const NOW: Millis = Millis(1_000_000);

/// What is called, again and again.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A chat whose reply is a document.
    Document,
    /// A chat whose reply is a stream of so many events with text, each of which comes by itself.
    Stream { words: usize },
}

/// One worker of the filter.
pub struct Bench {
    config: Rc<Config>,
    worker: Worker,
    answer: Answer,
    request: Vec<u8>,
    reply_kind: &'static str,
    pieces: Vec<Vec<u8>>,
}

impl Bench {
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        let config = Rc::new(Config::parse(CONFIG).expect("the configuration above is sound"));
        let admitted = serde_json::to_vec(&AdmissionReply::Admitted(grant())).expect("a grant is JSON");
        let answer = Answer { is_decided: true, body: admitted };
        let (reply_kind, pieces) = match kind {
            Kind::Document => ("application/json", vec![document()]),
            Kind::Stream { words } => ("text/event-stream", events(words)),
        };
        let request = request(matches!(kind, Kind::Stream { .. }));
        let worker = Worker::new(config.holdings, Rc::new(RefCell::new(Mail::new())), || Source::UNKNOWN);
        Self { config, worker, answer, request, reply_kind, pieces }
    }

    /// One call, from its headers to the acknowledgement of its settlement. Gives what the sidecar is sent for it, and how
    /// many bytes its client gets.
    ///
    /// # Panics
    /// When the call is not admitted or not settled.
    pub fn call(&mut self) -> (Vec<u8>, usize) {
        let mut exchange = Exchange::new(Rc::clone(&self.config));
        let step = exchange.request_headers(&self.request_headers(), false, &mut self.worker, NOW);
        assert!(matches!(step, Step::Hold), "{step:?}");
        let bytes = self.request.len() as u64;
        let step = exchange.request_body_ended(&self.request, bytes, &mut self.worker, NOW);
        let Step::Ask { request, .. } = step else { panic!("asks, not {step:?}") };
        let asked = serde_json::to_vec(&request).expect("a question is JSON");
        let step = exchange.answered(&self.answer, &mut self.worker, NOW);
        let Step::Forward { body, .. } = step else { panic!("forwards, not {step:?}") };
        let sent = apply(&self.request, body).expect("edits fit");
        assert!(!asked.is_empty() && !sent.is_empty());
        let head = headers(&[(":status", "200"), ("content-type", self.reply_kind), ("server", "uvicorn")]);
        exchange.reply_headers(&head, false, &mut self.worker, NOW);
        let mut received = 0;
        for (index, piece) in self.pieces.iter().enumerate() {
            let is_end = index + 1 == self.pieces.len();
            received += match exchange.reply_body(piece, is_end, &mut self.worker, NOW) {
                crate::usage::Passage::Unchanged => piece.len(),
                crate::usage::Passage::Replaced(bytes) => bytes.len(),
            };
        }
        let mut mail = self.worker.mail.borrow_mut();
        let (number, batch) = mail.next_batch(NOW).expect("the call is settled");
        mail.batch_ended(number, Fate::Acknowledged, NOW);
        (batch, received)
    }

    fn request_headers(&self) -> Headers {
        let length = self.request.len().to_string();
        headers(&[
            (":method", "POST"),
            (":path", "/v1/chat/completions"),
            (":authority", "gateway.example"),
            ("user-agent", "OpenAI/Python 2.0.0"),
            ("accept", "application/json"),
            ("content-type", "application/json"),
            ("content-length", &length),
            ("x-forwarded-for", "192.0.2.7"),
            ("x-request-id", "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"),
            ("authorization", "Bearer sk-sluice-0123456789abcdef0123456789abcdef"),
        ])
    }
}

fn headers(pairs: &[(&str, &str)]) -> Headers {
    Headers::new(pairs.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect())
}

fn grant() -> Grant {
    let rate = RateStatus { kind: RateKind::Requests, limit: 600, remaining: 599, reset_ms: Millis(100) };
    Grant {
        tenant: "dept-a".into(),
        namespace: "dept-a".into(),
        tier: "internal".into(),
        priority: Priority::parse("5").expect("a level"),
        pool: "smol".into(),
        reserved: Tokens(300),
        waited_ms: Millis(12),
        rates: vec![rate],
        upstream_model: None,
        max_tokens: None,
    }
}

/// Two kilobytes of conversation.
fn request(stream: bool) -> Vec<u8> {
    let line = "You are a clerk in a mill, and you answer in one sentence. ";
    let question = "How much flour is left, and who asked for it last?";
    serde_json::to_vec(&serde_json::json!({
        "model": "smollm2-135m",
        "messages": [{"role": "system", "content": line.repeat(32)}, {"role": "user", "content": question}],
        "max_tokens": 200, "temperature": 0.2, "stream": stream,
    }))
    .expect("it is JSON")
}

fn document() -> Vec<u8> {
    let message = serde_json::json!({"role": "assistant", "content": "There are 12 sacks left. ".repeat(20)});
    serde_json::to_vec(&serde_json::json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "smollm2-135m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 470, "completion_tokens": 120, "total_tokens": 590},
    }))
    .expect("it is JSON")
}

fn events(words: usize) -> Vec<Vec<u8>> {
    let chunk = |choices: &str, rest: &str| {
        let head = r#""id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"smollm2-135m""#;
        format!("data: {{{head},\"choices\":{choices}{rest}}}\n\n").into_bytes()
    };
    let text = chunk(r#"[{"index":0,"delta":{"content":" sacks"},"finish_reason":null}]"#, "");
    let stop = chunk(r#"[{"index":0,"delta":{},"finish_reason":"stop"}]"#, "");
    let usage = chunk("[]", r#","usage":{"prompt_tokens":470,"completion_tokens":120,"total_tokens":590}"#);
    let end = [stop, usage, b"data: [DONE]\n\n".to_vec()];
    std::iter::repeat_n(text, words).chain(end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_and_a_stream_go_through_call_after_call() {
        for kind in [Kind::Document, Kind::Stream { words: 3 }] {
            let mut bench = Bench::new(kind);
            for _ in 0..3 {
                let (batch, received) = bench.call();
                let batch = String::from_utf8(batch).unwrap();
                assert!(batch.contains("\"completed\"") && batch.contains("\"input\":470"), "{kind:?}: {batch}");
                assert!(received > 0);
            }
        }
    }
}
