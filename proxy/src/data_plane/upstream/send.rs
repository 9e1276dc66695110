//! Sends a request to a target of its release: over a pooled connection or a new one, and again where that
//! is safe.
//!
//! A connection that cannot be opened moves the request to another target. A request is sent a second time
//! only if nothing of it was sent, or if it is idempotent, has no body, and a reused connection closed
//! under it (RFC 9110 §9.2.2; RFC 9112 §9.3.1).

use std::sync::Arc;

use http::Method;
use model::canary::Cohort;
use model::readers::Role;
use model::reason::Reason;
use model::service::Timeouts;
use tokio::time::Instant;

use super::connect::{ConnectError, connect};
use super::connection::AskError;
use super::kept::{Asked, Exchanged};
use super::pool::Lease;
use super::response_head::ResponseHead;
use super::timing::Timing;
use super::upload::Upload;
use crate::data_plane::admit::enter_elsewhere;
use crate::data_plane::exchange::Facts;
use crate::data_plane::worker::Worker;
use crate::release::{InFlight, Target};
use crate::snapshot::Service;

/// An answer's head, and what its body keeps busy.
pub struct Sent {
    pub head: ResponseHead,
    pub lease: Lease,
    pub in_flight: InFlight,
}

/// Where a request may go.
pub struct Route<'r> {
    pub service: &'r Arc<Service>,
    pub cohort: Cohort,
    pub wanted: Role,
}

pub async fn send(
    worker: &Worker,
    mut upload: Upload,
    route: &Route<'_>,
    mut in_flight: InFlight,
    facts: &Facts,
) -> Result<Sent, Reason> {
    worker.retries.earn();
    let mut refused: Vec<Arc<Target>> = Vec::new();
    let mut fresh_only = false;
    upload.address(&in_flight.target().label);
    loop {
        let timing = Timing::new(&in_flight, facts);
        let pooled = if fresh_only { None } else { worker.pool.take(in_flight.target().pool) };
        let lease = match pooled {
            Some(lease) => lease,
            None => match open(worker, &in_flight, &route.service.policy.timeouts, facts).await {
                Ok(lease) => lease,
                Err(error) => {
                    let reason = reason_of_connect(&error, &in_flight);
                    timing.failed(reason);
                    refused.push(Arc::clone(in_flight.target()));
                    let entered = enter_elsewhere(worker, route, in_flight, &refused, facts);
                    in_flight = Box::pin(entered).await?.ok_or(reason)?;
                    upload.address(&in_flight.target().label);
                    facts.note(|known| known.retried = true);
                    continue;
                }
            },
        };
        let timeouts = &route.service.policy.timeouts;
        let mut asked = Asked::new(Exchanged { lease, upload, in_flight }, timeouts, facts);
        let answer = asked.answer().await;
        let mut lease;
        Exchanged { lease, upload, in_flight } = asked.finish();
        match answer {
            Ok(head) => {
                timing.answered();
                let ending = in_flight.release().ending();
                lease.let_upload_go_on(upload, &route.service.policy.timeouts, ending);
                return Ok(Sent { head, lease, in_flight });
            }
            Err(error) => {
                let again = lease.reused && may_repeat(&error, &upload, facts) && upload.rewind();
                if !(again && worker.retries.spend()) {
                    let reason = reason_of_ask(&error, &in_flight, facts);
                    timing.failed(reason);
                    return Err(reason);
                }
                fresh_only = true;
                facts.note(|known| known.retried = true);
            }
        }
    }
}

/// Whether the target cannot have begun to work on the request, or may work on it twice.
fn may_repeat(error: &AskError, upload: &Upload, facts: &Facts) -> bool {
    let closed = matches!(error, AskError::Closed { begun: false, .. });
    let is_safe = || matches!(facts.head.borrow().method, Method::GET | Method::HEAD | Method::OPTIONS);
    let has_no_body = || facts.request_body.bytes.get() == 0;
    closed && (!upload.has_begun() || (is_safe() && has_no_body()))
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

fn reason_of_connect(error: &ConnectError, in_flight: &InFlight) -> Reason {
    tracing::debug!(target = %in_flight.target().label, error = ?error, "cannot connect");
    match error {
        ConnectError::Timeout(_) => Reason::ConnectTimeout,
        ConnectError::Io(_) => Reason::ConnectFailed,
    }
}

fn reason_of_ask(error: &AskError, in_flight: &InFlight, facts: &Facts) -> Reason {
    tracing::debug!(target = %in_flight.target().label, error = ?error, "no answer");
    if in_flight.release().are_requests_cut() {
        return Reason::DrainCut;
    }
    match error {
        AskError::Cut => Reason::DrainCut,
        // The client's fault; the body knows which.
        AskError::Client => facts.request_body.failed.get().unwrap_or(Reason::BadBody),
        AskError::Timeout => Reason::UpstreamTimeout,
        AskError::Closed { .. } => Reason::UpstreamClosed,
        AskError::Head(_) => Reason::UpstreamProtocol,
    }
}
