//! The operators' listener of the sidecar, as an operator uses it.

use crate::metrics::Metrics;
use crate::wait::wait_for;
use anyhow::{Context, Result};
use serde_json::Value;
use std::time::Duration;

#[derive(Clone)]
pub struct Operators {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Operators {
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn new(base: &str, token: &str) -> Result<Self> {
        // Above the time in which a healthy sidecar answers, below a test's patience with a stopped one.
        let http = reqwest::Client::builder().timeout(Duration::from_secs(2)).build()?;
        Ok(Self { http, base: base.to_owned(), token: token.to_owned() })
    }

    /// Whether the sidecar says it can serve.
    pub async fn is_ready(&self) -> bool {
        self.status("/readyz", None).await.is_ok_and(|status| status == 200)
    }

    /// The status of a GET, with this bearer token or none.
    ///
    /// # Errors
    /// When there is no reply.
    pub async fn status(&self, path: &str, token: Option<&str>) -> Result<u16> {
        let mut request = self.http.get(format!("{}{path}", self.base));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        Ok(request.send().await?.status().as_u16())
    }

    /// A GET with the token, as JSON.
    ///
    /// # Errors
    /// When there is no successful JSON reply.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let request = self.http.get(format!("{}{path}", self.base)).bearer_auth(&self.token);
        let reply = request.send().await?.error_for_status()?;
        reply.json().await.with_context(|| format!("{path} is not JSON"))
    }

    /// # Errors
    /// When there is no successful JSON reply.
    pub async fn stats(&self) -> Result<Value> {
        self.get("/admin/scheduler/stats").await
    }

    /// Calls that stand in queues now.
    ///
    /// # Errors
    /// When the statistics cannot be had.
    pub async fn queued_now(&self) -> Result<u64> {
        self.stats().await?["total_queued_now"].as_u64().context("no total_queued_now")
    }

    /// A scrape of `/metrics`.
    ///
    /// # Errors
    /// When there is no successful reply.
    pub async fn metrics(&self) -> Result<Metrics> {
        let reply = self.http.get(format!("{}/metrics", self.base)).send().await?;
        Ok(Metrics::parse(&reply.error_for_status()?.text().await?))
    }

    /// Waits until exactly `count` calls stand in queues.
    ///
    /// # Errors
    /// When the deadline passes first.
    pub async fn wait_for_queued(&self, count: u64, deadline: Duration) -> Result<()> {
        wait_for(&format!("{count} queued calls"), deadline, || async {
            (self.queued_now().await.ok()? == count).then_some(())
        })
        .await
    }

    /// Waits until a scrape satisfies `holds`, and gives that scrape.
    ///
    /// # Errors
    /// When the deadline passes first.
    pub async fn wait_for_metrics(
        &self,
        what: &str,
        deadline: Duration,
        holds: impl Fn(&Metrics) -> bool,
    ) -> Result<Metrics> {
        wait_for(what, deadline, || async { self.metrics().await.ok().filter(&holds) }).await
    }

    /// Waits until nothing runs and nothing is queued: every call has given back what it had.
    ///
    /// # Errors
    /// When something is still held at the deadline.
    pub async fn wait_until_idle(&self, deadline: Duration) -> Result<()> {
        self.wait_for_metrics("nothing runs and nothing is queued", deadline, |metrics| {
            metrics.sum("sluice_running", &[]) == 0 && metrics.sum("sluice_queue_depth", &[]) == 0
        })
        .await
        .map(|_| ())
    }

    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }
}
