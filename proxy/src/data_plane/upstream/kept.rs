//! Keeps a seat taken for as long as the target works on it.
//!
//! A client that leaves does not stop the app: Puma's thread goes on until its answer is made. If the seat were
//! given back at once, impatient visitors who reload a slow page could have the app work on any number of
//! requests. So a request that was sent to a target with limited seats is waited for, with or without its client.

use std::rc::Rc;

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
    terms: &'a Terms<'a>,
    facts: &'a Facts,
}

impl<'a> Asked<'a> {
    pub fn new(exchanged: Exchanged, terms: &'a Terms<'a>, facts: &'a Facts) -> Self {
        Self { exchanged: Some(exchanged), terms, facts }
    }

    pub async fn answer(&mut self) -> Result<ResponseHead, AskError> {
        let Exchanged { lease, upload, .. } = self.exchanged.as_mut().expect(TAKEN_ONCE);
        lease.ask(upload, self.terms).await
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
        let (method, timeouts) = (self.terms.method.clone(), self.terms.timeouts.clone());
        let body = Rc::clone(&self.facts.request_body);
        worker.abandoned.spawn_local(async move {
            let terms = Terms { method: &method, timeouts: &timeouts, body: &body, interim: &|_| {} };
            // Whatever it is, nobody wants it.
            drop(lease.ask(&mut upload, &terms).await);
            drop(in_flight);
        });
    }
}
