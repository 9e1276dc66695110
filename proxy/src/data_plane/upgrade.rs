//! WebSocket tunnels: bytes both ways, and a proper close when the release behind them ends.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::worker::Worker;
use crate::release::{Ending, Release};

/// Close code 1012, "service restart" (IANA WebSocket close code registry): clients reconnect.
const SERVICE_RESTART: [u8; 4] = [0x88, 0x02, 0x03, 0xf4];
/// How long a client may take to answer a close frame before the connection is dropped.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
const BUFFER_BYTES: usize = 16 * 1024;

/// The moment at which one socket of an ending release has to go: a random one within the drain's window,
/// so that thousands of clients do not come back in the same instant.
pub struct Farewell {
    wait: Pin<Box<dyn Future<Output = ()>>>,
}

impl Farewell {
    pub fn new(release: &Release, worker: &Worker) -> Self {
        let (ending, shutdown) = (release.ending(), worker.shutdown.clone());
        // The process's own end is spread too, and leaves time to say goodbye.
        let shutdown_window = worker.config.shutdown_timeout / 2;
        Self { wait: Box::pin(wait_for_end(ending, shutdown, shutdown_window)) }
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.wait.as_mut().poll(cx)
    }

    async fn wait(&mut self) {
        self.wait.as_mut().await;
    }
}

async fn wait_for_end(
    mut ending: watch::Receiver<Ending>,
    shutdown: CancellationToken,
    shutdown_window: Duration,
) {
    let told = ending.wait_for(|ending| *ending != Ending::Serving);
    let until = tokio::select! {
        told = told => match told.map(|ending| *ending) {
            Ok(Ending::Draining { sockets_until }) => sockets_until,
            Ok(Ending::Serving | Ending::Cut) | Err(_) => return,
        },
        () = shutdown.cancelled() => Instant::now() + shutdown_window,
    };
    let moment = until.saturating_duration_since(Instant::now()).mul_f64(random_share());
    tokio::select! {
        () = tokio::time::sleep(moment) => {}
        _ = ending.wait_for(|ending| *ending == Ending::Cut) => {}
    }
}

/// Evenly from 0 to 1. The standard library seeds each hasher at random, which is random enough to spread.
fn random_share() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// How many bytes a tunnel carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    pub from_client: u64,
    pub to_client: u64,
}

/// Carries bytes until one side ends or `farewell` comes. Then the client gets a close frame at the next
/// frame border, and both connections end.
pub async fn tunnel(
    client: impl AsyncRead + AsyncWrite + Unpin,
    target: impl AsyncRead + AsyncWrite + Unpin,
    mut farewell: Farewell,
) -> Carried {
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut target_read, mut target_write) = tokio::io::split(target);
    let mut carried = Carried::default();
    let mut frames = FrameTracker::default();
    {
        let upward = copy(&mut client_read, &mut target_write, &mut carried.from_client);
        let downward = async {
            let end = copy_frames(
                &mut target_read,
                &mut client_write,
                &mut frames,
                &mut carried.to_client,
                &mut farewell,
            )
            .await;
            if matches!(end, Ok(End::Farewell)) {
                let _ = client_write.write_all(&SERVICE_RESTART).await;
            }
            // The client's reading side ends whichever way this one did.
            let _ = client_write.shutdown().await;
        };
        // Whoever ends first has told its side; the other side gets a moment to say goodbye.
        tokio::pin!(upward, downward);
        tokio::select! {
            _ = &mut upward => { let _ = tokio::time::timeout(CLOSE_GRACE, downward).await; }
            () = &mut downward => { let _ = tokio::time::timeout(CLOSE_GRACE, upward).await; }
        }
    }
    carried
}

enum End {
    Closed,
    Farewell,
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    count: &mut u64,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..n]).await?;
        *count += n as u64;
    }
}

/// Like `copy`, but able to stop between two frames.
async fn copy_frames(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    frames: &mut FrameTracker,
    count: &mut u64,
    farewell: &mut Farewell,
) -> std::io::Result<End> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut leaving = false;
    loop {
        if leaving && frames.at_border() {
            return Ok(End::Farewell);
        }
        // Reading is cancel safe: a dropped read has taken no bytes.
        let n = tokio::select! {
            read = from.read(&mut buffer) => read?,
            () = farewell.wait(), if !leaving => { leaving = true; continue }
        };
        if n == 0 {
            return Ok(End::Closed);
        }
        let mut bytes = &buffer[..n];
        if leaving {
            bytes = &bytes[..frames.until_border(bytes)];
        } else {
            frames.until_end(bytes);
        }
        to.write_all(bytes).await?;
        *count += bytes.len() as u64;
    }
}

/// Follows the frames of one direction (RFC 6455 §5.2) without looking at what they say.
#[derive(Default)]
struct FrameTracker {
    head: [u8; 14],
    head_len: usize,
    payload_left: u64,
}

