//! What the filter and the quota service say to each other: JSON over HTTP/2.
//!
//! `POST /v1/admissions` carries an [`AdmissionRequest`] and is *held* while the call is queued; the answer is an
//! [`AdmissionReply`]. `POST /v1/models` asks what a key may use: a [`ModelsRequest`], answered by a [`ModelsReply`] at
//! once and free of charge. `POST /v1/callers` asks whose a key is, before the rest of its call has come: a
//! [`CallerRequest`], answered by a [`CallerReply`] at once and free of charge. `POST /v1/settlements` carries a [`SettlementBatch`]; it takes effect at once, and is
//! answered when that effect would survive the service, or with 503 when that takes too long. Every entry is idempotent, so
//! the filter repeats it until it is acknowledged.
//!
//! Every reply of the service bears [`DECIDED_HEADER`], which nothing else on the way sets: that is how the filter
//! tells an answer from a dead sidecar's 503.

pub(crate) mod bounded;
mod decision;
mod reason;

pub use reason::Reason;

use crate::seal::{IdReader, SealKey};
use crate::units::{AdmissionId, Millis, ModelName, PoolName, Priority, TenantId, Tokens};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// The version of the wire format. A service accepts its own and the one before.
pub const WIRE_VERSION: u32 = 1;

pub const ADMISSIONS_PATH: &str = "/v1/admissions";
pub const MODELS_PATH: &str = "/v1/models";
pub const CALLERS_PATH: &str = "/v1/callers";
pub const SETTLEMENTS_PATH: &str = "/v1/settlements";
/// Present on every reply of the service.
pub const DECIDED_HEADER: &str = "x-sluice-decided";
/// Carries the shared secret when the filter's listener is TCP.
pub const SECRET_HEADER: &str = "x-sluice-secret";

/// What the filter knows of a caller's key after it has forgotten the key. Its `Debug` does not show the digest.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyProof {
    /// The public id inside a key of our own format; absent for a key of another format.
    #[serde(default, deserialize_with = "bounded::optional_name", skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// SHA-256 of the whole key, 64 lower-case hex digits. A credential: never logged.
    #[serde(deserialize_with = "bounded::name")]
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
    #[serde(default, deserialize_with = "bounded::optional_name", skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The pool that the route names, when it does.
    #[serde(default, deserialize_with = "bounded::optional_name", skip_serializing_if = "Option::is_none")]
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

/// On the wire the decision comes first: see `wire/decision.rs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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

/// Whose key is this?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerRequest {
    pub version: u32,
    pub key: KeyProof,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum CallerReply {
    Known {
        tenant: TenantId,
    },
    /// No call of this key can be admitted.
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

    /// As the client may see it. Whether a model exists is nothing that a key can find out which may not use it, so both
    /// refusals are one; operators see which it was in the metrics and explanations.
    #[must_use]
    pub fn for_client(self) -> Self {
        match self.reason {
            Reason::ModelNotFound | Reason::ModelNotAllowed => {
                let one = Self::new(
                    Reason::ModelNotFound,
                    "this model does not exist here, or this API key may not use it; GET /v1/models lists what it may use",
                );
                Self { param: Some("model".to_owned()), rates: self.rates, ..one }
            }
            _ => self,
        }
    }

    #[must_use]
    pub fn retry_after(self, wait: Millis) -> Self {
        Self { retry_after_ms: Some(wait), ..self }
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
    #[serde(deserialize_with = "bounded::name")]
    pub worker: String,
    pub settlements: Vec<Settlement>,
    /// Told every few seconds, and by filters of this release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<LiveIds>,
    /// Other instances of the same Envoy that have ended. What they had not sent is in this batch or in one before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended: Vec<EndedWorker>,
}

/// An instance of the filter that reports nothing any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedWorker {
    /// Its incarnation.
    #[serde(deserialize_with = "bounded::name")]
    pub worker: String,
    /// Opens its ids, where it could still say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<SealKey>,
    /// Absent when it has ended in good order, with the last of its streams. Else its VM has trapped, so long ago or half a
    /// second longer, and the streams that it had sent upstream may go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_ms: Option<Millis>,
}

/// The admissions that a worker still answers for: from before it asks until the settlement is acknowledged. What it has
/// minted and does not list has ended, though nobody told how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveIds {
    /// The number of the latest id.
    pub minted: u64,
    /// The numbers of those that live, and first of them the lowest that is not yet acknowledged.
    pub numbers: BTreeSet<u64>,
    /// Opens the worker's ids. Absent from filters of the release before, whose ids are `<worker>-<number>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<SealKey>,
}

impl LiveIds {
    /// The report as one about this worker's ids.
    #[must_use]
    pub fn of(&self, worker: &str) -> LiveIdsOf<'_> {
        LiveIdsOf { live: self, ids: self.reader(worker) }
    }

    /// How to read this worker's ids.
    #[must_use]
    pub fn reader(&self, worker: &str) -> IdReader {
        IdReader::new(worker, self.seal.as_ref())
    }
}

/// What a worker has reported, with how to read its ids.
pub struct LiveIdsOf<'a> {
    live: &'a LiveIds,
    ids: IdReader,
}

impl LiveIdsOf<'_> {
    /// Whether a call of this worker has ended, as far as the report tells.
    #[must_use]
    pub fn is_over(&self, id: &AdmissionId) -> bool {
        let number = self.ids.number(id);
        number.is_some_and(|number| number <= self.live.minted && !self.live.numbers.contains(&number))
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
    /// The model server may work on: the client left, or Envoy gave the call up. A filter of the release before says so by
    /// [`Outcome::Aborted`] alone; see [`Settlement::may_run_on`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub abandoned: bool,
}

