//! What is known of an operation under way: events go in, a state and the lines worth logging come out.
//!
//! How the state looks on a terminal is `render::live`'s business.

use model::protocol::{CertificateState, DeploymentPhase, Event, ServiceState, TargetStateName};

use crate::render::age;
use crate::render::words::{certificate_text, counted, phase_text, state_text, target_state};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    /// Such as `deploy shop r2`; empty until the operation was accepted.
    pub(crate) title: String,
    pub(crate) phase: Option<DeploymentPhase>,
    pub(crate) targets: Vec<TargetProgress>,
    pub(crate) drain: Option<Drain>,
    pub(crate) bake: Option<Bake>,
    pub(crate) certificates: Vec<CertificateProgress>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateProgress {
    pub(crate) name: String,
    pub(crate) state: CertificateState,
    pub(crate) message: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TargetProgress {
    pub(crate) target: String,
    pub(crate) state: TargetStateName,
    pub(crate) outcome: String,
    pub(crate) passes: u32,
    pub(crate) rise: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Drain {
    pub(crate) release: String,
    pub(crate) requests: u64,
    pub(crate) sockets: u64,
    /// `Some` once it is over: how much was cut.
    pub(crate) cut: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bake {
    pub(crate) remaining_ms: u64,
    pub(crate) requests: u64,
    pub(crate) gateway_errors: u64,
}

impl Progress {
    /// Takes `event` in. The answer is a line for a log if it is a change of state: of a hundred probes
    /// that see the same, the first is.
    pub(crate) fn apply(&mut self, event: &Event) -> Option<String> {
        match event {
            Event::Accepted { service, verb, release, targets } => {
                self.title = format!("{verb} {service} {release}");
                self.targets = targets.iter().map(|target| TargetProgress::waiting(target)).collect();
                Some(format!("{} ({})", self.title, targets.join(", ")))
            }
            Event::Phase { phase } => {
                let changed = self.phase.replace(*phase) != Some(*phase);
                (changed && !has_own_event(*phase)).then(|| format!("phase: {}", phase_text(*phase)))
            }
            Event::Probed { target, state, outcome, passes, rise, .. } => {
                let seen = TargetProgress {
                    target: target.clone(),
                    state: *state,
                    outcome: outcome.clone(),
                    passes: *passes,
                    rise: *rise,
                };
                self.probed(seen)
            }
            Event::Switched { release, generation, .. } => {
                Some(format!("switched: new requests go to {release} (generation {generation})"))
            }
            Event::Draining { release, requests, sockets } => self.draining(release, *requests, *sockets),
            Event::Drained { release, cut } => self.drained(release, *cut),
            Event::Baking { remaining_ms, requests, gateway_errors } => self.baking(Bake {
                remaining_ms: *remaining_ms,
                requests: *requests,
                gateway_errors: *gateway_errors,
            }),
            Event::Halted { state, generation, .. } => Some(format!(
                "{}: new requests {} (generation {generation})",
                state_text(*state),
                match state {
                    ServiceState::Paused => "wait",
                    _ => "are refused",
                }
            )),
            Event::Certificate { name, state, message } => self.certificate(CertificateProgress {
                name: name.clone(),
                state: *state,
                message: message.clone(),
            }),
            Event::Done(_) | Event::Failed { .. } => None,
        }
    }

    fn probed(&mut self, seen: TargetProgress) -> Option<String> {
        let known = self.targets.iter().position(|known| known.target == seen.target);
        let at = known.unwrap_or_else(|| {
            self.targets.push(TargetProgress::waiting(&seen.target));
            self.targets.len() - 1
        });
        let before = std::mem::replace(&mut self.targets[at], seen);
        let now = &self.targets[at];
        let changed =
            before.state != now.state || without_time(&before.outcome) != without_time(&now.outcome);
        changed.then(|| format!("target {}", now.text()))
    }

    fn certificate(&mut self, seen: CertificateProgress) -> Option<String> {
        let line = seen.text();
        match self.certificates.iter_mut().find(|known| known.name == seen.name) {
            Some(known) if *known == seen => return None,
            Some(known) => *known = seen,
            None => self.certificates.push(seen),
        }
        Some(line)
    }

    fn draining(&mut self, release: &str, requests: u64, sockets: u64) -> Option<String> {
        let drain = Drain { release: release.to_owned(), requests, sockets, cut: None };
        let line = drain.text();
        let begins = self.drain.replace(drain).is_none_or(|before| before.release != release);
        begins.then_some(line)
    }

    fn drained(&mut self, release: &str, cut: u64) -> Option<String> {
        let drain = Drain { release: release.to_owned(), requests: 0, sockets: 0, cut: Some(cut) };
        let line = drain.text();
        self.drain = Some(drain);
        Some(line)
    }

    fn baking(&mut self, bake: Bake) -> Option<String> {
        let before = self.bake.replace(bake);
        before.is_none_or(|before| before.gateway_errors != bake.gateway_errors).then(|| bake.text())
    }
}

impl TargetProgress {
    fn waiting(target: &str) -> Self {
        let (outcome, state) = (String::new(), TargetStateName::Pending);
        Self { target: target.to_owned(), state, outcome, passes: 0, rise: 0 }
    }

    /// Such as `127.0.0.1:3001 is probing: 200 in 3ms (1 of 2)`.
    fn text(&self) -> String {
        let Self { target, outcome, passes, rise, state } = self;
        let passes = if *passes > 0 { format!(" ({passes} of {rise})") } else { String::new() };
        format!("{target} is {}: {outcome}{passes}", target_state(*state))
    }
}

impl CertificateProgress {
    /// Such as `certificate shop.test is issuing: its order is placed`.
    pub(crate) fn text(&self) -> String {
        let Self { name, state, message } = self;
        format!("certificate {name} is {}: {message}", certificate_text(*state))
    }
}

impl Drain {
    pub(crate) fn text(&self) -> String {
        let Self { release, requests, sockets, cut } = self;
        match cut {
            None => {
                let (requests, sockets) = (counted(*requests, "request"), counted(*sockets, "socket"));
                format!("draining {release}: {requests} and {sockets} to finish")
            }
            Some(0) => format!("drained {release}: nothing was cut"),
            Some(cut) => format!("drained {release}: {cut} cut at the deadline"),
        }
    }
}

impl Bake {
    pub(crate) fn text(&self) -> String {
        let left = age::span(self.remaining_ms);
        let (requests, errors) =
            (counted(self.requests, "request"), counted(self.gateway_errors, "gateway error"));
        format!("baking: {left} to go, {requests}, {errors}")
    }
}

/// Whether an event with more to say comes along with the phase.
fn has_own_event(phase: DeploymentPhase) -> bool {
    use DeploymentPhase::{Baking, Committed, Draining, Planned, Switching};
    matches!(phase, Planned | Switching | Draining | Baking | Committed)
}

/// An outcome such as `200 in 3ms` without its time, which differs with every probe.
fn without_time(outcome: &str) -> &str {
    outcome.rsplit_once(" in ").map_or(outcome, |(what, _)| what)
}

#[cfg(test)]
#[path = "progress_tests.rs"]
pub(crate) mod tests;
