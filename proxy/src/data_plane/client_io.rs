//! A client's byte stream under hyper, with what hyper does not do: it refuses bare line feeds in heads and
//! trailers and floods of frames, notices clients that leave while they are answered, sends interim responses (1xx),
//! and closes without losing the answer to a request that was not read to its end.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::activity::Activity;
use super::frame_guard::{FLOOD, FrameGuard};
use super::head_guard::{Bare, HeadGuard};
use crate::clock;
use crate::config::Limits;

/// Interim responses on their way to a client: pushed while hyper polls the request, sent by the flush that follows
/// in the same poll. hyper wants streams that could move to another thread, hence the lock.
#[derive(Default)]
pub struct Interim {
    has_some: AtomicBool,
    bytes: Mutex<BytesMut>,
}

impl Interim {
    /// Queues the head of an interim response.
    pub fn push(&self, head: &[u8]) {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        // An app that sends hints without end gets none of them through.
        if bytes.len() + head.len() <= Limits::REQUEST_HEAD_BYTES {
            bytes.extend_from_slice(head);
            self.has_some.store(true, Ordering::Relaxed);
        }
    }
}

/// The stream that hyper reads and writes.
pub struct ClientIo<S> {
    stream: S,
    /// Bytes that were read before hyper asked: to tell the protocol, or to notice a client that leaves.
    ahead: BytesMut,
    activity: Arc<Activity>,
    interim: Arc<Interim>,
    guard: Guard,
    lingering: Option<Lingering>,
}

/// Reads along with hyper, and stops what hyper would take.
enum Guard {
    Heads(HeadGuard),
    Frames(FrameGuard),
    /// A bare line feed was found: nothing behind it is read.
    Refused,
    /// hyper reads what is left of `FLOOD`, and then nothing.
    Flooded(&'static [u8]),
}

impl Guard {
    /// How many of `bytes` hyper may see.
    fn inspect(&mut self, bytes: &mut [u8], activity: &Activity) -> usize {
        match self {
            Self::Heads(heads) => {
                if activity.is_tunnel() {
                    return bytes.len();
                }
                let Some(bare) = heads.find_bare_line_feed(bytes) else { return bytes.len() };
                *self = Self::Refused;
                match bare {
                    // NUL makes hyper answer 400 and close, which is what a bare line feed deserves.
                    Bare::InHead(at) => {
                        bytes[at] = 0;
                        at + 1
                    }
                    // For a body that breaks off `forward` does.
                    Bare::InTrailers(at) => at,
                }
            }
            Self::Frames(frames) => match frames.find_flood(bytes, clock::now()) {
                None => bytes.len(),
                Some(at) => {
                    *self = Self::Flooded(FLOOD);
                    at
                }
            },
            Self::Refused | Self::Flooded(_) => bytes.len(),
        }
    }

    /// What hyper reads instead of what the client sends.
    fn poll_instead(&mut self, buf: &mut ReadBuf<'_>) -> Option<Poll<io::Result<()>>> {
        match self {
            Self::Heads(_) | Self::Frames(_) => None,
            Self::Refused => Some(Poll::Ready(Err(io::ErrorKind::InvalidData.into()))),
            // h2 has the frames that end the connection: whether it writes or not is no matter of reading.
            Self::Flooded(b"") => Some(Poll::Pending),
            Self::Flooded(frames) => {
                let (now, later) = frames.split_at(frames.len().min(buf.remaining()));
                buf.put_slice(now);
                *frames = later;
                Some(Poll::Ready(Ok(())))
            }
        }
    }

