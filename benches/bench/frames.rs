//! The few frames of HTTP/2 (RFC 9113) that a bench needs, written and taken apart.

use crate::failure::{Failure, Outcome};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

const HEAD_BYTES: usize = 9;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) struct Frame<'b> {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: &'b [u8],
}

impl<'b> Frame<'b> {
    /// The first frame of `bytes` and what follows it; `None` while it has not come whole.
    pub(crate) fn split(bytes: &'b [u8]) -> Option<(Self, &'b [u8])> {
        let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (payload, rest) = rest.split_at_checked(length)?;
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        Some((Self { kind: head[3], flags: head[4], stream, payload }, rest))
    }

    /// Of a DATA or HEADERS frame: the payload without padding and priority.
    pub(crate) fn content(&self) -> Outcome<&'b [u8]> {
        let mut content = self.payload;
        let mut padding = 0;
        if self.flags & PADDED != 0 {
            let (length, rest) = content.split_first().ok_or_else(malformed)?;
            (padding, content) = (usize::from(*length), rest);
        }
        if self.kind == HEADERS && self.flags & PRIORITY != 0 {
            content = content.get(5..).ok_or_else(malformed)?;
        }
        content.get(..content.len().checked_sub(padding).ok_or_else(malformed)?).ok_or_else(malformed)
    }

    /// Of a SETTINGS frame.
    pub(crate) fn settings(&self) -> impl Iterator<Item = (u16, u32)> + use<'b> {
        self.payload.chunks_exact(6).map(|one| {
            (u16::from_be_bytes([one[0], one[1]]), u32::from_be_bytes([one[2], one[3], one[4], one[5]]))
        })
    }
}

fn malformed() -> Failure {
    Failure::new("a proxy sent a malformed HTTP/2 frame")
}

/// Whether a header block begins with `:status: 200`, perhaps after changes of the table's size.
pub(crate) fn says_200(mut block: &[u8]) -> bool {
    const SIZE_UPDATE: u8 = 0x20;
    while let Some((first, rest)) = block.split_first() {
        if first & 0xe0 != SIZE_UPDATE {
            return *first == 0x88;
        }
        block = rest;
        if first & 0x1f == 0x1f {
            let Some(end) = block.iter().position(|byte| byte & 0x80 == 0) else { return false };
            block = &block[end + 1..];
        }
    }
    false
}

pub(crate) fn push(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("frames of a bench are short").to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

pub(crate) const TABLE_SIZE: u16 = 1;
pub(crate) const MAX_STREAMS: u16 = 3;
const ENABLE_PUSH: u16 = 2;
const INITIAL_WINDOW: u16 = 4;

/// What a connection begins with: no push, and windows that never stop a bench.
pub(crate) fn opening(stream_window: u32, connection_window: u32) -> Vec<u8> {
    let mut out = PREFACE.to_vec();
    let mut settings = Vec::new();
    for (id, value) in [(ENABLE_PUSH, 0), (INITIAL_WINDOW, stream_window)] {
        settings.extend_from_slice(&u16::to_be_bytes(id));
        settings.extend_from_slice(&u32::to_be_bytes(value));
    }
    push(&mut out, SETTINGS, 0, 0, &settings);
    push(&mut out, WINDOW_UPDATE, 0, 0, &connection_window.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_went() {
        let mut bytes = Vec::new();
        push(&mut bytes, DATA, END_STREAM, 7, b"hello");
        push(&mut bytes, PING, 0, 0, &[1; 8]);
        for cut in 0..14 {
            assert!(Frame::split(&bytes[..cut]).is_none(), "{cut}");
        }
        let (first, rest) = Frame::split(&bytes).unwrap();
        assert_eq!((first.kind, first.flags, first.stream), (DATA, END_STREAM, 7));
        assert_eq!(first.content().unwrap(), b"hello");
        let (second, rest) = Frame::split(rest).unwrap();
        assert_eq!((second.kind, second.payload.len(), rest.len()), (PING, 8, 0));
    }

    #[test]
    fn padding_and_priority_are_no_content() {
        for (kind, flags, payload, wants) in [
            (DATA, PADDED, &[2, b'a', 0, 0][..], Some(&b"a"[..])),
            (HEADERS, PADDED | PRIORITY, &[1, 0, 0, 0, 0, 9, 0x88, 0], Some(&[0x88])),
            (DATA, PADDED, &[9, b'a'], None),
            (DATA, PADDED, &[], None),
        ] {
            let frame = Frame { kind, flags, stream: 1, payload };
            assert_eq!(frame.content().ok(), wants, "{payload:?}");
        }
    }

    #[test]
    fn status() {
        for (block, wants) in [
            (&[0x88, 0x40][..], true),
            (&[0x20, 0x88], true),
            (&[0x3f, 0xe1, 0x1f, 0x20, 0x88], true),
            (&[0x3f, 0xe1], false),
            (&[0x8d], false),
            (&[], false),
        ] {
            assert_eq!(says_200(block), wants, "{block:x?}");
        }
    }
}
