//! What the agent says of itself: the view, its health and its operations, as the protocol's shapes.

use std::num::NonZeroU32;

use model::duration;
use model::halt::HaltKind;
use model::health;
use model::name::ServiceName;
use model::policy_patch;
use model::protocol::{
    CanaryStatus, DeclaredStatus, HaltStatus, History, HistoryItem, OutcomeName, ReleaseStatus, SeatsStatus,
    ServiceState, ServiceStatus, Slot, TargetRoleName, TargetStateName, TargetStatus,
};
use model::service::{Declared, Outcome, Release as Record, Service};

use super::activations::{Activation, Live};
use super::certificates;
use super::context::Context;
use super::monitor::Readings;
use super::registry::View;
use super::snapshots;
use crate::halt::Halt;

pub fn services(view: &View, context: &Context) -> Vec<ServiceStatus> {
    view.services().map(|(name, live)| service(name, live, view, context)).collect()
}

pub fn declared(view: &View) -> Vec<DeclaredStatus> {
    let one = |(name, declared): (&ServiceName, &Declared)| DeclaredStatus {
        name: name.to_string(),
        policy: policy_patch::from_policy(&declared.policy),
    };
    view.state.declared.iter().map(one).collect()
}

pub fn service(service: &Service, live: &Live, view: &View, context: &Context) -> ServiceStatus {
    let readings = context.registry.readings();
    let stable = release(&live.stable, TargetStateName::Serving, readings);
    let states = |role: TargetRoleName| -> Vec<_> {
        stable.targets.iter().filter(|one| one.role == role).map(|one| one.state).collect()
    };
    let fallen = |one| snapshots::has_fallen(one, &|id| readings.standing(id));
    let degraded = health::is_degraded(&states(TargetRoleName::Writer))
        || states(TargetRoleName::Reader).contains(&TargetStateName::Ejected)
        || live.canary.as_ref().is_some_and(fallen);
    let state = match &service.halt {
        Some(halt) if halt.is_pause() => ServiceState::Paused,
        Some(_) => ServiceState::Stopped,
        None if degraded => ServiceState::Degraded,
        None => ServiceState::Serving,
    };
    let canary = service.canary.as_ref().zip(live.canary.as_ref()).map(|(canary, activation)| CanaryStatus {
        release: release(activation, TargetStateName::Serving, readings),
        weight: canary.weight.to_string(),
        rollout: canary.rollout.clone(),
        overrides: policy_patch::print_overrides(&canary.overrides),
    });
    ServiceStatus {
        name: service.name.to_string(),
        state,
        hosts: service.policy.hosts.iter().map(ToString::to_string).collect(),
        path_prefixes: service.policy.path_prefixes.iter().map(ToString::to_string).collect(),
        tls: service.policy.tls.is_some(),
        stable,
        canary,
        held: live.held.as_ref().map(|held| release(held, TargetStateName::Held, readings)),
        operation: context.operations.running(&service.name),
        policy: policy_patch::from_policy(&service.policy),
        halt: live.halt.as_ref().map(|halt| self::halt(halt)),
        certificates: certificates::report::of_service(view, &service.name, &context.certificates.known()),
    }
}

fn halt(halt: &Halt) -> HaltStatus {
    let (max_pause, waiting_max) = match &halt.rule.kind {
        HaltKind::Paused { max_pause, waiting_max } => {
            (Some(duration::print(*max_pause)), waiting_max.map(NonZeroU32::get))
        }
        HaltKind::Stopped { .. } => (None, None),
    };
    HaltStatus {
        actor: halt.rule.actor.clone(),
        since_ms: halt.rule.since_ms,
        waiting: halt.waiting() as u64,
        max_pause,
        waiting_max,
        message: halt.rule.message().map(str::to_owned),
        bypass: policy_patch::print_bypass(&halt.rule.bypass),
    }
}

fn release(activation: &Activation, slot: TargetStateName, readings: &Readings) -> ReleaseStatus {
    let targets = activation.release.targets.iter().enumerate().map(|(index, target)| {
        let reading = readings.get(target.id);
        let in_flight = activation.in_flight(index).total();
        let state = match reading.as_ref().map_or(slot, |reading| reading.state) {
            // It was replaced, and still answers what it was asked before.
            TargetStateName::Held if in_flight > 0 => TargetStateName::Draining,
            state => state,
        };
        let last_probe = reading.and_then(|reading| reading.last_probe);
        let limit = activation.release.queue.admission().limit_of(&target.seats);
        let seats = limit.map(|limit| SeatsStatus { taken: target.seats.taken(), limit });
        let is_reader = index >= activation.release.writers().len();
        let role = if is_reader { TargetRoleName::Reader } else { TargetRoleName::Writer };
        TargetStatus { target: target.label.to_string(), state, in_flight, seats, last_probe, role }
    });
    ReleaseStatus {
        release: activation.record.id.to_string(),
        created_ms: activation.record.created_ms,
        waiting: activation.release.waiting() as u64,
        targets: targets.collect(),
    }
}

pub fn history(service: &Service) -> History {
    let entries = service.history.iter().map(|entry| HistoryItem {
        release: entry.release.id.to_string(),
        targets: entry.release.targets.iter().map(ToString::to_string).collect(),
        outcome: outcome(entry.outcome),
        at_ms: entry.at_ms,
        actor: entry.actor.clone(),
        reason: entry.reason.clone(),
        slot: slot(service, &entry.release),
        readers: entry.release.readers.iter().map(ToString::to_string).collect(),
    });
    History { service: service.name.to_string(), entries: entries.collect() }
}

fn slot(service: &Service, record: &Record) -> Option<Slot> {
    let canary = service.canary.as_ref().map(|canary| &canary.release);
    [(Some(&service.stable), Slot::Stable), (canary, Slot::Canary), (service.held.as_ref(), Slot::Held)]
        .into_iter()
        .find_map(|(release, slot)| (release == Some(record)).then_some(slot))
}

fn outcome(outcome: Outcome) -> OutcomeName {
    match outcome {
        Outcome::Deployed => OutcomeName::Deployed,
        Outcome::RolledBack => OutcomeName::RolledBack,
        Outcome::Refused => OutcomeName::Refused,
        Outcome::Reverted => OutcomeName::Reverted,
        Outcome::Aborted => OutcomeName::Aborted,
        Outcome::Promoted => OutcomeName::Promoted,
    }
}
