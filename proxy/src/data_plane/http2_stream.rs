//! One HTTP/2 stream as a task of its own: when its client stops reading, it is reset, and no other.
//!
//! hyper runs each stream's answer as a future on our executor, and waits in it for the client's window
//! without asking the body for more. So the body leaves a note of when it last gave something (`gave`), and
//! the task around it keeps the time. The note travels beside hyper, in a cell of the thread: it is written
//! during a poll and read at the end of that same poll.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use model::pace::{MinRate, Pace};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::clock;

/// Whose turn it is, and how the client kept pace so far.
#[derive(Clone, Copy)]
struct Turn {
    origin: Instant,
    rule: MinRate,
    pace: Pace,
    /// Given and, as far as we know, not yet taken.
    owed: u64,
}

thread_local! {
    static TURN: Cell<Option<Turn>> = const { Cell::new(None) };
}

impl Turn {
    fn now_us(&self) -> u64 {
        (clock::now() - self.origin).as_micros() as u64
    }
}

/// A response body gave a frame: the client has to take it now. That it was asked for one says that those
/// before it were taken.
pub fn gave(bytes: usize) {
    if let Some(mut turn) = TURN.get() {
        let now = turn.now_us();
        turn.pace.moved(turn.owed, now, &turn.rule);
        turn.pace.begin_turn(now);
        turn.owed = bytes as u64;
        TURN.set(Some(turn));
    }
}

/// A response body waits for the app, or has ended.
pub fn waits() {
    if let Some(mut turn) = TURN.get()
        && turn.pace.is_clients_turn()
    {
        let now = turn.now_us();
        turn.pace.moved(turn.owed, now, &turn.rule);
        turn.pace.end_turn(now, &turn.rule);
        turn.owed = 0;
        TURN.set(Some(turn));
    }
}

/// How a stream's task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Answered,
    /// Dropping hyper's future resets the stream.
    TooSlow,
}

pin_project! {
    pub struct StreamTask<F> {
        #[pin]
        answer: F,
        turn: Turn,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F> StreamTask<F> {
    pub fn new(answer: F, rule: MinRate) -> Self {
        let turn = Turn { origin: Instant::now(), rule, pace: Pace::new(&rule), owed: 0 };
        Self { answer, turn, timer: None }
    }
}

impl<F: Future<Output = ()>> Future for StreamTask<F> {
    type Output = Ended;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let _held = clock::hold();
        let this = self.project();
        TURN.set(Some(*this.turn));
        let answered = this.answer.poll(cx).is_ready();
        if let Some(turn) = TURN.take() {
            *this.turn = turn;
        }
        if answered {
            return Poll::Ready(Ended::Answered);
        }
        let Some(deadline) = this.turn.pace.deadline_us() else {
            *this.timer = None;
            return Poll::Pending;
        };
        let deadline = this.turn.origin + Duration::from_micros(deadline);
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx).map(|()| Ended::TooSlow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: MinRate = MinRate { bytes_per_second: 500, grace: Duration::from_secs(30) };

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_client_stands_still_ends() {
        let began = Instant::now();
        let answer = async {
            waits();
            tokio::time::sleep(Duration::from_secs(100)).await;
            gave(16_384);
            std::future::pending().await
        };
        assert_eq!(StreamTask::new(answer, RULE).await, Ended::TooSlow);
        assert_eq!(began.elapsed().as_secs(), 130, "waiting for the app is no stall");
    }

    /// Frames of `bytes`, each of which the client takes in 20 s.
    async fn frames(bytes: usize) -> (Ended, u64) {
        let began = Instant::now();
        let answer = async move {
            for _ in 0..10 {
                gave(bytes);
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
        };
        (StreamTask::new(answer, RULE).await, began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_moves_goes_on_and_one_that_trickles_does_not() {
        assert_eq!(frames(10_000).await, (Ended::Answered, 200));
        assert_eq!(frames(10).await, (Ended::TooSlow, 30));
    }

    #[tokio::test(start_paused = true)]
    async fn an_app_that_trickles_is_not_the_clients_fault() {
        let began = Instant::now();
        let answer = async {
            for _ in 0..100 {
                waits();
                tokio::time::sleep(Duration::from_secs(10)).await;
                gave(1);
                tokio::task::yield_now().await;
            }
        };
        assert_eq!(StreamTask::new(answer, RULE).await, Ended::Answered);
        assert_eq!(began.elapsed().as_secs(), 1_000);
    }
}
