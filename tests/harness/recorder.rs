//! An upstream that keeps the exact bytes of every request and answers what the story scripted.
//!
//! Real apps parse away what matters here: which bytes the proxy put on the wire. Probes of the gate (`/up`)
//! are answered and not recorded.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::wait::eventually;

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Request line and fields, each with its CRLF, without the empty line.
    pub head: String,
    /// With its chunk framing, if it has any.
    pub body: Vec<u8>,
    /// Which connection, counted from 0, brought it.
    pub connection: usize,
    /// False when the connection ended before the body did.
    pub complete: bool,
}

impl Received {
    pub fn request_line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// All values of a field, by case-insensitive name.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

type Script = dyn Fn(&Received, &mut TcpStream) + Send + Sync;
type Hasty = dyn Fn(&Received) -> Option<&'static [u8]> + Send + Sync;

/// Listens until dropped.
pub struct Recorder {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    received: Mutex<Vec<Received>>,
    half_read: AtomicUsize,
    over: AtomicBool,
    script: Box<Script>,
    health: &'static [u8],
    hasty: Option<Box<Hasty>>,
}

const HEALTHY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nup";

impl Recorder {
    /// Answers `200` with the body `recorded`.
    pub fn start() -> Self {
        Self::answering(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nrecorded")
    }

    /// Answers every request with these bytes.
    pub fn answering(answer: &'static [u8]) -> Self {
        Self::scripted(move |_, stream| drop(stream.write_all(answer)))
    }

    /// The script is called when a request is complete; it may write, wait, read on, or shut the stream down.
    pub fn scripted(script: impl Fn(&Received, &mut TcpStream) + Send + Sync + 'static) -> Self {
        Self::with_health(HEALTHY, script)
    }

    /// Answers the gate's probes with these bytes.
    pub fn with_health(
        health: &'static [u8],
        script: impl Fn(&Received, &mut TcpStream) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        Self::listen(listener, health, Box::new(script), None)
    }

    /// What `hasty` answers to a head is sent at once, before the body has come; the script is asked for the rest.
    pub fn hasty(
        hasty: impl Fn(&Received) -> Option<&'static [u8]> + Send + Sync + 'static,
        script: impl Fn(&Received, &mut TcpStream) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        Self::listen(listener, HEALTHY, Box::new(script), Some(Box::new(hasty)))
    }

    /// On an address of the story's choice; probes get the same answer as everybody.
    pub fn on(listener: TcpListener, answer: &'static [u8]) -> Self {
        Self::listen(listener, answer, Box::new(move |_, stream| drop(stream.write_all(answer))), None)
    }

    fn listen(
        listener: TcpListener,
        health: &'static [u8],
        script: Box<Script>,
        hasty: Option<Box<Hasty>>,
    ) -> Self {
        let address = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared {
            received: Mutex::default(),
            half_read: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            script,
            health,
            hasty,
        });
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Self { address, shared, thread: Some(thread) }
    }

    pub fn target(&self) -> String {
        self.address.to_string()
    }

    /// All requests so far but the gate's.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().expect("no holder panics").clone()
    }

    /// Waits for the `n`th request, counted from 1.
    #[track_caller]
    pub fn request(&self, n: usize) -> Received {
        eventually("the request arrives upstream", || {
            self.received().get(n - 1).cloned().ok_or_else(|| format!("{:#?}", self.received()))
        })
    }

    /// The same, once nothing is half read any more: what broke off is noticed later than what went through.
    #[track_caller]
    pub fn settled(&self) -> Vec<Received> {
        eventually("every request upstream has ended", || {
            match self.shared.half_read.load(Ordering::SeqCst) {
                0 => Ok(self.received()),
                open => Err(format!("{open} are open\n{:#?}", self.received())),
            }
        })
    }

