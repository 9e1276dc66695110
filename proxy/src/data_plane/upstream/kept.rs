//! Keeps a seat taken for as long as the target works on it.
//!
//! A client that leaves does not stop the app: Puma's thread goes on until its answer is made. If the seat were
//! given back at once, impatient visitors who reload a slow page could have the app work on any number of
//! requests. So a request that was sent to a target with limited seats is waited for, with or without its client.

use model::service::Timeouts;

use super::connection::{AskError, Terms};
use super::pool::Lease;
use super::response_head::ResponseHead;
use super::upload::Upload;
use crate::data_plane::exchange::Facts;
use crate::release::InFlight;

/// What a request holds while it is answered.
pub struct Exchanged {
    pub lease: Lease,
    pub upload: Upload,
    pub in_flight: InFlight,
}

/// A request under way. If it is dropped before its answer, what the target has whole is waited for in a task of
/// its own; without a seat, or while the process ends, nothing is.
pub struct Asked<'a> {
    exchanged: Option<Exchanged>,
    timeouts: &'a Timeouts,
    facts: &'a Facts,
}

impl<'a> Asked<'a> {
    pub fn new(exchanged: Exchanged, timeouts: &'a Timeouts, facts: &'a Facts) -> Self {
        Self { exchanged: Some(exchanged), timeouts, facts }
    }

    pub async fn answer(&mut self) -> Result<ResponseHead, AskError> {
        let Exchanged { lease, upload, .. } = self.exchanged.as_mut().expect(TAKEN_ONCE);
        let to_head = self.facts.is_head();
        lease.ask(upload, &Terms { to_head, timeouts: self.timeouts, facts: Some(self.facts) }).await
    }

    pub fn finish(mut self) -> Exchanged {
        self.exchanged.take().expect(TAKEN_ONCE)
    }
}

const TAKEN_ONCE: &str = "only `finish` and `drop` take it, and both end the guard";

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let Some(Exchanged { mut lease, mut upload, in_flight }) = self.exchanged.take() else { return };
        let worker = &self.facts.connection.worker;
        if !in_flight.has_seat() || !upload.is_done() || worker.shutdown.is_cancelled() {
            return;
        }
        let (to_head, timeouts) = (self.facts.is_head(), self.timeouts.clone());
        worker.abandoned.spawn_local(async move {
            // Whatever it is, nobody wants it.
            drop(lease.ask(&mut upload, &Terms { to_head, timeouts: &timeouts, facts: None }).await);
            drop(in_flight);
        });
    }
}
