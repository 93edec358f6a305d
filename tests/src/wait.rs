//! Waiting for something to become true, always with a deadline: the only place where time is slept away.

use anyhow::{Result, bail};
use std::future::Future;
use std::time::{Duration, Instant};

/// Short enough that nobody notices, long enough that polling does not compete with what is polled.
const POLL: Duration = Duration::from_millis(5);

/// Waits until `condition` gives a value.
///
/// # Errors
/// When `deadline` passes first; the error names `what` was waited for.
pub async fn wait_for<T, Fut>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Fut) -> Result<T>
where
    Fut: Future<Output = Option<T>>,
{
    let started = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return Ok(value);
        }
        if started.elapsed() >= deadline {
            bail!("waited {} ms in vain: {what}", deadline.as_millis());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until `condition` is true and says how long that took.
///
/// # Errors
/// When `deadline` passes first; the error names `what` was waited for.
pub async fn wait_until<Fut>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Fut) -> Result<Duration>
where
    Fut: Future<Output = bool>,
{
    let started = Instant::now();
    wait_for(what, deadline, || {
        let held = condition();
        async move { held.await.then_some(()) }
    })
    .await?;
    Ok(started.elapsed())
}

/// Lets a span pass that the product itself named, such as a `retry-after`.
pub async fn let_pass(span: Duration) {
    tokio::time::sleep(span).await;
}
