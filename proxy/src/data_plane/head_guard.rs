//! Finds line feeds without carriage return where a request is framed: in heads and in trailer sections.
//!
//! RFC 9112 §2.2 lets a server take them as line ends, and hyper does; a proxy in front of another parser
//! that decides otherwise is how requests are smuggled. In trailers it is worse: behind a bare line feed hyper
//! looks on for the empty line, and swallows the next request on the way. The guard reads along: a head, then the
//! body that its fields announce, then the next head. A tunnel is not for it.

/// Where in the stream the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Head,
    /// So many bytes of it are left.
    Body(u64),
    /// In the line that begins a chunk (RFC 9112 §7.1).
    ChunkSize {
        size: u64,
        in_digits: bool,
    },
    /// So many bytes of a chunk and its line end are left.
    Chunk(u64),
    Trailers,
    /// Behind a request that hyper or `hygiene` refuses, and whose connection closes.
    Unknown,
}

const CHUNKED: Place = Place::ChunkSize { size: 0, in_digits: true };

/// A line feed that stands alone, by its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bare {
    InHead(usize),
    InTrailers(usize),
}

pub struct HeadGuard {
    place: Place,
    /// How much of `\r\n\r\n` the last bytes were, across reads.
    matched: u8,
    /// A byte other than the line ends that may come before a request (RFC 9112 §2.2).
    begun: bool,
    /// The beginning of the present line, lower case: enough to know the fields that matter.
    line: [u8; 40],
    line_len: usize,
    /// What the fields so far say of what comes behind the head.
    behind: Place,
}

impl Default for HeadGuard {
    fn default() -> Self {
        Self {
            place: Place::Head,
            matched: 0,
            begun: false,
            line: [0; 40],
            line_len: 0,
            behind: Place::Body(0),
        }
    }
}

impl HeadGuard {
    /// The first bare line feed; what comes behind it has not been looked at.
    pub fn find_bare_line_feed(&mut self, bytes: &[u8]) -> Option<Bare> {
        let mut at = 0;
        while at < bytes.len() {
            match self.place {
                Place::Unknown => return None,
                Place::Body(0) => *self = Self::default(),
                Place::Chunk(0) => self.place = CHUNKED,
                Place::Body(left) => {
                    let skip = left.min((bytes.len() - at) as u64);
                    self.place = Place::Body(left - skip);
                    at += skip as usize;
                }
                Place::Chunk(left) => {
                    let skip = left.min((bytes.len() - at) as u64);
                    self.place = Place::Chunk(left - skip);
                    at += skip as usize;
                }
                Place::ChunkSize { size, in_digits } => {
                    self.place = self.step_in_size(bytes[at], size, in_digits);
                    at += 1;
                }
                Place::Head | Place::Trailers => {
                    let (text, end) = until_line_end(&bytes[at..]);
                    self.take_text(text);
                    at += text.len();
                    let Some(end) = end else { break };
                    let in_head = self.place == Place::Head;
                    if self.take_line_end(end) {
                        return Some(if in_head { Bare::InHead(at) } else { Bare::InTrailers(at) });
                    }
                    at += 1;
                }
            }
        }
        None
    }

    /// What is no chunk's beginning hyper refuses, so it is enough to find the end of one that is.
    fn step_in_size(&mut self, byte: u8, size: u64, in_digits: bool) -> Place {
        let digit = (byte as char).to_digit(16).filter(|_| in_digits);
        match (byte, digit) {
            (b'\n', _) if size == 0 => {
                // The line end of this line is the first half of the empty line.
                (self.matched, self.begun, self.line_len) = (2, true, 0);
                Place::Trailers
            }
            (b'\n', _) => size.checked_add(2).map_or(Place::Unknown, Place::Chunk),
            (_, Some(digit)) => match size.checked_mul(16) {
                Some(size) => Place::ChunkSize { size: size | u64::from(digit), in_digits },
                None => Place::Unknown,
            },
            (_, None) => Place::ChunkSize { size, in_digits: false },
        }
    }

