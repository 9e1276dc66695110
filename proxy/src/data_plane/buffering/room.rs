//! How much all buffered bodies of the process may take, in memory and on disk.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::fair_share;
use tokio::time::{Duration, Instant};

use crate::adapters::buffer_dir::BufferDir;
use crate::config::BufferLimits;
use crate::data_plane::admission::Prefix;
use crate::telemetry::buffers::{Buffers, Side};
use crate::telemetry::metrics::Metrics;

/// Between two lines about the disk in the log.
const WARN_EVERY: Duration = Duration::from_secs(10);

pub struct Room {
    limits: BufferLimits,
    pub dir: BufferDir,
    metrics: Arc<Metrics>,
    /// What clients have on disk, in bytes. Locked for a look-up when something is written or a file goes.
    clients: Mutex<HashMap<Prefix, u64>>,
    began: Instant,
    /// When the disk was last complained of, in ms after `began`.
    warned: AtomicU64,
}

/// There is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom;

/// What memory is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Body,
    /// On the way to disk. A quarter is kept for it, so that bodies which found the memory full can go there.
    Spilling,
}

impl Room {
    pub fn new(limits: BufferLimits, metrics: Arc<Metrics>) -> Arc<Self> {
        let dir = BufferDir::at(&limits.directory);
        Arc::new(Self {
            limits,
            dir,
            metrics,
            clients: Mutex::default(),
            began: Instant::now(),
            warned: AtomicU64::new(0),
        })
    }

    fn buffers(&self) -> &Buffers {
        self.metrics.buffers()
    }

    /// Whether a body of so many bytes would have room if it were the only one.
    pub fn could_hold(&self, bytes: u64) -> bool {
        bytes <= self.limits.memory_bytes.saturating_add(fair_share::alone(self.limits.disk_bytes))
    }

    pub fn take_memory(self: &Arc<Self>, bytes: u64, what: Use) -> Option<Memory> {
        let all = self.limits.memory_bytes;
        let max = if what == Use::Body { all / 4 * 3 } else { all };
        let taken = take(&self.buffers().memory_bytes, bytes, max);
        taken.then(|| Memory { room: Arc::clone(self), bytes })
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Prefix, u64>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for one more file, which is empty.
    pub fn take_file(self: &Arc<Self>, side: Side, client: Prefix) -> Option<Disk> {
        let taken = self.limits.disk_bytes > 0 && take(&self.buffers().files, 1, self.limits.files);
        taken.then(|| {
            self.buffers().count_spilled(side);
            Disk { room: Arc::clone(self), client, bytes: AtomicU64::new(0) }
        })
    }

    pub fn count_full(&self, side: Side) {
        self.buffers().count_full(side);
    }

    /// A full disk fails thousands of requests, and one line every few seconds is enough to say so.
    pub fn complain(&self, error: &std::io::Error) {
        let now = self.began.elapsed();
        let next = u64::try_from((now + WARN_EVERY).as_millis()).unwrap_or(u64::MAX);
        let due = |at: u64| (u128::from(at) <= now.as_millis()).then_some(next);
        if self.warned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).is_ok() {
            let path = self.dir.path().display();
            tracing::error!(%path, %error, "buffered bodies cannot be written: requests that need it get 503");
        }
    }
}

/// Adds `bytes` unless that would be more than `max`.
fn take(account: &AtomicU64, bytes: u64, max: u64) -> bool {
    let more = |held: u64| held.checked_add(bytes).filter(|held| *held <= max);
    account.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
}

/// Bytes of memory, given back when dropped.
pub struct Memory {
    room: Arc<Room>,
    bytes: u64,
}

impl Memory {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.room.buffers().memory_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A file and the bytes in it, given back when dropped.
pub struct Disk {
    room: Arc<Room>,
    client: Prefix,
    bytes: AtomicU64,
}

impl Disk {
    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    pub fn take(&self, bytes: u64) -> Result<(), NoRoom> {
        let (mut clients, all) = (self.room.clients(), &self.room.buffers().disk_bytes);
        let held = clients.get(&self.client).copied().unwrap_or_default();
        // Only written under the lock.
        if !fair_share::may_take(bytes, held, all.load(Ordering::Relaxed), self.room.limits.disk_bytes) {
            return Err(NoRoom);
        }
        clients.insert(self.client, held + bytes);
        all.fetch_add(bytes, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Some of what was taken was not written.
    pub fn give_back(&self, bytes: u64) {
        let mut clients = self.room.clients();
        let held = clients.get(&self.client).copied().unwrap_or_default();
        match held.saturating_sub(bytes) {
            0 => drop(clients.remove(&self.client)),
            left => drop(clients.insert(self.client, left)),
        }
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.room.buffers().disk_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.give_back(self.bytes.load(Ordering::Relaxed));
        self.room.buffers().files.fetch_sub(1, Ordering::Relaxed);
    }
}
