//! Who may send to a target that is given no more requests than it can work on: the target's *seats*, and the
//! *line* of requests that wait for one.
//!
//! A release has one line, first come, first served, and whichever of its targets frees a seat first serves
//! whoever stands first. The seats belong to an address, not to a release: while one release takes over from
//! another on the same target, both together hold no more than the limit.
//!
//! While seats are free and nobody waits, a seat costs one compare-and-exchange on the target's own cache
//! line. The lock is for saturation alone, and nothing is called under it that could want it again.
//!
//! That nobody is forgotten rests on one order: who joins a line counts itself as waiting first and looks for
//! free seats second; who leaves a seat frees it first and looks for waiters second. With sequential
//! consistency at least one of the two sees the other. That nobody is overtaken: who comes while somebody
//! waits joins the line, and a seat that is freed meanwhile is handed to the first in it.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use model::slow_start;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Endpoint;

/// What the releases of a service share: the limit, the seats of their targets and the lines in front of them.
pub struct Admission {
    /// Per target; 0: no limit.
    max: AtomicU32,
    slow_start_us: AtomicU64,
    /// In all lines.
    waiting: AtomicUsize,
    /// Until then some target is in its slow start.
    starting_until_us: AtomicU64,
    /// Times here and of seats are in µs after it.
    epoch: Instant,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    lines: Vec<Line>,
    seats: HashMap<Endpoint, Weak<Seats>>,
}

/// The seats of one target, on a cache line of their own.
#[repr(align(64))]
pub struct Seats {
    taken: AtomicU32,
    /// When it joined others that already served; 0: it did not.
    joined_us: AtomicU64,
    /// Whose lines hold their seats for as long as they are open, and no longer.
    admission: Arc<Admission>,
}

impl Seats {
    /// Of a target that shares them with nobody.
    pub fn alone() -> Arc<Self> {
        Self::of(Admission::new())
    }

    fn of(admission: Arc<Admission>) -> Arc<Self> {
        Arc::new(Self { taken: AtomicU32::new(0), joined_us: AtomicU64::new(0), admission })
    }

    pub fn taken(&self) -> u32 {
        self.taken.load(Ordering::SeqCst)
    }
}

/// The right to have one request in flight on a target. Dropped, it goes to the first in line.
pub struct Seat(Arc<Seats>);

impl Seat {
    pub fn is_of(&self, seats: &Arc<Seats>) -> bool {
        Arc::ptr_eq(&self.0, seats)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Seats { taken, admission, .. } = &*self.0;
        taken.fetch_sub(1, Ordering::SeqCst);
        if admission.waiting.load(Ordering::SeqCst) > 0 {
            admission.hand_out();
        }
    }
}

/// A place in the order of a line; whoever is sent on to another line keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Smaller ones come first.
    order: u64,
    /// Unique in the process.
    id: u64,
}

static NEXT_TICKET: AtomicU64 = AtomicU64::new(1);

impl Ticket {
    /// Of somebody who waits elsewhere before joining a line, behind all who have come so far.
    pub fn draw() -> Self {
        let id = NEXT_TICKET.fetch_add(1, Ordering::Relaxed);
        Self { order: id, id }
    }
}

/// Where in a line somebody joins it.
pub enum Turn<'s> {
    /// Behind all who are there.
    New,
    /// As in the line that ended.
    Kept(Ticket),
    /// Ahead of all: it had a seat, and the targets of these seats refused it.
    Refused(&'s [Arc<Seats>]),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CannotJoin {
    /// As many wait as may.
    Full,
    /// The line has ended: a newer snapshot leads elsewhere.
    Ended,
}

/// A release's line, as requests see it.
pub struct Queue {
    admission: Arc<Admission>,
    line: Arc<LineId>,
}

/// Tells lines apart, and without a lock whether anybody stands in one.
#[derive(Default)]
struct LineId {
    waiting: AtomicUsize,
}

struct Line {
    id: Arc<LineId>,
    /// Of the targets that may be tried.
    seats: Vec<Arc<Seats>>,
    /// By ticket.
    waiters: VecDeque<Waiter>,
}

struct Waiter {
    ticket: Ticket,
    except: Box<[Arc<Seats>]>,
    seat: oneshot::Sender<Seat>,
}