    fn take_text(&mut self, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        (self.matched, self.begun) = (0, true);
        let n = text.len().min(self.line.len() - self.line_len);
        let kept = &mut self.line[self.line_len..self.line_len + n];
        kept.copy_from_slice(&text[..n]);
        kept.make_ascii_lowercase();
        self.line_len += n;
    }

    /// Whether `end` is a line feed that stands alone.
    fn take_line_end(&mut self, end: u8) -> bool {
        match (self.matched, end) {
            (1 | 3, b'\n') => self.matched += 1,
            (_, b'\n') => return true,
            (2 | 4, b'\r') => self.matched = 3,
            (_, b'\r') => self.matched = 1,
            _ => unreachable!("until_line_end finds these two only"),
        }
        match (self.matched, self.place) {
            (2, Place::Head) => return self.end_field(),
            (2, _) => self.line_len = 0,
            (4, Place::Head) if self.begun => self.place = self.behind,
            (4, Place::Trailers) => *self = Self::default(),
            _ => {}
        }
        false
    }

    /// Whether the field hides what it says behind more white space than anybody writes.
    fn end_field(&mut self) -> bool {
        let line = &self.line[..std::mem::take(&mut self.line_len)];
        let is_length = line.starts_with(b"content-length:");
        if !is_length && !line.starts_with(b"transfer-encoding:") {
            return false;
        }
        let value = line[if is_length { 15 } else { 18 }..].trim_ascii();
        let says = if is_length {
            let digits = std::str::from_utf8(value).ok();
            digits.and_then(|digits| digits.parse().ok()).map_or(Place::Unknown, Place::Body)
        } else if value == b"chunked" {
            CHUNKED
        } else {
            Place::Unknown
        };
        // Twice the same is once; all else that is said twice is refused, or closes the connection.
        let agrees = self.behind == Place::Body(0) || (is_length && self.behind == says);
        self.behind = if agrees { says } else { Place::Unknown };
        line.len() == self.line.len()
    }
}

