//! Who may come in, decided over all workers: so many connections, so many of one client, and whose place a
//! newcomer gets when all are taken.
//!
//! The kernel spreads connections over the workers as it likes, so a share for each would turn clients away
//! beside free places. The count is one for all, and a worker whose newcomer needs a place asks the one with
//! the oldest idle connection to close it. All of this happens when a connection comes or goes, never for a
//! request.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use crate::config::Limits;
use crate::telemetry::metrics::Metrics;

/// Nobody is in that line.
const NEVER: u64 = u64::MAX;
/// How long a client that was let in may take before it is worth less than one that has asked for something:
/// some round trips and a slow radio.
const NEW_FOR: Duration = Duration::from_secs(2);

pub struct Admission {
    metrics: Arc<Metrics>,
    connections: usize,
    /// Connections over the limit for as long as those that go for them have not gone.
    overlap: usize,
    per_client: usize,
    staying: AtomicUsize,
    staying_max: usize,
    clients: Clients,
    doors: Box<[Door]>,
    origin: Instant,
}

/// What a worker shows the others, and what they ask of it.
#[repr(align(64))]
struct Door {
    oldest_new_us: AtomicU64,
    oldest_idle_us: AtomicU64,
    asked: AtomicUsize,
    waker: AtomicWaker,
}

/// Why a newcomer has no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// Nobody can go for it.
    Full,
    /// Many are on their way out; it may have a place in a moment.
    NotYet,
    /// Its client has enough of them.
    Client,
}

/// A connection that can go for a newcomer, with the µs since when it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Choice {
    /// It never asked for anything, and could have.
    Overdue(u64),
    Idle(u64),
    /// Where nobody else is left: flooded, we serve who asks at once.
    New(u64),
}

/// One of the places, given back when dropped.
pub struct Admitted {
    admission: Arc<Admission>,
    client: Option<Prefix>,
}

impl Admitted {
    /// Counts the connection for `client`, on whose behalf another brought it.
    pub fn count_for(&mut self, client: IpAddr) -> Result<(), NoPlace> {
        let admission = &self.admission;
        let client = (admission.per_client > 0).then(|| Prefix::of(client));
        if let Some(client) = client
            && !admission.clients.enter(client, admission.per_client)
        {
            return Err(NoPlace::Client);
        }
        if let Some(before) = std::mem::replace(&mut self.client, client) {
            admission.clients.leave(before);
        }
        Ok(())
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.metrics.connections().open.fetch_sub(1, Ordering::Relaxed);
        if let Some(client) = self.client {
            self.admission.clients.leave(client);
        }
    }
}

/// One of the places for what stays and cannot be closed for a newcomer: WebSockets, event streams, and requests that a pause
/// keeps waiting. Given back when dropped.
pub struct StayingPlace(Arc<Admission>);

