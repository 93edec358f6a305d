//! Calls that arrive at 90% of what a pool can serve, whatever becomes of them.

use super::Pool;
use super::crowd::until;
use anyhow::Result;
use e2e::fleet::Direct;
use e2e::upstream::CallLog;
use e2e::wait::let_pass;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub(super) const LOAD_PERCENT: u32 = 90;
/// A call that is not decided by then waits.
const AT_ONCE: Duration = Duration::from_millis(100);
/// From one look to the next.
const LOOK: Duration = Duration::from_millis(10);
/// For so long a call that was refused counts as one that waits.
const REMEMBERED: Duration = Duration::from_millis(200);

pub(super) struct OpenLoop {
    ends: watch::Sender<bool>,
    tasks: JoinSet<Result<()>>,
    looks: Arc<Mutex<Vec<(Instant, bool)>>>,
}

/// What became of arrivals lately.
#[derive(Default)]
struct Fate {
    waiting: usize,
    refused_at: Option<Instant>,
}

type Shared = Arc<Mutex<Fate>>;

impl OpenLoop {
    pub(super) fn of(pool: Pool, drivers: Vec<Direct>, calls: CallLog) -> Self {
        let (ends, fate, looks) = (watch::Sender::new(false), Shared::default(), Arc::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(arrive(pool, drivers, Arc::clone(&fate), ends.subscribe()));
        tasks.spawn(look(pool, calls, fate, Arc::clone(&looks), ends.subscribe()));
        Self { ends, tasks, looks }
    }

    /// How long after `from` either 95% of the slots were in use or every arrival was let in at once, and that stayed so but
    /// for moments shorter than `blink`. `None` if it did not.
    pub(super) fn served_again_after(&self, from: Instant, blink: Duration) -> Option<Duration> {
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut since, mut bad_since) = (None, Some(from));
        for (at, is_good) in looks.iter().copied().filter(|(at, _)| *at >= from) {
            match (bad_since, is_good) {
                (Some(bad), true) => {
                    since = since.filter(|_| at.duration_since(bad) <= blink).or(Some(at));
                    bad_since = None;
                }
                (None, false) => bad_since = Some(at),
                (Some(_), false) | (None, true) => {}
            }
        }
        let is_good = bad_since.is_none_or(|bad| bad.elapsed() <= blink);
        since.filter(|_| is_good).map(|since| since.duration_since(from))
    }

    pub(super) async fn end(mut self) -> Result<()> {
        self.ends.send_replace(true);
        while let Some(task) = self.tasks.join_next().await {
            task??;
        }
        Ok(())
    }
}

/// At even distances, at one gateway after the other. Those that would run by now come first.
async fn arrive(pool: Pool, drivers: Vec<Direct>, fate: Shared, mut ends: watch::Receiver<bool>) -> Result<()> {
    let mut calls = JoinSet::new();
    let busy = pool.capacity * LOAD_PERCENT / 100;
    let pause = pool.call / busy;
    let begun = Instant::now();
    for number in 0_u32.. {
        let due = begun + pause * number.saturating_sub(busy);
        until(due.saturating_duration_since(Instant::now()), &mut ends).await;
        if *ends.borrow() {
            break;
        }
        let span = if number < busy { pause * (number + 1) } else { pool.call };
        let driver = drivers[number as usize % drivers.len()].clone();
        calls.spawn(call(driver, span, Arc::clone(&fate), ends.clone()));
        while let Some(done) = calls.try_join_next() {
            done??;
        }
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    Ok(())
}

async fn call(driver: Direct, span: Duration, fate: Shared, mut ends: watch::Receiver<bool>) -> Result<()> {
    let mut decided = Box::pin(driver.begin());
    let at_once = tokio::time::timeout(AT_ONCE, &mut decided).await;
    let decision = match at_once {
        Ok(decision) => decision?,
        Err(_) => {
            of(&fate, |fate| fate.waiting += 1);
            let decision = decided.await;
            of(&fate, |fate| fate.waiting -= 1);
            decision?
        }
    };
    match decision {
        Ok(running) => {
            until(span, &mut ends).await;
            driver.end(running).await
        }
        Err(_) => {
            of(&fate, |fate| fate.refused_at = Some(Instant::now()));
            Ok(())
        }
    }
}

async fn look(
    pool: Pool,
    calls: CallLog,
    fate: Shared,
    looks: Arc<Mutex<Vec<(Instant, bool)>>>,
    ends: watch::Receiver<bool>,
) -> Result<()> {
    while !*ends.borrow() {
        let are_served =
            of(&fate, |fate| fate.waiting == 0 && fate.refused_at.is_none_or(|refused| refused.elapsed() > REMEMBERED));
        let is_good = are_served || calls.running() >= pool.most_slots();
        looks.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), is_good));
        let_pass(LOOK).await;
    }
    Ok(())
}

fn of<T>(fate: &Shared, ask: impl FnOnce(&mut Fate) -> T) -> T {
    ask(&mut fate.lock().unwrap_or_else(PoisonError::into_inner))
}