fn until_line_end(bytes: &[u8]) -> (&[u8], Option<u8>) {
    match memchr::memchr2(b'\r', b'\n', bytes) {
        Some(at) => (&bytes[..at], Some(bytes[at])),
        None => (bytes, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const BARE: &str = "GET / HTTP/1.1\nHost: a\r\n\r\n";

    fn position(found: Bare) -> (usize, bool) {
        match found {
            Bare::InHead(at) => (at, false),
            Bare::InTrailers(at) => (at, true),
        }
    }

    /// The position of the bare line feed and whether it is in trailers, or none, however the reads fall.
    fn find(text: &str) -> Option<(usize, bool)> {
        let whole = HeadGuard::default().find_bare_line_feed(text.as_bytes()).map(position);
        for split in 0..text.len() {
            let mut guard = HeadGuard::default();
            let (head, tail) = text.as_bytes().split_at(split);
            let found = guard.find_bare_line_feed(head).map(position).or_else(|| {
                guard.find_bare_line_feed(tail).map(position).map(|(at, trailers)| (at + split, trailers))
            });
            assert_eq!(found, whole, "{text:?} split at {split}");
        }
        whole
    }

    #[test]
    fn heads() {
        for (text, bare) in [
            (HEAD, None),
            (BARE, Some(14)),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", Some(23)),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", Some(25)),
            ("GET / HTTP/1.1\r\nHost: a\n\nGET /", Some(23)),
            ("\r\n\r\nGET / HTTP/1.1\nHost: a\r\n\r\n", Some(18)),
        ] {
            assert_eq!(find(text), bare.map(|at| (at, false)), "{text:?}");
        }
    }

    #[test]
    fn bodies_are_skipped_and_pipelined_heads_are_not() {
        let post = |fields: &str, rest: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n{rest}");
        let chunked = "Transfer-Encoding: chunked\r\n";
        let found_in_second = |fields: &str, body: &str| {
            let text = post(fields, &format!("{body}{BARE}"));
            let at = text.len() - BARE.len() + 14;
            (text, Some((at, false)))
        };
        for (text, bare) in [
            (post("Content-Length: 5\r\n", "a\nb\nc"), None),
            (post("CONTENT-LENGTH:5 \r\n", &format!("a\nb\nc{HEAD}")), None),
            found_in_second("Content-Length: 5\r\n", "a\nb\nc"),
            found_in_second("Content-Length: 5\r\nContent-Length: 5\r\n", "a\nb\nc"),
            found_in_second("", ""),
            (post("Content-Length: x\r\n", "a\nb\nc"), None),
            (post("Content-Length: 5\r\nContent-Length: 6\r\n", "a\nb\nc\n"), None),
            (post(chunked, "2\r\na\n\r\n0\r\n\r\n"), None),
            (
                post(chunked, &format!("2;x=\"y\"\r\na\n\r\nA \r\n\n23456789\n\r\n0\r\nX: y\r\n\r\n{HEAD}")),
                None,
            ),
            found_in_second(chunked, "2\r\na\n\r\n0\r\n\r\n"),
            found_in_second(chunked, "2\r\na\n\r\n0\r\nX: y\r\nContent-Length: 9\r\n\r\n"),
            // A tunnel begins with the answer; until then there are only requests.
            found_in_second("Connection: upgrade\r\nUpgrade: websocket\r\n", ""),
        ] {
            assert_eq!(find(&text), bare, "{text:?}");
        }
    }

    #[test]
    fn trailers() {
        let post = |end: &str| {
            format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n{end}")
        };
        let begins = post("").len();
        for (end, bare) in [
            ("\r\n", None),
            ("X: 1\r\nY: 2\r\n\r\n", None),
            ("\n", Some(0)),
            ("X: 1\n\r\n", Some(4)),
            ("X: 1\r\n\n", Some(6)),
        ] {
            assert_eq!(find(&post(end)), bare.map(|at| (begins + at, true)), "{end:?}");
        }
    }

    #[test]
    fn a_length_cannot_be_pushed_out_of_sight() {
        let space = " ".repeat(40);
        for field in ["Content-Length", "Transfer-Encoding"] {
            let text = format!("POST / HTTP/1.1\r\n{field}:{space}chunked\r\n\r\n");
            assert!(find(&text).is_some(), "{text:?}");
        }
    }

    /// A sound request whose body is full of line ends.
    fn request(kind: u8, body: &str) -> String {
        let length = body.len();
        let body = match kind % 4 {
            0 => return HEAD.to_owned(),
            1 => return format!("\r\nPUT / HTTP/1.1\r\nContent-length:{length}\r\n\r\n{body}"),
            2 if length > 0 => format!("{length:X};a=b\r\n{body}\r\n1\r\n\n\r\n0\r\nX: y\r\n\r\n"),
            _ => "1\r\n\r\r\n00\r\n\r\n".to_owned(),
        };
        format!("POST / HTTP/1.1\r\nHost: a\r\ntransfer-Encoding: Chunked\r\n\r\n{body}")
    }

    proptest::proptest! {
        #[test]
        fn sound_requests_are_let_through(
            requests in proptest::collection::vec((0u8..4, "[a\r\n0:; ]{0,40}"), 1..6),
            read in 1usize..80,
        ) {
            let text: String = requests.iter().map(|(kind, body)| request(*kind, body)).collect();
            let mut guard = HeadGuard::default();
            for bytes in text.as_bytes().chunks(read) {
                proptest::prop_assert_eq!(guard.find_bare_line_feed(bytes), None, "{:?}", &text);
            }
            // And it still knows where it is.
            proptest::prop_assert_eq!(guard.find_bare_line_feed(BARE.as_bytes()), Some(Bare::InHead(14)));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(0u8..=255, 0..200)) {
            HeadGuard::default().find_bare_line_feed(&bytes);
            let mut chunked = HeadGuard { place: CHUNKED, ..HeadGuard::default() };
            chunked.find_bare_line_feed(&bytes);
        }
    }
}
