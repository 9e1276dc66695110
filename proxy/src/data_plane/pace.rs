//! Waits for a client that has to send, for as long as it keeps the pace that `model::pace` asks of it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use model::pace::{MinRate, Pace};
use tokio::time::{Instant, Sleep, sleep_until};

/// One body's sender.
pub struct Sender {
    origin: Instant,
    rule: MinRate,
    pace: Pace,
    /// Made at the first wait; re-armed when it fires too early, not at each piece.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Sender {
    pub fn new(rule: MinRate, now: Instant) -> Self {
        Self { origin: now, rule, pace: Pace::new(&rule), timer: None }
    }

    /// Nothing has come and something is wanted. Ready when the client is too slow.
    pub fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.pace.is_clients_turn() {
            self.pace.begin_turn(self.us(Instant::now()));
        }
        let deadline_us = self.pace.deadline_us().expect("its turn has just begun");
        let deadline = self.origin + Duration::from_micros(deadline_us);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if deadline < timer.deadline() {
            timer.as_mut().reset(deadline);
        }
        loop {
            std::task::ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }

    /// Bytes have come; whether more are wanted at once, the next wait tells.
    pub fn moved(&mut self, bytes: usize, now: Instant) {
        let now = self.us(now);
        self.pace.moved(bytes as u64, now, &self.rule);
        self.pace.end_turn(now, &self.rule);
    }

    fn us(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.origin).as_micros() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `bytes` every `every_s`, `times` times, while the target takes `slow_target_s` for each; how
    /// long until the client was too slow.
    async fn cut_after(bytes: usize, every_s: u64, times: u32, slow_target_s: u64) -> Option<u64> {
        let began = Instant::now();
        let rule = MinRate { bytes_per_second: 500, grace: Duration::from_secs(30) };
        let mut sender = Sender::new(rule, began);
        for _ in 0..times {
            let arrives = began.elapsed() + Duration::from_secs(every_s);
            let wait = std::future::poll_fn(|cx| sender.poll_wait(cx));
            if tokio::time::timeout_at(began + arrives, wait).await.is_ok() {
                return Some(began.elapsed().as_secs());
            }
            sender.moved(bytes, Instant::now());
            tokio::time::sleep(Duration::from_secs(slow_target_s)).await;
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_keep_the_pace_is_cut() {
        for (bytes, every_s, times, slow_target_s, want) in [
            (1, 40, 1, 0, Some(30)),
            (1, 2, 100, 0, Some(30)),
            (1_000, 2, 100, 0, None),
            (400, 1, 1_000, 0, Some(146)),
            (1_000, 2, 100, 100, None),
            (1, 2, 100, 10, Some(180)),
        ] {
            let cut = cut_after(bytes, every_s, times, slow_target_s).await;
            assert_eq!(cut, want, "{bytes} bytes every {every_s} s, then {slow_target_s} s for the target");
        }
    }
}
