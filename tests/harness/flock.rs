//! Thousands of WebSocket clients of the echo server (`echo.rs`), each of which notices how its socket ends.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::runtime::runtime;
use crate::wait::eventually;
use crate::websocket::SocketEvent;

/// Clients at the door at the same time.
const CONNECTING_MAX: usize = 64;
/// So many talk all the time; the others are idle.
const TALKERS: usize = 16;
/// Of a talker between two messages: more would measure how busy the machine is.
const PAUSE: Duration = Duration::from_millis(10);
/// Many frames' worth of TCP segments, so that a close has something to cut.
const WORDS: usize = 40_000;

/// Hangs up when dropped.
pub struct Flock {
    size: usize,
    counts: Arc<Counts>,
    _clients: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    open: AtomicUsize,
    refused: Mutex<Vec<String>>,
    echoes: AtomicUsize,
    ends: Mutex<Vec<End>>,
}

/// How one socket came to its end.
#[derive(Debug, Clone)]
pub struct End {
    pub at: Instant,
    pub how: SocketEvent,
}

impl Flock {
    /// Opens `size` sockets of `host` and waits until all are open or refused.
    #[track_caller]
    pub fn open(address: SocketAddr, host: &str, size: usize) -> Self {
        let (counts, door) = (Arc::new(Counts::default()), Arc::new(Semaphore::new(CONNECTING_MAX)));
        let mut clients = JoinSet::new();
        let talker_one_in = (size / TALKERS).max(1);
        for number in 0..size {
            let talks = number.is_multiple_of(talker_one_in);
            let who = (number, talks);
            let (counts, door) = (Arc::clone(&counts), Arc::clone(&door));
            clients.spawn_on(client(who, address, format!("ws://{host}/"), counts, door), runtime().handle());
        }
        let flock = Self { size, counts, _clients: clients };
        eventually("the sockets open", || {
            let (open, refused) = (flock.opened(), flock.refused());
            if open + refused.len() == size { Ok(()) } else { Err(format!("{open} are open, {refused:?}")) }
        });
        flock
    }

    /// How many were opened, whether they still are or not.
    pub fn opened(&self) -> usize {
        self.counts.open.load(Ordering::Relaxed)
    }

    /// Why others were not.
    pub fn refused(&self) -> Vec<String> {
        self.counts.refused.lock().expect("no holder panics").clone()
    }

    /// Messages that came back whole, of all clients.
    pub fn echoes(&self) -> usize {
        self.counts.echoes.load(Ordering::Relaxed)
    }

    /// In the order in which they ended.
    pub fn ends(&self) -> Vec<End> {
        self.counts.ends.lock().expect("no holder panics").clone()
    }

    pub fn size(&self) -> usize {
        self.size
    }
}

async fn client(
    (number, talks): (usize, bool),
    address: SocketAddr,
    url: String,
    counts: Arc<Counts>,
    door: Arc<Semaphore>,
) {
    let opened = {
        let _turn = door.acquire().await.expect("nobody closes it");
        open(address, &url).await
    };
    let mut socket = match opened {
        Ok(socket) => socket,
        Err(why) => return counts.refused.lock().expect("no holder panics").push(why),
    };
    counts.open.fetch_add(1, Ordering::Relaxed);
    let text = format!("{number} {}", "word ".repeat(WORDS / 5));
    let how = loop {
        if talks && socket.send(Message::text(text.clone())).await.is_err() {
            // The close has overtaken it; reading shows which.
        }
        match socket.next().await {
            Some(Ok(Message::Text(echo))) => {
                if !echo.ends_with(&text) {
                    break SocketEvent::Cut(format!("{} bytes came back", echo.len()));
                }
                counts.echoes.fetch_add(1, Ordering::Relaxed);
                sleep(PAUSE).await;
            }
            Some(Ok(Message::Close(frame))) => {
                break SocketEvent::Closed(frame.map(|frame| frame.code.into()));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => break SocketEvent::Cut(error.to_string()),
            None => break SocketEvent::Cut("end of stream".to_owned()),
        }
    };
    let at = Instant::now();
    counts.ends.lock().expect("no holder panics").push(End { at, how });
    // Answers the close.
    while let Some(Ok(_)) = socket.next().await {}
}

async fn open(
    address: SocketAddr,
    url: &str,
) -> Result<tokio_tungstenite::WebSocketStream<TcpStream>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let request = url.into_client_request().map_err(|error| error.to_string())?;
    let opened = client_async(request, stream).await;
    opened.map(|(socket, _)| socket).map_err(|error| match error {
        tokio_tungstenite::tungstenite::Error::Http(response) => format!("answered {}", response.status()),
        other => other.to_string(),
    })
}
