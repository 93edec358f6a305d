//! A model server whose calls say themselves how they shall go: `metadata.behave` in the body is a [`Behaviour`].
//!
//! It speaks the dialect of the path that is called, OpenAI's chat where that says nothing, as a document and as a stream,
//! and like a real server it sends the usage of a chat's stream only when `stream_options.include_usage` asks for it. It packs its replies for whoever takes gzip.

use super::calls::{CallLog, Ticket, Trailers};
use super::dialects::Dialect;
use super::server::Answer;
use super::usage::Usage;
use crate::gzip::Gzip;
use axum::body::Body;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Request, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    pub status: u16,
    /// Before the first byte.
    pub delay_ms: u64,
    /// Between two events of a stream.
    pub gap_ms: u64,
    /// Words of the answer; each is an event of a stream and counts as one output token.
    pub words: u64,
    /// The answer, piece by piece, instead of words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<String>,
    pub ending: Ending,
    /// The server works until its answer is ready, whether its client is still there or not; else it stops with it.
    pub works_on: bool,
    /// Overrides the counts in the reply; `null` leaves them out.
    #[serde(skip_serializing_if = "Reported::is_honest")]
    pub usage: Reported,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    #[default]
    Whole,
    /// The connection closes before any byte of the reply.
    ResetAtOnce,
    /// The connection closes after half of the words.
    ResetMidway,
    /// A stream ends, in good order for HTTP, in the middle of a `data:` line.
    CutLine,
    /// A stream's last event has no empty line after it, and trailers (of HTTP/2) follow.
    Trailers,
    /// A stream does not end with its last event: it stays open until its client leaves.
    Lingers,
}

/// What the reply says of its usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reported {
    Given(Usage),
    Nothing,
    #[default]
    #[serde(skip)]
    Honest,
}

impl Reported {
    fn is_honest(&self) -> bool {
        *self == Reported::Honest
    }
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            status: 200,
            delay_ms: 0,
            gap_ms: 0,
            words: 3,
            pieces: Vec::new(),
            ending: Ending::Whole,
            works_on: false,
            usage: Reported::Honest,
        }
    }
}

const TRAILER_NAME: HeaderName = HeaderName::from_static("x-trailer");
const WORD: &str = "word ";
/// What every prompt counts as.
const PROMPT_TOKENS: u64 = 11;

impl Behaviour {
    fn of(body: &Value) -> Self {
        body.pointer("/metadata/behave")
            .and_then(|script| serde_json::from_value(script.clone()).ok())
            .unwrap_or_default()
    }

    fn pieces(&self) -> Vec<&str> {
        if self.pieces.is_empty() {
            return vec![WORD; usize::try_from(self.words).unwrap_or(0)];
        }
        self.pieces.iter().map(String::as_str).collect()
    }

    fn usage(&self) -> Option<Usage> {
        match self.usage {
            Reported::Given(usage) => Some(usage),
            Reported::Nothing => None,
            Reported::Honest => Some(Usage { input: PROMPT_TOKENS, output: self.words, cached: 0 }),
        }
    }
}

pub(super) async fn answer(log: CallLog, request: Request<Incoming>) -> Answer {
    if request.uri().path() == crate::grpc::STREAM_PATH {
        return super::grpc::answer(log, request);
    }
    let takes_gzip = takes_gzip(request.headers());
    let reply = plain_answer(log, request).await?;
    Ok(if takes_gzip { packed(reply) } else { reply })
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| coding.trim() == "gzip")
}

/// Each chunk is packed by itself, so that a stream goes on streaming.
fn packed(reply: Response<Body>) -> Response<Body> {
    let (mut parts, body) = reply.into_parts();
    parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    let chunks = stream::unfold(Some((body.into_data_stream(), Gzip::begin())), |state| async {
        let (mut chunks, mut file) = state?;
        match chunks.next().await {
            Some(Ok(chunk)) => Some((Ok(file.piece(&chunk)), Some((chunks, file)))),
            Some(Err(error)) => Some((Err(error), None)),
            None => Some((Ok(file.end()), None)),
        }
    });
    let head = stream::once(async { Ok(Gzip::HEAD.to_vec()) });
    Response::from_parts(parts, Body::from_stream(head.chain(chunks)))
}

async fn plain_answer(log: CallLog, request: Request<Incoming>) -> Answer {
    let (mut parts, body) = request.into_parts();
    let collected = body.collect().await.map_err(io::Error::other)?;
    parts.extensions.insert(Trailers(collected.trailers().cloned().unwrap_or_default()));
    let body = collected.to_bytes();
    let call: Value = serde_json::from_slice(&body).unwrap_or_default();
    let behaviour = Behaviour::of(&call);
    if behaviour.works_on {
        // A task of its own ends by itself.
        return tokio::spawn(worked(log, parts, body, call, behaviour)).await.map_err(io::Error::other)?;
    }
    worked(log, parts, body, call, behaviour).await
}

