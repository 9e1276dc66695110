//! Which certificates services want that name no files of their own, and which of them cannot be had.
//!
//! When one is due is decided in `renewal`; how it is ordered is the daemon's affair.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use crate::name::{HostName, HostPattern, InvalidHost, ServiceName};
use crate::protocol::{Problem, ProblemCode};
use crate::service::Policy;

/// On one certificate; authorities take no more.
pub const HOSTS_MAX: usize = 100;

/// Names a certificate: its first host, with `_` for the `*` of a wildcard, so that it can name a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CertificateName(Arc<str>);

impl CertificateName {
    pub fn of(host: &HostPattern) -> Self {
        Self(host.to_string().replacen('*', "_", 1).into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CertificateName {
    type Err = InvalidHost;

    /// Of a host or a wildcard, as either writes it.
    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let text = match text.strip_prefix("_.") {
            Some(domain) => format!("*.{domain}"),
            None => text.to_owned(),
        };
        Ok(Self::of(&text.parse()?))
    }
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A certificate that has to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedCertificate {
    /// Each once; never empty.
    pub hosts: Vec<HostName>,
    /// Of the authority's staging area.
    pub staging: bool,
    /// Who wants it; never empty.
    pub services: Vec<ServiceName>,
}

impl WantedCertificate {
    pub fn covers(&self, host: &HostName) -> bool {
        self.hosts.contains(host)
    }
}

/// All that `services` want, each host on one certificate: that of a service that wants all its hosts on one, before
/// one of its own. A host that some service has files for is left to these.
pub fn wanted<'s>(
    services: impl IntoIterator<Item = (&'s ServiceName, &'s Policy)>,
) -> BTreeMap<CertificateName, WantedCertificate> {
    let (with_files, automatic): (Vec<_>, Vec<_>) = services
        .into_iter()
        .filter(|(_, policy)| policy.tls.is_some())
        .partition(|(_, policy)| !is_automatic(policy));
    let has_files = |host: &HostName| {
        let mut hosts = with_files.iter().flat_map(|(_, policy)| &policy.hosts);
        hosts.any(|pattern| matches!(pattern, HostPattern::Exact(name) if name == host))
    };
    let (together, alone): (Vec<_>, Vec<_>) = automatic
        .into_iter()
        .partition(|(_, policy)| policy.tls.as_ref().is_some_and(|tls| tls.one_certificate));
    let mut wanted: BTreeMap<CertificateName, WantedCertificate> = BTreeMap::new();
    let mut add = |service: &ServiceName, policy: &Policy, hosts: Vec<&HostName>| {
        let mut missing = Vec::new();
        for host in hosts.into_iter().filter(|host| !has_files(host)) {
            match wanted.values_mut().find(|known| known.covers(host)) {
                Some(known) if known.services.contains(service) => {}
                Some(known) => known.services.push(service.clone()),
                None => missing.push(host.clone()),
            }
        }
        let Some(first) = missing.first() else { return };
        let name = CertificateName::of(&HostPattern::Exact(first.clone()));
        let staging = policy.tls.as_ref().is_some_and(|tls| tls.staging);
        let services = vec![service.clone()];
        wanted.insert(name, WantedCertificate { hosts: missing, staging, services });
    };
    for (service, policy) in together {
        add(service, policy, obtainable(policy).collect());
    }
    for (service, policy) in alone {
        for host in obtainable(policy) {
            add(service, policy, vec![host]);
        }
    }
    wanted
}

/// Whether the service has TLS and names no files.
pub fn is_automatic(policy: &Policy) -> bool {
    policy.tls.as_ref().is_some_and(|tls| tls.files.is_empty())
}

fn obtainable(policy: &Policy) -> impl Iterator<Item = &HostName> {
    policy.hosts.iter().filter_map(|host| match host {
        HostPattern::Exact(name) if !is_address(name) => Some(name),
        _ => None,
    })
}

/// Whether authorities can be shown that it is ours, without DNS.
pub fn is_obtainable(host: &HostPattern) -> bool {
    matches!(host, HostPattern::Exact(name) if !is_address(name))
}

fn is_address(host: &HostName) -> bool {
    host.as_str().trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

/// Refuses a policy whose hosts cannot all have automatic certificates.
pub fn check(policy: &Policy) -> Result<(), Problem> {
    if !is_automatic(policy) {
        return Ok(());
    }
    let refuse = |why: String, hint: &str| Err(Problem::new(ProblemCode::Certificate, why).hint(hint));
    const OWN: &str = "name files of your own (`--tls-certificate-path`, `--tls-private-key-path`), or list each host \
                       with `--host`";
    if policy.hosts.is_empty() {
        let why = "no certificate can be had for any host: an authority has to be told which";
        return refuse(why.to_owned(), OWN);
    }
    for host in &policy.hosts {
        match host {
            HostPattern::Wildcard(_) => {
                let why = format!(
                    "no certificate for `{host}` comes by itself: an authority proves a wildcard over DNS alone"
                );
                return refuse(why, OWN);
            }
            HostPattern::Exact(name) if is_address(name) => {
                return refuse(format!("no certificate for the address `{name}` comes by itself"), OWN);
            }
            HostPattern::Exact(_) => {}
        }
    }
    let together = policy.tls.as_ref().is_some_and(|tls| tls.one_certificate);
    if together && policy.hosts.len() > HOSTS_MAX {
        let why =
            format!("{} hosts are too many for one certificate: at most {HOSTS_MAX}", policy.hosts.len());
        return refuse(why, "leave `--tls-one-certificate` out, so that each host has its own");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{CertificateFiles, TlsPolicy};

    fn files() -> Vec<CertificateFiles> {
        vec![CertificateFiles { certificate: "/c.pem".into(), private_key: "/k.pem".into() }]
    }

    fn policy(hosts: &str, tls: Option<TlsPolicy>) -> Policy {
        let hosts = hosts.split_whitespace().map(|host| host.parse().unwrap()).collect();
        Policy { hosts, tls, ..Policy::default() }
    }

    fn each() -> Option<TlsPolicy> {
        Some(TlsPolicy::default())
    }

    fn one() -> Option<TlsPolicy> {
        Some(TlsPolicy { one_certificate: true, ..TlsPolicy::default() })
    }

    fn own() -> Option<TlsPolicy> {
        Some(TlsPolicy { files: files(), ..TlsPolicy::default() })
    }

    /// `name: hosts (services)`
    fn wanted_by(services: &[(&str, Policy)]) -> Vec<String> {
        let names: Vec<ServiceName> = services.iter().map(|(name, _)| name.parse().unwrap()).collect();
        let wanted = wanted(names.iter().zip(services.iter().map(|(_, policy)| policy)));
        let text = |(name, one): (&CertificateName, &WantedCertificate)| {
            let hosts: Vec<&str> = one.hosts.iter().map(HostName::as_str).collect();
            let services: Vec<&str> = one.services.iter().map(ServiceName::as_str).collect();
            format!("{name}: {} ({})", hosts.join(" "), services.join(" "))
        };
        wanted.iter().map(text).collect()
    }

    #[test]
    fn what_services_want() {
        for (services, want) in [
            (vec![("a", policy("a.test", None))], vec![]),
            (vec![("a", policy("a.test", own()))], vec![]),
            (vec![("a", policy("a.test b.test", each()))], vec!["a.test: a.test (a)", "b.test: b.test (a)"]),
            (vec![("a", policy("b.test a.test", one()))], vec!["b.test: b.test a.test (a)"]),
            (vec![("a", policy("*.a.test [::1] 127.0.0.1 a.test", each()))], vec!["a.test: a.test (a)"]),
            (vec![("a", policy("", each()))], vec![]),
            // Services below one host share its certificate.
            (
                vec![("a", policy("a.test", each())), ("b", policy("a.test b.test", each()))],
                vec!["a.test: a.test (a b)", "b.test: b.test (b)"],
            ),
            // A certificate with all hosts stands for each of them.
            (
                vec![("a", policy("b.test", each())), ("b", policy("a.test b.test", one()))],
                vec!["a.test: a.test b.test (b a)"],
            ),
            // Files come first.
            (
                vec![("a", policy("a.test b.test", each())), ("b", policy("a.test", own()))],
                vec!["b.test: b.test (a)"],
            ),
        ] {
            assert_eq!(wanted_by(&services), want, "{services:?}");
        }
        let staging = Some(TlsPolicy { staging: true, ..TlsPolicy::default() });
        let name: ServiceName = "a".parse().unwrap();
        assert!(wanted([(&name, &policy("a.test", staging))]).values().all(|one| one.staging));
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        let many = (0..=HOSTS_MAX).map(|n| format!("h{n}.test")).collect::<Vec<_>>().join(" ");
        for (policy, want) in [
            (policy("a.test", each()), ""),
            (policy("", None), ""),
            (policy("*.a.test", own()), ""),
            (policy(&many, each()), ""),
            (policy("", each()), "for any host"),
            (policy("a.test *.a.test", each()), "`*.a.test` comes by itself"),
            (policy("[::1]", each()), "the address `[::1]`"),
            (policy("127.0.0.1", each()), "the address `127.0.0.1`"),
            (policy(&many, one()), "101 hosts are too many"),
        ] {
            match check(&policy) {
                Ok(()) => assert_eq!(want, "", "{:?}", policy.hosts),
                Err(problem) => {
                    assert_eq!(problem.code, ProblemCode::Certificate);
                    assert!(!want.is_empty() && problem.message.contains(want), "{}", problem.message);
                    assert!(problem.hint.is_some());
                }
            }
        }
    }

    #[test]
    fn names() {
        for (text, want) in [
            ("Shop.Test", Some("shop.test")),
            ("*.shop.test", Some("_.shop.test")),
            ("_.shop.test", Some("_.shop.test")),
            ("a/b", None),
            ("..", None),
            ("", None),
        ] {
            let name = text.parse::<CertificateName>().ok();
            assert_eq!(name.as_ref().map(CertificateName::as_str), want, "{text}");
        }
    }
}
