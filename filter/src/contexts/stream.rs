//! The context of one request.

use super::{Shared, reply_head};
use crate::exchange::{Answer, Ended, Exchange, Step};
use crate::host::{self, Buffer, Map};
use crate::usage::Passage;
use crate::worker::Worker;
use log::debug;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;
use sluice_policy::wire::{ADMISSIONS_PATH, AdmissionRequest};

pub(super) struct Stream {
    context: u32,
    /// `None` only before the plugin was configured; Envoy sends no requests then.
    call: Option<(Shared, Exchange)>,
    /// Bytes of the request's body that Envoy holds.
    body_bytes: usize,
    /// The token of the admission callout.
    callout: Option<u32>,
}

impl Stream {
    pub(super) fn new(context: u32, shared: Option<Shared>) -> Self {
        let call = shared.map(|shared| {
            let exchange = Exchange::new(shared.config.clone());
            (shared, exchange)
        });
        Self { context, call, body_bytes: 0, callout: None }
    }

    /// Feeds the state machine and does what it says. The worker is free again before the host is called.
    fn turn(&mut self, input: impl FnOnce(&mut Exchange, &mut Worker) -> Step) -> Action {
        let Some((shared, exchange)) = &mut self.call else { return Action::Pause };
        let step = input(exchange, &mut shared.worker.borrow_mut());
        match step {
            Step::Hold => Action::Pause,
            Step::Ask { request, body, tags } => {
                host::tag_all(&tags);
                self.ask(&request, body.as_deref())
            }
            Step::Forward { edits, tags } => {
                host::edit_headers(Map::Request, &edits);
                host::tag_all(&tags);
                // Envoy resumes after this callback, so the request must be paused by then.
                host::resume_request();
                Action::Pause
            }
            Step::Reply { reply, tags } => {
                debug!("refused: {}", reply.reason.as_str());
                host::tag_all(&tags);
                host::reply(&reply);
                Action::Pause
            }
        }
    }

    fn ask(&mut self, request: &AdmissionRequest, body: Option<&[u8]>) -> Action {
        let Some((shared, exchange)) = &mut self.call else { return Action::Pause };
        if body.is_some_and(|body| !host::replace_bytes(Buffer::Request, body)) {
            exchange.body_was_not_replaced();
        }
        // A request of plain texts and numbers always serialises.
        let json = serde_json::to_vec(request).unwrap_or_default();
        self.callout = shared.post(ADMISSIONS_PATH, &json, shared.config.service.timeout);
        if self.callout.is_some() {
            return Action::Pause;
        }
        let now = host::now();
        self.turn(|exchange, worker| exchange.could_not_ask(worker, now))
    }

    fn is_no_longer_incoming(&self) {
        if let Some((shared, _)) = &self.call {
            shared.incoming.borrow_mut().ends(self.context);
        }
    }

    /// More of the request's body, or its end: Envoy holds all of it while this pauses.
    fn request_body(&mut self, is_end: bool) -> Action {
        let total = self.body_bytes;
        match &self.call {
            Some((_, exchange)) if exchange.reads_body() => {}
            Some((_, exchange)) if !exchange.holds_request() => return Action::Continue,
            _ => return Action::Pause,
        }
        if is_end {
            self.is_no_longer_incoming();
            let body = host::bytes(Buffer::Request, total);
            return self.turn(|exchange, worker| exchange.request_body_ended(&body, worker));
        }
        let action = self.turn(|exchange, _| exchange.request_body_grew(total as u64));
        if self.call.as_ref().is_some_and(|(_, exchange)| !exchange.reads_body()) {
            self.is_no_longer_incoming();
        }
        action
    }
}

impl Context for Stream {
    fn on_http_call_response(&mut self, token: u32, headers: usize, size: usize, _: usize) {
        if self.callout != Some(token) {
            return;
        }
        self.callout = None;
        let is_decided = headers > 0 && reply_head().0;
        let body = if is_decided { host::bytes(Buffer::CalloutReply, size) } else { Vec::new() };
        let now = host::now();
        let answer = Answer { is_decided, body };
        self.turn(|exchange, worker| exchange.answered(&answer, worker, now));
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, is_end: bool) -> Action {
        let headers = host::headers(Map::Request);
        let action = self.turn(|exchange, worker| exchange.request_headers(&headers, is_end, worker));
        if let Some((shared, exchange)) = &self.call
            && exchange.reads_body()
        {
            shared.incoming.borrow_mut().expect(self.context, host::now());
        }
        action
    }

    fn on_http_request_body(&mut self, size: usize, is_end: bool) -> Action {
        if let Some((shared, _)) = &self.call
            && self.body_bytes == 0
            && size > 0
        {
            shared.incoming.borrow_mut().begins(self.context);
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
            let headers = host::headers(Map::Response);
            let edits = exchange.reply_headers(&headers, is_end, &mut shared.worker.borrow_mut());
            host::edit_headers(Map::Response, &edits);
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, is_end: bool) -> Action {
        if let Some((shared, exchange)) = &mut self.call
            && exchange.meters_reply()
        {
            let piece = if size == 0 { Vec::new() } else { host::bytes(Buffer::Response, size) };
            let passage = exchange.reply_body(&piece, is_end, &mut shared.worker.borrow_mut());
            match passage {
                Passage::Replaced(bytes) if bytes != piece => {
                    host::replace_bytes(Buffer::Response, &bytes);
                }
                Passage::Replaced(_) | Passage::Unchanged => {}
            }
        }
        Action::Continue
    }

    /// What was held of an event that the upstream never ended is lost here: trailers cannot carry it.
    fn on_http_response_trailers(&mut self, _: usize) -> Action {
        if let Some((shared, exchange)) = &mut self.call {
            exchange.reply_ended(&mut shared.worker.borrow_mut());
        }
        Action::Continue
    }

    fn on_log(&mut self) {
        if let Some((shared, exchange)) = &mut self.call
            && exchange.owes_settlement()
        {
            let ended = how_it_ended();
            exchange.abandoned(ended, &mut shared.worker.borrow_mut());
        }
    }
}

impl Drop for Stream {
    /// The last resort, should Envoy end a stream without logging it.
    fn drop(&mut self) {
        self.is_no_longer_incoming();
        if let Some((shared, exchange)) = &mut self.call {
            exchange.abandoned(Ended::ByUpstream, &mut shared.worker.borrow_mut());
        }
    }
}

fn how_it_ended() -> Ended {
    /// Envoy's `DownstreamConnectionTermination`, also set when the client resets its stream.
    const CLIENT_LEFT: u64 = 1 << 14;
    if host::response_flags() & CLIENT_LEFT != 0 { Ended::ByClient } else { Ended::ByUpstream }
}
