//! What hyper accepts and a proxy must not: each request has one host, one target form and one framing, or
//! it is refused (RFC 9112 §3.2, §6.3; RFC 9113 §8.3). Nothing is repaired by guessing.

use std::borrow::Cow;

use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Version};
use model::name::is_host_name;
use model::reason::Reason;

use crate::config::Limits;

/// Checks a request's head. Afterwards the target is in origin-form, one `Host` field is there, and the framing is
/// beyond doubt.
pub fn check(head: &mut Parts) -> Result<(), Reason> {
    if matches!(head.method, Method::CONNECT | Method::TRACE) && !is_http2_websocket(head) {
        return Err(Reason::MethodNotAllowed);
    }
    if head.headers.len() > Limits::REQUEST_FIELDS {
        return Err(Reason::TooManyFields);
    }
    check_connection(&head.headers)?;
    if head.version == Version::HTTP_2 {
        check_http2(head)?
    } else {
        check_http1_framing(&head.headers)?
    }
    check_authority(head)?;
    check_target(head)?;
    check_expect(&head.headers)
}

/// The host of a checked request: lower case, without port or trailing dot, as routes spell it.
pub fn host(head: &Parts) -> Result<Cow<'_, str>, Reason> {
    let field = head.headers.get(header::HOST).and_then(|value| value.to_str().ok());
    field.and_then(parse_host).ok_or(Reason::BadHost)
}

/// Each field is looked for among what `Connection` names, so that may not be much.
fn check_connection(fields: &HeaderMap) -> Result<(), Reason> {
    let values = fields.get_all(header::CONNECTION).iter();
    let names: usize = values.map(|value| memchr::memchr_iter(b',', value.as_bytes()).count() + 1).sum();
    if names > CONNECTION_NAMES_MAX { Err(Reason::TooManyFields) } else { Ok(()) }
}

const CONNECTION_NAMES_MAX: usize = 32;

/// The extended CONNECT that opens a WebSocket on a stream (RFC 8441 §4); no other CONNECT is served.
pub fn is_http2_websocket(head: &Parts) -> bool {
    let protocol = || head.extensions.get::<hyper::ext::Protocol>();
    head.method == Method::CONNECT
        && head.version == Version::HTTP_2
        && protocol().is_some_and(|protocol| protocol.as_str() == "websocket")
}

/// hyper takes `Transfer-Encoding: gzip, chunked`, repeated fields and odd lists; who forwards them without
/// the encodings forwards another message than was sent.
fn check_http1_framing(fields: &HeaderMap) -> Result<(), Reason> {
    let mut codings = fields.get_all(header::TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(()) };
    if codings.next().is_some() || fields.contains_key(header::CONTENT_LENGTH) {
        return Err(Reason::AmbiguousFraming);
    }
    if !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
        return Err(Reason::UnsupportedEncoding);
    }
    Ok(())
}

fn check_http2(head: &mut Parts) -> Result<(), Reason> {
    if !matches!(head.uri.scheme_str(), None | Some("http" | "https")) {
        return Err(Reason::BadTarget);
    }
    join_cookies(&mut head.headers);
    Ok(())
}

/// HTTP/2 may split cookies over fields; HTTP/1.1 may not (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut fields = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(_)) = (fields.next(), fields.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for field in headers.get_all(header::COOKIE).iter().skip(1) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(field.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, value);
    }
}

/// The target's authority and the one `Host` field may not disagree; afterwards the field is there for both.
fn check_authority(head: &mut Parts) -> Result<(), Reason> {
    let mut fields = head.headers.get_all(header::HOST).iter();
    let (field, more) = (fields.next(), fields.next());
    if more.is_some() {
        return Err(Reason::BadHost);
    }
    let Some(authority) = head.uri.authority() else {
        return if field.is_some() { Ok(()) } else { Err(Reason::BadHost) };
    };
    let agrees = match field {
        Some(field) => {
            let host = parse_host(authority.as_str()).ok_or(Reason::BadHost)?;
            field.to_str().ok().and_then(parse_host).is_some_and(|field| field == host)
        }
        // HTTP/1.1 requires the field beside an absolute-form too (RFC 9112 §3.2).
        None => head.version == Version::HTTP_2,
    };
    if !agrees {
        return Err(Reason::BadHost);
    }
    let value = HeaderValue::from_str(authority.as_str()).map_err(|_| Reason::BadHost)?;
    head.headers.insert(header::HOST, value);
    Ok(())
}

