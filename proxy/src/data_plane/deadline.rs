//! A timer that is moved more often than it fires.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// One deadline that changes with every request, on a timer that is armed for the earliest one only.
///
/// Moving a deadline back costs a store: the timer fires at the old moment, sees that it is early, and is armed
/// anew. Putting a timer into the runtime's wheel and taking it out again for each request would cost more than
/// reading the request.
#[derive(Default)]
pub struct Deadline {
    at: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    pub fn set(&mut self, at: Instant) {
        self.at = Some(at);
    }

    pub fn clear(&mut self) {
        self.at = None;
    }

    pub fn is_set(&self) -> bool {
        self.at.is_some()
    }

    /// Ready once the deadline has passed; never while none is set.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        loop {
            // One that has fired must be armed again before it is asked again.
            if timer.deadline() > at || timer.is_elapsed() {
                timer.as_mut().reset(at);
            }
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= at {
                return Poll::Ready(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn fires_at_the_deadline_that_was_set_last() {
        for moves in [&[10][..], &[10, 30], &[30, 10], &[10, 20, 15]] {
            let began = Instant::now();
            let mut deadline = Deadline::default();
            for seconds in moves {
                deadline.set(began + Duration::from_secs(*seconds));
                assert!(poll_fn(|cx| Poll::Ready(deadline.poll(cx))).await.is_pending());
            }
            poll_fn(|cx| deadline.poll(cx)).await;
            assert_eq!(Some(&began.elapsed().as_secs()), moves.last(), "{moves:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn serves_one_request_after_another() {
        let mut deadline = Deadline::default();
        for _ in 0..3 {
            let began = Instant::now();
            deadline.set(began + Duration::from_secs(5));
            poll_fn(|cx| deadline.poll(cx)).await;
            assert_eq!(began.elapsed(), Duration::from_secs(5));
            deadline.clear();
            let waited = tokio::time::timeout(Duration::from_secs(60), poll_fn(|cx| deadline.poll(cx))).await;
            assert!(waited.is_err(), "none is set");
        }
    }
}
