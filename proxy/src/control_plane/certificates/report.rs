//! What the agent says of certificates: those that the manager knows, those from files, and the placeholders.

use std::collections::BTreeMap;

use model::certificate::{self, CertificateName};
use model::name::{HostPattern, ServiceName};
use model::protocol::{CertificateState, CertificateStatus, Certificates, Problem, ProblemCode};
use model::service::Service;

use super::super::activations::Live;
use super::super::context::Context;
use super::super::registry::View;
use super::Source;
use super::handle::{AllKnown, Known};

/// Of a service for any host.
const ANY: &str = "any";

pub fn all(context: &Context) -> Certificates {
    let (view, known) = (context.registry.view(), context.certificates.known());
    let directory = context.certificates.directory().map(str::to_owned);
    Certificates { directory, certificates: statuses(&view, &known) }
}

pub fn one(context: &Context, name: &CertificateName) -> Result<CertificateStatus, Problem> {
    let all = statuses(&context.registry.view(), &context.certificates.known());
    all.into_iter().find(|one| one.name == name.as_str()).ok_or_else(|| no_certificate(name))
}

pub fn no_certificate(name: &CertificateName) -> Problem {
    Problem::new(ProblemCode::NotFound, format!("there is no certificate `{name}`"))
        .hint("`agentctl certs list` shows which there are; each is named by its first host")
}

pub fn of_service(view: &View, service: &ServiceName, known: &AllKnown) -> Vec<CertificateStatus> {
    let is_its_own = |one: &CertificateStatus| one.services.iter().any(|name| name == service.as_str());
    statuses(view, known).into_iter().filter(is_its_own).collect()
}

/// By name.
fn statuses(view: &View, known: &AllKnown) -> Vec<CertificateStatus> {
    let mut statuses: BTreeMap<String, CertificateStatus> = BTreeMap::new();
    for Known { status, .. } in known.values() {
        statuses.insert(status.name.clone(), status.clone());
    }
    // What the manager has not looked at yet, or never will.
    for (name, wanted) in super::wanted(view) {
        let hosts = wanted.hosts.iter().map(ToString::to_string).collect();
        let services = wanted.services.iter().map(ToString::to_string).collect();
        let status = empty(name.to_string(), hosts, services);
        statuses.entry(name.to_string()).or_insert(status);
    }
    for (service, live) in view.services() {
        if let Some((name, status)) = by_service(service, live) {
            statuses.entry(name).or_insert(status);
        }
    }
    statuses.into_values().collect()
}

/// The certificate that the service alone decides about.
fn by_service(service: &Service, live: &Live) -> Option<(String, CertificateStatus)> {
    let policy = &service.policy;
    policy.tls.as_ref()?;
    let services = vec![service.name.to_string()];
    let named = |hosts: Vec<&HostPattern>| {
        let name = hosts.first().map_or(ANY.to_owned(), |host| CertificateName::of(host).to_string());
        (name, hosts.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let files = live.certificate.as_ref().and_then(|shown| match &shown.source {
        Source::Files(files) => Some(files.certificate.display().to_string()),
        Source::Placeholder(_) => None,
    });
    if files.is_none() && certificate::is_automatic(policy) {
        // Those with names that authorities prove are the manager's.
        let never = |host: &&HostPattern| !certificate::is_obtainable(host);
        let hosts: Vec<_> = policy.hosts.iter().filter(never).collect();
        if hosts.is_empty() && !policy.hosts.is_empty() {
            return None;
        }
        let (name, hosts) = named(hosts);
        return Some((name.clone(), empty(name, hosts, services)));
    }
    let (name, hosts) = named(policy.hosts.iter().collect());
    let state = if files.is_some() { CertificateState::Own } else { CertificateState::Placeholder };
    Some((name.clone(), CertificateStatus { state, source: files, ..empty(name, hosts, services) }))
}

/// A placeholder.
pub fn empty(name: String, hosts: Vec<String>, services: Vec<String>) -> CertificateStatus {
    CertificateStatus {
        name,
        hosts,
        services,
        state: CertificateState::Placeholder,
        source: None,
        not_before_ms: None,
        not_after_ms: None,
        renew_at_ms: None,
        failure: None,
        next_attempt_ms: None,
        issued_by: None,
    }
}