impl Admission {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            max: AtomicU32::new(0),
            slow_start_us: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            starting_until_us: AtomicU64::new(0),
            epoch: Instant::now(),
            inner: Mutex::default(),
        })
    }

    /// From now on.
    pub fn limit(&self, max: Option<NonZeroU32>, slow_start: Duration) {
        self.max.store(max.map_or(0, NonZeroU32::get), Ordering::Relaxed);
        self.slow_start_us.store(slow_start.as_micros() as u64, Ordering::Relaxed);
    }

    /// Those of the target at `endpoint`, for as long as anybody holds them.
    pub fn seats(self: &Arc<Self>, endpoint: &Endpoint) -> Arc<Seats> {
        let mut inner = self.lock();
        inner.seats.retain(|_, seats| seats.strong_count() > 0);
        if let Some(seats) = inner.seats.get(endpoint).and_then(Weak::upgrade) {
            return seats;
        }
        let seats = Seats::of(Arc::clone(self));
        inner.seats.insert(endpoint.clone(), Arc::downgrade(&seats));
        seats
    }

    /// The target of `seats` has just joined others that serve already.
    pub fn begin_slow_start(&self, seats: &Seats) {
        let now = self.now_us();
        seats.joined_us.store(now.max(1), Ordering::Relaxed);
        let until = now + self.slow_start_us.load(Ordering::Relaxed);
        // The last step comes a tick later.
        let tick = SLOW_START_TICK.as_micros() as u64;
        self.starting_until_us.fetch_max(until + 2 * tick, Ordering::Relaxed);
    }

    /// The share of its load that the target of `seats` should get now.
    pub fn share(&self, seats: &Seats) -> f64 {
        let over = self.slow_start_us.load(Ordering::Relaxed);
        match seats.joined_us.load(Ordering::Relaxed) {
            0 => 1.0,
            joined => {
                let ago = Duration::from_micros(self.now_us().saturating_sub(joined));
                slow_start::share(ago, Duration::from_micros(over))
            }
        }
    }

    /// How many of `seats` may be taken now; `None`: any number.
    pub fn limit_of(&self, seats: &Seats) -> Option<u32> {
        let max = NonZeroU32::new(self.max.load(Ordering::Relaxed))?;
        Some(slow_start::limit(max, self.share(seats)))
    }

    /// `queue`'s line is open, for the targets of `seats`.
    pub fn open(&self, queue: &Queue, seats: Vec<Arc<Seats>>) {
        {
            let mut inner = self.lock();
            match inner.lines.iter_mut().find(|line| Arc::ptr_eq(&line.id, &queue.line)) {
                Some(line) => line.seats = seats,
                None => {
                    let line = Line { id: Arc::clone(&queue.line), seats, waiters: VecDeque::new() };
                    inner.lines.push(line);
                }
            }
        }
        self.hand_out();
    }

    /// Ends the lines that are not of `queues`; who stands in one has to look for another.
    pub fn keep_only(&self, queues: &[&Queue]) {
        let is_kept = |line: &Line| queues.iter().any(|queue| Arc::ptr_eq(&queue.line, &line.id));
        self.end(|line| !is_kept(line));
    }

    fn end(&self, is_over: impl Fn(&Line) -> bool) {
        let mut ended = Vec::new();
        let mut inner = self.lock();
        for index in (0..inner.lines.len()).rev() {
            if is_over(&inner.lines[index]) {
                let line = inner.lines.swap_remove(index);
                line.id.waiting.store(0, Ordering::SeqCst);
                self.waiting.fetch_sub(line.waiters.len(), Ordering::SeqCst);
                ended.push(line);
            }
        }
        drop(inner);
        // Wakes those who wait, in their order.
        ended.into_iter().flat_map(|line| line.waiters).for_each(drop);
    }

    /// Gives free seats to those who wait for them, as long as there are both.
    fn hand_out(&self) {
        while let Some((waiter, seats)) = self.next_grant() {
            // Who has gone in this very moment drops the seat, which hands it on.
            let _ = waiter.send(Seat(seats));
        }
    }

    fn go_on_starting(&self) {
        if self.now_us() <= self.starting_until_us.load(Ordering::Relaxed) {
            self.hand_out();
        }
    }

    fn next_grant(&self) -> Option<(oneshot::Sender<Seat>, Arc<Seats>)> {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut inner = self.lock();
        for line in &mut inner.lines {
            if let Some((index, seats)) = line.served_next(self)
                && let Some(waiter) = line.waiters.remove(index)
            {
                line.id.waiting.store(line.waiters.len(), Ordering::SeqCst);
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                return Some((waiter.seat, seats));
            }
        }
        None
    }

    fn take(&self, seats: &Seats) -> bool {
        let max = self.limit_of(seats).unwrap_or(u32::MAX);
        let one_more = |taken| (taken < max).then_some(taken + 1);
        seats.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).is_ok()
    }

    fn room(&self, seats: &Seats) -> u32 {
        self.limit_of(seats).unwrap_or(u32::MAX).saturating_sub(seats.taken())
    }

    fn now_us(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// The first waiter for whom there is a seat, and the seat, which is then taken.
    fn served_next(&self, admission: &Admission) -> Option<(usize, Arc<Seats>)> {
        for (index, waiter) in self.waiters.iter().enumerate() {
            let is_wanted = |seats: &&Arc<Seats>| !waiter.except.iter().any(|no| Arc::ptr_eq(no, seats));
            let with_room = || {
                let rooms = self.seats.iter().filter(is_wanted).map(|seats| (admission.room(seats), seats));
                rooms.filter(|(room, _)| *room > 0).max_by_key(|(room, _)| *room)
            };
            while let Some((_, seats)) = with_room() {
                // Somebody who came before there was a line may be faster; then there may be another one.
                if admission.take(seats) {
                    return Some((index, Arc::clone(seats)));
                }
            }
            if waiter.except.is_empty() {
                // Who takes any seat finds none: nobody behind will.
                return None;
            }
        }
        None
    }
}

