//! The layers of one connection, put together: outermost first.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use http::{Request, Response};
use hyper::body::Incoming;
use model::reason::Reason;
use tower::{Layer, Service, service_fn};

use super::body::AnswerBody;
use super::exchange::{Connection, Exchange};
use super::forward;
use super::layers::access_log::{AccessLogLayer, Observed};
use super::layers::request_id::RequestIdLayer;

/// Everything that happens to a request between hyper and the target.
pub fn stack(
    connection: Rc<Connection>,
) -> impl Service<
    Request<Incoming>,
    Response = Response<Observed<AnswerBody>>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<Observed<AnswerBody>>, Infallible>>,
> + Clone {
    AccessLogLayer { connection }.layer(RequestIdLayer.layer(service_fn(answer_even_a_panic)))
}

/// A bug in one request must cost one request.
async fn answer_even_a_panic(exchange: Exchange) -> Result<Response<AnswerBody>, Infallible> {
    let facts = Rc::clone(&exchange.facts);
    let answered = AssertUnwindSafe(forward::serve(exchange)).catch_unwind().await;
    Ok(answered.unwrap_or_else(|_| {
        let worker = &facts.connection.worker;
        worker.metrics.process().panics.fetch_add(1, Ordering::Relaxed);
        facts.note(|known| known.reason = Some(Reason::Internal));
        forward::refuse(Reason::Internal, &facts)
    }))
}
