//! What the filter and the quota service say to each other: JSON over HTTP/2.
//!
//! `POST /v1/admissions` carries an [`AdmissionRequest`] and is *held* while the call is queued; the answer is an
//! [`AdmissionReply`]. `POST /v1/models` asks what a key may use: a [`ModelsRequest`], answered by a [`ModelsReply`] at
//! once and free of charge. `POST /v1/settlements` carries a [`SettlementBatch`]; it takes effect at once, and is
//! answered when that effect would survive the service, or with 503 when that takes too long. Every entry is idempotent, so
//! the filter repeats it until it is acknowledged.
//!
//! Every reply of the service bears [`DECIDED_HEADER`], which nothing else on the way sets: that is how the filter
//! tells an answer from a dead sidecar's 503.

use crate::units::{AdmissionId, Millis, ModelName, PoolName, Priority, TenantId, Tokens};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// The version of the wire format. A service accepts its own and the one before.
pub const WIRE_VERSION: u32 = 1;

pub const ADMISSIONS_PATH: &str = "/v1/admissions";
pub const MODELS_PATH: &str = "/v1/models";
pub const SETTLEMENTS_PATH: &str = "/v1/settlements";
/// Present on every reply of the service.
pub const DECIDED_HEADER: &str = "x-sluice-decided";
/// Carries the shared secret when the filter's listener is TCP.
pub const SECRET_HEADER: &str = "x-sluice-secret";

/// What the filter knows of a caller's key after it has forgotten the key. Its `Debug` does not show the digest.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyProof {
    /// The public id inside a key of our own format; absent for a key of another format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// SHA-256 of the whole key, 64 lower-case hex digits. A credential: never logged.
    pub digest: String,
}

impl fmt::Debug for KeyProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyProof").field("id", &self.id).field("digest", &"[redacted]").finish()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmissionRequest {
    pub version: u32,
    pub id: AdmissionId,
    pub key: KeyProof,
    /// The model that the body names. Absent only in headers mode, where `pool` must be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The pool that the route names, when it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// Estimated from the prompt's length.
    pub input_tokens: Tokens,
    /// Per sequence; absent when the client set no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<Tokens>,
    /// Prompts of the call, each of which has the model's context to itself: completions and embeddings may bring a list.
    /// 0 where the charge is fixed: what is counted then has nothing to do with a context.
    #[serde(default = "one")]
    pub prompts: u32,
    /// Sequences that the call generates (`n`, `best_of`, prompts), at least 1.
    pub sequences: u32,
    /// Whether the reply comes as a stream of events.
    pub stream: bool,
    /// Bytes that Envoy holds while the call waits.
    pub body_bytes: u64,
    /// The client's `x-priority`; it may only lower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// The client's `x-sluice-deadline-ms`: how long it is willing to wait in the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<Millis>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum AdmissionReply {
    Admitted(Grant),
    Rejected(Refusal),
}

/// The call may go on, tagged like this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub tenant: TenantId,
    pub namespace: Arc<str>,
    pub tier: Arc<str>,
    pub priority: Priority,
    pub pool: PoolName,
    /// What was reserved and will be corrected at settlement.
    pub reserved: Tokens,
    /// How long the call stood in the queue.
    pub waited_ms: Millis,
    pub rates: Vec<RateStatus>,
    /// The name that the model server knows the model by, where the client's is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_model: Option<ModelName>,
    /// The most tokens that its tenant lets one sequence yield, whatever the client asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<Tokens>,
}

/// Which models may this key use?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelsRequest {
    pub version: u32,
    pub key: KeyProof,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum ModelsReply {
    /// Every name that a call of this key may use, aliases too, in alphabetical order.
    Listed {
        models: Vec<ModelName>,
    },
    Rejected(Refusal),
}

/// The call may not go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// HTTP status for the client: 400, 401, 403, 404, 429 or 503.
    pub status: u16,
    pub reason: Reason,
    /// A sentence for the client's developer: what, and what to do.
    pub message: String,
    /// The request field at fault, in the dialect's words (`model`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
    /// When trying again may help; absent when it will not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<Millis>,
    /// The place in the queue that the call would have taken, or would take if it came again, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_wait_ms: Option<Millis>,
    #[serde(default)]
    pub waited_ms: Millis,
    #[serde(default)]
    pub rates: Vec<RateStatus>,
}

impl Refusal {
    /// A refusal that says why and nothing else yet.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            status: reason.status(),
            reason,
            message: message.into(),
            param: None,
            retry_after_ms: None,
            position: None,
            estimated_wait_ms: None,
            waited_ms: Millis::ZERO,
            rates: Vec::new(),
        }
    }

    #[must_use]
    pub fn retry_after(self, wait: Millis) -> Self {
        Self { retry_after_ms: Some(wait), ..self }
    }
}

/// The machine-readable cause of every refusal, in `x-sluice-reason`. The filter's own causes are here too, so that
/// the list is in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    // Decided by the service.
    UnknownKey,
    TenantDisabled,
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
    ServiceUnavailable,
}

