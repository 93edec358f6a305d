//! The context of one request.

use super::{Shared, answer_at_hand};
use crate::caller::Digest;
use crate::dialect::{self, BodyEdit};
use crate::exchange::{self, Ended, Exchange, LogTags, Step, Wants};
use crate::headers::{HeaderEdit, Headers};
use crate::host::{self, Buffer, Map};
use crate::usage::Passage;
use crate::worker::Worker;
use log::debug;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;
use serde::Serialize;
use sluice_policy::units::Millis;
use sluice_policy::wire::{ADMISSIONS_PATH, MODELS_PATH};

pub(super) struct Stream {
    context: u32,
    /// `None` only before the plugin was configured; Envoy sends no requests then.
    call: Option<(Shared, Exchange)>,
    /// Bytes of the request's body that Envoy holds.
    body_bytes: usize,
    /// How many of them the state machine has seen, where it wants them piece by piece.
    seen_bytes: usize,
    /// Any byte of the request's body has come.
    has_begun: bool,
    /// The token of the callout.
    callout: Option<u32>,
    /// The token of the question whose key it is, and the key.
    question: Option<(u32, Digest)>,
}

impl Stream {
    pub(super) fn new(context: u32, shared: Option<Shared>) -> Self {
        let call = shared.map(|shared| {
            let exchange = Exchange::new(shared.config.clone());
            (shared, exchange)
        });
        Self { context, call, body_bytes: 0, seen_bytes: 0, has_begun: false, callout: None, question: None }
    }

    /// Feeds the state machine and does what it says. The worker is free again before the host is called.
    fn turn(&mut self, input: impl FnOnce(&mut Exchange, &mut Worker) -> Step) -> Action {
        let Some((shared, exchange)) = &mut self.call else { return Action::Pause };
        let step = input(exchange, &mut shared.worker.borrow_mut());
        shared.ring();
        match step {
            Step::Hold => Action::Pause,
            Step::Continue => Action::Continue,
            Step::Ask { request, tags } => {
                host::tag_all(&tags);
                self.ask(ADMISSIONS_PATH, &*request)
            }
            Step::List { request } => self.ask(MODELS_PATH, &*request),
            Step::Forward { edits, body, tags } => self.forward(&edits, body, &tags),
            Step::Reply { reply, tags } => {
                debug!("answered: {}", reply.details);
                host::tag_all(&tags);
                host::reply(&reply);
                Action::Pause
            }
        }
    }

    fn ask(&mut self, path: &str, question: &impl Serialize) -> Action {
        let Some((shared, _)) = &self.call else { return Action::Pause };
        // A request of plain texts and numbers always serialises.
        let json = serde_json::to_vec(question).unwrap_or_default();
        self.callout = shared.post(path, &json, shared.config.service.timeout);
        if self.callout.is_some() {
            return Action::Pause;
        }
        let now = host::now();
        self.turn(|exchange, worker| exchange.could_not_ask(worker, now))
    }

    fn forward(&mut self, edits: &[HeaderEdit], body: Vec<BodyEdit>, tags: &LogTags) -> Action {
        let is_changed = if body.is_empty() { self.put_messages() } else { change_body(self.body_bytes, body) };
        if !is_changed {
            let now = host::now();
            return self.turn(|exchange, worker| exchange.body_was_not_changed(worker, now));
        }
        // First the tags: plain Envoy's routes ask for one, and a changed header makes Envoy look for its route anew.
        host::tag_all(tags);
        host::edit_headers(Map::Request, edits);
        // Envoy resumes after this callback, so the request must be paused by then.
        host::resume_request();
        Action::Pause
    }

    /// Puts the messages that go on into Envoy's hands, where that is not what it holds; returns whether it took them.
    fn put_messages(&mut self) -> bool {
        let Some((_, exchange)) = &mut self.call else { return true };
        let held_bytes = self.body_bytes;
        match exchange.messages_to_send(|| host::bytes(Buffer::Request, 0, held_bytes)) {
            Some(messages) => host::replace_bytes(Buffer::Request, &messages),
            None => true,
        }
    }

    fn is_no_longer_incoming(&self) {
        if let Some((shared, _)) = &self.call {
            shared.incoming.borrow_mut().ends(self.context);
        }
    }

