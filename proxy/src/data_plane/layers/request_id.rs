//! Every request has an id: the client's if it is sane, else a new UUIDv7.

use std::task::{Context, Poll};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use tower::{Layer, Service};
use uuid::fmt::Hyphenated;

use crate::clock;
use crate::data_plane::exchange::Exchange;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const BYTES_MAX: usize = 200;

#[derive(Clone)]
pub struct RequestIdLayer;

impl<S> Layer<S> for RequestIdLayer {
    type Service = Identified<S>;

    fn layer(&self, inner: S) -> Identified<S> {
        Identified { inner }
    }
}

#[derive(Clone)]
pub struct Identified<S> {
    inner: S,
}

impl<S: Service<Exchange>> Service<Exchange> for Identified<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, exchange: Exchange) -> S::Future {
        let id = settle(&exchange.facts.head.borrow().headers);
        exchange.facts.note(|known| known.request_id = Some(id));
        self.inner.call(exchange)
    }
}

/// What identifies a request in the logs of all that it passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestId {
    Sent(HeaderValue),
    /// A UUIDv7 as text.
    Made([u8; Hyphenated::LENGTH]),
}

impl RequestId {
    pub fn as_str(&self) -> &str {
        // Both are ASCII.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sent(id) => id.as_bytes(),
            Self::Made(id) => id,
        }
    }

    /// Milliseconds first, so that ids sort by time (RFC 9562 §5.7). The rest need not be a secret, only unlike any
    /// other: a generator of the thread's own costs no system call.
    fn make() -> Self {
        let now = clock::unix_time();
        let mut random = [0; 10];
        fastrand::fill(&mut random);
        let id = uuid::Builder::from_unix_timestamp_millis(now.as_millis() as u64, &random).into_uuid();
        let mut text = [0; Hyphenated::LENGTH];
        id.hyphenated().encode_lower(&mut text);
        Self::Made(text)
    }
}

/// The one sane id that the client sent, or a new one.
fn settle(headers: &HeaderMap) -> RequestId {
    let mut sent = headers.get_all(X_REQUEST_ID).iter();
    match (sent.next(), sent.next()) {
        (Some(id), None) if is_sane(id.as_bytes()) => RequestId::Sent(id.clone()),
        _ => RequestId::make(),
    }
}

fn is_sane(id: &[u8]) -> bool {
    let safe = |b: &u8| {
        b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'+' | b'/' | b'=' | b'@')
    };
    !id.is_empty() && id.len() <= BYTES_MAX && id.iter().all(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_ids_are_unlike_and_of_version_7() {
        let ids: Vec<String> =
            (0..1000).map(|_| String::from_utf8(RequestId::make().as_bytes().to_vec()).unwrap()).collect();
        let unlike: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(unlike.len(), ids.len());
        for id in &ids {
            let id: uuid::Uuid = id.parse().unwrap();
            assert_eq!((id.get_version_num(), id.get_variant()), (7, uuid::Variant::RFC4122));
        }
    }

    #[test]
    fn sane_ids_are_kept_and_others_replaced() {
        let long = "x".repeat(201);
        for (sent, kept) in [
            (&["abc-123"][..], true),
            (&["a/b+c=:@._-"], true),
            (&[], false),
            (&[""], false),
            (&["a b"], false),
            (&["a\"b"], false),
            (&["a", "a"], false),
            (&[long.as_str()], false),
        ] {
            let mut headers = HeaderMap::new();
            for id in sent {
                headers.append(X_REQUEST_ID, HeaderValue::from_str(id).unwrap());
            }
            let id = settle(&headers);
            assert_eq!(matches!(id, RequestId::Sent(_)), kept, "{sent:?}");
            assert!(kept || id.as_bytes().len() == 36);
            assert!(!kept || sent[0].as_bytes() == id.as_bytes());
        }
    }
}