impl Queue {
    pub fn new(admission: Arc<Admission>) -> Self {
        Self { admission, line: Arc::default() }
    }

    pub fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    pub fn waiting(&self) -> usize {
        self.line.waiting.load(Ordering::SeqCst)
    }

    /// A seat at once, if there is one and nobody waits for it.
    pub fn sit(&self, seats: &Arc<Seats>) -> Option<Seat> {
        if self.waiting() > 0 || !self.admission.take(seats) {
            return None;
        }
        Some(Seat(Arc::clone(seats)))
    }

    /// Joins the line. `max` bounds the newcomers only: who waited before, or had a seat, is not turned away.
    pub fn join(&self, turn: &Turn<'_>, max: usize) -> Result<Waiting, CannotJoin> {
        let (sender, granted) = oneshot::channel();
        let ticket = {
            let mut inner = self.admission.lock();
            let line = inner.lines.iter_mut().find(|line| Arc::ptr_eq(&line.id, &self.line));
            let line = line.ok_or(CannotJoin::Ended)?;
            if matches!(turn, Turn::New) && line.waiters.len() >= max {
                return Err(CannotJoin::Full);
            }
            // Drawn under the lock, so that a line is always in the order of its tickets.
            let id = NEXT_TICKET.fetch_add(1, Ordering::Relaxed);
            let (ticket, except) = match turn {
                Turn::New => (Ticket { order: id, id }, [].as_slice()),
                Turn::Kept(ticket) => (*ticket, [].as_slice()),
                Turn::Refused(except) => (Ticket { order: 0, id }, *except),
            };
            let index = line.waiters.partition_point(|waiter| waiter.ticket.order <= ticket.order);
            line.waiters.insert(index, Waiter { ticket, except: except.into(), seat: sender });
            line.id.waiting.store(line.waiters.len(), Ordering::SeqCst);
            self.admission.waiting.fetch_add(1, Ordering::SeqCst);
            ticket
        };
        let waiting = Waiting { queue: self.clone(), ticket, granted };
        // A seat may have been freed before we were counted.
        self.admission.hand_out();
        Ok(waiting)
    }

    /// Ends the line.
    pub fn close(&self) {
        self.admission.end(|line| Arc::ptr_eq(&line.id, &self.line));
    }
}

impl Clone for Queue {
    fn clone(&self) -> Self {
        Self { admission: Arc::clone(&self.admission), line: Arc::clone(&self.line) }
    }
}

/// Somebody in line; dropped, the place in it is given up, and a seat that was granted meanwhile goes on.
pub struct Waiting {
    queue: Queue,
    ticket: Ticket,
    granted: oneshot::Receiver<Seat>,
}

/// How often a slow start is looked at while nothing else moves the line.
const SLOW_START_TICK: Duration = Duration::from_millis(500);

impl Waiting {
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// Waits for a seat; `None` when the line has ended. Cancel safe.
    pub async fn seat(&mut self) -> Option<Seat> {
        loop {
            tokio::select! {
                biased;
                seat = &mut self.granted => return seat.ok(),
                // A target in its slow start gets more seats by the mere passing of time.
                () = tokio::time::sleep(SLOW_START_TICK) => self.queue.admission.go_on_starting(),
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let admission = &self.queue.admission;
        let mut inner = admission.lock();
        let Some(line) = inner.lines.iter_mut().find(|line| Arc::ptr_eq(&line.id, &self.queue.line)) else {
            return;
        };
        if let Some(index) = line.waiters.iter().position(|waiter| waiter.ticket == self.ticket) {
            let waiter = line.waiters.remove(index);
            line.id.waiting.store(line.waiters.len(), Ordering::SeqCst);
            admission.waiting.fetch_sub(1, Ordering::SeqCst);
            drop(inner);
            drop(waiter);
        }
    }
}

#[cfg(test)]
mod tests;
