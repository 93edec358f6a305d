//! What both listeners answer when a request is not even wrong.

use crate::home::error::HomeError;
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use sluice_policy::config::reader::ConfigErrors;

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("this needs `authorization: Bearer <token>` with the token of listeners.operators.token_file")]
    NoToken,
    #[error(
        "this listener answers to IP addresses, to localhost and to the names in listeners.operators.hosts, and not to the Host of this request"
    )]
    ForeignHost,
    #[error("a page of another origin may not use this listener")]
    ForeignOrigin,
    #[error("this listener needs the shared secret of listeners.filter.secret_file in x-sluice-secret")]
    NoSecret,
    #[error("the ledger does not answer, so these settlements are not safe yet: send them again")]
    NotSafe,
    #[error("{0}")]
    BadRequest(String),
    #[error("the call was cancelled while it was held")]
    Cancelled,
    #[error("refused:\n{0}")]
    Refused(#[from] ConfigErrors),
    #[error(
        "nothing is known of this admission id: it is older than the last 10,000 (1,000 of unknown keys), or was never asked for"
    )]
    UnknownAdmission,
    #[error("this is kept in the ledger, which does not answer: {0}")]
    Ledger(#[from] HomeError),
    #[error("others change the overlay all the time; look at it, and try again")]
    Contested,
    #[error("the filter speaks version {theirs} of the wire format, this service {ours}; upgrade the older one")]
    Version { theirs: u32, ours: u32 },
    #[error("there is nothing here; see the README for the routes")]
    NotFound,
    #[error("metrics cannot be shown: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self {
            ApiError::NoToken | ApiError::NoSecret => StatusCode::UNAUTHORIZED,
            ApiError::BadRequest(_) | ApiError::Version { .. } => StatusCode::BAD_REQUEST,
            ApiError::ForeignHost => StatusCode::MISDIRECTED_REQUEST,
            ApiError::ForeignOrigin => StatusCode::FORBIDDEN,
            // Nobody reads it: the filter has forgotten the call.
            ApiError::Cancelled => StatusCode::GONE,
            ApiError::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ApiError::Ledger(_) | ApiError::NotSafe => StatusCode::SERVICE_UNAVAILABLE,
            ApiError::Contested => StatusCode::CONFLICT,
            ApiError::NotFound | ApiError::UnknownAdmission => StatusCode::NOT_FOUND,
            ApiError::Metrics(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(json!({"error": {"message": self.to_string()}}))).into_response()
    }
}
