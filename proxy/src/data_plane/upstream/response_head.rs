//! The head of an answer: from bytes to fields that may be passed on, and how its body is framed.
//!
//! Strict where a mistake would make two parties see two messages (RFC 9112 §6.3): conflicting lengths, codings
//! other than `chunked`, versions that do not exist. The app is trusted, but it may be wrong.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use model::readers;

use super::framing::{Chunked, Framing};
use crate::data_plane::headers;

/// More fields than a request may have: apps set many cookies and hints.
const FIELDS_MAX: usize = 256;
pub const BYTES_MAX: usize = 256 * 1024;

#[derive(Debug)]
pub struct ResponseHead {
    pub status: StatusCode,
    /// Without those that bind only this hop.
    pub fields: HeaderMap,
    pub framing: Framing,
    /// Another request may follow on the connection.
    pub keep_alive: bool,
    /// The app says that the request wrote nothing (`model::readers`).
    pub wrote_nothing: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    #[error("what came is no HTTP answer")]
    Syntax(#[from] httparse::Error),
    #[error("the head of the answer is longer than {BYTES_MAX} bytes")]
    TooLong,
    #[error("field `{0}` of the answer is not valid")]
    Field(String),
    #[error("the answer leaves open where its body ends")]
    Framing,
}

/// Takes a complete head off the front of `bytes`; `None` while it is not complete.
///
/// `to_head`: the answer to HEAD has no body, whatever its fields say.
pub fn take(bytes: &mut Bytes, to_head: bool) -> Result<Option<ResponseHead>, HeadError> {
    let mut slots = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut slots)? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial if bytes.len() >= BYTES_MAX => return Err(HeadError::TooLong),
        httparse::Status::Partial => return Ok(None),
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(HeadError::Syntax(httparse::Error::Status))?;
    let is_http11 = parsed.version == Some(1);
    let facts = Facts::of(parsed.headers)?;
    let fields = fields(parsed.headers, bytes, &facts)?;
    let framing = facts.framing(status, to_head, is_http11)?;
    let keep_alive = !facts.close
        && (is_http11 || facts.keep_alive)
        && !matches!(framing, Framing::UntilClose)
        && status != StatusCode::SWITCHING_PROTOCOLS;
    let wrote_nothing = facts.wrote_nothing;
    drop(bytes.split_to(length));
    Ok(Some(ResponseHead { status, fields, framing, keep_alive, wrote_nothing }))
}

/// What the fields say of the connection and the body.
#[derive(Default)]
struct Facts<'h> {
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    wrote_nothing: bool,
    /// Values of `Connection` that name further fields.
    nominating: Vec<&'h [u8]>,
}

impl<'h> Facts<'h> {
    fn of(parsed: &[httparse::Header<'h>]) -> Result<Self, HeadError> {
        let mut facts = Self::default();
        for field in parsed {
            // Few names are as long as these.
            match field.name.len() {
                10 if field.name.eq_ignore_ascii_case("connection") => facts.read_connection(field.value),
                14 if field.name.eq_ignore_ascii_case("content-length") => facts.read_length(field.value)?,
                17 if field.name.eq_ignore_ascii_case("transfer-encoding") => {
                    if facts.chunked || !field.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                        return Err(HeadError::Framing);
                    }
                    facts.chunked = true;
                }
                17 if field.name.eq_ignore_ascii_case(readers::ANSWER_FIELD) => {
                    facts.wrote_nothing = field.value.trim_ascii().eq_ignore_ascii_case(b"false");
                }
                _ => {}
            }
        }
        Ok(facts)
    }

