//! Operations that wait for certificates: `deploy --wait-tls`, `certs renew` and `certs revoke`.

use std::collections::BTreeMap;
use std::time::Duration;

use model::certificate::{self, CertificateName, WantedCertificate};
use model::duration;
use model::name::ServiceName;
use model::protocol::{
    CertificateFailure, CertificateState, CertificateStatus, Done, Event, Problem, ProblemCode,
    RevocationReason,
};
use model::service::Policy;
use tokio::time::Instant;

use super::super::context::{Context, Shared};
use super::super::registry::View;
use super::super::report::{self, Events, Reporter};
use super::handle::{AllKnown, Known};

/// For an operator who asked for a certificate; the agent goes on by itself.
const RENEW_TIMEOUT: Duration = Duration::from_secs(300);

/// Refuses to wait for what will not come.
pub fn check(context: &Context, policy: &Policy) -> Result<(), Problem> {
    if !certificate::is_automatic(policy) || context.certificates.is_on() {
        return Ok(());
    }
    Err(Problem::new(ProblemCode::Invalid, "automatic certificates are off, so none would ever be there")
        .hint("leave `--wait-tls` out, or set `directory` in `[acme]` of the agent's configuration"))
}

/// The end of a deploy that stands: `done` once every automatic certificate of the service serves.
pub async fn wait(
    context: &Context,
    service: &ServiceName,
    time: Duration,
    reporter: &Reporter,
    done: Done,
) -> Result<Done, Problem> {
    let deadline = Instant::now() + time;
    let mut follower = context.certificates.follow();
    let mut told = Told::default();
    loop {
        let known = AllKnown::clone(&follower.borrow_and_update());
        let wanted = wanted_by(&context.registry.view(), service);
        let missing: Vec<Missing> =
            wanted.iter().filter_map(|(name, wanted)| Missing::of(name, wanted, known.get(name))).collect();
        for name in wanted.keys() {
            told.tell(name, known.get(name), reporter);
        }
        if missing.is_empty() {
            let message = if wanted.is_empty() { "" } else { "; its certificates are there" };
            return Ok(Done { message: format!("{}{message}", done.message), ..done });
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if missing.iter().all(|one| one.is_hopeless(super::super::now_ms(), left)) {
            return Err(pending(&done, &missing, time));
        }
        tokio::select! {
            () = context.shutdown.cancelled() => return Err(pending(&done, &missing, time)),
            () = tokio::time::sleep_until(deadline) => return Err(pending(&done, &missing, time)),
            changed = follower.changed() => {
                if changed.is_err() {
                    return Err(pending(&done, &missing, time));
                }
            }
        }
    }
}

fn wanted_by(view: &View, service: &ServiceName) -> BTreeMap<CertificateName, WantedCertificate> {
    let mut wanted = super::wanted(view);
    wanted.retain(|_, one| one.services.contains(service));
    wanted
}

/// A certificate that does not serve yet.
struct Missing {
    name: CertificateName,
    failure: Option<CertificateFailure>,
    next_attempt_ms: Option<u64>,
    is_under_way: bool,
}

impl Missing {
    fn of(name: &CertificateName, wanted: &WantedCertificate, known: Option<&Known>) -> Option<Self> {
        let covers = |known: &Known| {
            wanted.hosts.iter().all(|host| known.status.hosts.iter().any(|named| named == host.as_str()))
        };
        if known.is_some_and(|known| known.serves() && covers(known)) {
            return None;
        }
        Some(Self {
            name: name.clone(),
            failure: known.and_then(|known| known.status.failure.clone()),
            next_attempt_ms: known.and_then(|known| known.status.next_attempt_ms),
            is_under_way: known.is_none_or(Known::is_under_way),
        })
    }

    /// Whether it has failed, and nothing will be tried any more in the time that is `left`.
    fn is_hopeless(&self, now_ms: u64, left: Duration) -> bool {
        let wait = self.next_attempt_ms.map(|next| Duration::from_millis(next.saturating_sub(now_ms)));
        self.failure.is_some() && !self.is_under_way && wait.is_none_or(|wait| wait > left)
    }
}

fn pending(done: &Done, missing: &[Missing], time: Duration) -> Problem {
    let names: Vec<String> = missing.iter().map(|one| format!("`{}`", one.name)).collect();
    let failed = missing.iter().all(|one| one.failure.is_some());
    let why = match failed {
        true => format!("no certificate was issued for {}", names.join(", ")),
        false => {
            format!("the certificate for {} was not there within {}", names.join(", "), duration::print(time))
        }
    };
    let mut problem = Problem::new(ProblemCode::CertificatePending, format!("{}; but {why}", done.message));
    problem.causes = missing
        .iter()
        .filter_map(|one| Some(format!("{}: {}", one.name, one.failure.as_ref()?.message)))
        .collect();
    let first = missing.first().map(|one| one.name.as_str()).unwrap_or_default();
    problem.hint(format!(
        "the deploy stands, and the agent goes on trying; `agentctl certs show {first}` shows how far it is"
    ))
}

/// What the caller has been told already.
#[derive(Default)]
struct Told(BTreeMap<CertificateName, (CertificateState, String)>);

impl Told {
    fn tell(&mut self, name: &CertificateName, known: Option<&Known>, reporter: &Reporter) {
        let now = match known {
            Some(known) => (known.status.state, progress(&known.status)),
            None => (CertificateState::Issuing, "it is about to be asked for".to_owned()),
        };
        if self.0.get(name) == Some(&now) {
            return;
        }
        let (state, message) = now.clone();
        reporter.tell(Event::Certificate { name: name.to_string(), state, message });
        self.0.insert(name.clone(), now);
    }
}

fn progress(status: &CertificateStatus) -> String {
    match (status.state, &status.failure, &status.issued_by) {
        (CertificateState::Failing, Some(failure), _) => failure.message.clone(),
        (_, _, Some(other)) => format!("{other} is issuing it"),
        (CertificateState::Issuing, ..) => "the authority was asked for it".to_owned(),
        (CertificateState::Renewing, ..) => "the authority was asked for the next one".to_owned(),
        (CertificateState::Valid, ..) => "it serves".to_owned(),
        _ => "browsers will warn".to_owned(),
    }
}

/// `certs renew`.
pub async fn renew(context: Shared, name: CertificateName, actor: String) -> Result<Events, Problem> {
    ask(context, name, actor, None).await
}

/// `certs revoke`.
pub async fn revoke(
    context: Shared,
    name: CertificateName,
    actor: String,
    reason: RevocationReason,
) -> Result<Events, Problem> {
    ask(context, name, actor, Some(reason)).await
}

async fn ask(
    context: Shared,
    name: CertificateName,
    actor: String,
    revoke: Option<RevocationReason>,
) -> Result<Events, Problem> {
    let ended = context.certificates.known().get(&name).map_or(0, |known| known.ended);
    let (kind, message) = match revoke {
        None => {
            context.certificates.renew(&name).await?;
            ("certificate renew", format!("certificate `{name}` is to be issued now"))
        }
        Some(reason) => {
            context.certificates.revoke(&name, reason).await?;
            ("certificate revoke", format!("certificate `{name}` was revoked"))
        }
    };
    context.record(kind, None, actor, message);
    let (reporter, events) = report::channel();
    let tasks = context.tasks.clone();
    tasks.spawn(async move {
        let result = until_ended(&context, &name, ended, &reporter).await;
        reporter.end(result).await;
    });
    Ok(events)
}

async fn until_ended(
    context: &Context,
    name: &CertificateName,
    ended: u64,
    reporter: &Reporter,
) -> Result<Done, Problem> {
    let pending = |message: String, failure: Option<&CertificateFailure>| {
        let mut problem = Problem::new(ProblemCode::CertificatePending, message);
        problem.causes = failure.map(|failure| failure.message.clone()).into_iter().collect();
        let hint = format!(
            "what served goes on serving; `agentctl certs show {name}` shows when the agent tries again"
        );
        Err(problem.hint(hint))
    };
    let deadline = Instant::now() + RENEW_TIMEOUT;
    let mut follower = context.certificates.follow();
    let mut told = Told::default();
    loop {
        let known = AllKnown::clone(&follower.borrow_and_update());
        let Some(known) = known.get(name) else {
            return pending(format!("nobody wants certificate `{name}` any more"), None);
        };
        if known.ended > ended {
            return match &known.status.failure {
                Some(failure) => pending(format!("certificate `{name}` was not issued"), Some(failure)),
                None => Ok(context.certificate_done(format!("certificate `{name}` was issued and serves"))),
            };
        }
        told.tell(name, Some(known), reporter);
        tokio::select! {
            () = context.shutdown.cancelled() => {
                return pending(format!("the daemon is shutting down before `{name}` was issued"), None);
            }
            () = tokio::time::sleep_until(deadline) => {
                return pending(format!("certificate `{name}` was not issued within 5m"), None);
            }
            changed = follower.changed() => {
                if changed.is_err() {
                    return pending(format!("the daemon is shutting down before `{name}` was issued"), None);
                }
            }
        }
    }
}
