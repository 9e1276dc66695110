//! The task behind the registry: makes changes one after another, and publishes what follows from them.
//!
//! Order of a change: pure change on a copy → disk → view and snapshot → monitor → audit log → answer. What
//! fails before the disk has it changes nothing; nothing after it can fail.

mod declaring;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use model::canary::{Cohort, FleetSecret};
use model::health::State as TargetState;
use model::name::{ServiceName, TargetAddress};
use model::protocol::{LoggedEvent, Problem, ProblemCode};
use model::service::{Release as Record, Service};
use tokio::sync::{mpsc, watch};

use super::super::activations::{self, Activation, Factory, Live};
use super::super::audit::{Audit, OURSELVES};
use super::super::certificates::ServiceCertificate;
use super::super::changes::{self, Change, Origin};
use super::super::files::Files;
use super::super::gate::probe_host;
use super::super::monitor::{HealthChange, Monitor, Role, Watched};
use super::super::operations::Operations;
use super::super::{admissions, now_ms, pages, snapshots};
use super::{Command, Commit, Committed, Registry, Reloaded, View};
use crate::adapters::page_files;
use crate::adapters::state_file::{State, StateFile};
use crate::release::{Endpoint, Target};
use crate::snapshot::Published;
use crate::telemetry::metrics::Labels;

const COMMANDS_MAX: usize = 64;
const HEALTH_CHANGES_MAX: usize = 256;

/// What the keeper works with.
pub struct Parts {
    pub file: StateFile,
    pub factory: Factory,
    pub published: Published,
    pub secret: FleetSecret,
    pub audit: Audit,
    pub operations: Operations,
}

pub struct Keeper {
    parts: Parts,
    current: Arc<View>,
    shared: Arc<ArcSwap<View>>,
    monitor: Monitor,
    commands: mpsc::Receiver<Command>,
    health: mpsc::Receiver<HealthChange>,
    /// For those who follow the state.
    generation: watch::Sender<u64>,
}

impl Keeper {
    /// Begins with `view` and publishes its snapshot. Lives in a tokio runtime.
    pub fn new(parts: Parts, view: View) -> (Self, Registry) {
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (changes, health) = mpsc::channel(HEALTH_CHANGES_MAX);
        let monitor = Monitor::new(changes);
        let current = Arc::new(view);
        let shared = Arc::new(ArcSwap::new(Arc::clone(&current)));
        let (generation, generations) = watch::channel(current.state.generation);
        let readings = monitor.readings();
        let registry = Registry { view: Arc::clone(&shared), commands: sender, readings, generations };
        let mut keeper = Self { parts, current, shared, monitor, commands, health, generation };
        keeper.watch();
        keeper.publish();
        (keeper, registry)
    }