impl Drop for StayingPlace {
    fn drop(&mut self) {
        self.0.staying.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    pub fn new(limits: &Limits, workers: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        let door = || Door {
            oldest_new_us: AtomicU64::new(NEVER),
            oldest_idle_us: AtomicU64::new(NEVER),
            asked: AtomicUsize::new(0),
            waker: AtomicWaker::new(),
        };
        Arc::new(Self {
            metrics,
            connections: limits.connections,
            overlap: (limits.connections / 16).clamp(16, 1024),
            per_client: limits.connections_per_client,
            staying: AtomicUsize::new(0),
            staying_max: limits.staying(),
            clients: Clients::default(),
            doors: (0..workers.max(1)).map(|_| door()).collect(),
            origin: Instant::now(),
        })
    }

    /// Lets `peer` in, if need be for another; `make_room` has one closed that is missed less.
    pub fn enter(
        self: &Arc<Self>,
        peer: IpAddr,
        is_trusted: bool,
        make_room: impl FnOnce() -> bool,
    ) -> Result<Admitted, NoPlace> {
        let client = (self.per_client > 0 && !is_trusted).then(|| Prefix::of(peer));
        if let Some(client) = client
            && !self.clients.enter(client, self.per_client)
        {
            return Err(NoPlace::Client);
        }
        let before = self.metrics.connections().open.fetch_add(1, Ordering::Relaxed);
        let admitted = Admitted { admission: Arc::clone(self), client };
        if before < self.connections {
            Ok(admitted)
        } else if before >= self.connections + self.overlap {
            Err(NoPlace::NotYet)
        } else if make_room() {
            Ok(admitted)
        } else {
            Err(NoPlace::Full)
        }
    }

    /// `None` if as many stay as may.
    pub fn stay(self: &Arc<Self>) -> Option<StayingPlace> {
        let before = self.staying.fetch_add(1, Ordering::Relaxed);
        let place = StayingPlace(Arc::clone(self));
        (before < self.staying_max).then_some(place)
    }

    /// The worker with the connection that is missed least.
    pub fn worker_to_make_room(&self, now: Instant) -> Option<usize> {
        let door = |(worker, door): (usize, &Door)| {
            let idle = self.metrics.connections().workers[worker].idle.load(Ordering::Relaxed);
            // Those that it was asked for already are as good as gone.
            let spare = idle > door.asked.load(Ordering::Relaxed);
            let read = |cell: &AtomicU64| Some(cell.load(Ordering::Relaxed)).filter(|since| *since != NEVER);
            let choice = self.choose(read(&door.oldest_new_us), read(&door.oldest_idle_us), now);
            choice.filter(|_| spare).map(|choice| (choice, worker))
        };
        self.doors.iter().enumerate().filter_map(door).min().map(|(_, worker)| worker)
    }

    /// Whom to send away of those that have been longest in their lines, since so many µs; choices compare by
    /// how little the connection is missed.
    pub fn choose(&self, new: Option<u64>, idle: Option<u64>, now: Instant) -> Option<Choice> {
        let overdue = |since: &u64| self.us(now).saturating_sub(*since) >= NEW_FOR.as_micros() as u64;
        let overdue = new.filter(overdue).map(Choice::Overdue);
        overdue.or(idle.map(Choice::Idle)).or(new.map(Choice::New))
    }

    /// Asks another worker to close its oldest idle connection.
    pub fn ask(&self, worker: usize) {
        self.doors[worker].asked.fetch_add(1, Ordering::Relaxed);
        self.doors[worker].waker.wake();
    }

    /// How many connections this worker was asked for.
    pub fn poll_asked(&self, worker: usize, cx: &mut Context<'_>) -> Poll<usize> {
        let door = &self.doors[worker];
        door.waker.register(cx.waker());
        match door.asked.swap(0, Ordering::Relaxed) {
            0 => Poll::Pending,
            asked => Poll::Ready(asked),
        }
    }

    pub fn show_oldest(&self, worker: usize, new_us: Option<u64>, idle_us: Option<u64>) {
        let door = &self.doors[worker];
        door.oldest_new_us.store(new_us.unwrap_or(NEVER), Ordering::Relaxed);
        door.oldest_idle_us.store(idle_us.unwrap_or(NEVER), Ordering::Relaxed);
    }

    /// The same clock for all workers.
    pub fn us(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.origin).as_micros() as u64
    }
}

/// Whose connections, and buffered bodies, are counted together: an IPv4 address, or the /64 that an IPv6 host can choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix(IpAddr);

impl Prefix {
    pub fn of(peer: IpAddr) -> Self {
        match peer.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() & (u128::MAX << 64);
                Self(Ipv6Addr::from_bits(network).into())
            }
            v4 => Self(v4),
        }
    }
}

const SHARDS: usize = 64;

/// How many connections each client has. A lock is held for one look-up when a connection comes or goes, and
/// two workers meet at one only for clients of one shard; exact counts over all workers need no more.
#[derive(Default)]
struct Clients {
    hasher: RandomState,
    shards: Shards,
}

struct Shards([Mutex<HashMap<Prefix, usize>>; SHARDS]);

impl Default for Shards {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl Clients {
    fn shard(&self, client: Prefix) -> std::sync::MutexGuard<'_, HashMap<Prefix, usize>> {
        let shard = self.hasher.hash_one(client) as usize % SHARDS;
        self.shards.0[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, client: Prefix, max: usize) -> bool {
        let mut shard = self.shard(client);
        let count = shard.entry(client).or_default();
        let fits = *count < max;
        *count += usize::from(fits);
        fits
    }

    fn leave(&self, client: Prefix) {
        let mut shard = self.shard(client);
        if let Some(count) = shard.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                shard.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Flags};

    fn admission(connections: usize, per_client: usize) -> Arc<Admission> {
        let limits = Config::load(Flags::default()).unwrap().limits;
        let limits = Limits { connections, connections_per_client: per_client, ..limits };
        Admission::new(&limits, 2, Metrics::new(2))
    }

