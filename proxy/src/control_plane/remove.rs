//! Removing a service: its routes go at once, its requests finish.

use model::name::ServiceName;
use model::protocol::Problem;

use super::changes::Change;
use super::context::{Context, Shared, accepted};
use super::files::Files;
use super::registry::Commit;
use super::report::{self, Events};
use super::switch;

const VERB: &str = "remove";

pub async fn start(context: Shared, name: ServiceName, actor: String) -> Result<Events, Problem> {
    let claim = context.operations.claim(&name, VERB, &actor)?;
    let view = context.registry.view();
    if view.state.declared.contains_key(&name) {
        return forget(&context, &name, actor).await;
    }
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

/// A service that waits for its first release has nothing to drain.
async fn forget(context: &Context, name: &ServiceName, actor: String) -> Result<Events, Problem> {
    let message = format!("service `{name}`, which had no release yet, is removed");
    let commit = Commit {
        service: name.clone(),
        change: Change::Remove,
        actor,
        kind: VERB,
        message: message.clone(),
        known: Vec::new(),
        files: Files::default(),
    };
    context.registry.commit(commit).await?;
    let (reporter, events) = report::channel();
    reporter.end(Ok(context.done(name, true, message))).await;
    Ok(events)
}
