//! WebSocket tunnels: bytes both ways, and a proper close when the release behind them ends.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// The moment at which one socket of an ending release has to go: each has its own within the drain's window, all evenly
/// spread, so that thousands of clients do not come back in the same instant.
pub struct Farewell {
    wait: Pin<Box<dyn Future<Output = ()>>>,
    ending: watch::Receiver<Ending>,
}

impl Farewell {
    pub fn new(release: &Release, worker: &Worker) -> Self {
        // The process's own end is spread too, and leaves time to say goodbye.
        Self::at_end_of(release.ending(), worker.shutdown.clone(), worker.config.shutdown_timeout / 2)
    }

    fn at_end_of(
        ending: watch::Receiver<Ending>,
        shutdown: CancellationToken,
        shutdown_window: Duration,
    ) -> Self {
        Self { wait: Box::pin(wait_for_end(ending.clone(), shutdown, shutdown_window)), ending }
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.wait.as_mut().poll(cx)
    }

    async fn wait(&mut self) {
        self.wait.as_mut().await;
    }

    /// The drain's deadline has passed, and with it all patience.
    fn cut(&self) -> impl Future<Output = ()> + use<> {
        let mut ending = self.ending.clone();
        async move {
            // An error means that the release itself is gone, which is the same.
            let _ = ending.wait_for(|ending| *ending == Ending::Cut).await;
        }
    }
}

async fn wait_for_end(
    mut ending: watch::Receiver<Ending>,
    shutdown: CancellationToken,
    shutdown_window: Duration,
) {
    loop {
        let told = {
            let told = ending.wait_for(|ending| *ending != Ending::Serving);
            tokio::select! {
                told = told => match told.map(|ending| *ending) {
                    Ok(Ending::Draining { sockets_until } | Ending::CuttingRequests { sockets_until }) => {
                        Some(sockets_until)
                    }
                    Ok(Ending::Serving | Ending::Cut) | Err(_) => return,
                },
                () = shutdown.cancelled() => None,
            }
        };
        let until = told.unwrap_or_else(|| Instant::now() + shutdown_window);
        let moment = until.saturating_duration_since(Instant::now()).mul_f64(next_share());
        // A drain may be called off, a shutdown may not.
        let is_over = |ending: &Ending| match ending {
            Ending::Cut => true,
            Ending::Serving => told.is_some(),
            Ending::Draining { .. } | Ending::CuttingRequests { .. } => false,
        };
        tokio::select! {
            () = tokio::time::sleep(moment) => return,
            ended = ending.wait_for(is_over) => if !ended.is_ok_and(|ending| *ending == Ending::Serving) {
                return;
            },
        }
    }
}

/// From 0 to 1, each call another. Multiples of the golden ratio: however many follow one another, every part of the
/// range gets its share of them but for a few. Random ones come in clusters, and thousands have seconds with many more
/// than their share.
fn next_share() -> f64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    /// 2⁶⁴ / φ.
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let share = CALLS.fetch_add(1, Ordering::Relaxed).wrapping_mul(STEP);
    (share >> 11) as f64 / (1u64 << 53) as f64
}

/// How many bytes a tunnel carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    pub from_client: u64,
    pub to_client: u64,
}

/// Carries bytes until one side ends or `farewell` comes. Then the client gets a close frame behind the message that
/// it is being sent, and both connections end. A side that neither reads nor comes to a border is cut.
pub async fn tunnel(
    client: impl AsyncRead + AsyncWrite + Unpin,
    target: impl AsyncRead + AsyncWrite + Unpin,
    mut farewell: Farewell,
) -> Carried {
    let (client_read, client_write) = tokio::io::split(client);
    let (target_read, target_write) = tokio::io::split(target);
    let (from_client, to_client) = (Cell::new(0), Cell::new(0));
    let cut = farewell.cut();
    let carrying = async {
        let upward = copy(client_read, target_write, &from_client);
        let downward = copy_frames(target_read, client_write, &to_client, &mut farewell);
        // Whoever ends first has told its side; the other side gets a moment to say goodbye.
        tokio::pin!(upward, downward);
        tokio::select! {
            _ = &mut upward => { let _ = tokio::time::timeout(CLOSE_GRACE, downward).await; }
            _ = &mut downward => { let _ = tokio::time::timeout(CLOSE_GRACE, upward).await; }
        }
    };
    let cut_after_grace = async {
        cut.await;
        tokio::time::sleep(CLOSE_GRACE).await;
    };
    tokio::select! {
        () = carrying => {}
        () = cut_after_grace => {}
    }
    Carried { from_client: from_client.get(), to_client: to_client.get() }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: &Cell<u64>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return to.shutdown().await;
        }
        write(&mut to, &buffer[..n], count).await?;
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8], count: &Cell<u64>) -> std::io::Result<()> {
    to.write_all(bytes).await?;
    // TLS keeps what the socket did not take.
    to.flush().await?;
    count.set(count.get() + bytes.len() as u64);
    Ok(())
}

