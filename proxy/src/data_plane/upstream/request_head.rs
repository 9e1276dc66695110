//! The head of a request as its target gets it, from the client's fields to bytes in one pass.
//!
//! Fields that bind only the client's hop are left out (RFC 9110 §7.6.1), and those that tell Rails who asks are
//! written anew. Nothing is allocated but room in the buffer. Only the target's own name is missing, and the empty line
//! behind it: a request may go on to another target as it was written, so `upload.rs` adds them for each.

use std::io::Write;

use http::header::{self, HeaderMap};
use http::{Method, Uri};
use model::forwarded::ClientIpHeader;

use crate::data_plane::forwarded::Forwarded;
use crate::data_plane::headers;

/// How the target learns where the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFraming {
    /// No body, or a length that the client's own field announces.
    AsSent,
    Chunked,
    /// So many bytes, which are here already.
    Length(u64),
}

pub struct RequestHead<'r> {
    pub method: &'r Method,
    /// In origin-form.
    pub uri: &'r Uri,
    pub fields: &'r HeaderMap,
    pub forwarded: &'r Forwarded,
    /// The client's end of the connection, as text.
    pub peer: &'r str,
    /// The listener's.
    pub port: u16,
    /// So many bytes of the path are left out; decoded is nothing: `%2F` stays `%2F`.
    pub strip: usize,
    pub request_id: &'r [u8],
    /// Unix time.
    pub now_ms: u64,
    pub body: BodyFraming,
    /// The request asks for a WebSocket.
    pub websocket: bool,
    /// A field in which the app, too, may look for the client.
    pub client_ip_header: Option<&'r ClientIpHeader>,
    /// Whole lines that say whose certificate the client showed.
    pub client: &'r [u8],
}

impl RequestHead<'_> {
    /// All but the end of the head.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.write_request_line(out);
        let nominates = nominates(self.fields);
        let mut has_length = false;
        for (name, value) in self.fields {
            let (name, mut value) = (name.as_str(), value.as_bytes());
            if name == "content-length" {
                // h2 lets equal ones be repeated.
                if std::mem::replace(&mut has_length, true) {
                    continue;
                }
                value = headers::without_zeros(value);
            }
            let stays =
                is_replaced(name) || self.settles(name) || (nominates && is_nominated(self.fields, name));
            if !stays {
                write_field(out, name, value);
            }
        }
        self.write_who_asks(out);
        write_field(out, "x-request-id", self.request_id);
        self.write_connection(out);
    }

    fn write_request_line(&self, out: &mut Vec<u8>) {
        // A WebSocket on a stream of HTTP/2 comes as CONNECT (RFC 8441 §5).
        let method = if self.websocket { &Method::GET } else { self.method };
        let target = self.uri.path_and_query().map_or("/", |target| target.as_str());
        let rest = &target[self.strip..];
        out.extend_from_slice(method.as_str().as_bytes());
        out.push(b' ');
        if !rest.starts_with('/') {
            out.push(b'/');
        }
        out.extend_from_slice(rest.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
    }

    /// Fields that this request, unlike others, has written by us or not at all.
    fn settles(&self, name: &str) -> bool {
        match name {
            "x-request-id" => true,
            // The field has no meaning beside the coding, and none for a tunnel.
            "content-length" => self.websocket || self.body != BodyFraming::AsSent,
            _ => self.client_ip_header.is_some_and(|field| field.is_spelled(name)),
        }
    }

    /// Replaces everything that tells the app who asks.
    fn write_who_asks(&self, out: &mut Vec<u8>) {
        let forwarded = self.forwarded;
        // The client alone, whatever proxies stand between: Rails would take the first of them that is not in a private
        // network for the client, and what clients themselves sent for the word of a proxy.
        self.write_client(out, "x-forwarded-for");
        self.write_client(out, "x-real-ip");
        if let Some(field) = self.client_ip_header.filter(|field| field.as_str() != "x-real-ip") {
            self.write_client(out, field.as_str());
        }
        write_field(out, "x-forwarded-proto", if forwarded.https { b"https" } else { b"http" });
        if let Some(host) = forwarded.host.as_ref().or_else(|| self.fields.get(header::HOST)) {
            write_field(out, "x-forwarded-host", host.as_bytes());
        }
        let mut digits = itoa::Buffer::new();
        let port = digits.format(forwarded.port.unwrap_or(self.port));
        write_field(out, "x-forwarded-port", port.as_bytes());
        // What APM agents read as the beginning of the queue time.
        out.extend_from_slice(b"x-request-start: t=");
        out.extend_from_slice(itoa::Buffer::new().format(self.now_ms).as_bytes());
        out.extend_from_slice(b"\r\n");
        if self.strip > 0 {
            write_field(out, "x-forwarded-prefix", &self.uri.path().as_bytes()[..self.strip]);
        }
        out.extend_from_slice(self.client);
    }

    fn write_client(&self, out: &mut Vec<u8>, name: &str) {
        if self.forwarded.is_direct {
            return write_field(out, name, self.peer.as_bytes());
        }
        // A vector takes whatever is written.
        let _ = write!(out, "{name}: {}\r\n", self.forwarded.client);
    }

    fn write_connection(&self, out: &mut Vec<u8>) {
        if headers::lists(self.fields, header::TE, "trailers") {
            write_field(out, "te", b"trailers");
        }
        if self.websocket {
            out.extend_from_slice(b"connection: Upgrade\r\nupgrade: websocket\r\n");
            if !self.fields.contains_key(header::SEC_WEBSOCKET_KEY) {
                write_field(out, "sec-websocket-key", websocket_key().as_bytes());
            }
            return;
        }
        match self.body {
            BodyFraming::AsSent => {}
            BodyFraming::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            BodyFraming::Length(bytes) => {
                write_field(out, "content-length", itoa::Buffer::new().format(bytes).as_bytes());
            }
        }
    }
}

