//! Interim responses (1xx) from a target on their way to the client.

use http::{HeaderMap, StatusCode, header};

use super::exchange::Facts;
use super::upstream::response_head::ResponseHead;

/// 103 and 102 reach HTTP/1.1 clients; hyper has no way to send them to others.
pub fn pass(head: &ResponseHead, facts: &Facts) {
    let is_http11 = facts.head.borrow().version == http::Version::HTTP_11;
    // It would get between the parts of an answer before it.
    let comes_first = !facts.connection.activity.has_unflushed();
    if is_http11 && comes_first && matches!(head.status.as_u16(), 102 | 103) {
        facts.connection.interim.push(&interim_head(head.status, &head.fields));
    }
}

fn interim_head(status: StatusCode, fields: &HeaderMap) -> Vec<u8> {
    let mut head =
        format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or("")).into_bytes();
    // It has no body, and whoever believed a length would read the answer that follows as one.
    for (name, value) in fields.iter().filter(|(name, _)| *name != header::CONTENT_LENGTH) {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}
