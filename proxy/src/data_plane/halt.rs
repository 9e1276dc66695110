//! A request of a service that is paused or stopped: let through, answered, or kept waiting.
//!
//! Nothing here runs for services that are neither.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Response};
use model::halt::{Arriving, HaltKind, Verdict};
use model::reason::Reason;
use tokio::time::{Instant, sleep_until};

use super::admission::StayingPlace;
use super::answer;
use super::body::AnswerBody;
use super::exchange::Facts;
use super::forwarded::Forwarded;
use super::headers;
use super::worker::Worker;
use crate::halt::{Halt, Waiter};
use crate::release::Ticket;
use crate::snapshot::Service;

/// What a halted service does with a request.
pub enum Passage {
    Through,
    Healthy,
    Wait(Held),
}

/// A place among those who wait.
pub struct Held {
    waiter: Waiter,
    /// One of all that stay, whatever service they are for. `None` for who had one before another order came and did not
    /// get it back: it goes on waiting.
    _place: Option<StayingPlace>,
}

/// `strip`: so much of the path the app does not see.
#[cold]
pub fn judge(
    service: &Service,
    halt: &Arc<Halt>,
    (head, strip): (&Parts, usize),
    forwarded: &Forwarded,
    facts: &Facts,
) -> Result<Passage, Reason> {
    let path = head.uri.path().get(strip..).unwrap_or_default();
    let fields: &HeaderMap = &head.headers;
    let arriving = Arriving {
        is_look: matches!(head.method, Method::GET | Method::HEAD),
        path: if path.is_empty() { "/" } else { path },
        header: |name: &str| fields.get(name).map(HeaderValue::as_bytes),
        cookie: |name: &str| headers::cookie(fields, name),
        client: forwarded.client,
    };
    let verdict = halt.rule.judge(&arriving, &service.policy.gate.path);
    if verdict == Verdict::Through {
        facts.note(|known| known.bypassed = true);
        return Ok(Passage::Through);
    }
    // Whoever is not let through counts for the service, not for a target.
    facts.note(|known| known.unseated = Some(Arc::clone(&service.stable.release.unseated)));
    match verdict {
        Verdict::Healthy => Ok(Passage::Healthy),
        _ => hold(halt, facts).map(Passage::Wait),
    }
}

/// A place among those who wait, if `halt` is a pause and has one.
pub fn hold(halt: &Arc<Halt>, facts: &Facts) -> Result<Held, Reason> {
    let waited = facts.known.borrow().paused.is_some();
    facts.note(|known| {
        known.halt = Some(Arc::clone(halt));
        // Those who wait behind it should not wait for it, if it waits anew.
        known.going = None;
        // From here on it has its place in the order of those who want the app.
        known.ticket.get_or_insert_with(Ticket::draw);
    });
    let HaltKind::Paused { waiting_max, .. } = &halt.rule.kind else { return Err(Reason::Stopped) };
    // Half of them, so that the visitors of other services still find a connection.
    let most = facts.connection.worker.config.limits.connections / 2;
    let max = waiting_max.map_or(most, |max| max.get() as usize);
    // Who waited before another order came goes on waiting.
    let waiter = halt.join(if waited { usize::MAX } else { max }).ok_or(Reason::PauseFull)?;
    let place = facts.connection.place.to_stay();
    if place.is_none() && !waited {
        return Err(Reason::PauseFull);
    }
    Ok(Held { waiter, _place: place })
}

/// Waits until the halt is lifted and it is this one's turn to go on, which means that all is to be decided anew.
pub async fn wait(held: Held, facts: &Facts) -> Result<(), Reason> {
    let worker: &Worker = &facts.connection.worker;
    let halt = Arc::clone(held.waiter.halt());
    let _waiting = Waiting::new(held, facts);
    let deadline = facts.arrived + max_pause(&halt);
    tokio::select! {
        biased;
        going = halt.go() => if let Some((going, turn)) = going {
            let shutdown = worker.shutdown.clone();
            worker.tasks.spawn_local(async move { shutdown.run_until_cancelled(turn).await });
            facts.note(|known| known.going = Some(going));
        },
        () = worker.shutdown.cancelled() => return Err(Reason::ShuttingDown),
        // Once the pause is over, nobody is turned away for it.
        () = sleep_until(deadline) => if !halt.is_lifted() { return Err(Reason::PauseTimeout) },
        never = look_for_the_client(facts) => match never {},
    }
    Ok(())
}

/// A client that leaves in the middle of its upload wakes nobody. Waking is enough: then the connection looks.
async fn look_for_the_client(facts: &Facts) -> Infallible {
    if facts.connection.activity.is_http2() || !facts.has_body() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long a request that a pause kept waiting may still wait, for its place in line: nobody is turned away earlier
/// because the pause ended than they would have been without its end.
pub fn patience_left(facts: &Facts) -> Duration {
    let known = facts.known.borrow();
    let until = known.halt.as_ref().map(|halt| facts.arrived + max_pause(halt));
    until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
}

fn max_pause(halt: &Halt) -> Duration {
    match halt.rule.kind {
        HaltKind::Paused { max_pause, .. } => max_pause,
        HaltKind::Stopped { .. } => Duration::ZERO,
    }
}

pub fn healthy(facts: &Facts) -> Response<AnswerBody> {
    facts.note(|known| known.reason = Some(Reason::HaltedHealth));
    answer::healthy(Reason::HaltedHealth, facts.connection.worker.config.reason_header)
}

/// Adds up the time of the wait, however it ends, and lets the connection know meanwhile: a client that leaves is
/// noticed, and one that stays is not taken for a slow one.
struct Waiting<'f> {
    facts: &'f Facts,
    since: Instant,
    was_waiting: bool,
    _held: Held,
}

impl<'f> Waiting<'f> {
    fn new(held: Held, facts: &'f Facts) -> Self {
        let was_waiting = facts.set_waiting_for_app(true);
        facts.connection.activity.begin_queueing();
        facts.note(|known| known.paused = Some(known.paused.unwrap_or_default()));
        Self { facts, since: Instant::now(), was_waiting, _held: held }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.facts.connection.activity.end_queueing();
        self.facts.set_waiting_for_app(self.was_waiting);
        self.facts.note(|known| {
            known.paused = Some(known.paused.unwrap_or_default() + self.since.elapsed());
        });
    }
}
