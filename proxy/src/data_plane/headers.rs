//! Fields that change on their way through: hop-by-hop ones go, those that tell Rails who asks are ours.

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

/// Fields whose inbound value an app might believe: Rack and Rails read the first group for the client's
/// address, scheme and host; `Rack::Sendfile` obeys the second; CGI turns `Proxy` into an environment
/// variable that HTTP clients obey.
const IDENTITY: [&str; 12] = [
    "forwarded",
    "x-real-ip",
    "client-ip",
    "x-client-ip",
    "true-client-ip",
    "x-cluster-client-ip",
    "x-original-url",
    "x-rewrite-url",
    "x-sendfile-type",
    "x-accel-mapping",
    "x-request-start",
    "proxy",
];

/// Bound to one hop (RFC 9110 §7.6.1) or settled by us.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "te",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// What `Connection` may not name: removing these would change who asks for what, or how much of it.
const NOT_NOMINABLE: [&str; 9] = [
    "host",
    "content-length",
    "transfer-encoding",
    "cookie",
    "authorization",
    "content-type",
    "x-request-id",
    "expect",
    "date",
];

fn is_identity(name: &str) -> bool {
    name.starts_with("x-forwarded") || IDENTITY.contains(&name)
}

/// `x_forwarded_for` reaches a Rack app as the same variable as `x-forwarded-for`.
fn is_underscore_twin(name: &str) -> bool {
    if !name.contains('_') {
        return false;
    }
    let dashed = name.replace('_', "-");
    is_identity(&dashed) || HOP_BY_HOP.contains(&dashed.as_str()) || NOT_NOMINABLE.contains(&dashed.as_str())
}

/// Removes the fields that bind only this hop (RFC 9110 §7.6.1).
///
/// `Connection` lists further fields to remove, so it is read before it goes itself.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        for name in nominated(headers) {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        // A miss costs a hash of a short name; most fields of most requests are none of these.
        headers.remove(name);
    }
}

fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| !NOT_NOMINABLE.contains(&name.as_str()) && !is_identity(name.as_str()))
        .collect()
}

/// Whether a comma-separated field holds `token`, in any case.
pub fn lists(headers: &HeaderMap, field: HeaderName, token: &str) -> bool {
    headers
        .get_all(field)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// A WebSocket handshake that may become a tunnel, over HTTP/1.1 (RFC 6455 §4.1) or on a stream of HTTP/2
/// (RFC 8441): anything else that asks for an upgrade is an ordinary request.
pub fn is_websocket(request: &http::Request<impl http_body::Body>) -> bool {
    let headers = request.headers();
    let over_http1 = || {
        request.method() == http::Method::GET
            && request.version() == http::Version::HTTP_11
            && lists(headers, header::CONNECTION, "upgrade")
            && headers.get_all(header::UPGRADE).iter().count() == 1
            && lists(headers, header::UPGRADE, "websocket")
            && http_body::Body::is_end_stream(request.body())
    };
    over_http1() || super::hygiene::is_http2_websocket(request)
}

/// Writes the fields that ask an HTTP/1.1 target for a WebSocket.
pub fn ask_for_websocket(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if !headers.contains_key(header::SEC_WEBSOCKET_KEY) {
        // HTTP/2 has no key. Hexadecimal digits are base64 digits: 21 of them and an `A` are 16 bytes.
        let random = uuid::Uuid::now_v7().simple().to_string();
        let key = HeaderValue::from_str(&format!("{}A==", &random[random.len() - 21..]));
        headers.insert(header::SEC_WEBSOCKET_KEY, key.expect("a UUID is visible ASCII"));
    }
}

/// Who asks, as the app shall see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    pub client: IpAddr,
    pub https: bool,
    /// The addresses before the peer, when the peer may speak for them.
    chain: Option<HeaderValue>,
    host: Option<HeaderValue>,
    port: Option<HeaderValue>,
}