/// `host[:port]` → the host in lower case without its trailing dot; `None` if it is none.
pub fn parse_host(text: &str) -> Option<Cow<'_, str>> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port_is_sane = port.is_none_or(|port| {
        port.len() <= 5
            && port.bytes().all(|b| b.is_ascii_digit())
            && port.parse().is_ok_and(|port: u16| port > 0)
    });
    let host = host.strip_suffix('.').unwrap_or(host);
    let host = if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    };
    (port_is_sane && is_host_name(&host)).then_some(host)
}

/// Origin-form only (RFC 9112 §3.2.1); an absolute-form is turned into it, its authority has been checked.
fn check_target(head: &mut Parts) -> Result<(), Reason> {
    let uri = &head.uri;
    if uri.scheme().is_some_and(|scheme| !matches!(scheme.as_str(), "http" | "https"))
        || (uri.scheme().is_none() && uri.authority().is_some())
    {
        return Err(Reason::BadTarget);
    }
    let Some(target) = uri.path_and_query() else { return Err(Reason::BadTarget) };
    // hyper lets raw UTF-8 through; targets are ASCII (RFC 3986 §2).
    if !target.as_str().starts_with('/') || !target.as_str().is_ascii() {
        return Err(Reason::BadTarget);
    }
    if uri.authority().is_some() {
        let target = target.clone();
        head.uri = target.into();
    }
    Ok(())
}

