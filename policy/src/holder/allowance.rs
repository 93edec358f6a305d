//! What a holder may draw of a rate or a budget without asking.

use crate::ledger::{Limit, MeterGrant, MeterReport};
use crate::units::Millis;

/// Invariant: `left` is what the latest answered call was lent, less what was drawn since it was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Allowance {
    /// May be drawn; negative is debt that the ledger does not know of yet.
    pub(super) left: i64,
    /// Given back, and not told yet: it is everybody's, not this holder's.
    returned: i64,
    /// Of what nobody holds, when the ledger last told.
    level: i64,
    fraction: u64,
    /// By this incarnation, in all.
    drawn: i64,
    /// As the latest call told.
    drawn_when_sent: i64,
    /// As the latest call told that was answered.
    counted: i64,
    period: u64,
    /// When the budget's period began, by this holder's clock.
    began: Millis,
}

impl Allowance {
    /// What is drawn before the ledger has said anything is drawn of the period that it is.
    pub(super) fn of(limit: Limit) -> Self {
        Self { period: limit.period(), ..Self::default() }
    }

    pub(super) fn draw(&mut self, amount: i64) {
        self.drawn = self.drawn.saturating_add(amount);
        self.left = self.left.saturating_sub(amount);
    }

    /// A draw has cost more, or less. Of what was charged before this period began nothing comes back.
    pub(super) fn correct(&mut self, more: i64, charged_at: Millis) {
        let more = if charged_at < self.began { more.max(0) } else { more };
        self.drawn = self.drawn.saturating_add(more);
        if more > 0 {
            self.left = self.left.saturating_sub(more);
        } else {
            self.returned = self.returned.saturating_sub(more);
        }
    }

    /// The budget begins anew: what was lent of the last period is worth nothing, and nothing is drawn of this one before
    /// the ledger has lent of it. What calls of before cost more or less until then is the last period's.
    pub(super) fn begin_period(&mut self, now: Millis) {
        self.began = now;
        (self.left, self.returned) = (self.left.min(0), 0);
    }

    /// There is such a limit again.
    pub(super) fn begin_anew(&mut self, limit: Limit) {
        self.drop_rest();
        self.period = limit.period();
    }

    /// The limit has changed: what was lent under the old one goes back.
    pub(super) fn drop_rest(&mut self) {
        self.returned = self.returned.saturating_add(self.left.max(0));
        self.left = self.left.min(0);
    }

    /// What is left for everybody, as far as is known `elapsed` after the ledger told.
    pub(super) fn estimate(&self, limit: Limit, elapsed: Millis) -> i64 {
        let left = self.level.saturating_add(self.left).saturating_add(self.returned);
        match limit {
            Limit::Budget { .. } => left,
            Limit::Rate(rate) => {
                let parts = u128::from(self.fraction) + u128::from(elapsed.0) * u128::from(rate.amount);
                let gained = parts / u128::from(rate.window.0.max(1));
                let full = i64::try_from(rate.burst).unwrap_or(i64::MAX);
                left.saturating_add(i64::try_from(gained).unwrap_or(i64::MAX)).min(full)
            }
        }
    }

    /// Lowers what is left to what the report keeps.
    pub(super) fn report(&mut self, keeps: bool) -> MeterReport {
        let keep = if keeps { u64::try_from(self.left).unwrap_or(0) } else { 0 };
        self.left = self.left.min(i64::try_from(keep).unwrap_or(i64::MAX));
        self.drawn_when_sent = self.drawn;
        self.returned = 0;
        MeterReport { drawn: self.drawn, counted: self.counted, keep, period: self.period }
    }

    /// Takes what was lent; later words on one call can only have added to it.
    pub(super) fn take(&mut self, grant: &MeterGrant, is_first: bool) {
        let since = self.drawn.saturating_sub(self.drawn_when_sent);
        let left = i64::try_from(grant.held).unwrap_or(i64::MAX).saturating_sub(since);
        self.left = if is_first { left } else { self.left.max(left) };
        self.counted = self.drawn_when_sent;
        self.level = grant.level;
        self.fraction = grant.fraction;
        self.period = grant.period;
    }
}