    fn read_connection(&mut self, value: &'h [u8]) {
        for token in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if !token.is_empty() {
                self.nominating.push(token);
            }
        }
    }

    /// Equal values may be repeated (RFC 9110 §8.6).
    fn read_length(&mut self, value: &[u8]) -> Result<(), HeadError> {
        let digits = value.trim_ascii();
        let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        let text = std::str::from_utf8(digits).ok().filter(|_| all_digits);
        let length: u64 = text.and_then(|text| text.parse().ok()).ok_or(HeadError::Framing)?;
        if self.content_length.is_some_and(|known| known != length) {
            return Err(HeadError::Framing);
        }
        self.content_length = Some(length);
        Ok(())
    }

    fn framing(&self, status: StatusCode, to_head: bool, is_http11: bool) -> Result<Framing, HeadError> {
        let bodiless = status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED
            || to_head;
        if self.chunked && !is_http11 {
            // HTTP/1.0 knows no codings; who sends one is not to be believed (RFC 9112 §6.1).
            return Err(HeadError::Framing);
        }
        Ok(match (self.chunked, self.content_length) {
            _ if bodiless => Framing::Length(0),
            (true, _) => Framing::Chunked(Chunked::default()),
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::UntilClose,
        })
    }

    /// Whether a field stays on this hop, as what the app says to us does.
    fn drops(&self, name: &str, seen_length: &mut bool) -> bool {
        if name == "content-length" {
            // A coding has decided the length (RFC 9112 §6.3), and one of several equal ones is enough.
            return self.chunked || std::mem::replace(seen_length, true);
        }
        headers::is_hop_by_hop(name)
            || name == readers::ANSWER_FIELD
            || (self.nominating.iter().any(|token| token.eq_ignore_ascii_case(name.as_bytes()))
                && headers::is_nominable(name))
    }
}

