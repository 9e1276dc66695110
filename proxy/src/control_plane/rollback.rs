//! Rollbacks: to the held release by moving a pointer, or to an older one through the gate.

use model::canary::Cohort;
use model::name::{ReleaseId, ServiceName};
use model::protocol::{DeploymentPhase, Done, Problem, ProblemCode, RollbackRequest};
use model::service::{Release as Record, Service};

use super::activations::Activation;
use super::answers;
use super::changes::Change;
use super::context::{Candidate, Context, Gated, Shared, accepted, invalid};
use super::files::Files;
use super::operations::Claim;
use super::pause;
use super::registry::Commit;
use super::report::{self, Events, Reporter};
use super::switch;

const VERB: &str = "rollback";

/// What a rollback has to do.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// The release is stable already.
    Nothing,
    /// It is held, and warm.
    Flip(Record),
    /// Its targets must show that they are there.
    Gate(Record),
}

pub async fn start(
    context: Shared,
    name: ServiceName,
    actor: String,
    request: RollbackRequest,
) -> Result<Events, Problem> {
    let wanted: Option<ReleaseId> =
        request.release.as_deref().map(str::parse).transpose().map_err(|error| invalid(&error))?;
    // What is refused is refused before an operation under way is asked to give way.
    let mut seen = look(&context, &name, wanted.as_ref()).await?;
    plan(&seen.service, wanted.as_ref(), seen.sick.clone())?;
    // Going back from a rollback that still drains must be meant: typed twice, it would undo itself.
    let spared = wanted.is_none().then_some(VERB);
    let claim = context.operations.claim_from_waiting(&name, VERB, &actor, spared).await?;
    let view = context.registry.view();
    let (service, _) = view.service(&name)?;
    if wanted.is_none() && service.stable != seen.service.stable {
        drop(claim);
        return Ok(nothing(&context, &name, overtaken(&seen.service, service)).await);
    }
    if (&service.stable, &service.held) != (&seen.service.stable, &seen.service.held) {
        seen = look(&context, &name, wanted.as_ref()).await?;
    }
    let (record, candidate) = match plan(service, wanted.as_ref(), seen.sick)? {
        Plan::Nothing => {
            drop(claim);
            let message =
                format!("release `{}` of `{name}` is stable already; nothing to do", service.stable.id);
            return Ok(nothing(&context, &name, message).await);
        }
        Plan::Flip(record) => (record, None),
        Plan::Gate(record) => {
            // Gated anew it is a new activation, even where the same record is still held.
            let record = Record { created_ms: super::now_ms(), ..record };
            (record.clone(), Some(context.locate(record).await?))
        }
    };
    claim.set_release(record.id.as_str());
    let (reporter, events) = report::channel();
    reporter.tell(accepted(&name, VERB, &record));
    let tasks = context.tasks.clone();
    tasks.spawn(run(context, claim, actor, record, candidate, reporter));
    Ok(events)
}

/// What a rollback finds before it begins.
struct Seen {
    service: Service,
    /// What a probe of the held release saw, if none of its targets passed.
    sick: Option<String>,
}

/// Asks the held release whether it is there, if it is meant: its probes are seconds apart, and traffic must
/// not move to processes that have ended since the last one.
async fn look(context: &Context, name: &ServiceName, wanted: Option<&ReleaseId>) -> Result<Seen, Problem> {
    let view = context.registry.view();
    let (service, live) = view.service(name)?;
    let meant = live.held.as_ref().filter(|held| wanted.is_none_or(|id| held.record.id == *id));
    let sick = match meant {
        Some(held) => answers::look(held, &service.policy).await.err(),
        None => None,
    };
    Ok(Seen { service: service.clone(), sick })
}

fn overtaken(before: &Service, now: &Service) -> String {
    let (name, was, is) = (&now.name, &before.stable.id, &now.stable.id);
    format!(
        "`{name}` runs release `{is}` by now, no longer `{was}`; nothing was changed. To go back further, name \
         a release of `agentctl history {name}`"
    )
}

async fn nothing(context: &Context, name: &ServiceName, message: String) -> Events {
    let (reporter, events) = report::channel();
    reporter.end(Ok(context.done(name, false, message))).await;
    events
}

fn plan(service: &Service, wanted: Option<&ReleaseId>, sick: Option<String>) -> Result<Plan, Problem> {
    let name = &service.name;
    let Some(id) = wanted else {
        let Some(held) = &service.held else {
            let message = format!("service `{name}` holds no previous release");
            return Err(Problem::new(ProblemCode::Conflict, message).hint(format!(
                "`agentctl history {name}` lists older ones; name one of them to go back to it"
            )));
        };
        return match sick {
            None => Ok(Plan::Flip(held.clone())),
            Some(seen) => {
                let message =
                    format!("the held release `{}` of `{name}` does not answer its probes", held.id);
                let hint = format!(
                    "traffic is unchanged; start its processes again and run `agentctl rollback {name} {}`, which \
                     waits until they answer",
                    held.id
                );
                Err(Problem::new(ProblemCode::Conflict, message).because(seen).hint(hint))
            }
        };
    };
    if service.stable.id == *id {
        return Ok(Plan::Nothing);
    }
    if service.canary.as_ref().is_some_and(|canary| canary.release.id == *id) {
        let message = format!("release `{id}` is the canary of `{name}`");
        return Err(Problem::new(ProblemCode::Conflict, message)
            .hint(format!("make it stable with `agentctl canary promote {name}`")));
    }
    match &service.held {
        Some(held) if held.id == *id && sick.is_none() => Ok(Plan::Flip(held.clone())),
        Some(held) if held.id == *id => Ok(Plan::Gate(held.clone())),
        _ => remembered(service, id).map(Plan::Gate),
    }
}

