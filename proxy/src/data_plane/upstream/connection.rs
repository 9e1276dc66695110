//! One connection to a target: a request goes out, an answer comes back, both in the task of the request.
//!
//! There is no task that drives the connection and no channel to it, so an answer costs one wake-up, and dropping
//! the request ends what it was doing.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use model::service::Timeouts;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::framing::{Framing, FramingError, Piece};
use super::response_head::{self, HeadError, ResponseHead};
use super::stream::{Scratch, Stream};
use super::upload::{Upload, UploadError};
use crate::clock;
use crate::data_plane::activity::Uptake;
use crate::data_plane::deadline::Deadline;
use crate::data_plane::exchange::Facts;
use crate::data_plane::interim;
use crate::release::InFlight;

/// Reads begin small, and grow with answers that fill them and clients that keep up.
pub const READ_BYTES_MIN: usize = 16 * 1024;

/// Dropped, it is closed at once, whatever it is doing.
pub struct Connection {
    stream: Rc<Stream>,
    /// What has been read and not been taken.
    unread: Bytes,
    read_bytes: usize,
    deadline: Deadline,
    cut: Rc<Cut>,
    /// Waits for the cut.
    guard: AbortHandle,
    /// Sends the rest of a request whose answer has begun.
    uploading: Option<Uploading>,
    opened: Instant,
    uses: u32,
}

struct Uploading {
    task: AbortHandle,
    progress: Rc<UploadProgress>,
}

/// What is known of an upload that goes on beside its answer.
pub struct UploadProgress {
    pub done: Cell<bool>,
    pub moved: Cell<Instant>,
}

impl UploadProgress {
    pub fn begin() -> Self {
        Self { done: Cell::new(false), moved: Cell::new(Instant::now()) }
    }
}

/// Whether the release of a connection has been cut off, with what to do when it is.
pub struct Cut {
    happened: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
    /// Counted out at the cut.
    held: RefCell<Option<InFlight>>,
}

impl Cut {
    pub fn new(happened: bool) -> Self {
        Self { happened: Cell::new(happened), waiting: RefCell::default(), held: RefCell::default() }
    }

    pub fn is_held_by_a_socket(&self) -> bool {
        self.held.borrow().as_ref().is_some_and(InFlight::is_socket)
    }

    pub fn happen(&self) {
        self.happened.set(true);
        drop(self.held.take());
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }

    fn has_happened(&self, cx: &Context<'_>) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *waiting = Some(cx.waker().clone());
        }
        self.happened.get()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("the release was cut off")]
    Cut,
    #[error("the client's body broke off")]
    Client,
    #[error("no answer in time")]
    Timeout,
    /// `begun`: some of the answer had come.
    #[error("the connection closed before the answer was complete")]
    Closed { begun: bool, source: Option<io::Error> },
    #[error("the answer is not one")]
    Head(#[from] HeadError),
}

/// What an answer is bound to.
pub struct Terms<'t> {
    /// The answer to HEAD has no body.
    pub to_head: bool,
    pub timeouts: &'t Timeouts,
    /// `None`: nobody waits for the answer any more, and the target has the whole request.
    pub facts: Option<&'t Facts>,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the release was cut off")]
    Cut,
    #[error("no progress for {0:?}")]
    Stalled(Duration),
    /// `max-response-body`.
    #[error("the answer is longer than {0} bytes")]
    TooLong(u64),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Framing(#[from] FramingError),
}

/// How an answer's body is to be read.
#[derive(Clone, Copy)]
pub struct Reading {
    /// How long the target may be silent; `None`: for as long as it likes.
    pub idle: Option<Duration>,
    pub uptake: Uptake,
    pub bytes_max: usize,
}

/// What is read for a client before it has shown that it takes anything.
const CREDIT_BYTES: u64 = 64 * 1024;

impl Reading {
    /// How much to read, in bytes, where the last answer to that would be `wanted`. The kernel takes much for a client that
    /// takes nothing, so a client has to acknowledge a quarter before more is read at a time: the last piece
    /// is what a client that stops reading makes us keep.
    fn limit(&self, wanted: usize) -> usize {
        let Uptake { acknowledged, unacknowledged, is_blocked } = self.uptake;
        let earned = (acknowledged * 4).max(CREDIT_BYTES.saturating_sub(unacknowledged));
        let earned = if is_blocked { 0 } else { usize::try_from(earned).unwrap_or(usize::MAX) };
        wanted.min(earned).min(self.bytes_max).max(READ_BYTES_MIN)
    }
}

