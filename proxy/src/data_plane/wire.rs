//! A client's socket, below TLS: the one place where it shows how much a client takes.
//!
//! Above TLS a write may be done although no byte has left, and bytes may leave although nothing is written.

use std::ffi::c_int;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::activity::Activity;

/// Answers smaller than this are over before it matters how fast their client is.
const LARGE_WRITE_BYTES: usize = 16 * 1024;

/// What the kernel keeps for a client that has not acknowledged it (tcp(7), `SIOCOUTQ`).
fn unacknowledged(socket: &TcpStream) -> u64 {
    // SAFETY: `TIOCOUTQ`, of which `SIOCOUTQ` is another name, writes one `int`.
    #[expect(unsafe_code, reason = "neither rustix nor socket2 wraps this request")]
    let held = unsafe {
        let request = rustix::ioctl::Getter::<{ rustix::ioctl::opcode::none(b'T', 0x11) }, c_int>::new();
        rustix::ioctl::ioctl(socket.as_fd(), request)
    };
    // Where it cannot be told, nobody has fallen behind.
    held.map_or(0, |bytes| u64::try_from(bytes).unwrap_or(0))
}

/// Whether the client has closed its sending side, or all of the connection, behind bytes that nobody reads yet.
fn has_left(socket: &TcpStream) -> bool {
    let mut asked = [PollFd::new(socket, PollFlags::RDHUP)];
    // Errors and hang-ups are told unasked. Where it cannot be told, the client is still there.
    poll(&mut asked, Some(&Timespec::default())).is_ok_and(|some| some > 0)
}

pub struct Wire {
    socket: TcpStream,
    activity: Arc<Activity>,
}

impl Drop for Wire {
    /// The kernel would go on offering what a client does not take, and keep it for a minute.
    fn drop(&mut self) {
        if self.activity.is_cut() {
            // Where it cannot be said, the kernel's own patience has to do.
            let _ = self.socket.set_zero_linger();
        }
    }
}

impl Wire {
    pub fn new(socket: TcpStream, activity: Arc<Activity>) -> Self {
        Self { socket, activity }
    }

    fn note(&self, written: Poll<io::Result<usize>>, length: usize) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(n)) => {
                self.activity.has_written(*n, *n == length);
                if *n >= LARGE_WRITE_BYTES {
                    self.activity.kernel_holds(unacknowledged(&self.socket));
                }
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.activity.cannot_write(),
        }
        written
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.note(written, buf.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.note(written, bufs.iter().map(|buf| buf.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.activity.has_to_ask_the_socket() && has_left(&self.socket) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
