//! Clients that upload, each at a speed of its own, some of them for ever.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two pieces of a client that has a speed.
const TICK: Duration = Duration::from_millis(50);

/// Clients that post the same body to `/upload` of `shop.test`; they hang up when dropped.
pub struct Uploads {
    clients: Vec<JoinHandle<Option<String>>>,
    over: Arc<AtomicBool>,
    begun: Arc<AtomicUsize>,
}

impl Uploads {
    /// One client for each of `speeds`, in bytes per second; `None`: as fast as it can.
    pub fn start(
        address: SocketAddr,
        body: &Arc<Vec<u8>>,
        speeds: impl IntoIterator<Item = Option<usize>>,
    ) -> Self {
        let (over, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |speed| {
            let (body, over, begun) = (Arc::clone(body), Arc::clone(&over), Arc::clone(&begun));
            std::thread::spawn(move || upload(address, &body, speed, &over, &begun))
        };
        let clients = speeds.into_iter().map(client).collect();
        Self { clients, over, begun }
    }

    /// How many have sent some of their body.
    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    /// How many have their answer, or no hope of one.
    pub fn finished(&self) -> usize {
        self.clients.iter().filter(|client| client.is_finished()).count()
    }

    /// Waits for all of them; the answers as they came.
    #[track_caller]
    pub fn answers(mut self) -> Vec<String> {
        let ended = self.clients.drain(..).map(|client| client.join().expect("a client does not panic"));
        ended.map(|answer| answer.expect("nobody was told to hang up")).collect()
    }
}

impl Drop for Uploads {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}

/// `None`: told to hang up.
fn upload(
    address: SocketAddr,
    body: &[u8],
    speed: Option<usize>,
    over: &AtomicBool,
    begun: &AtomicUsize,
) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    let head = format!(
        "POST /upload HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    let mut goes_on = stream.write_all(head.as_bytes()).is_ok();
    let piece_bytes = speed.map_or(64 * 1024, |speed| (speed / 20).max(1));
    for (number, piece) in body.chunks(piece_bytes).enumerate() {
        if over.load(Ordering::Relaxed) {
            return None;
        }
        // Who is refused on the way reads why.
        goes_on = goes_on && stream.write_all(piece).is_ok();
        if !goes_on {
            break;
        }
        if number == 0 {
            begun.fetch_add(1, Ordering::Relaxed);
        }
        if speed.is_some() {
            // A slow client is what this is.
            std::thread::sleep(TICK);
        }
    }
    let mut answer = Vec::new();
    let _ = stream.set_read_timeout(Some(TICK));
    loop {
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes) {
            Ok(0) => return Some(String::from_utf8_lossy(&answer).into_owned()),
            Ok(n) => answer.extend_from_slice(&bytes[..n]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if over.load(Ordering::Relaxed) {
                    return None;
                }
            }
            Err(_) => return Some(String::from_utf8_lossy(&answer).into_owned()),
        }
    }
}
