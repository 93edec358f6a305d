//! A reverse proxy that counts, to measure from outside how many calls run in a real model.

use super::calls::{CallLog, Ticket};
use super::server::Answer;
use super::usage::Usage;
use anyhow::Result;
use axum::body::{Body, to_bytes};
use futures_util::{Stream, StreamExt, stream};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use hyper::{HeaderMap, Request, Response};
use std::io;
use std::pin::Pin;

#[derive(Clone)]
pub(super) struct Forwarder {
    base: String,
    http: reqwest::Client,
}

impl Forwarder {
    pub(super) fn new(base: &str) -> Result<Self> {
        // A connection of its own for each call: the model closes idle ones whenever it likes, also as a call goes out.
        Ok(Self { base: base.to_owned(), http: reqwest::Client::builder().pool_max_idle_per_host(0).build()? })
    }
}

pub(super) async fn answer(to: Forwarder, log: CallLog, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let body = to_bytes(Body::new(body), usize::MAX).await.map_err(io::Error::other)?;
    let ticket = log.begin(&parts, body.clone()).await;
    let url = format!("{}{}", to.base, parts.uri);
    let reply = to
        .http
        .request(parts.method, url)
        .headers(end_to_end(&parts.headers))
        .body(body)
        .send()
        .await
        .map_err(io::Error::other)?;
    let mut response = Response::builder().status(reply.status());
    if let Some(headers) = response.headers_mut() {
        *headers = end_to_end(reply.headers());
    }
    let bytes = Box::pin(reply.bytes_stream().map(|chunk| chunk.map_err(io::Error::other)));
    response.body(Body::from_stream(counted(bytes, ticket))).map_err(io::Error::other)
}

/// Without the headers that belong to one connection. Without a content length the reply goes out in chunks, and its
/// last byte is the end marker that hyper writes after our stream has ended – and after the ticket has.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    for name in [CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING] {
        kept.remove(name);
    }
    kept
}

type Chunks = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// A reply on its way. It ends with its last chunk, or when it is dropped because the client has left.
struct Passage {
    chunks: Chunks,
    ticket: Ticket,
    seen: Vec<u8>,
}

/// With this OpenAI's streams end for their clients: some close the connection at once, and do not wait for the end
/// marker.
const DONE: &[u8] = b"data: [DONE]\n\n";

impl Passage {
    fn pass(&mut self, bytes: &Bytes) {
        self.seen.extend_from_slice(bytes);
        if self.seen.ends_with(DONE) {
            self.end();
        }
    }

    fn end(&mut self) {
        self.ticket.end(Usage::in_reply(&self.seen));
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.end();
    }
}

fn counted(chunks: Chunks, ticket: Ticket) -> impl Stream<Item = io::Result<Bytes>> {
    let passage = Passage { chunks, ticket, seen: Vec::new() };
    stream::unfold(passage, |mut passage| async move {
        // At the end the passage is dropped here, before hyper hears of the end.
        let chunk = passage.chunks.next().await?;
        if let Ok(bytes) = &chunk {
            passage.pass(bytes);
        }
        Some((chunk, passage))
    })
}
