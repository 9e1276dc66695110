//! HTTP-01: an authority asks a host for the answer to a token (RFC 8555 §8.3). Answered before redirects, halts and
//! limits, for hosts with automatic certificates alone; on all others the path is the app's.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Response};
use http_body_util::Full;
use model::reason::Reason;

use super::answer;
use super::body::AnswerBody;
use super::exchange::Facts;
use super::hygiene;

const PREFIX: &str = "/.well-known/acme-challenge/";
/// Authorities send 43 characters.
const TOKEN_BYTES_MAX: usize = 128;

/// The answer, if the request asks for one and the host leaves that to us. Once it does, no shape of such a request
/// gets to the app: whoever could answer for it could have certificates for its host.
pub fn answer(facts: &Facts) -> Option<Response<AnswerBody>> {
    let head = facts.head.borrow();
    let token = head.uri.path().strip_prefix(PREFIX)?;
    let worker = &facts.connection.worker;
    let snapshot = worker.published.load();
    let thumbprint = snapshot.challenges.thumbprint.as_deref()?;
    let host = hygiene::host(&head).ok()?;
    if !snapshot.challenges.hosts.best(&host).copied().unwrap_or_default() {
        return None;
    }
    let is_look = matches!(head.method, Method::GET | Method::HEAD);
    let tell = worker.config.reason_header;
    let is_known = is_look && is_token(token);
    let reason = if is_known { Reason::AcmeChallenge } else { Reason::UnknownChallenge };
    facts.note(|known| known.reason = Some(reason));
    if !is_known {
        return Some(answer::refuse(
            reason,
            head.headers.get(header::ACCEPT),
            tell,
            &answer::Page::default(),
        ));
    }
    let mut response = answer::healthy(reason, tell);
    let text = format!("{token}.{thumbprint}");
    *response.body_mut() = AnswerBody::Whole(Full::new(Bytes::from(text)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Some(response)
}

fn is_token(text: &str) -> bool {
    let is_base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=TOKEN_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_base64url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        for (text, want) in [
            ("evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA", true),
            ("a", true),
            (&"a".repeat(128), true),
            (&"a".repeat(129), false),
            ("", false),
            ("a/b", false),
            ("a.b", false),
            ("..", false),
            ("a%2e", false),
            ("a b", false),
            ("ä", false),
        ] {
            assert_eq!(is_token(text), want, "{text}");
        }
    }
}
