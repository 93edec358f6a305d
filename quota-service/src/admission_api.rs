//! The filter's routes. A request for admission is held here while its call is queued.

use crate::api_error::ApiError;
use crate::engine::Engine;
use crate::identity::{Identity, SharedIdentity};
use crate::secret::Secret;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use sluice_policy::units::{Millis, TenantId};
use sluice_policy::wire::{
    ADMISSIONS_PATH, AdmissionReply, AdmissionRequest, CALLERS_PATH, CallerReply, CallerRequest, DECIDED_HEADER,
    KeyProof, MODELS_PATH, ModelsReply, ModelsRequest, Reason, Refusal, SECRET_HEADER, SETTLEMENTS_PATH,
    SettlementBatch, SettlementReply, WIRE_VERSION,
};
use std::sync::Arc;
use tokio::time::{Duration, timeout};

/// Then the filter goes on keeping a batch, and sends it again. Below the five seconds after which it gives up on an answer.
const SAFE_WITHIN: Duration = Duration::from_secs(3);

/// A ledger that is away for longer no longer keeps the filter's outbox full: it may forget what this process remembers.
/// Half as long as ended ids are known, so that what is sent again is never taken for another call's.
const POSTPONED_FOR: Duration = Duration::from_secs(60);

/// The largest question about a call or a key: a few names at most, with all of their bytes escaped.
const QUESTION_BYTES_MAX: usize = 16 << 10;
/// The largest batch: 256 settlements, and as many live ids as a worker's outbox holds.
const BATCH_BYTES_MAX: usize = 4 << 20;

#[derive(Clone)]
struct Gate {
    engine: Arc<Engine>,
    identity: SharedIdentity,
    secret: Option<Arc<Secret>>,
}

/// The filter's listener as a router. `secret` is demanded of every request where the listener is TCP.
pub fn router(engine: Arc<Engine>, identity: SharedIdentity, secret: Option<Secret>) -> Router {
    let gate = Gate { engine, identity, secret: secret.map(Arc::new) };
    Router::new()
        .route(ADMISSIONS_PATH, post(admit))
        .route(MODELS_PATH, post(models))
        .route(CALLERS_PATH, post(caller))
        .route(SETTLEMENTS_PATH, post(settle).layer(DefaultBodyLimit::max(BATCH_BYTES_MAX)))
        .fallback(async || ApiError::NotFound)
        .layer(DefaultBodyLimit::max(QUESTION_BYTES_MAX))
        .layer(middleware::from_fn_with_state(gate.clone(), demand_secret))
        .with_state(gate)
}

async fn demand_secret(State(gate): State<Gate>, request: Request, next: Next) -> Result<Response, ApiError> {
    let presented = request.headers().get(SECRET_HEADER).map_or(&b""[..], HeaderValue::as_bytes);
    match &gate.secret {
        Some(secret) if !secret.matches(presented) => Err(ApiError::NoSecret),
        Some(_) | None => Ok(next.run(request).await),
    }
}

async fn admit(
    State(gate): State<Gate>,
    request: Result<Json<AdmissionRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let mut request = body(request)?;
    check_version(request.version)?;
    let identity = gate.identity.current();
    let Some((tenant, key)) = identity.verify(&request.key) else {
        let refusal = unknown_key();
        gate.engine.refused_stranger(&request, &refusal);
        return Ok(decided(AdmissionReply::Rejected(refusal)));
    };
    let rewrite = gate.engine.read(|core| core.config().resolve(tenant, &mut request));
    let Some(mut reply) = gate.engine.admit(tenant, key.priority, &request).await else {
        return Err(ApiError::Cancelled);
    };
    if let AdmissionReply::Admitted(grant) = &mut reply {
        grant.upstream_model = rewrite.upstream_model;
        grant.max_tokens = rewrite.max_tokens;
    }
    match &reply {
        AdmissionReply::Admitted(grant) => {
            tracing::debug!(id = %request.id, %tenant, key = key.name, priority = %grant.priority, waited = %grant.waited_ms, "admitted");
        }
        AdmissionReply::Rejected(refusal) => {
            tracing::debug!(id = %request.id, %tenant, key = key.name, reason = refusal.reason.as_str(), "rejected");
        }
    }
    Ok(decided(for_client(spread(reply))))
}

/// After metrics and logs have had the reason as it is.
fn for_client(reply: AdmissionReply) -> AdmissionReply {
    match reply {
        AdmissionReply::Rejected(refusal) => AdmissionReply::Rejected(refusal.for_client()),
        admitted @ AdmissionReply::Admitted(_) => admitted,
    }
}

/// What a key may use. Costs its tenant nothing, and is answered at once.
async fn models(
    State(gate): State<Gate>,
    request: Result<Json<ModelsRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let request = body(request)?;
    check_version(request.version)?;
    let identity = gate.identity.current();
    let reply = match known(&gate, &identity, &request.key) {
        Ok(tenant) => ModelsReply::Listed { models: gate.engine.read(|core| core.config().models_of(tenant)) },
        Err(refusal) => ModelsReply::Rejected(refusal),
    };
    Ok(decided(reply))
}

