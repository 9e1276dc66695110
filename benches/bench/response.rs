//! Reads HTTP/1.1 answers off a connection: status, announced length, and as many bytes as announced. Nothing
//! else is right in a bench, so everything else is a failure.

use memchr::memmem;

use crate::failure::{Failure, Outcome};

pub(crate) struct ResponseReader {
    state: State,
    body_bytes: usize,
    /// The first head of a connection is read to its last field.
    is_first: bool,
}

enum State {
    /// What has come of the head; empty nearly always, for it comes in one piece.
    Head(Vec<u8>),
    Body {
        left: usize,
    },
}

impl ResponseReader {
    /// Answers must have a body of `body_bytes`.
    pub(crate) fn new(body_bytes: usize) -> Self {
        Self { state: State::Head(Vec::new()), body_bytes, is_first: true }
    }

    /// True when `bytes` ended an answer.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Outcome<bool> {
        match &mut self.state {
            State::Body { left } => {
                let left = left.checked_sub(bytes.len()).ok_or_else(too_much)?;
                Ok(self.body(left))
            }
            State::Head(partial) if partial.is_empty() => match memmem::find(bytes, b"\r\n\r\n") {
                Some(end) => self.head(&bytes[..end + 2], bytes.len() - end - 4),
                None => {
                    partial.extend_from_slice(bytes);
                    Ok(false)
                }
            },
            State::Head(partial) => {
                partial.extend_from_slice(bytes);
                if partial.len() > 64 * 1024 {
                    return Err(Failure::new("a proxy's answer has no end of its head"));
                }
                let Some(end) = memmem::find(partial, b"\r\n\r\n") else { return Ok(false) };
                let head = std::mem::take(partial);
                self.head(&head[..end + 2], head.len() - end - 4)
            }
        }
    }

    fn head(&mut self, head: &[u8], body_so_far: usize) -> Outcome<bool> {
        let wrong = |what: &str| Failure::new(format!("a proxy {what}: {}", head.escape_ascii()));
        if !head.starts_with(b"HTTP/1.1 200 ") {
            return Err(wrong("did not answer 200"));
        }
        match content_length(head) {
            Some(length) if length == self.body_bytes => {}
            _ => return Err(wrong(&format!("did not announce {} bytes", self.body_bytes))),
        }
        // The visitors' cookies are made here; an answer that makes them anew does not know them.
        if std::mem::take(&mut self.is_first)
            && memmem::find(head, b"portcullis").is_some_and(|_| sets_cookie(head))
        {
            return Err(wrong("does not know the visitor's cookie"));
        }
        let left = self.body_bytes.checked_sub(body_so_far).ok_or_else(too_much)?;
        Ok(self.body(left))
    }

    fn body(&mut self, left: usize) -> bool {
        self.state = if left == 0 { State::Head(Vec::new()) } else { State::Body { left } };
        left == 0
    }
}

fn too_much() -> Failure {
    Failure::new("a proxy sent more than it announced")
}

fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    memmem::find_iter(head, b"\r\n").map(move |end| {
        let line = &head[start..end];
        start = end + 2;
        line
    })
}

fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let line = lines(head)
        .find(|line| line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME)))?;
    std::str::from_utf8(&line[NAME.len()..]).ok()?.trim().parse().ok()
}

fn sets_cookie(head: &[u8]) -> bool {
    lines(head).any(|line| {
        let line = line.to_ascii_lowercase();
        line.starts_with(b"set-cookie:") && memmem::find(&line, b"portcullis").is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nServer: x\r\nCONTENT-length: 5\r\n\r\nhello";

    #[test]
    fn answers_end_where_they_should_however_they_are_cut() {
        for cut in 1..GOOD.len() {
            let mut reader = ResponseReader::new(5);
            assert!(!reader.feed(&GOOD[..cut]).unwrap(), "{cut}");
            assert!(reader.feed(&GOOD[cut..]).unwrap(), "{cut}");
            assert!(reader.feed(GOOD).unwrap(), "{cut}");
        }
    }

    #[test]
    fn whatever_is_not_right_fails() {
        for (answer, wants) in [
            ("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\nhello", "did not answer 200"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhell", "did not announce 5 bytes"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "did not announce 5 bytes"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello!", "more than it announced"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nset-cookie: portcullis-visitor=x\r\n\r\nhello",
                "does not know the visitor's cookie",
            ),
        ] {
            let error = ResponseReader::new(5).feed(answer.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(wants), "{answer:?} gave {error:?}");
        }
    }
}
