//! What every operation works with, and the steps that several of them share.

use std::sync::Arc;

use model::canary::Cohort;
use model::name::{ReleaseId, ServiceName, TargetAddress};
use model::protocol::{
    DeployRequest, DiagnosisBody, Done, Event, Listeners, LoggedEvent, Problem, ProblemCode,
};
use model::service::{Policy, Release as Record, Service};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::activations::{Activation, Factory};
use super::audit::Audit;
use super::certificates::handle::Handle;
use super::certificates::managed::Managed;
use super::changes::Change;
use super::endpoints;
use super::files::Files;
use super::gate::{self, GateFailure};
use super::operations::Operations;
use super::registry::{Command, Commit, Registry};
use super::report::Reporter;
use crate::adapters::buffer_dir::BufferDir;
use crate::release::Endpoint;

const BOTH: &str = "`--read-target` names further targets, for reads alone; those of `--target` answer reads where no \
                    read target is well";

/// In the audit log: the gate stayed closed.
const REFUSED: &str = "refused";

pub struct Context {
    pub registry: Registry,
    pub operations: Operations,
    pub audit: Audit,
    pub factory: Factory,
    pub listeners: Listeners,
    /// Operations and drains run here, whether their callers stay or not.
    pub tasks: TaskTracker,
    pub shutdown: CancellationToken,
    pub buffers: BufferDir,
    /// The manager of automatic certificates.
    pub certificates: Handle,
}

/// A release that an operator asks for: parsed, looked up, not yet gated.
#[derive(Clone)]
pub struct Candidate {
    pub record: Record,
    pub endpoints: Vec<Endpoint>,
}

/// A release as it was asked for.
pub struct Wanted<'r> {
    pub targets: &'r [String],
    pub readers: &'r [String],
    pub label: Option<&'r String>,
}

impl<'r> Wanted<'r> {
    pub fn of(request: &'r DeployRequest) -> Self {
        Self { targets: &request.targets, readers: &request.read_targets, label: request.release.as_ref() }
    }
}

impl Context {
    /// Parses what was asked for and looks its names up. Refuses what cannot be before anybody waits.
    pub async fn candidate(
        &self,
        wanted: Wanted<'_>,
        service: Option<&Service>,
    ) -> Result<Candidate, Problem> {
        let (targets, readers) = parse_targets(wanted.targets, wanted.readers)?;
        let id = match wanted.label {
            Some(label) => label.parse().map_err(|error| invalid(&error))?,
            None => ReleaseId::numbered(service.map_or(1, |service| service.next_number)),
        };
        let record = Record { id, targets, created_ms: super::now_ms(), readers };
        self.locate(record).await
    }

    pub async fn locate(&self, record: Record) -> Result<Candidate, Problem> {
        let mut endpoints = Vec::with_capacity(record.all_targets().count());
        for target in record.all_targets() {
            let endpoint = gate::resolve(target).await.map_err(|error| invalid(&error))?;
            endpoints::refuse_ours(target, &endpoint, &self.listeners)?;
            endpoints.push(endpoint);
        }
        Ok(Candidate { record, endpoints })
    }

    /// Refuses a policy that buffers what could not be written.
    pub async fn check_buffers(&self, policy: &Policy) -> Result<(), Problem> {
        if !(policy.buffering.requests || policy.buffering.responses) {
            return Ok(());
        }
        let buffers = self.buffers.clone();
        let tested = tokio::task::spawn_blocking(move || buffers.test()).await;
        let tested = tested.map_err(|error| Problem::from_error(ProblemCode::Internal, &error))?;
        tested.map_err(|error| Problem::from_error(ProblemCode::Storage, &error).hint(BufferDir::HINT))
    }

    /// Certificates that came by themselves; `None` where none will.
    pub fn managed(&self) -> Option<Arc<Managed>> {
        self.certificates.is_on().then(|| Arc::clone(&self.registry.view().managed))
    }

    /// A line of the audit log for what changes no service.
    pub fn record(&self, kind: &str, service: Option<&ServiceName>, actor: String, message: String) {
        self.audit.record(LoggedEvent {
            at_ms: super::now_ms(),
            generation: self.registry.view().state.generation,
            kind: kind.to_owned(),
            service: service.map(ToString::to_string),
            release: None,
            target: None,
            actor,
            message,
        });
    }

    /// The end of an operation on a certificate.
    pub fn certificate_done(&self, message: String) -> Done {
        Done {
            message,
            service: String::new(),
            stable: None,
            held: None,
            canary: None,
            weight: None,
            generation: self.registry.view().state.generation,
            changed: true,
        }
    }

    /// Waits for the gate to open. A failure is remembered in the history.
    pub async fn pass_gate(
        &self,
        service: &ServiceName,
        candidate: Candidate,
        cohort: Cohort,
        policy: &Policy,
        operation: &Gated<'_>,
    ) -> Result<Activation, Problem> {
        let Candidate { record, endpoints } = candidate;
        let targets: Vec<_> = record.all_targets().cloned().zip(endpoints.iter().cloned()).collect();
        let events = operation.reporter.sender();
        match gate::run(&targets, policy, &events, &self.shutdown).await {
            Ok(()) => Ok(self.factory.activate(service, cohort, &record, endpoints)),
            Err(failure) => {
                let problem = gate_problem(service, &record, &failure);
                self.remember_refusal(service, &record, &problem, operation).await;
                Err(problem)
            }
        }
    }

