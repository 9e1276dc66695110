//! Reverts: a release that failed its bake gives the traffic back, if there is anybody to give it to.

use model::cutover::Totals;
use model::name::{ReleaseId, ServiceName};
use model::protocol::{DeploymentPhase, LoggedEvent, Problem, ProblemCode};
use model::service::Service;

use super::activations::Live;
use super::audit::OURSELVES;
use super::changes::{self, Change};
use super::context::Context;
use super::files::Files;
use super::operations::Claim;
use super::registry::Commit;
use super::report::Reporter;
use super::{answers, switch};

/// Goes back to what was before the deploy, if anybody is there.
pub async fn revert(
    context: &Context,
    claim: &Claim,
    (service, live): (Service, Live),
    seen: Totals,
    reporter: &Reporter,
) -> Problem {
    let name = claim.service();
    let reason = format!("{} of {} requests ended in gateway errors", seen.gateway_errors, seen.requests);
    let view = context.registry.view();
    let failed = view.state.services.get(name).map(|service| service.stable.clone());
    let taken_back = match &failed {
        // Nothing but its settings was new.
        Some(failed) if *failed == service.stable => format!("the new settings of `{name}` were taken back"),
        Some(failed) => {
            if let Err(saw) = answers::look(&live.stable, &service.policy).await {
                return no_way_back(context, (name, &failed.id), &service.stable.id, &reason, saw);
            }
            format!("release `{}` of `{name}` was taken back", failed.id)
        }
        None => return changes::no_service(name),
    };
    claim.set_phase(DeploymentPhase::Switching);
    let before = service.stable.id.clone();
    let timeouts = service.policy.timeouts.clone();
    let message = format!("{taken_back}: {reason}");
    let commit = Commit {
        service: name.clone(),
        change: Change::Revert { before: Box::new(service), reason },
        actor: OURSELVES.to_owned(),
        kind: "revert",
        message: message.clone(),
        files: Files::of(&live),
        known: std::iter::once(live.stable).chain(live.held).collect(),
    };
    let committed = match context.registry.commit(commit).await {
        Ok(committed) => committed,
        Err(problem) => return problem.because(format!("this should have come true: {message}")),
    };
    reporter.phase(DeploymentPhase::Reverted);
    switch::tell_switched(reporter, &committed);
    let drains = switch::drain(context, &committed, &timeouts, reporter);
    // No rollback may take over: it would go one release further back than whoever types it can know.
    switch::settle(context, claim, DeploymentPhase::Reverted, drains).await;
    let hint = match failed {
        Some(failed) if failed.id != before => {
            format!("release `{before}` serves again; look at the log of `{}`, then deploy again", failed.id)
        }
        _ => format!("release `{before}` serves on as before; look at its log, then deploy again"),
    };
    Problem::new(ProblemCode::Reverted, message).hint(hint)
}

/// A third of the requests in errors is better than all of them.
fn no_way_back(
    context: &Context,
    (name, failed): (&ServiceName, &ReleaseId),
    before: &ReleaseId,
    reason: &str,
    saw: String,
) -> Problem {
    let message = format!(
        "release `{failed}` of `{name}` did badly but still serves: {reason}, and release `{before}` does not \
         answer its probes"
    );
    context.audit.record(LoggedEvent {
        at_ms: super::now_ms(),
        generation: context.registry.view().state.generation,
        kind: "revert given up".to_owned(),
        service: Some(name.to_string()),
        release: Some(failed.to_string()),
        target: None,
        actor: OURSELVES.to_owned(),
        message: message.clone(),
    });
    let hint = format!(
        "deploy a good release, or start the processes of `{before}` again and run `agentctl rollback {name} \
         {before}`"
    );
    Problem::new(ProblemCode::Aborted, message).because(saw).hint(hint)
}
