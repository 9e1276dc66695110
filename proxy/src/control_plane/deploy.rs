//! Deploys: a new release passes the gate, takes the traffic, and is watched while the old one drains.

use std::sync::Arc;
use std::time::Duration;

use model::canary::Cohort;
use model::cutover::{DrainPlan, Event as Step, Plan};
use model::name::ServiceName;
use model::policy_patch;
use model::protocol::{DeployRequest, Done, Problem, ProblemCode};
use model::service::{Policy, Service};

use super::activations::{Activation, Live};
use super::bake::Bake;
use super::certificates::{self, ServiceCertificate, waiting};
use super::changes::{self, Change};
use super::context::{self, Candidate, Context, Gated, Shared, Wanted, accepted};
use super::files::Files;
use super::operations::Claim;
use super::pause;
use super::progress::Progress;
use super::registry::{Commit, Committed};
use super::report::{self, Events, Reporter};
use super::revert;
use super::switch::{self, Settled};
use crate::release::Release;

const VERB: &str = "deploy";

/// A deploy that nothing forbids.
struct Deploy {
    context: Shared,
    claim: Claim,
    actor: String,
    candidate: Candidate,
    policy: Policy,
    files: Files,
    reporter: Reporter,
    /// The gate is not waited for.
    force: bool,
    /// How long the service's automatic certificates are waited for.
    wait_tls: Option<Duration>,
}

/// Refuses at once what can be refused; otherwise the deploy goes on by itself, and the events tell of it.
pub async fn start(
    context: Shared,
    name: ServiceName,
    actor: String,
    request: DeployRequest,
) -> Result<Events, Problem> {
    let claim = context.operations.claim(&name, VERB, &actor)?;
    let view = context.registry.view();
    let service = view.state.services.get(&name);
    let declared = view.state.declared.get(&name).map(|declared| &declared.policy);
    let current = service.map(|service| &service.policy).or(declared).cloned().unwrap_or_default();
    let policy = policy_patch::apply(&request.policy, current)?;
    certificates::check(&policy, &context.certificates)?;
    let wait_tls = wait_tls(&context, &request, &policy)?;
    let mut candidate = context.candidate(Wanted::of(&request), service).await?;
    let files = Files::load(&policy).await?;
    changes::check_routes(&view.state, &name, &policy)?;
    context.check_buffers(&policy).await?;

    let (reporter, events) = report::channel();
    let canary = service.and_then(|service| service.canary.as_ref());
    if let Some((service, live)) =
        view.service(&name).ok().filter(|(_, live)| is_stable(live, &candidate, &request))
    {
        // Still the same release: only its policy changes, if anything does.
        candidate = Candidate { record: service.stable.clone(), endpoints: live.stable.endpoints() };
        if service.policy == policy && !(request.replace_canary && canary.is_some()) {
            let done = already(&context, service, files.certificate.as_ref().or(live.certificate.as_ref()));
            reload_files(&context, service, files).await?;
            drop(claim);
            end(context, name, reporter, Ok(done), wait_tls).await;
            return Ok(events);
        }
    }
    if let Some(canary) = canary.filter(|_| !request.replace_canary) {
        return Err(changes::canary_runs(&name, &canary.release.id));
    }

    claim.set_release(candidate.record.id.as_str());
    reporter.tell(accepted(&name, VERB, &candidate.record));
    let tasks = context.tasks.clone();
    let force = request.force;
    let deploy = Deploy { context, claim, actor, candidate, policy, files, reporter, force, wait_tls };
    tasks.spawn(deploy.run());
    Ok(events)
}

fn wait_tls(
    context: &Context,
    request: &DeployRequest,
    policy: &Policy,
) -> Result<Option<Duration>, Problem> {
    let Some(text) = &request.wait_tls else { return Ok(None) };
    waiting::check(context, policy)?;
    let time = model::duration::parse(text).map_err(|error| context::invalid(&error))?;
    Ok(Some(time))
}

/// Ends the operation, after its certificates are there if somebody wants to know. Nothing is claimed any more: a deploy
/// that stands may be rolled back meanwhile.
async fn end(
    context: Shared,
    name: ServiceName,
    reporter: Reporter,
    result: Result<Done, Problem>,
    wait_tls: Option<Duration>,
) {
    let (Ok(done), Some(time)) = (&result, wait_tls) else { return context.end(reporter, result).await };
    let done = done.clone();
    let tasks = context.tasks.clone();
    tasks.spawn(async move {
        let result = waiting::wait(&context, &name, time, &reporter, done).await;
        context.end(reporter, result).await;
    });
}

/// Same targets at the same addresses, and no other label than it has.
fn is_stable(live: &Live, candidate: &Candidate, request: &DeployRequest) -> bool {
    let stable = &live.stable;
    let same_label = request.release.is_none() || candidate.record.id == stable.record.id;
    same_label
        && candidate.record.has_targets_of(&stable.record)
        && stable.has_endpoints(&candidate.record, &candidate.endpoints)
}

fn already(context: &Context, service: &Service, shown: Option<&ServiceCertificate>) -> Done {
    let (name, release) = (&service.name, &service.stable.id);
    let https = certificates::remark(shown, &service.policy, context.managed().as_deref());
    let halted = pause::remark(context, name);
    let message = format!("`{name}` runs release `{release}` already; nothing to do{https}{halted}");
    context.done(name, false, message)
}

