//! Visitors of HTTP/1.1 in a closed loop: each asks again as soon as it has its answer.

use crate::failure::{Failure, Outcome};
use crate::origin::Body;
use crate::poll::{Owner, Poll, Token};
use crate::response::ResponseReader;
use crate::transport::{Dial, Transport};
use crate::visitor::Visitor;
use crate::world::Load;

/// Whether a connection is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    KeepAlive,
    /// One request, `Connection: close`; then a new connection with a full handshake.
    OneRequest,
    /// The same, but that all sessions after the first ones are resumed.
    Session,
}

pub(crate) struct Http1 {
    dial: Dial,
    reuse: Reuse,
    body: Body,
    connections: Vec<Connection>,
    scratch: Vec<u8>,
    completed: u64,
    /// Handshakes that resumed nothing.
    full: usize,
    visitors: usize,
}

struct Connection {
    transport: Transport,
    request: Vec<u8>,
    response: ResponseReader,
    is_answered: bool,
    is_checked: bool,
}

impl Http1 {
    /// Opens the connections and sends the first requests.
    pub(crate) fn start(
        poll: &Poll,
        dial: &Dial,
        body: Body,
        visitors: usize,
        reuse: Reuse,
    ) -> Outcome<Self> {
        let mut load = Self {
            dial: dial.clone(),
            reuse,
            body,
            connections: Vec::with_capacity(visitors),
            scratch: vec![0; 256 * 1024],
            completed: 0,
            full: 0,
            visitors,
        };
        for number in 0..visitors {
            let closes = reuse != Reuse::KeepAlive;
            let request = Visitor::new(number).http1(body, dial.tls.is_some(), closes);
            let connection = load.connect(poll, number, request)?;
            load.connections.push(connection);
        }
        Ok(load)
    }

    fn connect(&self, poll: &Poll, index: usize, request: Vec<u8>) -> Outcome<Connection> {
        let mut transport = Transport::open(&self.dial, poll, Token::new(Owner::Load, index))?;
        transport.send(poll, &request)?;
        let response = ResponseReader::new(self.body.bytes());
        Ok(Connection { transport, request, response, is_answered: false, is_checked: false })
    }
}

impl Load for Http1 {
    fn on_event(&mut self, poll: &Poll, index: usize) -> Outcome<()> {
        let connection = &mut self.connections[index];
        let response = &mut connection.response;
        let mut ended = 0;
        let is_open = connection.transport.receive(&mut self.scratch, |bytes| {
            ended += u64::from(response.feed(bytes)?);
            Ok(())
        })?;
        if ended > 0 {
            if connection.is_answered || ended > 1 {
                return Err(Failure::new("a proxy answered twice"));
            }
            if !std::mem::replace(&mut connection.is_checked, true) {
                connection.transport.check_handshake(b"http/1.1")?;
                self.full += usize::from(!connection.transport.has_resumed());
            }
            // Each visitor has to begin with one.
            if self.reuse == Reuse::Session && self.full > self.visitors {
                return Err(Failure::new("a proxy did not resume a session"));
            }
            match self.reuse {
                Reuse::KeepAlive => {
                    self.completed += 1;
                    connection.transport.send(poll, &connection.request)?;
                }
                Reuse::OneRequest | Reuse::Session => connection.is_answered = true,
            }
        }
        if is_open {
            return connection.transport.flush(poll);
        }
        if !connection.is_answered {
            return Err(Failure::new("a proxy closed a connection before its answer was whole"));
        }
        self.completed += 1;
        let request = std::mem::take(&mut connection.request);
        self.connections[index] = self.connect(poll, index, request)?;
        Ok(())
    }

    fn completed(&self) -> u64 {
        self.completed
    }
}
