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
use model::service::{Policy, Service};
use rustls::sign::CertifiedKey;

use self::handle::Handle;
use self::managed::Managed;
use super::own_certificates::{OwnCertificates, Place};
use super::registry::View;
use crate::adapters::certificate;

#[derive(Debug, Clone)]
pub struct ServiceCertificate {
    /// Of several, the first.
    pub certified: Arc<CertifiedKey>,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    Files(Arc<OwnCertificates>),
    /// For these hosts.
    Placeholder(Vec<HostPattern>, Option<Arc<OwnCertificates>>),
}

impl ServiceCertificate {
    /// `None` where none is in use.
    pub fn from_files(own: OwnCertificates) -> Option<Self> {
        let certified = Arc::clone(&own.pairs().next()?.certified);
        Some(Self { certified, source: Source::Files(Arc::new(own)) })
    }

    pub fn is_placeholder(&self) -> bool {
        matches!(self.source, Source::Placeholder(..))
    }

    /// Those of the operator, also where none of them can be used.
    pub fn own(&self) -> Option<&Arc<OwnCertificates>> {
        match &self.source {
            Source::Files(own) => Some(own),
            Source::Placeholder(_, own) => own.as_ref(),
        }
    }

    /// Puts what was found of a pair of files in its place; `false` where the files are not named there any more.
    pub fn put(&mut self, index: usize, place: Place) -> bool {
        let Some(own) =
            self.own().filter(|own| own.places.get(index).is_some_and(|known| known.files == place.files))
        else {
            return false;
        };
        let mut own = OwnCertificates::clone(own);
        own.places[index] = place;
        if own.is_empty() {
            if let Source::Placeholder(_, none) = &mut self.source {
                *none = Some(Arc::new(own));
            }
        } else if let Some(next) = Self::from_files(own) {
            *self = next;
        }
        true
    }

    pub fn fits(&self, policy: &Policy) -> bool {
        let Some(tls) = &policy.tls else { return false };
        match &self.source {
            Source::Files(own) => own.fits(policy),
            Source::Placeholder(hosts, None) => tls.files.is_empty() && *hosts == policy.hosts,
            // Every change is a reason to try again.
            Source::Placeholder(_, Some(_)) => false,
        }
    }
}

/// Reads the files of a policy that is not accepted yet. `None` where it names none.
pub async fn load(policy: &Policy) -> Result<Option<ServiceCertificate>, Problem> {
    let policy = policy.clone();
    match tokio::task::spawn_blocking(move || OwnCertificates::load(&policy)).await {
        Ok(loaded) => Ok(loaded?.and_then(ServiceCertificate::from_files)),
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
    let wants_staging = policy.tls.as_ref().is_some_and(|tls| tls.files.is_empty() && tls.staging);
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
    if policy.tls.is_none() {
        return String::new();
    }
    let why = match (shown.map(|shown| &shown.source), managed) {
        (None, _) => return "; HTTPS has no certificate: see the daemon's log".to_owned(),
        (Some(Source::Files(own)), _) => return own.remark(),
        (Some(Source::Placeholder(_, Some(_))), _) => "its certificate files cannot be used",
        (Some(Source::Placeholder(_, None)), Some(managed)) => return automatic(policy, managed),
        (Some(Source::Placeholder(_, None)), None) => {
            "no certificate files are named (`--tls-certificate-path`, `--tls-private-key-path`), and automatic \
             certificates are off"
        }
    };
    format!("; HTTPS shows a self-signed placeholder, because {why}")
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
    let tls = service.policy.tls.as_ref()?;
    if let Some(fitting) = known.into_iter().find(|one| one.fits(&service.policy)) {
        return Some(fitting);
    }
    if tls.files.is_empty() {
        return placeholder(service, None);
    }
    let policy = service.policy.clone();
    let loaded =
        tokio::task::spawn_blocking(move || OwnCertificates::load_what_can_be(&policy)).await.ok()?;
    for place in &loaded.places {
        if let Some(trouble) = &place.trouble {
            tracing::error!(service = %service.name, "{}; it is not shown", trouble.message);
        }
    }
    match loaded.is_empty() {
        true => placeholder(service, Some(Arc::new(loaded))),
        false => ServiceCertificate::from_files(loaded),
    }
}

/// `own` are those that cannot be used.
fn placeholder(service: &Service, own: Option<Arc<OwnCertificates>>) -> Option<ServiceCertificate> {
    let hosts = service.policy.hosts.clone();
    match certificate::self_signed(&hosts) {
        Ok(certified) => Some(ServiceCertificate { certified, source: Source::Placeholder(hosts, own) }),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(service = %service.name, cause, "{error}; the service has no HTTPS");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use model::service::{CertificateFiles, TlsPolicy};

    use super::super::own_certificates::{Place, Trouble};
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
        let files = CertificateFiles { certificate: "/c.pem".into(), private_key: "/k.pem".into() };
        let hosts: Vec<HostPattern> = vec!["shop.test".parse().unwrap()];
        let lost = Place { files: files.clone(), pair: None, trouble: Some(Trouble::new("it has gone")) };
        let lost = Arc::new(OwnCertificates { places: vec![lost] });
        let certified = certificate::self_signed(&hosts).unwrap();
        let shown = |source| Some(ServiceCertificate { certified: Arc::clone(&certified), source });
        let placeholder = |own| shown(Source::Placeholder(Vec::new(), own));
        let with =
            |files: &[CertificateFiles]| Some(TlsPolicy { files: files.to_vec(), ..TlsPolicy::default() });
        let off = None;
        let (none, one) = (Managed::default(), managed(&["shop.test"]));
        for (tls, shown, managed, want) in [
            (None, None, off, ""),
            (
                with(std::slice::from_ref(&files)),
                placeholder(Some(lost.clone())),
                off,
                "because its certificate files cannot be used",
            ),
            (with(&[]), placeholder(None), off, "because no certificate files are named"),
            (with(&[]), placeholder(None), Some(&none), "placeholder for `shop.test` until"),
            (with(&[]), placeholder(None), Some(&one), "shows its automatic certificate"),
            (with(&[]), None, off, "HTTPS has no certificate"),
        ] {
            let policy = Policy { tls, hosts: hosts.clone(), ..Policy::default() };
            let said = remark(shown.as_ref(), &policy, managed);
            assert!(said.contains(want) && want.is_empty() == said.is_empty(), "{said:?}, not {want:?}");
        }
    }
}
