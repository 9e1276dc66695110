//! Tells the balance how long a target took, and when it failed.

use std::sync::Arc;
use std::time::Duration;

use model::balance::{FAILURE, Latency};
use model::reason::{Fault, Reason};
use tokio::time::Instant;

use crate::data_plane::exchange::Facts;
use crate::release::{InFlight, Target};

/// The time since a request was sent to a target that has others beside it.
pub struct Timing<'f> {
    sent: Option<(Arc<Target>, Instant)>,
    facts: &'f Facts,
}

impl<'f> Timing<'f> {
    pub fn new(in_flight: &InFlight, facts: &'f Facts) -> Self {
        let has_others = in_flight.release().targets.len() > 1;
        let sent = has_others.then(|| (Arc::clone(in_flight.target()), Instant::now()));
        Self { sent, facts }
    }

    pub fn answered(mut self) {
        self.record(|before, seen, now| Some(Latency::after(before, seen, now)));
    }

    /// What is the client's fault says nothing about the target.
    pub fn failed(mut self, reason: Reason) {
        if reason.fault() == Fault::Client {
            self.sent = None;
        }
        self.record(|before, seen, now| Some(Latency::after(before, seen.max(FAILURE), now)));
    }

    fn record(&mut self, after: impl FnOnce(Option<Latency>, Duration, Duration) -> Option<Latency>) {
        let Some((target, sent)) = self.sent.take() else { return };
        // A long upload is not the target's slowness.
        let Some(ended) = self.facts.request_body.ended.get() else { return };
        let worker = &self.facts.connection.worker;
        let now = worker.epoch.elapsed();
        if let Some(latency) = after(target.latency(worker.index), sent.max(ended).elapsed(), now) {
            target.set_latency(worker.index, latency);
        }
    }
}

impl Drop for Timing<'_> {
    /// The client left: it took at least so long.
    fn drop(&mut self) {
        self.record(Latency::after_at_least);
    }
}