    /// Runs until every `Registry` is gone.
    pub async fn run(mut self) {
        loop {
            // Both receivers are cancel safe.
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => break,
                },
                Some(change) = self.health.recv() => self.heed(&change),
            }
        }
        self.monitor.stop().await;
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Commit(commit, answer) => {
                let result = self.commit(*commit).await;
                // A caller that has gone finds the change in the status.
                let _ = answer.send(result);
            }
            Command::Files(name, files, answer) => {
                if let Some(pages) = &files.pages
                    && let Err(problem) = pages::keep(pages, &name, self.parts.file.dir()).await
                {
                    tracing::warn!(service = %name, causes = problem.causes.join(": "), "{}", problem.message);
                }
                let service = self.current.state.services.get(&name).cloned();
                self.change_live(&name, |live| {
                    let Files { certificate, pages, client_auth } = Files::of(live);
                    // What another deploy has named meanwhile stays.
                    let fits =
                        |read: &ServiceCertificate| service.is_some_and(|service| read.fits(&service.policy));
                    let files = Files {
                        certificate: files.certificate.filter(fits).or(certificate),
                        pages: files.pages.or(pages),
                        client_auth: files.client_auth.or(client_auth),
                    };
                    files.put_into(live);
                });
                let _ = answer.send(());
            }
            Command::Located(name, record, endpoints) => self.relocate(&name, &record, &endpoints),
            Command::Managed(managed, answer) => {
                let View { state, live, .. } = &*self.current;
                self.swap(View { state: Arc::clone(state), live: live.clone(), managed });
                let _ = answer.send(());
            }
            Command::Tidy => self.tidy(),
            Command::Declare(declaration, answer) => {
                let result = self.declare(*declaration).await;
                let _ = answer.send(result);
            }
            Command::Reloaded(places) => self.reload(places),
        }
    }

    /// All at once, so that many services with the same files make one snapshot.
    fn reload(&mut self, places: Vec<Reloaded>) {
        let mut live = self.current.live.clone();
        let mut told = Vec::new();
        for Reloaded { service, index, place, kind, message } in places {
            let certificate = live.get_mut(&service).and_then(|live| live.certificate.as_mut());
            // A deploy may have named other files meanwhile.
            if certificate.is_some_and(|certificate| certificate.put(index, place)) {
                told.push((service, kind, message));
            }
        }
        if told.is_empty() {
            return;
        }
        self.swap(self.next(Arc::clone(&self.current.state), live));
        for (service, kind, message) in told {
            self.parts.audit.record(LoggedEvent {
                at_ms: now_ms(),
                generation: self.current.state.generation,
                kind: kind.to_owned(),
                service: Some(service.to_string()),
                release: None,
                target: None,
                actor: OURSELVES.to_owned(),
                message,
            });
        }
    }

    async fn commit(&mut self, commit: Commit) -> Result<Committed, Problem> {
        let origin = Origin { actor: commit.actor.clone(), at_ms: now_ms(), by: commit.kind };
        let state = changes::apply(&self.current.state, &commit.service, &commit.change, &origin)?;
        let live = self.follow(&commit, &state).await?;
        if let Some(pages) = &commit.files.pages {
            pages::keep(pages, &commit.service, self.parts.file.dir()).await?;
        }
        let state = self.save(state).await?;

        let before = self.take_copy(&commit.service);
        let mut next = self.next(state, self.current.live.clone());
        match live {
            Some(live) => next.live.insert(commit.service.clone(), live),
            None => {
                page_files::forget(self.parts.file.dir(), &commit.service);
                next.live.remove(&commit.service)
            }
        };
        self.swap(next);
        let at_ms = now_ms();
        let after = self.take_copy(&commit.service);
        let live_of = |side: &Option<(Service, Live)>| side.as_ref().map(|(_, live)| live.clone());
        let replaced = activations::replaced(live_of(&before).as_ref(), live_of(&after).as_ref());
        // Only now: whoever is refused entry must find the snapshot that leads elsewhere.
        replaced.closed.iter().for_each(|release| release.close());
        lift(&before, &after);
        self.audit(&commit, at_ms);
        let generation = self.current.state.generation;
        Ok(Committed { generation, at_ms, before, after, replaced: replaced.drained })
    }

    /// What will be at work for the changed service; `None` if it is removed.
    async fn follow(&self, commit: &Commit, state: &State) -> Result<Option<Live>, Problem> {
        let Some(service) = state.services.get(&commit.service) else { return Ok(None) };
        let before = self.current.live.get(&commit.service);
        let mut live = self.parts.factory.follow(service, before, &commit.known).ok_or_else(|| {
            let message = format!("nothing is at work for release `{}`", service.stable.id);
            Problem::new(ProblemCode::Internal, message)
        })?;
        live.halt = Live::halt(before, service.halt.as_ref());
        if matches!(commit.change, Change::Halt { .. }) && before.is_none_or(|live| live.halt.is_none()) {
            live.renew();
        }
        let known = before.map(Files::of).unwrap_or_default();
        let files = Files::current(service, commit.files.clone(), known, self.parts.file.dir()).await;
        files.put_into(&mut live);
        Ok(Some(live))
    }

    async fn save(&self, state: State) -> Result<Arc<State>, Problem> {
        let (state, file) = (Arc::new(state), self.parts.file.clone());
        let written = Arc::clone(&state);
        match tokio::task::spawn_blocking(move || file.save(&written)).await {
            Ok(Ok(())) => Ok(state),
            Ok(Err(error)) => {
                let problem = Problem::from_error(ProblemCode::Storage, &error);
                tracing::error!(causes = problem.causes.join(": "), "{}", problem.message);
                Err(problem.hint(
                    "nothing was changed and all traffic is served as before; make room, then try again",
                ))
            }
            Err(error) => Err(Problem::from_error(ProblemCode::Internal, &error)),
        }
    }

    fn take_copy(&self, name: &ServiceName) -> Option<(Service, Live)> {
        let (service, live) = self.current.service(name).ok()?;
        Some((service.clone(), live.clone()))
    }

    fn audit(&self, commit: &Commit, at_ms: u64) {
        let service = self.current.state.services.get(&commit.service);
        let release = match &commit.change {
            Change::Refused { release, .. } => Some(release.id.to_string()),
            Change::StartCanary { .. } | Change::SetWeight { .. } => service
                .and_then(|service| service.canary.as_ref())
                .map(|canary| canary.release.id.to_string()),
            _ => service.map(|service| service.stable.id.to_string()),
        };
        self.parts.audit.record(LoggedEvent {
            at_ms,
            generation: self.current.state.generation,
            kind: commit.kind.to_owned(),
            service: Some(commit.service.to_string()),
            release,
            target: None,
            actor: commit.actor.clone(),
            message: commit.message.clone(),
        });
    }

    /// Changes what is at work, but nothing that operators decided: no new generation, nothing to save.
    fn change_live(&mut self, name: &ServiceName, change: impl FnOnce(&mut Live)) {
        let mut live = self.current.live.clone();
        if let Some(one) = live.get_mut(name) {
            change(one);
            self.swap(self.next(Arc::clone(&self.current.state), live));
        }
    }

    fn next(&self, state: Arc<State>, live: BTreeMap<ServiceName, Live>) -> View {
        View { state, live, managed: Arc::clone(&self.current.managed) }
    }

    fn swap(&mut self, next: View) {
        self.current = Arc::new(next);
        self.publish();
        self.shared.store(Arc::clone(&self.current));
        self.watch();
        let generation = self.current.state.generation;
        self.generation.send_if_modified(|known| std::mem::replace(known, generation) != generation);
    }

    fn publish(&self) {
        let readings = self.monitor.readings();
        let standings = |id| readings.standing(id);
        let next = snapshots::build(&self.current, &standings, &self.parts.secret);
        admissions::publish(&self.parts.published, next, &standings);
    }

    fn watch(&mut self) {
        let watched = self.current.services().flat_map(|(service, live)| {
            let serving = std::iter::once(&live.stable).chain(&live.canary);
            let serving = serving.flat_map(|one| watched(service, one, Role::Serving));
            serving.chain(live.held.iter().flat_map(|one| watched(service, one, Role::Held)))
        });
        let set = watched.collect();
        self.monitor.watch(set);
    }

    fn heed(&mut self, change: &HealthChange) {
        let Some((service, live, label)) = self.find(change.target_id) else { return };
        let kind = match change.state {
            TargetState::Ejected => "target ejected",
            TargetState::Held if !change.eligible => "held target lost",
            TargetState::Held => "held target back",
            TargetState::Suspect if change.fallen => "last target down",
            TargetState::Suspect => "target suspect",
            _ => "target serving",
        };
        let event = LoggedEvent {
            at_ms: now_ms(),
            generation: self.current.state.generation,
            kind: kind.to_owned(),
            service: Some(service.name.to_string()),
            release: Some(live.record.id.to_string()),
            target: Some(label.to_string()),
            actor: OURSELVES.to_owned(),
            message: format!("its last probe saw: {}", change.last_probe),
        };
        self.parts.audit.record(event);
        self.publish();
    }

    fn find(&self, target_id: u64) -> Option<(&Service, &Activation, &Arc<str>)> {
        self.current.services().find_map(|(service, live)| {
            let slots = std::iter::once(&live.stable).chain(&live.canary).chain(&live.held);
            slots.into_iter().find_map(|one| {
                let target = one.release.targets.iter().find(|target| target.id == target_id)?;
                Some((service, one, &target.label))
            })
        })
    }

    /// `record` was restored without an address for one of its names; now it has them all.
    fn relocate(&mut self, name: &ServiceName, record: &Record, endpoints: &[Endpoint]) {
        let Some((_, live)) = self.take_copy(name) else { return };
        let anew = |cohort| self.parts.factory.activate(name, cohort, record, endpoints.to_vec());
        let mut next = live.clone();
        for (slot, cohort) in [
            (Some(&mut next.stable), Cohort::Stable),
            (next.canary.as_mut(), Cohort::Canary),
            (next.held.as_mut(), Cohort::Stable),
        ] {
            if let Some(slot) = slot.filter(|slot| slot.record == *record) {
                let is_closed = slot.release.is_closed();
                *slot = anew(cohort);
                // What is held lets nobody in.
                if is_closed {
                    slot.release.close();
                }
            }
        }
        let replaced = activations::replaced(Some(&live), Some(&next));
        self.change_live(name, |live| *live = next);
        replaced.closed.iter().for_each(|release| release.close());
    }

    /// Forgets the series of releases that are in no slot and no history. Those of an operation under way
    /// are not in the state yet.
    fn tidy(&self) {
        let wanted: BTreeSet<(&str, &str)> = self
            .current
            .state
            .services
            .values()
            .flat_map(|service| {
                let canary = service.canary.iter().map(|canary| &canary.release);
                let slots = std::iter::once(&service.stable).chain(canary).chain(&service.held);
                let history = service.history.iter().map(|entry| &entry.release);
                slots.chain(history).map(|release| (service.name.as_str(), release.id.as_str()))
            })
            .collect();
        let is_busy =
            |name: &str| name.parse().is_ok_and(|name| self.parts.operations.running(&name).is_some());
        self.parts.factory.metrics.retain(|labels: &Labels| {
            wanted.contains(&(&*labels.service, &*labels.release)) || is_busy(&labels.service)
        });
    }
}

