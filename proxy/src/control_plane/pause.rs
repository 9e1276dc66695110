//! Pausing, stopping and resuming a service: the state changes first, then what was in flight drains.
//!
//! No claim is taken: a service can be paused in the middle of a deploy, deployed while it is paused, and resumed at any
//! moment. Its changes are serial all the same, since the registry makes one after another.

use std::sync::Arc;
use std::time::Duration;

use model::canary::Overrides;
use model::halt::{self as rules, Halt as Rule, HaltKind, Order};
use model::name::ServiceName;
use model::protocol::{
    BypassBody, Done, Event, PauseRequest, Problem, ProblemCode, ServiceState, StopRequest,
};
use model::service::Timeouts;
use model::{duration, policy_patch};

use super::activations::Live;
use super::changes::{Change, no_service};
use super::context::{Context, Shared, accepted};
use super::drain;
use super::files::Files;
use super::registry::{Commit, Committed};
use super::report::{self, Events, Reporter};
use super::switch::{self, Settled};
use crate::halt::Halt;
use crate::release::Release;

pub fn pause(
    context: Shared,
    name: ServiceName,
    actor: String,
    request: &PauseRequest,
) -> Result<Events, Problem> {
    start(context, name, actor, rules::parse_pause(request)?)
}

pub fn stop(
    context: Shared,
    name: ServiceName,
    actor: String,
    request: &StopRequest,
) -> Result<Events, Problem> {
    start(context, name, actor, rules::parse_stop(request)?)
}

/// An order under way.
struct Operation {
    context: Shared,
    name: ServiceName,
    rule: Rule,
    timeouts: Timeouts,
    reporter: Reporter,
}

fn start(context: Shared, name: ServiceName, actor: String, order: Order) -> Result<Events, Problem> {
    let Order { kind, bypass, drain } = order;
    let rule = Rule { kind, bypass, actor, since_ms: super::now_ms() };
    let view = context.registry.view();
    let (service, _) = view.service(&name)?;
    let (reporter, events) = report::channel();
    reporter.tell(accepted(&name, verb(&rule), &service.stable));
    let timeouts = service.policy.timeouts.clone();
    // Whoever says how long it may take means everything.
    let timeouts = match drain {
        Some(drain) => Timeouts { drain, socket_drain: timeouts.socket_drain.min(drain), ..timeouts },
        None => timeouts,
    };
    let tasks = context.tasks.clone();
    let operation = Operation { context, name, rule, timeouts, reporter };
    tasks.spawn(operation.run());
    Ok(events)
}

fn verb(rule: &Rule) -> &'static str {
    if rule.is_pause() { "pause" } else { "stop" }
}

fn state(rule: &Rule) -> ServiceState {
    if rule.is_pause() { ServiceState::Paused } else { ServiceState::Stopped }
}

impl Operation {
    async fn run(self) {
        let result = self.carry_out().await;
        let Self { context, reporter, .. } = self;
        context.end(reporter, result).await;
    }

    async fn carry_out(&self) -> Result<Done, Problem> {
        let (live, changed) = self.commit().await?;
        let halt = live.halt.as_ref().ok_or_else(|| no_service(&self.name))?;
        let mut closed = live.closed();
        closed.retain(|release| release.in_flight().total() > 0);
        let settled = self.drain(&closed, halt).await;
        let message = self.message(&closed);
        match settled {
            Some(settled) => {
                let remark = switch::conclude(settled, &self.name, &message, &closed)?;
                Ok(self.context.done(&self.name, changed, format!("{message}{remark}")))
            }
            None => Err(self.overtaken(&live)),
        }
    }

    /// What is at work once the order is in force, and whether it was not before.
    async fn commit(&self) -> Result<(Live, bool), Problem> {
        let view = self.context.registry.view();
        let (service, live) = view.service(&self.name)?;
        if service.halt.as_ref().is_some_and(|current| current.orders_what(&self.rule)) {
            // Whoever repeats it wants to know when the drain is over.
            return Ok((live.clone(), false));
        }
        let commit = Commit {
            service: self.name.clone(),
            message: format!("{}{}", rules::describe(&self.rule.kind), bypass(&self.rule.bypass)),
            change: Change::Halt { halt: self.rule.clone() },
            actor: self.rule.actor.clone(),
            kind: verb(&self.rule),
            known: Vec::new(),
            files: Files::default(),
        };
        let Committed { generation, at_ms, after, .. } = self.context.registry.commit(commit).await?;
        let (_, live) = after.ok_or_else(|| no_service(&self.name))?;
        self.reporter.tell(Event::Halted { state: state(&self.rule), generation, at_ms });
        Ok((live, true))
    }

