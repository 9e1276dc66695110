//! Which fields pass: those of one hop go no further, those that tell Rails who asks are ours.

use http::header::{self, HeaderMap, HeaderName};
use http::request::Parts;
use http::{Method, Version};
use model::forwarded::ClientIpHeader;

/// Fields whose inbound value an app might believe: Rack and Rails read the first group for the client's
/// address, scheme and host; CDNs and platforms name the client in the second, and apps behind them read it;
/// `Rack::Sendfile` obeys those of the third; CGI turns `Proxy` into an environment variable that HTTP clients obey;
/// the next group says whose certificate a client has shown (RFC 9440 §2.4); the last is ours to write.
const IDENTITY: [&str; 39] = [
    "forwarded",
    "x-real-ip",
    "client-ip",
    "x-client-ip",
    "true-client-ip",
    "x-cluster-client-ip",
    "x-original-url",
    "x-rewrite-url",
    "x-original-host",
    "front-end-https",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-visitor",
    "fastly-client-ip",
    "fastly-ssl",
    "cloudfront-viewer-address",
    "cloudfront-forwarded-proto",
    "fly-client-ip",
    "do-connecting-ip",
    "incap-client-ip",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-envoy-external-address",
    "x-remote-addr",
    "x-remote-ip",
    "x-sendfile-type",
    "x-accel-mapping",
    "x-request-start",
    "proxy",
    "client-cert",
    "client-cert-chain",
    "x-ssl-client-verify",
    "x-ssl-client-s-dn",
    "x-ssl-client-i-dn",
    "x-ssl-client-dn",
    "x-ssl-client-sha256",
    "x-ssl-client-serial",
    "x-ssl-client-cert",
    "x-kamal-target",
];

/// One bit for each of those names: most fields have another, and are told apart from all of them at once.
const IDENTITY_BITS: u128 = {
    let (mut bits, mut n) = (0, 0);
    while n < IDENTITY.len() {
        bits |= bit(IDENTITY[n].as_bytes());
        n += 1;
    }
    bits
};

const fn bit(name: &[u8]) -> u128 {
    match name {
        [] => 0,
        [first, ..] => 1 << ((*first as usize * 5 + name.len()) % 128),
    }
}

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

pub fn is_identity(name: &str) -> bool {
    name.starts_with(X_FORWARDED) || (IDENTITY_BITS & bit(name.as_bytes()) != 0 && IDENTITY.contains(&name))
}

/// `x_forwarded_for` reaches a Rack app as the same variable as `x-forwarded-for`.
pub fn is_underscore_twin(name: &str) -> bool {
    name.contains('_') && {
        let spells = |known: &str| known.len() == name.len() && is_twin(name, known);
        (name.len() >= X_FORWARDED.len() && is_twin(name, X_FORWARDED))
            || IDENTITY.into_iter().chain(HOP_BY_HOP).chain(NOT_NOMINABLE).any(spells)
    }
}

/// Whether `name` begins as `dashed` does, but for underscores.
fn is_twin(name: &str, dashed: &str) -> bool {
    name.bytes().zip(dashed.bytes()).all(|(a, b)| a == b || (a, b) == (b'_', b'-'))
}

const X_FORWARDED: &str = "x-forwarded";

/// Bound to one hop (RFC 9110 §7.6.1) or settled by us.
pub fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.contains(&name)
}

/// Whether `Connection` may name the field, so that it goes no further.
pub fn is_nominable(name: &str) -> bool {
    !NOT_NOMINABLE.contains(&name) && !is_identity(name)
}

/// `005` is a length (RFC 9110 §8.6), but whoever reads it as octal or wants no zeros sees another body than we do.
pub fn without_zeros(digits: &[u8]) -> &[u8] {
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
    &digits[zeros.min(digits.len().saturating_sub(1))..]
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
pub fn is_websocket(head: &Parts, has_body: bool) -> bool {
    let headers = &head.headers;
    let over_http1 = || {
        head.method == Method::GET
            && head.version == Version::HTTP_11
            && headers.get_all(header::UPGRADE).iter().count() == 1
            && lists(headers, header::UPGRADE, "websocket")
            && lists(headers, header::CONNECTION, "upgrade")
            && !has_body
    };
    over_http1() || super::hygiene::is_http2_websocket(head)
}

/// A trailer may not say what only a head may (RFC 9110 §6.5.1), neither may it name the client.
pub fn strip_trailers(trailers: &mut HeaderMap, client_ip_header: Option<&ClientIpHeader>) {
    let forbidden: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            client_ip_header.is_some_and(|field| field.is_spelled(name))
                || is_identity(name)
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
    use http::header::HeaderValue;

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
    fn identity_fields() {
        let all = IDENTITY.into_iter().chain(["x-forwarded-for", "x-forwarded", "x-forwarded-anything"]);
        for name in all {
            assert!(
                is_identity(name) && is_underscore_twin(&name.replace('-', "_")) == name.contains('-'),
                "{name}"
            );
        }
        let others =
            ["", "cookie", "x-forward", "cf-ray", "cf-ipcountry", "x-real-ips", "proxy-authorization"];
        for name in others {
            assert!(!is_identity(name), "{name}");
        }
        let usual = [
            "host",
            "user-agent",
            "accept",
            "accept-encoding",
            "accept-language",
            "cookie",
            "referer",
            "origin",
            "content-type",
            "content-length",
            "connection",
            "cache-control",
            "sec-fetch-mode",
            "if-none-match",
        ];
        let passed = usual.iter().filter(|name| IDENTITY_BITS & bit(name.as_bytes()) == 0).count();
        assert!(passed >= 10, "of the usual fields only {passed} are told apart at once");
    }

    #[test]
    fn underscore_twins() {
        for (name, is) in [
            ("x_forwarded_for", true),
            ("x-forwarded_for", true),
            ("x_forwarded_whatever", true),
            ("content_length", true),
            ("x_real_ip", true),
            ("x-forwarded-for", false),
            ("x_forwarded", true),
            ("x_forward", false),
            ("my_own", false),
            ("host_", false),
        ] {
            assert_eq!(is_underscore_twin(name), is, "{name}");
        }
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
        strip_trailers(&mut trailers, None);
        assert_eq!(names(&trailers), ["x-checksum"]);
    }
}
