//! A release at work: its targets, who is in flight on them, and how it ends.
//!
//! The data plane enters and leaves; the control plane closes and waits. Which release serves whom is the
//! snapshot's business, and so is which of its targets are healthy.

mod admission;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use model::balance::Latency;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

pub use self::admission::{Admission, CannotJoin, Queue, Seat, Seats, Ticket, Turn, Waiting};
use crate::telemetry::metrics::TargetStats;

/// Where to connect to. A container's address may change while its `Target` stays.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One running instance of the app, during one activation of its release.
pub struct Target {
    /// What probes say is known by it. Unique in this process, but for those that `renewed` made of one another.
    pub id: u64,
    /// The upstream pools are keyed by it: connections end with their release. Unique in this process.
    pub pool: u64,
    /// As the operator wrote it, such as `127.0.0.1:3000`.
    pub label: Arc<str>,
    pub endpoint: Endpoint,
    pub stats: Arc<TargetStats>,
    /// Those of its address, which earlier activations may still hold some of.
    pub seats: Arc<Seats>,
    /// One per worker, so that counting never contends.
    in_flight: Box<[Cell]>,
}

/// Padded to a cache line of its own: each is written by one worker only.
#[derive(Default)]
#[repr(align(64))]
struct Cell {
    requests: AtomicI64,
    sockets: AtomicI64,
    /// µs as the bits of an `f64`; zero before the first answer.
    latency: AtomicU64,
    /// When `latency` was seen, in µs after the worker's epoch.
    latency_at: AtomicU64,
}

static NEXT_TARGET: AtomicU64 = AtomicU64::new(1);

impl Target {
    pub fn new(label: &str, endpoint: Endpoint, stats: Arc<TargetStats>, workers: usize) -> Arc<Self> {
        Self::with_seats(label, endpoint, stats, workers, Seats::alone())
    }

    pub fn with_seats(
        label: &str,
        endpoint: Endpoint,
        stats: Arc<TargetStats>,
        workers: usize,
        seats: Arc<Seats>,
    ) -> Arc<Self> {
        let id = NEXT_TARGET.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            id,
            pool: id,
            label: label.into(),
            endpoint,
            stats,
            seats,
            in_flight: (0..workers.max(1)).map(|_| Cell::default()).collect(),
        })
    }

    /// The same process and all that is known of it, with nothing in flight.
    fn renewed(&self) -> Arc<Self> {
        let cells = self.in_flight.iter().map(|cell| Cell {
            latency: AtomicU64::new(cell.latency.load(Ordering::Relaxed)),
            latency_at: AtomicU64::new(cell.latency_at.load(Ordering::Relaxed)),
            ..Cell::default()
        });
        Arc::new(Self {
            id: self.id,
            pool: NEXT_TARGET.fetch_add(1, Ordering::Relaxed),
            label: Arc::clone(&self.label),
            endpoint: self.endpoint.clone(),
            stats: Arc::clone(&self.stats),
            seats: Arc::clone(&self.seats),
            in_flight: cells.collect(),
        })
    }

    /// Requests that one worker has in flight here.
    pub fn in_flight_of(&self, worker: usize) -> u32 {
        u32::try_from(self.in_flight[worker].requests.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// As one worker sees it; times are those after its epoch.
    pub fn latency(&self, worker: usize) -> Option<Latency> {
        let cell = &self.in_flight[worker];
        let micros = f64::from_bits(cell.latency.load(Ordering::Relaxed));
        let at = Duration::from_micros(cell.latency_at.load(Ordering::Relaxed));
        (micros > 0.0).then(|| Latency::from_parts(micros, at))
    }

    /// Only `worker` itself may do this: cells have one writer.
    pub fn set_latency(&self, worker: usize, latency: Latency) {
        let (micros, at) = latency.parts();
        let cell = &self.in_flight[worker];
        cell.latency.store(micros.to_bits(), Ordering::Relaxed);
        cell.latency_at.store(at.as_micros() as u64, Ordering::Relaxed);
    }

    pub fn in_flight(&self) -> InFlightCount {
        let sum = |of: fn(&Cell) -> &AtomicI64| {
            let total: i64 = self.in_flight.iter().map(|cell| of(cell).load(Ordering::SeqCst)).sum();
            u64::try_from(total).unwrap_or(0)
        };
        InFlightCount { requests: sum(|cell| &cell.requests), sockets: sum(|cell| &cell.sockets) }
    }
}

/// What a target or release holds now. A request counts until its response body ends; a socket is an
/// upgraded connection or an event stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InFlightCount {
    pub requests: u64,
    pub sockets: u64,
}

