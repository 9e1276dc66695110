//! Steady probing of all targets that serve or are held; it never stops while they do.
//!
//! It reports what changes; who draws conclusions for the snapshot is the owner of the state. The rules are
//! `model::health`, the last target of a slot included.

mod readings;

use std::collections::HashMap;

use model::service::GatePolicy;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::readings::{HealthChange, Reading, Readings};
use super::gate::jittered;
use crate::data_plane::upstream::probe::{Look, probe};
use crate::release::Endpoint;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Gets traffic; believed to be healthy until probes say otherwise.
    Serving,
    /// Kept warm for a rollback.
    Held,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// `release::Target::id`
    pub id: u64,
    /// The same for all targets of a slot that do the same: the last eligible one is never ejected.
    pub group: u64,
    /// But of these all may be: others stand in for them.
    pub dispensable: bool,
    pub endpoint: Endpoint,
    pub gate: GatePolicy,
    pub probe_host: String,
    pub role: Role,
}

/// Owns one probing task per target. Lives in a tokio runtime.
pub struct Monitor {
    changes: mpsc::Sender<HealthChange>,
    readings: Readings,
    watched: HashMap<u64, Watch>,
    tasks: TaskTracker,
    stopped: CancellationToken,
}

struct Watch {
    watched: watch::Sender<Watched>,
    stopped: CancellationToken,
}

impl Monitor {
    /// Changes of health go to `changes`; a probing task waits while it is full.
    pub fn new(changes: mpsc::Sender<HealthChange>) -> Self {
        Self {
            changes,
            readings: Readings::new(Instant::now()),
            watched: HashMap::new(),
            tasks: TaskTracker::new(),
            stopped: CancellationToken::new(),
        }
    }

    /// From now on exactly these are probed. Those known before keep their health; a new role is a new
    /// beginning. Never waits.
    pub fn watch(&mut self, set: Vec<Watched>) {
        let wanted: HashMap<u64, Watched> = set.into_iter().map(|watched| (watched.id, watched)).collect();
        self.watched.retain(|id, watch| {
            let keep = wanted.contains_key(id);
            if !keep {
                watch.stopped.cancel();
                self.readings.forget(*id);
            }
            keep
        });
        for watched in wanted.into_values() {
            self.readings.expect(&watched);
            match self.watched.get(&watched.id) {
                Some(watch) => {
                    watch.watched.send_if_modified(|known| {
                        let changed = *known != watched;
                        *known = watched;
                        changed
                    });
                }
                None => self.start(watched),
            }
        }
    }

    fn start(&mut self, watched: Watched) {
        let stopped = self.stopped.child_token();
        let id = watched.id;
        let (sender, receiver) = watch::channel(watched);
        let (readings, changes) = (self.readings.clone(), self.changes.clone());
        self.tasks.spawn(keep_probing(receiver, readings, changes, stopped.clone()));
        self.watched.insert(id, Watch { watched: sender, stopped });
    }

    /// What is known of each target now.
    pub fn readings(&self) -> Readings {
        self.readings.clone()
    }

    /// Ends all probing and waits for it.
    pub async fn stop(self) {
        self.stopped.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stopped.cancel();
    }
}

/// Probes one target until `stopped`: the first time at once, because what is believed is not yet known.
async fn keep_probing(
    mut watched: watch::Receiver<Watched>,
    readings: Readings,
    changes: mpsc::Sender<HealthChange>,
    stopped: CancellationToken,
) {
    let probing = async {
        loop {
            let target = watched.borrow_and_update().clone();
            let timeout = readings.probe_timeout(&target);
            let outcome =
                probe(&target.endpoint, &target.gate, &target.probe_host, timeout, Look::Quick).await;
            // A closed channel means that the owner of the state is shutting down; so will this.
            if let Some(change) = readings.record(&target, &outcome)
                && changes.send(change).await.is_err()
            {
                return;
            }
            let Some((wait, hurry)) = readings.next_probe(&target) else { return };
            tokio::select! {
                () = sleep(jittered(wait)) => {}
                // The others of its slot have fallen: it may be the one that is well again.
                () = hurry.notified() => {}
                // A new endpoint, role or policy is looked at without delay.
                changed = watched.changed() => if changed.is_err() { return },
            }
        }
    };
    tokio::select! {
        () = stopped.cancelled() => {}
        () = probing => {}
    }
}

#[cfg(test)]
mod tests;
