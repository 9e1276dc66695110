//! What the agent says of certificates: those that the manager knows, those from files, and the placeholders.

use std::collections::BTreeMap;

use model::certificate::{self, CertificateName};
use model::name::{HostPattern, ServiceName};
use model::protocol::{CertificateStatus, Certificates, Problem, ProblemCode};
use model::service::Service;

use super::super::context::Context;
use super::super::registry::View;
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
        let status = CertificateStatus::placeholder(name.to_string(), hosts, services);
        statuses.entry(name.to_string()).or_insert(status);
    }
    for (service, live) in view.services() {
        if let Some(own) = live.certificate.as_ref().and_then(|certificate| certificate.own()) {
            // Several of one name differ in their keys.
            let own = own.statuses(&service.name).into_iter();
            statuses.extend(own.map(|one| (format!("{} {:?}", one.name, one.source), one)));
        } else if let Some((name, status)) = without_files(service) {
            statuses.entry(name).or_insert(status);
        }
    }
    statuses.into_values().collect()
}

/// What the service shows for the hosts that no authority proves; the others are the manager's.
fn without_files(service: &Service) -> Option<(String, CertificateStatus)> {
    let policy = &service.policy;
    policy.tls.as_ref()?;
    let never = |host: &&HostPattern| !certificate::is_automatic(policy) || !certificate::is_obtainable(host);
    let hosts: Vec<_> = policy.hosts.iter().filter(never).collect();
    if hosts.is_empty() && !policy.hosts.is_empty() {
        return None;
    }
    let name = hosts.first().map_or(ANY.to_owned(), |host| CertificateName::of(host).to_string());
    let hosts = hosts.iter().map(ToString::to_string).collect();
    Some((name.clone(), CertificateStatus::placeholder(name, hosts, vec![service.name.to_string()])))
}
