//! A client's byte stream under hyper, with what hyper does not do: it refuses bare line feeds in heads,
//! notices clients that leave while they are answered, sends interim responses (1xx), and closes without
//! losing the answer to a request that was not read to its end.

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
use super::head_guard::HeadGuard;
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
    guard: HeadGuard,
    lingering: Option<Lingering>,
}

/// How far to read ahead of hyper.
const AHEAD_BYTES: usize = 4096;

impl<S> ClientIo<S> {
    pub fn new(stream: S, ahead: BytesMut, activity: Arc<Activity>, interim: Arc<Interim>) -> Self {
        Self { stream, ahead, activity, interim, guard: HeadGuard::default(), lingering: None }
    }

    fn inspect(&mut self, bytes: &mut [u8]) {
        if !self.activity.is_http2() {
            if self.activity.is_idle() && !self.activity.head_has_begun() {
                self.guard.restart();
            }
            if let Some(at) = self.guard.find_bare_line_feed(bytes) {
                // NUL makes hyper answer 400 and close, which is what a bare line feed deserves.
                bytes[at] = 0;
            }
        }
        self.activity.has_read();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
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
        if !read.is_empty() {
            this.inspect(read);
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
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
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
        if !this.activity.has_left_unread() {
            return Poll::Ready(Ok(()));
        }
        this.lingering.get_or_insert_default().poll(cx, &mut this.stream).map(Ok)
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

impl Default for Lingering {
    fn default() -> Self {
        Self { timer: Box::pin(tokio::time::sleep(Duration::from_secs(2))), bytes_left: 1 << 20 }
    }
}

impl Lingering {
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
