//! Which certificate each service has: its files', or a placeholder that is made once for its hosts.

pub mod attempt;
pub mod challenges;
pub mod document;
pub mod entry;
pub mod handle;
pub mod managed;
pub mod manager;
pub mod report;
pub mod shelf;
pub mod waiting;

use std::collections::BTreeMap;
use std::sync::Arc;

use model::certificate::{CertificateName, WantedCertificate};
use model::name::HostPattern;
use model::protocol::{Problem, ProblemCode};
use model::service::{CertificateFiles, Policy, Service};
use rustls::sign::CertifiedKey;

use self::handle::Handle;
use self::managed::Managed;
use super::registry::View;
use crate::adapters::certificate;

#[derive(Debug, Clone)]
pub struct ServiceCertificate {
    pub certified: Arc<CertifiedKey>,
    source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Files(CertificateFiles),
    Placeholder(Vec<HostPattern>),
}

impl ServiceCertificate {
    pub fn is_placeholder(&self) -> bool {
        matches!(self.source, Source::Placeholder(_))
    }

    fn fits(&self, policy: &Policy) -> bool {
        match (policy.tls.as_ref(), &self.source) {
            (None, _) => false,
            (Some(tls), Source::Files(files)) => tls.files.as_ref() == Some(files),
            (Some(tls), Source::Placeholder(hosts)) => tls.files.is_none() && *hosts == policy.hosts,
        }
    }
}

/// Reads the files of a policy that is not accepted yet. `None` where it names none.
pub async fn load(policy: &Policy) -> Result<Option<ServiceCertificate>, Problem> {
    let Some(files) = policy.tls.as_ref().and_then(|tls| tls.files.clone()) else { return Ok(None) };
    let source = Source::Files(files.clone());
    match tokio::task::spawn_blocking(move || certificate::load(&files)).await {
        Ok(Ok(certified)) => Ok(Some(ServiceCertificate { certified, source })),
        Ok(Err(error)) => Err(Problem::from_error(ProblemCode::Certificate, &error)
            .hint("traffic is unchanged; correct the files or their permissions and try again")),
        Err(error) => Err(Problem::from_error(ProblemCode::Internal, &error)),
    }
}

/// The automatic certificates that the services of `view` want.
pub fn wanted(view: &View) -> BTreeMap<CertificateName, WantedCertificate> {
    model::certificate::wanted(view.services().map(|(service, _)| (&service.name, &service.policy)))
}

/// A day as people write it.
fn day(at_ms: u64) -> String {
    let time = i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| format!("{at_ms} ms"), |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string())
}

/// Refuses a policy whose hosts cannot all have the certificates that it wants.
pub fn check(policy: &Policy, certificates: &Handle) -> Result<(), Problem> {
    if !certificates.is_on() {
        return Ok(());
    }
    let wants_staging = policy.tls.as_ref().is_some_and(|tls| tls.files.is_none() && tls.staging);
    if wants_staging && !certificates.has_staging() {
        let message = "tls_staging: the agent knows no staging area of its certificate authority";
        return Err(Problem::new(ProblemCode::Invalid, message)
            .hint("leave it out, or set `staging_directory` in `[acme]` of the agent's configuration"));
    }
    model::certificate::check(policy)
}

/// What the last line of a deploy says of HTTPS: which certificate `shown` is, and what browsers will say.
/// `managed`: those that came by themselves, unless that is off.
pub fn remark(shown: Option<&ServiceCertificate>, policy: &Policy, managed: Option<&Managed>) -> String {
    let Some(tls) = &policy.tls else { return String::new() };
    let Some(shown) = shown else { return "; HTTPS has no certificate: see the daemon's log".to_owned() };
    let Source::Files(files) = &shown.source else {
        let why = match (&tls.files, managed) {
            (Some(_), _) => "its certificate files cannot be read",
            (None, Some(managed)) => return automatic(policy, managed),
            (None, None) => {
                "no certificate files are named (`--tls-certificate-path`, `--tls-private-key-path`), and automatic \
                 certificates are off"
            }
        };
        return format!("; HTTPS shows a self-signed placeholder, because {why}");
    };
    let uncovered = certificate::uncovered(&shown.certified, &policy.hosts);
    let names: Vec<String> = uncovered.iter().map(|host| format!("`{host}`")).collect();
    let unnamed = (!names.is_empty()).then(|| format!("does not name {}", names.join(", ")));
    let expired = certificate::expired_on(&shown.certified).map(|date| format!("expired on {date}"));
    let flaws: Vec<String> = expired.into_iter().chain(unnamed).collect();
    let flaws = if flaws.is_empty() { String::new() } else { format!(", which {}", flaws.join(" and ")) };
    format!("; HTTPS shows the certificate in {}{flaws}", files.certificate.display())
}