fn fields(parsed: &[httparse::Header<'_>], bytes: &Bytes, facts: &Facts<'_>) -> Result<HeaderMap, HeadError> {
    let mut fields = HeaderMap::with_capacity(parsed.len());
    let mut seen_length = false;
    for field in parsed {
        let invalid = || HeadError::Field(field.name.to_owned());
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| invalid())?;
        if facts.drops(name.as_str(), &mut seen_length) {
            continue;
        }
        let is_length = name == header::CONTENT_LENGTH;
        let sent = if is_length { headers::without_zeros(field.value) } else { field.value };
        // The values stay where they were read.
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(sent)).map_err(|_| invalid())?;
        fields.append(name, value);
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_from(text: &str) -> Result<Option<(ResponseHead, String)>, HeadError> {
        take_for(text, false)
    }

    fn take_for(text: &str, to_head: bool) -> Result<Option<(ResponseHead, String)>, HeadError> {
        let mut bytes = Bytes::copy_from_slice(text.as_bytes());
        let head = take(&mut bytes, to_head)?;
        Ok(head.map(|head| (head, String::from_utf8_lossy(&bytes).into_owned())))
    }

    fn framing(text: &str, to_head: bool) -> String {
        match take_for(text, to_head) {
            Ok(Some((head, _))) => {
                let framing = match head.framing {
                    Framing::Length(n) => n.to_string(),
                    Framing::Chunked(_) => "chunked".to_owned(),
                    Framing::UntilClose => "until close".to_owned(),
                };
                format!("{framing}{}", if head.keep_alive { ", kept" } else { "" })
            }
            Ok(None) => "partial".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn bodies_end_where_rfc_9112_says() {
        let open = HeadError::Framing.to_string();
        for (line, fields, want) in [
            ("HTTP/1.1 200 OK", "Content-Length: 5", "5, kept"),
            ("HTTP/1.1 200 OK", "Content-Length: 5\r\nContent-Length: 5", "5, kept"),
            ("HTTP/1.1 200 OK", "Content-Length: 5\r\nContent-Length: 6", open.as_str()),
            ("HTTP/1.1 200 OK", "Content-Length: +5", open.as_str()),
            ("HTTP/1.1 200 OK", "Content-Length: 5, 5", open.as_str()),
            ("HTTP/1.1 200 OK", "Content-Length:", open.as_str()),
            ("HTTP/1.1 200 OK", "Content-Length: 99999999999999999999", open.as_str()),
            ("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "chunked, kept"),
            ("HTTP/1.1 200 OK", "Transfer-Encoding: CHUNKED\r\nContent-Length: 5", "chunked, kept"),
            ("HTTP/1.1 200 OK", "Transfer-Encoding: gzip, chunked", open.as_str()),
            ("HTTP/1.1 200 OK", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", open.as_str()),
            ("HTTP/1.1 200 OK", "Transfer-Encoding: cow", open.as_str()),
            ("HTTP/1.0 200 OK", "Transfer-Encoding: chunked", open.as_str()),
            ("HTTP/1.1 200 OK", "X: y", "until close"),
            ("HTTP/1.0 200 OK", "Content-Length: 5", "5"),
            ("HTTP/1.0 200 OK", "Content-Length: 5\r\nConnection: keep-alive", "5, kept"),
            ("HTTP/1.1 200 OK", "Content-Length: 5\r\nConnection: x, Close", "5"),
            ("HTTP/1.1 204 No Content", "X: y", "0, kept"),
            ("HTTP/1.1 304 Not Modified", "Content-Length: 5", "0, kept"),
            ("HTTP/1.1 100 Continue", "X: y", "0, kept"),
            ("HTTP/1.1 101 Switching Protocols", "X: y", "0"),
            ("HTTP/1.1 200", "Content-Length: 5", "5, kept"),
        ] {
            let text = format!("{line}\r\n{fields}\r\n\r\nhello");
            assert_eq!(framing(&text, false), want, "{text:?}");
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(framing(head, true), "0, kept");
    }

    #[test]
    fn what_the_app_says_of_a_write_is_for_us() {
        for (field, want) in [
            ("X-Writer-Affinity: false", true),
            ("x-writer-affinity:  FALSE ", true),
            ("X-Writer-Affinity: true", false),
            ("X-Writer-Affinity:", false),
            ("X-Writer-Affinitx: false", false),
        ] {
            let text = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{field}\r\n\r\n");
            let (head, _) = take_from(&text).unwrap().unwrap();
            assert_eq!(head.wrote_nothing, want, "{field}");
            assert!(!head.fields.contains_key(readers::ANSWER_FIELD), "{field}");
        }
    }

    #[test]
    fn fields_of_this_hop_stay_here() {
        let text = "HTTP/1.1 200 OK\r\nConnection: X-Hop, Set-Cookie, Date\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
                    Set-Cookie: a=1\r\nset-cookie: b=2\r\nDate: today\r\nContent-Length: 02\r\nContent-Length: 2\r\n\
                    Upgrade: h2c\r\n\r\nok";
        let (head, rest) = take_from(text).unwrap().unwrap();
        let fields: Vec<_> =
            head.fields.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(fields, [("date", "today"), ("content-length", "2")]);
        assert_eq!(rest, "ok");
    }

    #[test]
    fn heads_that_are_none() {
        for text in [
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 99 Low\r\n\r\n",
            "HTTP/1.1 200 OK\r\nBad Name: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX : 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: 1\r\n folded\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: \x01\r\n\r\n",
        ] {
            assert!(take_from(text).is_err(), "{text:?}");
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: 1\r\n".repeat(FIELDS_MAX + 1));
        assert!(take_from(&many).is_err());
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(BYTES_MAX));
        assert!(matches!(take_from(&long), Err(HeadError::TooLong)));
    }

    proptest::proptest! {
        #[test]
        fn a_head_is_complete_at_its_last_byte_and_not_before(cut in 0usize..60) {
            let text = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Long: some value\r\n\r\n";
            let cut = cut.min(text.len() - 1);
            proptest::prop_assert!(take_from(&text[..cut]).unwrap().is_none());
            proptest::prop_assert!(take_from(text).unwrap().is_some());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(0u8..=255, 0..200)) {
            let mut text = b"HTTP/1.1 200 OK\r\n".to_vec();
            text.extend_from_slice(&bytes);
            let _ = take(&mut Bytes::from(text), false);
            let _ = take(&mut Bytes::from(bytes), false);
        }
    }
}
