//! An app that takes whatever comes and has all the time in the world: thousands of requests at once, each as
//! slow as its client. A real Puma has a handful of threads, and slow clients would hold them all.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::runtime::runtime;

/// Listens until dropped.
///
/// `/big?N` answers N MiB; `/drip?N` answers N bytes, one every 100 ms, and `/events?N` as many events of an
/// event stream; everything else is read to the end of its body and answered with `patient`.
pub struct Patient {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Patient {
    pub fn start() -> Self {
        let _context = runtime().enter();
        let socket = TcpSocket::new_v4().expect("a descriptor is free");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("loopback has free ports");
        // They come all at once.
        let listener = socket.listen(4096).expect("a bound socket listens");
        let address = listener.local_addr().expect("a bound listener has an address");
        let mut tasks = JoinSet::new();
        tasks.spawn_on(
            async move {
                let mut connections = JoinSet::new();
                loop {
                    // A client that left while it waited is nobody's loss.
                    if let Ok((stream, _)) = listener.accept().await {
                        connections.spawn(async { drop(serve(stream).await) });
                    }
                    while connections.try_join_next().is_some() {}
                }
            },
            runtime().handle(),
        );
        Self { address, _tasks: tasks }
    }

    pub fn target(&self) -> String {
        self.address.to_string()
    }
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        let head = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                let rest = bytes.split_off(at + 4);
                break String::from_utf8_lossy(&std::mem::replace(&mut bytes, rest)).into_owned();
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        };
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let (path, count) = target.split_once('?').unwrap_or((&target, "0"));
        let count: usize = count.parse().unwrap_or(0);
        match path {
            "/big" => big(&mut stream, count << 20).await?,
            "/drip" => drip(&mut stream, "text/plain", count, "1\r\nx\r\n").await?,
            "/events" => drip(&mut stream, "text/event-stream", count, "9\r\ndata: 1\n\n\r\n").await?,
            _ => {
                let mut left = content_length(&head);
                while left > bytes.len() {
                    left -= bytes.len();
                    bytes.clear();
                    if stream.read_buf(&mut bytes).await? == 0 {
                        return Ok(());
                    }
                }
                bytes.drain(..left);
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npatient").await?;
            }
        }
    }
}

fn content_length(head: &str) -> usize {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.next().and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

async fn big(stream: &mut TcpStream, mut left: usize) -> std::io::Result<()> {
    stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n").as_bytes()).await?;
    static PIECE: [u8; 16 * 1024] = [b'b'; 16 * 1024];
    while left > 0 {
        let n = left.min(PIECE.len());
        stream.write_all(&PIECE[..n]).await?;
        left -= n;
    }
    Ok(())
}

async fn drip(stream: &mut TcpStream, kind: &str, count: usize, chunk: &str) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    for _ in 0..count {
        stream.write_all(chunk.as_bytes()).await?;
        sleep(Duration::from_millis(100)).await;
    }
    stream.write_all(b"0\r\n\r\n").await
}
