//! Who asks: the peer, or whom a trusted proxy speaks for.
//!
//! Proxies add their word behind what their clients sent, so everything is read from the right, and no further than
//! proxies vouch for each other.

use std::net::IpAddr;

use http::header::{HeaderMap, HeaderValue};
use model::forwarded::{ClientIpHeader, Element, parse_address, parse_forwarded};
use model::networks::{Networks, is_private};
use model::service::Policy;

use crate::config::{Config, ProxyHeaders};

/// Who asks, as the app shall see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    pub client: IpAddr,
    /// `client` is the peer itself.
    pub is_direct: bool,
    pub https: bool,
    /// What trusted proxies said of the host and port that the client asked.
    pub host: Option<HeaderValue>,
    pub port: Option<u16>,
}

/// Whose word is taken, and which.
pub struct Trust<'c> {
    pub proxies: &'c Networks,
    /// Private networks are trusted as well.
    pub private: bool,
    pub headers: ProxyHeaders,
    pub client_ip_header: Option<&'c ClientIpHeader>,
}

/// Where trusted proxies name the client: the service's own setting comes first.
pub fn client_ip_header<'c>(config: &'c Config, policy: Option<&'c Policy>) -> Option<&'c ClientIpHeader> {
    policy.and_then(|policy| policy.client_ip_header.as_ref()).or(config.client_ip_header.as_ref())
}

impl Trust<'_> {
    fn believes(&self, address: IpAddr) -> bool {
        self.proxies.contains(address) || (self.private && is_private(address))
    }
}

impl Forwarded {
    /// Nobody speaks for anybody.
    pub fn direct(peer: IpAddr, https: bool) -> Self {
        Self { client: peer, is_direct: true, https, host: None, port: None }
    }

    /// What the connection says, and what its peer says of its client if it is trusted.
    pub fn read(headers: &HeaderMap, peer: IpAddr, https: bool, trust: &Trust<'_>) -> Self {
        let peer = peer.to_canonical();
        if !trust.believes(peer) {
            return Self::direct(peer, https);
        }
        let said = match trust.headers {
            ProxyHeaders::XForwarded => read_x_forwarded(headers, peer, trust),
            ProxyHeaders::Forwarded => read_forwarded(headers, peer, trust),
        };
        let named = trust.client_ip_header.and_then(|name| parse_address(single(headers, name.as_str())?));
        let client = named.unwrap_or(said.client);
        let scheme_port = |https: bool| if https { 443 } else { 80 };
        // Whoever took the request over another scheme took it on another port than ours.
        let port = said.port.or(said.https.filter(|said| *said != https).map(scheme_port));
        let host = said.host.and_then(|host| HeaderValue::from_bytes(host).ok());
        Self { client, is_direct: client == peer, https: said.https.unwrap_or(https), host, port }
    }
}

/// What proxies said.
struct Said<'h> {
    client: IpAddr,
    https: Option<bool>,
    host: Option<&'h [u8]>,
    port: Option<u16>,
}

fn read_x_forwarded<'h>(headers: &'h HeaderMap, peer: IpAddr, trust: &Trust<'_>) -> Said<'h> {
    let (client, hops) = walk(peer, words(headers, "x-forwarded-for").map(parse_address), trust);
    // The proxy next to the client stands as far left in each field as in the chain, unless a later one has written the
    // field anew; what is left of it is hearsay.
    let word = |name| words(headers, name).take(hops.max(1)).last();
    Said {
        client,
        https: word("x-forwarded-proto").and_then(parse_scheme),
        host: word("x-forwarded-host").filter(|host| is_host(host)),
        port: word("x-forwarded-port").and_then(parse_port),
    }
}