impl Connection {
    pub fn new(stream: Stream, cut: Rc<Cut>, guard: AbortHandle) -> Self {
        Self {
            stream: Rc::new(stream),
            unread: Bytes::new(),
            read_bytes: READ_BYTES_MIN,
            deadline: Deadline::default(),
            cut,
            guard,
            uploading: None,
            opened: Instant::now(),
            uses: 0,
        }
    }

    pub fn stream(&self) -> &Rc<Stream> {
        &self.stream
    }

    pub fn age(&self, now: Instant) -> Duration {
        now - self.opened
    }

    pub fn uses(&self) -> u32 {
        self.uses
    }

    /// Another request begins.
    pub fn begin(&mut self) {
        self.uses += 1;
        self.read_bytes = READ_BYTES_MIN;
    }

    /// Nothing is left of the last request, and nothing has come since.
    pub fn is_free(&self) -> bool {
        self.is_settled() && !self.cut.happened.get() && self.stream.is_quiet()
    }

    pub fn hold(&mut self, in_flight: InFlight) {
        if !self.cut.happened.get() {
            self.cut.held.replace(Some(in_flight));
        }
    }

    pub fn let_go(&mut self) {
        drop(self.cut.held.take());
    }

    /// The last request and its answer are complete.
    pub fn is_settled(&self) -> bool {
        self.unread.is_empty()
            && self.uploading.as_ref().is_none_or(|uploading| uploading.progress.done.get())
    }

    /// `task` goes on with the request while the answer is read.
    pub fn upload_goes_on(&mut self, task: AbortHandle, progress: Rc<UploadProgress>) {
        self.uploading = Some(Uploading { task, progress });
    }

    /// When the upload last moved, if it is still under way.
    fn upload_moved(&self) -> Option<Instant> {
        let progress = &self.uploading.as_ref()?.progress;
        (!progress.done.get()).then(|| progress.moved.get())
    }

    /// Lets go of an upload that outlives its answer; it ends by itself.
    pub fn leave_upload(&mut self) {
        self.uploading = None;
    }

    /// Sends `upload` and waits for the head of its answer.
    pub fn poll_ask(
        &mut self,
        cx: &mut Context<'_>,
        upload: &mut Upload,
        terms: &Terms<'_>,
        began: Instant,
        scratch: &RefCell<Scratch>,
    ) -> Poll<Result<ResponseHead, AskError>> {
        if self.cut.has_happened(cx) {
            return Poll::Ready(Err(AskError::Cut));
        }
        let mut refused = None;
        if !upload.is_done() {
            match upload.poll(cx, &self.stream) {
                Poll::Ready(Err(UploadError::Client)) => return Poll::Ready(Err(AskError::Client)),
                // Whoever takes no more may have said why.
                Poll::Ready(Err(UploadError::Target(error))) => refused = Some(error),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        loop {
            if !self.unread.is_empty()
                && let Some(head) = response_head::take(&mut self.unread, terms.to_head)?
            {
                if head.status.is_informational() && head.status != http::StatusCode::SWITCHING_PROTOCOLS {
                    if let Some(facts) = terms.facts {
                        interim::pass(&head, facts);
                    }
                    continue;
                }
                self.deadline.clear();
                return Poll::Ready(Ok(head));
            }
            let closed = |source| AskError::Closed { begun: !self.unread.is_empty(), source };
            match self.stream.poll_read(cx, &mut scratch.borrow_mut(), READ_BYTES_MIN) {
                Poll::Ready(Ok(bytes)) if bytes.is_empty() => return Poll::Ready(Err(closed(refused))),
                Poll::Ready(Ok(bytes)) => self.unread = join(&self.unread, bytes),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(closed(Some(error)))),
                Poll::Pending => break,
            }
        }
        self.deadline.set(due(terms, began));
        ready!(self.deadline.poll(cx));
        Poll::Ready(Err(AskError::Timeout))
    }

    /// Exactly `length` bytes, if so many have been read.
    pub fn take_unread(&mut self, length: u64) -> Option<Bytes> {
        let length = usize::try_from(length).ok().filter(|length| *length <= self.unread.len())?;
        Some(self.unread.split_to(length))
    }

    /// The next piece of the answer's body; never `Piece::Wanting`.
    pub fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        framing: &mut Framing,
        reading: Reading,
        scratch: &RefCell<Scratch>,
    ) -> Poll<Result<Piece, ReadError>> {
        if self.cut.has_happened(cx) {
            return Poll::Ready(Err(ReadError::Cut));
        }
        loop {
            let piece = framing.next(&mut self.unread)?;
            if piece != Piece::Wanting {
                return Poll::Ready(Ok(piece));
            }
            let limit = reading.limit(self.read_bytes);
            let Poll::Ready(bytes) = self.stream.poll_read(cx, &mut scratch.borrow_mut(), limit) else {
                let Some(idle) = reading.idle else { return Poll::Pending };
                if !self.deadline.is_set() {
                    self.deadline.set(clock::now() + idle);
                }
                loop {
                    ready!(self.deadline.poll(cx));
                    // A target that takes the client's body may have nothing to say meanwhile.
                    match self.upload_moved().map(|moved| moved + idle).filter(|due| *due > clock::now()) {
                        Some(due) => self.deadline.set(due),
                        None => return Poll::Ready(Err(ReadError::Stalled(idle))),
                    }
                }
            };
            self.unread = bytes?;
            self.deadline.clear();
            if self.unread.is_empty() {
                framing.close()?;
            } else {
                self.read_bytes = if self.unread.len() == limit { limit * 4 } else { limit };
            }
        }
    }

