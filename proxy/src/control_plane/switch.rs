//! After a change is published: what was replaced drains, and the operation waits for it unless another one
//! wants the service. A deploy, which also bakes, waits in `progress`.

use model::cutover::Totals;
use model::protocol::{DeploymentPhase, Done, Event, Problem};
use model::service::Timeouts;

use super::changes::Change;
use super::context::Context;
use super::drain::{self, Drains};
use super::operations::Claim;
use super::registry::{Commit, Committed};
use super::report::Reporter;

/// How the wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Nothing is left on what was replaced, and the new release did well.
    Calm,
    Bad(Totals),
    /// A rollback wants the service.
    GaveWay,
    /// The daemon ends.
    Stopping,
}

impl Settled {
    /// What the last line of an operation says about a wait that was cut short.
    pub fn remark(self) -> &'static str {
        match self {
            Self::Calm | Self::Bad(_) => "",
            Self::GaveWay => "; another operation took over before everything had drained",
            Self::Stopping => "; the daemon is shutting down and did not wait for the rest",
        }
    }
}

pub fn tell_switched(reporter: &Reporter, committed: &Committed) {
    if let Some((service, _)) = &committed.after {
        reporter.tell(Event::Switched {
            release: service.stable.id.to_string(),
            generation: committed.generation,
            at_ms: committed.at_ms,
        });
    }
}

/// Drains what `committed` replaced. The drains go on to their end, however the wait for them ends.
pub fn drain(context: &Context, committed: &Committed, timeouts: &Timeouts, reporter: &Reporter) -> Drains {
    drain::start(&context.tasks, committed.replaced.clone(), timeouts, reporter, &context.shutdown)
}

/// The whole of an operation that needs no gate and no bake. Its message is the commit's.
pub async fn commit_and_drain(
    context: &Context,
    claim: &Claim,
    commit: Commit,
    timeouts: &Timeouts,
    reporter: &Reporter,
) -> Result<Done, Problem> {
    claim.set_phase(DeploymentPhase::Switching);
    let (message, moves_all) = (commit.message.clone(), matches!(commit.change, Change::Promote));
    let committed = context.registry.commit(commit).await?;
    if moves_all {
        tell_switched(reporter, &committed);
    }
    let drains = drain(context, &committed, timeouts, reporter);
    let settled = settle(context, claim, drains).await;
    Ok(context.done(claim.service(), true, format!("{message}{}", settled.remark())))
}

/// Waits for the end of the drains.
pub async fn settle(context: &Context, claim: &Claim, drains: Drains) -> Settled {
    claim.set_phase(DeploymentPhase::Draining);
    tokio::select! {
        biased;
        () = claim.give_way().cancelled() => Settled::GaveWay,
        () = context.shutdown.cancelled() => Settled::Stopping,
        () = drains.finished() => Settled::Calm,
    }
}