/// Whose a key is, for a gateway that already holds a part of its call. Costs its tenant nothing, and is answered at once.
async fn caller(
    State(gate): State<Gate>,
    request: Result<Json<CallerRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let request = body(request)?;
    check_version(request.version)?;
    let identity = gate.identity.current();
    let reply = match known(&gate, &identity, &request.key) {
        Ok(tenant) => CallerReply::Known { tenant: tenant.clone() },
        Err(refusal) => {
            gate.engine.refused_caller(refusal.reason);
            CallerReply::Rejected(refusal)
        }
    };
    Ok(decided(reply))
}

/// The tenant of a key that may be used at all.
fn known<'a>(gate: &Gate, identity: &'a Identity, key: &KeyProof) -> Result<&'a TenantId, Refusal> {
    let (tenant, _) = identity.verify(key).ok_or_else(unknown_key)?;
    gate.engine.read(|core| match core.config().tenants.get(tenant) {
        Some(settings) if settings.disabled => {
            Err(Refusal::new(Reason::TenantDisabled, format!("the tenant {tenant} is disabled")))
        }
        Some(_) => Ok(tenant),
        None => Err(unknown_key()),
    })
}

async fn settle(
    State(gate): State<Gate>,
    batch: Result<Json<SettlementBatch>, JsonRejection>,
) -> Result<Response, ApiError> {
    let batch = body(batch)?;
    check_version(batch.version)?;
    let number = gate.engine.settle(&batch.settlements);
    if let Some(live) = &batch.live {
        gate.engine.hear_of_live(&batch.worker, live);
    }
    batch.ended.iter().for_each(|ended| gate.engine.hear_of_ended(ended));
    tracing::debug!(worker = batch.worker, count = batch.settlements.len(), "settled");
    // What they freed is free already; only the word that the filter may forget them waits.
    let is_safe = timeout(SAFE_WITHIN, gate.engine.safe(number)).await.is_ok();
    if !is_safe && gate.engine.unsafe_for() < POSTPONED_FOR {
        return Ok(marked(ApiError::NotSafe));
    }
    let accepted = u64::try_from(batch.settlements.len()).unwrap_or(u64::MAX);
    Ok(decided(SettlementReply { accepted }))
}

fn body<T>(json: Result<Json<T>, JsonRejection>) -> Result<T, ApiError> {
    json.map(|Json(body)| body).map_err(|rejection| ApiError::BadRequest(rejection.body_text()))
}

fn check_version(theirs: u32) -> Result<(), ApiError> {
    // This release's and the one's before: gates are upgraded one after the other.
    if (WIRE_VERSION - 1..=WIRE_VERSION).contains(&theirs) {
        Ok(())
    } else {
        Err(ApiError::Version { theirs, ours: WIRE_VERSION })
    }
}

fn decided(reply: impl serde::Serialize) -> Response {
    marked(Json(reply))
}

/// Marks an answer as ours, so that the filter can tell it from a proxy's.
fn marked(reply: impl IntoResponse) -> Response {
    let mark = (HeaderName::from_static(DECIDED_HEADER), HeaderValue::from_static("1"));
    ([mark], reply).into_response()
}

/// The most that is added to `retry-after`: a tenth of a month would be three days too many.
const MOST_SPREAD_MS: u64 = 30_000;

/// Clients that were refused together should not return together: up to a tenth is added to `retry-after`, and at most
/// [`MOST_SPREAD_MS`].
fn spread(mut reply: AdmissionReply) -> AdmissionReply {
    if let AdmissionReply::Rejected(Refusal { retry_after_ms: Some(wait), .. }) = &mut reply {
        let mut random = [0_u8; 1];
        // Without randomness they return together, which is no reason to fail.
        let _ = getrandom::fill(&mut random);
        *wait = wait.plus(added(*wait, random));
    }
    reply
}

fn added(wait: Millis, [part]: [u8; 1]) -> Millis {
    Millis((wait.0 / 10).min(MOST_SPREAD_MS) * u64::from(part) / 255)
}

fn unknown_key() -> Refusal {
    Refusal::new(Reason::UnknownKey, "this API key is not known; check it, or ask your platform team for one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_is_spread_over_a_tenth_of_a_short_wait_and_half_a_minute_of_a_long_one() {
        const DAY_MS: u64 = 86_400_000;
        for (wait, most) in [(0, 0), (2_000, 200), (60_000, 6_000), (31 * DAY_MS, MOST_SPREAD_MS)] {
            assert_eq!((added(Millis(wait), [0]).0, added(Millis(wait), [255]).0), (0, most));
        }
    }
}