    #[test]
    fn clients_are_counted_by_prefix() {
        let admission = admission(100, 2);
        let enter = |peer: &str, trusted| {
            admission
                .enter(peer.parse().unwrap(), trusted, || false)
                .map_err(|error| (peer.to_owned(), error))
        };
        let first = enter("203.0.113.1", false).unwrap();
        let _second = enter("203.0.113.1", false).unwrap();
        for peer in ["203.0.113.1", "::ffff:203.0.113.1"] {
            assert_eq!(enter(peer, false).err(), Some((peer.to_owned(), NoPlace::Client)));
        }
        let _others = [enter("203.0.113.2", false).unwrap(), enter("203.0.113.1", true).unwrap()];
        drop(first);
        let _third = enter("203.0.113.1", false).unwrap();
        let _v6 = [enter("2001:db8::1", false).unwrap(), enter("2001:db8::ffff:2", false).unwrap()];
        assert_eq!(enter("2001:db8::3", false).err().map(|(_, why)| why), Some(NoPlace::Client));
        assert!(enter("2001:db8:0:1::3", false).is_ok());
    }

    #[test]
    fn connections_that_a_balancer_brings_count_for_their_clients() {
        let admission = admission(100, 2);
        let brought_for = |client: [u8; 4]| {
            let mut admitted = admission.enter([10, 0, 0, 1].into(), true, || false)?;
            admitted.count_for(client.into()).map(|()| admitted)
        };
        let mut inside = Vec::new();
        for (client, fits) in
            [([192, 0, 2, 1], true), ([192, 0, 2, 1], true), ([192, 0, 2, 1], false), ([192, 0, 2, 2], true)]
        {
            let brought = brought_for(client);
            assert_eq!(brought.as_ref().err().copied(), (!fits).then_some(NoPlace::Client), "{client:?}");
            inside.extend(brought);
        }
        inside.clear();
        assert!(brought_for([192, 0, 2, 1]).is_ok());
        assert_eq!(admission.metrics.connections().open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_client_that_is_gone_leaves_nothing_behind() {
        let admission = admission(100, 50);
        let entered: Vec<_> = (0..50)
            .map(|n| {
                admission
                    .enter(Ipv6Addr::from_bits(n << 64).into(), false, || false)
                    .unwrap_or_else(|_| panic!())
            })
            .collect();
        let known =
            || admission.clients.shards.0.iter().map(|shard| shard.lock().unwrap().len()).sum::<usize>();
        assert_eq!(known(), 50);
        drop(entered);
        assert_eq!((known(), admission.metrics.connections().open.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn at_the_limit_one_comes_for_one_that_goes() {
        let admission = admission(2, 0);
        let enter = |room| admission.enter([127, 0, 0, 1].into(), false, || room);
        let mut inside =
            vec![enter(false).unwrap_or_else(|_| panic!()), enter(false).unwrap_or_else(|_| panic!())];
        assert_eq!(enter(false).err(), Some(NoPlace::Full));
        for _ in 0..16 {
            inside.push(enter(true).unwrap_or_else(|why| panic!("{why:?}")));
        }
        assert_eq!(enter(true).err(), Some(NoPlace::NotYet), "so many may overlap");
        inside.truncate(3);
        assert!(enter(true).is_ok());
    }

    #[test]
    fn whoever_is_missed_least_goes() {
        let admission = admission(2, 0);
        let second = 1_000_000;
        let now = admission.origin + Duration::from_secs(10);
        for (new, idle, want) in [
            (None, None, None),
            (None, Some(5), Some(Choice::Idle(5))),
            (Some(5), Some(1), Some(Choice::Overdue(5))),
            (Some(9 * second), Some(9 * second + 1), Some(Choice::Idle(9 * second + 1))),
            (Some(9 * second), None, Some(Choice::New(9 * second))),
        ] {
            assert_eq!(admission.choose(new, idle, now), want, "{new:?} {idle:?}");
        }
    }

    #[test]
    fn the_oldest_of_all_workers_goes() {
        let admission = admission(2, 0);
        let now = admission.origin;
        let show = |worker: usize, idle_us| {
            admission.metrics.connections().workers[worker].idle.store(1, Ordering::Relaxed);
            admission.show_oldest(worker, None, Some(idle_us));
        };
        assert_eq!(admission.worker_to_make_room(now), None);
        show(0, 20);
        show(1, 10);
        assert_eq!(admission.worker_to_make_room(now), Some(1));
        admission.ask(1);
        assert_eq!(admission.worker_to_make_room(now), Some(0), "the other's only one is spoken for");
    }
}
