//! Bodies on their way through: counted, limited, watched for stalls, and tied to what they hold.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use model::reason::Reason;
use tokio::time::Instant;

use super::activity::{Activity, Busy};
use super::admission::StayingPlace;
use super::buffering::responses::KeptBody;
use super::buffering::spool::{Next, Spool, SpoolError};
use super::exchange::{Connection, Facts};
use super::forwarded::client_ip_header;
use super::headers::strip_trailers;
use super::pace::Sender;
use super::upgrade::Farewell;
use super::upstream::connection::{ReadError, Reading};
use super::upstream::framing::{Framing, Piece};
use super::upstream::pool::Lease;
use crate::clock;
use crate::release::InFlight;

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Why a body broke off; hyper passes it on, `forward` reads the reason from `RequestProgress`.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the request body is larger than {0} bytes")]
    TooLarge(u64),
    #[error("the client sends its body too slowly")]
    TooSlow,
    #[error("no progress for {0:?}")]
    Stalled(Duration),
    #[error("the client's body broke off")]
    Client(#[source] hyper::Error),
    #[error("the target's body broke off")]
    Target(#[source] ReadError),
    #[error("a buffered body broke off")]
    Kept(#[source] SpoolError),
}

/// What became of a request body, readable while hyper's client holds the body.
#[derive(Default)]
pub struct RequestProgress {
    pub bytes: Cell<u64>,
    pub ended: Cell<Option<Instant>>,
    /// When the target last took a piece.
    pub moved: Cell<Option<Instant>>,
    pub failed: Cell<Option<Reason>>,
    /// The client has sent all of it, whatever the target has had.
    pub is_whole: Cell<bool>,
}

impl RequestProgress {
    /// Nothing more of it will come from the client.
    pub fn is_read(&self) -> bool {
        self.is_whole.get() || self.ended.get().is_some()
    }
}

/// The client's body on its way to the target.
pub struct RequestBody {
    inner: Option<Source>,
    facts: Rc<Facts>,
    /// An answer may end before the body that it answers; until both have, the connection is busy.
    _busy: Option<Busy>,
    bytes_max: u64,
    sender: Option<Sender>,
}

enum Source {
    Client(Incoming),
    /// It is here already.
    Kept(Spool),
}

impl Source {
    fn is_over(&self) -> bool {
        match self {
            Self::Client(body) => body.is_end_stream(),
            Self::Kept(spool) => spool.is_over(),
        }
    }
}

impl RequestBody {
    pub fn new(inner: Incoming, facts: &Rc<Facts>, bytes_max: u64, idle: Duration) -> Self {
        let inner = (!inner.is_end_stream()).then_some(Source::Client(inner));
        facts.request_body.ended.set(inner.is_none().then_some(facts.arrived));
        let pace = facts.connection.worker.config.limits.sending(idle);
        let sender = inner.is_some().then(|| Sender::new(pace, facts.arrived));
        let busy = inner.is_some().then(|| Busy::new(&facts.connection));
        Self { inner, facts: Rc::clone(facts), _busy: busy, bytes_max, sender }
    }

    /// One that was counted and timed when it came: what is watched from now on is the target.
    pub fn kept(spool: Spool, facts: &Rc<Facts>) -> Self {
        let progress = &facts.request_body;
        progress.ended.set(spool.is_over().then(clock::now));
        progress.moved.set(None);
        let inner = Some(Source::Kept(spool));
        Self { inner, facts: Rc::clone(facts), _busy: None, bytes_max: u64::MAX, sender: None }
    }

    fn poll_kept(&mut self, taken: Result<Next, SpoolError>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let next = match taken {
            Ok(next) => next,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a buffered request is lost");
                return self.fail(Reason::Internal, BodyError::Kept(error));
            }
        };
        let (progress, now) = (&self.facts.request_body, clock::now());
        progress.moved.set(Some(now));
        if self.inner.as_ref().is_none_or(Source::is_over) {
            progress.ended.set(Some(now));
        }
        Poll::Ready(match next {
            Next::Data(data) => Some(Ok(Frame::data(data))),
            Next::Trailers(trailers) => Some(Ok(Frame::trailers(trailers))),
            Next::End => {
                self.inner = None;
                None
            }
        })
    }

    fn fail(&mut self, reason: Reason, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.facts.request_body.failed.set(Some(reason));
        self.inner = None;
        Poll::Ready(Some(Err(error.into())))
    }
}

fn strip_request_trailers(trailers: &mut HeaderMap, facts: &Facts) {
    let worker = &facts.connection.worker;
    let known = facts.known.borrow();
    let policy = known.service.as_ref().map(|service| &service.policy);
    strip_trailers(trailers, client_ip_header(&worker.config, policy));
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let inner = match &mut this.inner {
            None => return Poll::Ready(None),
            Some(Source::Client(inner)) => inner,
            Some(Source::Kept(spool)) => {
                let taken = ready!(spool.poll_take(cx));
                return this.poll_kept(taken);
            }
        };
        let Poll::Ready(frame) = Pin::new(inner).poll_frame(cx) else {
            let Some(sender) = &mut this.sender else { return Poll::Pending };
            ready!(sender.poll_wait(cx));
            return this.fail(Reason::BodyTimeout, BodyError::TooSlow);
        };
        let progress = &this.facts.request_body;
        match frame {
            None => {
                progress.ended.set(Some(clock::now()));
                this.inner = None;
                Poll::Ready(None)
            }
            Some(Err(error)) => this.fail(Reason::BadBody, BodyError::Client(error)),
            Some(Ok(mut frame)) => {
                if let Some(data) = frame.data_ref() {
                    progress.bytes.set(progress.bytes.get() + data.len() as u64);
                    if progress.bytes.get() > this.bytes_max {
                        let error = BodyError::TooLarge(this.bytes_max);
                        return this.fail(Reason::BodyTooLarge, error);
                    }
                } else if let Some(trailers) = frame.trailers_mut() {
                    strip_request_trailers(trailers, &this.facts);
                }
                let now = clock::now();
                progress.moved.set(Some(now));
                if let Some(sender) = &mut this.sender {
                    sender.moved(frame.data_ref().map_or(0, Bytes::len), now);
                }
                // hyper does not ask again behind the last frame of a body of known length.
                if this.inner.as_ref().is_none_or(Source::is_over) {
                    progress.ended.set(Some(now));
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Source::is_over)
    }
}

/// The body of an answer.
pub enum AnswerBody {
    /// Ours, or one that came together with its head.
    Whole(Full<Bytes>),
    /// The target's, as it comes.
    Target(Box<TargetBody>),
    /// The target's, which has come or comes whatever the client does.
    Kept(Box<KeptBody>),
}

impl AnswerBody {
    pub fn empty() -> Self {
        Self::Whole(Full::default())
    }
}

/// The target's body on its way to the client, with what it keeps busy until its end.
pub struct TargetBody {
    framing: Framing,
    /// Goes back to the pool at a clean end, and is closed at any other.
    lease: Option<Lease>,
    keep_alive: bool,
    idle: Option<Duration>,
    /// Only of an event stream.
    event_stream: Option<EventStream>,
    /// Why it broke off, until the client has what came before.
    broken: Option<ReadError>,
    facts: Rc<Facts>,
    /// What had been written to the client before this answer, in bytes.
    written_before: u64,
    /// How much longer it may become.
    bytes_left: u64,
    bytes_max: u64,
}

/// An event stream is closed when its release ends, or when its client leaves.
pub struct EventStream {
    farewell: Farewell,
    _place: StayingPlace,
    activity: Arc<Activity>,
}

impl EventStream {
    pub fn new(farewell: Farewell, place: StayingPlace, activity: &Arc<Activity>) -> Self {
        activity.begin_event_stream();
        Self { farewell, _place: place, activity: Arc::clone(activity) }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.activity.end_event_stream();
    }
}

/// In what portions an answer goes to a client that keeps up, in bytes.
struct Portions {
    read_max: usize,
    /// Handed to hyper before the socket is given anything.
    held_enough: u64,
}

const LARGE: Portions = Portions { read_max: 256 * 1024, held_enough: 32 * 1024 };
/// TLS gains nothing from larger ones, and HTTP/2 buffers whole ones for each stream.
const SMALL: Portions = Portions { read_max: 64 * 1024, held_enough: 16 * 1024 };

impl Portions {
    fn of(connection: &Connection) -> &'static Self {
        let plain = connection.tls.is_none() && !connection.activity.is_http2();
        if plain { &LARGE } else { &SMALL }
    }
}

/// Whether the client has been handed as much as it should have before its socket has taken some; if so, it is looked
/// at again.
pub fn is_enough_for_now(connection: &Connection, cx: &Context<'_>) -> bool {
    let activity = &connection.activity;
    let is_enough = activity.holds(Portions::of(connection).held_enough);
    // Over HTTP/1.1 hyper asks again whenever the connection is polled. Where the client is behind, its socket
    // will wake us; else the flush that follows has room in this poll, and the rest in the next.
    if is_enough && !activity.has_unflushed() {
        cx.waker().wake_by_ref();
    }
    is_enough
}

impl TargetBody {
    /// `idle`: how long the target may be silent; an event stream may be silent for as long as it likes.
    pub fn new(
        framing: Framing,
        keep_alive: bool,
        idle: Duration,
        (mut lease, in_flight): (Lease, InFlight),
        event_stream: Option<EventStream>,
        bytes_max: u64,
        facts: &Rc<Facts>,
    ) -> Self {
        let (in_flight, idle) = match event_stream {
            Some(_) => (in_flight.into_socket(), None),
            None => (in_flight, Some(idle)),
        };
        lease.hold(in_flight);
        let mut body = Self {
            framing,
            lease: Some(lease),
            keep_alive,
            idle,
            event_stream,
            broken: None,
            facts: Rc::clone(facts),
            written_before: facts.connection.activity.written_bytes(),
            bytes_left: bytes_max,
            bytes_max,
        };
        if body.framing.has_ended() {
            body.end();
        }
        body
    }

    /// The whole answer has come.
    fn end(&mut self) {
        if let Some(lease) = self.lease.take().filter(|_| self.keep_alive) {
            lease.give_back();
        }
    }

    /// Whether the answer is still no longer than it may be.
    fn may_pass(&mut self, piece: &Piece) -> bool {
        let Piece::Data(data) = piece else { return true };
        let left = self.bytes_left.checked_sub(data.len() as u64);
        self.bytes_left = left.unwrap_or_default();
        left.is_some()
    }

    fn break_off(&mut self, error: ReadError, cx: &Context<'_>) {
        // An error ends the client's connection at once; what hyper still holds for it goes first.
        self.broken = Some(error);
        cx.waker().wake_by_ref();
    }
}

impl Body for TargetBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Some(event_stream) = &mut this.event_stream
            && event_stream.farewell.poll(cx).is_ready()
        {
            // A clean end: browsers reconnect an event stream by themselves.
            this.lease.take();
            return Poll::Ready(None);
        }
        if let Some(error) = this.broken.take() {
            this.lease.take();
            if matches!(error, ReadError::TooLong(_)) {
                this.facts.note(|known| known.reason = Some(Reason::ResponseTooLarge));
            }
            return Poll::Ready(Some(Err(BodyError::Target(error).into())));
        }
        let connection = &this.facts.connection;
        if is_enough_for_now(connection, cx) {
            return Poll::Pending;
        }
        let uptake = connection.activity.uptake(this.written_before);
        let reading = Reading { idle: this.idle, uptake, bytes_max: Portions::of(connection).read_max };
        let Some(lease) = &mut this.lease else { return Poll::Ready(None) };
        let piece = match ready!(lease.poll_body(cx, &mut this.framing, reading)) {
            Ok(piece) => piece,
            Err(error) => {
                this.break_off(error, cx);
                return Poll::Pending;
            }
        };
        if !this.may_pass(&piece) {
            this.break_off(ReadError::TooLong(this.bytes_max), cx);
            return Poll::Pending;
        }
        if this.framing.has_ended() {
            this.end();
        }
        Poll::Ready(match piece {
            Piece::Data(data) => Some(Ok(Frame::data(data))),
            Piece::Trailers(mut trailers) => {
                strip_trailers(&mut trailers, None);
                Some(Ok(Frame::trailers(trailers)))
            }
            Piece::End | Piece::Wanting => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.lease.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.framing.length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut *self {
            Self::Whole(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Target(body) => Pin::new(&mut **body).poll_frame(cx),
            Self::Kept(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Target(body) => body.is_end_stream(),
            Self::Kept(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Target(body) => body.size_hint(),
            Self::Kept(body) => body.size_hint(),
        }
    }
}
