//! The app behind the proxies: HTTP/1.1 over kept-alive connections, answers made once, no work per request.
//!
//! It knows four paths, and reads nothing of a request but its path and whether the connection should close.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::failure::{Failure, Outcome, Tried};
use crate::poll::{Interest, Owner, Poll, Token};

/// The answers, by path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Body {
    Small,
    TenKilobytes,
    Megabyte,
}

impl Body {
    pub(crate) const ALL: [Self; 3] = [Self::Small, Self::TenKilobytes, Self::Megabyte];

    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Small => "/small",
            Self::TenKilobytes => "/10k",
            Self::Megabyte => "/1m",
        }
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Small => 13,
            Self::TenKilobytes => 10 * 1024,
            Self::Megabyte => 1024 * 1024,
        }
    }
}

/// What Rails 7 sends with a page: 14 fields beside the length.
const RAILS_FIELDS: &str = "\
X-Frame-Options: SAMEORIGIN\r\n\
X-XSS-Protection: 0\r\n\
X-Content-Type-Options: nosniff\r\n\
X-Permitted-Cross-Domain-Policies: none\r\n\
Referrer-Policy: strict-origin-when-cross-origin\r\n\
Content-Type: text/html; charset=utf-8\r\n\
Vary: Accept\r\n\
ETag: W/\"2c1d6dd6a2f3f5b1e0a1c3f2a9b8c7d6\"\r\n\
Cache-Control: max-age=0, private, must-revalidate\r\n\
Set-Cookie: _shop_session=Zk3Jq1bX0vL9dW2mT7yR5uP8aQ4sE6hG1nC3iO0kF2jB9lM5xV7zD8wY4tU6rS1pA3eH0gN2cI5oK7fJ9bL; path=/; HttpOnly; SameSite=Lax\r\n\
X-Request-Id: 5d1f0a7e-4c3b-4f7e-9a51-0c6a3f6be2d4\r\n\
X-Runtime: 0.004211\r\n\
Server-Timing: sql.active_record;dur=0.61, render_template.action_view;dur=1.92\r\n\
Strict-Transport-Security: max-age=63072000; includeSubDomains\r\n";

fn answer(body_bytes: usize) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 200 OK\r\n{RAILS_FIELDS}Content-Length: {body_bytes}\r\n\r\n").into_bytes();
    let words = b"Hello, world!".iter().copied().cycle();
    answer.extend(words.take(body_bytes));
    answer
}

pub(crate) struct Origin {
    /// The second is the canary's target.
    listeners: [TcpListener; 2],
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    answers: [Vec<u8>; 3],
    scratch: Vec<u8>,
}

struct Connection {
    tcp: TcpStream,
    /// A head that has not come whole; empty nearly always.
    partial: Vec<u8>,
    /// The answer under way, and how much of it is written.
    writing: Option<(usize, usize)>,
    closes: bool,
    wants_write: bool,
}

impl Origin {
    pub(crate) fn new(poll: &Poll) -> Outcome<Self> {
        let listen = |index| {
            let listener = crate::machine::listen()?;
            poll.add(&listener, Token::new(Owner::OriginListener, index))?;
            Ok(listener)
        };
        Ok(Self {
            listeners: [listen(0)?, listen(1)?],
            connections: Vec::new(),
            free: Vec::new(),
            answers: Body::ALL.map(|body| answer(body.bytes())),
            scratch: vec![0; 16 * 1024],
        })
    }

    pub(crate) fn address(&self) -> Outcome<SocketAddr> {
        self.listeners[0].local_addr().tried(|| "learn the origin's address".to_owned())
    }

    pub(crate) fn canary_address(&self) -> Outcome<SocketAddr> {
        self.listeners[1].local_addr().tried(|| "learn the origin's address".to_owned())
    }

