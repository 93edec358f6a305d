//! A caller: OpenAI chat calls with a key, and replies as they came.

use crate::wait::wait_for;
use anyhow::{Context, Result};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub const CHAT_PATH: &str = "/v1/chat/completions";

/// Longer than any test's call takes; a call that reaches it hangs.
const HANGS_AFTER: Duration = Duration::from_secs(90);

/// A chat call's body.
#[derive(Clone, Debug)]
pub struct Chat {
    body: Value,
}

impl Chat {
    /// A short call that is not streamed.
    #[must_use]
    pub fn to(model: &str) -> Self {
        let body = json!({
            "model": model,
            "messages": [{"role": "user", "content": "Name a colour."}],
            "max_tokens": 8,
        });
        Self { body }
    }

    #[must_use]
    pub fn stream(self) -> Self {
        self.with("stream", json!(true))
    }

    #[must_use]
    pub fn stream_with_usage(self) -> Self {
        self.stream().with("stream_options", json!({"include_usage": true}))
    }

    #[must_use]
    pub fn prompt(self, text: &str) -> Self {
        self.with("messages", json!([{"role": "user", "content": text}]))
    }

    #[must_use]
    pub fn max_tokens(self, count: u64) -> Self {
        self.with("max_tokens", json!(count))
    }

    /// Tells the scripted upstream how the call shall go: fields of [`crate::upstream::Behaviour`].
    #[must_use]
    pub fn behave(self, script: Value) -> Self {
        self.with("metadata", json!({"behave": script}))
    }

    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.body[field] = value;
        self
    }

    #[must_use]
    pub fn text(&self) -> String {
        self.body.to_string()
    }
}

/// Calls one Envoy with one key, or with none.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
}

impl Client {
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn new(base: &str) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(HANGS_AFTER).build()?;
        Ok(Self { http, base: base.to_owned(), key: None })
    }

    /// The same client on connections of its own.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn apart(&self) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(HANGS_AFTER).build()?;
        Ok(Self { http, ..self.clone() })
    }

    /// The same client over HTTP/2, which a server without TLS is only told by doing it.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn over_http2(&self) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(HANGS_AFTER).http2_prior_knowledge().build()?;
        Ok(Self { http, ..self.clone() })
    }

    /// The same client over HTTP/2 from another address of this machine, on connections of its own.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn from(&self, address: IpAddr) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(HANGS_AFTER).local_address(address).http2_prior_knowledge();
        Ok(Self { http: http.build()?, ..self.clone() })
    }

    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    /// A request that the caller may still change, with the key in `authorization`.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// A chat call whose headers or body may still be changed.
    pub fn chat_request(&self, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.request(Method::POST, CHAT_PATH).header("content-type", "application/json").body(body)
    }

    /// Makes a chat call and reads the whole reply.
    ///
    /// # Errors
    /// When there is no reply at all. One that breaks off is [`Reply::broken`].
    pub async fn chat(&self, chat: &Chat) -> Result<Reply> {
        send(self.chat_request(chat.text())).await
    }

    /// Makes the call, again as long as the ledger is said not to answer: where a machine that stands still may end a
    /// lease, that says nothing of what the test is about.
    ///
    /// # Errors
    /// When the deadline passes first.
    pub async fn chat_leased(&self, chat: &Chat, deadline: Duration) -> Result<Reply> {
        wait_for("the ledger answers", deadline, || async {
            self.chat(chat).await.ok().filter(|reply| reply.reason() != Some("ledger_unavailable"))
        })
        .await
    }

    /// Makes the call again and again until it is served.
    ///
    /// # Errors
    /// When the deadline passes first.
    pub async fn wait_until_served(&self, chat: &Chat, deadline: Duration) -> Result<()> {
        wait_for("calls are served again", deadline, || async {
            let reply = self.chat(chat).await.ok()?;
            (reply.status == 200).then_some(())
        })
        .await
    }
}

/// A reply as the client saw it.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// The connection ended before the reply did.
    pub broken: bool,
    /// From the start of the call to the end of the reply.
    pub took: Duration,
}

/// Sends a request and reads the whole reply.
///
/// # Errors
/// When there is no reply at all.
pub async fn send(request: RequestBuilder) -> Result<Reply> {
    let started = Instant::now();
    let mut response = request.send().await.context("no reply")?;
    let mut body = Vec::new();
    let broken = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    Ok(Reply {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body,
        broken,
        took: started.elapsed(),
    })
}

impl Reply {
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Why Sluice refused; `None` when it did not.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.header("x-sluice-reason")
    }

    /// The whole seconds of `retry-after`.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        Some(Duration::from_secs(self.header("retry-after")?.parse().ok()?))
    }

    /// How long the call stood in the queue.
    #[must_use]
    pub fn waited(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.header("x-queue-wait-ms")?.parse().ok()?))
    }

    /// The body as JSON; null when it is not.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Checks that a refusal is what OpenAI's clients read: `{"error": {message, type, param, code}}`, labelled as JSON.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_openai_error(&self) -> Result<(), &'static str> {
        let body = self.json();
        let error = body["error"].as_object().ok_or("no OpenAI error body")?;
        let has = |name| error.get(name).is_some_and(|value| value.is_string());
        if !(has("message") && has("type") && error.contains_key("param") && error.contains_key("code")) {
            return Err("the error lacks a field");
        }
        if !self.header("content-type").is_some_and(|kind| kind.starts_with("application/json")) {
            return Err("the error is not labelled as JSON");
        }
        Ok(())
    }

    /// Checks that a refusal is what some client reads: OpenAI's form, or the plain one for paths that are not theirs.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_error(&self) -> Result<(), &'static str> {
        let is_plain = self.json()["error"].is_string() && self.json()["reason"].as_str() == self.reason();
        if is_plain { Ok(()) } else { self.check_openai_error() }
    }

    /// The `data:` of every event of a stream that is JSON, so without `[DONE]`.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        self.text().lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data:")?).ok()).collect()
    }

    /// The status, the reason and the body, for a failed assertion.
    #[must_use]
    pub fn summary(&self) -> String {
        let text: String = self.text().chars().take(400).collect();
        format!("{} {} {text}", self.status, self.reason().unwrap_or("-"))
    }
}
