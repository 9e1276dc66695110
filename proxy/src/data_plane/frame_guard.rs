//! Counts the frames with which an HTTP/2 client makes work without asking for anything.
//!
//! h2 bounds what floods of CONTINUATION, of empty DATA and of reset streams can cost, but answers SETTINGS and PING,
//! and takes PRIORITY, WINDOW_UPDATE and unknown frames, as fast as they come. All they cost is time, and time of
//! a worker is time of every client on it. So a connection has three allowances, each wide enough for any client
//! that means well:
//!
//! - frames that carry no request: a burst, so many per second, and some more for each request and for what is
//!   downloaded (browsers describe priorities; clients of gRPC measure the path with a ping per round trip);
//! - streams that were opened and given up: half of them, beside a burst and so many per second. A target works on
//!   such a request although nobody waits, and resets that are paced never come to h2's own limit (CVE-2023-44487);
//! - WINDOW_UPDATE: as many as the bytes that were sent can call for. A fast download may bring thousands a second,
//!   each about a frame that was sent, so time is no measure for them.

use std::time::Duration;

use tokio::time::Instant;

/// Reads along with h2.
pub struct FrameGuard {
    /// Bytes before the next frame's head.
    skip: u32,
    head: [u8; HEAD_BYTES],
    head_len: usize,
    spoke: Allowance,
    gave_up: Allowance,
    updates: u64,
    /// Sent, and not yet worth a frame.
    sent: u64,
    /// An allowance is used up; the frame that did it has not ended.
    spent: bool,
}

const HEAD_BYTES: usize = 9;
const PREFACE_BYTES: u32 = 24;

const SPEAKING: Rule = Rule { burst: 1_000, per_second: 100 };
const SPOKE_PER_REQUEST: u32 = 10;
/// Far more than the answer to a ping, so that a flood does not pay for itself.
const BYTES_PER_SPOKEN: u64 = 512;
/// In halves of a stream, so that a request earns half a cancellation.
const GIVING_UP: Rule = Rule { burst: 400, per_second: 20 };
const RESET: u32 = 2;
/// A frame with one byte of a body has this many bytes, and a client may answer it with two updates.
const BYTES_PER_UPDATE: u64 = 5;
const UPDATES_AT_FIRST: u64 = 1_000;

/// RFC 9113 §6.
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
}

/// What makes h2 say `ENHANCE_YOUR_CALM` and close: hyper has no way to ask for it. A header block in more pieces
/// than h2 takes, on the last stream there could be.
pub const FLOOD: &[u8] = &{
    const PIECES: usize = 64;
    let mut frames = [0; HEAD_BYTES * PIECES];
    let mut n = 0;
    while n < PIECES {
        frames[n * HEAD_BYTES + 3] = if n == 0 { kind::HEADERS } else { kind::CONTINUATION };
        let mut digit = 5;
        while digit < HEAD_BYTES {
            frames[n * HEAD_BYTES + digit] = if digit == 5 { 0x7f } else { 0xff };
            digit += 1;
        }
        n += 1;
    }
    frames
};

impl FrameGuard {
    pub fn new(now: Instant) -> Self {
        Self {
            skip: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            head_len: 0,
            spoke: Allowance::new(&SPEAKING, now),
            gave_up: Allowance::new(&GIVING_UP, now),
            updates: UPDATES_AT_FIRST,
            sent: 0,
            spent: false,
        }
    }

    /// So many bytes were sent to the client.
    pub fn has_sent(&mut self, bytes: usize) {
        self.updates = self.updates.saturating_add(bytes as u64 / BYTES_PER_UPDATE);
        let sent = self.sent + bytes as u64;
        self.sent = sent % BYTES_PER_SPOKEN;
        self.spoke.earn(u32::try_from(sent / BYTES_PER_SPOKEN).unwrap_or(u32::MAX), &SPEAKING);
    }

    /// Where in `bytes` the frame ends that was one too many.
    pub fn find_flood(&mut self, bytes: &[u8], now: Instant) -> Option<usize> {
        let mut rest = bytes;
        loop {
            let skipped = rest.len().min(self.skip as usize);
            self.skip -= skipped as u32;
            rest = &rest[skipped..];
            if self.skip == 0 && self.spent {
                return Some(bytes.len() - rest.len());
            }
            if rest.is_empty() {
                return None;
            }
            let taken = rest.len().min(HEAD_BYTES - self.head_len);
            self.head[self.head_len..self.head_len + taken].copy_from_slice(&rest[..taken]);
            self.head_len += taken;
            rest = &rest[taken..];
            if self.head_len == HEAD_BYTES {
                self.head_len = 0;
                self.begin_frame(now);
            }
        }
    }

