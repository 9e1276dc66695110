//! Drives all targets of a release through the gate: probes them until each has passed, one is beyond hope,
//! or the time is up. No traffic moves here.
//!
//! The rules are `model::health` and `model::diagnosis`; the probe is `data_plane::upstream::probe`.

mod resolve;

use std::time::Duration;

use model::diagnosis::{Diagnosis, ProbeOutcome, Subject, Timeline, diagnose, is_hopeless};
use model::health::{self, Health, State};
use model::name::{HostPattern, TargetAddress};
use model::protocol::Event;
use model::service::{GatePolicy, Policy};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub use self::resolve::{ResolveError, resolve};
use crate::data_plane::upstream::probe::{Look, probe};
use crate::release::Endpoint;

/// With less time than this left, one more probe would show its own deadline and not the target.
const LAST_PROBE_MIN: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum GateFailure {
    #[error("target `{}` did not pass the gate: {}", .0.target, .0.verdict)]
    Closed(Box<Diagnosis>),
    #[error("the operation was given up before all targets had passed the gate")]
    Cancelled,
}

/// The `Host` of probes: the gate's own, else the service's first host, else the target itself.
pub fn probe_host(policy: &Policy, target: &TargetAddress) -> String {
    let configured = policy.gate.host.clone().or_else(|| policy.hosts.first().map(HostPattern::sample));
    match (configured, target) {
        (Some(host), _) => host.to_string(),
        (None, TargetAddress::Unix(_)) => "localhost".to_owned(),
        (None, target) => target.to_string(),
    }
}

/// What happened to an outcome, as the target's state machine puts it.
pub(super) fn health_event(outcome: &ProbeOutcome) -> health::Event {
    match outcome {
        outcome if outcome.passed() => health::Event::ProbePassed,
        ProbeOutcome::Refused | ProbeOutcome::ConnectTimeout | ProbeOutcome::Unreachable(_) => {
            health::Event::NotListening
        }
        _ => health::Event::ProbeFailed,
    }
}

/// Returns once every target has passed, all at the same time; the first that fails for good fails all.
///
/// Each probe is told to `events`; when that is full, nobody hears of it and the gate goes on. Dropping the
/// future ends the probing.
pub async fn run(
    targets: &[(TargetAddress, Endpoint)],
    policy: &Policy,
    events: &mpsc::Sender<Event>,
    cancel: &CancellationToken,
) -> Result<(), GateFailure> {
    let started = Instant::now();
    let (reports, mut reported) = mpsc::channel(targets.len().max(1));
    let mut candidates = JoinSet::new();
    for (index, (address, endpoint)) in targets.iter().enumerate() {
        let candidate = Candidate {
            index,
            target: address.to_string(),
            host: probe_host(policy, address),
            endpoint: endpoint.clone(),
            gate: policy.gate.clone(),
            started,
            events: events.clone(),
            reports: reports.clone(),
        };
        candidates.spawn(candidate.run());
    }
    drop(reports);
    let mut open = vec![false; targets.len()];
    let result = loop {
        if open.iter().all(|open| *open) {
            break Ok(());
        }
        let report = tokio::select! {
            () = cancel.cancelled() => None,
            report = reported.recv() => report,
            // Tasks end after their report only; one that broke must not leave us waiting for it.
            Some(Err(error)) = candidates.join_next() => std::panic::resume_unwind(error.into_panic()),
        };
        match report {
            Some(Report::Open(index, is_open)) => open[index] = is_open,
            Some(Report::GaveUp(diagnosis)) => break Err(GateFailure::Closed(diagnosis)),
            None => break Err(GateFailure::Cancelled),
        }
    };
    candidates.shutdown().await;
    result
}

enum Report {
    /// Whether the target at this index has passed and stands.
    Open(usize, bool),
    GaveUp(Box<Diagnosis>),
}

/// A target in front of the gate.
struct Candidate {
    index: usize,
    target: String,
    host: String,
    endpoint: Endpoint,
    gate: GatePolicy,
    started: Instant,
    events: mpsc::Sender<Event>,
    reports: mpsc::Sender<Report>,
}

