//! Refusals: from the service's or the filter's own cause to the reply that the client gets.

use crate::dialect::Dialect;
use crate::headers;
use crate::rates;
use sluice_policy::units::{AdmissionId, Millis};
use sluice_policy::wire::{Reason, Refusal};

/// When to come back while the quota service is away: it is restarted in about this time.
const UNAVAILABLE_RETRY: Millis = Millis(1000);

/// A reply that the filter gives itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalReply {
    pub(crate) status: u16,
    pub(crate) reason: Reason,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
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

/// The reply for a refusal, in the caller's dialect.
pub(crate) fn reply(refusal: &Refusal, dialect: Dialect, id: Option<&AdmissionId>) -> LocalReply {
    let mut headers =
        vec![("content-type", "application/json".to_owned()), (headers::REASON, refusal.reason.as_str().to_owned())];
    headers.extend(id.map(|id| (headers::ADMISSION, id.to_string())));
    if let Some(after) = refusal.retry_after_ms {
        headers.push(("retry-after", after.0.div_ceil(1000).max(1).to_string()));
        headers.push(("retry-after-ms", after.0.to_string()));
    }
    if refusal.waited_ms > Millis::ZERO {
        headers.push((headers::QUEUE_WAIT, refusal.waited_ms.0.to_string()));
    }
    headers.extend(refusal.position.map(|position| (headers::POSITION, position.to_string())));
    headers.extend(refusal.estimated_wait_ms.map(|wait| (headers::ESTIMATED_WAIT, wait.0.to_string())));
    match refusal.reason {
        Reason::MissingKey => headers.push(("www-authenticate", "Bearer".to_owned())),
        Reason::MethodNotAllowed => headers.push(("allow", "POST".to_owned())),
        _ => {}
    }
    headers.extend(rates::headers(&refusal.rates));
    LocalReply {
        status: sane_status(refusal.status),
        reason: refusal.reason,
        headers,
        body: dialect.error_body(refusal),
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

    #[test]
    fn retry_after_is_rounded_up_and_exact_beside_it() {
        let refusal = Refusal { retry_after_ms: Some(Millis(1001)), ..own(Reason::QueueFull, "x") };
        let reply = reply(&refusal, Dialect::OpenAiChat, Some(&AdmissionId::from("w-1")));
        assert_eq!(header(&reply, "retry-after").as_deref(), Some("2"));
        assert_eq!(header(&reply, "retry-after-ms").as_deref(), Some("1001"));
        assert_eq!(header(&reply, "x-admission-id").as_deref(), Some("w-1"));
        assert_eq!(header(&reply, "x-queue-wait-ms"), None);
    }

    #[test]
    fn a_refusal_tells_its_reason_and_how_to_do_better() {
        let missing = reply(&own(Reason::MissingKey, "x"), Dialect::OpenAiChat, None);
        assert_eq!((missing.status, header(&missing, "www-authenticate").as_deref()), (401, Some("Bearer")));
        assert_eq!(header(&missing, "x-sluice-reason").as_deref(), Some("missing_key"));
        let method = reply(&own(Reason::MethodNotAllowed, "x"), Dialect::OpenAiChat, None);
        assert_eq!((method.status, header(&method, "allow").as_deref()), (405, Some("POST")));
    }

    #[test]
    fn a_refusal_never_looks_like_success() {
        for status in [0, 99, 200, 302, 600, u16::MAX] {
            let refusal = Refusal { status, ..own(Reason::QueueFull, "x") };
            assert_eq!(reply(&refusal, Dialect::OpenAiChat, None).status, 503);
        }
    }
}
