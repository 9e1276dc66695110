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

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

thread_local! {
    static CLIENTS_TURN_SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A response body gave a frame that is not its last: the client has to take it now.
pub fn gave() {
    CLIENTS_TURN_SINCE.set(Some(Instant::now()));
}

/// A response body waits for the app, or has ended.
pub fn waits() {
    CLIENTS_TURN_SINCE.set(None);
}

pin_project! {
    pub struct StreamTask<F> {
        #[pin]
        answer: F,
        clients_turn_since: Option<Instant>,
        timer: Option<Pin<Box<Sleep>>>,
        stall: Duration,
    }
}

impl<F> StreamTask<F> {
    pub fn new(answer: F, stall: Duration) -> Self {
        Self { answer, clients_turn_since: None, timer: None, stall }
    }
}

impl<F: Future<Output = ()>> Future for StreamTask<F> {
    type Output = ();

    /// Ready also when the client stood still for too long; dropping hyper's future resets the stream.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        CLIENTS_TURN_SINCE.set(*this.clients_turn_since);
        if this.answer.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        *this.clients_turn_since = CLIENTS_TURN_SINCE.take();
        let Some(since) = *this.clients_turn_since else {
            *this.timer = None;
            return Poll::Pending;
        };
        let deadline = since + *this.stall;
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_client_stands_still_ends() {
        let began = Instant::now();
        let answer = async {
            waits();
            tokio::time::sleep(Duration::from_secs(100)).await;
            gave();
            std::future::pending().await
        };
        StreamTask::new(answer, Duration::from_secs(30)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(130), "waiting for the app is no stall");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_moves_goes_on() {
        let began = Instant::now();
        let answer = async {
            for _ in 0..10 {
                gave();
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
        };
        StreamTask::new(answer, Duration::from_secs(30)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(200));
    }
}
