//! Why a call is refused.

use serde::{Deserialize, Serialize};

/// The machine-readable cause of every refusal, in `x-sluice-reason`. The filter's own causes are here too, so that
/// the list is in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    // Decided by the service.
    UnknownKey,
    TenantDisabled,
    /// For operators only: see [`Refusal::for_client`].
    ModelNotAllowed,
    ModelNotFound,
    ContextLengthExceeded,
    TenantConcurrency,
    TenantRequestsPerSecond,
    TenantRequestsPerMinute,
    TenantTokensPerMinute,
    TenantTokensPerDay,
    TenantTokensPerMonth,
    TenantMoneyPerDay,
    TenantMoneyPerMonth,
    QueueFull,
    QueueTimeout,
    DeadlineUnreachable,
    LedgerUnavailable,
    ShuttingDown,
    DuplicateAdmission,
    // Decided by the filter.
    MissingKey,
    ConflictingKeys,
    MalformedKey,
    InvalidPriority,
    InvalidDeadline,
    PathNotListed,
    PathNotNormalized,
    MethodNotAllowed,
    UpgradeNotAllowed,
    InvalidBody,
    UnsupportedEncoding,
    BodyTooLarge,
    RequestTimeout,
    WorkerFull,
    StrangerLimit,
    TenantHeldBytes,
    TenantIdleStreams,
    ServiceUnavailable,
}

impl Reason {
    /// Every reason, for documentation and metrics.
    pub const ALL: [Reason; 37] = [
        Reason::UnknownKey,
        Reason::TenantDisabled,
        Reason::ModelNotAllowed,
        Reason::ModelNotFound,
        Reason::ContextLengthExceeded,
        Reason::TenantConcurrency,
        Reason::TenantRequestsPerSecond,
        Reason::TenantRequestsPerMinute,
        Reason::TenantTokensPerMinute,
        Reason::TenantTokensPerDay,
        Reason::TenantTokensPerMonth,
        Reason::TenantMoneyPerDay,
        Reason::TenantMoneyPerMonth,
        Reason::QueueFull,
        Reason::QueueTimeout,
        Reason::DeadlineUnreachable,
        Reason::LedgerUnavailable,
        Reason::ShuttingDown,
        Reason::DuplicateAdmission,
        Reason::MissingKey,
        Reason::ConflictingKeys,
        Reason::MalformedKey,
        Reason::InvalidPriority,
        Reason::InvalidDeadline,
        Reason::PathNotListed,
        Reason::PathNotNormalized,
        Reason::MethodNotAllowed,
        Reason::UpgradeNotAllowed,
        Reason::InvalidBody,
        Reason::UnsupportedEncoding,
        Reason::BodyTooLarge,
        Reason::RequestTimeout,
        Reason::WorkerFull,
        Reason::StrangerLimit,
        Reason::TenantHeldBytes,
        Reason::TenantIdleStreams,
        Reason::ServiceUnavailable,
    ];

    /// Whether the same call, sent again a little later, may do better. Clients obey it as `x-should-retry`.
    #[must_use]
    pub fn is_worth_a_retry(self) -> bool {
        match self {
            Reason::TenantConcurrency
            | Reason::TenantRequestsPerSecond
            | Reason::TenantRequestsPerMinute
            | Reason::TenantTokensPerMinute
            | Reason::QueueFull
            | Reason::QueueTimeout
            | Reason::LedgerUnavailable
            | Reason::ShuttingDown
            | Reason::DuplicateAdmission
            | Reason::RequestTimeout
            | Reason::WorkerFull
            | Reason::StrangerLimit
            | Reason::TenantHeldBytes
            | Reason::TenantIdleStreams
            | Reason::ServiceUnavailable => true,
            // The client's own deadline is the same next time, and a day or a month is too long to wait for.
            Reason::DeadlineUnreachable
            | Reason::TenantTokensPerDay
            | Reason::TenantTokensPerMonth
            | Reason::TenantMoneyPerDay
            | Reason::TenantMoneyPerMonth
            | Reason::UnknownKey
            | Reason::TenantDisabled
            | Reason::ModelNotAllowed
            | Reason::ModelNotFound
            | Reason::ContextLengthExceeded
            | Reason::MissingKey
            | Reason::ConflictingKeys
            | Reason::MalformedKey
            | Reason::InvalidPriority
            | Reason::InvalidDeadline
            | Reason::PathNotListed
            | Reason::PathNotNormalized
            | Reason::MethodNotAllowed
            | Reason::UpgradeNotAllowed
            | Reason::InvalidBody
            | Reason::UnsupportedEncoding
            | Reason::BodyTooLarge => false,
        }
    }

