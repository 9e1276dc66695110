//! The bytes of one connection to a target, over TCP or a unix socket.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// Both directions are used through a shared reference: an upload may go on in one task while the answer is
/// read in another.
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Where a worker's connections read to; what they read is handed on in pieces of its own size.
#[derive(Default)]
pub struct Scratch(BytesMut);

/// Pieces up to this size are copied out of the scratch: a slow client then holds what it was sent, and not the
/// block into which it was read.
const COPIED_BYTES_MAX: usize = 16 * 1024;

impl Scratch {
    fn take(&mut self) -> Bytes {
        let length = self.0.len();
        if length <= COPIED_BYTES_MAX || length <= self.0.capacity() / 4 {
            let piece = Bytes::copy_from_slice(&self.0);
            self.0.clear();
            piece
        } else {
            std::mem::take(&mut self.0).freeze()
        }
    }
}

impl Stream {
    /// Up to `limit` bytes; none at the end of the stream.
    pub fn poll_read(
        &self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
        limit: usize,
    ) -> Poll<io::Result<Bytes>> {
        loop {
            ready!(match self {
                Self::Tcp(tcp) => tcp.poll_read_ready(cx),
                Self::Unix(unix) => unix.poll_read_ready(cx),
            })?;
            scratch.0.reserve(limit);
            let mut room = (&mut scratch.0).limit(limit);
            let read = match self {
                Self::Tcp(tcp) => tcp.try_read_buf(&mut room),
                Self::Unix(unix) => unix.try_read_buf(&mut room),
            };
            match read {
                Ok(_) => return Poll::Ready(Ok(scratch.take())),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Writes some of `pieces`, of which at least one is not empty.
    pub fn poll_write(&self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            ready!(match self {
                Self::Tcp(tcp) => tcp.poll_write_ready(cx),
                Self::Unix(unix) => unix.poll_write_ready(cx),
            })?;
            // One piece, the ordinary case, is cheaper without the list.
            let written = match (self, pieces) {
                (Self::Tcp(tcp), [piece]) => tcp.try_write(piece),
                (Self::Unix(unix), [piece]) => unix.try_write(piece),
                (Self::Tcp(tcp), pieces) => tcp.try_write_vectored(pieces),
                (Self::Unix(unix), pieces) => unix.try_write_vectored(pieces),
            };
            match written {
                Ok(0) => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    /// Whether nothing has come and nobody has closed it: what an idle connection must be to be used again.
    /// Asks the runtime, not the kernel.
    pub fn is_quiet(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let mut byte = [0];
        loop {
            let readable = match self {
                Self::Tcp(tcp) => tcp.poll_read_ready(&mut cx),
                Self::Unix(unix) => unix.poll_read_ready(&mut cx),
            };
            if readable.is_pending() {
                return true;
            }
            // The readiness may be what an earlier read has left.
            let read = match self {
                Self::Tcp(tcp) => tcp.try_read(&mut byte),
                Self::Unix(unix) => unix.try_read(&mut byte),
            };
            if !read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
                return false;
            }
        }
    }
}

/// A stream, with what has been read of it ahead of time.
pub struct Ahead {
    bytes: Bytes,
    stream: Stream,
}

impl Ahead {
    pub fn new(bytes: Bytes, stream: Stream) -> Self {
        Self { bytes, stream }
    }
}

impl AsyncRead for Ahead {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.bytes.has_remaining() {
            let n = this.bytes.len().min(buf.remaining());
            buf.put_slice(&this.bytes.split_to(n));
            return Poll::Ready(Ok(()));
        }
        match &mut this.stream {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Unix(unix) => Pin::new(unix).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Ahead {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Stream::Unix(unix) => Pin::new(unix).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Unix(unix) => Pin::new(unix).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
        }
    }
}
