//! How each kind of client expects its errors.

use serde::Serialize;
use sluice_policy::wire::{Reason, Refusal};

/// A family of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    OpenAi,
    Anthropic,
    /// KServe v2 over HTTP.
    KServe,
    /// A status and its message; there is no body.
    Grpc,
    /// Any other HTTP client.
    Plain,
}

impl Style {
    /// For a call that no route claims: by what it says of itself, else by where it wanted to go.
    pub(crate) fn of_stranger(path: &str, content_type: Option<&str>, is_anthropic: bool) -> Self {
        if is_grpc(content_type) {
            return Style::Grpc;
        }
        match path {
            path if is_anthropic || path.starts_with("/v1/messages") => Style::Anthropic,
            path if path == "/v2" || path.starts_with("/v2/") => Style::KServe,
            path if path.starts_with("/v1/") => Style::OpenAi,
            _ => Style::Plain,
        }
    }

    /// The body of an error reply.
    pub(super) fn error_body(self, refusal: &Refusal) -> Vec<u8> {
        let (message, reason) = (refusal.message.as_str(), refusal.reason.as_str());
        let body = match self {
            Style::Grpc => return message.as_bytes().to_vec(),
            Style::OpenAi => {
                let (kind, code) = openai_kind(refusal.reason);
                let error = OpenAiError { message, kind, param: refusal.param.as_deref(), code };
                serde_json::to_vec(&Wrapped { error })
            }
            Style::Anthropic => {
                let error = AnthropicError { kind: anthropic_kind(refusal), message };
                serde_json::to_vec(&Anthropic { kind: "error", error })
            }
            Style::KServe => serde_json::to_vec(&Wrapped { error: message }),
            Style::Plain => serde_json::to_vec(&Plain { error: message, reason }),
        };
        // Texts always serialise.
        body.unwrap_or_default()
    }
}

/// `application/grpc` and `application/grpc+proto`, and not grpc-web, which is another protocol.
pub(crate) fn is_grpc(content_type: Option<&str>) -> bool {
    let rest = content_type.and_then(|kind| kind.strip_prefix("application/grpc"));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
}

#[derive(Serialize)]
struct Wrapped<T> {
    error: T,
}

#[derive(Serialize)]
struct OpenAiError<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

#[derive(Serialize)]
struct Anthropic<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: AnthropicError<'a>,
}

#[derive(Serialize)]
struct AnthropicError<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
}

#[derive(Serialize)]
struct Plain<'a> {
    error: &'a str,
    reason: &'a str,
}

/// OpenAI's own words where it has them, else our reason as the code.
fn openai_kind(reason: Reason) -> (&'static str, &'static str) {
    match reason {
        Reason::TenantConcurrency | Reason::TenantRequestsPerSecond | Reason::TenantRequestsPerMinute => {
            ("requests", "rate_limit_exceeded")
        }
        Reason::TenantHeldBytes | Reason::TenantIdleStreams => ("requests", reason.as_str()),
        Reason::TenantTokensPerMinute => ("tokens", "rate_limit_exceeded"),
        Reason::TenantTokensPerDay
        | Reason::TenantTokensPerMonth
        | Reason::TenantMoneyPerDay
        | Reason::TenantMoneyPerMonth => ("insufficient_quota", "insufficient_quota"),
        Reason::UnknownKey | Reason::MissingKey | Reason::ConflictingKeys | Reason::MalformedKey => {
            ("invalid_request_error", "invalid_api_key")
        }
        Reason::TenantDisabled => ("permission_error", reason.as_str()),
        Reason::PathNotListed => ("invalid_request_error", "unknown_url"),
        Reason::QueueFull
        | Reason::QueueTimeout
        | Reason::DeadlineUnreachable
        | Reason::LedgerUnavailable
        | Reason::ShuttingDown
        | Reason::DuplicateAdmission
        | Reason::WorkerFull
        | Reason::StrangerLimit
        | Reason::ServiceUnavailable => ("server_error", reason.as_str()),
        Reason::ModelNotFound | Reason::ModelNotAllowed => ("invalid_request_error", Reason::ModelNotFound.as_str()),
        Reason::ContextLengthExceeded
        | Reason::InvalidPriority
        | Reason::InvalidDeadline
        | Reason::PathNotNormalized
        | Reason::MethodNotAllowed
        | Reason::UpgradeNotAllowed
        | Reason::InvalidBody
        | Reason::UnsupportedEncoding
        | Reason::BodyTooLarge
        | Reason::RequestTimeout => ("invalid_request_error", reason.as_str()),
    }
}