impl FrameTracker {
    fn at_border(&self) -> bool {
        self.head_len == 0 && self.payload_left == 0
    }

    fn until_end(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let n = self.until_border(bytes);
            bytes = &bytes[n..];
        }
    }

    /// Takes bytes up to the end of the frame that they are in, and says how many.
    fn until_border(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() {
            if self.payload_left > 0 {
                let n = self.payload_left.min((bytes.len() - taken) as u64);
                self.payload_left -= n;
                taken += n as usize;
            } else {
                self.head[self.head_len] = bytes[taken];
                self.head_len += 1;
                taken += 1;
                let Some(payload) = payload_len(&self.head[..self.head_len]) else { continue };
                self.payload_left = payload;
                self.head_len = 0;
            }
            if self.at_border() {
                break;
            }
        }
        taken
    }
}

/// The length of the payload behind a frame's head, once the head is complete.
fn payload_len(head: &[u8]) -> Option<u64> {
    let second = *head.get(1)?;
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    if head.len() < 2 + extended + mask {
        return None;
    }
    Some(match extended {
        0 => u64::from(second & 0x7f),
        _ => head[2..2 + extended].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: usize, masked: bool) -> Vec<u8> {
        let bit = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x82];
        match payload {
            0..126 => frame.push(bit | payload as u8),
            126..65536 => {
                frame.push(bit | 126);
                frame.extend_from_slice(&(payload as u16).to_be_bytes());
            }
            _ => {
                frame.push(bit | 127);
                frame.extend_from_slice(&(payload as u64).to_be_bytes());
            }
        }
        frame.extend(std::iter::repeat_n(7, payload + if masked { 4 } else { 0 }));
        frame
    }

    #[test]
    fn borders_are_found_wherever_reads_end() {
        for masked in [false, true] {
            let lengths = [0, 1, 125, 126, 127, 65_535, 65_536, 0];
            let stream: Vec<u8> = lengths.iter().flat_map(|n| frame(*n, masked)).collect();
            let borders: Vec<usize> = lengths
                .iter()
                .scan(0, |at, n| {
                    *at += frame(*n, masked).len();
                    Some(*at)
                })
                .collect();
            for chunk in [1, 2, 3, 7, 1000, stream.len()] {
                let mut tracker = FrameTracker::default();
                let mut found = Vec::new();
                let mut at = 0;
                for mut piece in stream.chunks(chunk) {
                    while !piece.is_empty() {
                        let n = tracker.until_border(piece);
                        at += n;
                        piece = &piece[n..];
                        if tracker.at_border() {
                            found.push(at);
                        }
                    }
                }
                assert_eq!(found, borders, "masked {masked}, reads of {chunk}");
            }
        }
    }

    fn farewell(ending: watch::Receiver<Ending>) -> Farewell {
        Farewell { wait: Box::pin(wait_for_end(ending, CancellationToken::new(), Duration::ZERO)) }
    }

    #[tokio::test(start_paused = true)]
    async fn an_ending_release_closes_its_sockets_between_frames() {
        let (mut browser, client) = tokio::io::duplex(1 << 20);
        let (mut app, target) = tokio::io::duplex(1 << 20);
        let (ending, seen) = watch::channel(Ending::Serving);
        let talk = async {
            let message = frame(1000, false);
            app.write_all(&message[..500]).await.unwrap();
            let mut got = vec![0; 500];
            browser.read_exact(&mut got).await.unwrap();
            ending.send_replace(Ending::Draining { sockets_until: Instant::now() + Duration::from_secs(10) });
            tokio::time::sleep(Duration::from_secs(11)).await;
            // In the middle of a frame nothing may come between.
            app.write_all(&message[500..]).await.unwrap();
            browser.read_to_end(&mut got).await.unwrap();
            (got, message)
        };
        let (carried, (got, message)) = tokio::join!(tunnel(client, target, farewell(seen)), talk);
        assert_eq!(got, [message.as_slice(), &SERVICE_RESTART].concat());
        assert_eq!(carried.to_client, message.len() as u64);
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_until_a_side_ends() {
        let (mut browser, client) = tokio::io::duplex(64);
        let (mut app, target) = tokio::io::duplex(64);
        let (_ending, seen) = watch::channel(Ending::Serving);
        let talk = async {
            browser.write_all(b"ping").await.unwrap();
            let mut four = [0; 4];
            app.read_exact(&mut four).await.unwrap();
            app.write_all(b"pong").await.unwrap();
            browser.read_exact(&mut four).await.unwrap();
            drop(app);
            assert_eq!(browser.read(&mut four).await.unwrap(), 0);
            four
        };
        let (carried, last) = tokio::join!(tunnel(client, target, farewell(seen)), talk);
        assert_eq!((last, carried), (*b"pong", Carried { from_client: 4, to_client: 4 }));
    }
}
