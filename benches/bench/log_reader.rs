//! Where haproxy's access log goes: it keeps none itself but sends its lines to a syslog server, here over TCP
//! from a ring. They are read and counted, so that a log that was lost does not pass for a cheap one.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::failure::{Outcome, Tried};
use crate::poll::{Owner, Poll, Token};

pub(crate) struct LogReader {
    listener: TcpListener,
    connections: Vec<Option<TcpStream>>,
    scratch: Vec<u8>,
    pub lines: u64,
}

impl LogReader {
    pub(crate) fn new(poll: &Poll) -> Outcome<Self> {
        let listener = crate::machine::listen()?;
        poll.add(&listener, Token::new(Owner::LogListener, 0))?;
        Ok(Self { listener, connections: Vec::new(), scratch: vec![0; 256 * 1024], lines: 0 })
    }

    pub(crate) fn address(&self) -> Outcome<SocketAddr> {
        self.listener.local_addr().tried(|| "learn the log reader's address".to_owned())
    }

    pub(crate) fn accept(&mut self, poll: &Poll) -> Outcome<()> {
        loop {
            match self.listener.accept() {
                Ok((tcp, _)) => {
                    crate::machine::prepare(&tcp)?;
                    poll.add(&tcp, Token::new(Owner::Log, self.connections.len()))?;
                    self.connections.push(Some(tcp));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).tried(|| "accept a log connection".to_owned()),
            }
        }
    }

    pub(crate) fn on_event(&mut self, index: usize) {
        let Some(tcp) = self.connections.get_mut(index).and_then(Option::as_mut) else { return };
        match tcp.read(&mut self.scratch) {
            Ok(0) => self.connections[index] = None,
            Ok(n) => self.lines += memchr::memchr_iter(b'\n', &self.scratch[..n]).count() as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.connections[index] = None,
        }
    }
}
