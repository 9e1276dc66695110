//! Bodies of the control API's answers: a whole text, or lines that come while something goes on.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use model::protocol::{Event, LoggedEvent};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::super::audit::Follower;
use super::super::report::Events;

/// The next line of the audit log, with its source for the one after.
type NextLine = Pin<Box<dyn Future<Output = Option<(LoggedEvent, Follower)>> + Send>>;

pub enum Answer {
    Whole(Option<Bytes>),
    /// Ends with `Done` or `Failed`. Dropping it stops nothing.
    Operation {
        events: Events,
        ended: bool,
    },
    /// What is past is sent first.
    Following {
        past: Bytes,
        next: NextLine,
        shutdown: CancellationToken,
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
        Self::Operation { events, ended: false }
    }

    pub fn following(past: Vec<LoggedEvent>, follower: Follower, shutdown: CancellationToken) -> Self {
        Self::Following { past: all_lines(&past), next: next(follower, shutdown.clone()), shutdown }
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
            Self::Operation { events, ended } => {
                let event = std::task::ready!(events.poll_recv(cx));
                *ended = matches!(event, None | Some(Event::Done(_) | Event::Failed { .. }));
                event.as_ref().map(line)
            }
            Self::Following { past, .. } if !past.is_empty() => Some(std::mem::take(past)),
            Self::Following { next: line_to_come, shutdown, .. } => {
                match std::task::ready!(line_to_come.as_mut().poll(cx)) {
                    Some((event, follower)) => {
                        *line_to_come = next(follower, shutdown.clone());
                        Some(line(&event))
                    }
                    None => {
                        *self = Self::Whole(None);
                        None
                    }
                }
            }
        };
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

fn all_lines(values: &[impl Serialize]) -> Bytes {
    values.iter().flat_map(|value| line(value).to_vec()).collect()
}

fn line(value: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_vec(value).expect("the protocol's shapes have text keys only");
    text.push(b'\n');
    Bytes::from(text)
}