    /// More of the request's body, or its end: Envoy holds all of it while this pauses.
    fn request_body(&mut self, is_end: bool) -> Action {
        let total = self.body_bytes;
        let Some((_, exchange)) = &self.call else { return Action::Pause };
        let (wants, holds) = (exchange.wants(), exchange.holds_request());
        let now = host::now();
        let action = match wants {
            Wants::Nothing => return if holds { Action::Pause } else { Action::Continue },
            Wants::Pieces => self.request_piece(is_end, now),
            Wants::Messages => self.messages(is_end, now),
            Wants::Whole if is_end => {
                let body = host::bytes(Buffer::Request, 0, total);
                self.turn(|exchange, worker| exchange.request_body_ended(&body, total as u64, worker, now))
            }
            Wants::Length if is_end => {
                self.turn(|exchange, worker| exchange.request_body_ended(&[], total as u64, worker, now))
            }
            Wants::Whole | Wants::Length => {
                self.turn(|exchange, worker| exchange.request_body_grew(total as u64, worker, now))
            }
        };
        self.note_whether_incoming();
        action
    }

    /// While the call is held the buffer grows.
    fn request_piece(&mut self, is_end: bool, now: Millis) -> Action {
        let (start, held) = (self.seen_bytes, self.body_bytes as u64);
        let piece = bytes_of_request(start, self.body_bytes);
        self.seen_bytes = self.body_bytes;
        self.turn(|exchange, worker| exchange.request_body_piece(&piece, held, is_end, worker, now))
    }

    /// Takes what has come of a stream of messages out of Envoy's hands, which could let it go on only all at once. Envoy
    /// passes on what is put into them each time that the request is resumed, also where it was not paused again.
    fn messages(&mut self, is_end: bool, now: Millis) -> Action {
        let piece = bytes_of_request(0, self.body_bytes);
        self.body_bytes = 0;
        if !piece.is_empty() && !host::replace_bytes(Buffer::Request, &[]) {
            return self.turn(|exchange, worker| exchange.body_was_not_changed(worker, now));
        }
        self.turn(|exchange, worker| exchange.message_piece(&piece, is_end, worker, now))
    }

    /// Asks whose call this is where much of it is held, and nobody has said so.
    fn ask_whose(&mut self) {
        let Some((shared, exchange)) = &self.call else { return };
        if !exchange.reads_body() {
            return;
        }
        let now = host::now();
        let question = exchange.question(&mut shared.worker.borrow_mut(), now);
        if let Some((key, question)) = question {
            self.question = shared.ask_whose(&question).map(|token| (token, key));
        }
    }

    fn note_whether_incoming(&self) {
        if self.call.as_ref().is_some_and(|(_, exchange)| !exchange.reads_body()) {
            self.is_no_longer_incoming();
        }
        self.note_whether_idle();
    }

    /// A message of a stream may have had its reply, so that the next one has its turn.
    fn next_message(&mut self) {
        self.turn(|exchange, worker| exchange.next_message(worker));
        self.note_whether_idle();
    }

    fn note_whether_idle(&self) {
        if let Some((shared, exchange)) = &self.call {
            shared.idle.borrow_mut().note(self.context, exchange.idles(), host::now);
        }
    }
}

fn bytes_of_request(start: usize, end: usize) -> Vec<u8> {
    let size = end.saturating_sub(start);
    if size == 0 { Vec::new() } else { host::bytes(Buffer::Request, start, size) }
}

fn change_body(size: usize, edits: Vec<BodyEdit>) -> bool {
    let changed = dialect::apply(&host::bytes(Buffer::Request, 0, size), edits);
    changed.is_some_and(|changed| host::replace_bytes(Buffer::Request, &changed))
}

impl Context for Stream {
    fn on_http_call_response(&mut self, token: u32, headers: usize, size: usize, _: usize) {
        if let Some((shared, _)) = &self.call
            && let Some((_, key)) = self.question.take_if(|(asked, _)| *asked == token)
        {
            return shared.learn_whose(key, &answer_at_hand(headers, size), self.context);
        }
        if self.callout != Some(token) {
            return;
        }
        self.callout = None;
        let answer = answer_at_hand(headers, size);
        let now = host::now();
        self.turn(|exchange, worker| exchange.answered(&answer, worker, now));
        self.note_whether_idle();
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, is_end: bool) -> Action {
        let (headers, now) = (host::headers(Map::Request), host::now());
        let action = self.turn(|exchange, worker| exchange.request_headers(&headers, is_end, worker, now));
        if let Some((shared, exchange)) = &self.call
            && let Some(style) = exchange.style_while_reading()
        {
            let (may_idle, holding) = (exchange.may_idle(), exchange.holding());
            shared.incoming.borrow_mut().expect(self.context, style, may_idle, holding, now);
        }
        action
    }

