//! Who asks: the peer, or whom a trusted proxy speaks for.

use std::net::IpAddr;

use http::header::{HeaderMap, HeaderValue};
use ipnet::IpNet;

/// Who asks, as the app shall see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    pub client: IpAddr,
    pub https: bool,
    /// The addresses before the peer, when the peer may speak for them.
    pub chain: Option<HeaderValue>,
    /// What a trusted peer said of the host and port that the client asked.
    pub host: Option<HeaderValue>,
    pub port: Option<HeaderValue>,
}

impl Forwarded {
    /// Reads the client's address from the peer and, if the peer is trusted, from the chain that it sent:
    /// from the right, the first address that is not itself trusted.
    pub fn read(headers: &HeaderMap, peer: IpAddr, https: bool, trusted: &[IpNet]) -> Self {
        let peer = peer.to_canonical();
        let believes = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
        if trusted.is_empty() || !believes(peer) {
            return Self { client: peer, https, chain: None, host: None, port: None };
        }
        let mut client = peer;
        let fields: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
        let hops = fields.iter().rev().flat_map(|value| value.as_bytes().rsplit(|b| *b == b','));
        for hop in hops {
            // An unreadable hop ends the walk: what stands left of it is hearsay.
            let Some(address) = parse_hop(hop) else { break };
            client = address;
            if !believes(address) {
                break;
            }
        }
        let single = |name: &str| {
            let mut values = headers.get_all(name).iter();
            values.next().filter(|_| values.next().is_none()).cloned()
        };
        let https =
            match single("x-forwarded-proto").as_ref().map(|value| value.as_bytes().to_ascii_lowercase()) {
                Some(proto) if proto == b"https" => true,
                Some(proto) if proto == b"http" => false,
                _ => https,
            };
        Self {
            client,
            https,
            chain: join(&fields),
            host: single("x-forwarded-host")
                .filter(|value| value.to_str().is_ok_and(|text| super::hygiene::parse_host(text).is_some())),
            port: single("x-forwarded-port")
                .filter(|value| value.to_str().is_ok_and(|text| text.parse::<u16>().is_ok())),
        }
    }
}

fn join(fields: &[&HeaderValue]) -> Option<HeaderValue> {
    match fields {
        [] => None,
        [one] => Some((*one).clone()),
        many => {
            let parts: Vec<&[u8]> = many.iter().map(|value| value.as_bytes()).collect();
            HeaderValue::from_bytes(&parts.join(&b", "[..])).ok()
        }
    }
}

/// `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]:4711`.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop.trim_ascii()).ok()?;
    let address = text.parse::<IpAddr>().ok().or_else(|| {
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        match bracketed {
            Some((v6, _)) => v6.parse().ok(),
            None => text.parse::<std::net::SocketAddr>().ok().map(|socket| socket.ip()),
        }
    })?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    #[test]
    fn trusted_chains_are_walked_from_the_right() {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "2001:db8::/32"].map(|n| n.parse().unwrap()).to_vec();
        for (peer, fields, client) in [
            ("192.0.2.7", &["1.2.3.4"][..], "192.0.2.7"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
            ("::ffff:10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6, 1.2.3.4, 10.0.0.2"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6", "1.2.3.4", "10.0.0.2"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6, garbage, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["1.2.3.4:5678"], "1.2.3.4"),
            ("10.0.0.1", &["[2001:db9::1]:443, 2001:db8::1"], "2001:db9::1"),
        ] {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append("x-forwarded-for", HeaderValue::from_static(field));
            }
            let forwarded = Forwarded::read(&headers, peer.parse().unwrap(), false, &trusted);
            assert_eq!(forwarded.client, client.parse::<IpAddr>().unwrap(), "{peer} {fields:?}");
        }
    }

    #[test]
    fn a_trusted_proxy_says_the_scheme() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let fields = [("x-forwarded-proto", "HTTPS"), ("x-forwarded-for", "1.2.3.4")];
        let headers: HeaderMap = fields
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .into_iter()
            .collect();
        let peer = "10.0.0.1".parse().unwrap();
        let forwarded = Forwarded::read(&headers, peer, false, &trusted);
        assert!(forwarded.https);
    }
}
