//! Lets a request in to one of its release's targets: the cheaper one of two (`model::balance`), with a seat
//! where seats are limited; and in line where none is free.

use std::sync::Arc;

use model::balance::{self, Load};
use model::canary::Cohort;
use model::readers::Role;
use model::reason::Reason;
use model::service::Concurrency;
use tokio::time::{Instant, timeout};

use super::exchange::Facts;
use super::halt;
use super::upstream::send::Route;
use super::worker::Worker;
use crate::release::{CannotJoin, InFlight, Queue, Release, Seat, Seats, Target, Turn, Waiting};
use crate::snapshot::{Service, Slot};

/// Releases that closed between loading the snapshot and entering; each time a newer snapshot is there.
pub const CUTOVERS_MAX: usize = 100;

pub enum Entrance {
    In(InFlight),
    Line(InLine),
    /// The release has closed, or its line has: a newer snapshot is there.
    Closed,
}

/// A request that waits for a seat of `release`.
pub struct InLine {
    release: Arc<Release>,
    waiting: Waiting,
}

/// Targets of a release, and the line in front of them.
struct Side<'s> {
    release: &'s Arc<Release>,
    targets: &'s [Arc<Target>],
    queue: &'s Queue,
}

/// Enters `slot`, or joins its line, on the side that the request wants.
pub fn enter(
    worker: &Worker,
    slot: &Slot,
    wanted: Role,
    concurrency: &Concurrency,
    facts: &Facts,
) -> Result<Entrance, Reason> {
    let turn = facts.known.borrow().ticket.map_or(Turn::New, Turn::Kept);
    let (targets, queue) = slot.side(wanted);
    enter_one_of(worker, &Side { release: &slot.release, targets, queue }, concurrency, &turn, facts)
}

/// Of the same slot, or of the one that took over meanwhile: a target that has not refused yet. `None` if
/// all have.
pub async fn enter_elsewhere(
    worker: &Worker,
    route: &Route<'_>,
    refused_by: InFlight,
    mut refused: &[Arc<Target>],
    facts: &Facts,
) -> Result<Option<InFlight>, Reason> {
    let mut service = Arc::clone(route.service);
    let mut is_over = refused_by.release().is_closed();
    // Its seat is of no use here.
    drop(refused_by);
    for _ in 0..CUTOVERS_MAX {
        if is_over {
            let Some(newer) = worker.published.load().services.get(&service.name).cloned() else {
                return Ok(None);
            };
            service = newer;
            // What was in flight when a pause began must not come to the app in the middle of it.
            if let Some(halt) = service.halt.as_ref().filter(|_| !facts.known.borrow().bypassed) {
                Box::pin(halt::wait(halt::hold(halt, facts)?, facts)).await?;
                // Who refused before may have been started anew since.
                refused = &[];
                continue;
            }
        }
        let slot = slot_of(&service, route.cohort).unwrap_or(&service.stable);
        let has_refused = |target: &Arc<Target>| refused.iter().any(|one| one.id == target.id);
        let willing = |role| -> (Vec<Arc<Target>>, &Queue) {
            let (targets, queue) = slot.side(role);
            (targets.iter().filter(|one| !has_refused(one)).cloned().collect(), queue)
        };
        let (mut rest, mut queue) = willing(route.wanted);
        if rest.is_empty() && route.wanted == Role::Reader {
            (rest, queue) = willing(Role::Writer);
        }
        if rest.is_empty() {
            return Ok(None);
        }
        let seats: Vec<Arc<Seats>> = refused.iter().map(|target| Arc::clone(&target.seats)).collect();
        let turn = Turn::Refused(&seats);
        let concurrency = &service.policy.concurrency;
        let side = Side { release: &slot.release, targets: &rest, queue };
        match enter_one_of(worker, &side, concurrency, &turn, facts)? {
            Entrance::In(in_flight) => return Ok(Some(in_flight)),
            Entrance::Line(line) => {
                if let Some(in_flight) = line.wait(worker, concurrency, facts).await? {
                    return Ok(Some(in_flight));
                }
            }
            Entrance::Closed => {}
        }
        is_over = true;
    }
    Err(Reason::Internal)
}

fn slot_of(service: &Service, cohort: Cohort) -> Option<&Slot> {
    match cohort {
        Cohort::Stable => Some(&service.stable),
        Cohort::Canary => service.canary.as_ref().map(|canary| &canary.slot),
    }
}

