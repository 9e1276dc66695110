//! A worker's connections: which of them are idle, whom to send away when room is needed, and how they hear
//! of it.
//!
//! What costs least goes first: the oldest handshake for a newer one; for a new connection one that never asked
//! for anything although it could have, else the one that has been idle for the longest time; and when too much is held for clients that do not read, those for whom most is held.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::activity::Activity;
use super::admission::{Admission, Admitted, Choice, NoPlace, StayingPlace};
use super::lines::{Line, Lines, Slot};
use crate::config::Config;
use crate::telemetry::connections::{Closed, Refused, WorkerConnections};
use crate::telemetry::metrics::Metrics;

/// How often to look at what is held for clients.
const BUDGET_TICK: Duration = Duration::from_millis(250);

pub struct Roster {
    worker: usize,
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    own: Arc<WorkerConnections>,
    admission: Arc<Admission>,
    /// This worker's share of the handshakes in progress.
    handshakes_max: usize,
    lines: RefCell<Lines<Entry>>,
}

struct Entry {
    activity: Arc<Activity>,
    told: Option<Told>,
    waker: Option<Waker>,
}

/// How a connection is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Finish what you do, say goodbye.
    Leave,
    /// Now, whatever it is.
    Vanish,
}

/// One connection's entry, removed when dropped.
pub struct Place {
    roster: Rc<Roster>,
    slot: Slot,
    admitted: Admitted,
}

impl Roster {
    pub fn new(
        worker: usize,
        config: &Arc<Config>,
        metrics: &Arc<Metrics>,
        admission: Arc<Admission>,
    ) -> Rc<Self> {
        Rc::new(Self {
            worker,
            handshakes_max: (config.limits.handshakes / config.workers).max(1),
            config: Arc::clone(config),
            metrics: Arc::clone(metrics),
            own: Arc::clone(&metrics.connections().workers[worker]),
            admission,
            lines: RefCell::default(),
        })
    }

    /// Lets a client in, or a balancer that will say for whom it comes (`Place::is_of`).
    pub fn enter(
        self: &Rc<Self>,
        peer: IpAddr,
        is_balancer: bool,
    ) -> Result<(Place, Arc<Activity>), NoPlace> {
        let is_trusted = is_balancer || self.config.trusted_proxies.contains(peer);
        let admitted = self.admission.enter(peer, is_trusted, || self.make_room())?;
        let activity = Arc::new(Activity::new(&self.config.limits, Arc::clone(&self.own)));
        let entry = Entry { activity: Arc::clone(&activity), told: None, waker: None };
        let slot = self.lines.borrow_mut().add(entry);
        let place = Place { roster: Rc::clone(self), slot, admitted };
        place.is_new(Instant::now());
        Ok((place, activity))
    }

    pub fn count_refused(&self, why: NoPlace) {
        self.count_turned_away(match why {
            NoPlace::Full | NoPlace::NotYet => Refused::Connections,
            NoPlace::Client => Refused::Client,
        });
    }

    /// Returns how often it has happened.
    pub fn count_turned_away(&self, why: Refused) -> u64 {
        self.metrics.connections().count_refused(why)
    }

    /// Has the connection closed that is missed least, whichever worker has it; false if all are busy.
    pub fn make_room(&self) -> bool {
        match self.admission.worker_to_make_room(Instant::now()) {
            Some(worker) if worker == self.worker => self.send_one_away(),
            Some(worker) => {
                self.admission.ask(worker);
                true
            }
            None => false,
        }
    }

    /// Runs for as long as the worker: closes for others what they asked for.
    pub async fn obey(&self) {
        loop {
            let asked = std::future::poll_fn(|cx| self.admission.poll_asked(self.worker, cx)).await;
            // What has become busy meanwhile stays; whoever asked asks again for the next newcomer.
            (0..asked).take_while(|_| self.send_one_away()).for_each(drop);
        }
    }

    fn send_one_away(&self) -> bool {
        let choice = {
            let lines = self.lines.borrow();
            let [new, idle] = [Line::New, Line::Idle].map(|line| lines.first(line));
            let since = |first: Option<(Slot, u64)>| first.map(|(_, since)| since);
            match self.admission.choose(since(new), since(idle), Instant::now()) {
                Some(Choice::Overdue(_) | Choice::New(_)) => new,
                Some(Choice::Idle(_)) => idle,
                None => None,
            }
        };
        let Some((slot, _)) = choice else { return false };
        self.leave_line(slot);
        self.metrics.connections().count_closed(Closed::Room);
        self.tell(slot, Told::Leave);
        true
    }