/// Reads the client's address from the peer and, if the peer is trusted, from the chain that it sent:
/// from the right, the first address that is not itself trusted.
pub fn read_forwarded(headers: &HeaderMap, peer: IpAddr, https: bool, trusted: &[IpNet]) -> Forwarded {
    let peer = peer.to_canonical();
    let believes = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    if trusted.is_empty() || !believes(peer) {
        return Forwarded { client: peer, https, chain: None, host: None, port: None };
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
    let https = match single("x-forwarded-proto").as_ref().map(|value| value.as_bytes().to_ascii_lowercase())
    {
        Some(proto) if proto == b"https" => true,
        Some(proto) if proto == b"http" => false,
        _ => https,
    };
    Forwarded {
        client,
        https,
        chain: join(&fields),
        host: single("x-forwarded-host")
            .filter(|value| value.to_str().is_ok_and(|text| super::hygiene::parse_host(text).is_some())),
        port: single("x-forwarded-port")
            .filter(|value| value.to_str().is_ok_and(|text| text.parse::<u16>().is_ok())),
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

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_REQUEST_START: HeaderName = HeaderName::from_static("x-request-start");

/// Replaces everything that tells the app who asks. `port` is the listener's, `now_ms` Unix time.
pub fn write_forwarded(headers: &mut HeaderMap, forwarded: &Forwarded, peer: IpAddr, port: u16, now_ms: u64) {
    strip_identity(headers);
    let peer = address_value(peer.to_canonical());
    let chain = match &forwarded.chain {
        Some(chain) => {
            let parts: [&[u8]; 2] = [chain.as_bytes(), peer.as_bytes()];
            HeaderValue::from_bytes(&parts.join(&b", "[..])).unwrap_or(peer)
        }
        None => peer,
    };
    let proto = HeaderValue::from_static(if forwarded.https { "https" } else { "http" });
    let host = forwarded.host.clone().or_else(|| headers.get(header::HOST).cloned());
    headers.insert(X_FORWARDED_FOR, chain);
    headers.insert(X_FORWARDED_PROTO, proto);
    if let Some(host) = host {
        headers.insert(X_FORWARDED_HOST, host);
    }
    headers.insert(X_FORWARDED_PORT, forwarded.port.clone().unwrap_or_else(|| HeaderValue::from(port)));
    headers.insert(X_REAL_IP, address_value(forwarded.client));
    headers.insert(X_REQUEST_START, request_start(now_ms));
}

fn strip_identity(headers: &mut HeaderMap) {
    let ours: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_identity(name.as_str()) || is_underscore_twin(name.as_str()))
        .cloned()
        .collect();
    for name in ours {
        headers.remove(name);
    }
}

fn address_value(address: IpAddr) -> HeaderValue {
    HeaderValue::from_str(&address.to_string()).expect("an address prints as visible ASCII")
}

/// What APM agents read as the beginning of the queue time: `t=` and milliseconds.
fn request_start(now_ms: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("t={now_ms}")).expect("digits are visible ASCII")
}

/// A trailer may not say what only a head may (RFC 9110 §6.5.1).
pub fn strip_trailers(trailers: &mut HeaderMap) {
    let forbidden: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            is_identity(name)
                || is_underscore_twin(name)
                || HOP_BY_HOP.contains(&name)
                || NOT_NOMINABLE.contains(&name)
                || matches!(name, "trailer" | "set-cookie" | "content-encoding" | "content-range")
        })
        .cloned()
        .collect();
    for name in forbidden {
        trailers.remove(name);
    }
}

/// The value of a cookie, from any `Cookie` field.
pub fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(key, value)| (key == name).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn hop_by_hop_fields_go_and_end_to_end_ones_cannot_be_named() {
        let mut headers = map(&[
            ("connection", "close, X-Hop, Host, x-forwarded-for, cookie"),
            ("x-hop", "1"),
            ("host", "a"),
            ("cookie", "a=1"),
            ("x-forwarded-for", "192.0.2.1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("transfer-encoding", "chunked"),
            ("accept", "*/*"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(names(&headers), ["accept", "cookie", "host", "x-forwarded-for"]);
    }

    #[test]
    fn strangers_do_not_say_who_they_are() {
        let mut headers = map(&[
            ("host", "shop.test"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.test"),
            ("x-forwarded-ssl", "on"),
            ("x-forwarded-scheme", "https"),
            ("x-forwarded-port", "1"),
            ("x-real-ip", "1.2.3.4"),
            ("client-ip", "1.2.3.4"),
            ("proxy", "http://evil.test"),
            ("x-sendfile-type", "X-Sendfile"),
            ("x-accel-mapping", "/=/"),
            ("x-request-start", "t=1"),
        ]);
        for name in ["x_forwarded_for", "content_length", "transfer_encoding", "x_real_ip"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("1.2.3.4"));
        }
        headers.insert(HeaderName::from_static("my_own"), HeaderValue::from_static("kept"));
        let peer = "192.0.2.7".parse().unwrap();
        let forwarded = read_forwarded(&headers, peer, false, &[]);
        write_forwarded(&mut headers, &forwarded, peer, 80, 1_700_000_000_000);
        let want = map(&[
            ("host", "shop.test"),
            ("my_own", "kept"),
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "shop.test"),
            ("x-forwarded-port", "80"),
            ("x-real-ip", "192.0.2.7"),
            ("x-request-start", "t=1700000000000"),
        ]);
        assert_eq!(headers, want);
    }

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
                headers.append(X_FORWARDED_FOR, HeaderValue::from_static(field));
            }
            let forwarded = read_forwarded(&headers, peer.parse().unwrap(), false, &trusted);
            assert_eq!(forwarded.client, client.parse::<IpAddr>().unwrap(), "{peer} {fields:?}");
        }
    }

    #[test]
    fn a_trusted_proxy_says_the_scheme() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let headers = map(&[("x-forwarded-proto", "HTTPS"), ("x-forwarded-for", "1.2.3.4")]);
        let peer = "10.0.0.1".parse().unwrap();
        let forwarded = read_forwarded(&headers, peer, false, &trusted);
        assert!(forwarded.https);
        let mut out = map(&[("host", "shop.test")]);
        write_forwarded(&mut out, &forwarded, peer, 80, 0);
        assert_eq!(out["x-forwarded-for"], "1.2.3.4, 10.0.0.1");
        assert_eq!(out["x-forwarded-proto"], "https");
    }

    #[test]
    fn cookies() {
        let headers = map(&[("cookie", "a=1; b=2=3;c=4"), ("cookie", "d=5")]);
        for (name, value) in
            [("a", Some("1")), ("b", Some("2=3")), ("c", Some("4")), ("d", Some("5")), ("e", None)]
        {
            assert_eq!(cookie(&headers, name), value, "{name}");
        }
    }

    #[test]
    fn trailers_say_nothing_that_belongs_in_a_head() {
        let mut trailers = map(&[
            ("x-checksum", "1"),
            ("content-length", "5"),
            ("host", "evil.test"),
            ("x-forwarded-for", "1.2.3.4"),
            ("authorization", "x"),
        ]);
        strip_trailers(&mut trailers);
        assert_eq!(names(&trailers), ["x-checksum"]);
    }
}
