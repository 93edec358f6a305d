//! The words of every refusal, and the limit behind it.

use crate::account::Limited;
use crate::bucket::{Bucket, Rate};
use crate::queue::{Full, QueueSettings, TenantIndex};
use crate::units::{Millis, PoolName, Priority, TenantId};
use crate::wire::{Reason, Refusal};
use rustc_hash::FxHashMap;

/// A limit that a call was refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub name: LimitName,
    /// In its own unit: calls, requests, tokens, bytes or milliseconds.
    pub most: u64,
}

/// Where a limit is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitName {
    ContextLength,
    TenantConcurrent,
    TenantRequestsPerSecond,
    TenantRequestsPerMinute,
    TenantTokensPerMinute,
    TenantTokensPerDay,
    TenantTokensPerMonth,
    TenantMoneyPerDay,
    TenantMoneyPerMonth,
    /// The call's own.
    Deadline,
    QueueDeadline,
    QueueTimeout,
    QueueDepthPerLevel,
    QueueDepthPerTenant,
    QueueBytes,
    QueueBytesPerTenant,
}

impl LimitName {
    /// Its path in the configuration, or the header that brought it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            LimitName::ContextLength => "pools[].context_length",
            LimitName::TenantConcurrent => "tenants[].limits.concurrent",
            LimitName::TenantRequestsPerSecond => "tenants[].limits.requests_per_s",
            LimitName::TenantRequestsPerMinute => "tenants[].limits.requests_per_min",
            LimitName::TenantTokensPerMinute => "tenants[].limits.tokens_per_min",
            LimitName::TenantTokensPerDay => "tenants[].budgets.tokens_per_day",
            LimitName::TenantTokensPerMonth => "tenants[].budgets.tokens_per_month",
            LimitName::TenantMoneyPerDay => "tenants[].budgets.micros_per_day",
            LimitName::TenantMoneyPerMonth => "tenants[].budgets.micros_per_month",
            LimitName::Deadline => "x-sluice-deadline-ms",
            LimitName::QueueDeadline => "queue.deadline_ms",
            LimitName::QueueTimeout => "queue.timeout_ms",
            LimitName::QueueDepthPerLevel => "queue.depth_per_level",
            LimitName::QueueDepthPerTenant => "queue.depth_per_tenant",
            LimitName::QueueBytes => "queue.bytes",
            LimitName::QueueBytesPerTenant => "queue.bytes_per_tenant",
        }
    }
}

/// A refusal, with what only operators are told.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) refusal: Refusal,
    pub(super) limit: Option<Limit>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, limit: None }
    }
}

impl Refused {
    /// Whether it was refused for what it asks, before any of its tenant's limits was asked about: such refusals have a
    /// limit of their own.
    pub(super) fn is_before_limits(&self) -> bool {
        matches!(
            self.refusal.reason,
            Reason::TenantDisabled | Reason::ModelNotFound | Reason::ModelNotAllowed | Reason::ContextLengthExceeded
        )
    }

    pub(super) fn at(self, position: u64, wait: Millis) -> Self {
        Self { refusal: self.refusal.at(position, wait), ..self }
    }

    /// Where the call would have stood in the queue, and how long; absent when it did not come so far.
    pub(super) fn place(&self) -> Option<(u64, Millis)> {
        self.refusal.position.zip(self.refusal.estimated_wait_ms)
    }
}

impl Refusal {
    pub(super) fn about(self, param: &str) -> Self {
        Self { param: Some(param.to_owned()), ..self }
    }

    /// With the place it would have in the queue; to come again helps when those before it have started.
    pub(super) fn at(self, position: u64, wait: Millis) -> Self {
        Self { position: Some(position), estimated_wait_ms: Some(wait), ..self }.retry_after(wait)
    }

    pub(super) fn by(self, name: LimitName, most: u64) -> Refused {
        Refused { refusal: self, limit: Some(Limit { name, most }) }
    }
}

