//! A client of KServe's gRPC streams, and the few bytes of protobuf that it and the scripted server have to know.

use crate::client::Client;
use anyhow::{Context, Result, bail};
use hyper::body::Bytes;
use reqwest::{Method, Response};
use serde_json::Value;
use std::io;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub const STREAM_PATH: &str = "/inference.GRPCInferenceService/ModelStreamInfer";
const HEAD_BYTES: usize = 5;

/// A field whose value is bytes.
#[must_use]
pub fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = value.len();
    while length >= 0x80 {
        bytes.push(0x80 | u8::try_from(length & 0x7f).unwrap_or_default());
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap_or_default());
    bytes.extend_from_slice(value);
    bytes
}

/// An entry of a map of parameters.
#[must_use]
pub fn parameter(name: &str, value: bool) -> Vec<u8> {
    field(4, &[field(1, name.as_bytes()), field(2, &[8, u8::from(value)])].concat())
}

#[must_use]
pub fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0][..], &length, message].concat()
}

/// A message that the scripted server answers like this.
#[must_use]
pub fn message(model: &str, script: &Value) -> Vec<u8> {
    frame(&[field(1, model.as_bytes()), field(3, script.to_string().as_bytes())].concat())
}

/// Takes the first whole frame's message out of what has come.
pub fn take_frame(seen: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = u32::from_be_bytes(*seen.get(1..HEAD_BYTES)?.first_chunk()?);
    let end = HEAD_BYTES + usize::try_from(length).ok()?;
    let message = seen.get(HEAD_BYTES..end)?.to_vec();
    seen.drain(..end);
    Some(message)
}

/// One stream of messages and its replies.
pub struct GrpcStream {
    messages: Option<mpsc::UnboundedSender<io::Result<Bytes>>>,
    opening: Option<JoinHandle<reqwest::Result<Response>>>,
    response: Option<Response>,
    seen: Vec<u8>,
}

impl GrpcStream {
    /// # Errors
    /// When there is no client.
    pub fn open(client: &Client) -> Result<Self> {
        let (messages, mut incoming) = mpsc::unbounded_channel();
        let body = futures_util::stream::poll_fn(move |context| incoming.poll_recv(context));
        let request = client
            .over_http2()?
            .request(Method::POST, STREAM_PATH)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(reqwest::Body::wrap_stream(body));
        let opening = Some(tokio::spawn(request.send()));
        Ok(Self { messages: Some(messages), opening, response: None, seen: Vec::new() })
    }

    pub fn send(&self, bytes: Vec<u8>) {
        if let Some(messages) = &self.messages {
            // It fails only when the stream is over, which its replies tell.
            let _ = messages.send(Ok(bytes.into()));
        }
    }

    /// No further message will come.
    pub fn close(&mut self) {
        self.messages = None;
    }

    /// The reply's head.
    ///
    /// # Errors
    /// When the stream ended without one.
    pub async fn head(&mut self) -> Result<&mut Response> {
        if let Some(opening) = self.opening.take() {
            self.response = Some(opening.await??);
        }
        self.response.as_mut().context("no reply")
    }

    /// The next reply's message; `None` at the stream's end.
    ///
    /// # Errors
    /// When the stream breaks off.
    pub async fn reply(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(message) = take_frame(&mut self.seen) {
                return Ok(Some(message));
            }
            match self.head().await?.chunk().await? {
                Some(chunk) => self.seen.extend_from_slice(&chunk),
                None if self.seen.is_empty() => return Ok(None),
                None => bail!("ends within a reply"),
            }
        }
    }

    /// How many replies there are until the stream ends, in whatever way.
    pub async fn replies(&mut self) -> usize {
        let mut count = 0;
        while let Ok(Some(_)) = self.reply().await {
            count += 1;
        }
        count
    }
}
