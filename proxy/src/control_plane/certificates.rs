//! Which certificate each service has: its files', or a placeholder that is made once for its hosts.

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
            .hint("traffic is unchanged; correct the files or their permissions and deploy again")),
        Err(error) => Err(Problem::from_error(ProblemCode::Internal, &error)),
    }
}

/// One line that warns of hosts which the certificate does not name.
pub fn warning(certificate: &ServiceCertificate, policy: &Policy) -> Option<String> {
    let uncovered = certificate::uncovered(&certificate.certified, &policy.hosts);
    let names: Vec<String> = uncovered.iter().map(|host| format!("`{host}`")).collect();
    (!names.is_empty()).then(|| format!("the certificate does not name {}", names.join(", ")))
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
