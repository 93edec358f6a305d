//! Whose doing it was that a call ended before its reply did.
//!
//! Envoy says it by its response flags and, where it sets none, by the details of the response. What is listed here is
//! the model server's doing or Envoy's; every other way in which a call ends is its client's. A list of the client's ways
//! would be a list of the ways that are charged: a reset with `NO_ERROR` sets no flag at all.

/// How a stream ended that did not end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::enum_variant_names, reason = "`Ended::ByClient` reads as one says it")]
pub(crate) enum Ended {
    /// The client left, or broke the protocol. The model server may work on.
    ByClient,
    /// Envoy: by one of its limits, or because an operator took its listener away. The model server may work on.
    ByEnvoy,
    /// The model server, or the call never reached it. It does not work on.
    ByUpstream,
}

/// Response flags of Envoy, by their bits.
mod flag {
    pub(super) const UPSTREAM_REQUEST_TIMEOUT: u64 = 1 << 2;
    pub(super) const LOCAL_RESET: u64 = 1 << 3;
    pub(super) const DOWNSTREAM_CONNECTION_TERMINATION: u64 = 1 << 14;
    pub(super) const STREAM_IDLE_TIMEOUT: u64 = 1 << 16;
    pub(super) const INVALID_REQUEST_HEADERS: u64 = 1 << 17;
    pub(super) const DOWNSTREAM_PROTOCOL_ERROR: u64 = 1 << 18;
    pub(super) const UPSTREAM_MAX_STREAM_DURATION: u64 = 1 << 19;
    pub(super) const DURATION_TIMEOUT: u64 = 1 << 22;
    pub(super) const OVERLOAD_MANAGER: u64 = 1 << 25;
    pub(super) const DOWNSTREAM_REMOTE_RESET: u64 = 1 << 28;

    /// The client left or sent what no protocol allows.
    pub(super) const OF_CLIENT: u64 = DOWNSTREAM_CONNECTION_TERMINATION
        | INVALID_REQUEST_HEADERS
        | DOWNSTREAM_PROTOCOL_ERROR
        | DOWNSTREAM_REMOTE_RESET;

    /// Envoy gave up on a model server that may not have noticed.
    pub(super) const OF_ENVOY: u64 = UPSTREAM_REQUEST_TIMEOUT
        | LOCAL_RESET
        | STREAM_IDLE_TIMEOUT
        | UPSTREAM_MAX_STREAM_DURATION
        | DURATION_TIMEOUT
        | OVERLOAD_MANAGER;

    /// The model server ended it (UR, UC, UPE), or it was never reached: no healthy one, no connection, too many calls, no
    /// route or cluster, retries used up, a limit or a fault of another filter.
    pub(super) const OF_UPSTREAM: u64 = 1 << 4 // UpstreamRemoteReset
        | 1 << 6 // UpstreamConnectionTermination
        | 1 // FailedLocalHealthCheck
        | 1 << 1 // NoHealthyUpstream
        | 1 << 5 // UpstreamConnectionFailure
        | 1 << 7 // UpstreamOverflow
        | 1 << 8 // NoRouteFound
        | 1 << 10 // FaultInjected
        | 1 << 11 // RateLimited
        | 1 << 12 // UnauthorizedExternalService
        | 1 << 13 // RateLimitServiceError
        | 1 << 15 // UpstreamRetryLimitExceeded
        | 1 << 21 // NoFilterConfigFound
        | 1 << 23 // UpstreamProtocolError: over HTTP/1.1 a reply that breaks off in the middle of a chunk is one
        | 1 << 24 // NoClusterFound
        | 1 << 26 // DnsResolutionFailed
        | 1 << 27 // DropOverLoad
        | 1 << 29; // UnconditionalDropOverload
}

/// Details of what Envoy ends by its own limits without a flag.
const LIMITS_OF_ENVOY: [&str; 4] =
    ["max_duration_timeout", "stream_idle_timeout", "request_overall_timeout", "overload"];

/// Begins the details of a call whose client's connection Envoy closed; the reason follows, in brackets.
const CLOSED_BY_ENVOY: &str = "downstream_local_disconnect(";

/// Reasons to close a connection that are its client's doing.
const FAULTS_OF_CLIENT: [&str; 3] =
    ["http2_ping_timeout", "http2_connection_protocol_violation", "transport_socket_timeout"];

impl Ended {
    /// By Envoy's word on a stream: its response flags, and the details where those leave it open.
    pub(crate) fn by(flags: u64, details: impl FnOnce() -> String) -> Self {
        const CONNECTION: u64 = flag::DOWNSTREAM_CONNECTION_TERMINATION;
        if flags & flag::OF_CLIENT & !CONNECTION != 0 {
            return Ended::ByClient;
        }
        if flags & CONNECTION != 0 {
            return if closed_by_envoy(&details()) { Ended::ByEnvoy } else { Ended::ByClient };
        }
        if flags & flag::OF_ENVOY != 0 {
            return Ended::ByEnvoy;
        }
        if flags & flag::OF_UPSTREAM != 0 {
            return Ended::ByUpstream;
        }
        let details = details();
        let is_limit = LIMITS_OF_ENVOY.contains(&details.as_str()) || closed_by_envoy(&details);
        if is_limit { Ended::ByEnvoy } else { Ended::ByClient }
    }

