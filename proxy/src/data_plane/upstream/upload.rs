//! A request on its way to its target: the head, then the body as the client sends it.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::time::Instant;

use super::request_head::{BodyFraming, write_field};
use super::stream::Stream;
use crate::data_plane::body::RequestBody;
use crate::data_plane::deadline::Deadline;

/// So much is gathered before it is written; a piece that is larger by itself is written as it is.
const GATHERED_BYTES_MAX: usize = 16 * 1024;

/// What is to be written is `out`, then `piece`, then `tail`; `written` counts over all three.
///
/// What has been written is kept until more has to be read from the client: as long as nothing is gone, the
/// request can be sent again.
pub struct Upload {
    out: Vec<u8>,
    /// Where in `out` the fields of the head end that are the same for every target, and where the head ends.
    head: Range<usize>,
    /// A large piece of the body, which is not copied.
    piece: Bytes,
    tail: &'static [u8],
    written: usize,
    body: RequestBody,
    framing: BodyFraming,
    /// Everything has been read from the client.
    ended: bool,
    /// Some of this attempt has been written.
    begun: bool,
    /// Something that has been written is gone.
    forgotten: bool,
    /// Counts pieces read and written.
    moves: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// `RequestProgress::failed` knows why.
    #[error("the client's body broke off")]
    Client,
    #[error("the target takes no more")]
    Target(#[source] io::Error),
}

impl Upload {
    /// `head` lacks its end, which `address` writes; `body` follows it.
    pub fn new(head: Vec<u8>, body: RequestBody, framing: BodyFraming) -> Self {
        let ended = body.is_end_stream();
        Self {
            head: head.len()..head.len(),
            out: head,
            piece: Bytes::new(),
            tail: b"",
            written: 0,
            body,
            framing,
            ended,
            begun: false,
            forgotten: false,
            moves: 0,
        }
    }

    /// Ends the head with the name of the target that it goes to, instead of the one that it was to go to before.
    /// Nothing may have been written for good.
    pub fn address(&mut self, target: &str) {
        put_target(&mut self.out, &mut self.head, target);
    }

    /// Ready when everything is written.
    pub fn poll(&mut self, cx: &mut Context<'_>, stream: &Stream) -> Poll<Result<(), UploadError>> {
        loop {
            // First what has arrived, so that a head and a small body go together: Puma takes both at once.
            let gathered = self.poll_gather(cx)?;
            ready!(self.poll_flush(cx, stream))?;
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            ready!(gathered);
        }
    }

    /// Until everything is written, or nothing has moved for `limit`; `moved` is when something last did.
    pub async fn finish(
        mut self,
        stream: &Stream,
        limit: Duration,
        moved: &Cell<Instant>,
    ) -> Result<(), UploadError> {
        let mut deadline = Deadline::default();
        poll_fn(|cx| {
            let before = self.moves;
            let polled = self.poll(cx, stream);
            if self.moves != before {
                moved.set(Instant::now());
            }
            if polled.is_pending() {
                deadline.set(moved.get() + limit);
                ready!(deadline.poll(cx));
                return Poll::Ready(Err(UploadError::Target(io::ErrorKind::TimedOut.into())));
            }
            polled
        })
        .await
    }

    /// Everything is read and written.
    pub fn is_done(&self) -> bool {
        self.ended && self.written == self.length()
    }

    /// Whether the target may have seen some of it.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Goes back to the beginning, for another connection; `false` if that is not there any more.
    pub fn rewind(&mut self) -> bool {
        (self.written, self.begun) = (0, false);
        !self.forgotten
    }

    /// The buffer of the head, to be used again.
    pub fn into_buffer(self) -> Vec<u8> {
        self.out
    }

    fn length(&self) -> usize {
        self.out.len() + self.piece.len() + self.tail.len()
    }

    /// Reads from the client what fits. Pending while it is the client's turn.
    fn poll_gather(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        while !self.ended && self.piece.is_empty() && self.out.len() < GATHERED_BYTES_MAX {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    self.moves += 1;
                    self.put(frame);
                }
                Some(Err(_)) => return Poll::Ready(Err(UploadError::Client)),
                None => self.end(None),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn put(&mut self, frame: Frame<Bytes>) {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return self.end(frame.into_trailers().ok()),
        };
        // An empty chunk would end the body.
        if !data.is_empty() {
            let is_chunked = self.framing == BodyFraming::Chunked;
            if is_chunked {
                put_size(&mut self.out, data.len());
            }
            let tail: &[u8] = if is_chunked { b"\r\n" } else { b"" };
            if self.out.len() + data.len() <= GATHERED_BYTES_MAX {
                self.out.extend_from_slice(&data);
                self.out.extend_from_slice(tail);
            } else {
                (self.piece, self.tail) = (data, tail);
            }
        }
        if self.framing != BodyFraming::Chunked && self.body.is_end_stream() {
            self.ended = true;
        }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) {
        self.ended = true;
        if self.framing == BodyFraming::Chunked {
            self.out.extend_from_slice(b"0\r\n");
            for (name, value) in trailers.iter().flatten() {
                for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                    self.out.extend_from_slice(part);
                }
            }
            self.out.extend_from_slice(b"\r\n");
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, stream: &Stream) -> Poll<Result<(), UploadError>> {
        while self.written < self.length() {
            let n = if self.piece.is_empty() {
                stream.poll_write(cx, &[IoSlice::new(&self.out[self.written..])])
            } else {
                let (out, rest) = skip(&self.out, self.written);
                let (piece, rest) = skip(&self.piece, rest);
                let (tail, _) = skip(self.tail, rest);
                stream.poll_write(cx, &[out, piece, tail].map(IoSlice::new))
            };
            self.written += ready!(n).map_err(UploadError::Target)?;
            self.begun = true;
            self.moves += 1;
        }
        if !self.ended && self.written > 0 {
            self.out.clear();
            self.piece.clear();
            (self.tail, self.written, self.forgotten) = (b"", 0, true);
        }
        Poll::Ready(Ok(()))
    }
}

/// `bytes` without the first `n`, and how many of `n` are left.
fn skip(bytes: &[u8], n: usize) -> (&[u8], usize) {
    let skipped = n.min(bytes.len());
    (&bytes[skipped..], n - skipped)
}

/// The field by which kamal-proxy tells an app which of its addresses was asked, and the empty line: from `head.start` to
/// `head.end`.
fn put_target(out: &mut Vec<u8>, head: &mut Range<usize>, target: &str) {
    // In the ordinary case this is the first time, and nothing stands behind it.
    let behind = out.split_off(head.end);
    out.truncate(head.start);
    write_field(out, "x-kamal-target", target.as_bytes());
    out.extend_from_slice(b"\r\n");
    head.end = out.len();
    out.extend_from_slice(&behind);
}

fn put_size(out: &mut Vec<u8>, size: usize) {
    use std::io::Write;
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{size:x}\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_targets_name_is_written_anew() {
        let mut out = b"POST / HTTP/1.1\r\nhost: shop.test\r\n".to_vec();
        let mut head = out.len()..out.len();
        put_target(&mut out, &mut head, "127.0.0.1:3000");
        out.extend_from_slice(b"a=1");
        for target in ["unix:/run/a/longer/one.sock", "[::1]:1", "[::1]:1"] {
            put_target(&mut out, &mut head, target);
            let want = format!("POST / HTTP/1.1\r\nhost: shop.test\r\nx-kamal-target: {target}\r\n\r\na=1");
            assert_eq!(String::from_utf8_lossy(&out), want);
        }
    }
}
