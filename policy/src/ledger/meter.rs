//! Rates and budgets of an account, and what of them is lent to whom.
//!
//! What a holder may draw without asking has been taken out of the level before: lending is debit. So whatever is lost or
//! late draws nothing twice. What a holder was lent of a budget comes back when it is gone for good; what it drew of that
//! and did not tell was not acknowledged either, and is charged when its calls' ends are told to another.

use super::message::{MeterGrant, MeterReport};
use crate::bucket::Rate;
use crate::units::{Millis, Tokens};
use serde::{Deserialize, Serialize};

/// The rates and budgets that an account may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeterName {
    RequestsPerSecond,
    RequestsPerMinute,
    TokensPerSecond,
    TokensPerMinute,
    TokensPerDay,
    TokensPerMonth,
    MoneyPerDay,
    MoneyPerMonth,
}

/// What a call takes out of an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Draw {
    pub tokens: Tokens,
    /// In millionths of a currency unit.
    pub money: u64,
}

impl From<Tokens> for Draw {
    fn from(tokens: Tokens) -> Self {
        Self { tokens, money: 0 }
    }
}

impl MeterName {
    pub const ALL: [MeterName; 8] = [
        MeterName::RequestsPerSecond,
        MeterName::RequestsPerMinute,
        MeterName::TokensPerSecond,
        MeterName::TokensPerMinute,
        MeterName::TokensPerDay,
        MeterName::TokensPerMonth,
        MeterName::MoneyPerDay,
        MeterName::MoneyPerMonth,
    ];

    /// Its name in Redis.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            MeterName::RequestsPerSecond => "requests_per_second",
            MeterName::RequestsPerMinute => "requests_per_minute",
            MeterName::TokensPerSecond => "tokens_per_second",
            MeterName::TokensPerMinute => "tokens_per_minute",
            MeterName::TokensPerDay => "tokens_per_day",
            MeterName::TokensPerMonth => "tokens_per_month",
            MeterName::MoneyPerDay => "money_per_day",
            MeterName::MoneyPerMonth => "money_per_month",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|name| name.as_str() == text)
    }

    /// Whether it counts calls; if not, it counts their tokens or their money.
    #[must_use]
    pub fn counts_requests(self) -> bool {
        matches!(self, MeterName::RequestsPerSecond | MeterName::RequestsPerMinute)
    }

    /// Whether it is a budget of a day; another budget is one of a month.
    #[must_use]
    pub fn is_of_a_day(self) -> bool {
        matches!(self, MeterName::TokensPerDay | MeterName::MoneyPerDay)
    }

    /// What a call draws of it.
    #[must_use]
    pub fn amount(self, draw: Draw) -> u64 {
        match self {
            MeterName::RequestsPerSecond | MeterName::RequestsPerMinute => 1,
            MeterName::MoneyPerDay | MeterName::MoneyPerMonth => draw.money,
            MeterName::TokensPerSecond
            | MeterName::TokensPerMinute
            | MeterName::TokensPerDay
            | MeterName::TokensPerMonth => draw.tokens.0,
        }
    }
}

/// How much an account may draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Refilled all the time; a draw larger than the burst waits until it is full, and goes into debt.
    Rate(Rate),
    /// Refilled when the period changes; no draw exceeds what is left.
    Budget {
        amount: u64,
        /// Names the period, as 20260131 does a day; later periods have larger numbers.
        period: u64,
    },
}

impl Limit {
    /// Units per window or period.
    #[must_use]
    pub fn amount(self) -> u64 {
        match self {
            Limit::Rate(rate) => rate.amount,
            Limit::Budget { amount, .. } => amount,
        }
    }

    /// What is left when nothing has been drawn.
    fn full(self) -> i64 {
        match self {
            Limit::Rate(rate) => signed(rate.burst),
            Limit::Budget { amount, .. } => signed(amount),
        }
    }

    /// Of a budget; 0 for a rate.
    pub(crate) fn period(self) -> u64 {
        match self {
            Limit::Rate(_) => 0,
            Limit::Budget { period, .. } => period,
        }
    }

    /// What must be left for a draw of `amount`.
    pub(crate) fn needed(self, amount: u64) -> i64 {
        match self {
            Limit::Rate(rate) => signed(amount.min(rate.burst)),
            Limit::Budget { .. } => signed(amount),
        }
    }
}

/// A rate or a budget as the ledger keeps it.
///
/// Invariants: `level` ≤ what is full; `fraction` < the rate's window in ms.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Meter {
    limit: Limit,
    /// Whole units left for everybody; negative is debt.
    level: i64,
    /// Part of a unit that has come in since, in units of 1/window.
    fraction: u64,
    refilled_at: Millis,
}

/// What one holder was lent of a meter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Lent {
    /// As the holder last reported it; `None` before it has.
    pub(super) drawn: Option<i64>,
    /// Taken out of the level for it, and not known to be drawn.
    pub(super) held: u64,
}