    pub(crate) fn accept(&mut self, poll: &Poll, listener: usize) -> Outcome<()> {
        loop {
            let tcp = match self.listeners[listener].accept() {
                Ok((tcp, _)) => tcp,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).tried(|| "accept a connection at the origin".to_owned()),
            };
            crate::machine::prepare(&tcp)?;
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            poll.add(&tcp, Token::new(Owner::Origin, index))?;
            self.connections[index] = Some(Connection {
                tcp,
                partial: Vec::new(),
                writing: None,
                closes: false,
                wants_write: false,
            });
        }
    }

    pub(crate) fn on_event(&mut self, poll: &Poll, index: usize) -> Outcome<()> {
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else {
            return Ok(());
        };
        let stays = match connection.writing {
            Some(_) => connection.go_on_writing(&self.answers),
            None => connection.read(&self.answers, &mut self.scratch)?,
        };
        let token = Token::new(Owner::Origin, index);
        let wants_write = connection.writing.is_some();
        if !stays {
            self.connections[index] = None;
            self.free.push(index);
        } else if wants_write != connection.wants_write {
            connection.wants_write = wants_write;
            let interest = if wants_write { Interest::Write } else { Interest::Read };
            poll.interest(&connection.tcp, token, interest)?;
        }
        Ok(())
    }
}

impl Connection {
    /// False at the end of the connection. A proxy may break one off at any time: a window has ended.
    fn read(&mut self, answers: &[Vec<u8>], scratch: &mut [u8]) -> Outcome<bool> {
        let n = match self.tcp.read(scratch) {
            Ok(0) => return Ok(false),
            Ok(n) => n,
            Err(error) => return Ok(error.kind() == ErrorKind::WouldBlock),
        };
        let head = if self.partial.is_empty() {
            &scratch[..n]
        } else {
            self.partial.extend_from_slice(&scratch[..n]);
            &self.partial
        };
        if !head.ends_with(b"\r\n\r\n") {
            self.partial = head.to_vec();
            return Ok(true);
        }
        let asked = asked(head).ok_or_else(|| {
            Failure::new(format!("the origin was asked for what it does not have: {}", head.escape_ascii()))
        })?;
        self.closes = asked.closes;
        self.partial.clear();
        self.writing = Some((asked.answer, 0));
        Ok(self.go_on_writing(answers))
    }

    fn go_on_writing(&mut self, answers: &[Vec<u8>]) -> bool {
        while let Some((answer, written)) = self.writing {
            let rest = &answers[answer][written..];
            match self.tcp.write(rest) {
                Ok(n) if n == rest.len() => {
                    self.writing = None;
                    return !self.closes;
                }
                Ok(n) => self.writing = Some((answer, written + n)),
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }
}

struct Asked {
    answer: usize,
    closes: bool,
}

fn asked(head: &[u8]) -> Option<Asked> {
    let target = head.strip_prefix(b"GET ")?;
    let path = &target[..memchr::memchr(b' ', target)?];
    let answer = match path {
        b"/up" => 0,
        path => Body::ALL.iter().position(|body| body.path().as_bytes() == path)?,
    };
    // Probes close; requests of visitors never say so to the app.
    let closes = answer == 0 && memchr::memmem::find(head, b"close\r\n").is_some();
    Some(Asked { answer, closes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_path_and_close() {
        for (head, wants) in [
            ("GET /up HTTP/1.1\r\nconnection: close\r\n\r\n", Some((0, true))),
            ("GET /small HTTP/1.1\r\nhost: a\r\n\r\n", Some((0, false))),
            ("GET /10k HTTP/1.1\r\nhost: a\r\n\r\n", Some((1, false))),
            ("GET /1m HTTP/1.1\r\nhost: a\r\n\r\n", Some((2, false))),
            ("GET /1m2 HTTP/1.1\r\n\r\n", None),
            ("POST /up HTTP/1.1\r\n\r\n", None),
        ] {
            let seen = asked(head.as_bytes()).map(|asked| (asked.answer, asked.closes));
            assert_eq!(seen, wants, "{head:?}");
        }
    }

    #[test]
    fn answers_are_as_long_as_they_say() {
        for body in Body::ALL {
            let answer = answer(body.bytes());
            let head = memchr::memmem::find(&answer, b"\r\n\r\n").unwrap() + 4;
            assert_eq!(answer.len() - head, body.bytes(), "{body:?}");
            assert!(head > 700, "a realistic head has {head} bytes");
        }
    }
}
