//! What hyper accepts and a proxy must not: each request has one host, one target form and one framing, or
//! it is refused (RFC 9112 §3.2, §6.3; RFC 9113 §8.3). Nothing is repaired by guessing.

use std::borrow::Cow;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Version};
use model::name::is_host_name;
use model::reason::Reason;

use crate::config::Limits;

/// The host of a request: lower case, without port or trailing dot, as routes spell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host(String);

impl Host {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Checks a request's head and returns its host. Afterwards the target is in origin-form, one valid `Host`
/// field is there, and the framing is beyond doubt.
pub fn check<B>(request: &mut Request<B>) -> Result<Host, Reason> {
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) && !is_http2_websocket(request) {
        return Err(Reason::MethodNotAllowed);
    }
    if request.headers().len() > Limits::REQUEST_FIELDS {
        return Err(Reason::TooManyFields);
    }
    if request.version() == Version::HTTP_2 {
        check_http2(request)?
    } else {
        check_http1_framing(request)?
    }
    let host = check_host(request)?;
    check_target(request)?;
    check_expect(request.headers())?;
    Ok(host)
}

/// The extended CONNECT that opens a WebSocket on a stream (RFC 8441 §4); no other CONNECT is served.
pub fn is_http2_websocket<B>(request: &Request<B>) -> bool {
    let protocol = request.extensions().get::<hyper::ext::Protocol>();
    request.method() == Method::CONNECT
        && request.version() == Version::HTTP_2
        && protocol.is_some_and(|protocol| protocol.as_str() == "websocket")
}

/// hyper takes `Transfer-Encoding: gzip, chunked`, repeated fields and odd lists; who forwards them without
/// the encodings forwards another message than was sent.
fn check_http1_framing<B>(request: &Request<B>) -> Result<(), Reason> {
    let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(()) };
    if codings.next().is_some() || request.headers().contains_key(header::CONTENT_LENGTH) {
        return Err(Reason::AmbiguousFraming);
    }
    if !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
        return Err(Reason::UnsupportedEncoding);
    }
    Ok(())
}

fn check_http2<B>(request: &mut Request<B>) -> Result<(), Reason> {
    if !matches!(request.uri().scheme_str(), None | Some("http" | "https")) {
        return Err(Reason::BadTarget);
    }
    join_cookies(request.headers_mut());
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

/// The host from the target's authority, else from the one `Host` field; the two may not disagree.
fn check_host<B>(request: &mut Request<B>) -> Result<Host, Reason> {
    let mut fields = request.headers().get_all(header::HOST).iter();
    let (field, more) = (fields.next(), fields.next());
    if more.is_some() {
        return Err(Reason::BadHost);
    }
    let field = field.map(|value| value.to_str().map_err(|_| Reason::BadHost)).transpose()?;
    let host = match (request.uri().authority(), field) {
        (Some(authority), field) => {
            let host = parse_host(authority.as_str()).ok_or(Reason::BadHost)?;
            // HTTP/1.1 requires the field beside an absolute-form too (RFC 9112 §3.2).
            let agrees = match field {
                Some(field) => parse_host(field).ok_or(Reason::BadHost)? == host,
                None => request.version() == Version::HTTP_2,
            };
            if !agrees {
                return Err(Reason::BadHost);
            }
            let value = HeaderValue::from_str(authority.as_str()).map_err(|_| Reason::BadHost)?;
            let host = host.into_owned();
            request.headers_mut().insert(header::HOST, value);
            Cow::Owned(host)
        }
        (None, Some(field)) => parse_host(field).ok_or(Reason::BadHost)?,
        (None, None) => return Err(Reason::BadHost),
    };
    Ok(Host(host.into_owned()))
}

/// `host[:port]` → the host in lower case without its trailing dot; `None` if it is none.
pub fn parse_host(text: &str) -> Option<Cow<'_, str>> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port_is_sane = port.is_none_or(|port| {
        port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
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
fn check_target<B>(request: &mut Request<B>) -> Result<(), Reason> {
    let uri = request.uri();
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
        *request.uri_mut() = target.into();
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

    fn request(version: Version, method: &str, uri: &str, fields: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().version(version).method(method).uri(uri);
        for (name, value) in fields {
            builder = builder.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn http1() {
        let ok = |host: &str| Ok(Host(host.to_owned()));
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
            assert_eq!(check(&mut request), want, "{method} {uri} {fields:?}");
            if want.is_ok() {
                assert!(request.uri().authority().is_none() && request.headers().contains_key(header::HOST));
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
            let got = check(&mut request).map(|host| host.0);
            assert_eq!(got, want.map(str::to_owned), "{uri} {fields:?}");
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
                request.extensions_mut().insert(hyper::ext::Protocol::from_static(protocol));
            }
            assert_eq!(check(&mut request).is_ok(), ok, "{version:?} {protocol:?}");
        }
    }

    #[test]
    fn split_cookies_are_joined() {
        let fields = [("host", "a"), ("cookie", "a=1"), ("cookie", "b=2")];
        let mut request = request(Version::HTTP_2, "GET", "/", &fields);
        check(&mut request).unwrap();
        assert_eq!(request.headers().get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
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