fn enter_one_of(
    worker: &Worker,
    side: &Side<'_>,
    concurrency: &Concurrency,
    turn: &Turn<'_>,
    facts: &Facts,
) -> Result<Entrance, Reason> {
    let &Side { release, targets, queue } = side;
    let entered = if concurrency.max_in_flight.is_none() {
        let index = if targets.len() > 1 { choose_two(worker, release, targets, false).0 } else { 0 };
        release.enter(&targets[index], worker.index)
    } else if let Some((target, seat)) = sit(worker, side) {
        release.enter_seated(target, worker.index, Some(seat))
    } else {
        return match queue.join(turn, concurrency.queue_max as usize) {
            Ok(waiting) => Ok(Entrance::Line(InLine { release: Arc::clone(release), waiting })),
            Err(CannotJoin::Ended) => Ok(Entrance::Closed),
            Err(CannotJoin::Full) => {
                facts.note(|known| known.unseated = Some(Arc::clone(&release.unseated)));
                Err(Reason::QueueFull)
            }
        };
    };
    Ok(entered.map_or(Entrance::Closed, |in_flight| {
        facts.note(|known| known.target = Some(Arc::clone(in_flight.target())));
        Entrance::In(in_flight)
    }))
}

/// A free seat at once, unless somebody waits for one.
fn sit<'s>(worker: &Worker, side: &Side<'s>) -> Option<(&'s Arc<Target>, Seat)> {
    let &Side { release, targets, queue } = side;
    if queue.waiting() > 0 {
        return None;
    }
    let at = |index: usize| queue.sit(&targets[index].seats).map(|seat| (&targets[index], seat));
    if targets.len() == 1 {
        return at(0);
    }
    let (one, other) = choose_two(worker, release, targets, true);
    at(one).or_else(|| at(other)).or_else(|| (0..targets.len()).find_map(at))
}

/// Two of at least two targets, the cheaper one first.
fn choose_two(worker: &Worker, release: &Release, targets: &[Arc<Target>], seated: bool) -> (usize, usize) {
    let now = worker.epoch.elapsed();
    let load = |index: usize| {
        let target = &targets[index];
        Load {
            latency: target.latency(worker.index).map(|latency| latency.micros_at(now)),
            // All workers count on the seats; without them each knows its own.
            in_flight: if seated { target.seats.taken() } else { target.in_flight_of(worker.index) },
            share: release.queue.admission().share(&target.seats),
        }
    };
    let mut random = worker.random.get();
    let (one, other) = random.two_of(targets.len());
    worker.random.set(random);
    if balance::is_cheaper(&load(one), &load(other)) { (one, other) } else { (other, one) }
}

impl InLine {
    /// Waits for a seat; `None` when the line or the release has ended, and all is to be decided anew. The
    /// time of all waits of a request counts together.
    pub async fn wait(
        mut self,
        worker: &Worker,
        concurrency: &Concurrency,
        facts: &Facts,
    ) -> Result<Option<InFlight>, Reason> {
        facts.note(|known| {
            known.ticket = Some(self.waiting.ticket());
            known.unseated = Some(Arc::clone(&self.release.unseated));
            known.target = None;
        });
        let left = concurrency.queue_timeout.saturating_sub(facts.queued()).max(halt::patience_left(facts));
        let standing = Standing::new(facts);
        let seat = timeout(left, self.waiting.seat()).await;
        drop(standing);
        let Some(seat) = seat.map_err(|_| Reason::QueueTimeout)? else { return Ok(None) };
        let Some(target) = self.release.targets.iter().find(|target| seat.is_of(&target.seats)) else {
            return Ok(None);
        };
        let entered = self.release.enter_seated(target, worker.index, Some(seat));
        if entered.is_some() {
            facts.note(|known| known.target = Some(Arc::clone(target)));
        }
        Ok(entered)
    }
}

/// Adds up the time in line, however it ends, and lets the connection know meanwhile.
struct Standing<'f> {
    facts: &'f Facts,
    since: Instant,
    /// The connection's watchdog knew already.
    was_waiting: bool,
}

impl<'f> Standing<'f> {
    fn new(facts: &'f Facts) -> Self {
        let was_waiting = facts.set_waiting_for_app(true);
        facts.connection.activity.begin_queueing();
        Self { facts, since: Instant::now(), was_waiting }
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.facts.connection.activity.end_queueing();
        self.facts.set_waiting_for_app(self.was_waiting);
        let waited = self.facts.queued() + self.since.elapsed();
        self.facts.note(|known| known.queue = Some(waited));
    }
}