/// `typical` is how long a call of this pool usually runs: after about that, one of the tenant's own has ended.
pub(super) fn over_limit(tenant: &TenantId, limited: Limited, typical: Millis) -> Refused {
    let (what, name) = match limited.reason {
        Reason::LedgerUnavailable => return ledger_unavailable().into(),
        Reason::TenantConcurrency => ("concurrent calls", LimitName::TenantConcurrent),
        Reason::TenantRequestsPerSecond => ("requests per second", LimitName::TenantRequestsPerSecond),
        Reason::TenantRequestsPerMinute => ("requests per minute", LimitName::TenantRequestsPerMinute),
        Reason::TenantTokensPerDay => ("tokens a day", LimitName::TenantTokensPerDay),
        Reason::TenantTokensPerMonth => ("tokens a month", LimitName::TenantTokensPerMonth),
        Reason::TenantMoneyPerDay => ("spending a day", LimitName::TenantMoneyPerDay),
        Reason::TenantMoneyPerMonth => ("spending a month", LimitName::TenantMoneyPerMonth),
        _ => ("tokens per minute", LimitName::TenantTokensPerMinute),
    };
    Refusal::new(limited.reason, format!("the tenant {tenant} has reached its limit of {what}"))
        .retry_after(limited.wait.unwrap_or(typical))
        .by(name, limited.most)
}

/// How often each tenant's calls may be refused for what they ask, with an answer of its own and an explanation. A tenant
/// has a bucket once it was refused, so there are no more of them than tenants.
#[derive(Debug, Default)]
pub(super) struct RefusalRates(FxHashMap<TenantIndex, Bucket>);

impl RefusalRates {
    /// No client that works comes near it.
    const PER_SECOND: u64 = 10;
    const BURST: u64 = 100;

    /// Counts a refusal, or says how long it is until the next one may be.
    pub(super) fn count(&mut self, tenant: TenantIndex, now: Millis) -> Result<(), Millis> {
        let rate = Rate::per_second(Self::PER_SECOND, Self::BURST);
        let bucket = self.0.entry(tenant).or_insert_with(|| Bucket::full(rate, now));
        if !bucket.allows(1, now) {
            return Err(bucket.wait_for(1, now));
        }
        bucket.draw(1, now);
        Ok(())
    }
}

/// By a reason that filters of the release before know.
pub(super) fn too_many_refusals(tenant: &TenantId, wait: Millis) -> Refusal {
    let message = format!("too many calls of the tenant {tenant} are refused for what they ask: correct them first");
    Refusal::new(Reason::TenantRequestsPerSecond, message).retry_after(wait)
}

pub(super) fn ledger_unavailable() -> Refusal {
    Refusal::new(Reason::LedgerUnavailable, "the quota ledger does not answer").retry_after(Millis(1_000))
}

pub(super) fn queue_full(full: Full, pool: &PoolName, priority: Priority, queue: &QueueSettings) -> Refused {
    let most = |depth: usize| u64::try_from(depth).unwrap_or(u64::MAX);
    match full {
        Full::Level => Refusal::new(Reason::QueueFull, format!("the queue of {pool} is full at {priority}"))
            .by(LimitName::QueueDepthPerLevel, most(queue.depth_per_level)),
        Full::Tenant => Refusal::new(Reason::QueueFull, format!("this tenant has too many calls waiting for {pool}"))
            .by(LimitName::QueueDepthPerTenant, most(queue.depth_per_tenant)),
        Full::Bytes => full_of_bytes(pool).by(LimitName::QueueBytes, queue.bytes),
    }
}

pub(super) fn full_of_bytes(pool: &PoolName) -> Refusal {
    Refusal::new(Reason::QueueFull, format!("the queue of {pool} holds as many request bytes as it may"))
}

pub(super) fn too_late(wait: Millis, deadline: Millis, set_by: LimitName) -> Refused {
    let message = format!("the call would wait about {wait}, longer than its deadline of {deadline}");
    Refusal::new(Reason::DeadlineUnreachable, message).by(set_by, deadline.0)
}

pub(super) fn timed_out() -> Refusal {
    Refusal::new(Reason::QueueTimeout, "the call waited in the queue until its deadline without a free slot")
}

pub(super) fn shutting_down() -> Refusal {
    Refusal::new(Reason::ShuttingDown, "the quota service is shutting down").retry_after(Millis(1_000))
}