    fn begin_frame(&mut self, now: Instant) {
        let [a, b, c, kind, ..] = self.head;
        self.skip = u32::from_be_bytes([0, a, b, c]);
        let affordable = match kind {
            kind::DATA | kind::CONTINUATION => true,
            kind::HEADERS => {
                self.spoke.earn(SPOKE_PER_REQUEST, &SPEAKING);
                self.gave_up.earn(1, &GIVING_UP);
                true
            }
            kind::RST_STREAM => self.gave_up.spend(RESET, &GIVING_UP, now),
            kind::WINDOW_UPDATE => {
                let left = self.updates.checked_sub(1);
                self.updates = left.unwrap_or(0);
                left.is_some()
            }
            _ => self.spoke.spend(1, &SPEAKING, now),
        };
        self.spent |= !affordable;
    }
}

struct Rule {
    burst: u32,
    per_second: u32,
}

/// A token bucket.
struct Allowance {
    left: u32,
    reckoned: Instant,
}

impl Allowance {
    fn new(rule: &Rule, now: Instant) -> Self {
        Self { left: rule.burst, reckoned: now }
    }

    fn earn(&mut self, amount: u32, rule: &Rule) {
        self.left = self.left.saturating_add(amount).min(rule.burst);
    }

    fn spend(&mut self, amount: u32, rule: &Rule, now: Instant) -> bool {
        let waited = (now - self.reckoned).as_millis() * u128::from(rule.per_second) / 1_000;
        let waited = u32::try_from(waited).unwrap_or(u32::MAX);
        // What is less than one goes on counting.
        self.reckoned += Duration::from_secs(1) / rule.per_second * waited;
        self.earn(waited, rule);
        let left = self.left.checked_sub(amount);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: u8 = 4;
    const PING: u8 = 6;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 1], payload].concat()
    }

    fn preface() -> Vec<u8> {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, &[0; 12]));
        bytes
    }

    /// How many of `frames`, each `every` after the last, are let through.
    fn let_through(frames: &[Vec<u8>], every: Duration, sent: usize) -> usize {
        let begin = Instant::now();
        let mut guard = FrameGuard::new(begin);
        assert_eq!(guard.find_flood(&preface(), begin), None);
        for (n, frame) in frames.iter().enumerate() {
            guard.has_sent(sent);
            if guard.find_flood(frame, begin + every * n as u32).is_some() {
                return n;
            }
        }
        frames.len()
    }

    #[test]
    fn floods_end_and_clients_go_on() {
        let repeat = |kinds: &[u8], n: usize| -> Vec<Vec<u8>> {
            let kinds = kinds.iter().cycle().take(kinds.len() * n);
            kinds.map(|kind| frame(*kind, b"12345678")).collect()
        };
        let (at_once, ms) = (Duration::ZERO, Duration::from_millis);
        for (what, frames, every, sent, want) in [
            // The preface's SETTINGS was the first.
            ("pings at once", repeat(&[PING], 30_000), at_once, 0, 999),
            ("unknown frames", repeat(&[0xbe], 30_000), at_once, 0, 999),
            ("a ping each 20 ms", repeat(&[PING], 30_000), ms(20), 0, 30_000),
            ("a ping for each kilobyte", repeat(&[PING], 30_000), at_once, 1024, 30_000),
            ("pings that are answered", repeat(&[PING], 30_000), at_once, 17, 1_033),
            ("five priorities a request", repeat(&[2, 2, 2, 2, 2, kind::HEADERS], 5_000), at_once, 0, 30_000),
            ("requests", repeat(&[kind::HEADERS, kind::DATA], 5_000), at_once, 0, 10_000),
            ("all given up at once", repeat(&[kind::HEADERS, kind::RST_STREAM], 5_000), at_once, 0, 799),
            ("given up at 50 a second", repeat(&[kind::HEADERS, kind::RST_STREAM], 5_000), ms(10), 0, 1_329),
            ("one of three given up", repeat(&[1, 1, 1, kind::RST_STREAM], 5_000), at_once, 0, 20_000),
            ("updates for nothing", repeat(&[kind::WINDOW_UPDATE], 30_000), at_once, 0, 1_000),
            ("two updates for a byte", repeat(&[kind::WINDOW_UPDATE], 30_000), at_once, 5, 30_000),
        ] {
            assert_eq!(let_through(&frames, every, sent), want, "{what}");
        }
    }

    #[test]
    fn the_border_of_the_last_frame_is_found_wherever_reads_fall() {
        let begin = Instant::now();
        let mut bytes = preface();
        (0..SPEAKING.burst).for_each(|_| bytes.extend(frame(PING, b"12345678")));
        let border = bytes.len();
        bytes.extend_from_slice(b"more");
        for piece in [1, 7, 9, 17, 1_000, bytes.len()] {
            let mut guard = FrameGuard::new(begin);
            let mut before = 0;
            let found = bytes.chunks(piece).find_map(|read| {
                let found = guard.find_flood(read, begin);
                before += read.len();
                found.map(|at| before - read.len() + at)
            });
            assert_eq!(found, Some(border), "reads of {piece}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(0u8..=255, 0..200)) {
            FrameGuard::new(Instant::now()).find_flood(&bytes, Instant::now());
        }
    }
}
