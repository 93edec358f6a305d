//! Drives a sidecar in the protocol that it and the filter speak, without Envoy: for more calls than Envoys can carry on
//! the machine that also measures.

use super::builder::{copy_of, hex};
use crate::stack::MODEL;
use crate::upstream::{CallLog, Ticket};
use crate::wait::let_pass;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sluice_policy::units::{AdmissionId, Millis, Tokens};
use sluice_policy::wire::{
    ADMISSIONS_PATH, AdmissionReply, AdmissionRequest, KeyProof, Outcome, Reason, SETTLEMENTS_PATH, Settlement,
    SettlementBatch, Usage, UsageSource, WIRE_VERSION,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// So that a call that is never answered is noticed.
const HANGS_AFTER: Duration = Duration::from_secs(90);
/// Between two attempts at a settlement, as the filter's.
const POSTPONED_FOR: Duration = Duration::from_secs(1);
/// Told apart from all others of this process, whichever sidecar it goes to.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// What every call uses.
pub const TOKENS: u64 = 14;
const OUTPUT: u64 = 3;

/// A call that was admitted and runs.
pub struct Running {
    id: AdmissionId,
    _ticket: Ticket,
}

#[derive(Clone)]
pub struct Direct {
    http: reqwest::Client,
    proof: KeyProof,
    tenant: Arc<str>,
    model: Arc<str>,
    calls: CallLog,
}

impl Direct {
    pub(super) fn new(folder: &Path, key: &str, tenant: &str, calls: CallLog) -> Result<Self> {
        let socket = folder.join("envoy/run/sluice.sock");
        let http =
            reqwest::Client::builder().unix_socket(socket).http2_prior_knowledge().timeout(HANGS_AFTER).build()?;
        let id = key.split('_').nth(1).context("a key without an id")?.to_owned();
        let digest = hex(&Sha256::digest(key.as_bytes()));
        Ok(Self { http, proof: KeyProof { id: Some(id), digest }, tenant: tenant.into(), model: MODEL.into(), calls })
    }

    /// The same connection as another tenant: the copy of this number.
    #[must_use]
    pub fn copy(&self, number: usize) -> Self {
        let (name, digest) = copy_of(number);
        let proof = KeyProof { id: None, digest: hex(&digest) };
        Self { proof, tenant: name.into(), ..self.clone() }
    }

    /// The same caller, of another model.
    #[must_use]
    pub fn to_model(self, model: &str) -> Self {
        Self { model: model.into(), ..self }
    }

    /// The same caller, whose calls are counted here instead of in the fleet's upstream.
    #[must_use]
    pub fn counted_in(self, calls: &CallLog) -> Self {
        Self { calls: calls.clone(), ..self }
    }

    /// Asks for admission, runs for `service` where it is given, and settles, as the filter does. Tells whether it ran.
    ///
    /// # Errors
    /// When the sidecar does not answer.
    pub async fn call(&self, service: Duration) -> Result<bool> {
        let Ok(running) = self.begin().await? else { return Ok(false) };
        let_pass(service).await;
        self.end(running).await?;
        Ok(true)
    }

    /// Asks for admission, and runs until [`Direct::end`]. Tells why it may not.
    ///
    /// # Errors
    /// When the sidecar does not answer.
    pub async fn begin(&self) -> Result<Result<Running, Reason>> {
        let id = AdmissionId::from(format!("direct-1-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        match serde_json::from_value(self.post(ADMISSIONS_PATH, &self.request(&id)).await?)? {
            AdmissionReply::Admitted(grant) => {
                Ok(Ok(Running { id, _ticket: self.calls.enter(&self.tenant, u8::from(grant.priority)) }))
            }
            AdmissionReply::Rejected(refusal) => Ok(Err(refusal.reason)),
        }
    }

    /// Settles a call that has ended now, with [`TOKENS`] tokens; again and again while the sidecar says that it could not
    /// keep it if it were killed. The slot is free long before.
    ///
    /// # Errors
    /// When the sidecar does not answer.
    pub async fn end(&self, running: Running) -> Result<()> {
        let id = running.id.clone();
        // As in the upstream: it has ended before anybody learns of it.
        drop(running);
        let usage = Usage {
            source: UsageSource::Reported,
            input: Tokens(TOKENS - OUTPUT),
            output: Tokens(OUTPUT),
            ..Usage::default()
        };
        let settlement =
            Settlement { id, outcome: Outcome::Completed, usage, charge_to: None, timing: None, abandoned: false };
        let batch = SettlementBatch {
            version: WIRE_VERSION,
            worker: "direct-1".to_owned(),
            settlements: vec![settlement],
            live: None,
            ended: Vec::new(),
        };
        let mut reply = self.send(SETTLEMENTS_PATH, &batch).await?;
        while reply.status() == 503 {
            let_pass(POSTPONED_FOR).await;
            reply = self.send(SETTLEMENTS_PATH, &batch).await?;
        }
        ensure!(reply.status() == 200, "{SETTLEMENTS_PATH}: {}", reply.status());
        Ok(())
    }

    fn request(&self, id: &AdmissionId) -> AdmissionRequest {
        AdmissionRequest {
            version: WIRE_VERSION,
            id: id.clone(),
            key: self.proof.clone(),
            model: Some(self.model.to_string()),
            pool: None,
            input_tokens: Tokens(11),
            max_tokens: Some(Tokens(8)),
            prompts: 1,
            sequences: 1,
            stream: false,
            body_bytes: 200,
            priority: None,
            deadline_ms: None::<Millis>,
        }
    }

    async fn post(&self, path: &str, body: &impl serde::Serialize) -> Result<Value> {
        let reply = self.send(path, body).await?;
        ensure!(reply.status() == 200, "{path}: {}", reply.status());
        Ok(reply.json().await?)
    }

    async fn send(&self, path: &str, body: &impl serde::Serialize) -> Result<reqwest::Response> {
        Ok(self.http.post(format!("http://sidecar{path}")).json(body).send().await?)
    }
}
