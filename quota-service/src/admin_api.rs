//! The operators' routes: health and metrics are open, everything that shows tenants' data needs the token.

mod stats;

use crate::api_error::ApiError;
use crate::engine::Engine;
use crate::metrics::Metrics;
use crate::secret::Secret;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use std::sync::Arc;

#[derive(Clone)]
struct Desk {
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
    token: Arc<Secret>,
}

/// The operators' listener as a router.
pub fn router(engine: Arc<Engine>, metrics: Arc<Metrics>, token: Secret) -> Router {
    let desk = Desk { engine, metrics, token: Arc::new(token) };
    let guarded = Router::new()
        .route("/admin/scheduler/stats", get(stats))
        .route("/admin/scheduler/queues", get(queues))
        .layer(middleware::from_fn_with_state(desk.clone(), demand_token));
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_page))
        .merge(guarded)
        .fallback(async || ApiError::NotFound)
        .with_state(desk)
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
    let text = desk.metrics.render()?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

async fn stats(State(desk): State<Desk>) -> Json<stats::Stats> {
    Json(stats::Stats::of(&desk.engine.totals()))
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
    Ok(Json(stats::BusiestQueues::of(&desk.engine.totals(), top.unwrap_or(10))))
}