    /// Waits until nothing is in flight on `closed`; `None` if `halt` is over before.
    async fn drain(&self, closed: &[Arc<Release>], halt: &Halt) -> Option<Settled> {
        let context = &self.context;
        let stop = context.shutdown.child_token();
        let drains = drain::start(&context.tasks, closed.to_vec(), &self.timeouts, &self.reporter, &stop);
        let finished = drains.finished();
        tokio::pin!(finished);
        tokio::select! {
            biased;
            () = halt.lifted() => {}
            () = context.shutdown.cancelled() => return Some(Settled::Stopping),
            () = &mut finished => return Some(Settled::Calm),
        }
        stop.cancel();
        finished.await;
        self.spare(closed);
        None
    }

    /// What was to be drained goes on, unless somebody else drains it by now: another order, or a deploy that replaced
    /// it. Nothing is awaited between looking and sparing, so that none can begin between.
    fn spare(&self, closed: &[Arc<Release>]) {
        let view = self.context.registry.view();
        let Ok((_, live)) = view.service(&self.name) else { return };
        if live.halt.is_none() {
            let kept = live.closed();
            let is_kept = |release: &&Arc<Release>| kept.iter().any(|one| Arc::ptr_eq(one, release));
            closed.iter().filter(is_kept).for_each(|release| release.spare_sockets());
        }
    }

    fn message(&self, closed: &[Arc<Release>]) -> String {
        let name = &self.name;
        let cut: u64 = closed.iter().map(|release| release.cut_short()).sum();
        let cut = if cut > 0 { format!("; {cut} in flight cut at the drain timeout") } else { String::new() };
        match &self.rule.kind {
            HaltKind::Paused { max_pause, .. } => {
                let most = duration::print(*max_pause);
                format!(
                    "`{name}` is paused: requests wait for `agentctl resume {name}`, up to {most} each{cut}"
                )
            }
            HaltKind::Stopped { .. } => {
                format!("`{name}` is stopped: requests are answered 503 until `agentctl resume {name}`{cut}")
            }
        }
    }

    /// Whoever waits for the drain wants to do something to an app that nobody uses, and must not.
    fn overtaken(&self, ours: &Live) -> Problem {
        let (name, verb) = (&self.name, verb(&self.rule));
        let view = self.context.registry.view();
        let now = view.service(name).ok().map(|(service, _)| service.halt.as_ref());
        let left: u64 = ours.closed().iter().map(|release| release.in_flight().total()).sum();
        let what = match now {
            None => "it was removed".to_owned(),
            Some(None) => "it was resumed".to_owned(),
            Some(Some(halt)) if halt.is_pause() => "another `pause` took over".to_owned(),
            Some(Some(_)) => "a `stop` took over".to_owned(),
        };
        let still = if left > 0 { format!(", with {left} still in flight") } else { String::new() };
        let message = format!("the {verb} of `{name}` ended before everything had drained: {what}{still}");
        Problem::new(ProblemCode::Aborted, message)
            .hint(format!("`agentctl status {name}` shows its state, `agentctl events` who changed it"))
    }
}

/// Ends the pause or stop of a service: those who wait go on at once. A running service is left as it is.
pub async fn resume(context: &Context, name: &ServiceName, actor: String) -> Result<Done, Problem> {
    let view = context.registry.view();
    let (service, live) = view.service(name)?;
    let Some(halt) = &service.halt else {
        return Ok(context.done(
            name,
            false,
            format!("`{name}` is neither paused nor stopped; nothing to do"),
        ));
    };
    let waiting = live.halt.as_ref().map_or(0, |halt| halt.waiting());
    let after = Duration::from_secs(super::now_ms().saturating_sub(halt.since_ms) / 1_000);
    let was = if halt.is_pause() { "paused" } else { "stopped" };
    let plural = if waiting == 1 { "" } else { "s" };
    let waited = if halt.is_pause() { format!("; {waiting} request{plural} waited") } else { String::new() };
    let message = format!("`{name}` serves again, after {} {was}{waited}", duration::print(after));
    let commit = Commit {
        service: name.clone(),
        change: Change::Resume,
        actor,
        kind: "resume",
        message: message.clone(),
        known: Vec::new(),
        files: Files::default(),
    };
    context.registry.commit(commit).await?;
    Ok(context.done(name, true, message))
}

/// For operations that go on while a service is halted: they succeed, and visitors see nothing of it.
pub fn remark(context: &Context, name: &ServiceName) -> String {
    let view = context.registry.view();
    let halt = view.state.services.get(name).and_then(|service| service.halt.as_ref());
    let was = match halt {
        None => return String::new(),
        Some(halt) if halt.is_pause() => "paused",
        Some(_) => "stopped",
    };
    format!("; `{name}` is still {was}: `agentctl resume {name}` ends that")
}

/// For the audit log: whom the halt does not concern.
fn bypass(bypass: &Overrides) -> String {
    let BypassBody { headers, cookies, networks } = policy_patch::print_bypass(bypass);
    let lists = [("headers", headers), ("cookies", cookies), ("networks", networks)];
    let some = lists.into_iter().filter(|(_, list)| !list.is_empty());
    let named: Vec<String> = some.map(|(kind, list)| format!("{kind} {}", list.join(", "))).collect();
    if named.is_empty() { String::new() } else { format!("; let through: {}", named.join("; ")) }
}
