//! The view that a caller has of a long operation: a bounded stream of events.
//!
//! The operation never waits for its caller. A caller that reads too slowly misses events, but not the last.

use std::time::Duration;

use model::protocol::{DeploymentPhase, Event, Problem};
use tokio::sync::mpsc;

const EVENTS_MAX: usize = 256;
/// For a caller that does not read at all.
const LAST_EVENT_TIMEOUT: Duration = Duration::from_secs(5);

pub type Events = mpsc::Receiver<Event>;

#[derive(Clone)]
pub struct Reporter(mpsc::Sender<Event>);

pub fn channel() -> (Reporter, Events) {
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    (Reporter(sender), receiver)
}

impl Reporter {
    pub fn tell(&self, event: Event) {
        let _ = self.0.try_send(event);
    }

    pub fn phase(&self, phase: DeploymentPhase) {
        self.tell(Event::Phase { phase });
    }

    /// For parts that report by themselves.
    pub fn sender(&self) -> mpsc::Sender<Event> {
        self.0.clone()
    }

    /// Ends the stream.
    pub async fn end(self, result: Result<model::protocol::Done, Problem>) {
        let event = match result {
            Ok(done) => Event::Done(done),
            Err(problem) => Event::Failed { problem },
        };
        let _ = tokio::time::timeout(LAST_EVENT_TIMEOUT, self.0.send(event)).await;
    }
}