/// More than this many units never come in at one refill: a Lua number holds it, multiplied by a minute, exactly. It
/// fills any bucket that the configuration allows.
const MOST_REFILL: u64 = 1 << 36;

impl Meter {
    pub(super) fn new(limit: Limit, now: Millis) -> Self {
        Self { limit, level: limit.full(), fraction: 0, refilled_at: now }
    }

    /// Takes over a limit: what has been drawn stays drawn. A later period begins with a full budget. One that cannot have
    /// begun yet counts less than any other, and what was drawn of it has been drawn of that. Tells whether the period is
    /// another one.
    pub(super) fn set_limit(&mut self, limit: Limit, is_early: impl Fn(u64) -> bool) -> bool {
        let (known, told) = (self.limit.period(), limit.period());
        let rank = |period| (!is_early(period), period);
        let turns = rank(known) < rank(told);
        if turns && known < told {
            self.level = limit.full();
        } else {
            self.level = self.level.saturating_add(limit.full()).saturating_sub(self.limit.full());
        }
        self.limit = match limit {
            Limit::Budget { amount, .. } => Limit::Budget { amount, period: if turns { told } else { known } },
            Limit::Rate(_) => limit,
        };
        self.fraction = 0;
        turns
    }

    pub(super) fn limit(&self) -> Limit {
        self.limit
    }

    pub(super) fn level(&self) -> i64 {
        self.level
    }

    pub(super) fn refill(&mut self, now: Millis) {
        let Limit::Rate(rate) = self.limit else { return };
        let elapsed = now.since(self.refilled_at).0;
        self.refilled_at = self.refilled_at.max(now);
        let (window, amount) = (rate.window.0.max(1), rate.amount.max(1));
        let most = MOST_REFILL.saturating_mul(window) / amount;
        if elapsed > most {
            self.level = self.limit.full();
            self.fraction = 0;
            return;
        }
        let gained = self.fraction + elapsed.saturating_mul(amount);
        self.level = self.level.saturating_add(signed(gained / window));
        self.fraction = gained % window;
        self.cap();
    }

    /// What exceeds a full bucket is lost.
    fn cap(&mut self) {
        if self.level >= self.limit.full() {
            self.level = self.limit.full();
            self.fraction = 0;
        }
    }

    /// Takes in what a holder has drawn and keeps. What it gives back is free again, what it drew beyond its part is
    /// owed. Of a budget's earlier period nothing comes back.
    pub(super) fn report(&mut self, lent: &mut Lent, report: &MeterReport) {
        let told = lent.drawn.replace(report.drawn).unwrap_or(report.counted);
        let drawn = report.drawn.saturating_sub(told);
        if report.period != self.limit.period() {
            lent.held = 0;
            return;
        }
        let left = signed(lent.held).saturating_sub(drawn);
        let kept = left.clamp(0, signed(report.keep));
        self.level = self.level.saturating_add(left).saturating_sub(kept);
        self.cap();
        lent.held = u64::try_from(kept).unwrap_or(0);
    }

    /// Takes back what was lent to a holder that draws no more.
    pub(super) fn inherit(&mut self, held: u64) {
        self.level = self.level.saturating_add(signed(held));
        self.cap();
    }

    /// Whether a call may draw `amount` now that finds `spare` lent to its holder already.
    pub(super) fn allows(&self, amount: u64, spare: u64) -> bool {
        self.level.saturating_add(signed(spare)) >= self.limit.needed(amount)
    }

    /// Lends so much.
    pub(super) fn lend(&mut self, lent: &mut Lent, amount: u64) {
        self.level = self.level.saturating_sub(signed(amount));
        lent.held = lent.held.saturating_add(amount);
    }

    /// Lends a part of what is left, to draw without asking: a quarter of one holder's share.
    pub(super) fn lend_ahead(&mut self, lent: &mut Lent, promised: u64, holders: u64) {
        let spare = lent.held.saturating_sub(promised);
        let left = u64::try_from(self.level.saturating_add(signed(spare))).unwrap_or(0);
        let target = left / (4 * holders.max(1));
        self.lend(lent, target.saturating_sub(spare));
    }

    /// How long until `amount` may be drawn, if nobody else draws before; `None` for what time alone does not bring.
    pub(super) fn wait_for(&self, amount: u64, spare: u64) -> Option<Millis> {
        let missing = self.limit.needed(amount).saturating_sub(signed(spare)).saturating_sub(self.level);
        let missing = u64::try_from(missing).unwrap_or(0);
        match self.limit {
            Limit::Rate(rate) => {
                // Of a longer wait it tells a part.
                let missing = missing.min(MOST_REFILL);
                let parts = missing.saturating_mul(rate.window.0).saturating_sub(self.fraction);
                Some(Millis(parts.div_ceil(rate.amount.max(1))))
            }
            Limit::Budget { .. } => (missing == 0).then_some(Millis::ZERO),
        }
    }

    pub(super) fn grant(&self, lent: Lent) -> MeterGrant {
        MeterGrant { held: lent.held, level: self.level, fraction: self.fraction, period: self.limit.period() }
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