/// Files that were renewed under the same names need no gate.
async fn reload_files(context: &Context, service: &Service, files: Files) -> Result<(), Problem> {
    if files.certificate.is_none() && files.pages.is_none() && files.client_auth.is_none() {
        return Ok(());
    }
    context.registry.take_files(service.name.clone(), files).await
}

impl Deploy {
    async fn run(self) {
        let result = self.carry_out().await;
        let Self { context, claim, reporter, wait_tls, .. } = self;
        let name = claim.service().clone();
        drop(claim);
        end(context, name, reporter, result, wait_tls).await;
    }

    async fn carry_out(&self) -> Result<Done, Problem> {
        let mut progress = Progress::new(self.plan(), &self.claim, &self.reporter);
        progress.step(Step::Accepted);
        let passed = self.pass_gate(&mut progress).await?;
        let commit = self.commit(passed);
        let committed = self.context.registry.commit(commit).await.inspect_err(|_| {
            progress.step(Step::SwitchFailed);
        })?;
        self.finish(&mut progress, committed).await
    }

    fn plan(&self) -> Plan {
        let view = self.context.registry.view();
        Plan {
            targets: self.candidate.record.all_targets().count(),
            replaces: view.service(self.claim.service()).is_ok(),
            deploy_timeout: self.policy.gate.deploy_timeout,
            drain: DrainPlan::longest(&self.policy.timeouts),
            bake: self.policy.timeouts.bake,
        }
    }

    async fn pass_gate(&self, progress: &mut Progress<'_>) -> Result<Activation, Problem> {
        let (name, candidate) = (self.claim.service(), self.candidate.clone());
        let passed = if self.force {
            let Candidate { record, endpoints } = candidate;
            self.context.factory.activate(name, Cohort::Stable, &record, endpoints)
        } else {
            let gated = Gated { actor: &self.actor, reporter: &self.reporter };
            let passed = self.context.pass_gate(name, candidate, Cohort::Stable, &self.policy, &gated);
            passed.await.inspect_err(|_| {
                progress.step(Step::GateClosed);
            })?
        };
        for index in 0..self.candidate.record.all_targets().count() {
            progress.step(Step::TargetOpen(index));
        }
        // There are no warm-up requests yet.
        progress.step(Step::Warmed);
        Ok(passed)
    }

    fn commit(&self, passed: Activation) -> Commit {
        let release = self.candidate.record.clone();
        Commit {
            service: self.claim.service().clone(),
            message: match self.force {
                true => format!("release `{}` has the traffic WITHOUT having passed its gate", release.id),
                false => format!("release `{}` passed its gate and has the traffic", release.id),
            },
            change: Change::CutOver { release, policy: Box::new(self.policy.clone()) },
            actor: self.actor.clone(),
            kind: VERB,
            known: vec![passed],
            files: self.files.clone(),
        }
    }

    /// From the switch to the end.
    async fn finish(&self, progress: &mut Progress<'_>, committed: Committed) -> Result<Done, Problem> {
        let (context, claim, reporter) = (&*self.context, &self.claim, &self.reporter);
        let (_, live) = committed.after.as_ref().ok_or_else(|| changes::no_service(claim.service()))?;
        let bake = Bake::new(&live.stable.release);
        switch::tell_switched(reporter, &committed);
        let drains = switch::drain(context, &committed, &self.policy.timeouts, reporter);
        let settled = progress.settle(drains, &bake, &context.shutdown).await;
        match (settled, committed.before) {
            (Settled::Bad(seen), Some(before)) => {
                Err(revert::revert(context, claim, before, seen, reporter).await)
            }
            (Settled::GaveWay, Some(_)) => Err(taken_over(context, claim.service())),
            (settled, before) => self.done(settled, before.map(|(service, _)| service), &committed.replaced),
        }
    }

    fn done(
        &self,
        settled: Settled,
        before: Option<Service>,
        replaced: &[Arc<Release>],
    ) -> Result<Done, Problem> {
        let name = self.claim.service();
        let done = self.context.done(name, true, "");
        let stable = done.stable.as_deref().unwrap_or_default();
        let message = format!("`{name}` runs release `{stable}`");
        let remark = switch::conclude(settled, name, &message, replaced)?;
        let held = match before {
            Some(service) if done.held.as_deref() == Some(service.stable.id.as_str()) => {
                format!("; release `{}` is held for a rollback", service.stable.id)
            }
            _ => String::new(),
        };
        let view = self.context.registry.view();
        let shown = view.live.get(name).and_then(|live| live.certificate.as_ref());
        let https = certificates::remark(shown, &self.policy, self.context.managed().as_deref());
        let halted = pause::remark(&self.context, name);
        let forced = if self.force { unwatched(name) } else { String::new() };
        Ok(Done { message: format!("{message}{held}{remark}{https}{halted}{forced}"), ..done })
    }
}

/// Nobody may take a forced deploy for an ordinary one.
fn unwatched(name: &ServiceName) -> String {
    format!("; FORCED: nobody waited until it was healthy, `agentctl status {name}` shows whether it is")
}

fn taken_over(context: &Context, name: &ServiceName) -> Problem {
    let stable = context.done(name, true, "").stable.unwrap_or_default();
    let message = format!("a rollback of `{name}` began while release `{stable}` was still being watched");
    Problem::new(ProblemCode::Reverted, message)
        .hint(format!("`agentctl status {name}` shows what serves, `agentctl history {name}` who did it"))
}