/// Wakes those who wait for the end of a halt that is over.
fn lift(before: &Option<(Service, Live)>, after: &Option<(Service, Live)>) {
    let of = |side: &'_ Option<(Service, Live)>| side.as_ref().and_then(|(_, live)| live.halt.clone());
    if let Some(halt) = of(before)
        && of(after).is_none_or(|now| !Arc::ptr_eq(&now, &halt))
    {
        halt.lift();
    }
}

fn watched(service: &Service, activation: &Activation, role: Role) -> Vec<Watched> {
    let (record, release) = (&activation.record, &activation.release);
    let watched = |addresses: &[TargetAddress], targets: &[Arc<Target>], dispensable| -> Vec<Watched> {
        // Ids are unique in the process, so the first one's names the group.
        let group = targets.first().map_or(0, |target| target.id);
        let one = |(address, target): (&_, &Arc<Target>)| Watched {
            id: target.id,
            group,
            dispensable,
            endpoint: target.endpoint.clone(),
            gate: service.policy.gate.clone(),
            probe_host: probe_host(&service.policy, address),
            role,
        };
        addresses.iter().zip(targets).map(one).collect()
    };
    let writers = watched(&record.targets, release.writers(), false);
    // Writers stand in for readers.
    [writers, watched(&record.readers, release.readers(), true)].concat()
}