fn automatic(policy: &Policy, managed: &Managed) -> String {
    let missing: Vec<String> = policy
        .hosts
        .iter()
        .filter(|host| managed.for_host(host).is_none())
        .map(|host| format!("`{host}`"))
        .collect();
    let staging = policy.hosts.iter().filter_map(|host| managed.for_host(host)).any(|one| one.staging);
    let staging = if staging { ", of a staging area that browsers do not trust" } else { "" };
    match missing.is_empty() {
        true => format!("; HTTPS shows its automatic certificate{staging}"),
        false => format!(
            "; HTTPS shows a self-signed placeholder for {} until the certificate is there: `agentctl certs list` \
             shows how far it is",
            missing.join(", ")
        ),
    }
}

/// The certificate of a service as it is now. What cannot be read gives a placeholder and an error in the
/// log: HTTPS with a warning is better than none, and the other services need theirs.
pub async fn current(
    service: &Service,
    known: impl IntoIterator<Item = ServiceCertificate>,
) -> Option<ServiceCertificate> {
    service.policy.tls.as_ref()?;
    if let Some(fitting) = known.into_iter().find(|one| one.fits(&service.policy)) {
        return Some(fitting);
    }
    match load(&service.policy).await {
        Ok(Some(loaded)) => return Some(loaded),
        Ok(None) => {}
        Err(problem) => {
            let causes = problem.causes.join(": ");
            tracing::error!(service = %service.name, causes, "{}; a self-signed placeholder serves", problem.message);
        }
    }
    placeholder(service)
}

fn placeholder(service: &Service) -> Option<ServiceCertificate> {
    let hosts = service.policy.hosts.clone();
    match certificate::self_signed(&hosts) {
        Ok(certified) => Some(ServiceCertificate { certified, source: Source::Placeholder(hosts) }),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(service = %service.name, cause, "{error}; the service has no HTTPS");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use model::service::TlsPolicy;

    use super::managed::ManagedCertificate;
    use super::*;

    fn managed(hosts: &[&str]) -> Managed {
        let hosts: Vec<HostPattern> = hosts.iter().map(|host| host.parse().unwrap()).collect();
        let name = CertificateName::of(&hosts[0]);
        let certified = certificate::self_signed(&hosts).unwrap();
        let one = ManagedCertificate {
            hosts,
            certified,
            not_after_ms: 0,
            directory: "https://ca.test/".into(),
            staging: false,
        };
        Managed { certificates: [(name, one)].into(), ..Managed::default() }
    }

    #[test]
    fn what_is_said_of_a_certificate() {
        let hosts = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<_>>();
        let files = CertificateFiles { certificate: "/c.pem".into(), private_key: "/k.pem".into() };
        let shown = |source| ServiceCertificate {
            certified: certificate::self_signed(&hosts(&["shop.test"])).unwrap(),
            source,
        };
        let from_files = || Some(shown(Source::Files(files.clone())));
        let placeholder = || Some(shown(Source::Placeholder(Vec::new())));
        let with =
            |named: bool| Some(TlsPolicy { files: named.then(|| files.clone()), ..TlsPolicy::default() });
        let off = None;
        let (none, one) = (Managed::default(), managed(&["shop.test"]));
        for (tls, names, shown, managed, want) in [
            (None, &["shop.test"][..], None, off, ""),
            (with(true), &["shop.test"], from_files(), off, "; HTTPS shows the certificate in /c.pem"),
            (with(true), &["shop.test", "b.test"], from_files(), off, "/c.pem, which does not name `b.test`"),
            (with(true), &["shop.test"], placeholder(), off, "because its certificate files cannot be read"),
            (with(false), &["shop.test"], placeholder(), off, "because no certificate files are named"),
            (with(false), &["shop.test"], placeholder(), Some(&none), "placeholder for `shop.test` until"),
            (with(false), &["shop.test"], placeholder(), Some(&one), "shows its automatic certificate"),
            (
                with(false),
                &["shop.test", "b.test"],
                placeholder(),
                Some(&one),
                "placeholder for `b.test` until",
            ),
            (with(false), &["shop.test"], None, off, "HTTPS has no certificate"),
        ] {
            let policy = Policy { tls, hosts: hosts(names), ..Policy::default() };
            let said = remark(shown.as_ref(), &policy, managed);
            assert!(said.contains(want) && want.is_empty() == said.is_empty(), "{said:?}, not {want:?}");
        }
    }
}
