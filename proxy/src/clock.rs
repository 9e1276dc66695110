//! The time, read once per poll of a connection.
//!
//! Whatever a connection does in one poll happens at one moment as far as logs, deadlines and latencies care, and a
//! request would otherwise read the clock a dozen times. Where nobody holds it, the clock is asked.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

thread_local! {
    static HELD: Cell<Option<Reading>> = const { Cell::new(None) };
}

#[derive(Clone, Copy)]
struct Reading {
    now: Instant,
    /// Asked for by few.
    since_epoch: Option<Duration>,
}

/// Until it is dropped, at the end of the poll that holds the clock.
pub struct Held(());

/// Stops the clock of this thread for the poll that has just begun.
pub fn hold() -> Held {
    HELD.set(Some(Reading { now: Instant::now(), since_epoch: None }));
    Held(())
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.set(None);
    }
}

pub fn now() -> Instant {
    HELD.get().map_or_else(Instant::now, |reading| reading.now)
}

/// Since the Unix epoch.
pub fn unix_time() -> Duration {
    let read = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let Some(reading) = HELD.get() else { return read() };
    reading.since_epoch.unwrap_or_else(|| {
        let since_epoch = read();
        HELD.set(Some(Reading { since_epoch: Some(since_epoch), ..reading }));
        since_epoch
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stands_still_while_it_is_held() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let held = hold();
        let unix = unix_time();
        tokio::time::advance(second).await;
        assert_eq!((now(), unix_time()), (start, unix));
        drop(held);
        assert_eq!(now(), start + second);
        drop(hold());
        assert_eq!(now(), start + second);
    }
}