/// From the history, unless another release has its addresses: whoever answers there is not what was meant.
fn remembered(service: &Service, id: &ReleaseId) -> Result<Record, Problem> {
    let name = &service.name;
    let Some(record) = service.remembered(id) else {
        let known: Vec<String> =
            service.history.iter().map(|entry| format!("`{}`", entry.release.id)).collect();
        let message = format!("service `{name}` has no release `{id}` in its history");
        let hint = format!("it remembers {}", known.join(", "));
        return Err(Problem::new(ProblemCode::NotFound, message).hint(hint));
    };
    let canary = service.canary.iter().map(|canary| &canary.release);
    let mut serving = std::iter::once(&service.stable).chain(canary);
    if let Some(owner) = serving.find(|serving| serving.has_targets_of(record)) {
        let message =
            format!("release `{id}` of `{name}` cannot come back: its address now belongs to `{}`", owner.id);
        let hint = format!("start `{id}` on an address of its own, and deploy it from there");
        return Err(Problem::new(ProblemCode::Conflict, message).hint(hint));
    }
    Ok(record.clone())
}

async fn run(
    context: Shared,
    claim: Claim,
    actor: String,
    record: Record,
    candidate: Option<Candidate>,
    reporter: Reporter,
) {
    let result = async {
        let known = match candidate {
            Some(candidate) => vec![gate(&context, &claim, &actor, candidate, &reporter).await?],
            None => Vec::new(),
        };
        roll_back(&context, &claim, &actor, record, known, &reporter).await
    }
    .await;
    drop(claim);
    context.end(reporter, result).await;
}

async fn gate(
    context: &Context,
    claim: &Claim,
    actor: &str,
    candidate: Candidate,
    reporter: &Reporter,
) -> Result<Activation, Problem> {
    claim.set_phase(DeploymentPhase::Gating);
    reporter.phase(DeploymentPhase::Gating);
    let view = context.registry.view();
    let (service, _) = view.service(claim.service())?;
    let gated = Gated { actor, reporter };
    context.pass_gate(claim.service(), candidate, Cohort::Stable, &service.policy, &gated).await
}

async fn roll_back(
    context: &Context,
    claim: &Claim,
    actor: &str,
    record: Record,
    known: Vec<Activation>,
    reporter: &Reporter,
) -> Result<Done, Problem> {
    let name = claim.service();
    claim.set_phase(DeploymentPhase::Switching);
    let commit = Commit {
        service: name.clone(),
        message: format!("release `{}` has the traffic again", record.id),
        change: Change::RollBack { release: record },
        actor: actor.to_owned(),
        kind: VERB,
        known,
        files: Files::default(),
    };
    let committed = context.registry.commit(commit).await?;
    switch::tell_switched(reporter, &committed);
    let timeouts =
        committed.after.as_ref().map(|(service, _)| service.policy.timeouts.clone()).unwrap_or_default();
    let drains = switch::drain(context, &committed, &timeouts, reporter);
    let settled = switch::settle(context, claim, DeploymentPhase::Draining, drains).await;
    let done = context.done(name, true, "");
    let stable = done.stable.as_deref().unwrap_or_default();
    let message = format!("`{name}` runs release `{stable}` again");
    let remark = switch::conclude(settled, name, &message, &committed.replaced)?;
    let halted = pause::remark(context, name);
    Ok(Done { message: format!("{message}{remark}{halted}"), ..done })
}

#[cfg(test)]
mod tests {
    use model::service::{HistoryEntry, Outcome, Policy};

    use super::*;

    fn record(id: &str, port: u16) -> Record {
        let target = format!("127.0.0.1:{port}").parse().unwrap();
        Record { id: id.parse().unwrap(), targets: vec![target], created_ms: 0, readers: Vec::new() }
    }

    #[test]
    fn where_a_rollback_leads() {
        let mut service = Service::new("shop".parse().unwrap(), Policy::default(), record("r3", 3));
        service.held = Some(record("r2", 2));
        for release in [record("r1", 1), record("r2", 2), record("r3", 3)] {
            let actor = "test".to_owned();
            service.remember(HistoryEntry {
                release,
                outcome: Outcome::Deployed,
                at_ms: 0,
                actor,
                reason: None,
            });
        }
        let sick = Some("connection refused".to_owned());
        for (wanted, sick, want) in [
            (None, None, Ok(Plan::Flip(record("r2", 2)))),
            (None, sick.clone(), Err(ProblemCode::Conflict)),
            (Some("r2"), None, Ok(Plan::Flip(record("r2", 2)))),
            (Some("r2"), sick, Ok(Plan::Gate(record("r2", 2)))),
            (Some("r1"), None, Ok(Plan::Gate(record("r1", 1)))),
            (Some("r3"), None, Ok(Plan::Nothing)),
            (Some("r9"), None, Err(ProblemCode::NotFound)),
        ] {
            let wanted: Option<ReleaseId> = wanted.map(|id| id.parse().unwrap());
            let got = plan(&service, wanted.as_ref(), sick).map_err(|problem| problem.code);
            assert_eq!(got, want, "{wanted:?}");
        }
        service.held = None;
        assert_eq!(plan(&service, None, None).unwrap_err().code, ProblemCode::Conflict);

        service.stable = record("r4", 1);
        let refused = plan(&service, Some(&"r1".parse().unwrap()), None).unwrap_err();
        assert!(refused.message.contains("its address now belongs to `r4`"), "{refused:?}");
    }
}