impl Candidate {
    /// Probes until the gate closes for good. One that has passed is probed on, for as long as others take.
    async fn run(self) {
        let mut health = Health::pending(Duration::ZERO);
        let mut timeline = Timeline::default();
        health.step(health::Event::Started, Duration::ZERO, &self.gate, true);
        loop {
            let was_open = health.state() == State::Ready;
            let wait = self.probe_once(&mut health, &mut timeline).await;
            let is_open = health.state() == State::Ready;
            if was_open != is_open && self.reports.send(Report::Open(self.index, is_open)).await.is_err() {
                return;
            }
            if !is_open && (self.time_left() < LAST_PROBE_MIN || is_hopeless(&timeline, &self.subject())) {
                let diagnosis = diagnose(&timeline, &self.subject());
                // Fails only if the owner has gone, who then wants no diagnosis.
                let _ = self.reports.send(Report::GaveUp(Box::new(diagnosis))).await;
                return;
            }
            let pause = if is_open { wait } else { wait.min(self.time_left()) };
            sleep(pause).await;
        }
    }

    /// Returns how long to wait for the next one.
    async fn probe_once(&self, health: &mut Health, timeline: &mut Timeline) -> Duration {
        let allowed = health.probe_timeout(&self.gate);
        let waiting = health.state() != State::Ready;
        let left = self.time_left();
        if waiting && left < LAST_PROBE_MIN && timeline.last().is_some() {
            return Duration::ZERO;
        }
        let timeout = if waiting { allowed.min(left.max(LAST_PROBE_MIN)) } else { allowed };
        let outcome = probe(&self.endpoint, &self.gate, &self.host, timeout, Look::Closer).await;
        let elapsed = self.started.elapsed();
        let action = health.step(health_event(&outcome), elapsed, &self.gate, true);
        let passes = if action == health::Action::Warm { self.gate.rise } else { health.passes() };
        if action == health::Action::Warm {
            // Warm-up requests have their place here; a release has none yet.
            health.step(health::Event::Warmed, elapsed, &self.gate, true);
        }
        self.tell(&outcome, health.state(), passes, elapsed);
        if !says_nothing(&outcome, timeout < allowed, timeline) {
            timeline.record(outcome, elapsed);
        }
        jittered(health.next_probe_in(elapsed, &self.gate).unwrap_or(GatePolicy::STEADY_INTERVAL))
    }

    fn tell(&self, outcome: &ProbeOutcome, state: State, passes: u32, elapsed: Duration) {
        let event = Event::Probed {
            target: self.target.clone(),
            state,
            outcome: outcome.to_string(),
            passes: if state == State::Ready { self.gate.rise } else { passes },
            rise: self.gate.rise,
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        };
        // Progress is for people who watch; a full channel must not hold the gate up.
        let _ = self.events.try_send(event);
    }

    fn time_left(&self) -> Duration {
        self.gate.deploy_timeout.saturating_sub(self.started.elapsed())
    }

    fn subject(&self) -> Subject<'_> {
        Subject { target: &self.target, host: &self.host, gate: &self.gate }
    }
}

/// A probe that the deploy's own deadline cut short would hide what the probes before it saw, unless those saw
/// a boot, which this one shows to have gone on.
fn says_nothing(outcome: &ProbeOutcome, cut_short: bool, timeline: &Timeline) -> bool {
    let timed_out = matches!(outcome, ProbeOutcome::Timeout { .. } | ProbeOutcome::ConnectTimeout);
    cut_short && timed_out && timeline.last().is_some_and(|last| !last.is_silence_of_a_boot())
}

/// ± 10 %, so that many targets and many VMs do not probe in step.
pub(super) fn jittered(interval: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    // Every `RandomState` has keys of its own: chance enough for this, without a crate.
    let share = u32::try_from(RandomState::new().hash_one(0u8) % 201).unwrap_or(100);
    interval * (900 + share) / 1000
}

#[cfg(test)]
mod tests;