impl Settlement {
    /// Whether the model server may work on the call: nothing has told that it ended there.
    #[must_use]
    pub fn may_run_on(&self) -> bool {
        self.abandoned || self.outcome == Outcome::Aborted
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
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
    #[serde(deserialize_with = "bounded::name")]
    pub tenant: TenantId,
    #[serde(deserialize_with = "bounded::name")]
    pub pool: PoolName,
    #[serde(default, deserialize_with = "bounded::optional_name", skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// As the request told: no more usage is believed than so many prompts may have.
    #[serde(default = "one")]
    pub prompts: u32,
    #[serde(default = "most_sequences")]
    pub sequences: u32,
    /// How often the server may have asked the model, each time with the context to itself. More than 1 where it runs tools.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub turns: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_one(number: &u32) -> bool {
    *number == 1
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
    /// The upstream answered with a success status, and its reply or the last event of its stream has come.
    Completed,
    /// The upstream answered with an error status, or its reply broke off.
    Failed,
    /// The client left, or broke the protocol, after the call had gone to the upstream.
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
    use crate::seal::Seal;

    #[test]
    fn the_header_text_of_a_reason_is_its_json_text() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }

    #[test]
    fn a_report_speaks_of_what_its_worker_had_minted_and_of_nothing_else() {
        let keys = [1, 2].map(SealKey::new);
        let plain = LiveIds { minted: 7, numbers: [3, 7].into(), seal: None };
        let sealed = LiveIds { seal: Some(keys[0].clone()), ..plain.clone() };
        let [own, other] = keys.map(|key| Seal::new(&key));
        let ids = |number: u64| [(&plain, format!("ab-{number}").into()), (&sealed, own.seal(number))];
        let over = |number| ids(number).map(|(report, id)| report.of("ab").is_over(&id));
        assert_eq!([1, 6].map(over), [[true; 2]; 2]);
        assert_eq!([3, 7].map(over), [[false; 2]; 2], "they live");
        assert_eq!(over(8), [false; 2], "minted after the report was made");
        for foreign in ["abc-1", "cd-1", "ab1", "ab-", other.seal(1).as_str(), own.seal(1).as_str()] {
            assert!(!plain.of("ab").is_over(&foreign.into()), "{foreign} is not this worker's");
        }
        for foreign in ["ab-1", other.seal(1).as_str()] {
            assert!(!sealed.of("ab").is_over(&foreign.into()), "{foreign} is not this worker's");
        }
    }

    #[test]
    fn a_text_that_a_client_chose_is_read_up_to_its_bound_and_no_further() {
        let read = |field: &str, length: usize| {
            let mut request = serde_json::json!({
                "version": 1, "id": "w-1", "key": {"id": "k", "digest": "d"}, "model": "m", "pool": "p",
                "input_tokens": 1, "sequences": 1, "stream": false, "body_bytes": 1,
            });
            *request.pointer_mut(field).unwrap() = "x".repeat(length).into();
            serde_json::from_str::<AdmissionRequest>(&request.to_string()).map_err(|error| error.to_string())
        };
        for (field, most) in [("/id", 64), ("/key/id", 256), ("/key/digest", 256), ("/model", 256), ("/pool", 256)] {
            assert!(read(field, most).is_ok(), "{field}");
            let refused = read(field, most + 1).unwrap_err();
            assert!(refused.contains(&format!("a text of at most {most} bytes")), "{refused}");
        }
        let batch = |field: &str, length: usize| {
            let charge = serde_json::json!({"tenant": "t", "pool": "p", "model": "m"});
            let usage = serde_json::json!({"source": "none"});
            let settlement = serde_json::json!({"id": "w-1", "outcome": "failed", "usage": usage, "charge_to": charge});
            let mut batch = serde_json::json!({"version": 1, "worker": "w", "settlements": [settlement]});
            *batch.pointer_mut(field).unwrap() = "x".repeat(length).into();
            serde_json::from_str::<SettlementBatch>(&batch.to_string()).is_ok()
        };
        let charge_to = ["tenant", "pool", "model"].map(|field| format!("/settlements/0/charge_to/{field}"));
        for field in ["/worker".to_owned()].iter().chain(&charge_to) {
            assert!(batch(field, 256) && !batch(field, 257), "{field}");
        }
        assert!(batch("/settlements/0/id", 64) && !batch("/settlements/0/id", 65));
    }

    #[test]
    fn a_client_cannot_tell_a_model_that_it_may_not_use_from_one_that_does_not_exist() {
        let [unknown, forbidden] = [(Reason::ModelNotFound, "x"), (Reason::ModelNotAllowed, "y")]
            .map(|(reason, why)| Refusal::new(reason, why).for_client());
        assert_eq!(unknown, forbidden);
        assert_eq!((unknown.status, unknown.reason), (404, Reason::ModelNotFound));
        let other = Refusal::new(Reason::TenantDisabled, "the tenant t is disabled");
        assert_eq!(other.clone().for_client(), other);
    }

    #[test]
    fn a_reply_of_a_later_release_with_more_fields_is_still_read() {
        let reply = r#"{"decision":"rejected","status":429,"reason":"tenant_concurrency","message":"m","new":1}"#;
        assert!(matches!(serde_json::from_str(reply), Ok(AdmissionReply::Rejected(_))));
    }
}