    /// The stream and what was read of it, for a tunnel. `None` while a request is still being sent.
    pub fn into_stream(mut self) -> Option<(Stream, Bytes)> {
        let unread = std::mem::take(&mut self.unread);
        let stream = Rc::clone(&self.stream);
        drop(self);
        Rc::into_inner(stream).map(|stream| (stream, unread))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.let_go();
        self.guard.abort();
        if let Some(uploading) = &self.uploading {
            uploading.task.abort();
        }
    }
}

fn join(front: &Bytes, back: Bytes) -> Bytes {
    if front.is_empty() {
        return back;
    }
    let mut joined = BytesMut::with_capacity(front.len() + back.len());
    joined.extend_from_slice(front);
    joined.extend_from_slice(&back);
    joined.freeze()
}

/// How long a target may take none of a body: while the client is waited for, the body's own timer runs, and strikes
/// earlier.
pub fn upload_limit(timeouts: &Timeouts) -> Duration {
    timeouts.body_idle.max(timeouts.response_head) * 2
}

/// The limit runs from the end of the request body: a long upload is not the target's slowness, and has a limit of
/// its own on progress.
fn due(terms: &Terms<'_>, began: Instant) -> Instant {
    let response_head = terms.timeouts.response_head;
    let Some(body) = terms.facts.map(|facts| &facts.request_body) else { return began + response_head };
    match body.ended.get() {
        Some(ended) => ended.max(began) + response_head,
        None => body.moved.get().unwrap_or(began) + upload_limit(terms.timeouts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_earns_larger_reads() {
        const KIB: u64 = 1024;
        for (acknowledged, unacknowledged, is_blocked, wanted_kib, want_kib) in [
            // Nothing is known yet: a little on credit.
            (0, 0, false, 16, 16),
            (0, 0, false, 256, 64),
            // The kernel has taken all the credit, and the client nothing.
            (0, 64, false, 256, 16),
            (0, 400, false, 256, 16),
            // Slow, but it reads.
            (8, 80, false, 256, 32),
            (64, 16, false, 256, 256),
            (1_000, 0, false, 64, 64),
            (1_000, 0, false, 1_024, 256),
            // It did read, and has stopped.
            (1_000, 500, true, 256, 16),
        ] {
            let uptake =
                Uptake { acknowledged: acknowledged * KIB, unacknowledged: unacknowledged * KIB, is_blocked };
            let reading = Reading { idle: None, uptake, bytes_max: 256 * 1024 };
            assert_eq!(reading.limit(wanted_kib * 1024), want_kib * 1024, "{uptake:?}");
        }
    }
}
