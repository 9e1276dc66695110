//! Bodies of the control API's answers: a whole text, or lines that come while something goes on.
//!
//! When nothing goes on for a while, a blank line says that we are still there: a caller can then tell a
//! long wait from a dead agent.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use model::protocol::{Event, LoggedEvent};
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;

use super::super::audit::Follower;
use super::super::report::Events;

const BLANK_LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The next line of the audit log, with its source for the one after.
type NextLine = Pin<Box<dyn Future<Output = Option<(LoggedEvent, Follower)>> + Send>>;

pub enum Answer {
    Whole(Option<Bytes>),
    /// Ends with `Done` or `Failed`. Dropping it stops nothing.
    Operation {
        events: Events,
        ended: bool,
        quiet: Quiet,
    },
    /// What is past is sent first.
    Following {
        past: Bytes,
        next: NextLine,
        shutdown: CancellationToken,
        quiet: Quiet,
    },
}

impl Answer {
    pub fn whole(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes))
    }

    pub fn lines(values: &[impl Serialize]) -> Self {
        Self::whole(all_lines(values))
    }

    pub fn operation(events: Events) -> Self {
        Self::Operation { events, ended: false, quiet: Quiet::default() }
    }

    pub fn following(past: Vec<LoggedEvent>, follower: Follower, shutdown: CancellationToken) -> Self {
        let next = next(follower, shutdown.clone());
        Self::Following { past: all_lines(&past), next, shutdown, quiet: Quiet::default() }
    }
}

/// Since the last line.
pub struct Quiet(Pin<Box<Sleep>>);

impl Default for Quiet {
    fn default() -> Self {
        Self(Box::pin(sleep(BLANK_LINE_INTERVAL)))
    }
}

impl Quiet {
    /// What has come, or a blank line when nothing has for too long.
    fn or_blank<T>(&mut self, cx: &mut Context<'_>, came: Poll<T>) -> Poll<Option<T>> {
        let came = match came {
            Poll::Ready(line) => Some(line),
            Poll::Pending => {
                ready!(self.0.as_mut().poll(cx));
                None
            }
        };
        self.0.as_mut().reset(Instant::now() + BLANK_LINE_INTERVAL);
        Poll::Ready(came)
    }
}

fn next(mut follower: Follower, shutdown: CancellationToken) -> NextLine {
    Box::pin(async move {
        let event = shutdown.run_until_cancelled(follower.next()).await??;
        Some((event, follower))
    })
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match &mut *self {
            Self::Whole(bytes) => bytes.take(),
            Self::Operation { ended: true, .. } => None,
            Self::Operation { events, ended, quiet } => {
                let came = events.poll_recv(cx);
                match ready!(quiet.or_blank(cx, came)) {
                    Some(event) => {
                        *ended = matches!(event, None | Some(Event::Done(_) | Event::Failed { .. }));
                        event.as_ref().map(line)
                    }
                    None => Some(BLANK_LINE),
                }
            }
            Self::Following { past, .. } if !past.is_empty() => Some(std::mem::take(past)),
            Self::Following { next: line_to_come, shutdown, quiet, .. } => {
                let came = line_to_come.as_mut().poll(cx);
                match ready!(quiet.or_blank(cx, came)) {
                    Some(Some((event, follower))) => {
                        *line_to_come = next(follower, shutdown.clone());
                        Some(line(&event))
                    }
                    None => Some(BLANK_LINE),
                    Some(None) => {
                        *self = Self::Whole(None);
                        None
                    }
                }
            }
        };
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

const BLANK_LINE: Bytes = Bytes::from_static(b"\n");

fn all_lines(values: &[impl Serialize]) -> Bytes {
    values.iter().flat_map(|value| line(value).to_vec()).collect()
}

fn line(value: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_vec(value).expect("the protocol's shapes have text keys only");
    text.push(b'\n');
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use model::protocol::DeploymentPhase;

    use super::super::super::{audit::Audit, report};
    use super::*;

    async fn next_frame(answer: &mut Answer) -> String {
        let frame = answer.frame().await.unwrap().unwrap();
        String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn long_waits_are_filled_with_blank_lines() {
        let (reporter, events) = report::channel();
        let mut operation = Answer::operation(events);
        let audit = Audit::default();
        let (past, follower) = audit.follow().unwrap();
        let mut following = Answer::following(past, follower, CancellationToken::new());
        let began = Instant::now();
        for nth in 1..=3 {
            for answer in [&mut operation, &mut following] {
                assert_eq!(next_frame(answer).await, "\n");
            }
            assert_eq!(began.elapsed(), BLANK_LINE_INTERVAL * nth);
        }
        reporter.phase(DeploymentPhase::Gating);
        assert!(next_frame(&mut operation).await.contains("gating"));
        assert_eq!(began.elapsed(), BLANK_LINE_INTERVAL * 3);
        assert_eq!(next_frame(&mut operation).await, "\n");
        drop(reporter);
        assert!(operation.frame().await.is_none());
    }
}