pub(super) fn write_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Fields of this hop, and fields that an app would believe.
fn is_replaced(name: &str) -> bool {
    // `Expect` was for us: hyper asks the client for the body when the target wants it.
    name == "expect"
        || headers::is_hop_by_hop(name)
        || headers::is_identity(name)
        || headers::is_underscore_twin(name)
}

/// Whether `Connection` names any field at all; browsers only ever send `keep-alive`.
fn nominates(fields: &HeaderMap) -> bool {
    let mut tokens =
        fields.get_all(header::CONNECTION).iter().flat_map(|value| value.as_bytes().split(is_comma));
    !tokens.all(|token| {
        let token = token.trim_ascii();
        [&b"keep-alive"[..], b"close", b"upgrade"].iter().any(|known| token.eq_ignore_ascii_case(known))
    })
}

fn is_comma(byte: &u8) -> bool {
    *byte == b','
}

fn is_nominated(fields: &HeaderMap, name: &str) -> bool {
    headers::is_nominable(name) && headers::lists(fields, header::CONNECTION, name)
}

/// HTTP/2 has no key. Hexadecimal digits are base64 digits: 21 of them and an `A` are 16 bytes.
fn websocket_key() -> String {
    format!("{:021x}A==", fastrand::u128(..) >> 44)
}

#[cfg(test)]
mod tests {
    use http::header::{HeaderName, HeaderValue};

