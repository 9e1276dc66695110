//! Visitors of HTTP/2 in a closed loop: some connections, each with so many streams at a time.

use crate::failure::{Failure, Outcome};
use crate::frames::{self, Frame};
use crate::origin::Body;
use crate::poll::{Owner, Poll, Token};
use crate::transport::{Dial, Transport};
use crate::visitor::{HeaderBlocks, Visitor};
use crate::world::Load;

const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;

pub(crate) struct Http2 {
    connections: Vec<Connection>,
    scratch: Vec<u8>,
    completed: u64,
}

struct Connection {
    transport: Transport,
    blocks: HeaderBlocks,
    /// What has come but is not a whole frame yet.
    partial: Vec<u8>,
    out: Vec<u8>,
    streams: Vec<Stream>,
    next_stream: u32,
    body_bytes: usize,
    /// Since the connection's window was opened again.
    received: u32,
    is_checked: bool,
}

struct Stream {
    id: u32,
    has_status: bool,
    received: usize,
}

impl Http2 {
    pub(crate) fn start(
        poll: &Poll,
        dial: &Dial,
        body: Body,
        connections: usize,
        streams: usize,
    ) -> Outcome<Self> {
        let open = |number| {
            let transport = Transport::open(dial, poll, Token::new(Owner::Load, number))?;
            let mut connection = Connection {
                transport,
                blocks: Visitor::new(number).http2(body),
                partial: Vec::new(),
                out: frames::opening(STREAM_WINDOW, CONNECTION_WINDOW),
                streams: Vec::with_capacity(streams),
                next_stream: 1,
                body_bytes: body.bytes(),
                received: 0,
                is_checked: false,
            };
            (0..streams).for_each(|_| connection.ask());
            connection.send(poll)?;
            Ok(connection)
        };
        let connections = (0..connections).map(open).collect::<Outcome<Vec<_>>>()?;
        Ok(Self { connections, scratch: vec![0; 256 * 1024], completed: 0 })
    }
}

impl Load for Http2 {
    fn on_event(&mut self, poll: &Poll, index: usize) -> Outcome<()> {
        let connection = &mut self.connections[index];
        let partial = &mut connection.partial;
        let is_open = connection.transport.receive(&mut self.scratch, |bytes| {
            partial.extend_from_slice(bytes);
            Ok(())
        })?;
        if !is_open {
            return Err(Failure::new("a proxy closed an HTTP/2 connection"));
        }
        self.completed += connection.take_frames()?;
        connection.send(poll)
    }

    fn completed(&self) -> u64 {
        self.completed
    }
}

impl Connection {
    fn ask(&mut self) {
        let block = if self.next_stream == 1 { &self.blocks.first } else { &self.blocks.others };
        let flags = frames::END_HEADERS | frames::END_STREAM;
        frames::push(&mut self.out, frames::HEADERS, flags, self.next_stream, block);
        self.streams.push(Stream { id: self.next_stream, has_status: false, received: 0 });
        self.next_stream += 2;
    }

    fn send(&mut self, poll: &Poll) -> Outcome<()> {
        if self.out.is_empty() {
            return self.transport.flush(poll);
        }
        self.transport.send(poll, &self.out)?;
        self.out.clear();
        Ok(())
    }

    /// Answers that ended; each is followed by the next request.
    fn take_frames(&mut self) -> Outcome<u64> {
        let bytes = std::mem::take(&mut self.partial);
        let mut rest = &bytes[..];
        let mut ended = 0;
        while let Some((frame, after)) = Frame::split(rest) {
            rest = after;
            if self.take(&frame)? {
                ended += 1;
                self.ask();
            }
        }
        self.partial.extend_from_slice(rest);
        if self.received > CONNECTION_WINDOW / 2 {
            frames::push(&mut self.out, frames::WINDOW_UPDATE, 0, 0, &self.received.to_be_bytes());
            self.received = 0;
        }
        Ok(ended)
    }

    /// True when the frame ended an answer.
    fn take(&mut self, frame: &Frame<'_>) -> Outcome<bool> {
        match frame.kind {
            frames::DATA => self.data(frame),
            frames::HEADERS => self.headers(frame),
            frames::SETTINGS if frame.flags & frames::ACK == 0 => self.settings(frame).map(|()| false),
            frames::PING if frame.flags & frames::ACK == 0 => {
                frames::push(&mut self.out, frames::PING, frames::ACK, 0, frame.payload);
                Ok(false)
            }
            frames::RST_STREAM | frames::GOAWAY => Err(Failure::new(format!(
                "a proxy ended an HTTP/2 stream or connection: type {}, {:x?}",
                frame.kind, frame.payload
            ))),
            _ => Ok(false),
        }
    }

    fn settings(&mut self, frame: &Frame<'_>) -> Outcome<()> {
        if !std::mem::replace(&mut self.is_checked, true) {
            self.transport.check_handshake(b"h2")?;
        }
        for (id, value) in frame.settings() {
            let is_too_small = match id {
                frames::TABLE_SIZE => value < 4096,
                frames::MAX_STREAMS => (value as usize) < self.streams.len(),
                _ => false,
            };
            if is_too_small {
                return Err(Failure::new(format!("a proxy allows too little: SETTINGS {id} is {value}")));
            }
        }
        frames::push(&mut self.out, frames::SETTINGS, frames::ACK, 0, &[]);
        Ok(())
    }

    fn headers(&mut self, frame: &Frame<'_>) -> Outcome<bool> {
        let block = frame.content()?;
        let stream = self.stream(frame)?;
        // A second block has trailers.
        if !stream.has_status && !frames::says_200(block) {
            return Err(Failure::new(format!("a proxy did not answer 200 over HTTP/2: {block:x?}")));
        }
        stream.has_status = true;
        self.ended(frame)
    }

    fn data(&mut self, frame: &Frame<'_>) -> Outcome<bool> {
        // Padding counts against the window, too.
        self.received += u32::try_from(frame.payload.len()).expect("24 bits");
        let length = frame.content()?.len();
        self.stream(frame)?.received += length;
        self.ended(frame)
    }

    fn stream(&mut self, frame: &Frame<'_>) -> Outcome<&mut Stream> {
        let found = self.streams.iter_mut().find(|stream| stream.id == frame.stream);
        found.ok_or_else(|| {
            Failure::new(format!("a proxy answered on stream {}, which is over", frame.stream))
        })
    }

    fn ended(&mut self, frame: &Frame<'_>) -> Outcome<bool> {
        if frame.flags & frames::END_STREAM == 0 {
            return Ok(false);
        }
        let body_bytes = self.body_bytes;
        let stream = self.stream(frame)?;
        if stream.received != body_bytes || !stream.has_status {
            return Err(Failure::new(format!("a proxy sent {} of {body_bytes} bytes", stream.received)));
        }
        self.streams.retain(|stream| stream.id != frame.stream);
        Ok(true)
    }
}
