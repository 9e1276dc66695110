//! What the monitor knows of its targets: one table behind a short lock, so that "is another target of the
//! slot still eligible?" and the step that depends on it are one thing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::diagnosis::ProbeOutcome;
use model::health::Health;
use model::protocol::TargetStateName;
use model::service::GatePolicy;
use tokio::time::Instant;

use super::super::gate::health_event;
use super::{Role, Watched};

/// A target's state, or whether it should be tried, has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthChange {
    pub target_id: u64,
    pub state: TargetStateName,
    /// On its own account; `model::health::eligible` looks at a whole slot. For a held target: whether a
    /// rollback to it would do well.
    pub eligible: bool,
    pub last_probe: String,
}

/// What is known of one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    pub state: TargetStateName,
    pub eligible: bool,
    /// Such as `200 in 3ms`; `None` before the first.
    pub last_probe: Option<String>,
}

/// Shared with whoever prints the status.
#[derive(Clone)]
pub struct Readings {
    table: Arc<Mutex<HashMap<u64, Entry>>>,
    epoch: Instant,
}

struct Entry {
    group: u64,
    role: Role,
    gate: GatePolicy,
    health: Health,
    last_probe: Option<String>,
}

impl Entry {
    fn is_eligible(&self) -> bool {
        self.health.is_eligible(&self.gate)
    }
}

impl Readings {
    pub(super) fn new(epoch: Instant) -> Self {
        Self { table: Arc::default(), epoch }
    }

    pub fn get(&self, target_id: u64) -> Option<Reading> {
        self.table().get(&target_id).map(|entry| Reading {
            state: entry.health.state(),
            eligible: entry.is_eligible(),
            last_probe: entry.last_probe.clone(),
        })
    }

    fn table(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Makes an entry for it, or brings the one there is up to date.
    pub(super) fn expect(&self, watched: &Watched) {
        let now = self.now();
        let beginning = || match watched.role {
            Role::Serving => Health::serving(now),
            Role::Held => Health::held(now),
        };
        let mut table = self.table();
        let entry = table.entry(watched.id).or_insert_with(|| Entry {
            group: watched.group,
            role: watched.role,
            gate: watched.gate.clone(),
            health: beginning(),
            last_probe: None,
        });
        if entry.role != watched.role {
            entry.health = beginning();
        }
        (entry.group, entry.role) = (watched.group, watched.role);
        entry.gate = watched.gate.clone();
    }

    pub(super) fn forget(&self, target_id: u64) {
        self.table().remove(&target_id);
    }

    /// `Some` if its state or its eligibility has changed.
    pub(super) fn record(&self, watched: &Watched, outcome: &ProbeOutcome) -> Option<HealthChange> {
        let now = self.now();
        let last_probe = outcome.to_string();
        let mut table = self.table();
        let group = table.get(&watched.id)?.group;
        let alone = !table.iter().any(|(id, other)| {
            *id != watched.id && other.group == group && other.role == Role::Serving && other.is_eligible()
        });
        let entry = table.get_mut(&watched.id)?;
        // The probe was sent to what the target was before `watch` changed it.
        if entry.role != watched.role {
            return None;
        }
        let before = (entry.health.state(), entry.is_eligible());
        entry.health.step(health_event(outcome), now, &watched.gate, alone);
        entry.last_probe = Some(last_probe.clone());
        let (state, eligible) = (entry.health.state(), entry.is_eligible());
        let change = HealthChange { target_id: watched.id, state, eligible, last_probe };
        ((state, eligible) != before).then_some(change)
    }

    /// `None`: no longer watched.
    pub(super) fn next_probe_in(&self, watched: &Watched) -> Option<Duration> {
        self.table().get(&watched.id)?.health.next_probe_in(self.now(), &watched.gate)
    }

    pub(super) fn probe_timeout(&self, watched: &Watched) -> Duration {
        let table = self.table();
        table.get(&watched.id).map_or(watched.gate.timeout, |entry| entry.health.probe_timeout(&watched.gate))
    }
}