/// Anthropic's error types go by the status.
fn anthropic_kind(refusal: &Refusal) -> &'static str {
    match refusal.status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 if refusal.reason != Reason::ServiceUnavailable => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

/// gRPC's status, by the mapping of its own guide for HTTP, where our reason does not know better.
pub(super) fn grpc_status(reason: Reason, http: u16) -> u8 {
    const INVALID_ARGUMENT: u8 = 3;
    const DEADLINE_EXCEEDED: u8 = 4;
    const NOT_FOUND: u8 = 5;
    const PERMISSION_DENIED: u8 = 7;
    const RESOURCE_EXHAUSTED: u8 = 8;
    const UNIMPLEMENTED: u8 = 12;
    const UNAVAILABLE: u8 = 14;
    const UNAUTHENTICATED: u8 = 16;
    match (reason, http) {
        (Reason::PathNotListed | Reason::MethodNotAllowed | Reason::UnsupportedEncoding, _) => UNIMPLEMENTED,
        (_, 401) => UNAUTHENTICATED,
        (_, 403) => PERMISSION_DENIED,
        (_, 404) => NOT_FOUND,
        (_, 408) => DEADLINE_EXCEEDED,
        (_, 413 | 429) => RESOURCE_EXHAUSTED,
        (_, 500..) => UNAVAILABLE,
        _ => INVALID_ARGUMENT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn body(style: Style, reason: Reason) -> Value {
        let refusal = Refusal { param: Some("model".to_owned()), ..Refusal::new(reason, "No \"x\".") };
        serde_json::from_slice(&style.error_body(&refusal)).unwrap()
    }

    #[test]
    fn each_client_reads_errors_as_its_own_api_writes_them() {
        let openai = json!({"error": {
            "message": "No \"x\".", "type": "invalid_request_error", "param": "model", "code": "model_not_found",
        }});
        assert_eq!(body(Style::OpenAi, Reason::ModelNotFound), openai);
        let anthropic = |kind| json!({"type": "error", "error": {"type": kind, "message": "No \"x\"."}});
        for (reason, kind) in [
            (Reason::UnknownKey, "authentication_error"),
            (Reason::TenantDisabled, "permission_error"),
            (Reason::ModelNotFound, "not_found_error"),
            (Reason::BodyTooLarge, "request_too_large"),
            (Reason::TenantTokensPerMinute, "rate_limit_error"),
            (Reason::QueueFull, "overloaded_error"),
            (Reason::ServiceUnavailable, "api_error"),
            (Reason::InvalidBody, "invalid_request_error"),
            (Reason::UnsupportedEncoding, "invalid_request_error"),
        ] {
            assert_eq!(body(Style::Anthropic, reason), anthropic(kind));
        }
        assert_eq!(body(Style::KServe, Reason::QueueFull), json!({"error": "No \"x\"."}));
        assert_eq!(body(Style::Plain, Reason::QueueFull), json!({"error": "No \"x\".", "reason": "queue_full"}));
    }

    #[test]
    fn every_reason_has_a_grpc_status_of_failure() {
        for reason in Reason::ALL {
            assert!((1..=16).contains(&grpc_status(reason, reason.status())), "{reason:?}");
        }
        assert_eq!(grpc_status(Reason::PathNotListed, 404), 12);
        assert_eq!(grpc_status(Reason::ModelNotFound, 404), 5);
        assert_eq!(grpc_status(Reason::TenantConcurrency, 429), 8);
        assert_eq!(grpc_status(Reason::QueueTimeout, 503), 14);
        assert_eq!(grpc_status(Reason::UnknownKey, 401), 16);
    }

    #[test]
    fn a_stranger_is_known_by_its_content_type_its_headers_or_its_path() {
        let style = |path, kind| Style::of_stranger(path, kind, false);
        assert_eq!(style("/v2/repository/models/m/load", None), Style::KServe);
        assert_eq!(style("/inference.GRPCInferenceService/RepositoryModelLoad", Some("application/grpc")), Style::Grpc);
        assert_eq!(style("/v1/x", Some("application/grpc-web")), Style::OpenAi);
        assert_eq!(style("/v1/messages/batches", None), Style::Anthropic);
        assert_eq!(Style::of_stranger("/v1/files", None, true), Style::Anthropic);
        assert_eq!(style("/", None), Style::Plain);
    }
}
