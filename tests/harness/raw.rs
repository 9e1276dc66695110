//! Bytes in, bytes out: for what no well-behaved client would send.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::wait::PATIENCE;

pub struct Raw {
    stream: TcpStream,
    seen: Vec<u8>,
}

impl Raw {
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the listener accepts");
        stream.set_nodelay(true).expect("a fresh socket takes options");
        Self { stream, seen: Vec::new() }
    }

    /// From this address of loopback.
    #[track_caller]
    pub fn connect_from(source: IpAddr, address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::new(source, 0).into()).expect("all of 127.0.0.0/8 is loopback");
        socket.connect(&address.into()).expect("the listener accepts");
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true).expect("a fresh socket takes options");
        Self { stream, seen: Vec::new() }
    }

    /// A refusal may arrive, and the connection close, while we still write: that is not the story's failure.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let _ = self.stream.write_all(bytes.as_ref());
        self
    }

    /// Nothing more will be sent.
    pub fn shut_write(&mut self) -> &mut Self {
        let _ = self.stream.shutdown(Shutdown::Write);
        self
    }

    /// Reads until what was read so far satisfies `enough`; returns all of it.
    #[track_caller]
    pub fn read_until(&mut self, enough: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        while !enough(&self.text()) {
            assert!(Instant::now() < deadline, "waited {PATIENCE:?}, got only {:?}", self.text());
            assert!(self.read_some(), "the connection ended after {:?}", self.text());
        }
        self.text()
    }

    /// Reads to the end of the connection; returns all that ever came.
    #[track_caller]
    pub fn read_to_end(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        while self.read_some() {
            assert!(Instant::now() < deadline, "open after {PATIENCE:?}; got {:?}", self.text());
        }
        self.text()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// False at the end of the connection, clean or not.
    fn read_some(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        self.stream.set_read_timeout(Some(Duration::from_millis(200))).expect("not zero");
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(n) => {
                self.seen.extend_from_slice(&buffer[..n]);
                true
            }
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }
}
