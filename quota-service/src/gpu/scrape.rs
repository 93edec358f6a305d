//! Asks the exporters, one task for each.

use super::dcgm::{self, Reading};
use super::view::{GpuView, ScrapeResult};
use super::{Exporter, GpuSettings};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::header::ACCEPT;
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// For connecting and the whole reply. Exporters answer from a cache.
const TIMEOUT: Duration = Duration::from_secs(2);
/// A full node says 300 kB or so.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;
/// Replies held at once, so that many hostile exporters cannot fill the memory: 64 MiB at most.
const MAX_CONCURRENT: usize = 4;

/// Why a scrape told nothing.
#[derive(Debug, thiserror::Error)]
enum ScrapeError {
    #[error("no connection or a broken one: {0}")]
    Unreachable(String),
    #[error("no answer within {} ms", TIMEOUT.as_millis())]
    Timeout,
    #[error("the answer is {0}")]
    BadStatus(StatusCode),
    #[error("the answer is longer than {MAX_BODY_BYTES} bytes")]
    TooLarge,
    #[error("no line of the answer tells of a device; {bad_lines} are no metrics at all")]
    NotMetrics { bad_lines: u64 },
}

impl ScrapeError {
    fn result(&self) -> ScrapeResult {
        match self {
            Self::Unreachable(_) => ScrapeResult::Unreachable,
            Self::Timeout => ScrapeResult::Timeout,
            Self::BadStatus(_) => ScrapeResult::BadStatus,
            Self::TooLarge => ScrapeResult::TooLarge,
            Self::NotMetrics { .. } => ScrapeResult::NotMetrics,
        }
    }
}

/// Scrapes every exporter at its interval until `shutdown` becomes true or its sender is gone. A scrape that is
/// under way then is abandoned. `tenants` maps namespaces to tenants' ids.
pub async fn run(
    settings: GpuSettings,
    tenants: BTreeMap<String, String>,
    view: Arc<GpuView>,
    mut shutdown: watch::Receiver<bool>,
) {
    let scraper = Arc::new(Scraper { client: client(), turns: Semaphore::new(MAX_CONCURRENT), tenants, view });
    let mut tasks = JoinSet::new();
    for exporter in settings.exporters {
        tasks.spawn(Arc::clone(&scraper).follow(exporter, settings.interval));
    }
    // An error means that the sender is gone, which is a shutdown too.
    let _ = shutdown.wait_for(|stop| *stop).await;
    tasks.shutdown().await;
}

type HttpClient = Client<HttpConnector, Empty<Bytes>>;

struct Scraper {
    client: HttpClient,
    turns: Semaphore,
    tenants: BTreeMap<String, String>,
    view: Arc<GpuView>,
}

/// No connection is kept between scrapes: the exporter would close it about when we use it again.
fn client() -> HttpClient {
    Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http()
}

impl Scraper {
    async fn follow(self: Arc<Self>, exporter: Exporter, every: Duration) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            ticks.tick().await;
            let outcome = self.scrape(&exporter.url).await;
            tell_change(&exporter, &mut failing, outcome.as_ref().err());
            self.record(&exporter.node, outcome);
        }
    }

    async fn scrape(&self, url: &Uri) -> Result<Reading, ScrapeError> {
        // The semaphore is never closed; were it, going on without a turn is the lesser harm.
        let _turn = self.turns.acquire().await.ok();
        let body = timeout(TIMEOUT, self.fetch(url)).await.map_err(|_| ScrapeError::Timeout)??;
        let reading = dcgm::read(&body);
        // A node without GPUs says nothing, and rightly so. A login page and another exporter say much, and nothing of them
        // is understood here.
        if reading.rows.is_empty() && reading.bad_lines + reading.other_samples > 0 {
            return Err(ScrapeError::NotMetrics { bad_lines: reading.bad_lines });
        }
        Ok(reading)
    }

    async fn fetch(&self, url: &Uri) -> Result<Bytes, ScrapeError> {
        let request = Request::get(url)
            .header(ACCEPT, "text/plain;version=0.0.4")
            .body(Empty::new())
            .map_err(|error| ScrapeError::Unreachable(error.to_string()))?;
        let response =
            self.client.request(request).await.map_err(|error| ScrapeError::Unreachable(with_causes(&error)))?;
        if response.status() != StatusCode::OK {
            return Err(ScrapeError::BadStatus(response.status()));
        }
        match Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(ScrapeError::TooLarge),
            Err(error) => Err(ScrapeError::Unreachable(with_causes(error.as_ref()))),
        }
    }

    fn record(&self, node: &str, outcome: Result<Reading, ScrapeError>) {
        match outcome {
            Ok(reading) => self.view.record_reading(node, reading, &self.tenants, Instant::now()),
            Err(error) => {
                let bad_lines = match error {
                    ScrapeError::NotMetrics { bad_lines } => bad_lines,
                    _ => 0,
                };
                self.view.record_failure(node, error.result(), bad_lines);
            }
        }
    }
}

/// Logs only when an exporter begins to fail and when it is well again; the counters have the rest.
fn tell_change(exporter: &Exporter, failing: &mut bool, error: Option<&ScrapeError>) {
    let (node, url) = (exporter.node.as_str(), &exporter.url);
    match error {
        Some(error) if !*failing => {
            tracing::warn!(node, %url, %error, "the GPU exporter does not answer as it should");
        }
        None if *failing => tracing::info!(node, %url, "the GPU exporter answers again"),
        _ => {}
    }
    *failing = error.is_some();
}

/// hyper's errors name the cause, like a refused connection, only one level down.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests;