    fn tell(&self, slot: Slot, told: Told) {
        let waker = {
            let mut lines = self.lines.borrow_mut();
            let entry = lines.get_mut(slot);
            entry.told = Some(told);
            entry.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn join_line(&self, slot: Slot, line: Line, now: Instant) {
        let mut lines = self.lines.borrow_mut();
        // Whoever was told to go is not asked twice.
        if lines.get_mut(slot).told.is_none() {
            lines.join(slot, line, self.admission.us(now));
            self.publish(&lines);
        }
    }

    fn leave_line(&self, slot: Slot) {
        let mut lines = self.lines.borrow_mut();
        lines.leave(slot);
        self.publish(&lines);
    }

    fn publish(&self, lines: &Lines<Entry>) {
        self.own.idle.store(lines.len(Line::New) + lines.len(Line::Idle), Ordering::Relaxed);
        self.own.handshakes.store(lines.len(Line::Handshakes), Ordering::Relaxed);
        let [new, idle] = [Line::New, Line::Idle].map(|line| lines.first(line).map(|(_, since)| since));
        self.admission.show_oldest(self.worker, new, idle);
    }

    /// Runs for as long as the worker: keeps what is held for clients within the budget.
    pub async fn keep_budget(&self) {
        let mut tick = tokio::time::interval(BUDGET_TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let (held, budget) = (self.metrics.connections().held_bytes(), self.config.limits.buffered_bytes);
            if held > budget {
                // Each worker lets go of its share.
                let own = self.own.held_bytes.load(Ordering::Relaxed);
                let excess = (held - budget) as f64 * (own as f64 / held as f64);
                self.let_go(excess.ceil() as u64);
            }
        }
    }

    /// Closes connections until so many bytes are free. Idle ones hold none, so they may stay.
    fn let_go(&self, excess: u64) {
        let now = Instant::now();
        let mut readers: Vec<(bool, u64, Slot)> = {
            let lines = self.lines.borrow();
            let all = lines.iter().filter(|(_, entry)| entry.told != Some(Told::Vanish));
            all.map(|(slot, entry)| {
                let is_reading = !entry.activity.is_slow_reader(now, BUDGET_TICK * 4);
                (is_reading, u64::MAX - entry.activity.held_bytes(), slot)
            })
            .collect()
        };
        // Those that stand still before those that read, and then those for whom most is held.
        readers.sort_unstable_by_key(|(is_reading, room, _)| (*is_reading, *room));
        let mut freed = 0;
        for (_, room, slot) in readers {
            let held = u64::MAX - room;
            if freed >= excess || held == 0 {
                break;
            }
            freed += held;
            self.metrics.connections().count_closed(Closed::Memory);
            self.tell(slot, Told::Vanish);
        }
    }
}

impl Place {
    /// A balancer brought the connection for `client`.
    pub fn is_of(&mut self, client: IpAddr) -> Result<(), NoPlace> {
        if self.roster.config.trusted_proxies.contains(client) {
            return Ok(());
        }
        self.admitted.count_for(client)
    }

    /// Begins a handshake; the oldest one goes if there are too many.
    pub fn shakes_hands(&self) {
        let roster = &self.roster;
        let oldest = {
            let lines = roster.lines.borrow();
            (lines.len(Line::Handshakes) >= roster.handshakes_max).then(|| lines.first(Line::Handshakes))
        };
        if let Some((slot, _)) = oldest.flatten() {
            roster.leave_line(slot);
            roster.metrics.connections().handshakes_dropped.fetch_add(1, Ordering::Relaxed);
            roster.tell(slot, Told::Vanish);
        }
        roster.join_line(self.slot, Line::Handshakes, Instant::now());
    }

    /// Nothing was asked for yet.
    pub fn is_new(&self, now: Instant) {
        self.roster.join_line(self.slot, Line::New, now);
    }

    pub fn is_idle(&self, now: Instant) {
        self.roster.join_line(self.slot, Line::Idle, now);
    }

    pub fn is_busy(&self) {
        self.roster.leave_line(self.slot);
    }

    /// A place among those that stay, for what this connection becomes or carries.
    pub fn to_stay(&self) -> Option<StayingPlace> {
        self.roster.admission.stay()
    }

    /// Ready when the connection has to go.
    pub fn poll_told(&self, cx: &mut Context<'_>) -> Poll<Told> {
        let mut lines = self.roster.lines.borrow_mut();
        let entry = lines.get_mut(self.slot);
        match &mut entry.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => entry.waker = Some(cx.waker().clone()),
        }
        entry.told.map_or(Poll::Pending, Poll::Ready)
    }

    pub async fn told(&self) -> Told {
        std::future::poll_fn(|cx| self.poll_told(cx)).await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lines = self.roster.lines.borrow_mut();
        lines.remove(self.slot);
        self.roster.publish(&lines);
    }
}
