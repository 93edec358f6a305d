//! The context of one request.

use super::{Shared, reply_head};
use crate::dialect::{self, BodyEdit};
use crate::exchange::{Answer, Ended, Exchange, LogTags, Step, Wants};
use crate::headers::HeaderEdit;
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
    /// The token of the callout.
    callout: Option<u32>,
}

impl Stream {
    pub(super) fn new(context: u32, shared: Option<Shared>) -> Self {
        let call = shared.map(|shared| {
            let exchange = Exchange::new(shared.config.clone());
            (shared, exchange)
        });
        Self { context, call, body_bytes: 0, seen_bytes: 0, callout: None }
    }

    /// Feeds the state machine and does what it says. The worker is free again before the host is called.
    fn turn(&mut self, input: impl FnOnce(&mut Exchange, &mut Worker) -> Step) -> Action {
        let Some((shared, exchange)) = &mut self.call else { return Action::Pause };
        let step = input(exchange, &mut shared.worker.borrow_mut());
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
        let is_changed = if body.is_empty() { self.rename_held() } else { change_body(self.body_bytes, body) };
        if !is_changed {
            let now = host::now();
            return self.turn(|exchange, worker| exchange.body_was_not_changed(worker, now));
        }
        host::edit_headers(Map::Request, edits);
        host::tag_all(tags);
        // Envoy resumes after this callback, so the request must be paused by then.
        host::resume_request();
        Action::Pause
    }

    /// Where the messages that Envoy holds need another model's name, puts it in; tells whether they are right now.
    fn rename_held(&mut self) -> bool {
        let Some((_, exchange)) = &mut self.call else { return true };
        if !exchange.renames() {
            return true;
        }
        let changed = exchange.renamed(&host::bytes(Buffer::Request, 0, self.body_bytes));
        host::replace_bytes(Buffer::Request, &changed)
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
            Wants::Pieces => return self.request_piece(holds, is_end, now),
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

    /// While the call is held the buffer grows; afterwards each callback brings a new one.
    fn request_piece(&mut self, holds: bool, is_end: bool, now: Millis) -> Action {
        let start = if holds { self.seen_bytes } else { 0 };
        let size = self.body_bytes.saturating_sub(start);
        let piece = if size == 0 { Vec::new() } else { host::bytes(Buffer::Request, start, size) };
        self.seen_bytes = self.body_bytes;
        let held = self.body_bytes as u64;
        let action = self.turn(|exchange, worker| exchange.request_body_piece(&piece, held, is_end, worker, now));
        if action == Action::Continue
            && !piece.is_empty()
            && let Some((_, exchange)) = &mut self.call
            && exchange.renames()
        {
            host::replace_bytes(Buffer::Request, &exchange.renamed(&piece));
        }
        self.note_whether_incoming();
        action
    }

    fn note_whether_incoming(&self) {
        if self.call.as_ref().is_some_and(|(_, exchange)| !exchange.reads_body()) {
            self.is_no_longer_incoming();
        }
    }
}

fn change_body(size: usize, edits: Vec<BodyEdit>) -> bool {
    let changed = dialect::apply(&host::bytes(Buffer::Request, 0, size), edits);
    changed.is_some_and(|changed| host::replace_bytes(Buffer::Request, &changed))
}

impl Context for Stream {
    fn on_http_call_response(&mut self, token: u32, headers: usize, size: usize, _: usize) {
        if self.callout != Some(token) {
            return;
        }
        self.callout = None;
        let is_decided = headers > 0 && reply_head().0;
        let body = if is_decided { host::bytes(Buffer::CalloutReply, 0, size) } else { Vec::new() };
        let now = host::now();
        let answer = Answer { is_decided, body };
        self.turn(|exchange, worker| exchange.answered(&answer, worker, now));
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, is_end: bool) -> Action {
        let (headers, now) = (host::headers(Map::Request), host::now());
        let action = self.turn(|exchange, worker| exchange.request_headers(&headers, is_end, worker, now));
        if let Some((shared, exchange)) = &self.call
            && let Some(style) = exchange.style_while_reading()
        {
            shared.incoming.borrow_mut().expect(self.context, style, exchange.may_idle(), now);
        }
        action
    }

    fn on_http_request_body(&mut self, size: usize, is_end: bool) -> Action {
        if let Some((shared, _)) = &self.call
            && self.body_bytes == 0
            && size > 0
        {
            shared.incoming.borrow_mut().begins(self.context, host::now());
        }
        self.body_bytes = size;
        self.request_body(is_end)
    }

    /// Trailers end a body too.
    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        self.request_body(true)
    }

    fn on_http_response_headers(&mut self, _: usize, is_end: bool) -> Action {
        if let Some((shared, exchange)) = &mut self.call
            && exchange.meters_reply()
        {
            let (headers, now) = (host::headers(Map::Response), host::now());
            let edits = exchange.reply_headers(&headers, is_end, &mut shared.worker.borrow_mut(), now);
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
        }
        Action::Continue
    }

    fn on_log(&mut self) {
        if let Some((shared, exchange)) = &mut self.call
            && exchange.owes_settlement()
        {
            let ended = how_it_ended();
            exchange.abandoned(ended, &mut shared.worker.borrow_mut(), host::now());
        }
    }
}

impl Drop for Stream {
    /// The last resort, should Envoy end a stream without logging it.
    fn drop(&mut self) {
        self.is_no_longer_incoming();
        if let Some((shared, exchange)) = &mut self.call {
            exchange.abandoned(Ended::ByUpstream, &mut shared.worker.borrow_mut(), host::now());
        }
    }
}

fn how_it_ended() -> Ended {
    /// Envoy's `DownstreamConnectionTermination`, and `DownstreamRemoteReset` over HTTP/2.
    const CLIENT_LEFT: u64 = 1 << 14 | 1 << 28;
    if host::response_flags() & CLIENT_LEFT != 0 { Ended::ByClient } else { Ended::ByUpstream }
}