impl InFlightCount {
    pub fn total(self) -> u64 {
        self.requests + self.sockets
    }
}

/// What those in flight are told while their release ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Serving,
    /// Requests go on; sockets close at a moment of their own before `sockets_until`.
    Draining {
        sockets_until: Instant,
    },
    /// The deadline of requests has passed: they stop now. Sockets go on as before.
    CuttingRequests {
        sockets_until: Instant,
    },
    /// The deadline has passed: stop now.
    Cut,
}

impl Ending {
    pub fn cuts_requests(&self) -> bool {
        matches!(self, Self::CuttingRequests { .. } | Self::Cut)
    }
}

/// One activation of a release. A release that is rolled back to is activated anew.
pub struct Release {
    /// As operators know it, such as a git sha.
    pub id: Arc<str>,
    /// The writers first.
    pub targets: Box<[Arc<Target>]>,
    /// How many of the targets are writers; never 0.
    writers: usize,
    /// Of the requests that wait for one of the writers.
    pub queue: Queue,
    /// Of those that wait for one of the readers.
    pub reader_queue: Queue,
    /// Counts those that never got one.
    pub unseated: Arc<TargetStats>,
    closed: AtomicBool,
    cut_short: AtomicU64,
    left: Notify,
    ending: watch::Sender<Ending>,
}

impl Release {
    pub fn new(id: &str, targets: Vec<Arc<Target>>) -> Arc<Self> {
        let workers = targets.first().map_or(1, |target| target.in_flight.len());
        Self::with_queue(id, targets, Queue::new(Admission::new()), Arc::new(TargetStats::new(workers)))
    }

    pub fn with_queue(
        id: &str,
        targets: Vec<Arc<Target>>,
        queue: Queue,
        unseated: Arc<TargetStats>,
    ) -> Arc<Self> {
        Self::with_readers(id, targets, Vec::new(), queue, unseated)
    }

    /// The readers wait in a line of their own, beside `queue`.
    pub fn with_readers(
        id: &str,
        writers: Vec<Arc<Target>>,
        readers: Vec<Arc<Target>>,
        queue: Queue,
        unseated: Arc<TargetStats>,
    ) -> Arc<Self> {
        let reader_queue = Queue::new(Arc::clone(queue.admission()));
        Arc::new(Self {
            id: id.into(),
            writers: writers.len(),
            targets: writers.into_iter().chain(readers).collect(),
            queue,
            reader_queue,
            unseated,
            closed: AtomicBool::new(false),
            cut_short: AtomicU64::new(0),
            left: Notify::new(),
            ending: watch::channel(Ending::Serving).0,
        })
    }

    /// Another activation of the same targets. What is in flight now is not in flight there, and can be told from
    /// what comes later.
    pub fn renewed(&self) -> Arc<Self> {
        let renewed = |targets: &[Arc<Target>]| targets.iter().map(|target| target.renewed()).collect();
        let queue = Queue::new(Arc::clone(self.queue.admission()));
        let (writers, readers) = (renewed(self.writers()), renewed(self.readers()));
        Self::with_readers(&self.id, writers, readers, queue, Arc::clone(&self.unseated))
    }

    pub fn writers(&self) -> &[Arc<Target>] {
        &self.targets[..self.writers]
    }

    /// Those for reads alone; most releases have none.
    pub fn readers(&self) -> &[Arc<Target>] {
        &self.targets[self.writers..]
    }

    /// How many requests wait for one of the targets.
    pub fn waiting(&self) -> usize {
        self.queue.waiting() + self.reader_queue.waiting()
    }

    /// Counts a request in. `None` once the release is closed: the caller loads the snapshot again, which
    /// has been published before `close`, and goes to the release that took over.
    pub fn enter(self: &Arc<Self>, target: &Arc<Target>, worker: usize) -> Option<InFlight> {
        self.enter_seated(target, worker, None)
    }

