//! Bytes in, bytes out: for what no well-behaved client would send.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

use crate::tls;
use crate::wait::PATIENCE;

pub struct Raw {
    stream: Stream,
    seen: Vec<u8>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref(),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Raw {
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the listener accepts");
        stream.set_nodelay(true).expect("a fresh socket takes options");
        Self { stream: Stream::Plain(stream), seen: Vec::new() }
    }

    /// Over TLS, whoever signed the certificate; the handshake happens with the first bytes.
    #[track_caller]
    pub fn connect_tls(address: SocketAddr, name: &str, alpn: &[&str]) -> Self {
        let tcp = TcpStream::connect(address).expect("the listener accepts");
        tcp.set_nodelay(true).expect("a fresh socket takes options");
        let name = ServerName::try_from(name.to_owned()).expect("a host name");
        let session =
            ClientConnection::new(Arc::new(tls::client_config(alpn)), name).expect("a configuration");
        Self { stream: Stream::Tls(Box::new(StreamOwned::new(session, tcp))), seen: Vec::new() }
    }

    /// From this address of loopback.
    #[track_caller]
    pub fn connect_from(source: IpAddr, address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::new(source, 0).into()).expect("all of 127.0.0.0/8 is loopback");
        socket.connect(&address.into()).expect("the listener accepts");
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true).expect("a fresh socket takes options");
        Self { stream: Stream::Plain(stream), seen: Vec::new() }
    }

    /// A refusal may arrive, and the connection close, while we still write: that is not the story's failure.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let mut rest = bytes.as_ref();
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(n) if n > 0 => rest = &rest[n..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        self
    }

    /// Sends much and reads what comes meanwhile, as who floods a peer has to: two that only write end in a
    /// deadlock. False if the peer hung up.
    pub fn flood(&mut self, bytes: &[u8]) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let mut rest = bytes;
        self.stream.tcp().set_nonblocking(true).expect("a socket takes options");
        let mut open = true;
        while open && !rest.is_empty() {
            assert!(Instant::now() < deadline, "the peer takes nothing for {PATIENCE:?}");
            match self.stream.write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // Until the peer has read: a poll would say no more.
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(_) => open = false,
            }
            open &= self.read_available();
        }
        self.stream.tcp().set_nonblocking(false).expect("a socket takes options");
        open
    }

    /// Nothing more will be sent.
    pub fn shut_write(&mut self) -> &mut Self {
        let _ = self.stream.tcp().shutdown(Shutdown::Write);
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

    /// All that ever came.
    pub fn bytes(&self) -> &[u8] {
        &self.seen
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// What comes within a moment. False at the end of the connection, clean or not.
    pub fn read_some(&mut self) -> bool {
        self.stream.tcp().set_read_timeout(Some(Duration::from_millis(200))).expect("not zero");
        self.read_once().unwrap_or_else(|error| is_wait(&error))
    }

    fn read_available(&mut self) -> bool {
        loop {
            match self.read_once() {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) => return is_wait(&error),
            }
        }
    }

    fn read_once(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 16 * 1024];
        let n = self.stream.read(&mut buffer)?;
        self.seen.extend_from_slice(&buffer[..n]);
        Ok(n > 0)
    }
}

fn is_wait(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
