//! What several tests do to a running stack: calls in the background, changes by an operator, an edited configuration.

use crate::admin::Operators;
use crate::client::{Chat, Client, Reply, send};
use crate::document;
use crate::stack::Stack;
use crate::stack::quota_service::CONFIG;
use anyhow::{Context, Result, bail};
use reqwest::Method;
use serde_json::Value;
use std::process::Output;
use tokio::task::JoinHandle;

/// Calls that are made in the background, each by a caller of its own.
#[derive(Default)]
pub struct Callers(Vec<JoinHandle<Result<Reply>>>);

impl Callers {
    /// Begins `count` equal calls.
    #[must_use]
    pub fn start(client: &Client, chat: &Chat, count: usize) -> Self {
        let mut callers = Self::default();
        for _ in 0..count {
            let (client, chat) = (client.clone(), chat.clone());
            callers.add(async move { client.chat(&chat).await });
        }
        callers
    }

    /// Begins one call that the caller has made up itself.
    pub fn add(&mut self, call: impl Future<Output = Result<Reply>> + Send + 'static) {
        self.0.push(tokio::spawn(call));
    }

    pub fn extend(&mut self, others: Callers) {
        self.0.extend(others.0);
    }

    /// Waits for every reply.
    ///
    /// # Errors
    /// When a call got none.
    pub async fn replies(self) -> Result<Vec<Reply>> {
        let mut replies = Vec::new();
        for call in self.0 {
            replies.push(call.await??);
        }
        Ok(replies)
    }

    /// Waits for every reply, each of which must be a 200: nobody was lost.
    ///
    /// # Errors
    /// When a call got none, or another one.
    pub async fn all_served(self) -> Result<Vec<Reply>> {
        let replies = self.replies().await?;
        match replies.iter().find(|reply| reply.status != 200) {
            Some(lost) => bail!("a caller was not served: {}", lost.summary()),
            None => Ok(replies),
        }
    }
}

/// Sends an operator's change, with the token and with a JSON body if there is one, and gives whatever came back.
///
/// # Errors
/// When there is no reply at all.
pub async fn change(operators: &Operators, method: Method, path: &str, body: Option<&Value>) -> Result<Reply> {
    let request = reqwest::Client::new().request(method, format!("{}{path}", operators.base()));
    let request = request.bearer_auth(operators.token());
    send(match body {
        Some(body) => request.json(body),
        None => request,
    })
    .await
}

/// As [`change`], for one that must be taken.
///
/// # Errors
/// When it was not.
pub async fn changed(operators: &Operators, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
    let reply = change(operators, method, path, body).await?;
    if reply.status != 200 {
        bail!("{path}: {}", reply.summary());
    }
    Ok(reply.json())
}

/// Edits the sidecar's configuration where it lies. The sidecar learns of it by a reload.
///
/// # Errors
/// When the file cannot be read or written.
pub fn edit_config(stack: &Stack, edit: impl FnOnce(&mut Value)) -> Result<()> {
    let mut config = document::load(&stack.folder.path().join(CONFIG))?;
    edit(&mut config);
    stack.folder.write(CONFIG, &document::text(&config))?;
    Ok(())
}

/// The row of the only pool in the scheduler's statistics.
///
/// # Errors
/// When the statistics cannot be had.
pub async fn pool_now(operators: &Operators) -> Result<Value> {
    let stats = operators.stats().await?;
    stats["pools"].get(0).cloned().context("no pool in the statistics")
}

/// Everything a program printed.
#[must_use]
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