    /// The same, with a seat of `target` if its seats are limited.
    pub fn enter_seated(
        self: &Arc<Self>,
        target: &Arc<Target>,
        worker: usize,
        seat: Option<Seat>,
    ) -> Option<InFlight> {
        let (release, target) = (Arc::clone(self), Arc::clone(target));
        let guard = InFlight { release, target, worker, kind: Kind::Request, seat };
        // Count first, look second; `close` writes first and counts second. With sequential consistency
        // one of the two sees the other, so nobody enters unseen.
        guard.cell().fetch_add(1, Ordering::SeqCst);
        (!self.closed.load(Ordering::SeqCst)).then_some(guard)
    }

    /// No new requests from now on; those in line go on to the next. Publish the snapshot that leads elsewhere
    /// first.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.queue.close();
        self.reader_queue.close();
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub fn in_flight(&self) -> InFlightCount {
        self.targets.iter().map(|target| target.in_flight()).fold(InFlightCount::default(), |sum, count| {
            InFlightCount { requests: sum.requests + count.requests, sockets: sum.sockets + count.sockets }
        })
    }

    /// Asks sockets and event streams to close, each at a moment of its own within `window`.
    pub fn drain_sockets(&self, window: Duration) {
        let sockets_until = Instant::now() + window;
        // Somebody else may drain it already, and be further: what is cut stays cut.
        self.ending.send_modify(|ending| {
            *ending = match ending {
                Ending::Serving | Ending::Draining { .. } => Ending::Draining { sockets_until },
                Ending::CuttingRequests { .. } => Ending::CuttingRequests { sockets_until },
                Ending::Cut => Ending::Cut,
            }
        });
    }

    /// The drain is called off: sockets stay, but for those that have gone already.
    pub fn spare_sockets(&self) {
        self.ending.send_if_modified(|ending| {
            let drains = matches!(ending, Ending::Draining { .. } | Ending::CuttingRequests { .. });
            if drains {
                *ending = Ending::Serving;
            }
            drains
        });
    }

    /// Ends the requests that are still in flight, and leaves sockets the moments that they were given.
    pub fn cut_requests(&self) {
        self.ending.send_if_modified(|ending| {
            let Ending::Draining { sockets_until } = *ending else { return false };
            self.cut_short.store(self.in_flight().requests, Ordering::Relaxed);
            *ending = Ending::CuttingRequests { sockets_until };
            true
        });
    }

    /// Ends everything that is still in flight. Whoever comes first decides how many that are.
    pub fn cut(&self) {
        self.ending.send_if_modified(|ending| {
            let InFlightCount { requests, sockets } = self.in_flight();
            match ending {
                Ending::Cut => return false,
                // Those requests are counted, and on their way out.
                Ending::CuttingRequests { .. } => self.cut_short.fetch_add(sockets, Ordering::Relaxed),
                Ending::Serving | Ending::Draining { .. } => {
                    self.cut_short.swap(requests + sockets, Ordering::Relaxed)
                }
            };
            *ending = Ending::Cut;
            true
        });
    }

    /// How many were in flight when they were cut; 0 before.
    pub fn cut_short(&self) -> u64 {
        self.cut_short.load(Ordering::Relaxed)
    }

    pub fn are_requests_cut(&self) -> bool {
        self.ending.borrow().cuts_requests()
    }

    /// How those in flight learn that they should end.
    pub fn ending(&self) -> watch::Receiver<Ending> {
        self.ending.subscribe()
    }

    /// Waits until nothing is in flight. Only meaningful after `close`.
    pub async fn idle(&self) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if self.in_flight().total() == 0 {
                return;
            }
            left.await;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Request,
    Socket,
}

/// A request or socket on a target; dropping it counts it out.
pub struct InFlight {
    release: Arc<Release>,
    target: Arc<Target>,
    worker: usize,
    kind: Kind,
    seat: Option<Seat>,
}

impl InFlight {
    pub fn is_socket(&self) -> bool {
        self.kind == Kind::Socket
    }

    pub fn has_seat(&self) -> bool {
        self.seat.is_some()
    }

