//! Where a request comes from: the client's address as Envoy knows it, behind the proxies that it was configured to trust.

use std::net::{IpAddr, SocketAddr};

/// An IPv4 address, or the /64 network of an IPv6 address: a client has one of these, and all addresses within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Source(IpAddr);

impl Source {
    /// Clients without an address, as those of a Unix socket, are one.
    pub(crate) const UNKNOWN: Source = Source(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));

    /// Reads Envoy's `source.address`, with a port or without.
    pub(crate) fn parse(text: &[u8]) -> Source {
        let text = std::str::from_utf8(text).unwrap_or_default();
        let address = text.parse::<SocketAddr>().map(|socket| socket.ip()).or_else(|_| text.parse::<IpAddr>());
        match address.map(|address| address.to_canonical()) {
            Ok(IpAddr::V6(address)) => Source(IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into())),
            Ok(address) => Source(address),
            Err(_) => Source::UNKNOWN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::parse(text.as_bytes())
    }

    #[test]
    fn a_client_is_known_by_its_address_whatever_its_port() {
        assert_eq!(source("10.1.2.3:80"), source("10.1.2.3:4711"));
        assert_eq!(source("10.1.2.3"), source("[::ffff:10.1.2.3]:1"));
        assert_ne!(source("10.1.2.3:80"), source("10.1.2.4:80"));
    }

    #[test]
    fn all_addresses_of_an_ipv6_network_are_one_client() {
        assert_eq!(source("[2001:db8::1]:80"), source("[2001:db8::ffff:1]:80"));
        assert_ne!(source("[2001:db8::1]:80"), source("[2001:db8:0:1::1]:80"));
    }

    #[test]
    fn what_is_no_address_is_unknown() {
        for text in ["", "/run/client.sock", "10.1.2", "localhost:80"] {
            assert_eq!(source(text), Source::UNKNOWN);
        }
        assert_eq!(Source::parse(&[0xff]), Source::UNKNOWN);
    }
}
