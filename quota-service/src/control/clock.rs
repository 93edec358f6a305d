//! The wall clock that time rules go by: the machine's, or one that a rehearsal runs faster.

use sluice_policy::schedule::UnixMillis;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// `start + elapsed × speed`, or the machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    rehearsal: Option<Rehearsal>,
    began: Instant,
}

/// A day in a minute, to see what rules will do before they do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rehearsal {
    pub start: UnixMillis,
    /// 1 to 100,000.
    pub speed: u32,
}

impl WallClock {
    #[must_use]
    pub fn new(rehearsal: Option<Rehearsal>) -> Self {
        if let Some(Rehearsal { start, speed }) = rehearsal {
            tracing::warn!(
                start_unix_ms = start.0,
                speed,
                "time rules go by a rehearsal's clock, not by the machine's"
            );
        }
        Self { rehearsal, began: Instant::now() }
    }

    #[must_use]
    pub fn now(&self) -> UnixMillis {
        let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        match self.rehearsal {
            Some(Rehearsal { start, speed }) => {
                UnixMillis(start.0.saturating_add(millis(self.began.elapsed().saturating_mul(speed))))
            }
            None => UnixMillis(millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())),
        }
    }

    /// How long it takes until this clock shows `at`; a millisecond more, so that it then does.
    #[must_use]
    pub fn until(&self, at: UnixMillis) -> Duration {
        let millis = u64::try_from(at.0.saturating_sub(self.now().0)).unwrap_or(0);
        let speed = self.rehearsal.map_or(1, |rehearsal| rehearsal.speed.max(1));
        Duration::from_millis(millis) / speed + Duration::from_millis(1)
    }
}
