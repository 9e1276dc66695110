//! Answers that are taken from their target as fast as it sends them, and kept until their client reads them.
//!
//! An answer is held back until it is whole, or for as long as `model::holding` says; then the client gets what is
//! there, and a task goes on taking the rest. Where there is no room the task waits for the client, as without
//! buffering: an answer is never lost for want of room.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use http_body_util::Full;
use model::holding::Holding;
use model::reason::Reason;
use model::service::Policy;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::spool::{Next, Spool, SpoolError};
use crate::data_plane::activity::Uptake;
use crate::data_plane::body::{AnswerBody, BodyError, Error, is_enough_for_now};
use crate::data_plane::exchange::Facts;
use crate::data_plane::headers::strip_trailers;
use crate::data_plane::upstream::connection::{ReadError, Reading};
use crate::data_plane::upstream::framing::{Framing, FramingError, Piece};
use crate::data_plane::upstream::pool::Lease;
use crate::telemetry::buffers::Side;

/// Nobody's pace limits what is read; more at a time would only be copied more at a time.
const READING: Reading = Reading {
    idle: None,
    uptake: Uptake { acknowledged: 1 << 32, unacknowledged: 0, is_blocked: false },
    bytes_max: 64 * 1024,
};

/// Whether the app asks for its answer not to be buffered, as apps that stream do of nginx.
pub fn is_unwanted_for(fields: &HeaderMap) -> bool {
    fields.get("x-accel-buffering").is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"no"))
}

/// An answer's body on its way from its target.
pub struct Coming {
    lease: Lease,
    framing: Framing,
    keep_alive: bool,
    /// How long the target may be silent.
    idle: Duration,
    bytes_max: u64,
    bytes: u64,
}

impl Coming {
    /// `lease` holds the request in flight.
    pub fn new(lease: Lease, framing: Framing, keep_alive: bool, policy: &Policy) -> Self {
        let (idle, bytes_max) = (policy.timeouts.body_idle, policy.response_body_bytes_max);
        Self { lease, framing, keep_alive, idle, bytes_max, bytes: 0 }
    }

    async fn next(&mut self) -> Result<Piece, ReadError> {
        if self.framing.has_ended() {
            return Ok(Piece::End);
        }
        let reading = Reading { idle: Some(self.idle), ..READING };
        let mut piece = poll_fn(|cx| self.lease.poll_body(cx, &mut self.framing, reading)).await?;
        match &mut piece {
            Piece::Data(data) => {
                self.bytes += data.len() as u64;
                if self.bytes > self.bytes_max {
                    return Err(ReadError::TooLong(self.bytes_max));
                }
            }
            Piece::Trailers(trailers) => strip_trailers(trailers, None),
            Piece::End | Piece::Wanting => {}
        }
        Ok(piece)
    }

    /// The target has done its part: its seat and its connection are free, whatever the client does.
    fn give_back(self) {
        if self.keep_alive {
            self.lease.give_back();
        }
    }
}

/// Holds the answer back, and then has it go on by itself.
pub async fn keep(mut coming: Coming, policy: &Policy, facts: &Rc<Facts>) -> Result<AnswerBody, Reason> {
    let worker = &facts.connection.worker;
    let spool = Spool::new(Side::Response, policy.buffering.memory_bytes_max, facts);
    let announced = coming.framing.length();
    let (began, mut holding) = (Instant::now(), Holding::default());
    let mut without_room = None;
    loop {
        let next = match holding.until() {
            None => coming.next().await,
            // One that always has more would never be asked for the time.
            Some(until) if until <= began.elapsed() => break,
            Some(until) => match timeout_at(began + until, coming.next()).await {
                Ok(next) => next,
                Err(_) => break,
            },
        };
        match next.map_err(|error| reason_of(&error))? {
            // All of it came at once.
            Piece::Data(data) if spool.length() == 0 && coming.framing.has_ended() => {
                coming.give_back();
                return Ok(AnswerBody::Whole(Full::new(data)));
            }
            Piece::Data(data) => {
                if spool.put(&data).await.is_err() {
                    without_room = Some(data);
                    break;
                }
                // Behind the writing: a slow disk is no pause of the app's.
                holding.came(began.elapsed());
            }
            last => {
                end(&spool, last);
                coming.give_back();
                let length = (!spool.has_trailers()).then(|| spool.length());
                return Ok(AnswerBody::Kept(Box::new(KeptBody::new(spool, length, None, facts))));
            }
        }
    }
    if without_room.is_some() {
        worker.room.count_full(Side::Response);
    }
    let rest = worker.tasks.spawn_local(take_the_rest(coming, spool.clone(), without_room));
    let taking = Some(AbortOnDropHandle::new(rest));
    Ok(AnswerBody::Kept(Box::new(KeptBody::new(spool, announced, taking, facts))))
}

/// Until the end, or until the client leaves and with it the handle of this task.
async fn take_the_rest(mut coming: Coming, spool: Spool, mut without_room: Option<Bytes>) {
    loop {
        if let Some(data) = without_room.take() {
            spool.emptied().await;
            spool.put_through(&data);
        }
        match coming.next().await {
            Ok(Piece::Data(data)) => {
                if spool.put(&data).await.is_err() {
                    without_room = Some(data);
                }
            }
            Ok(last) => {
                end(&spool, last);
                return coming.give_back();
            }
            Err(error) => return spool.break_off(error),
        }
    }
}

fn end(spool: &Spool, last: Piece) {
    spool.finish(match last {
        Piece::Trailers(trailers) => Some(trailers),
        Piece::Data(_) | Piece::End | Piece::Wanting => None,
    });
}

/// Why an answer that broke off is not passed on at all.
fn reason_of(error: &ReadError) -> Reason {
    match error {
        ReadError::Cut => Reason::DrainCut,
        ReadError::Stalled(_) => Reason::UpstreamTimeout,
        ReadError::TooLong(_) => Reason::ResponseTooLarge,
        ReadError::Io(_) | ReadError::Framing(FramingError::Incomplete) => Reason::UpstreamClosed,
        ReadError::Framing(FramingError::BadChunk | FramingError::BadTrailers) => Reason::UpstreamProtocol,
    }
}

/// An answer that is kept, on its way to the client.
pub struct KeptBody {
    spool: Spool,
    /// What the client has not been given yet, where it is known.
    left: Option<u64>,
    /// Takes the rest of it from the target.
    _taking: Option<AbortOnDropHandle<()>>,
    /// Why it broke off, until the client has what came before.
    broken: Option<SpoolError>,
    facts: Rc<Facts>,
}

impl KeptBody {
    fn new(
        spool: Spool,
        length: Option<u64>,
        taking: Option<AbortOnDropHandle<()>>,
        facts: &Rc<Facts>,
    ) -> Self {
        Self { spool, left: length, _taking: taking, broken: None, facts: Rc::clone(facts) }
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(error) = self.broken.take() {
            if matches!(error, SpoolError::Target(ReadError::TooLong(_))) {
                self.facts.note(|known| known.reason = Some(Reason::ResponseTooLarge));
            }
            return Poll::Ready(Some(Err(BodyError::Kept(error).into())));
        }
        if is_enough_for_now(&self.facts.connection, cx) {
            return Poll::Pending;
        }
        match ready!(self.spool.poll_take(cx)) {
            Ok(Next::Data(data)) => {
                self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Ok(Next::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Ok(Next::End) => Poll::Ready(None),
            Err(error) => {
                // An error ends the client's connection at once; what hyper still holds for it goes first.
                self.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    pub fn is_end_stream(&self) -> bool {
        self.spool.is_over()
    }

    pub fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