    fn on_http_request_body(&mut self, size: usize, is_end: bool) -> Action {
        if let Some((shared, _)) = &self.call
            && size > 0
            && !std::mem::replace(&mut self.has_begun, true)
        {
            shared.incoming.borrow_mut().begins(self.context, host::now());
        }
        self.body_bytes = size;
        let action = self.request_body(is_end);
        self.ask_whose();
        action
    }

    /// Trailers end a body too.
    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        if let Some((_, exchange)) = &self.call {
            let edits = exchange.request_trailers(&host::headers(Map::RequestTrailers));
            host::edit_headers(Map::RequestTrailers, &edits);
        }
        self.request_body(true)
    }

    fn on_http_response_headers(&mut self, _: usize, is_end: bool) -> Action {
        if let Some((shared, exchange)) = &mut self.call
            && exchange.meters_reply()
        {
            let (headers, now) = (host::headers(Map::Response), host::now());
            let mut worker = shared.worker.borrow_mut();
            if let Some(ended) = own_reply_of_envoy(&headers) {
                exchange.envoy_replies(ended, &mut worker, now);
            }
            let edits = exchange.reply_headers(&headers, is_end, &mut worker, now);
            drop(worker);
            shared.ring();
            host::edit_headers(Map::Response, &edits);
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, is_end: bool) -> Action {
        if let Some((shared, exchange)) = &mut self.call
            && exchange.meters_reply()
        {
            let wants_piece = size > 0 && exchange.reads_reply();
            let piece = if wants_piece { host::bytes(Buffer::Response, 0, size) } else { Vec::new() };
            let passage = exchange.reply_body(&piece, is_end, &mut shared.worker.borrow_mut(), host::now());
            match passage {
                Passage::Replaced(bytes) if bytes != piece => {
                    host::replace_bytes(Buffer::Response, &bytes);
                }
                Passage::Replaced(_) | Passage::Unchanged => {}
            }
            self.next_message();
        }
        Action::Continue
    }

    /// Trailers cannot carry what is held. That can only be a document which breaks off, or the event that we asked for:
    /// everything else went on as soon as it could be told from that.
    fn on_http_response_trailers(&mut self, _: usize) -> Action {
        if let Some((shared, exchange)) = &mut self.call
            && exchange.meters_reply()
        {
            let trailers = host::headers(Map::ResponseTrailers);
            exchange.reply_trailers(&trailers, &mut shared.worker.borrow_mut(), host::now());
            shared.ring();
            self.note_whether_idle();
        }
        Action::Continue
    }

    fn on_log(&mut self) {
        if let Some((shared, exchange)) = &mut self.call
            && exchange.owes_settlement()
        {
            let ended = Ended::by(host::response_flags(), host::response_details);
            exchange.abandoned(ended, &mut shared.worker.borrow_mut(), host::now());
            shared.ring();
        }
    }
}

impl Drop for Stream {
    /// The last resort, should Envoy end a stream without logging it.
    fn drop(&mut self) {
        self.is_no_longer_incoming();
        if let Some((shared, exchange)) = &mut self.call {
            shared.idle.borrow_mut().note(self.context, None, || Millis::ZERO);
            exchange.abandoned(Ended::ByEnvoy, &mut shared.worker.borrow_mut(), host::now());
            shared.ring();
        }
    }
}

/// How a call ended that Envoy answers in the model server's place; `None` for the model server's own reply. Only errors
/// can be Envoy's, and for those alone it is asked.
fn own_reply_of_envoy(headers: &Headers) -> Option<Ended> {
    const BY_UPSTREAM: &str = "via_upstream";
    if !exchange::is_failure(headers) {
        return None;
    }
    let details = host::response_details();
    (details != BY_UPSTREAM).then(|| Ended::by(host::response_flags(), || details))
}
