//! Every request has an id: the client's if it is sane, else a new UUIDv7.

use std::task::{Context, Poll};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use tower::{Layer, Service};

use crate::data_plane::exchange::Exchange;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const BYTES_MAX: usize = 200;

#[derive(Clone)]
pub struct RequestIdLayer;

impl<S> Layer<S> for RequestIdLayer {
    type Service = RequestId<S>;

    fn layer(&self, inner: S) -> RequestId<S> {
        RequestId { inner }
    }
}

#[derive(Clone)]
pub struct RequestId<S> {
    inner: S,
}

impl<S: Service<Exchange>> Service<Exchange> for RequestId<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut exchange: Exchange) -> S::Future {
        let id = settle(exchange.request.headers_mut());
        exchange.facts.note(|known| known.request_id = Some(id));
        self.inner.call(exchange)
    }
}

/// Leaves exactly one sane id in the head and returns it.
fn settle(headers: &mut HeaderMap) -> HeaderValue {
    let mut sent = headers.get_all(X_REQUEST_ID).iter();
    if let (Some(id), None) = (sent.next(), sent.next())
        && is_sane(id.as_bytes())
    {
        return id.clone();
    }
    let mut text = uuid::Uuid::encode_buffer();
    let text = uuid::Uuid::now_v7().hyphenated().encode_lower(&mut text);
    let id = HeaderValue::from_str(text).expect("a UUID is visible ASCII");
    headers.insert(X_REQUEST_ID, id.clone());
    id
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
            let id = settle(&mut headers);
            assert_eq!(headers.get_all(X_REQUEST_ID).iter().collect::<Vec<_>>(), [&id], "{sent:?}");
            assert_eq!(sent.first().is_some_and(|sent| id == *sent), kept, "{sent:?}");
            assert!(kept || id.len() == 36);
        }
    }
}
