//! How slow a client may be: a minimum of bytes per second, and some grace.
//!
//! A client has `grace` of time in hand. The time runs only while it is its turn to send or to read, and each
//! byte that moves earns back as much of it as a byte takes at the minimum, never more than `grace` in all.
//! Who sends nothing is too slow after `grace`; who sends one byte now and then is too slow a little later;
//! who keeps the minimum never is, and neither is who waits for the app.
//!
//! A bucket and not a window: it has no border to sit across, and it is three additions.

use std::time::Duration;

/// The slowest that a client may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinRate {
    /// 0: any byte is enough to start the grace anew.
    pub bytes_per_second: u32,
    /// How long nothing at all may move.
    pub grace: Duration,
}

impl MinRate {
    fn grace_us(&self) -> u64 {
        u64::try_from(self.grace.as_micros()).unwrap_or(u64::MAX / 2)
    }

    fn earned_us(&self, bytes: u64) -> u64 {
        match (bytes, self.bytes_per_second) {
            (0, _) => 0,
            (_, 0) => u64::MAX / 2,
            (bytes, rate) => bytes.saturating_mul(1_000_000) / u64::from(rate),
        }
    }
}

/// The time that one client has left. Times are in µs after a moment that the caller keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    pub left_us: u64,
    /// When its turn began, or when it was last reckoned up; `NOBODYS_TURN` while others are waited for.
    pub since_us: u64,
}

pub const NOBODYS_TURN: u64 = u64::MAX;

impl Pace {
    pub fn new(rule: &MinRate) -> Self {
        Self { left_us: rule.grace_us(), since_us: NOBODYS_TURN }
    }

    pub fn is_clients_turn(&self) -> bool {
        self.since_us != NOBODYS_TURN
    }

    /// From now on the client is waited for, unless it already was.
    pub fn begin_turn(&mut self, now_us: u64) {
        if !self.is_clients_turn() {
            self.since_us = now_us;
        }
    }

    /// The client moved so many bytes. Its turn goes on if it was its turn.
    pub fn moved(&mut self, bytes: u64, now_us: u64, rule: &MinRate) {
        if self.is_clients_turn() {
            self.left_us = self.left_us.saturating_sub(now_us.saturating_sub(self.since_us));
            self.since_us = now_us;
        }
        self.left_us = self.left_us.saturating_add(rule.earned_us(bytes)).min(rule.grace_us());
    }

    /// Nothing is wanted of the client any more.
    pub fn end_turn(&mut self, now_us: u64, rule: &MinRate) {
        self.moved(0, now_us, rule);
        self.since_us = NOBODYS_TURN;
    }

    /// When the client will have been too slow, unless something moves; `None` while it is not its turn.
    pub fn deadline_us(&self) -> Option<u64> {
        self.is_clients_turn().then(|| self.since_us.saturating_add(self.left_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: MinRate = MinRate { bytes_per_second: 500, grace: Duration::from_secs(30) };
    const S: u64 = 1_000_000;

    /// What happens to a client, each at so many seconds.
    enum Event {
        Turn(u64),
        Moved(u64, u64),
        End(u64),
    }
    use Event::{End, Moved, Turn};

    #[test]
    fn deadlines() {
        for (name, events, want_s) in [
            ("nothing wanted", &[][..], None),
            ("silent", &[Turn(5)], Some(35)),
            ("a turn begins once", &[Turn(5), Turn(20)], Some(35)),
            ("one byte changes little", &[Turn(0), Moved(20, 1)], Some(30)),
            ("ten seconds' worth of bytes give ten seconds", &[Turn(0), Moved(20, 5_000)], Some(40)),
            ("nobody earns more than the grace", &[Turn(0), Moved(20, 1 << 40)], Some(50)),
            ("the app's time is free", &[Turn(0), Moved(10, 0), End(10), Turn(1_000)], Some(1_020)),
            ("what it did before counts", &[Turn(0), Moved(29, 500), End(29), Turn(50)], Some(52)),
            ("bytes outside its turn earn too", &[Turn(0), End(20), Moved(25, 5_000), Turn(30)], Some(50)),
            ("too late is too late", &[Turn(0), Moved(31, 0)], Some(31)),
        ] {
            let mut pace = Pace::new(&RULE);
            for event in events {
                match *event {
                    Turn(at) => pace.begin_turn(at * S),
                    Moved(at, bytes) => pace.moved(bytes, at * S, &RULE),
                    End(at) => pace.end_turn(at * S, &RULE),
                }
            }
            assert_eq!(pace.deadline_us().map(|us| us / S), want_s, "{name}");
        }
    }

    #[test]
    fn without_a_rate_only_silence_is_too_slow() {
        let rule = MinRate { bytes_per_second: 0, ..RULE };
        let mut pace = Pace::new(&rule);
        pace.begin_turn(0);
        for second in (29..1_000).step_by(29) {
            assert!(pace.deadline_us() > Some(second * S), "at {second} s");
            pace.moved(1, second * S, &rule);
        }
    }

    /// Moves `bytes` every `every_s` until the client is too slow; how long that took, or `None` in a day.
    fn cut_after_s(bytes: u64, every_s: u64) -> Option<u64> {
        let mut pace = Pace::new(&RULE);
        pace.begin_turn(0);
        for second in (every_s..86_400).step_by(every_s as usize) {
            let deadline = pace.deadline_us().expect("its turn goes on");
            if deadline < second * S {
                return Some(deadline / S);
            }
            pace.moved(bytes, second * S, &RULE);
        }
        None
    }

    #[test]
    fn tricklers_are_cut_and_slow_but_steady_clients_are_not() {
        for (bytes, every_s, want_s) in [
            (1, 1, Some(30)),
            (1, 29, Some(30)),
            (250, 1, Some(59)),
            (495, 1, Some(2_901)),
            (500, 1, None),
            (10_000, 20, None),
            (10_000, 29, Some(50)),
            // Its bytes come in bursts that are worth more than the grace.
            (20_000, 29, None),
            (1_000_000, 31, Some(30)),
        ] {
            assert_eq!(cut_after_s(bytes, every_s), want_s, "{bytes} bytes every {every_s} s");
        }
    }

    proptest::proptest! {
        #[test]
        fn the_time_left_is_never_more_than_the_grace(
            steps in proptest::collection::vec((0u64..100 * S, 0u64..100_000, 0u8..3), 0..50)
        ) {
            let (mut pace, mut now) = (Pace::new(&RULE), 0);
            for (pause, bytes, event) in steps {
                now += pause;
                match event {
                    0 => pace.begin_turn(now),
                    1 => pace.end_turn(now, &RULE),
                    _ => pace.moved(bytes, now, &RULE),
                }
                proptest::prop_assert!(pace.left_us <= 30 * S);
            }
        }
    }
}