/// The only expectation there is (RFC 9110 §10.1.1).
fn check_expect(headers: &HeaderMap) -> Result<(), Reason> {
    let sane = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if headers.get_all(header::EXPECT).iter().all(sane) { Ok(()) } else { Err(Reason::ExpectationFailed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut builder = http::Request::builder().version(version).method(method).uri(uri);
        for (name, value) in fields {
            builder = builder.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn checked(head: &mut Parts) -> Result<String, Reason> {
        check(head)?;
        host(head).map(Cow::into_owned)
    }

    #[test]
    fn http1() {
        let ok = |host: &str| Ok(host.to_owned());
        for (method, uri, fields, want) in [
            ("GET", "/", &[("host", "shop.test")][..], ok("shop.test")),
            ("GET", "/", &[("host", "SHOP.test.:8080")], ok("shop.test")),
            ("GET", "/", &[("host", "[::1]:80")], ok("[::1]")),
            ("GET", "/", &[("host", "[::1]")], ok("[::1]")),
            ("GET", "http://shop.test/x", &[("host", "shop.test")], ok("shop.test")),
            ("GET", "http://shop.test/x", &[("host", "other.test")], Err(Reason::BadHost)),
            ("GET", "http://shop.test/x", &[], Err(Reason::BadHost)),
            ("GET", "http://me@shop.test/x", &[("host", "shop.test")], Err(Reason::BadHost)),
            ("GET", "ftp://shop.test/x", &[("host", "shop.test")], Err(Reason::BadTarget)),
            ("GET", "shop.test", &[("host", "shop.test")], Err(Reason::BadTarget)),
            ("OPTIONS", "*", &[("host", "shop.test")], Err(Reason::BadTarget)),
            ("GET", "/", &[], Err(Reason::BadHost)),
            ("GET", "/", &[("host", "")], Err(Reason::BadHost)),
            ("GET", "/", &[("host", "a"), ("host", "a")], Err(Reason::BadHost)),
            ("GET", "/", &[("host", "a b")], Err(Reason::BadHost)),
            ("GET", "/", &[("host", "a,b")], Err(Reason::BadHost)),
            ("GET", "/", &[("host", "x@a")], Err(Reason::BadHost)),
            ("GET", "/", &[("host", "a/b")], Err(Reason::BadHost)),
            ("GET", "/", &[("host", "a:b")], Err(Reason::BadHost)),
            ("GET", "/", &[("host", "a:65616")], Err(Reason::BadHost)),
            ("GET", "/", &[("host", "a:0")], Err(Reason::BadHost)),
            ("GET", "http://a:0/", &[("host", "a")], Err(Reason::BadHost)),
            ("GET", "/", &[("host", "[::1")], Err(Reason::BadHost)),
            ("CONNECT", "a:22", &[("host", "a")], Err(Reason::MethodNotAllowed)),
            ("TRACE", "/", &[("host", "a")], Err(Reason::MethodNotAllowed)),
            ("POST", "/", &[("host", "a"), ("transfer-encoding", "chunked")], ok("a")),
            ("POST", "/", &[("host", "a"), ("transfer-encoding", " CHUNKED\t")], ok("a")),
            (
                "POST",
                "/",
                &[("host", "a"), ("transfer-encoding", "gzip, chunked")],
                Err(Reason::UnsupportedEncoding),
            ),
            (
                "POST",
                "/",
                &[("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
                Err(Reason::AmbiguousFraming),
            ),
            (
                "POST",
                "/",
                &[("host", "a"), ("transfer-encoding", "chunked"), ("content-length", "5")],
                Err(Reason::AmbiguousFraming),
            ),
            ("POST", "/", &[("host", "a"), ("expect", "100-continue")], ok("a")),
            ("POST", "/", &[("host", "a"), ("expect", "100-continue, x")], Err(Reason::ExpectationFailed)),
        ] {
            let mut request = request(Version::HTTP_11, method, uri, fields);
            assert_eq!(checked(&mut request), want, "{method} {uri} {fields:?}");
            if want.is_ok() {
                assert!(request.uri.authority().is_none() && request.headers.contains_key(header::HOST));
            }
        }
    }

    #[test]
    fn http2() {
        for (uri, fields, want) in [
            ("https://shop.test/x", &[][..], Ok("shop.test")),
            ("https://shop.test/x", &[("host", "shop.test")], Ok("shop.test")),
            ("https://shop.test/x", &[("host", "evil.test")], Err(Reason::BadHost)),
            ("https://me@shop.test/x", &[], Err(Reason::BadHost)),
            ("/x", &[("host", "shop.test")], Ok("shop.test")),
            ("/x", &[], Err(Reason::BadHost)),
            ("/x", &[("host", "a"), ("host", "b")], Err(Reason::BadHost)),
            ("ftp://shop.test/x", &[], Err(Reason::BadTarget)),
        ] {
            let mut request = request(Version::HTTP_2, "GET", uri, fields);
            let got = checked(&mut request);
            assert_eq!(got, want.map(str::to_owned), "{uri} {fields:?}");
        }
    }

    #[test]
    fn connection_names_a_few_fields() {
        for (names, want) in
            [(CONNECTION_NAMES_MAX, Ok(())), (CONNECTION_NAMES_MAX + 1, Err(Reason::TooManyFields))]
        {
            let value = vec!["a"; names].join(",");
            let fields = [("host", "a"), ("connection", value.as_str())];
            assert_eq!(check(&mut request(Version::HTTP_11, "GET", "/", &fields)), want, "{names}");
        }
    }

    #[test]
    fn only_a_websocket_may_connect() {
        for (version, protocol, ok) in [
            (Version::HTTP_2, Some("websocket"), true),
            (Version::HTTP_2, Some("connect-udp"), false),
            (Version::HTTP_2, None, false),
            (Version::HTTP_11, Some("websocket"), false),
        ] {
            let mut request =
                request(version, "CONNECT", "https://shop.test/cable", &[("host", "shop.test")]);
            if let Some(protocol) = protocol {
                request.extensions.insert(hyper::ext::Protocol::from_static(protocol));
            }
            assert_eq!(check(&mut request).is_ok(), ok, "{version:?} {protocol:?}");
        }
    }

    #[test]
    fn split_cookies_are_joined() {
        let fields = [("host", "a"), ("cookie", "a=1"), ("cookie", "b=2")];
        let mut request = request(Version::HTTP_2, "GET", "/", &fields);
        check(&mut request).unwrap();
        assert_eq!(request.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    proptest::proptest! {
        #[test]
        fn hosts_never_panic_and_are_what_routes_spell(text in "\\PC{0,60}") {
            if let Some(host) = parse_host(&text) {
                proptest::prop_assert!(host.parse::<model::name::HostName>().unwrap().as_str() == host);
            }
        }
    }
}