impl Reason {
    /// Every reason, for documentation and metrics.
    pub const ALL: [Reason; 34] = [
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
            Reason::TenantDisabled | Reason::ModelNotAllowed | Reason::UpgradeNotAllowed => 403,
            Reason::ModelNotFound | Reason::PathNotListed => 404,
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
            | Reason::TenantMoneyPerMonth => 429,
            Reason::QueueFull
            | Reason::QueueTimeout
            | Reason::DeadlineUnreachable
            | Reason::LedgerUnavailable
            | Reason::ShuttingDown
            | Reason::DuplicateAdmission
            | Reason::WorkerFull
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
            Reason::ServiceUnavailable => "service_unavailable",
        }
    }
}

/// One limit as the rate headers show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateStatus {
    pub kind: RateKind,
    pub limit: u64,
    /// Zero when the bucket is in debt.
    pub remaining: u64,
    /// Until the bucket is full again.
    pub reset_ms: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RateKind {
    Requests,
    Tokens,
}

/// Calls that have ended, one entry a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettlementBatch {
    pub version: u32,
    /// The incarnation of the Envoy worker that reports.
    pub worker: String,
    pub settlements: Vec<Settlement>,
    /// Told every few seconds, and by filters of this release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<LiveIds>,
}

/// The admissions that a worker still answers for: from before it asks until the settlement is acknowledged. What it has
/// minted and does not list has ended, though nobody told how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveIds {
    /// The number of the latest id.
    pub minted: u64,
    /// The numbers of those that live.
    pub numbers: BTreeSet<u64>,
}

impl LiveIds {
    /// Whether a call of this worker has ended, as far as the report tells.
    #[must_use]
    pub fn is_over(&self, worker: &str, id: &AdmissionId) -> bool {
        let number = id.as_str().strip_prefix(worker).and_then(|rest| rest.strip_prefix('-')?.parse::<u64>().ok());
        number.is_some_and(|number| number <= self.minted && !self.numbers.contains(&number))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    pub id: AdmissionId,
    pub outcome: Outcome,
    /// What the upstream reported, or the filter's count of what had streamed.
    pub usage: Usage,
    /// Whom to charge when the service does not know the id: it has restarted, or the call passed a route that fails
    /// open while it was away. Absent when the call never got as far as a tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charge_to: Option<ChargeTo>,
    /// How long the upstream took. Absent when it never answered, and from filters of the release before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timing: Option<Timing>,
}

/// Time as the filter measured it, from the moment at which the call left for the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// To the first byte of the reply's body that bore output.
    pub first_token_ms: Millis,
    /// To the end of the reply.
    pub duration_ms: Millis,
    /// The reply came as a stream, so that `first_token_ms` is the first token's and not the whole reply's.
    pub streamed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChargeTo {
    pub tenant: TenantId,
    pub pool: PoolName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// As the request told: no more usage is believed than so many prompts may have.
    #[serde(default = "one")]
    pub prompts: u32,
    #[serde(default = "most_sequences")]
    pub sequences: u32,
}

/// What a filter meant that did not tell.
fn one() -> u32 {
    1
}

/// What a filter may have meant that did not tell: as many as it lets pass unless configured otherwise.
fn most_sequences() -> u32 {
    16
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The upstream answered with a success status and ended its reply.
    Completed,
    /// The upstream answered with an error status, or its reply broke off.
    Failed,
    /// The client left while the upstream was answering.
    Aborted,
    /// The client left, or the call was refused by the filter, before anything reached the upstream.
    Cancelled,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub source: UsageSource,
    #[serde(default)]
    pub input: Tokens,
    #[serde(default)]
    pub output: Tokens,
    /// The part of `input` that the upstream took from its prefix cache.
    #[serde(default)]
    pub cached: Tokens,
    /// The part of `output` that the model thought and did not say.
    #[serde(default)]
    pub reasoning: Tokens,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    /// Nothing reached the model: nothing is charged.
    #[default]
    None,
    /// The upstream's own numbers.
    Reported,
    /// Counted or guessed by the filter, because the reply bore none (or none to be believed).
    Estimated,
    /// The fixed charge of a request that is not counted in tokens, all of it as `input`.
    Fixed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettlementReply {
    /// Entries taken, known or not. All of a batch, or the call fails.
    pub accepted: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_text_of_a_reason_is_its_json_text() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }

    #[test]
    fn a_report_speaks_of_what_its_worker_had_minted_and_of_nothing_else() {
        let report = LiveIds { minted: 7, numbers: [3, 7].into() };
        let over = |id: &str| report.is_over("ab", &id.into());
        assert!(over("ab-1") && over("ab-6"));
        assert!(!over("ab-3") && !over("ab-7"), "they live");
        assert!(!over("ab-8"), "minted after the report was made");
        assert!(!over("abc-1") && !over("cd-1") && !over("ab1") && !over("ab-"), "not this worker's");
    }

    #[test]
    fn a_reply_of_a_later_release_with_more_fields_is_still_read() {
        let reply = r#"{"decision":"rejected","status":429,"reason":"tenant_concurrency","message":"m","new":1}"#;
        assert!(matches!(serde_json::from_str(reply), Ok(AdmissionReply::Rejected(_))));
    }
}