fn read_forwarded<'h>(headers: &'h HeaderMap, peer: IpAddr, trust: &Trust<'_>) -> Said<'h> {
    let fields = headers.get_all("forwarded").iter().rev();
    // A malformed field ends the walk as a malformed address does.
    let fields: Vec<_> = fields.map_while(|field| parse_forwarded(field.as_bytes())).collect();
    let elements = || fields.iter().flat_map(|elements| elements.iter().rev());
    let (client, hops) = walk(peer, elements().map(Element::address), trust);
    // The proxy next to the client knows best, but need not say everything.
    let word = |of: fn(&Element<'h>) -> Option<&'h str>| elements().take(hops.max(1)).filter_map(of).last();
    let host = word(|element| element.host).map(str::as_bytes).filter(|host| is_host(host));
    Said {
        client,
        https: word(|element| element.proto).and_then(|proto| parse_scheme(proto.as_bytes())),
        host,
        port: None,
    }
}

/// From the right, the first address that is not itself trusted, and how many it took to get there.
///
/// An unreadable hop ends the walk: what stands left of it is hearsay.
fn walk(peer: IpAddr, hops: impl Iterator<Item = Option<IpAddr>>, trust: &Trust<'_>) -> (IpAddr, usize) {
    let (mut client, mut count) = (peer, 0);
    for address in hops.map_while(|hop| hop) {
        (client, count) = (address, count + 1);
        if !trust.believes(address) {
            break;
        }
    }
    (client, count)
}

/// What stands in a list, over all its fields, from right to left.
fn words<'h>(headers: &'h HeaderMap, name: &str) -> impl Iterator<Item = &'h [u8]> + use<'h> {
    let fields = headers.get_all(name).iter().rev();
    fields.flat_map(|field| field.as_bytes().rsplit(|b| *b == b',').map(<[u8]>::trim_ascii))
}

/// The one field of this name.
fn single<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    let mut fields = headers.get_all(name).iter();
    fields.next().filter(|_| fields.next().is_none()).map(HeaderValue::as_bytes)
}

fn parse_scheme(text: &[u8]) -> Option<bool> {
    let is = |schemes: [&str; 2]| schemes.iter().any(|one| text.eq_ignore_ascii_case(one.as_bytes()));
    if is(["https", "wss"]) {
        Some(true)
    } else if is(["http", "ws"]) {
        Some(false)
    } else {
        None
    }
}

fn parse_port(text: &[u8]) -> Option<u16> {
    let is_plain = text.iter().all(u8::is_ascii_digit);
    str::from_utf8(text).ok().filter(|_| is_plain)?.parse().ok().filter(|port| *port != 0)
}