    fn has_sent(&mut self, bytes: usize) {
        if let Self::Frames(frames) = self {
            frames.has_sent(bytes);
        }
    }
}

/// How far to read ahead of hyper.
const AHEAD_BYTES: usize = 4096;

impl<S> ClientIo<S> {
    pub fn new(stream: S, ahead: BytesMut, activity: Arc<Activity>, interim: Arc<Interim>) -> Self {
        let guard = match activity.is_http2() {
            true => Guard::Frames(FrameGuard::new(clock::now())),
            false => Guard::Heads(HeadGuard::default()),
        };
        Self { stream, ahead, activity, interim, guard, lingering: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(instead) = this.guard.poll_instead(buf) {
            return instead;
        }
        let before = buf.filled().len();
        if this.ahead.is_empty() {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        } else {
            let n = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead.split_to(n));
            if this.ahead.is_empty() {
                // Its memory would stay for as long as the connection.
                this.ahead = BytesMut::new();
            }
        }
        let read = &mut buf.filled_mut()[before..];
        if read.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let visible = this.guard.inspect(read, &this.activity);
        this.activity.has_read();
        buf.set_filled(before + visible);
        if visible == 0 {
            // Nothing would look like the end of the stream.
            return this.guard.poll_instead(buf).unwrap_or(Poll::Pending);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> ClientIo<S> {
    /// While hyper waits for an answer it does not read, since a client may close its sending side and
    /// still want the answer. That of an event stream may not, and neither may one that waits for a seat or
    /// for the end of a pause.
    fn notice_leaving(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.activity.is_http2() || !self.activity.leaves_with_its_input() {
            return Ok(());
        }
        while self.ahead.len() < AHEAD_BYTES {
            let mut chunk = [0; AHEAD_BYTES];
            let mut buf = ReadBuf::new(&mut chunk);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buf)? {
                Poll::Ready(()) if buf.filled().is_empty() => {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                Poll::Ready(()) => self.ahead.extend_from_slice(buf.filled()),
                Poll::Pending => break,
            }
        }
        self.activity.is_blind(self.ahead.len() >= AHEAD_BYTES);
        Ok(())
    }
}

impl<S: AsyncWrite + Unpin> ClientIo<S> {
    /// Sends queued interim responses; they come before anything that hyper writes.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.interim.has_some.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let mut bytes = self.interim.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        while !bytes.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &bytes))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => bytes.advance(n),
            }
        }
        self.interim.has_some.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        let n = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.guard.has_sent(n);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        let n = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.guard.has_sent(n);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.notice_leaving(cx)?;
        ready!(self.poll_interim(cx))?;
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.activity.has_flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        let lingers = this.activity.has_left_unread() || this.activity.is_http2();
        if !lingers {
            return Poll::Ready(Ok(()));
        }
        let first = this.lingering.is_none();
        let lingering = this.lingering.get_or_insert_default();
        let polled = lingering.poll(cx, &mut this.stream);
        // A client of HTTP/2 may go on sending while it is told why the connection ends; one that does not is not
        // waited for.
        let is_quiet = first && !this.activity.has_left_unread() && lingering.has_found_nothing();
        if is_quiet { Poll::Ready(Ok(())) } else { polled.map(Ok) }
    }
}

/// Reads on for a moment after the last byte was sent.
///
/// Closing a socket with unread input resets the connection, and a reset may overtake the answer on its way
/// to the client (RFC 9112 §9.6): an upload that was refused would look like a broken network.
struct Lingering {
    timer: Pin<Box<Sleep>>,
    bytes_left: usize,
}

const LINGERING_BYTES: usize = 1 << 20;

impl Default for Lingering {
    fn default() -> Self {
        Self { timer: Box::pin(tokio::time::sleep(Duration::from_secs(2))), bytes_left: LINGERING_BYTES }
    }
}

impl Lingering {
    fn has_found_nothing(&self) -> bool {
        self.bytes_left == LINGERING_BYTES
    }

    fn poll(&mut self, cx: &mut Context<'_>, stream: &mut (impl AsyncRead + Unpin)) -> Poll<()> {
        let mut discarded = [0; AHEAD_BYTES];
        while self.bytes_left > 0 && self.timer.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {
                    self.bytes_left = self.bytes_left.saturating_sub(buf.filled().len());
                }
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}
