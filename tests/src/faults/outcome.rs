//! How a fault went: what is measured, and when that is good.

use super::kinds::{BooksAfter, Kind};
use super::world::{CAPACITY, World};
use crate::upstream::CallLog;
use crate::wait::{let_pass, wait_until};
use anyhow::Result;
use std::fmt;
use std::time::{Duration, Instant};

/// That much longer the callers are left to themselves, so that a service that heals late is seen to heal. One that is whole
/// in time does not wait for it.
pub const LATE: Duration = Duration::from_secs(30);
/// While calls come and go all slots but one are in use more often than this, even where others keep the processor busy.
const BLINK: Duration = Duration::from_secs(1);
/// From one look to the next.
const LOOK: Duration = Duration::from_millis(200);
/// A service is taken for whole when all slots but one were in use again and again for this long. Whether the last one
/// is there, too, is seen when calls do not end.
const STEADY: Duration = Duration::from_millis(1_500);
/// So long calls do not end, then they go on for a while: Envoy cuts off what lives for too long, in the queue and here.
const HOLDS: Duration = Duration::from_secs(2);

/// How long the callers are watched after a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Until the service has been whole for a while: late trouble is missed.
    Short,
    /// Always until every slot must be free again that the fault may have cost.
    Full,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub name: &'static str,
    /// How soon it is to be over.
    bound: Duration,
    /// Calls that began in the upstream a second, from the beginning of the fault.
    pub load_per_s: f64,
    /// How many calls too many ran at once, at worst.
    pub overshoot: usize,
    /// Calls that Envoy gave up, because they lived for too long or it was killed. The upstream learns of it after the
    /// sidecar does, so that for a moment it may see both such a call and the one that has its slot.
    pub cut: usize,
    /// From the end of the fault until all slots were in use again and stayed so; `None` if that was not seen. Where slots
    /// change hands so slowly that they are hardly ever all in use, until they were while calls did not end.
    pub recovery: Option<Duration>,
    /// Slots that nobody could use at the end.
    pub lost: usize,
    /// Tokens charged to a budget in excess of those that its callers were given; below zero so many are missing. `None`
    /// where the ledger has forgotten.
    pub excess: Option<i64>,
    /// Whether that may be above zero.
    may_exceed: bool,
    /// What the fault itself found wrong.
    pub problem: Option<String>,
}

impl Outcome {
    /// Lets a fault happen, and measures until it has been overcome.
    ///
    /// # Errors
    /// When the service was not whole before.
    pub async fn of(kind: &Kind, world: &mut World, patience: Patience) -> Result<Self> {
        let bound = kind.home.bound();
        world.is_full(bound + LATE).await?;
        let calls = world.fleet.upstream.calls().clone();
        calls.take_max_running();
        let (begun, before) = (Instant::now(), calls.count());
        let problem = (kind.strike)(world).await.err().map(|error| format!("{error:#}"));
        let over = Instant::now();
        watch(world, over, bound, patience).await;
        let (watched, after) = (Instant::now(), calls.count());
        let (recovery, lost) = fill(&calls, over, bound).await;
        let overshoot = calls.take_max_running().saturating_sub(CAPACITY);
        let excess = Some(world.settle().await?).filter(|_| kind.books != BooksAfter::Forgotten);
        let cut = calls.record().cut(begun, Instant::now());
        let may_exceed = kind.books != BooksAfter::Exact || cut > 0;
        Ok(Self {
            name: kind.name,
            bound,
            load_per_s: (after - before) as f64 / watched.duration_since(begun).as_secs_f64(),
            overshoot,
            cut,
            recovery,
            lost,
            excess,
            // What a gateway has not acknowledged may be told again during the next fault.
            may_exceed: std::mem::replace(&mut world.may_repeat, may_exceed) || may_exceed,
            problem,
        })
    }

    /// Whether everything is as promised; `slack` is for a machine that has other things to do.
    #[must_use]
    pub fn held(&self, slack: Duration) -> bool {
        let in_time = self.recovery.is_some_and(|recovery| recovery <= self.bound + slack);
        let is_balanced = self.excess.is_none_or(|excess| excess == 0 || (excess > 0 && self.may_exceed));
        self.overshoot == 0 && self.lost == 0 && in_time && is_balanced && self.problem.is_none()
    }

    /// The names of what a line tells.
    #[must_use]
    pub fn head() -> String {
        format!(
            "{:<60} {:>8} {:>9} {:>4} {:>9} {:>10} {:>7}",
            "fault", "calls/s", "overshoot", "cut", "whole in", "lost slots", "tokens"
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let recovery = self.recovery.map_or("never".to_owned(), |span| format!("{} ms", span.as_millis()));
        let excess = self.excess.map_or("forgot".to_owned(), |excess| format!("{excess:+}"));
        let Self { name, load_per_s, overshoot, cut, lost, .. } = self;
        write!(f, "{name:<60} {load_per_s:>8.1} {overshoot:>9} {cut:>4} {recovery:>9} {lost:>10} {excess:>7}")?;
        self.problem.as_ref().map_or(Ok(()), |problem| write!(f, "\n  {problem}"))
    }
}

/// Waits until the service seems to be whole, or is late.
async fn watch(world: &World, over: Instant, bound: Duration, patience: Patience) {
    let calls = world.fleet.upstream.calls();
    if patience == Patience::Full {
        let_pass(bound).await;
    }
    let is_steady = || {
        let now = Instant::now();
        let recovery = calls.record().full_again_after(CAPACITY - 1, over, now, BLINK);
        recovery.is_some_and(|recovery| now.duration_since(over + recovery) >= STEADY)
    };
    while !is_steady() && over.elapsed() <= bound + LATE {
        let_pass(LOOK).await;
    }
}

/// Lets calls not end until all slots are in use. Tells since when after the fault they were, again and again, and how
/// many never are.
async fn fill(calls: &CallLog, over: Instant, bound: Duration) -> (Option<Duration>, usize) {
    loop {
        calls.hold();
        let filled = wait_until("all", HOLDS, || async { calls.running() >= CAPACITY }).await;
        let recovery = calls.record().full_again_after(CAPACITY, over, Instant::now(), BLINK);
        let lost = if filled.is_ok() { 0 } else { CAPACITY.saturating_sub(calls.running()) };
        calls.release();
        if lost == 0 || over.elapsed() > bound + LATE {
            return (recovery, lost);
        }
        let_pass(BLINK).await;
    }
}
