//! Callers that always want more slots of a pool than it has.

use super::Pool;
use anyhow::Result;
use e2e::fleet::Direct;
use e2e::wait::let_pass;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// For each slot.
const CALLERS: usize = 2;
/// A caller that was refused looks up before it tries again; in an outage nobody is served, and all would do nothing but
/// try.
const BREATH: Duration = Duration::from_millis(200);

pub(super) struct Crowd {
    ends: watch::Sender<bool>,
    callers: JoinSet<Result<()>>,
}

impl Crowd {
    /// At each of these gateways as many as at the others.
    pub(super) fn of(pool: Pool, drivers: &[Direct]) -> Self {
        let ends = watch::Sender::new(false);
        let mut callers = JoinSet::new();
        let count = (CALLERS * pool.capacity as usize).div_ceil(drivers.len());
        for (gate, driver) in drivers.iter().enumerate() {
            for number in 0..count {
                // Calls that begin together would end together for ever.
                let part = (number * drivers.len() + gate) % pool.capacity as usize + 1;
                let first = pool.call * u32::try_from(part).unwrap_or(1) / pool.capacity;
                callers.spawn(go_on(driver.clone(), first, pool.call, ends.subscribe()));
            }
        }
        Self { ends, callers }
    }

    /// Lets everybody end the call they are in at once.
    pub(super) async fn end(mut self) -> Result<()> {
        self.ends.send_replace(true);
        while let Some(caller) = self.callers.join_next().await {
            caller??;
        }
        Ok(())
    }
}

async fn go_on(driver: Direct, first: Duration, call: Duration, mut ends: watch::Receiver<bool>) -> Result<()> {
    let (mut span, mut settling) = (first, JoinSet::new());
    while !*ends.borrow() {
        if let Ok(running) = driver.begin().await? {
            until(span, &mut ends).await;
            span = call;
            // No client waits until what it used is safe.
            let driver = driver.clone();
            settling.spawn(async move { driver.end(running).await });
        } else {
            until(BREATH, &mut ends).await;
        }
        while let Some(settled) = settling.try_join_next() {
            settled??;
        }
    }
    while let Some(settled) = settling.join_next().await {
        settled??;
    }
    Ok(())
}

/// Lets a span pass, or what is left of it when all is to end.
pub(super) async fn until(span: Duration, ends: &mut watch::Receiver<bool>) {
    tokio::select! {
        () = let_pass(span) => {}
        _ = ends.wait_for(|ends| *ends) => {}
    }
}
