//! Which certificate each service has: its files', or a placeholder that is made once for its hosts.

pub mod managed;

use std::sync::Arc;

use model::name::HostPattern;
use model::protocol::{Problem, ProblemCode};
use model::service::{CertificateFiles, Policy, Service};
use rustls::sign::CertifiedKey;

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

/// What the last line of a deploy says of HTTPS: which certificate `shown` is, and what browsers will say.
pub fn remark(shown: Option<&ServiceCertificate>, policy: &Policy) -> String {
    let Some(tls) = &policy.tls else { return String::new() };
    let Some(shown) = shown else { return "; HTTPS has no certificate: see the daemon's log".to_owned() };
    let Source::Files(files) = &shown.source else {
        let why = match &tls.files {
            Some(_) => "its certificate files cannot be read",
            None => "no certificate files are named (`--tls-certificate-path`, `--tls-private-key-path`)",
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

    use super::*;

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
        for (tls, names, shown, want) in [
            (None, &["shop.test"][..], None, ""),
            (with(true), &["shop.test"], from_files(), "; HTTPS shows the certificate in /c.pem"),
            (with(true), &["shop.test", "b.test"], from_files(), "/c.pem, which does not name `b.test`"),
            (with(true), &["shop.test"], placeholder(), "because its certificate files cannot be read"),
            (with(false), &["shop.test"], placeholder(), "because no certificate files are named"),
            (with(false), &["shop.test"], None, "HTTPS has no certificate"),
        ] {
            let policy = Policy { tls, hosts: hosts(names), ..Policy::default() };
            let said = remark(shown.as_ref(), &policy);
            assert!(said.contains(want) && want.is_empty() == said.is_empty(), "{said:?}, not {want:?}");
        }
    }
}