    pub fn forget(&self) {
        self.shared.received.lock().expect("no holder panics").clear();
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        // Wakes the accept.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Counts a request between its first byte and its end.
struct HalfRead<'s>(&'s AtomicUsize);

impl<'s> HalfRead<'s> {
    fn begin(count: &'s AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for HalfRead<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        std::thread::scope(|scope| {
            for (connection, stream) in listener.incoming().enumerate() {
                if self.over.load(Ordering::Relaxed) {
                    return;
                }
                // Nobody connects without a request.
                let (shared, first) = (&self, HalfRead::begin(&self.half_read));
                scope.spawn(move || {
                    if let Ok(stream) = stream {
                        shared.serve(stream, connection, first);
                    }
                });
            }
        });
    }

    fn serve<'s>(&'s self, mut stream: TcpStream, connection: usize, mut half_read: HalfRead<'s>) {
        let mut bytes = Vec::new();
        let _ = stream.set_nodelay(true);
        while let Some((received, rest)) = self.next(&mut stream, bytes, connection) {
            bytes = rest;
            let complete = received.complete;
            if received.request_line().starts_with("GET /up ") {
                let _ = stream.write_all(self.health);
            } else {
                self.received.lock().expect("no holder panics").push(received.clone());
                if self.haste(&received).is_none() {
                    (self.script)(&received, &mut stream);
                }
            }
            if !complete {
                break;
            }
            drop(half_read);
            let goes_on = !bytes.is_empty() || self.read_some(&mut stream, &mut bytes);
            half_read = HalfRead::begin(&self.half_read);
            if !goes_on {
                break;
            }
        }
        let _ = stream.shutdown(Shutdown::Both);
        drop(half_read);
    }

    /// The next request and what follows it; `None` at the end of the connection.
    fn next(
        &self,
        stream: &mut TcpStream,
        mut bytes: Vec<u8>,
        connection: usize,
    ) -> Option<(Received, Vec<u8>)> {
        let head_end = loop {
            if let Some(at) = find(&bytes, b"\r\n\r\n") {
                break at;
            }
            if !self.read_some(stream, &mut bytes) {
                return self.remember_rubbish(bytes, connection);
            }
        };
        let head = String::from_utf8_lossy(&bytes[..head_end + 2]).into_owned();
        let rest = bytes.split_off(head_end + 4);
        let mut received = Received { head, body: rest, connection, complete: true };
        if let Some(answer) = self.haste(&received) {
            let _ = stream.write_all(answer);
        }
        while body_length(&received).is_none() {
            if !self.read_some(stream, &mut received.body) {
                received.complete = false;
                return Some((received, Vec::new()));
            }
        }
        let length = body_length(&received).expect("just seen");
        let rest = received.body.split_off(length);
        Some((received, rest))
    }

    fn haste(&self, received: &Received) -> Option<&'static [u8]> {
        self.hasty.as_ref().and_then(|hasty| hasty(received))
    }

    /// Bytes that never became a request are the most interesting ones.
    fn remember_rubbish(&self, bytes: Vec<u8>, connection: usize) -> Option<(Received, Vec<u8>)> {
        if !bytes.is_empty() {
            let head = String::from_utf8_lossy(&bytes).into_owned();
            let received = Received { head, body: Vec::new(), connection, complete: false };
            self.received.lock().expect("no holder panics").push(received);
        }
        None
    }

    fn read_some(&self, stream: &mut TcpStream, bytes: &mut Vec<u8>) -> bool {
        let mut buffer = [0; 16 * 1024];
        let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(n) => {
                    bytes.extend_from_slice(&buffer[..n]);
                    return true;
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if self.over.load(Ordering::Relaxed) {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
    }
}

/// How many bytes of `received.body` are its body; `None` while it is incomplete.
fn body_length(received: &Received) -> Option<usize> {
    if received.values("transfer-encoding").iter().any(|value| value.contains("chunked")) {
        let mut at = 0;
        loop {
            let line = find(&received.body[at..], b"\r\n")?;
            let digits = std::str::from_utf8(&received.body[at..at + line]).unwrap_or_default();
            let digits = digits.split(';').next().unwrap_or_default();
            at += line + 2;
            // What is no size ends the body: the story will see that it is none.
            match usize::from_str_radix(digits, 16).unwrap_or(0) {
                // Trailers, if any, end with an empty line.
                0 if received.body[at..].starts_with(b"\r\n") => return Some(at + 2),
                0 => return find(&received.body[at..], b"\r\n\r\n").map(|end| at + end + 4),
                size => at = at.checked_add(size + 2).filter(|at| *at <= received.body.len())?,
            }
        }
    }
    let length = received.values("content-length").first().map_or(0, |value| value.parse().unwrap_or(0));
    (received.body.len() >= length).then_some(length)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