async fn worked(log: CallLog, parts: Parts, body: Bytes, call: Value, behaviour: Behaviour) -> Answer {
    let mut ticket = log.begin(&parts, body).await;
    tokio::time::sleep(Duration::from_millis(behaviour.delay_ms)).await;
    if behaviour.ending == Ending::ResetAtOnce {
        ticket.end(None);
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    if behaviour.status != 200 {
        ticket.end(None);
        return json_reply(behaviour.status, &failure());
    }
    let path = parts.uri.path();
    let dialect = Dialect::of(path);
    if dialect.streams(path, &call) {
        return event_stream(dialect, &call, &behaviour, ticket);
    }
    if behaviour.ending == Ending::ResetMidway {
        return broken_document(ticket);
    }
    let usage = behaviour.usage();
    ticket.end(usage);
    json_reply(200, &dialect.document(&call, behaviour.pieces().concat().trim_end(), usage))
}

fn failure() -> Value {
    json!({"error": {"message": "scripted failure", "type": "server_error", "param": null, "code": null}})
}

fn json_reply(status: u16, document: &Value) -> Answer {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(document.to_string()))
        .map_err(io::Error::other)
}

/// Half a document, then the connection closes.
fn broken_document(ticket: Ticket) -> Answer {
    let steps = [Step::Send("{\"id\":\"chatcmpl-scripted\",\"choices\":[".to_owned()), Step::Break];
    stepwise("application/json", steps.into(), Duration::ZERO, None, ticket)
}

fn event_stream(dialect: Dialect, call: &Value, behaviour: &Behaviour, ticket: Ticket) -> Answer {
    let usage = dialect.told(call, behaviour.usage());
    let steps = stream_steps(dialect, call, behaviour, usage);
    let gap = Duration::from_millis(behaviour.gap_ms);
    stepwise("text/event-stream", steps, gap, usage, ticket)
}

enum Step {
    Send(String),
    Trailers,
    Break,
    Linger,
}

fn stream_steps(dialect: Dialect, call: &Value, behaviour: &Behaviour, usage: Option<Usage>) -> VecDeque<Step> {
    let pieces = behaviour.pieces();
    let text = pieces.iter().map(|piece| dialect.piece(call, piece));
    let mut events = dialect.opening(call, usage);
    let mut last = Vec::new();
    match behaviour.ending {
        Ending::ResetMidway => {
            events.extend(text.take(pieces.len() / 2));
            last.push(Step::Break);
        }
        Ending::CutLine => {
            events.extend(text);
            let mut half = dialect.piece(call, WORD);
            half.truncate(half.len() / 2);
            last.push(Step::Send(half));
        }
        Ending::Whole | Ending::ResetAtOnce | Ending::Trailers | Ending::Lingers => {
            events.extend(text);
            events.extend(dialect.closing(call, &pieces.concat(), usage));
            if dialect.says_done() {
                events.push("data: [DONE]\n\n".to_owned());
            }
        }
    }
    if behaviour.ending == Ending::Lingers {
        last.push(Step::Linger);
    }
    if behaviour.ending == Ending::Trailers {
        last.extend(events.pop().map(|event| Step::Send(event.trim_end().to_owned())));
        last.push(Step::Trailers);
    }
    events.into_iter().map(Step::Send).chain(last).collect()
}

/// Sends the steps with a gap between them, and ends the ticket before the last.
fn stepwise(content_type: &str, steps: VecDeque<Step>, gap: Duration, usage: Option<Usage>, ticket: Ticket) -> Answer {
    let body = stream::unfold((steps, ticket), move |(mut steps, mut ticket)| async move {
        let step = steps.pop_front()?;
        if steps.is_empty() {
            ticket.end(usage);
        }
        let sent = match step {
            Step::Send(text) => Ok(Frame::data(Bytes::from(text))),
            Step::Trailers => {
                Ok(Frame::trailers(HeaderMap::from_iter([(TRAILER_NAME, HeaderValue::from_static("1"))])))
            }
            Step::Break => {
                // hyper sends what it has buffered while we are pending, and drops it at an error.
                tokio::task::yield_now().await;
                Err(io::Error::from(io::ErrorKind::ConnectionReset))
            }
            Step::Linger => std::future::pending().await,
        };
        if gap > Duration::ZERO && !steps.is_empty() {
            tokio::time::sleep(gap).await;
        } else {
            // Each event is written by itself all the same: hyper flushes while we are pending.
            tokio::task::yield_now().await;
        }
        Some((sent, (steps, ticket)))
    });
    let body = Body::new(StreamBody::new(body));
    Response::builder().header(CONTENT_TYPE, content_type).body(body).map_err(io::Error::other)
}
