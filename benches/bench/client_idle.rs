//! Clients that cost memory rather than time: they ask once, and then stay, or do not even read.

use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};

use crate::failure::{Failure, Outcome, Tried};
use crate::origin::Body;
use crate::poll::{Owner, Poll, Token};
use crate::response::ResponseReader;
use crate::transport::{Dial, Transport};
use crate::visitor::Visitor;
use crate::world::{Load, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Habit {
    /// Has its answer and keeps the connection.
    StaysIdle,
    /// Asks and takes nothing of the answer. It counts as served when it has asked.
    ReadsNothing,
}

/// At a time, so that no queue of a listener overflows.
pub(crate) const BATCH: u64 = 50;
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Once {
    dial: Dial,
    body: Body,
    habit: Habit,
    connections: Vec<Connection>,
    scratch: Vec<u8>,
    completed: u64,
}

struct Connection {
    transport: Transport,
    response: ResponseReader,
}

impl Once {
    pub(crate) fn new(dial: Dial, body: Body, habit: Habit) -> Self {
        Self { dial, body, habit, connections: Vec::new(), scratch: vec![0; 64 * 1024], completed: 0 }
    }

    /// One more client.
    pub(crate) fn join(&mut self, poll: &Poll) -> Outcome<()> {
        let number = self.connections.len();
        let token = Token::new(Owner::Load, number);
        let mut transport = match self.habit {
            Habit::StaysIdle => Transport::open(&self.dial, poll, token)?,
            Habit::ReadsNothing => {
                Transport::over(with_small_buffer(self.dial.address)?, &self.dial, poll, token)?
            }
        };
        transport.send(poll, &Visitor::new(number).http1(self.body, self.dial.tls.is_some(), false))?;
        self.connections.push(Connection { transport, response: ResponseReader::new(self.body.bytes()) });
        if self.habit == Habit::ReadsNothing && self.dial.tls.is_none() {
            self.turn_away(poll, number)?;
        }
        Ok(())
    }

    /// So many more, a few at a time, until all of them are served.
    pub(crate) fn join_all(&mut self, world: &mut World, clients: u64) -> Outcome<()> {
        let before = self.completed;
        let mut joined = 0;
        while joined < clients {
            let batch = BATCH.min(clients - joined);
            for _ in 0..batch {
                self.join(&world.poll)?;
            }
            joined += batch;
            world.run_until(self, before + joined, PATIENCE)?;
        }
        Ok(())
    }

    /// All that came stay, and are not listened to any more.
    pub(crate) fn leave_alone(&mut self, poll: &Poll) -> Outcome<()> {
        self.connections.iter_mut().try_for_each(|connection| connection.transport.stop_reading(poll))
    }

    fn turn_away(&mut self, poll: &Poll, index: usize) -> Outcome<()> {
        self.completed += 1;
        self.connections[index].transport.stop_reading(poll)
    }
}

impl Load for Once {
    fn on_event(&mut self, poll: &Poll, index: usize) -> Outcome<()> {
        let connection = &mut self.connections[index];
        let response = &mut connection.response;
        let mut ended = false;
        let is_open = connection.transport.receive(&mut self.scratch, |bytes| {
            ended |= response.feed(bytes)?;
            Ok(())
        })?;
        if !is_open {
            return Err(Failure::new("a proxy closed a connection that should stay"));
        }
        connection.transport.flush(poll)?;
        if self.habit == Habit::ReadsNothing && !connection.transport.is_handshaking() {
            return self.turn_away(poll, index);
        }
        self.completed += u64::from(ended);
        Ok(())
    }

    fn completed(&self) -> u64 {
        self.completed
    }
}

/// A receive buffer of 4 KiB: what the kernel takes in the client's stead, the proxy does not have to hold.
fn with_small_buffer(address: SocketAddr) -> Outcome<TcpStream> {
    let open = || {
        let SocketAddr::V4(address) = address else { return Err(rustix::io::Errno::AFNOSUPPORT) };
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        sockopt::set_socket_recv_buffer_size(&socket, 4096)?;
        connect(&socket, &SocketAddrV4::new(*address.ip(), address.port()))?;
        Ok(TcpStream::from(socket))
    };
    open().tried(|| format!("connect to {address}"))
}
