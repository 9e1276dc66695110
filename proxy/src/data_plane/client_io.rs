//! A client's byte stream under hyper, with what hyper does not do: it notices partial heads and stalls,
//! refuses bare line feeds in heads, and sends interim responses (1xx) that hyper's server cannot.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::config::Limits;

/// What a connection is doing, shared by its stream, its requests and its watchdog.
///
/// All of them run on one thread, but hyper wants streams that could move to another, so the cells are
/// atomics; read and written apart, never read-modify-write, they cost what a `Cell` costs.
pub struct Activity {
    http2: bool,
    /// Times below are in µs after it.
    origin: Instant,
    /// Requests between the end of their head and the end of their response body.
    active: AtomicU64,
    /// Those of them that wait for the app rather than for the client.
    waiting_for_app: AtomicU64,
    /// When the first byte of the next head came; `NEVER` before.
    head_began: AtomicU64,
    idle_since: AtomicU64,
    progress: AtomicU64,
}

const NEVER: u64 = u64::MAX;

/// Why a connection is closed by its watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// The head did not arrive in time.
    Head,
    /// Nothing was asked for.
    KeepAlive,
    /// The client does not read what it asked for.
    Stall,
}

impl Activity {
    pub fn new(http2: bool) -> Self {
        Self {
            http2,
            origin: Instant::now(),
            active: AtomicU64::new(0),
            waiting_for_app: AtomicU64::new(0),
            head_began: AtomicU64::new(NEVER),
            idle_since: AtomicU64::new(0),
            progress: AtomicU64::new(0),
        }
    }

    pub fn begin_request(&self) {
        set(&self.active, get(&self.active) + 1);
        set(&self.head_began, NEVER);
    }

    pub fn end_request(&self) {
        set(&self.active, get(&self.active).saturating_sub(1));
        if get(&self.active) == 0 {
            set(&self.idle_since, self.now());
        }
    }

    pub fn begin_waiting_for_app(&self) {
        set(&self.waiting_for_app, get(&self.waiting_for_app) + 1);
    }

    pub fn end_waiting_for_app(&self) {
        set(&self.waiting_for_app, get(&self.waiting_for_app).saturating_sub(1));
        set(&self.progress, self.now());
    }

    /// When the connection is to be closed unless something happens; `None` while the app has the word.
    pub fn deadline(&self, limits: &Limits) -> Option<(Instant, Expired)> {
        if get(&self.active) == 0 {
            let head = Some(get(&self.head_began)).filter(|began| *began != NEVER && !self.http2);
            return Some(match head {
                Some(began) => (self.at(began) + limits.request_head_timeout, Expired::Head),
                None => (self.at(get(&self.idle_since)) + limits.keep_alive_timeout, Expired::KeepAlive),
            });
        }
        (get(&self.waiting_for_app) == 0)
            .then(|| (self.at(get(&self.progress)) + limits.stall_timeout, Expired::Stall))
    }

    fn has_read(&self) {
        if get(&self.active) > 0 {
            set(&self.progress, self.now());
        } else if !self.head_has_begun() {
            set(&self.head_began, self.now());
        }
    }

    fn has_written(&self) {
        set(&self.progress, self.now());
    }

    fn reads_head(&self) -> bool {
        !self.http2 && get(&self.active) == 0
    }

    fn head_has_begun(&self) -> bool {
        get(&self.head_began) != NEVER
    }

    fn now(&self) -> u64 {
        self.origin.elapsed().as_micros() as u64
    }

    fn at(&self, micros: u64) -> Instant {
        self.origin + Duration::from_micros(micros)
    }
}

fn get(cell: &AtomicU64) -> u64 {
    cell.load(Ordering::Relaxed)
}

fn set(cell: &AtomicU64, value: u64) {
    cell.store(value, Ordering::Relaxed);
}

/// Interim responses on their way to a client. hyper's client reports them from its own task, hence the
/// lock; it is never contended, since that task runs on the same thread.
#[derive(Default)]
pub struct Interim {
    bytes: Mutex<BytesMut>,
    connection: AtomicWaker,
}

impl Interim {
    /// Queues the head of an interim response and wakes the connection to send it.
    pub fn push(&self, head: &[u8]) {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        // An app that sends hints without end gets none of them through.
        if bytes.len() + head.len() <= Limits::REQUEST_HEAD_BYTES {
            bytes.extend_from_slice(head);
        }
        self.connection.wake();
    }
}

/// Finds line feeds without carriage return in request heads.
///
/// RFC 9112 §2.2 lets a server take them as line ends, and hyper does; a proxy in front of another parser
/// that decides otherwise is how requests are smuggled. Behind a head comes a body or the next head, which
/// only the parser can tell apart, so the watch ends with each head and begins anew with the next read that
/// finds no request in progress.
#[derive(Default)]
struct HeadGuard {
    /// How much of `\r\n\r\n` the last bytes were, across reads.
    matched: u8,
    /// A byte other than the line ends that may come before a request (RFC 9112 §2.2).
    begun: bool,
    ended: bool,
}

impl HeadGuard {
    fn restart(&mut self) {
        *self = Self::default();
    }

    /// The position of the first bare line feed of the head.
    fn find_bare_line_feed(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() && !self.ended {
            if self.matched == 0 {
                // Most bytes of a head are neither of the two.
                match memchr::memchr2(b'\r', b'\n', &bytes[at..]) {
                    Some(skip) => {
                        self.begun |= skip > 0;
                        at += skip;
                    }
                    None => return None,
                }
            }
            match (self.matched, bytes[at]) {
                (1 | 3, b'\n') => self.matched += 1,
                (_, b'\n') => return Some(at),
                (2 | 4, b'\r') => self.matched = 3,
                (_, b'\r') => self.matched = 1,
                _ => (self.matched, self.begun) = (0, true),
            }
            self.ended = self.matched == 4 && self.begun;
            at += 1;
        }
        None
    }
}