    use super::*;
    use crate::config::ProxyHeaders;
    use crate::data_plane::forwarded::Trust;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    struct Given<'g> {
        uri: &'g str,
        fields: HeaderMap,
        trusted: &'g str,
        strip: usize,
        body: BodyFraming,
        websocket: bool,
        client_ip_header: Option<&'g str>,
    }

    impl Default for Given<'_> {
        fn default() -> Self {
            let fields = map(&[("host", "shop.test")]);
            Self {
                uri: "/",
                fields,
                trusted: "",
                strip: 0,
                body: BodyFraming::AsSent,
                websocket: false,
                client_ip_header: None,
            }
        }
    }

    /// The request line and the fields, the latter sorted.
    fn written(given: &Given<'_>) -> (String, Vec<String>) {
        let peer = "10.0.0.1".parse().unwrap();
        let proxies = given.trusted.parse::<ipnet::IpNet>().into_iter().collect();
        let client_ip_header = given.client_ip_header.map(|name| name.parse().unwrap());
        let client_ip_header = client_ip_header.as_ref();
        let headers = ProxyHeaders::XForwarded;
        let trust = Trust { proxies: &proxies, private: false, headers, client_ip_header };
        let forwarded = Forwarded::read(&given.fields, peer, false, &trust);
        let mut out = Vec::new();
        let head = RequestHead {
            method: &Method::POST,
            uri: &given.uri.parse().unwrap(),
            fields: &given.fields,
            forwarded: &forwarded,
            peer: "10.0.0.1",
            port: 80,
            strip: given.strip,
            request_id: b"id",
            now_ms: 1_700_000_000_000,
            body: given.body,
            websocket: given.websocket,
            client_ip_header,
            client: &[],
        };
        head.write(&mut out);
        let text = String::from_utf8(out).unwrap();
        let mut lines = text.strip_suffix("\r\n").unwrap().split("\r\n").map(str::to_owned);
        let line = lines.next().unwrap();
        let mut fields: Vec<String> = lines.collect();
        fields.sort_unstable();
        (line, fields)
    }

    /// What is written of `fields` besides the fields that every request has.
    fn passed(given: Given<'_>) -> Vec<String> {
        let ordinary = written(&Given::default()).1;
        written(&given).1.into_iter().filter(|field| !ordinary.contains(field)).collect()
    }

    #[test]
    fn prefixes_are_removed_without_decoding() {
        for (target, strip, want) in [
            ("/app/show?q=1", 4, "/show?q=1"),
            ("/app", 4, "/"),
            ("/app?q=1", 4, "/?q=1"),
            ("/app/", 4, "/"),
            ("/app/x%2Fy", 4, "/x%2Fy"),
            ("/app//x", 4, "//x"),
            ("/x?a;b&%zz", 0, "/x?a;b&%zz"),
        ] {
            let (line, fields) = written(&Given { uri: target, strip, ..Given::default() });
            assert_eq!(line, format!("POST {want} HTTP/1.1"), "{target}");
            assert_eq!(fields.contains(&"x-forwarded-prefix: /app".to_owned()), strip > 0, "{target}");
        }
    }

    #[test]
    fn lengths_have_one_spelling() {
        for (sent, want) in [("5", "5"), ("005", "5"), ("0", "0"), ("000", "0"), ("10", "10")] {
            let fields = map(&[("host", "shop.test"), ("content-length", sent), ("content-length", sent)]);
            let want = format!("content-length: {want}");
            assert_eq!(passed(Given { fields, ..Given::default() }), [want], "{sent}");
        }
    }

    #[test]
    fn hop_by_hop_fields_go_and_end_to_end_ones_cannot_be_named() {
        let fields = map(&[
            ("connection", "close, X-Hop, Host, x-forwarded-for, cookie"),
            ("x-hop", "1"),
            ("host", "shop.test"),
            ("cookie", "a=1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("accept", "*/*"),
        ]);
        assert_eq!(passed(Given { fields, ..Given::default() }), ["accept: */*", "cookie: a=1"]);
    }

    #[test]
    fn strangers_do_not_say_who_they_are() {
        let mut fields = map(&[
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
            ("x-request-id", "theirs"),
        ]);
        for name in ["x_forwarded_for", "content_length", "transfer_encoding", "x_real_ip"] {
            fields.insert(HeaderName::from_static(name), HeaderValue::from_static("1.2.3.4"));
        }
        fields.insert(HeaderName::from_static("my_own"), HeaderValue::from_static("kept"));
        assert_eq!(
            written(&Given { fields, ..Given::default() }).1,
            [
                "host: shop.test",
                "my_own: kept",
                "x-forwarded-for: 10.0.0.1",
                "x-forwarded-host: shop.test",
                "x-forwarded-port: 80",
                "x-forwarded-proto: http",
                "x-real-ip: 10.0.0.1",
                "x-request-id: id",
                "x-request-start: t=1700000000000",
            ]
        );
    }

    #[test]
    fn a_trusted_proxy_speaks_for_its_client() {
        let fields = map(&[
            ("host", "shop.test"),
            ("x-forwarded-for", "6.6.6.6, 1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "www.shop.test"),
            ("x-forwarded-port", "443"),
        ]);
        assert_eq!(
            passed(Given { fields, trusted: "10.0.0.0/8", ..Given::default() }),
            [
                "x-forwarded-for: 1.2.3.4",
                "x-forwarded-host: www.shop.test",
                "x-forwarded-port: 443",
                "x-forwarded-proto: https",
                "x-real-ip: 1.2.3.4",
            ]
        );
    }

    #[test]
    fn the_clients_own_field_is_written_for_the_app_too() {
        for (trusted, client) in [("", "10.0.0.1"), ("10.0.0.0/8", "1.2.3.4")] {
            let fields = map(&[
                ("host", "shop.test"),
                ("my-client", "1.2.3.4"),
                ("my_client", "6.6.6.6"),
                ("my-client-too", "kept"),
            ]);
            let given = Given { fields, trusted, client_ip_header: Some("My-Client"), ..Given::default() };
            let written = written(&given).1;
            let named: Vec<&String> = written.iter().filter(|field| field.starts_with("my")).collect();
            assert_eq!(named, ["my-client-too: kept", &format!("my-client: {client}")], "{trusted}");
            assert!(written.contains(&format!("x-forwarded-for: {client}")), "{written:?}");
        }
        let once = Given { client_ip_header: Some("X-Real-IP"), ..Given::default() };
        assert_eq!(passed(once), Vec::<String>::new());
    }

    #[test]
    fn the_body_is_framed_once() {
        for (body, want) in [
            (BodyFraming::AsSent, &["content-length: 5"][..]),
            (BodyFraming::Chunked, &["transfer-encoding: chunked"]),
            (BodyFraming::Length(7), &["content-length: 7"]),
        ] {
            let fields = map(&[("host", "shop.test"), ("content-length", "5")]);
            assert_eq!(passed(Given { fields, body, ..Given::default() }), want, "{body:?}");
        }
    }

    #[test]
    fn one_length_is_enough() {
        let fields = map(&[("host", "shop.test"), ("content-length", "5"), ("content-length", "5")]);
        assert_eq!(passed(Given { fields, ..Given::default() }), ["content-length: 5"]);
    }

    #[test]
    fn trailers_are_welcome_if_the_client_takes_them() {
        let fields = map(&[("host", "shop.test"), ("te", "gzip, trailers")]);
        assert_eq!(passed(Given { fields, ..Given::default() }), ["te: trailers"]);
    }

    #[test]
    fn a_websocket_asks_for_itself() {
        let fields = map(&[("host", "shop.test"), ("connection", "upgrade"), ("sec-websocket-key", "k")]);
        let given = Given { fields, websocket: true, ..Given::default() };
        assert_eq!(written(&given).0, "GET / HTTP/1.1");
        assert_eq!(passed(given), ["connection: Upgrade", "sec-websocket-key: k", "upgrade: websocket"]);
        let made = passed(Given { websocket: true, ..Given::default() });
        let key = made[1].strip_prefix("sec-websocket-key: ").unwrap();
        assert!(key.len() == 24 && key.ends_with("A=="), "{key}");
    }
}
