//! How long a buffered answer is held back before its client gets the first of it.
//!
//! Whole answers go out whole: with their length, and with an honest status if they turn out too long or break off.
//! But an app that flushes wants its pieces seen. The coding does not tell (Rails chunks whole pages too), so time
//! does: who pauses between pieces flushes, and who writes without a pause for long has a long answer, which nobody
//! should wait for. Passing on early costs no thread of the app: what comes behind is buffered all the same.

use std::time::Duration;

/// Between two pieces.
pub const PAUSE: Duration = Duration::from_millis(100);
/// From the first piece.
pub const WHOLE: Duration = Duration::from_secs(1);

/// An answer that is held. Times are those after a moment that the caller keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Holding {
    first: Option<Duration>,
    last: Duration,
}

impl Holding {
    /// A piece of the body has come.
    pub fn came(&mut self, now: Duration) {
        self.first.get_or_insert(now);
        self.last = now;
    }

    /// When to pass on what is there unless more comes; `None`: nothing is there.
    pub fn until(&self) -> Option<Duration> {
        self.first.map(|first| (first + WHOLE).min(self.last + PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When an answer whose pieces come at these milliseconds is passed on, unless it ends before.
    fn passed_on_at(pieces: impl IntoIterator<Item = u64>) -> Option<u64> {
        let mut holding = Holding::default();
        for at in pieces {
            let at = Duration::from_millis(at);
            if holding.until().is_some_and(|until| until <= at) {
                break;
            }
            holding.came(at);
        }
        holding.until().map(|until| until.as_millis() as u64)
    }

    #[test]
    fn answers_are_passed_on_at_a_pause_and_never_held_for_long() {
        let steady = |every: usize| (0..60_000).step_by(every);
        for (name, passed_on, want_ms) in [
            ("nothing has come", passed_on_at([]), None),
            ("one piece, then silence", passed_on_at([5_000]), Some(5_100)),
            ("a pause behind some pieces", passed_on_at([10, 20, 30, 500]), Some(130)),
            ("a piece every 50 ms", passed_on_at(steady(50)), Some(1_000)),
            ("as fast as can be", passed_on_at(steady(1)), Some(1_000)),
            ("a piece each second", passed_on_at(steady(1_000)), Some(100)),
        ] {
            assert_eq!(passed_on, want_ms, "{name}");
        }
    }
}
