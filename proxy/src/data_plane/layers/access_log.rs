//! Opens a request's `Facts`, and holds them until its response body has ended.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::data_plane::exchange::{Connection, CutShort, Exchange, Facts};
use crate::data_plane::http2_stream;

/// One per connection.
#[derive(Clone)]
pub struct AccessLogLayer {
    pub connection: Rc<Connection>,
}

impl<S> Layer<S> for AccessLogLayer {
    type Service = AccessLog<S>;

    fn layer(&self, inner: S) -> AccessLog<S> {
        AccessLog { inner, connection: Rc::clone(&self.connection) }
    }
}

#[derive(Clone)]
pub struct AccessLog<S> {
    inner: S,
    connection: Rc<Connection>,
}

impl<S, B> Service<Request<Incoming>> for AccessLog<S>
where
    S: Service<Exchange, Response = Response<B>>,
    B: Body,
{
    type Response = Response<Observed<B>>;
    type Error = S::Error;
    type Future = Responding<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let (head, body) = request.into_parts();
        let facts = Facts::new(&self.connection, head, &body);
        let inner = self.inner.call(Exchange { body, facts: Rc::clone(&facts) });
        Responding { inner, facts: Some(facts) }
    }
}

pin_project! {
    /// The answer on its way; dropped before its time, the client has left.
    pub struct Responding<F> {
        #[pin]
        inner: F,
        facts: Option<Rc<Facts>>,
    }
}

impl<F, B, E> Future for Responding<F>
where
    B: Body,
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<Observed<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.inner.poll(cx))?;
        let facts = this.facts.take().expect("a future is not polled after it is ready");
        facts.status.set(Some(response.status().as_u16()));
        facts.note_response_fields(response.headers());
        let bodiless = facts.is_head() || matches!(response.status().as_u16(), 101 | 204 | 304);
        Poll::Ready(Ok(response.map(|body| {
            let ended = bodiless || body.is_end_stream();
            Observed { body, facts, ended }
        })))
    }
}

pin_project! {
    /// A response body that counts, and tells who ended it.
    pub struct Observed<B> {
        #[pin]
        body: B,
        facts: Rc<Facts>,
        ended: bool,
    }

    impl<B> PinnedDrop for Observed<B> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if !*this.ended && this.facts.cut_short.get().is_none() {
                this.facts.cut_short.set(Some(CutShort::Client));
            }
        }
    }
}

impl<B: Body<Data = Bytes>> Body for Observed<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let facts = this.facts;
        let polled = this.body.as_mut().poll_frame(cx);
        facts.set_waiting_for_app(polled.is_pending());
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    facts.response_body_bytes.set(facts.response_body_bytes.get() + data.len() as u64);
                    facts.connection.activity.hand_over(data.len());
                }
                // hyper does not ask again after the last frame of a body of known length.
                *this.ended = this.body.is_end_stream();
            }
            Poll::Ready(Some(Err(_))) => facts.blame_for_cut(),
            Poll::Ready(None) => *this.ended = true,
            Poll::Pending => {}
        }
        if facts.connection.activity.is_http2() {
            match &polled {
                Poll::Ready(Some(Ok(frame))) => http2_stream::gave(frame.data_ref().map_or(0, Bytes::len)),
                _ => http2_stream::waits(),
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
