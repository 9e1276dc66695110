//! Finds line feeds without carriage return in request heads.
//!
//! RFC 9112 §2.2 lets a server take them as line ends, and hyper does; a proxy in front of another parser
//! that decides otherwise is how requests are smuggled. The guard reads along: a head, then the body that
//! its `Content-Length` announces, then the next head. Behind a chunked body or an upgrade it is blind, until
//! a read finds the connection idle again.

/// Where in the stream the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Head,
    /// So many bytes of it are left.
    Body(u64),
    /// Only hyper knows.
    Unknown,
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
    /// The connection is idle: what comes next is a head.
    pub fn restart(&mut self) {
        if self.place == Place::Unknown {
            *self = Self::default();
        }
    }

    /// The position of the first bare line feed in a head.
    pub fn find_bare_line_feed(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            match self.place {
                Place::Unknown => return None,
                Place::Body(0) => *self = Self::default(),
                Place::Body(left) => {
                    let skip = left.min((bytes.len() - at) as u64);
                    self.place = Place::Body(left - skip);
                    at += skip as usize;
                }
                Place::Head => {
                    let (text, end) = until_line_end(&bytes[at..]);
                    self.take_text(text);
                    at += text.len();
                    let Some(end) = end else { break };
                    if self.take_line_end(end) {
                        return Some(at);
                    }
                    at += 1;
                }
            }
        }
        None
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
        match self.matched {
            2 => self.end_line(),
            4 if self.begun => self.place = self.behind,
            _ => {}
        }
        false
    }

    fn end_line(&mut self) {
        let line = &self.line[..self.line_len];
        if let Some(value) = line.strip_prefix(b"content-length:") {
            let digits = std::str::from_utf8(value.trim_ascii()).ok();
            let length = digits.and_then(|digits| digits.parse().ok());
            self.behind = match (self.behind, length) {
                (Place::Body(0), Some(length)) => Place::Body(length),
                // Twice, or no number: hyper decides, and mostly refuses.
                _ => Place::Unknown,
            };
        } else if line.starts_with(b"transfer-encoding:") || line.starts_with(b"upgrade:") {
            self.behind = Place::Unknown;
        }
        self.line_len = 0;
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

    /// The position of the bare line feed, or none, however the reads fall.
    fn find(text: &str) -> Option<usize> {
        let whole = HeadGuard::default().find_bare_line_feed(text.as_bytes());
        for split in 0..text.len() {
            let mut guard = HeadGuard::default();
            let (head, tail) = text.as_bytes().split_at(split);
            let found = guard
                .find_bare_line_feed(head)
                .or_else(|| guard.find_bare_line_feed(tail).map(|at| at + split));
            assert_eq!(found, whole, "{text:?} split at {split}");
        }
        whole
    }

    #[test]
    fn heads() {
        for (text, bare) in [
            (HEAD, None),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", Some(14)),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", Some(23)),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", Some(25)),
            ("GET / HTTP/1.1\r\nHost: a\n\nGET /", Some(23)),
            ("\r\n\r\nGET / HTTP/1.1\nHost: a\r\n\r\n", Some(18)),
        ] {
            assert_eq!(find(text), bare, "{text:?}");
        }
    }

    #[test]
    fn bodies_are_skipped_and_pipelined_heads_are_not() {
        let post = |fields: &str, rest: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n{rest}");
        for (text, bare) in [
            (post("Content-Length: 5\r\n", "a\nb\nc"), None),
            (post("CONTENT-LENGTH:5 \r\n", &format!("a\nb\nc{HEAD}")), None),
            (post("Content-Length: 5\r\n", "a\nb\ncGET / HTTP/1.1\nHost: a\r\n\r\n"), Some(66)),
            (format!("{HEAD}GET / HTTP/1.1\nHost: a\r\n\r\n"), Some(HEAD.len() + 14)),
            (post("Transfer-Encoding: chunked\r\n", "2\r\na\n\r\n0\r\n\r\n"), None),
            (post("Content-Length: 5\r\nContent-Length: 5\r\n", "a\nb\nc"), None),
            (post("Content-Length: x\r\n", "a\nb\nc"), None),
            (post("Upgrade: websocket\r\n", "\n\n\n"), None),
        ] {
            assert_eq!(find(&text), bare, "{text:?}");
        }
    }

    #[test]
    fn an_idle_connection_begins_anew() {
        let mut guard = HeadGuard::default();
        let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        assert_eq!(guard.find_bare_line_feed(chunked.as_bytes()), None);
        guard.restart();
        assert_eq!(guard.find_bare_line_feed(b"GET / HTTP/1.1\nHost"), Some(14));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(0u8..=255, 0..200)) {
            HeadGuard::default().find_bare_line_feed(&bytes);
        }
    }
}
