//! What the monitor knows of its targets: one table behind a short lock, so that "is another target of the
//! slot still eligible?" and the step that depends on it are one thing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::diagnosis::ProbeOutcome;
use model::health::{self, Health, Standing, State};
use model::protocol::TargetStateName;
use model::service::GatePolicy;
use tokio::sync::Notify;
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
    /// It failed so often in a row that requests avoid it, unless all of its slot have fallen.
    pub fallen: bool,
    pub last_probe: String,
}

/// What is known of one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    pub state: TargetStateName,
    pub eligible: bool,
    pub fallen: bool,
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
    /// Ends the wait for its next probe.
    hurry: Arc<Notify>,
}

impl Entry {
    fn is_eligible(&self) -> bool {
        self.health.is_eligible(&self.gate)
    }

    fn is_of(&self, group: u64) -> bool {
        self.group == group && self.role == Role::Serving
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
            fallen: entry.health.standing().fallen,
            last_probe: entry.last_probe.clone(),
        })
    }

    /// As a slot's rules see it; one that is not known yet is believed to serve.
    pub fn standing(&self, target_id: u64) -> Standing {
        self.table().get(&target_id).map_or(Standing::BELIEVED, |entry| entry.health.standing())
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
            hurry: Arc::default(),
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
        let alone = !watched.dispensable
            && !table
                .iter()
                .any(|(id, other)| *id != watched.id && other.is_of(group) && other.is_eligible());
        let entry = table.get_mut(&watched.id)?;
        // The probe was sent to what the target was before `watch` changed it.
        if entry.role != watched.role {
            return None;
        }
        let before = (entry.health.standing(), entry.is_eligible());
        entry.health.step(health_event(outcome), now, &watched.gate, alone);
        entry.last_probe = Some(last_probe.clone());
        let (standing, eligible) = (entry.health.standing(), entry.is_eligible());
        let Standing { state, fallen } = standing;
        let change = HealthChange { target_id: watched.id, state, eligible, fallen, last_probe };
        if fallen && !before.0.fallen && has_fallen(&table, group) {
            // Nobody may wait out a back-off while there is nothing else to try.
            table.values().filter(|one| one.is_of(group)).for_each(|one| one.hurry.notify_one());
        }
        ((standing, eligible) != before).then_some(change)
    }

    /// When it is due, and what makes it due at once. `None`: no longer watched.
    pub(super) fn next_probe(&self, watched: &Watched) -> Option<(Duration, Arc<Notify>)> {
        let table = self.table();
        let entry = table.get(&watched.id)?;
        let mut wait = entry.health.next_probe_in(self.now(), &watched.gate)?;
        if entry.health.state() == State::Ejected && has_fallen(&table, entry.group) {
            wait = wait.min(GatePolicy::STEADY_INTERVAL);
        }
        Some((wait, Arc::clone(&entry.hurry)))
    }

    pub(super) fn probe_timeout(&self, watched: &Watched) -> Duration {
        let table = self.table();
        table.get(&watched.id).map_or(watched.gate.timeout, |entry| entry.health.probe_timeout(&watched.gate))
    }
}

fn has_fallen(table: &HashMap<u64, Entry>, group: u64) -> bool {
    let slot = table.values().filter(|one| one.is_of(group)).map(|one| one.health.standing());
    health::has_fallen(&slot.collect::<Vec<_>>())
}