/// Like `copy`, but after `farewell` it ends with a close frame at the next border between messages.
async fn copy_frames(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: &Cell<u64>,
    farewell: &mut Farewell,
) -> std::io::Result<()> {
    let mut frames = FrameTracker::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut leaving = false;
    while !(leaving && frames.at_border()) {
        // Reading is cancel safe: a dropped read has taken no bytes.
        let n = tokio::select! {
            read = from.read(&mut buffer) => read?,
            () = farewell.wait(), if !leaving => { leaving = true; continue }
        };
        if n == 0 {
            return to.shutdown().await;
        }
        let bytes = if leaving {
            &buffer[..frames.until_border(&buffer[..n])]
        } else {
            frames.until_end(&buffer[..n]);
            &buffer[..n]
        };
        write(&mut to, bytes, count).await?;
    }
    to.write_all(&SERVICE_RESTART).await?;
    to.shutdown().await
}

const FIN: u8 = 0x80;
const OPCODE_CONTROL: u8 = 0x08;

/// Follows the frames of one direction (RFC 6455 §5.2) without looking at what they say.
#[derive(Default)]
struct FrameTracker {
    head: [u8; 14],
    head_len: usize,
    payload_left: u64,
    /// More frames of the same message follow.
    is_fragmented: bool,
}

impl FrameTracker {
    /// No message is cut here, nor a frame.
    fn at_border(&self) -> bool {
        self.head_len == 0 && self.payload_left == 0 && !self.is_fragmented
    }

    fn until_end(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let n = self.until_border(bytes);
            bytes = &bytes[n..];
        }
    }

    /// Takes bytes up to the end of the message that they are in, and says how many.
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
                // Control frames come between the fragments of a message, and are none themselves.
                if self.head[0] & OPCODE_CONTROL == 0 {
                    self.is_fragmented = self.head[0] & FIN == 0;
                }
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

    #[test]
    fn a_message_in_fragments_has_one_border() {
        let part = |first: u8| vec![first, 3, b'a', b'b', b'c'];
        let ping = [0x89, 0x00];
        // Text, continued twice with a ping between, and a message in one frame.
        let whole = [&part(0x01)[..], &ping, &part(0x00), &part(0x80), &part(0x81)].concat();
        for chunk in [1, 2, 5, whole.len()] {
            let (mut tracker, mut borders, mut at) = (FrameTracker::default(), Vec::new(), 0);
            for mut piece in whole.chunks(chunk) {
                while !piece.is_empty() {
                    let n = tracker.until_border(piece);
                    (at, piece) = (at + n, &piece[n..]);
                    if tracker.at_border() {
                        borders.push(at);
                    }
                }
            }
            assert_eq!(borders, [17, 22], "reads of {chunk}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_second_of_a_drain_sees_more_than_its_share() {
        let (sockets, window) = (5_000, Duration::from_secs(57));
        let (_ending, seen) = watch::channel(Ending::Draining { sockets_until: Instant::now() + window });
        let began = Instant::now();
        let leaving = (0..sockets).map(|_| {
            let mut farewell = farewell(seen.clone());
            async move {
                farewell.wait().await;
                began.elapsed()
            }
        });
        let mut moments = futures_util::future::join_all(leaving).await;
        moments.sort_unstable();
        let second = Duration::from_secs(1);
        let most = (0..moments.len())
            .map(|at| moments[at..].iter().take_while(|moment| **moment - moments[at] < second).count())
            .max();
        assert!(most.unwrap() * 50 <= sockets, "{most:?} of {sockets} within a second");
        assert!(*moments.last().unwrap() <= window);
    }

    fn farewell(ending: watch::Receiver<Ending>) -> Farewell {
        Farewell::at_end_of(ending, CancellationToken::new(), Duration::ZERO)
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

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_is_called_off_spares_its_sockets_until_the_next_one() {
        let (ending, seen) = watch::channel(Ending::Serving);
        let mut farewell = farewell(seen);
        let began = Instant::now();
        let drain = |s| Ending::Draining { sockets_until: Instant::now() + Duration::from_secs(s) };
        let orders = async {
            ending.send_replace(drain(1_000_000));
            tokio::time::sleep(Duration::from_millis(1)).await;
            ending.send_replace(Ending::Serving);
            tokio::time::sleep(Duration::from_secs(2_000_000)).await;
            ending.send_replace(drain(10));
        };
        tokio::join!(farewell.wait(), orders);
        assert_eq!(began.elapsed().as_secs() / 100, 20_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_ends_a_tunnel_whose_sides_stand_still() {
        for in_the_middle_of_a_frame in [false, true] {
            let (_browser, client) = tokio::io::duplex(64);
            let (mut app, target) = tokio::io::duplex(1 << 20);
            let (ending, seen) = watch::channel(Ending::Serving);
            // Either the client does not read, or the app does not finish its frame.
            let sent = if in_the_middle_of_a_frame { 10 } else { 1000 };
            app.write_all(&frame(1000, false)[..sent]).await.unwrap();
            let cut = async {
                ending.send_replace(Ending::Draining { sockets_until: Instant::now() });
                tokio::time::sleep(Duration::from_secs(1)).await;
                ending.send_replace(Ending::Cut);
            };
            let began = Instant::now();
            tokio::join!(tunnel(client, target, farewell(seen)), cut);
            assert_eq!(began.elapsed(), Duration::from_secs(1) + CLOSE_GRACE, "{in_the_middle_of_a_frame}");
        }
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
