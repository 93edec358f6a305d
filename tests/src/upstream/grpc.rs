//! KServe's gRPC stream, as a server that runs all messages of a stream at once and answers each as its `id` says: a
//! [`Script`]. Like Triton it says of each reply of a decoupled model whether it was the last, and sends one without
//! content for that only if the message asked.

use super::calls::CallLog;
use super::server::Answer;
use crate::grpc::{field, frame, parameter, take_frame};
use axum::body::Body;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Request, Response};
use serde::Deserialize;
use std::io;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::task::JoinSet;

const ASKS_FOR_FINAL: &str = "triton_enable_empty_final_response";
const IS_FINAL: &str = "triton_final_response";

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Script {
    /// Replies with content.
    replies: usize,
    /// They say whether they are the last, which none of them knows.
    decoupled: bool,
    /// Ends the stream behind them.
    status: Option<u8>,
}

impl Default for Script {
    fn default() -> Self {
        Self { replies: 1, decoupled: false, status: None }
    }
}

impl Script {
    /// Field 3 of the message, as far as this server understands protobuf.
    fn of(message: &[u8]) -> Self {
        let text = message.iter().position(|byte| *byte == b'{').zip(message.iter().rposition(|byte| *byte == b'}'));
        let script = text.and_then(|(from, to)| serde_json::from_slice(message.get(from..=to)?).ok());
        script.unwrap_or_default()
    }
}

type Replies = UnboundedSender<Frame<Bytes>>;

pub(super) fn answer(log: CallLog, request: Request<Incoming>) -> Answer {
    let (replies, outgoing) = mpsc::unbounded_channel();
    let (parts, body) = request.into_parts();
    tokio::spawn(read(log, parts, body, replies));
    let body = stream::unfold(outgoing, |mut outgoing| async {
        let frame = outgoing.recv().await?;
        Some((Ok::<_, io::Error>(frame), outgoing))
    });
    Response::builder()
        .header(CONTENT_TYPE, "application/grpc")
        .body(Body::new(StreamBody::new(body)))
        .map_err(io::Error::other)
}

async fn read(log: CallLog, parts: Parts, body: Incoming, replies: Replies) {
    let (mut body, mut seen, mut running) = (body.into_data_stream(), Vec::new(), JoinSet::new());
    while let Some(Ok(piece)) = body.next().await {
        seen.extend_from_slice(&piece);
        while let Some(message) = take_frame(&mut seen) {
            running.spawn(run(log.clone(), parts.clone(), message.into(), replies.clone()));
        }
    }
    let ended: Vec<()> = running.join_all().await;
    drop(ended);
    let _ = replies.send(status(0));
}

/// Runs a message, for as long as anybody wants its replies.
async fn run(log: CallLog, parts: Parts, message: Bytes, replies: Replies) {
    let closed = replies.clone();
    tokio::select! {
        () = reply(log, parts, message, replies) => {}
        () = closed.closed() => {}
    }
}

async fn reply(log: CallLog, parts: Parts, message: Bytes, replies: Replies) {
    let script = Script::of(&message);
    let asks_for_final = message.windows(ASKS_FOR_FINAL.len()).any(|part| part == ASKS_FOR_FINAL.as_bytes());
    let mut ticket = log.begin(&parts, message).await;
    for number in 1..=script.replies {
        let is_last = number == script.replies && script.status.is_none();
        if is_last && !(script.decoupled && asks_for_final) {
            ticket.end(None);
        }
        let parameters = if script.decoupled { parameter(IS_FINAL, false) } else { Vec::new() };
        send(&replies, &[parameters, field(5, b"output")].concat());
    }
    ticket.end(None);
    if script.decoupled && asks_for_final {
        send(&replies, &parameter(IS_FINAL, true));
    }
    if let Some(code) = script.status {
        let _ = replies.send(status(code));
    }
}

fn send(replies: &Replies, response: &[u8]) {
    let message = field(2, &[&field(1, b"model"), response].concat());
    let _ = replies.send(Frame::data(frame(&message).into()));
}

fn status(code: u8) -> Frame<Bytes> {
    Frame::trailers(HeaderMap::from_iter([(
        hyper::header::HeaderName::from_static("grpc-status"),
        HeaderValue::from(u16::from(code)),
    )]))
}
