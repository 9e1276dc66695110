//! A stream that remembers its first bytes and how it ended: what is left to go by when an answer is no HTTP.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const FIRST_BYTES_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum End {
    #[default]
    Open,
    Closed,
    Reset,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Trace {
    /// At most `FIRST_BYTES_MAX`.
    pub(super) first: Vec<u8>,
    pub(super) end: End,
}

/// The trace of a stream that someone else reads.
pub(super) struct Shared(Arc<Mutex<Trace>>);

impl Shared {
    pub(super) fn take(&self) -> Trace {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub(super) struct Recording<S> {
    inner: S,
    trace: Arc<Mutex<Trace>>,
}

impl<S> Recording<S> {
    pub(super) fn new(inner: S) -> (Self, Shared) {
        let trace = Arc::new(Mutex::new(Trace::default()));
        (Self { inner, trace: Arc::clone(&trace) }, Shared(trace))
    }

    fn note(&self, bytes: &[u8]) {
        let mut trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner);
        let room = FIRST_BYTES_MAX - trace.first.len();
        trace.first.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn note_end(&self, end: End) {
        self.trace.lock().unwrap_or_else(PoisonError::into_inner).end = end;
    }

    fn note_error(&self, error: &io::Error) {
        let reset = matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe
        );
        self.note_end(if reset { End::Reset } else { End::Closed });
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Recording<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = ready!(Pin::new(&mut self.inner).poll_read(context, buffer));
        match &result {
            Ok(()) if buffer.filled().len() > before => self.note(&buffer.filled()[before..]),
            Ok(()) if buffer.remaining() > 0 => self.note_end(End::Closed),
            Ok(()) => {}
            Err(error) => self.note_error(error),
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Recording<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.inner).poll_write(context, bytes));
        if let Err(error) = &result {
            self.note_error(error);
        }
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
