//! Thousands of raw clients of one kind, most of them hostile, on the harness's runtime.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::runtime::runtime;
use crate::wait::eventually;

/// How the clients of a crowd behave, until the server ends their connections. Durations are between two bytes.
#[derive(Debug, Clone)]
pub enum Manner {
    /// Says nothing.
    Silent,
    /// Sends a head that does not end.
    SlowHead(Duration),
    /// Posts a megabyte to `path` of `host`, byte by byte.
    SlowBody { host: &'static str, path: &'static str, every: Duration },
    /// Asks for `path` of `host` and reads byte by byte.
    SlowRead { host: &'static str, path: &'static str, every: Duration },
    /// Asks once, reads the answer, and keeps the connection for nothing.
    KeepAlive { host: &'static str },
}

/// Clients at the door at the same time: fewer than the kernel's queue holds.
const CONNECTING_MAX: usize = 256;
/// Small, so that the server soon notices who does not read.
const RECEIVE_BUFFER: u32 = 4096;

/// Hangs up when dropped.
pub struct Crowd {
    size: usize,
    counts: Arc<Counts>,
    _clients: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    /// Connected, and past what they do at first.
    settled: AtomicUsize,
    refused: AtomicUsize,
    gone: Mutex<Vec<usize>>,
}

impl Crowd {
    pub fn start(address: SocketAddr, size: usize, manner: Manner) -> Self {
        let counts = Arc::new(Counts::default());
        let door = Arc::new(Semaphore::new(CONNECTING_MAX));
        let mut clients = JoinSet::new();
        for number in 0..size {
            let (counts, door, manner) = (Arc::clone(&counts), Arc::clone(&door), manner.clone());
            clients.spawn_on(client(number, address, manner, counts, door), runtime().handle());
        }
        Self { size, counts, _clients: clients }
    }

    /// Waits until every client is as far as it means to come, or was sent away.
    #[track_caller]
    pub fn settles(self) -> Self {
        eventually("the crowd settles", || {
            let settled = self.counts.settled.load(Ordering::Relaxed);
            if settled + self.refused() == self.size { Ok(()) } else { Err(self.to_string()) }
        });
        self
    }

    /// Waits until the server has ended every connection.
    #[track_caller]
    pub fn is_gone(&self) {
        eventually("the server ends all of them", || {
            if self.gone() + self.refused() == self.size { Ok(()) } else { Err(self.to_string()) }
        });
    }

    /// Connections that the server ended after they had settled.
    pub fn gone(&self) -> usize {
        self.counts.gone.lock().expect("no holder panics").len()
    }

    /// Connections that came to nothing.
    pub fn refused(&self) -> usize {
        self.counts.refused.load(Ordering::Relaxed)
    }
}

impl fmt::Display for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settled = self.counts.settled.load(Ordering::Relaxed);
        let (size, refused, gone) = (self.size, self.refused(), self.gone());
        write!(f, "{size} clients: {settled} settled, {refused} refused, {gone} gone")
    }
}

async fn client(
    number: usize,
    address: SocketAddr,
    manner: Manner,
    counts: Arc<Counts>,
    door: Arc<Semaphore>,
) {
    let began = {
        let _turn = door.acquire().await.expect("nobody closes it");
        begin(address, &manner).await
    };
    let Some(stream) = began else {
        counts.refused.fetch_add(1, Ordering::Relaxed);
        return;
    };
    counts.settled.fetch_add(1, Ordering::Relaxed);
    until_the_end(stream, &manner).await;
    counts.gone.lock().expect("no holder panics").push(number);
}

/// `None`: the server did not want it.
async fn begin(address: SocketAddr, manner: &Manner) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().expect("a descriptor is free");
    if matches!(manner, Manner::SlowRead { .. }) {
        socket.set_recv_buffer_size(RECEIVE_BUFFER).expect("a fresh socket takes options");
    }
    let mut stream = socket.connect(address).await.ok()?;
    let first = match manner {
        Manner::Silent => return Some(stream),
        Manner::SlowHead(_) => "GET / HTTP/1.1\r\nHost: shop.test\r\nX-Slow: ".to_owned(),
        Manner::SlowBody { host, path, .. } => {
            format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000000\r\n\r\nslow")
        }
        Manner::SlowRead { host, path, .. } => format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        Manner::KeepAlive { host } => format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    };
    stream.write_all(first.as_bytes()).await.ok()?;
    if let Manner::KeepAlive { .. } = manner {
        let mut answer = [0; 4096];
        if stream.read(&mut answer).await.ok()? == 0 {
            return None;
        }
    }
    Some(stream)
}

async fn until_the_end(mut stream: TcpStream, manner: &Manner) {
    let mut byte = [0];
    loop {
        let every = match manner {
            Manner::Silent | Manner::KeepAlive { .. } => {
                if matches!(stream.read(&mut [0; 4096]).await, Ok(0) | Err(_)) {
                    return;
                }
                continue;
            }
            Manner::SlowRead { every, .. } => {
                // A reset overtakes what was not read.
                let reset = SockRef::from(&stream).take_error().ok().flatten().is_some();
                if reset || matches!(stream.read(&mut byte).await, Ok(0) | Err(_)) {
                    return;
                }
                *every
            }
            Manner::SlowHead(every) | Manner::SlowBody { every, .. } => {
                if stream.write_all(b"x").await.is_err() {
                    return;
                }
                *every
            }
        };
        // Whoever sends slowly listens meanwhile: an answer is a refusal, and the end comes behind it.
        let listens = matches!(manner, Manner::SlowHead(_) | Manner::SlowBody { .. });
        tokio::select! {
            () = sleep(every) => {}
            () = hung_up(&stream), if listens => return,
        }
    }
}

async fn hung_up(stream: &TcpStream) {
    let mut bytes = [0; 1024];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut bytes) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