    /// The HTTP status that goes with it.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Reason::InvalidPriority
            | Reason::InvalidDeadline
            | Reason::PathNotNormalized
            | Reason::InvalidBody
            | Reason::ContextLengthExceeded => 400,
            Reason::UnknownKey | Reason::MissingKey | Reason::ConflictingKeys | Reason::MalformedKey => 401,
            Reason::TenantDisabled | Reason::UpgradeNotAllowed => 403,
            Reason::ModelNotFound | Reason::ModelNotAllowed | Reason::PathNotListed => 404,
            Reason::MethodNotAllowed => 405,
            Reason::RequestTimeout => 408,
            Reason::BodyTooLarge => 413,
            Reason::UnsupportedEncoding => 415,
            Reason::TenantConcurrency
            | Reason::TenantRequestsPerSecond
            | Reason::TenantRequestsPerMinute
            | Reason::TenantTokensPerMinute
            | Reason::TenantTokensPerDay
            | Reason::TenantTokensPerMonth
            | Reason::TenantMoneyPerDay
            | Reason::TenantMoneyPerMonth
            | Reason::TenantHeldBytes
            | Reason::TenantIdleStreams => 429,
            Reason::QueueFull
            | Reason::QueueTimeout
            | Reason::DeadlineUnreachable
            | Reason::LedgerUnavailable
            | Reason::ShuttingDown
            | Reason::DuplicateAdmission
            | Reason::WorkerFull
            | Reason::StrangerLimit
            | Reason::ServiceUnavailable => 503,
        }
    }

    /// The snake_case text of the reason, as in JSON and in `x-sluice-reason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::UnknownKey => "unknown_key",
            Reason::TenantDisabled => "tenant_disabled",
            Reason::ModelNotAllowed => "model_not_allowed",
            Reason::ModelNotFound => "model_not_found",
            Reason::ContextLengthExceeded => "context_length_exceeded",
            Reason::TenantConcurrency => "tenant_concurrency",
            Reason::TenantRequestsPerSecond => "tenant_requests_per_second",
            Reason::TenantRequestsPerMinute => "tenant_requests_per_minute",
            Reason::TenantTokensPerMinute => "tenant_tokens_per_minute",
            Reason::TenantTokensPerDay => "tenant_tokens_per_day",
            Reason::TenantTokensPerMonth => "tenant_tokens_per_month",
            Reason::TenantMoneyPerDay => "tenant_money_per_day",
            Reason::TenantMoneyPerMonth => "tenant_money_per_month",
            Reason::QueueFull => "queue_full",
            Reason::QueueTimeout => "queue_timeout",
            Reason::DeadlineUnreachable => "deadline_unreachable",
            Reason::LedgerUnavailable => "ledger_unavailable",
            Reason::ShuttingDown => "shutting_down",
            Reason::DuplicateAdmission => "duplicate_admission",
            Reason::MissingKey => "missing_key",
            Reason::ConflictingKeys => "conflicting_keys",
            Reason::MalformedKey => "malformed_key",
            Reason::InvalidPriority => "invalid_priority",
            Reason::InvalidDeadline => "invalid_deadline",
            Reason::PathNotListed => "path_not_listed",
            Reason::PathNotNormalized => "path_not_normalized",
            Reason::MethodNotAllowed => "method_not_allowed",
            Reason::UpgradeNotAllowed => "upgrade_not_allowed",
            Reason::InvalidBody => "invalid_body",
            Reason::UnsupportedEncoding => "unsupported_encoding",
            Reason::BodyTooLarge => "body_too_large",
            Reason::RequestTimeout => "request_timeout",
            Reason::WorkerFull => "worker_full",
            Reason::StrangerLimit => "stranger_limit",
            Reason::TenantHeldBytes => "tenant_held_bytes",
            Reason::TenantIdleStreams => "tenant_idle_streams",
            Reason::ServiceUnavailable => "service_unavailable",
        }
    }
}
