//! Removing a service: its routes go at once, its requests finish.

use model::name::ServiceName;
use model::protocol::Problem;

use super::changes::Change;
use super::context::{Shared, accepted};
use super::registry::Commit;
use super::report::{self, Events};
use super::switch;

const VERB: &str = "remove";

pub async fn start(context: Shared, name: ServiceName, actor: String) -> Result<Events, Problem> {
    let claim = context.operations.claim(&name, VERB, &actor)?;
    let view = context.registry.view();
    let (service, _) = view.service(&name)?;
    claim.set_release(service.stable.id.as_str());
    let (reporter, events) = report::channel();
    reporter.tell(accepted(&name, VERB, &service.stable));
    let commit = Commit {
        service: name.clone(),
        change: Change::Remove,
        actor,
        kind: VERB,
        message: format!("service `{name}` is removed"),
        known: Vec::new(),
        certificate: None,
        pages: None,
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