/// The stream that hyper reads and writes.
pub struct ClientIo<S> {
    stream: S,
    /// Bytes that were read to tell the protocol.
    prefix: BytesMut,
    activity: Arc<Activity>,
    interim: Arc<Interim>,
    guard: HeadGuard,
}

impl<S> ClientIo<S> {
    pub fn new(stream: S, prefix: BytesMut, activity: Arc<Activity>, interim: Arc<Interim>) -> Self {
        Self { stream, prefix, activity, interim, guard: HeadGuard::default() }
    }

    fn inspect(&mut self, bytes: &mut [u8]) {
        if self.activity.reads_head() {
            if !self.activity.head_has_begun() {
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
        if this.prefix.is_empty() {
            std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        } else {
            let n = this.prefix.len().min(buf.remaining());
            buf.put_slice(&this.prefix.split_to(n));
        }
        let read = &mut buf.filled_mut()[before..];
        if !read.is_empty() {
            this.inspect(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> ClientIo<S> {
    /// Sends queued interim responses; they come before anything that hyper writes.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.interim.connection.register(cx.waker());
        let mut bytes = self.interim.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        while !bytes.is_empty() {
            match std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, &bytes))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => bytes.advance(n),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ClientIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_interim(cx))?;
        let written = std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        self.activity.has_written();
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_interim(cx))?;
        let written = std::task::ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        self.activity.has_written();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_interim(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Closes a connection when its `Activity` says so. Polled beside the connection; re-arms its one timer
/// only when that fires or an earlier deadline appears, so that a busy connection pays nothing.
pub struct Watchdog {
    timer: Pin<Box<tokio::time::Sleep>>,
}

impl Watchdog {
    const FAR: Duration = Duration::from_secs(24 * 3600);

    pub fn new(activity: &Activity, limits: &Limits) -> Self {
        let deadline = activity.deadline(limits).map_or_else(|| Instant::now() + Self::FAR, |(at, _)| at);
        Self { timer: Box::pin(tokio::time::sleep_until(deadline)) }
    }

    pub fn poll(&mut self, cx: &mut Context<'_>, activity: &Activity, limits: &Limits) -> Poll<Expired> {
        loop {
            let deadline = activity.deadline(limits);
            if let Some((at, _)) = deadline
                && at < self.timer.deadline()
            {
                self.timer.as_mut().reset(at);
            }
            std::task::ready!(self.timer.as_mut().poll(cx));
            match deadline {
                Some((at, expired)) if at <= Instant::now() => return Poll::Ready(expired),
                Some((at, _)) => self.timer.as_mut().reset(at),
                // The app has the word; look again when its turn may be over.
                None => self.timer.as_mut().reset(Instant::now() + limits.stall_timeout),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_line_feeds_are_found_wherever_reads_end() {
        for (text, bare) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\nbody\nwith\nlines", None),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", Some(14)),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", Some(23)),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", Some(25)),
            ("GET / HTTP/1.1\r\nHost: a\n\nGET /", Some(23)),
            ("\r\n\r\nGET / HTTP/1.1\nHost: a\r\n\r\n", Some(18)),
        ] {
            for split in 0..text.len() {
                let mut guard = HeadGuard::default();
                let (head, tail) = text.as_bytes().split_at(split);
                let found = guard
                    .find_bare_line_feed(head)
                    .or_else(|| guard.find_bare_line_feed(tail).map(|at| at + split));
                assert_eq!(found, bare, "{text:?} split at {split}");
            }
        }
    }

    fn limits() -> Limits {
        let s = Duration::from_secs;
        Limits {
            connections: 10,
            handshake_timeout: s(10),
            request_head_timeout: s(10),
            keep_alive_timeout: s(75),
            stall_timeout: s(30),
            http2_streams: 100,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_follow_what_the_connection_does() {
        let (activity, start) = (Activity::new(false), Instant::now());
        let after = |activity: &Activity| activity.deadline(&limits()).map(|(at, why)| (at - start, why));
        let s = Duration::from_secs;
        assert_eq!(after(&activity), Some((s(75), Expired::KeepAlive)));
        activity.has_read();
        assert_eq!(after(&activity), Some((s(10), Expired::Head)));
        activity.begin_request();
        activity.begin_waiting_for_app();
        assert_eq!(after(&activity), None);
        tokio::time::advance(s(20)).await;
        activity.end_waiting_for_app();
        assert_eq!(after(&activity), Some((s(50), Expired::Stall)));
        tokio::time::advance(s(20)).await;
        activity.has_written();
        assert_eq!(after(&activity), Some((s(70), Expired::Stall)));
        activity.end_request();
        assert_eq!(after(&activity), Some((s(115), Expired::KeepAlive)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_fires_at_the_deadline_of_the_moment() {
        let (activity, limits, start) = (Activity::new(false), limits(), Instant::now());
        let mut watchdog = Watchdog::new(&activity, &limits);
        tokio::time::advance(Duration::from_secs(5)).await;
        activity.has_read();
        let expired = std::future::poll_fn(|cx| watchdog.poll(cx, &activity, &limits)).await;
        assert_eq!((expired, start.elapsed().as_secs()), (Expired::Head, 15));
    }
}