fn is_host(text: &[u8]) -> bool {
    str::from_utf8(text).is_ok_and(|text| super::hygiene::parse_host(text).is_some())
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use proptest::prelude::*;

    use super::*;

    fn networks() -> Networks {
        ["10.0.0.0/8", "2001:db8::/32"].map(|net| net.parse::<ipnet::IpNet>().unwrap()).into_iter().collect()
    }

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[derive(Default)]
    struct How {
        private: bool,
        rfc_7239: bool,
        client_ip_header: Option<&'static str>,
    }

    /// What is read over plain HTTP: the client, the scheme, the host, the port.
    fn read(
        peer: &str,
        fields: &[(&'static str, &str)],
        how: &How,
    ) -> (String, bool, Option<String>, Option<u16>) {
        let (proxies, peer) = (networks(), peer.parse::<IpAddr>().unwrap());
        let header = how.client_ip_header.map(|name| name.parse().unwrap());
        let trust = Trust {
            proxies: &proxies,
            private: how.private,
            headers: if how.rfc_7239 { ProxyHeaders::Forwarded } else { ProxyHeaders::XForwarded },
            client_ip_header: header.as_ref(),
        };
        let forwarded = Forwarded::read(&map(fields), peer, false, &trust);
        assert_eq!(forwarded.is_direct, forwarded.client == peer.to_canonical());
        let host = forwarded.host.map(|host| host.to_str().unwrap().to_owned());
        (forwarded.client.to_string(), forwarded.https, host, forwarded.port)
    }

    #[test]
    fn trusted_chains_are_walked_from_the_right() {
        for (peer, fields, client) in [
            ("192.0.2.7", &["1.2.3.4"][..], "192.0.2.7"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
            ("::ffff:10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6, 1.2.3.4, 10.0.0.2"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6", "1.2.3.4", "10.0.0.2"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6,10.9.9.9", "1.2.3.4,\t10.0.0.2"], "1.2.3.4"),
            ("10.0.0.1", &["10.6.6.6, 10.0.0.2"], "10.6.6.6"),
            ("10.0.0.1", &["6.6.6.6, garbage, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["6.6.6.6, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["6.6.6.6, , 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["6.6.6.6", "", "10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["1.2.3.4:5678"], "1.2.3.4"),
            ("10.0.0.1", &["[2001:db9::1]:443, 2001:db8::1"], "2001:db9::1"),
            ("10.0.0.1", &["[2001:db9::1]evil, 2001:db8::1"], "2001:db8::1"),
        ] {
            let fields: Vec<_> = fields.iter().map(|field| ("x-forwarded-for", *field)).collect();
            assert_eq!(read(peer, &fields, &How::default()).0, client, "{peer} {fields:?}");
        }
    }

    #[test]
    fn each_proxy_adds_its_word_or_writes_the_field_anew() {
        let two = ("x-forwarded-for", "1.2.3.4, 10.0.0.2");
        for (fields, https, host, port) in [
            (&[("x-forwarded-proto", "https")][..], true, None, Some(443)),
            (&[("x-forwarded-proto", "HTTPS")], true, None, Some(443)),
            (&[("x-forwarded-proto", "wss")], true, None, Some(443)),
            (&[("x-forwarded-proto", "http")], false, None, None),
            (&[("x-forwarded-proto", "gopher")], false, None, None),
            (&[("x-forwarded-proto", "https"), ("x-forwarded-port", "8443")], true, None, Some(8443)),
            (&[("x-forwarded-port", "0")], false, None, None),
            (&[("x-forwarded-port", "+80")], false, None, None),
            // One proxy vouches: only the last word is its own.
            (&[("x-forwarded-proto", "https, http")], false, None, None),
            (&[("x-forwarded-proto", "https"), ("x-forwarded-proto", "http")], false, None, None),
            // Two do, and the first of them took the request over TLS.
            (&[two, ("x-forwarded-proto", "https, http")], true, None, Some(443)),
            (&[two, ("x-forwarded-proto", "https, http, http")], false, None, None),
            (&[two, ("x-forwarded-proto", "https")], true, None, Some(443)),
            (&[("x-forwarded-host", "shop.test:8080")], false, Some("shop.test:8080"), None),
            (&[("x-forwarded-host", "evil.test, shop.test")], false, Some("shop.test"), None),
            (&[("x-forwarded-host", "not a host")], false, None, None),
            (&[("forwarded", "proto=https;host=evil.test")], false, None, None),
        ] {
            let (_, got_https, got_host, got_port) = read("10.0.0.1", fields, &How::default());
            assert_eq!((got_https, got_host.as_deref(), got_port), (https, host, port), "{fields:?}");
        }
    }

    #[test]
    fn rfc_7239() {
        let plain = ("10.0.0.1", false, None);
        for (fields, (client, https, host)) in [
            (&["for=1.2.3.4;proto=https;host=shop.test"][..], ("1.2.3.4", true, Some("shop.test"))),
            (&["for=6.6.6.6, for=\"[2001:db9::1]:4711\", for=10.0.0.2"], ("2001:db9::1", false, None)),
            (&["for=6.6.6.6", "for=1.2.3.4", "for=10.0.0.2"], ("1.2.3.4", false, None)),
            (&["for=1.2.3.4;proto=https, for=10.0.0.2;proto=http"], ("1.2.3.4", true, None)),
            (&["for=6.6.6.6;proto=https, for=1.2.3.4"], ("1.2.3.4", false, None)),
            (&["for=1.2.3.4, for=10.0.0.2;proto=https"], ("1.2.3.4", true, None)),
            (&["for=6.6.6.6, for=_hidden, for=10.0.0.2"], ("10.0.0.2", false, None)),
            (&["for=6.6.6.6, for=unknown"], plain),
            (&["for=\"6.6.6.6, for=1.2.3.4"], plain),
            (&["for=6.6.6.6", "for=\"", "for=10.0.0.2"], ("10.0.0.2", false, None)),
            (&["proto=https"], ("10.0.0.1", true, None)),
            (&[""], plain),
            (&[], plain),
        ] {
            let mut fields: Vec<_> = fields.iter().map(|field| ("forwarded", *field)).collect();
            // Of the other kind nothing is read.
            fields.extend([
                ("x-forwarded-for", "9.9.9.9"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "evil.test"),
            ]);
            let how = How { rfc_7239: true, ..How::default() };
            let got = read("10.0.0.1", &fields, &how);
            assert_eq!((got.0.as_str(), got.1, got.2.as_deref()), (client, https, host), "{fields:?}");
            assert_eq!(read("192.0.2.7", &fields, &how).0, "192.0.2.7");
        }
    }

    #[test]
    fn a_field_of_a_cdn_comes_before_the_chain() {
        let how = How { client_ip_header: Some("CF-Connecting-IP"), ..How::default() };
        let chain = ("x-forwarded-for", "9.9.9.9");
        for (peer, fields, client) in [
            ("10.0.0.1", &[chain, ("cf-connecting-ip", "1.2.3.4")][..], "1.2.3.4"),
            ("10.0.0.1", &[("cf-connecting-ip", "2001:db9::1")], "2001:db9::1"),
            ("10.0.0.1", &[chain, ("cf-connecting-ip", "nobody")], "9.9.9.9"),
            ("10.0.0.1", &[chain, ("cf-connecting-ip", "1.2.3.4, 5.6.7.8")], "9.9.9.9"),
            (
                "10.0.0.1",
                &[chain, ("cf-connecting-ip", "1.2.3.4"), ("cf-connecting-ip", "1.2.3.4")],
                "9.9.9.9",
            ),
            ("10.0.0.1", &[chain], "9.9.9.9"),
            ("192.0.2.7", &[chain, ("cf-connecting-ip", "1.2.3.4")], "192.0.2.7"),
        ] {
            assert_eq!(read(peer, fields, &how).0, client, "{peer} {fields:?}");
        }
    }

    #[test]
    fn private_networks_are_trusted_where_a_service_says_so() {
        let chain = [("x-forwarded-for", "6.6.6.6, 1.2.3.4, 192.168.0.9")];
        for (peer, private, client) in [
            ("192.168.0.1", true, "1.2.3.4"),
            ("192.168.0.1", false, "192.168.0.1"),
            ("fd00::1", true, "1.2.3.4"),
            ("192.0.2.7", true, "192.0.2.7"),
            ("10.0.0.1", false, "192.168.0.9"),
        ] {
            assert_eq!(read(peer, &chain, &How { private, ..How::default() }).0, client, "{peer} {private}");
        }
    }

    proptest! {
        #[test]
        fn no_fields_panic(
            names in proptest::collection::vec(0usize..6, 0..6),
            value in proptest::collection::vec(any::<u8>(), 0..40),
            text in "[for=\";, :.0-9a-f\\[\\]]{0,40}",
        ) {
            const NAMES: [&str; 6] = [
                "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "forwarded", "x-real-ip",
            ];
            let mut headers = HeaderMap::new();
            for (n, name) in names.into_iter().enumerate() {
                let bytes = if n % 2 == 0 { &value[..] } else { text.as_bytes() };
                if let Ok(value) = HeaderValue::from_bytes(bytes) {
                    headers.append(HeaderName::from_static(NAMES[name]), value);
                }
            }
            let (proxies, header) = (networks(), "x-real-ip".parse().unwrap());
            for kind in [ProxyHeaders::XForwarded, ProxyHeaders::Forwarded] {
                let trust = Trust { proxies: &proxies, private: true, headers: kind, client_ip_header: Some(&header) };
                Forwarded::read(&headers, [10, 0, 0, 1].into(), true, &trust);
            }
        }

        /// The point of it all: behind a proxy that adds its peer, no client can be anybody else.
        #[test]
        fn nobody_is_somebody_else_behind_a_proxy_that_adds_its_word(sent in "[ ,.:0-9a-f\\[\\]]{0,60}", client in any::<[u8; 4]>()) {
            let client = IpAddr::from(client);
            prop_assume!(!networks().contains(client));
            let field = format!("{sent}, {client}");
            prop_assert_eq!(read("10.0.0.1", &[("x-forwarded-for", &field)], &How::default()).0, client.to_string());
        }
    }
}
