//! HTTP/2 (RFC 9113) frame by frame, over prior knowledge: what a library would refuse to send.

use std::net::SocketAddr;
use std::time::Instant;

use crate::raw::Raw;
use crate::wait::PATIENCE;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;

    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;

    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, Self::DATA | Self::HEADERS) && self.flags & Self::END_STREAM != 0
    }

    /// The code of RST_STREAM or GOAWAY.
    pub fn error(&self) -> Option<u32> {
        let at = match self.kind {
            Self::RST_STREAM => 0,
            Self::GOAWAY => 4,
            _ => return None,
        };
        Some(number(self.payload.get(at..at + 4)?))
    }

    /// The last stream that a GOAWAY still serves.
    pub fn last_stream(&self) -> Option<u32> {
        (self.kind == Self::GOAWAY).then(|| number(&self.payload[..4]))
    }

    /// The status of HEADERS; `None` for trailers and other frames.
    pub fn status(&self) -> Option<u16> {
        let mut block = (self.kind == Self::HEADERS).then_some(&self.payload[..])?;
        // Changes of the table's size come first (RFC 7541 §6.3).
        while block.first().is_some_and(|first| first & 0xe0 == 0x20) {
            block = &block[1..];
        }
        let (first, rest) = block.split_first()?;
        match *first {
            // RFC 7541, appendix A.
            indexed @ 0x88..=0x8e => Some([200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)]),
            // A literal whose name is `:status`, with or without indexing.
            0x48..=0x4e | 0x08..=0x0e | 0x18..=0x1e => status_of(rest),
            _ => None,
        }
    }
}

fn status_of(text: &[u8]) -> Option<u16> {
    let (length, rest) = text.split_first()?;
    let bytes = rest.get(..usize::from(length & 0x7f))?;
    if length & 0x80 == 0 {
        return std::str::from_utf8(bytes).ok()?.parse().ok();
    }
    // Huffman codes of digits (RFC 7541, appendix B): 0, 1 and 2 have five bits, the others six.
    let bits = bytes.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
    let (mut left, mut status) = (bytes.len() * 8, 0);
    for _ in 0..3 {
        let five = bits >> left.checked_sub(5)? & 0x1f;
        let digit = if five < 3 {
            left -= 5;
            five
        } else {
            left = left.checked_sub(6)?;
            (bits >> left & 0x3f) - 0x16
        };
        status = status * 10 + u16::try_from(digit).ok()?;
    }
    Some(status)
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// A frame as bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("frames of a story are short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Names and values of a header block.
pub type Fields<'f> = &'f [(&'f str, &'f str)];

/// HEADERS, and CONTINUATION if one frame is not enough.
pub fn headers(stream: u32, flags: u8, fields: Fields<'_>) -> Vec<u8> {
    headers_of_block(stream, flags, &block(fields))
}

/// The same with a header block of the story's own making.
pub fn headers_of_block(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    let mut pieces = block.chunks(FRAME_BYTES_MAX).peekable();
    let mut bytes = Vec::new();
    let (mut kind, mut flags) = (Frame::HEADERS, flags);
    while let Some(piece) = pieces.next() {
        let end = if pieces.peek().is_none() { Frame::END_HEADERS } else { 0 };
        bytes.extend(frame(kind, flags | end, stream, piece));
        (kind, flags) = (Frame::CONTINUATION, 0);
    }
    bytes
}

/// What every peer takes (RFC 9113 §4.2).
const FRAME_BYTES_MAX: usize = 16_384;

/// Literals that no table remembers (RFC 7541 §6.2.2).
pub fn block(fields: Fields<'_>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            put_length(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// An integer with a prefix of seven bits (RFC 7541 §5.1).
fn put_length(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(0x7f) else { return block.push(length as u8) };
    block.push(0x7f);
    while rest >= 0x80 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

/// A client that has said hello.
pub struct Frames {
    raw: Raw,
    read: usize,
    /// All frames so far.
    pub seen: Vec<Frame>,
}

impl Frames {
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        Self::connect_with(address, &[])
    }

    /// With these settings.
    #[track_caller]
    pub fn connect_with(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        Self::over(Raw::connect(address), settings)
    }

    pub fn over(mut raw: Raw, settings: &[(u16, u32)]) -> Self {
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").send(frame(Frame::SETTINGS, 0, 0, &payload));
        Self { raw, read: 0, seen: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.raw.send(bytes);
        self
    }

    /// Sends much and reads meanwhile; false if the peer hung up.
    pub fn flood(&mut self, bytes: &[u8]) -> bool {
        let open = self.raw.flood(bytes);
        self.split();
        open
    }

    /// Reads what comes within a moment; false at the end of the connection.
    pub fn read_some(&mut self) -> bool {
        let open = self.raw.read_some();
        self.split();
        open
    }

    /// Reads until a frame satisfies `wanted`, or to the end of the connection.
    #[track_caller]
    pub fn read_until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        let deadline = Instant::now() + PATIENCE;
        let mut looked_at = 0;
        loop {
            if let Some(frame) = self.seen[looked_at..].iter().find(|frame| wanted(frame)) {
                return Some(frame.clone());
            }
            looked_at = self.seen.len();
            assert!(Instant::now() < deadline, "waited {PATIENCE:?}, got {:?}", self.seen);
            let open = self.read_some();
            if !open && self.seen.len() == looked_at {
                return None;
            }
        }
    }

    /// The end of a stream, by its answer's last frame or by a reset; or the GOAWAY that ends all; or `None`, at the
    /// end of a connection that said nothing.
    #[track_caller]
    pub fn end_of(&mut self, stream: u32) -> Option<Frame> {
        self.read_until(|frame| {
            let is_reset = frame.kind == Frame::RST_STREAM;
            (frame.stream == stream && (frame.ends_stream() || is_reset))
                || (frame.kind == Frame::GOAWAY && frame.error() != Some(0))
        })
    }

    /// Reads to the end of the connection; the error of its GOAWAY.
    #[track_caller]
    pub fn read_to_end(&mut self) -> Option<u32> {
        self.read_until(|_| false);
        self.seen.iter().filter(|frame| frame.kind == Frame::GOAWAY).filter_map(Frame::error).next_back()
    }

    pub fn status_of(&self, stream: u32) -> Option<u16> {
        self.seen.iter().filter(|frame| frame.stream == stream).find_map(Frame::status)
    }

    pub fn body_of(&self, stream: u32) -> String {
        let data = self.seen.iter().filter(|frame| frame.stream == stream && frame.kind == Frame::DATA);
        let bytes: Vec<u8> = data.flat_map(|frame| frame.payload.clone()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn split(&mut self) {
        loop {
            let bytes = &self.raw.bytes()[self.read..];
            let Some((head, rest)) = bytes.split_at_checked(9) else { return };
            let Some(payload) = rest.get(..number(&head[..3]) as usize) else { return };
            let stream = number(&head[5..9]) & 0x7fff_ffff;
            let frame = Frame { kind: head[3], flags: head[4], stream, payload: payload.to_vec() };
            self.read += 9 + payload.len();
            // A ping comes back as it came; settings are taken as they are.
            let echo = match (frame.kind, frame.flags & Frame::ACK) {
                (Frame::PING, 0) => &frame.payload[..],
                (Frame::SETTINGS, 0) => b"",
                _ => {
                    self.seen.push(frame);
                    continue;
                }
            };
            self.raw.send(self::frame(frame.kind, Frame::ACK, 0, echo));
            self.seen.push(frame);
        }
    }
}