    async fn remember_refusal(
        &self,
        service: &ServiceName,
        record: &Record,
        problem: &Problem,
        operation: &Gated<'_>,
    ) {
        let reason = problem.causes.first().unwrap_or(&problem.message).clone();
        let commit = Commit {
            service: service.clone(),
            change: Change::Refused { release: record.clone(), reason },
            actor: operation.actor.to_owned(),
            kind: REFUSED,
            message: problem.message.clone(),
            known: Vec::new(),
            files: Files::default(),
        };
        // The caller's answer matters more than ours.
        let Err(lost) = self.registry.commit(commit).await else { return };
        if lost.code != ProblemCode::NotFound {
            tracing::warn!(%service, release = %record.id, "{}; not in the history: {}", problem.message, lost.message);
        }
        // A service that never came to be has no history; its refusal is in the audit log all the same.
        self.audit.record(LoggedEvent {
            at_ms: super::now_ms(),
            generation: self.registry.view().state.generation,
            kind: REFUSED.to_owned(),
            service: Some(service.to_string()),
            release: Some(record.id.to_string()),
            target: None,
            actor: operation.actor.to_owned(),
            message: problem.message.clone(),
        });
    }

    /// Ends an operation's stream, and forgets what only it needed.
    pub async fn end(&self, reporter: Reporter, result: Result<Done, Problem>) {
        // Fails only while everything ends.
        let _ = self.registry.send(Command::Tidy).await;
        reporter.end(result).await;
    }

    /// The end of an operation on `name`, as the service is now.
    pub fn done(&self, name: &ServiceName, changed: bool, message: impl Into<String>) -> Done {
        let view = self.registry.view();
        let service = view.state.services.get(name);
        let canary = service.and_then(|service| service.canary.as_ref());
        Done {
            message: message.into(),
            service: name.to_string(),
            stable: service.map(|service| service.stable.id.to_string()),
            held: service.and_then(|service| service.held.as_ref()).map(|held| held.id.to_string()),
            canary: canary.map(|canary| canary.release.id.to_string()),
            weight: canary.map(|canary| canary.weight.to_string()),
            generation: view.state.generation,
            changed,
        }
    }
}

/// By whom a gate is waited for.
pub struct Gated<'o> {
    pub actor: &'o str,
    pub reporter: &'o Reporter,
}

pub fn accepted(service: &ServiceName, verb: &str, record: &Record) -> Event {
    Event::Accepted {
        service: service.to_string(),
        verb: verb.to_owned(),
        release: record.id.to_string(),
        targets: record.all_targets().map(ToString::to_string).collect(),
    }
}

/// Writers and readers.
fn parse_targets(
    writers: &[String],
    readers: &[String],
) -> Result<(Vec<TargetAddress>, Vec<TargetAddress>), Problem> {
    let mut targets: Vec<TargetAddress> = Vec::with_capacity(writers.len() + readers.len());
    for text in writers.iter().chain(readers) {
        let target = text.parse().map_err(|error| invalid(&error))?;
        if let Some(first) = targets.iter().position(|known| *known == target) {
            let message = format!("target `{target}` is named twice");
            let problem = Problem::new(ProblemCode::Invalid, message);
            let is_both = first < writers.len() && targets.len() >= writers.len();
            return Err(if is_both { problem.hint(BOTH) } else { problem });
        }
        targets.push(target);
    }
    let readers = targets.split_off(writers.len());
    if targets.is_empty() {
        let problem = Problem::new(ProblemCode::Invalid, "no target is named");
        return Err(problem.hint("name at least one with `--target HOST:PORT`"));
    }
    Ok((targets, readers))
}

pub fn invalid(error: &dyn std::error::Error) -> Problem {
    Problem::from_error(ProblemCode::Invalid, error)
}

fn gate_problem(service: &ServiceName, record: &Record, failure: &GateFailure) -> Problem {
    match failure {
        GateFailure::Cancelled => {
            let message =
                format!("release `{}` of `{service}` was given up: the daemon is shutting down", record.id);
            Problem::new(ProblemCode::Aborted, message)
                .hint("traffic is unchanged; deploy again once it is back")
        }
        GateFailure::Closed(diagnosis) => {
            let message =
                format!("release `{}` of `{service}` did not pass its gate; traffic is unchanged", record.id);
            let mut problem = Problem::new(ProblemCode::GateFailed, message)
                .because(format!("target `{}`: {}", diagnosis.target, diagnosis.verdict))
                .hint(diagnosis.hint.clone());
            problem.diagnosis = Some(DiagnosisBody::from((**diagnosis).clone()));
            problem
        }
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("listeners", &self.listeners).finish_non_exhaustive()
    }
}

pub type Shared = Arc<Context>;
