//! Refusals: from the service's or the filter's own cause to the reply that the client gets, in its dialect.

pub(crate) mod style;

use crate::headers;
use crate::holdings::Full;
use crate::rates;
use sluice_policy::units::{AdmissionId, Millis};
use sluice_policy::wire::{Reason, Refusal};
pub(crate) use style::Style;

/// When to come back while the quota service is away: it is restarted in about this time.
const UNAVAILABLE_RETRY: Millis = Millis(1000);
/// Other calls go on within about this time.
const FULL_RETRY: Millis = Millis(1000);

/// A reply that the filter gives itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalReply {
    pub(crate) status: u16,
    /// For Envoy's `%RESPONSE_CODE_DETAILS%`.
    pub(crate) details: &'static str,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// On gRPC calls; the body becomes the status' message then.
    pub(crate) grpc_status: Option<u8>,
}

/// A refusal that the filter decides on its own.
pub(crate) fn own(reason: Reason, message: impl Into<String>) -> Refusal {
    Refusal::new(reason, message)
}

/// The refusal of a call that nobody can decide now.
pub(crate) fn unavailable() -> Refusal {
    let message = "The quota service cannot be reached, so the call was not admitted. Try again shortly.";
    own(Reason::ServiceUnavailable, message).retry_after(UNAVAILABLE_RETRY)
}

/// The refusal of a call for which this worker has no room, and whose budget it is that has none.
pub(crate) fn full(what: Full) -> Refusal {
    let (reason, message) = match what {
        Full::Strangers => {
            let message =
                "This gateway holds as many calls as it can whose keys it does not know yet. Try again shortly.";
            (Reason::StrangerLimit, message)
        }
        Full::TenantBytes => {
            let message = "This gateway holds as many request bodies of this tenant as it may. Try again shortly.";
            (Reason::TenantHeldBytes, message)
        }
        Full::TenantIdleStreams => {
            let message = "This tenant has as many idle streams open as it may. Close some, or send messages on them.";
            (Reason::TenantIdleStreams, message)
        }
        Full::Worker => (Reason::WorkerFull, "This gateway holds as many request bodies as it can. Try again shortly."),
    };
    own(reason, message).retry_after(FULL_RETRY)
}

/// The reply for a refusal. `now` is the wall clock, which Anthropic's rate headers tell.
pub(crate) fn reply(refusal: &Refusal, style: Style, id: Option<&AdmissionId>, now: Millis) -> LocalReply {
    let mut headers = vec![(headers::REASON, refusal.reason.as_str().to_owned())];
    if style != Style::Grpc {
        headers.push(("content-type", "application/json".to_owned()));
    }
    headers.extend(id.map(|id| (headers::ADMISSION, id.to_string())));
    headers.push(("x-should-retry", refusal.reason.is_worth_a_retry().to_string()));
    if let Some(after) = refusal.retry_after_ms {
        headers.push(("retry-after", after.0.div_ceil(1000).max(1).to_string()));
        headers.push(("retry-after-ms", after.0.to_string()));
        if style == Style::Grpc {
            headers.push(("grpc-retry-pushback-ms", after.0.to_string()));
        }
    }
    if refusal.waited_ms > Millis::ZERO {
        headers.push((headers::QUEUE_WAIT, refusal.waited_ms.0.to_string()));
    }
    headers.extend(refusal.position.map(|position| (headers::POSITION, position.to_string())));
    headers.extend(refusal.estimated_wait_ms.map(|wait| (headers::ESTIMATED_WAIT, wait.0.to_string())));
    if refusal.reason == Reason::MissingKey {
        headers.push(("www-authenticate", "Bearer".to_owned()));
    }
    headers.extend(rates::headers(&refusal.rates, style, now));
    let status = sane_status(refusal.status);
    LocalReply {
        status,
        details: refusal.reason.as_str(),
        headers,
        body: style.error_body(refusal),
        grpc_status: (style == Style::Grpc).then(|| style::grpc_status(refusal.reason, status)),
    }
}

/// A refusal must not look like success, whatever the service says.
fn sane_status(status: u16) -> u16 {
    if (400..=599).contains(&status) { status } else { 503 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(reply: &LocalReply, name: &str) -> Option<String> {
        reply.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
    }

    fn reply_to(refusal: &Refusal) -> LocalReply {
        reply(refusal, Style::OpenAi, Some(&AdmissionId::from("w-1")), Millis::ZERO)
    }

    #[test]
    fn retry_after_is_rounded_up_and_exact_beside_it() {
        let refusal = Refusal { retry_after_ms: Some(Millis(1001)), ..own(Reason::QueueFull, "x") };
        let reply = reply_to(&refusal);
        assert_eq!(header(&reply, "retry-after").as_deref(), Some("2"));
        assert_eq!(header(&reply, "retry-after-ms").as_deref(), Some("1001"));
        assert_eq!(header(&reply, "x-should-retry").as_deref(), Some("true"));
        assert_eq!(header(&reply, "x-admission-id").as_deref(), Some("w-1"));
        assert_eq!(header(&reply, "x-queue-wait-ms"), None);
    }

    #[test]
    fn a_refusal_tells_its_reason_and_how_to_do_better() {
        let missing = reply_to(&own(Reason::MissingKey, "x"));
        assert_eq!((missing.status, header(&missing, "www-authenticate").as_deref()), (401, Some("Bearer")));
        assert_eq!(header(&missing, "x-sluice-reason").as_deref(), Some("missing_key"));
        assert_eq!(header(&missing, "x-should-retry").as_deref(), Some("false"));
    }

    #[test]
    fn a_refusal_never_looks_like_success() {
        for status in [0, 99, 200, 302, 600, u16::MAX] {
            let refusal = Refusal { status, ..own(Reason::QueueFull, "x") };
            assert_eq!(reply_to(&refusal).status, 503);
            let grpc = reply(&refusal, Style::Grpc, None, Millis::ZERO);
            assert_eq!((grpc.grpc_status, grpc.body), (Some(14), b"x".to_vec()));
        }
    }
}