    /// Whether the model server may still work on a call that ended so.
    pub(crate) fn may_run_on(self) -> bool {
        match self {
            Ended::ByClient | Ended::ByEnvoy => true,
            Ended::ByUpstream => false,
        }
    }
}

/// Whether Envoy closed the client's connection for a reason that is not its client's doing.
fn closed_by_envoy(details: &str) -> bool {
    details.strip_prefix(CLOSED_BY_ENVOY).is_some_and(|reason| {
        let reason = reason.strip_suffix(')').unwrap_or(reason);
        !FAULTS_OF_CLIENT.contains(&reason)
    })
}

#[cfg(test)]
mod tests {
    use super::Ended::{ByClient, ByEnvoy, ByUpstream};
    use super::*;

    const ALL: [(&str, Ended); 30] = [
        ("FailedLocalHealthCheck", ByUpstream),
        ("NoHealthyUpstream", ByUpstream),
        ("UpstreamRequestTimeout", ByEnvoy),
        ("LocalReset", ByEnvoy),
        ("UpstreamRemoteReset", ByUpstream),
        ("UpstreamConnectionFailure", ByUpstream),
        ("UpstreamConnectionTermination", ByUpstream),
        ("UpstreamOverflow", ByUpstream),
        ("NoRouteFound", ByUpstream),
        // It was delayed, which ends nothing.
        ("DelayInjected", ByClient),
        ("FaultInjected", ByUpstream),
        ("RateLimited", ByUpstream),
        ("UnauthorizedExternalService", ByUpstream),
        ("RateLimitServiceError", ByUpstream),
        ("DownstreamConnectionTermination", ByClient),
        ("UpstreamRetryLimitExceeded", ByUpstream),
        ("StreamIdleTimeout", ByEnvoy),
        ("InvalidEnvoyRequestHeaders", ByClient),
        ("DownstreamProtocolError", ByClient),
        ("UpstreamMaxStreamDurationReached", ByEnvoy),
        // The reply came from a cache, which ends nothing.
        ("ResponseFromCacheFilter", ByClient),
        ("NoFilterConfigFound", ByUpstream),
        ("DurationTimeout", ByEnvoy),
        ("UpstreamProtocolError", ByUpstream),
        ("NoClusterFound", ByUpstream),
        ("OverloadManager", ByEnvoy),
        ("DnsResolutionFailed", ByUpstream),
        ("DropOverLoad", ByUpstream),
        ("DownstreamRemoteReset", ByClient),
        ("UnconditionalDropOverload", ByUpstream),
    ];

    fn by(flags: u64, details: &str) -> Ended {
        Ended::by(flags, || details.to_owned())
    }

    #[test]
    fn every_flag_of_envoy_says_whose_doing_the_end_was() {
        for (bit, (name, expected)) in ALL.iter().enumerate() {
            assert_eq!(by(1 << bit, "via_upstream"), *expected, "{name}");
            assert_eq!(by(1 << bit | 1 << 9, "via_upstream"), *expected, "{name} behind a delay");
        }
    }

    #[test]
    fn an_end_that_nothing_explains_is_the_client_s() {
        for bit in (ALL.len()..64).map(|bit| 1_u64 << bit).chain([0]) {
            assert_eq!(by(bit, "via_upstream"), ByClient, "{bit:#x}");
            assert_eq!(by(bit, ""), ByClient, "{bit:#x}");
        }
        assert_eq!(by(0, "http2.remote_reset"), ByClient);
        assert_eq!(by(0, "downstream_remote_disconnect"), ByClient);
    }

    #[test]
    fn a_client_that_leaves_while_the_model_server_fails_has_left() {
        for left in [14, 18, 28] {
            for (bit, (name, _)) in ALL.iter().enumerate() {
                assert_eq!(by(1 << left | 1 << bit, "via_upstream"), ByClient, "{name}");
            }
        }
    }

    #[test]
    fn envoy_s_limits_and_its_drain_are_not_the_client_s_doing() {
        for details in LIMITS_OF_ENVOY {
            assert_eq!(by(0, details), ByEnvoy, "{details}");
        }
        for flags in [0, flag::DOWNSTREAM_CONNECTION_TERMINATION] {
            assert_eq!(by(flags, "downstream_local_disconnect()"), ByEnvoy);
            assert_eq!(by(flags, "downstream_local_disconnect(max_connection_duration_reached)"), ByEnvoy);
            assert_eq!(by(flags, "downstream_local_disconnect(http2_ping_timeout)"), ByClient);
        }
    }
}
