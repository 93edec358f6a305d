//! The operators' routes: health and metrics are open, everything that shows or changes tenants' data needs the token.
//! All but health is for those who call this listener by a name of its own.

mod callers;
mod explain;
mod stats;
mod usage;

pub use callers::OwnNames;
pub use usage::UsageReports;

use crate::api_error::ApiError;
use crate::control::{Control, OverlayStatus, TimeRulesStatus};
use crate::engine::Engine;
use crate::secret::Secret;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use sluice_policy::units::AdmissionId;
use std::sync::Arc;

#[derive(Clone)]
struct Desk {
    engine: Arc<Engine>,
    control: Arc<Control>,
    reports: UsageReports,
    token: Arc<Secret>,
    names: Arc<OwnNames>,
}

/// The operators' listener as a router.
pub fn router(
    engine: Arc<Engine>,
    control: Arc<Control>,
    reports: UsageReports,
    token: Secret,
    names: OwnNames,
) -> Router {
    let desk = Desk { engine, control, reports, token: Arc::new(token), names: Arc::new(names) };
    let guarded = Router::new()
        .route("/admin/scheduler/stats", get(stats))
        .route("/admin/scheduler/queues", get(queues))
        .route("/admin/scheduler/weights", put(set_weights))
        .route("/admin/scheduler/overlay", get(show_overlay).put(set_overlay).delete(clear_overlay))
        .route("/admin/time-rules/status", get(time_rules))
        .route("/admin/time-rules/apply", post(apply_time_rules))
        .route("/admin/config/reload", post(reload))
        .route("/admin/explain/{id}", get(explain_one))
        .route("/admin/usage", get(show_usage))
        .layer(middleware::from_fn_with_state(desk.clone(), demand_token))
        .route("/metrics", get(metrics_page))
        .layer(middleware::from_fn_with_state(desk.clone(), demand_own_name));
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .merge(guarded)
        .fallback(async || ApiError::NotFound)
        .with_state(desk)
}

async fn demand_own_name(State(desk): State<Desk>, request: Request, next: Next) -> Result<Response, ApiError> {
    desk.names.check(&request)?;
    Ok(next.run(request).await)
}

async fn demand_token(State(desk): State<Desk>, request: Request, next: Next) -> Result<Response, ApiError> {
    let presented = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let token = presented.and_then(|value| value.strip_prefix(b"Bearer "));
    if token.is_some_and(|token| desk.token.matches(token)) {
        Ok(next.run(request).await)
    } else {
        Err(ApiError::NoToken)
    }
}

/// Ready means: send traffic here. Alive means only that this answers.
async fn ready(State(desk): State<Desk>) -> (StatusCode, &'static str) {
    if desk.engine.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no lease from the ledger yet, or shutting down\n")
    }
}

async fn metrics_page(State(desk): State<Desk>) -> Result<Response, ApiError> {
    // On a thread of its own: those that serve calls have other things to do than to write megabytes.
    let page = tokio::task::spawn_blocking(move || desk.engine.metrics_page()).await;
    let text = page.map_err(|error| prometheus::Error::Msg(error.to_string()))??;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

async fn stats(State(desk): State<Desk>) -> Json<stats::Stats> {
    Json(stats::Stats::of(&desk.engine.totals(), &desk.control))
}

#[derive(Deserialize)]
struct Top {
    top: Option<usize>,
}

async fn queues(
    State(desk): State<Desk>,
    top: Result<Query<Top>, QueryRejection>,
) -> Result<Json<stats::BusiestQueues>, ApiError> {
    let Query(Top { top }) = top.map_err(|rejection| ApiError::BadRequest(rejection.body_text()))?;
    Ok(Json(stats::BusiestQueues::of(&desk.engine, top.unwrap_or(10))))
}

async fn set_weights(State(desk): State<Desk>, change: Change) -> Result<Json<OverlayStatus>, ApiError> {
    Ok(Json(desk.control.set_weights(&body(change)?).await?))
}

async fn show_overlay(State(desk): State<Desk>) -> Json<OverlayStatus> {
    Json(desk.control.overlay_status())
}

async fn set_overlay(State(desk): State<Desk>, change: Change) -> Result<Json<OverlayStatus>, ApiError> {
    Ok(Json(desk.control.set_overlay(&body(change)?).await?))
}

async fn clear_overlay(State(desk): State<Desk>) -> Result<Json<OverlayStatus>, ApiError> {
    Ok(Json(desk.control.clear_overlay().await?))
}

async fn time_rules(State(desk): State<Desk>) -> Json<TimeRulesStatus> {
    Json(desk.control.time_rules_status())
}

/// Rules apply by themselves; this is for those who have just set the machine's clock.
async fn apply_time_rules(State(desk): State<Desk>) -> Json<TimeRulesStatus> {
    desk.control.apply();
    Json(desk.control.time_rules_status())
}

async fn reload(State(desk): State<Desk>) -> Result<Json<Value>, ApiError> {
    let reloads = desk.control.reload()?;
    Ok(Json(json!({"reloaded": true, "taken": reloads.taken, "refused": reloads.refused})))
}

async fn explain_one(State(desk): State<Desk>, Path(id): Path<String>) -> Result<Json<explain::Explained>, ApiError> {
    let now = desk.engine.now();
    let explained = desk.engine.read(|core| {
        let explanation = core.explain(&AdmissionId::from(id.as_str()))?;
        Some(explain::Explained::of(id, &explanation, core.config(), now))
    });
    explained.map(Json).ok_or(ApiError::UnknownAdmission)
}

async fn show_usage(
    State(desk): State<Desk>,
    question: Result<Query<usage::Question>, QueryRejection>,
) -> Result<Json<usage::Report>, ApiError> {
    let Query(question) = question.map_err(|rejection| ApiError::BadRequest(rejection.body_text()))?;
    Ok(Json(desk.reports.answer(&question).await?))
}

type Change = Result<Json<Value>, JsonRejection>;

fn body(change: Change) -> Result<Value, ApiError> {
    change.map(|Json(body)| body).map_err(|rejection| ApiError::BadRequest(rejection.body_text()))
}
