//! Canaries: a second release behind its own gate, its share of the visitors, and its end.
//!
//! Who is picked is `model::canary`'s business. Steps and judgement by numbers will drive `set` and `abort`.

use model::canary::Cohort;
use model::name::ServiceName;
use model::policy_patch;
use model::protocol::{CanarySetRequest, CanaryStartRequest, DeploymentPhase, Done, Problem, ProblemCode};
use model::service::{Canary, Policy};

use super::changes::{Change, canary_runs, no_canary};
use super::context::{Candidate, Context, Gated, Shared, Wanted, accepted, invalid};
use super::files::Files;
use super::operations::Claim;
use super::registry::Commit;
use super::report::{self, Events, Reporter};
use super::switch;

/// Longer names of a rollout say nothing more, and they go into the state file.
const ROLLOUT_BYTES_MAX: usize = 256;

pub async fn start(
    context: Shared,
    name: ServiceName,
    actor: String,
    request: CanaryStartRequest,
) -> Result<Events, Problem> {
    const VERB: &str = "canary start";
    let claim = context.operations.claim(&name, VERB, &actor)?;
    let view = context.registry.view();
    let (service, _) = view.service(&name)?;
    if let Some(running) = &service.canary {
        return Err(canary_runs(&name, &running.release.id));
    }
    let weight = request.weight.parse().map_err(|error| invalid(&error))?;
    let overrides = policy_patch::parse_overrides(&request.overrides)?;
    let wanted =
        Wanted { targets: &request.targets, readers: &request.read_targets, label: request.release.as_ref() };
    let candidate = context.candidate(wanted, Some(service)).await?;
    let release = candidate.record.clone();
    let rollout = request.rollout.unwrap_or_else(|| release.id.to_string());
    if rollout.is_empty() || rollout.len() > ROLLOUT_BYTES_MAX || rollout.chars().any(char::is_control) {
        let message = format!("the rollout's name must have 1 to {ROLLOUT_BYTES_MAX} printable bytes");
        return Err(Problem::new(ProblemCode::Invalid, message));
    }
    claim.set_release(release.id.as_str());
    let (reporter, events) = report::channel();
    reporter.tell(accepted(&name, VERB, &release));
    let start = Start {
        canary: Canary { release, weight, rollout, overrides },
        policy: service.policy.clone(),
        actor,
        candidate,
    };
    let tasks = context.tasks.clone();
    tasks.spawn(async move {
        let result = start.run(&context, &claim, &reporter).await;
        drop(claim);
        context.end(reporter, result).await;
    });
    Ok(events)
}

struct Start {
    canary: Canary,
    policy: Policy,
    actor: String,
    candidate: Candidate,
}

impl Start {
    async fn run(self, context: &Context, claim: &Claim, reporter: &Reporter) -> Result<Done, Problem> {
        let Self { canary, policy, actor, candidate } = self;
        let name = claim.service();
        claim.set_phase(DeploymentPhase::Gating);
        reporter.phase(DeploymentPhase::Gating);
        let gated = Gated { actor: &actor, reporter };
        let passed = context.pass_gate(name, candidate, Cohort::Canary, &policy, &gated).await?;
        claim.set_phase(DeploymentPhase::Switching);
        reporter.phase(DeploymentPhase::Switching);
        let message = format!("release `{}` is the canary with {}", canary.release.id, canary.weight);
        let commit = Commit {
            service: name.clone(),
            change: Change::StartCanary { canary },
            actor,
            kind: "canary start",
            message: message.clone(),
            known: vec![passed],
            files: Files::default(),
        };
        context.registry.commit(commit).await?;
        Ok(context.done(name, true, format!("`{name}`: {message}")))
    }
}

/// The new weight holds for every request from now on; who was a canary stays one when it grows.
pub async fn set(
    context: &Context,
    name: &ServiceName,
    actor: String,
    request: &CanarySetRequest,
) -> Result<Done, Problem> {
    let weight = request.weight.parse().map_err(|error| invalid(&error))?;
    let claim = context.operations.claim(name, "canary set", &actor)?;
    let view = context.registry.view();
    let (service, _) = view.service(name)?;
    let canary = service.canary.as_ref().ok_or_else(|| no_canary(name))?;
    claim.set_release(canary.release.id.as_str());
    if canary.weight == weight {
        return Ok(context.done(name, false, format!("the canary of `{name}` has {weight} already")));
    }
    let message =
        format!("the canary `{}` of `{name}` has {weight}, after {}", canary.release.id, canary.weight);
    let commit = Commit {
        service: name.clone(),
        change: Change::SetWeight { weight },
        actor,
        kind: "canary set",
        message: message.clone(),
        known: Vec::new(),
        files: Files::default(),
    };
    context.registry.commit(commit).await?;
    Ok(context.done(name, true, message))
}

/// The canary becomes stable at once: it has passed its gate and serves already.
pub async fn promote(context: Shared, name: ServiceName, actor: String) -> Result<Events, Problem> {
    end(context, name, actor, "canary promote").await
}

pub async fn abort(context: Shared, name: ServiceName, actor: String) -> Result<Events, Problem> {
    end(context, name, actor, "canary abort").await
}

async fn end(
    context: Shared,
    name: ServiceName,
    actor: String,
    verb: &'static str,
) -> Result<Events, Problem> {
    let claim = context.operations.claim(&name, verb, &actor)?;
    let view = context.registry.view();
    let (service, _) = view.service(&name)?;
    let canary = service.canary.as_ref().ok_or_else(|| no_canary(&name))?;
    let id = &canary.release.id;
    let (change, message) = if verb == "canary promote" {
        (Change::Promote, format!("the canary `{id}` of `{name}` is stable"))
    } else {
        let reason = format!("given up by {actor}");
        (Change::AbortCanary { reason }, format!("the canary `{id}` of `{name}` was given up"))
    };
    claim.set_release(id.as_str());
    let (reporter, events) = report::channel();
    reporter.tell(accepted(&name, verb, &canary.release));
    let commit = Commit {
        service: name.clone(),
        change,
        actor,
        kind: verb,
        message,
        known: Vec::new(),
        files: Files::default(),
    };
    let timeouts = service.policy.timeouts.clone();
    let tasks = context.tasks.clone();
    tasks.spawn(async move {
        let result = switch::commit_and_drain(&context, &claim, commit, &timeouts, &reporter).await;
        drop(claim);
        context.end(reporter, result).await;
    });
    Ok(events)
}
