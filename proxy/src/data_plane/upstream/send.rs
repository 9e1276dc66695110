//! Sends a request to a target of its release: over a pooled connection or a new one, and again where that
//! is safe.
//!
//! A connection that cannot be opened moves the request to another target. A request is sent a second time
//! only if nothing of it was sent, or if it is idempotent, has no body, and a reused connection closed
//! under it (RFC 9110 §9.2.2; RFC 9112 §9.3.1).

use std::rc::Rc;
use std::sync::Arc;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use model::canary::Cohort;
use model::reason::Reason;
use model::service::Timeouts;
use tokio::time::Instant;

use super::connect::{ConnectError, connect};
use super::pool::Lease;
use crate::data_plane::body::{RequestBody, RequestProgress};
use crate::data_plane::exchange::Facts;
use crate::data_plane::worker::Worker;
use crate::release::{InFlight, Target};
use crate::snapshot::{Service, Slot};

/// An answer's head, and what its body keeps busy.
pub struct Sent {
    pub response: Response<Incoming>,
    pub lease: Lease,
    pub in_flight: InFlight,
}

pub async fn send(
    worker: &Worker,
    mut request: Request<RequestBody>,
    service: &Arc<Service>,
    cohort: Cohort,
    mut in_flight: InFlight,
    facts: &Facts,
) -> Result<Sent, Reason> {
    worker.retries.earn();
    let timeouts = &service.policy.timeouts;
    let mut refused: Vec<u64> = Vec::new();
    let mut fresh_only = false;
    loop {
        let target = Arc::clone(in_flight.target());
        let pooled = if fresh_only { None } else { worker.pool.take(target.id) };
        let mut lease = match pooled {
            Some(lease) => lease,
            None => match open(worker, &in_flight, timeouts, facts).await {
                Ok(lease) => lease,
                Err(error) => {
                    refused.push(target.id);
                    in_flight = elsewhere(worker, service, cohort, &in_flight, &refused)
                        .ok_or_else(|| reason_of_connect(&error, &in_flight))?;
                    facts.note(|known| {
                        known.target = Some(Arc::clone(in_flight.target()));
                        known.retried = true;
                    });
                    continue;
                }
            },
        };
        let copy =
            (lease.reused && is_repeatable(&request, &facts.request_body)).then(|| copy_of(&request, facts));
        let sending = lease.connection.sender.try_send_request(request);
        match within(sending, timeouts, &facts.request_body).await {
            None => {
                return Err(if in_flight.release().is_cut() {
                    Reason::DrainCut
                } else {
                    Reason::UpstreamTimeout
                });
            }
            Some(Ok(response)) => return Ok(Sent { response, lease, in_flight }),
            Some(Err(mut error)) => {
                let unsent = error.take_message();
                let reason = reason_of_send(error.error(), &in_flight, &facts.request_body);
                let again = unsent.or(copy.filter(|_| is_closed_connection(error.error())));
                match again {
                    Some(again) if reason != Reason::DrainCut && lease.reused && worker.retries.spend() => {
                        request = again;
                        fresh_only = true;
                        facts.note(|known| known.retried = true);
                    }
                    _ => return Err(reason),
                }
            }
        }
    }
}

async fn open(
    worker: &Worker,
    in_flight: &InFlight,
    timeouts: &Timeouts,
    facts: &Facts,
) -> Result<Lease, ConnectError> {
    let began = Instant::now();
    let lease = connect(&worker.pool, in_flight.release(), in_flight.target(), timeouts.connect).await?;
    facts.note(|known| known.connect = Some(began.elapsed()));
    Ok(lease)
}

/// A target that has not refused yet: of the same release, or of the one that took over meanwhile.
fn elsewhere(
    worker: &Worker,
    service: &Arc<Service>,
    cohort: Cohort,
    in_flight: &InFlight,
    refused: &[u64],
) -> Option<InFlight> {
    let snapshot;
    let service = if in_flight.release().is_closed() {
        snapshot = worker.published.load();
        snapshot.services.get(&service.name)?
    } else {
        service
    };
    let slot = slot_of(service, cohort).unwrap_or(&service.stable);
    let next: &Arc<Target> = slot.targets.iter().find(|target| !refused.contains(&target.id))?;
    slot.release.enter(next, worker.index)
}

fn slot_of(service: &Service, cohort: Cohort) -> Option<&Slot> {
    match cohort {
        Cohort::Stable => Some(&service.stable),
        Cohort::Canary => service.canary.as_ref().map(|canary| &canary.slot),
    }
}

/// Waits for the head of the answer. The limit runs from the end of the request body: a long upload is not
/// the target's slowness, and has a limit of its own on progress. `None`: time is up.
async fn within<F: Future>(sending: F, timeouts: &Timeouts, body: &Rc<RequestProgress>) -> Option<F::Output> {
    tokio::pin!(sending);
    let began = Instant::now();
    let mut deadline = began + timeouts.response_head;
    loop {
        if let Ok(output) = tokio::time::timeout_at(deadline, &mut sending).await {
            return Some(output);
        }
        let now = Instant::now();
        let due = match body.ended.get() {
            Some(ended) => ended + timeouts.response_head,
            // While the client is waited for, the body's own timer runs; when that has not struck by now,
            // it is the target that takes nothing.
            None => body.moved.get().unwrap_or(began) + timeouts.body_idle.max(timeouts.response_head) * 2,
        };
        if due <= now {
            return None;
        }
        deadline = due;
    }
}

fn is_repeatable(request: &Request<RequestBody>, body: &RequestProgress) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS)
        && body.ended.get().is_some()
        && !body.touched.get()
}

fn copy_of(request: &Request<RequestBody>, facts: &Facts) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::empty(Rc::clone(&facts.request_body)));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy
}

fn is_closed_connection(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_closed() || error.is_canceled() || is_reset(error)
}

/// Whether the transport said so: a reset or a broken pipe.
fn is_reset(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
            return matches!(io.kind(), BrokenPipe | ConnectionAborted | ConnectionReset);
        }
        source = cause.source();
    }
    false
}

fn reason_of_connect(error: &ConnectError, in_flight: &InFlight) -> Reason {
    tracing::debug!(target = %in_flight.target().label, error = ?error, "cannot connect");
    match error {
        ConnectError::Timeout(_) => Reason::ConnectTimeout,
        ConnectError::Io(_) | ConnectError::Handshake(_) => Reason::ConnectFailed,
    }
}

fn reason_of_send(error: &hyper::Error, in_flight: &InFlight, body: &RequestProgress) -> Reason {
    tracing::debug!(target = %in_flight.target().label, error = ?error, "no answer");
    // The client's fault first: a body that broke off makes hyper give up the target's connection.
    if let Some(reason) = body.failed.get() {
        return reason;
    }
    if in_flight.release().is_cut() {
        return Reason::DrainCut;
    }
    if error.is_parse() { Reason::UpstreamProtocol } else { Reason::UpstreamClosed }
}
