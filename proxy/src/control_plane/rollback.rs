//! Rollbacks: to the held release by moving a pointer, or to an older one through the gate.

use model::canary::Cohort;
use model::name::{ReleaseId, ServiceName};
use model::protocol::{DeploymentPhase, Done, Problem, ProblemCode, RollbackRequest};
use model::service::{Release as Record, Service};

use super::activations::{Activation, Live};
use super::changes::Change;
use super::context::{Candidate, Context, Gated, Shared, accepted, invalid};
use super::monitor::Readings;
use super::operations::Claim;
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
    let view = context.registry.view();
    let (service, live) = view.service(&name)?;
    plan(service, wanted.as_ref(), sickness(live, context.registry.readings()))?;
    let claim = context.operations.claim_from_waiting(&name, VERB, &actor).await?;
    let view = context.registry.view();
    let (service, live) = view.service(&name)?;
    let sick = sickness(live, context.registry.readings());
    let (reporter, events) = report::channel();
    let (record, candidate) = match plan(service, wanted.as_ref(), sick)? {
        Plan::Nothing => {
            drop(claim);
            let message =
                format!("release `{}` of `{name}` is stable already; nothing to do", service.stable.id);
            let done = context.done(&name, false, message);
            reporter.end(Ok(done)).await;
            return Ok(events);
        }
        Plan::Flip(record) => (record, None),
        Plan::Gate(record) => {
            // Gated anew it is a new activation, even where the same record is still held.
            let record = Record { created_ms: super::now_ms(), ..record };
            (record.clone(), Some(context.locate(record).await?))
        }
    };
    claim.set_release(record.id.as_str());
    reporter.tell(accepted(&name, VERB, &record));
    let tasks = context.tasks.clone();
    tasks.spawn(run(context, claim, actor, record, candidate, reporter));
    Ok(events)
}

/// What the last probe of a held release saw, if none of its targets would do.
fn sickness(live: &Live, readings: &Readings) -> Option<String> {
    let held = live.held.as_ref()?;
    let targets = held.release.targets.iter();
    let known: Vec<_> = targets.map(|target| readings.get(target.id)).collect();
    let sick =
        |reading: &Option<_>| reading.as_ref().is_some_and(|one: &super::monitor::Reading| !one.eligible);
    let last = || known.iter().flatten().find_map(|reading| reading.last_probe.clone());
    (!known.is_empty() && known.iter().all(sick)).then(|| last().unwrap_or_default())
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
        _ => service.remembered(id).cloned().map(Plan::Gate).ok_or_else(|| {
            let known: Vec<String> =
                service.history.iter().map(|entry| format!("`{}`", entry.release.id)).collect();
            Problem::new(
                ProblemCode::NotFound,
                format!("service `{name}` has no release `{id}` in its history"),
            )
            .hint(format!("it remembers {}", known.join(", ")))
        }),
    }
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
        certificate: None,
    };
    let committed = context.registry.commit(commit).await?;
    switch::tell_switched(reporter, &committed);
    let timeouts =
        committed.after.as_ref().map(|(service, _)| service.policy.timeouts.clone()).unwrap_or_default();
    let drains = switch::drain(context, &committed, &timeouts, reporter);
    let settled = switch::settle(context, claim, drains).await;
    let done = context.done(name, true, "");
    let stable = done.stable.as_deref().unwrap_or_default();
    let message = format!("`{name}` runs release `{stable}` again{}", settled.remark());
    Ok(Done { message, ..done })
}

#[cfg(test)]
mod tests {
    use model::service::{HistoryEntry, Outcome, Policy};

    use super::*;

    fn record(id: &str, port: u16) -> Record {
        let target = format!("127.0.0.1:{port}").parse().unwrap();
        Record { id: id.parse().unwrap(), targets: vec![target], created_ms: 0 }
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
    }
}
