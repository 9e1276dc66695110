//! Request bodies that are kept until they are whole.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;

use http::request::Parts;
use http_body::Body;
use hyper::body::Incoming;
use model::reason::Reason;
use model::service::Policy;

use super::spool::Spool;
use crate::data_plane::body::RequestBody;
use crate::data_plane::exchange::Facts;
use crate::data_plane::headers;
use crate::data_plane::upstream::request_head::BodyFraming;
use crate::telemetry::buffers::Side;

/// A request's body: as the client sends it, or all of it.
pub enum Intake {
    Coming(Incoming),
    Whole(Spool),
}

impl Intake {
    /// In bytes, where it is known.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Coming(body) => body.size_hint().exact(),
            Self::Whole(spool) => Some(spool.length()),
        }
    }

    pub fn is_something(&self) -> bool {
        match self {
            Self::Coming(body) => !body.is_end_stream(),
            Self::Whole(_) => true,
        }
    }

    /// How the target learns where it ends. Only a coding can carry trailers.
    pub fn framing(&self) -> BodyFraming {
        match self {
            Self::Coming(body) if !body.is_end_stream() && body.size_hint().exact().is_none() => {
                BodyFraming::Chunked
            }
            Self::Coming(_) => BodyFraming::AsSent,
            Self::Whole(spool) if spool.has_trailers() => BodyFraming::Chunked,
            Self::Whole(spool) => BodyFraming::Length(spool.length()),
        }
    }

    pub fn into_body(self, policy: &Policy, facts: &Rc<Facts>) -> RequestBody {
        match self {
            Self::Coming(body) => coming(body, policy, facts),
            Self::Whole(spool) => RequestBody::kept(spool, facts),
        }
    }

    /// Whether `policy` wants it whole before it goes anywhere. What opens a WebSocket is no body.
    pub fn is_to_be_kept(&self, policy: &Policy, head: &Parts) -> bool {
        policy.buffering.requests
            && matches!(self, Self::Coming(body) if !body.is_end_stream())
            && !headers::is_websocket(head, true)
    }

    /// Waits for the rest of it, for as long as the client keeps its pace.
    pub async fn keep(self, policy: &Policy, facts: &Rc<Facts>) -> Result<Self, Reason> {
        let Self::Coming(body) = self else { return Ok(self) };
        let room = &facts.connection.worker.room;
        if body.size_hint().exact().is_some_and(|bytes| !room.could_hold(bytes)) {
            room.count_full(Side::Request);
            return Err(Reason::BuffersFull);
        }
        // The body knows its client's pace; the connection's watchdog need not.
        facts.set_waiting_for_app(true);
        let kept = gather(body, policy, facts).await;
        facts.set_waiting_for_app(false);
        facts.request_body.is_whole.set(kept.is_ok());
        kept.map(Self::Whole)
    }
}

fn coming(body: Incoming, policy: &Policy, facts: &Rc<Facts>) -> RequestBody {
    RequestBody::new(body, facts, policy.request_body_bytes_max, policy.timeouts.body_idle)
}

async fn gather(body: Incoming, policy: &Policy, facts: &Rc<Facts>) -> Result<Spool, Reason> {
    let room = &facts.connection.worker.room;
    let spool = Spool::new(Side::Request, policy.buffering.memory_bytes_max, facts);
    let mut body = coming(body, policy, facts);
    let mut trailers = None;
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|_| facts.request_body.failed.get().unwrap_or(Reason::BadBody))?;
        match frame.into_data() {
            Ok(data) => spool.put(&data).await.map_err(|_| {
                room.count_full(Side::Request);
                Reason::BuffersFull
            })?,
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    spool.finish(trailers.filter(|trailers| !trailers.is_empty()));
    Ok(spool)
}
