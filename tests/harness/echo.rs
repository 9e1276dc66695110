//! A WebSocket server that holds thousands cheaply: it says back what it hears, with the name of its release.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;

use crate::runtime::runtime;

/// Ends with all its sockets when dropped.
pub struct Echo {
    address: SocketAddr,
    _server: JoinSet<()>,
}

impl Echo {
    /// `release`: what each answer begins with.
    pub fn start(release: &str) -> Self {
        let listener = runtime().block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound listener has an address");
        let mut server = JoinSet::new();
        server.spawn_on(serve(listener, release.into()), runtime().handle());
        Self { address, _server: server }
    }

    pub fn target(&self) -> String {
        self.address.to_string()
    }
}

async fn serve(listener: TcpListener, release: Arc<str>) {
    let mut sockets = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        if let Ok((stream, _)) = accepted {
            sockets.spawn(answer(stream, Arc::clone(&release)));
        }
        while sockets.try_join_next().is_some() {}
    }
}

async fn answer(mut stream: TcpStream, release: Arc<str>) {
    // The proxy sends a head in one piece.
    let mut head = [0; 4096];
    let n = stream.peek(&mut head).await.unwrap_or(0);
    let head = String::from_utf8_lossy(&head[..n]).to_ascii_lowercase();
    if !head.contains("\r\nupgrade: websocket\r\n") {
        let events = head.starts_with("get /events ");
        let kind = if events { "text/event-stream" } else { "text/plain" };
        let length = if events { String::new() } else { format!("content-length: {}\r\n", release.len()) };
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{length}connection: close\r\n\r\n");
        // Whoever left does not want it.
        let _ = stream.write_all(format!("{answer}{release}").as_bytes()).await;
        if events {
            // Until the proxy hangs up.
            while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {}
        }
        return;
    }
    let Ok(mut socket) = accept_async(stream).await else { return };
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Text(text) = message
            && socket.send(Message::text(format!("{release}:{text}"))).await.is_err()
        {
            return;
        }
    }
}
