use super::*;
use crate::dialect::apply;
use crate::headers::headers_of;
use crate::mail::Mail;
use crate::outbox::Fate;
use crate::source::Source;
use crate::usage::Passage;
use serde_json::{Value, json};
use sluice_policy::wire::{AdmissionReply, ChargeTo, Grant, ModelsReply, RateKind, RateStatus, Reason, UsageSource};
use std::cell::RefCell;

mod dialects;
mod grpc;
mod lifecycles;
mod passage;
mod replies;
mod requests;
mod strangers;
mod usage_reports;

const NOW: Millis = Millis(1_000_000);
const PATH: &str = "/v1/chat/completions";
const BODY: &str = r#"{"model":"m","messages":[{"content":"12345678"}]}"#;
const STREAM: &str = r#"{"model":"m","stream":true}"#;

/// One exchange and its worker.
struct World {
    config: Rc<Config>,
    worker: Worker,
    exchange: Exchange,
}

impl World {
    fn with(change: impl FnOnce(&mut Value)) -> World {
        let mut document = json!({
            "version": 1, "mode": "body", "service": {"cluster": "sluice"}, "body": {"max_bytes": 1000},
            "verified_ttl_ms": 1000,
            // Many tests leave their calls behind, and nothing of what those hold is given back.
            "strangers": {"body_bytes": 1_000_000, "per_source": {"body_bytes": 1_000_000}},
            "routes": [{"path": PATH, "dialect": "openai_chat"}],
        });
        change(&mut document);
        let config = Rc::new(Config::parse(document.to_string().as_bytes()).unwrap());
        let worker = Worker::new(config.holdings, Rc::new(RefCell::new(Mail::new())), || Source::UNKNOWN);
        World { exchange: Exchange::new(config.clone()), config, worker }
    }

    fn closed() -> World {
        World::with(|_| {})
    }

    fn open() -> World {
        World::with(|document| document["routes"][0]["on_unavailable"] = json!("open"))
    }

    fn headers(&mut self, extra: &[(&str, &str)]) -> Step {
        let usual = [(":method", "POST"), (":path", PATH), ("authorization", "Bearer sk-1")];
        self.head(&[&usual, extra].concat())
    }

    fn head(&mut self, headers: &[(&str, &str)]) -> Step {
        self.exchange = Exchange::new(self.config.clone());
        self.exchange.request_headers(&headers_of(headers), false, &mut self.worker, NOW)
    }

    fn body(&mut self, body: impl AsRef<[u8]>) -> Step {
        let body = body.as_ref();
        self.exchange.request_body_ended(body, body.len() as u64, &mut self.worker, NOW)
    }

    /// Brings a call as far as the question to the service.
    fn asked(&mut self, body: &str) -> AdmissionRequest {
        assert_eq!(self.headers(&[]), Step::Hold);
        match self.body(body) {
            Step::Ask { request, .. } => *request,
            other => panic!("asks, not {other:?}"),
        }
    }

    fn answer(&mut self, answer: &Answer) -> Step {
        self.exchange.answered(answer, &mut self.worker, NOW)
    }

    fn admitted(&mut self, body: &str) -> AdmissionRequest {
        let request = self.asked(body);
        assert!(matches!(self.answer(&admitted()), Step::Forward { .. }));
        request
    }

    fn reply_headers(&mut self, headers: &[(&str, &str)]) -> Vec<HeaderEdit> {
        self.exchange.reply_headers(&headers_of(headers), false, &mut self.worker, NOW)
    }

    fn reply_body(&mut self, piece: &str, is_end: bool) -> Passage {
        self.exchange.reply_body(piece.as_bytes(), is_end, &mut self.worker, NOW)
    }

    fn abandoned(&mut self, ended: Ended) {
        self.exchange.abandoned(ended, &mut self.worker, NOW);
    }

    /// What the worker has to report, once.
    fn settlements(&mut self) -> Vec<Settlement> {
        let Some((number, batch)) = self.worker.mail.borrow_mut().next_batch(NOW) else { return Vec::new() };
        self.worker.mail.borrow_mut().batch_ended(number, Fate::Acknowledged, NOW);
        let batch: sluice_policy::wire::SettlementBatch = serde_json::from_slice(&batch).unwrap();
        batch.settlements
    }

    /// The one settlement: outcome, source, input, output.
    fn settled(&mut self) -> (Outcome, UsageSource, u64, u64) {
        let settlements = self.settlements();
        let [settlement] = settlements.as_slice() else { panic!("one, not {settlements:?}") };
        let usage = settlement.usage;
        (settlement.outcome, usage.source, usage.input.0, usage.output.0)
    }
}

fn answer_of(reply: &impl serde::Serialize) -> Answer {
    Answer { is_decided: true, body: serde_json::to_vec(reply).unwrap() }
}

fn admitted() -> Answer {
    answer_of(&AdmissionReply::Admitted(Grant {
        tenant: "dept-a".into(),
        namespace: "ns-a".into(),
        tier: "gold".into(),
        priority: Priority::parse("2").unwrap(),
        pool: "smol".into(),
        reserved: Tokens(99),
        waited_ms: Millis(42),
        rates: vec![RateStatus { kind: RateKind::Requests, limit: 5, remaining: 4, reset_ms: Millis(200) }],
        upstream_model: None,
        max_tokens: None,
    }))
}

/// Whom calls of [`BODY`] are charged to once [`admitted`].
fn dept_a() -> ChargeTo {
    ChargeTo {
        tenant: "dept-a".into(),
        pool: "smol".into(),
        model: Some("m".to_owned()),
        prompts: 1,
        sequences: 1,
        turns: 1,
    }
}

fn rejected(reason: Reason) -> Answer {
    answer_of(&AdmissionReply::Rejected(refusal::own(reason, "no")))
}

fn away() -> Answer {
    Answer { is_decided: false, body: serde_json::to_vec(&json!({"decision": "admitted"})).unwrap() }
}

fn reply_of(step: Step) -> LocalReply {
    match step {
        Step::Reply { reply, .. } => reply,
        other => panic!("replies, not {other:?}"),
    }
}

fn refused(step: Step) -> (u16, &'static str) {
    let reply = reply_of(step);
    let body: Value = serde_json::from_slice(&reply.body).unwrap();
    assert!(body["error"]["message"].is_string() || body["error"].is_string());
    (reply.status, reply.details)
}

fn has_set(edits: &[HeaderEdit], name: &str, value: &str) -> bool {
    edits.iter().any(|edit| matches!(edit, HeaderEdit::Set(known, set) if *known == name && set == value))
}

fn has_removed(edits: &[HeaderEdit], name: &str) -> bool {
    edits.contains(&HeaderEdit::Remove(name.to_owned()))
}
