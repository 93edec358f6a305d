//! The words of every refusal.

use crate::account::Limited;
use crate::queue::Full;
use crate::units::{Millis, PoolName, Priority, TenantId};
use crate::wire::{Reason, Refusal};

impl Refusal {
    pub(super) fn about(self, param: &str) -> Self {
        Self { param: Some(param.to_owned()), ..self }
    }

    pub(super) fn at(self, position: u64, wait: Millis) -> Self {
        Self { position: Some(position), estimated_wait_ms: Some(wait), ..self }
    }
}

/// `typical` is how long a call of this pool usually runs: after about that, one of the tenant's own has ended.
pub(super) fn over_limit(tenant: &TenantId, limited: Limited, typical: Millis) -> Refusal {
    let what = match limited.reason {
        Reason::TenantConcurrency => "concurrent calls",
        Reason::TenantRequestsPerSecond => "requests per second",
        Reason::TenantRequestsPerMinute => "requests per minute",
        _ => "tokens per minute",
    };
    Refusal::new(limited.reason, format!("the tenant {tenant} has reached its limit of {what}"))
        .retry_after(limited.wait.unwrap_or(typical))
}

pub(super) fn queue_full(full: Full, pool: &PoolName, priority: Priority) -> Refusal {
    let what = match full {
        Full::Level => format!("the queue of {pool} is full at {priority}"),
        Full::Tenant => format!("this tenant has too many calls waiting for {pool}"),
        Full::Bytes => format!("the queue of {pool} holds as many request bytes as it may"),
    };
    Refusal::new(Reason::QueueFull, what)
}

pub(super) fn too_late(wait: Millis, deadline: Millis) -> Refusal {
    let message = format!("the call would wait about {wait}, longer than its deadline of {deadline}");
    Refusal::new(Reason::DeadlineUnreachable, message)
}

pub(super) fn timed_out() -> Refusal {
    Refusal::new(Reason::QueueTimeout, "the call waited in the queue until its deadline without a free slot")
}

pub(super) fn shutting_down() -> Refusal {
    Refusal::new(Reason::ShuttingDown, "the quota service is shutting down").retry_after(Millis(1_000))
}