    pub fn release(&self) -> &Arc<Release> {
        &self.release
    }

    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// From now on this is an upgraded connection, which occupies no thread of Puma's: a socket without a seat.
    pub fn into_tunnel(mut self) -> Self {
        self.seat = None;
        self.into_socket()
    }

    /// From now on this is a socket: it may live for hours, and is closed rather than waited for.
    pub fn into_socket(mut self) -> Self {
        let cell = &self.target.in_flight[self.worker];
        cell.sockets.fetch_add(1, Ordering::SeqCst);
        cell.requests.fetch_sub(1, Ordering::SeqCst);
        self.kind = Kind::Socket;
        self
    }

    fn cell(&self) -> &AtomicI64 {
        let cell = &self.target.in_flight[self.worker];
        match self.kind {
            Kind::Request => &cell.requests,
            Kind::Socket => &cell.sockets,
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.cell().fetch_sub(1, Ordering::SeqCst);
        if self.release.closed.load(Ordering::SeqCst) {
            self.release.left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release() -> Arc<Release> {
        let endpoint = Endpoint::Tcp(([127, 0, 0, 1], 1).into());
        let target = Target::new("127.0.0.1:1", endpoint, Arc::new(TargetStats::new(2)), 2);
        Release::new("r1", vec![target])
    }

    #[test]
    fn a_closed_release_lets_nobody_in_and_forgets_nobody() {
        let release = release();
        let first = release.enter(&release.targets[0], 0).unwrap();
        release.close();
        assert!(release.enter(&release.targets[0], 1).is_none());
        assert_eq!(release.in_flight(), InFlightCount { requests: 1, sockets: 0 });
        let socket = first.into_socket();
        assert_eq!(release.in_flight(), InFlightCount { requests: 0, sockets: 1 });
        drop(socket);
        assert_eq!(release.in_flight().total(), 0);
    }

    #[test]
    fn a_renewed_release_knows_its_targets_and_has_nothing_in_flight() {
        let release = release();
        let _first = release.enter(&release.targets[0], 0).unwrap();
        let latency = Latency::after(None, Duration::from_millis(7), Duration::from_secs(1));
        release.targets[0].set_latency(1, latency);
        let renewed = release.renewed();
        let (old, new) = (&release.targets[0], &renewed.targets[0]);
        assert_eq!((new.id, new.latency(1)), (old.id, Some(latency)));
        assert_ne!(new.pool, old.pool, "a connection of the old one may be cut at any time");
        let _second = renewed.enter(new, 1).unwrap();
        release.close();
        assert_eq!((release.in_flight().total(), renewed.in_flight().total()), (1, 1));
        assert!(!renewed.is_closed());
    }

    #[tokio::test]
    async fn requests_are_cut_at_their_deadline_and_sockets_at_theirs() {
        let release = release();
        let enter = || release.enter(&release.targets[0], 0).unwrap();
        let (request, socket) = (enter(), enter().into_socket());
        release.close();
        let ending = release.ending();
        release.drain_sockets(Duration::from_secs(9));
        assert!(!ending.borrow().cuts_requests());
        release.cut_requests();
        assert!(ending.borrow().cuts_requests() && *ending.borrow() != Ending::Cut);
        drop(request);
        // Another drain of the same does not take it back, nor does a second cut count it again.
        release.drain_sockets(Duration::from_secs(9));
        release.cut_requests();
        assert!(ending.borrow().cuts_requests());
        assert_eq!(release.cut_short(), 1);
        release.cut();
        release.cut();
        assert_eq!((*ending.borrow(), release.cut_short()), (Ending::Cut, 2));
        drop(socket);
        release.drain_sockets(Duration::ZERO);
        release.spare_sockets();
        assert_eq!(*ending.borrow(), Ending::Cut);
    }

    #[tokio::test]
    async fn idle_waits_for_the_last_one() {
        let release = release();
        let guard = release.enter(&release.targets[0], 0).unwrap();
        release.close();
        let idle = release.idle();
        tokio::pin!(idle);
        assert!(futures_util::poll!(idle.as_mut()).is_pending());
        drop(guard);
        assert!(futures_util::poll!(idle.as_mut()).is_ready());
    }
}
