//! Who may speak to the operators' listener through a browser: no page of another site.
//!
//! A page whose name is pointed at this address makes a browser send us requests as if they were the page's own ("DNS
//! rebinding"). They bear that page's name as `Host`, so only names that are ours are answered. A page that calls us
//! across sites says where it comes from in `Origin`.

use crate::api_error::ApiError;
use axum::extract::Request;
use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The names of this listener, beside IP addresses and `localhost`: lower case, without a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnNames(pub BTreeSet<String>);

impl OwnNames {
    /// Whether a request names this listener, and comes from no page of another.
    pub(super) fn check(&self, request: &Request) -> Result<(), ApiError> {
        let of_header = request.headers().get_all(HOST).iter().map(|value| value.to_str().ok()?.parse().ok());
        let of_line = request.uri().authority().cloned().map(Some);
        let named: Option<Vec<Authority>> = of_header.chain(of_line).collect();
        let named = named.filter(|named| !named.is_empty() && named.iter().all(|name| self.has(name)));
        let named = named.ok_or(ApiError::ForeignHost)?;
        let is_own = |origin: &str| named.iter().all(|name| is_origin_of(origin, name));
        let mut origins = request.headers().get_all(ORIGIN).iter();
        match origins.all(|origin| origin.to_str().is_ok_and(is_own)) {
            true => Ok(()),
            false => Err(ApiError::ForeignOrigin),
        }
    }

    fn has(&self, name: &Authority) -> bool {
        let host = name.host().to_ascii_lowercase();
        let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
        address.parse::<IpAddr>().is_ok() || host == "localhost" || self.0.contains(&host)
    }
}

/// Whether `scheme://host:port` is where a request with this `Host` goes.
fn is_origin_of(origin: &str, name: &Authority) -> bool {
    let (rest, default) = match (origin.strip_prefix("http://"), origin.strip_prefix("https://")) {
        (Some(rest), _) => (rest, 80),
        (None, Some(rest)) => (rest, 443),
        (None, None) => return false,
    };
    let Ok(origin) = rest.parse::<Authority>() else { return false };
    let port = |of: &Authority| of.port_u16().unwrap_or(default);
    origin.host().eq_ignore_ascii_case(name.host()) && port(&origin) == port(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::StatusCode;
    use axum::response::IntoResponse;

    fn status(uri: &str, headers: &[(&str, &str)]) -> u16 {
        let names = OwnNames(["sluice.example".to_owned()].into());
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let checked = names.check(&request.body(Body::empty()).unwrap());
        checked.map_or_else(|error| error.into_response().status(), |()| StatusCode::OK).as_u16()
    }

    #[test]
    fn addresses_localhost_and_configured_names_are_answered_and_no_other() {
        for host in ["127.0.0.1:8081", "10.1.2.3", "[::1]:8081", "localhost:8081", "LocalHost", "Sluice.Example:80"] {
            assert_eq!(status("/metrics", &[("host", host)]), 200, "{host}");
            assert_eq!(status(&format!("http://{host}/metrics"), &[]), 200, "{host} of HTTP/2");
        }
        for host in ["evil.example:8081", "localhost.evil.example", "127.0.0.1.evil.example", "", "a b", "1.2.3"] {
            assert_eq!(status("/metrics", &[("host", host)]), 421, "{host}");
        }
        assert_eq!(status("/metrics", &[]), 421, "no name");
        assert_eq!(status("/metrics", &[("host", "localhost"), ("host", "evil.example")]), 421);
        assert_eq!(status("http://evil.example/metrics", &[("host", "localhost")]), 421);
    }

    #[test]
    fn a_page_of_this_listener_may_ask_it_and_no_other_page() {
        let host = ("host", "localhost:8081");
        assert_eq!(status("/metrics", &[host, ("origin", "http://localhost:8081")]), 200);
        assert_eq!(status("/metrics", &[("host", "sluice.example"), ("origin", "https://sluice.example:443")]), 200);
        for origin in ["http://localhost:3000", "https://localhost", "http://evil.example", "null", "file://", ""] {
            assert_eq!(status("/metrics", &[host, ("origin", origin)]), 403, "{origin}");
        }
        assert_eq!(status("/metrics", &[host, ("origin", "http://localhost:8081"), ("origin", "null")]), 403);
    }
}
