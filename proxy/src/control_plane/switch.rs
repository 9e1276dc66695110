//! After a change is published: what was replaced drains, and the operation waits for it unless another one
//! wants the service. A deploy, which also bakes, waits in `progress`.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::cutover::Totals;
use model::name::ServiceName;
use model::protocol::{DeploymentPhase, Done, Event, Problem, ProblemCode};
use model::service::Timeouts;

use super::changes::Change;
use super::context::Context;
use super::drain::{self, Drains};
use super::operations::Claim;
use super::registry::{Commit, Committed};
use super::report::Reporter;
use crate::release::{InFlightCount, Release};

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

/// What the last line says of an operation, `done`, that could not wait for the end. `Err` if somebody must
/// not yet act as if it were over: whoever gets a success stops the old processes.
pub fn conclude(
    settled: Settled,
    name: &ServiceName,
    done: &str,
    replaced: &[Arc<Release>],
) -> Result<&'static str, Problem> {
    match settled {
        Settled::Calm | Settled::Bad(_) => Ok(""),
        Settled::GaveWay => {
            let message = format!("{done}, but a rollback took over before everything had drained");
            let hint =
                format!("`agentctl status {name}` shows what serves, `agentctl history {name}` who did it");
            Err(Problem::new(ProblemCode::Reverted, message).hint(hint))
        }
        Settled::Stopping => match still_held(replaced) {
            None => Ok("; the daemon is shutting down and did not wait for the rest"),
            Some(held) => {
                let message = format!("{done}, but the daemon is shutting down, and {held}");
                let hint = "do not stop its processes before the daemon has ended".to_owned();
                Err(Problem::new(ProblemCode::Aborted, message).hint(hint))
            }
        },
    }
}

/// Such as "release `r1` still holds 2 requests".
fn still_held(replaced: &[Arc<Release>]) -> Option<String> {
    // A release that came and went may be there twice.
    let mut counts: BTreeMap<&str, InFlightCount> = BTreeMap::new();
    for release in replaced {
        let (sum, more) = (counts.entry(&release.id).or_default(), release.in_flight());
        *sum = InFlightCount { requests: sum.requests + more.requests, sockets: sum.sockets + more.sockets };
    }
    let some = |count: u64, noun: &str| {
        (count > 0).then(|| format!("{count} {noun}{}", if count == 1 { "" } else { "s" }))
    };
    let one = |(id, count): (&str, InFlightCount)| {
        let kinds = [some(count.requests, "request"), some(count.sockets, "socket")];
        let kinds: Vec<String> = kinds.into_iter().flatten().collect();
        (!kinds.is_empty()).then(|| format!("release `{id}` still holds {}", kinds.join(" and ")))
    };
    let held: Vec<String> = counts.into_iter().filter_map(one).collect();
    (!held.is_empty()).then(|| held.join(", "))
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
    let settled = settle(context, claim, DeploymentPhase::Draining, drains).await;
    let remark = conclude(settled, claim.service(), &message, &committed.replaced)?;
    Ok(context.done(claim.service(), true, format!("{message}{remark}")))
}

/// Waits for the end of the drains. In the phase `Draining` a rollback may take over.
pub async fn settle(context: &Context, claim: &Claim, phase: DeploymentPhase, drains: Drains) -> Settled {
    claim.set_phase(phase);
    tokio::select! {
        biased;
        () = claim.give_way().cancelled() => Settled::GaveWay,
        () = context.shutdown.cancelled() => Settled::Stopping,
        () = drains.finished() => Settled::Calm,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::{Endpoint, Target};
    use crate::telemetry::metrics::TargetStats;

    #[test]
    fn what_cannot_be_waited_for_is_no_success_while_somebody_is_left() {
        let release = |id: &str| {
            let endpoint = Endpoint::Tcp(([127, 0, 0, 1], 1).into());
            Release::new(id, vec![Target::new("127.0.0.1:1", endpoint, Arc::new(TargetStats::new(1)), 1)])
        };
        let (one, two) = (release("r1"), release("r2"));
        let replaced = [Arc::clone(&one), two];
        let end = |settled| conclude(settled, &"shop".parse().unwrap(), "done", &replaced);
        assert_eq!(end(Settled::Calm), Ok(""));
        assert!(end(Settled::Stopping).is_ok());
        assert_eq!(end(Settled::GaveWay).unwrap_err().code, ProblemCode::Reverted);

        let enter = || one.enter(&one.targets[0], 0).unwrap();
        let _requests = (enter(), enter());
        let _socket = enter().into_socket();
        let problem = end(Settled::Stopping).unwrap_err();
        assert_eq!(problem.code, ProblemCode::Aborted);
        assert!(problem.message.ends_with("release `r1` still holds 2 requests and 1 socket"), "{problem:?}");
    }
}
