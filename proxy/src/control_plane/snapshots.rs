//! Builds the snapshot: what the data plane is to believe, out of the state, its activations and their health.

use std::collections::HashMap;
use std::sync::Arc;

use http::header::{HeaderName, HeaderValue};
use model::canary::{Assignment, Cohort, FleetSecret};
use model::certificate::{CertificateName, is_automatic, is_obtainable};
use model::health::{self, Standing};
use model::name::{HostPattern, ServiceName};
use model::route::{HostMap, Lookup, RouteTable};
use model::service::{Recording, Service};
use rustls::sign::CertifiedKey;

use super::activations::{Activation, Live};
use super::certificates::managed::ManagedCertificate;
use super::client_auth;
use super::own_certificates;
use super::registry::View;
use crate::release::Target;
use crate::snapshot::{self, CertificateEnd, Challenges, LogFields, Slot, Snapshot};
use crate::telemetry::metrics::CertificateLabels;

/// How a target stands, by its id.
pub type Standings<'s> = &'s dyn Fn(u64) -> Standing;

pub fn build(view: &View, standings: Standings<'_>, secret: &FleetSecret) -> Snapshot {
    let owners = owners(view);
    let (mut routes, mut services) = (RouteTable::default(), HashMap::new());
    for (service, live) in view.services() {
        let route = Arc::new(snapshot::Service {
            name: service.name.as_str().into(),
            policy: service.policy.clone(),
            redirect_to_https: redirects(view, &owners, service),
            stable: slot(&live.stable, Cohort::Stable, standings),
            canary: canary(service, live, standings, secret),
            pages: live.pages.as_ref().map(|pages| Arc::clone(&pages.pages)),
            log_fields: log_fields(&service.policy.recording),
            halt: live.halt.clone(),
            client_auth: live.client_auth.as_ref().map(|one| Arc::clone(&one.auth)),
            hsts: hsts(service),
        });
        if routes.bind(&service.policy.hosts, &service.policy.path_prefixes, &route).is_err() {
            // `changes` lets no conflict into the state, but a file may have been edited.
            tracing::error!(service = %service.name, "another service has its routes; it is not served");
            continue;
        }
        services.insert(Arc::clone(&route.name), route);
    }
    let certificates = certificates(view);
    Snapshot {
        generation: view.state.generation,
        routes,
        services,
        certificates: certificates.first,
        on_demand: HostMap::default(),
        challenges: challenges(view),
        certificate_ends: certificate_ends(view),
        rsa_certificates: certificates.rsa,
        client_auth: client_auth::by_host(view),
    }
}

fn hsts(service: &Service) -> Option<HeaderValue> {
    let hsts = service.policy.tls.as_ref()?.hsts.as_ref()?;
    HeaderValue::try_from(hsts.to_string()).ok()
}

fn log_fields(recording: &Recording) -> LogFields {
    let of = |prefix: &str, names: &[String]| {
        let field = |name: &String| {
            Some((HeaderName::try_from(name).ok()?, format!("{prefix}{}", name.replace('-', "_")).into()))
        };
        names.iter().filter_map(field).collect()
    };
    LogFields {
        request: of("req_", &recording.request_headers),
        response: of("resp_", &recording.response_headers),
    }
}

fn slot(activation: &Activation, cohort: Cohort, standings: Standings<'_>) -> Slot {
    let release = &activation.release;
    let chosen = |targets: &[Arc<Target>], rule: fn(&[Standing]) -> Vec<usize>| {
        let known = standings_of(targets, standings);
        rule(&known).into_iter().map(|index| Arc::clone(&targets[index])).collect()
    };
    Slot {
        cohort,
        release: Arc::clone(release),
        targets: chosen(release.writers(), health::eligible),
        readers: chosen(release.readers(), health::well),
    }
}

fn standings_of(targets: &[Arc<Target>], standings: Standings<'_>) -> Vec<Standing> {
    targets.iter().map(|target| standings(target.id)).collect()
}

/// Whether the release is known to answer nobody: readers alone cannot keep a visitor.
pub fn has_fallen(activation: &Activation, standings: Standings<'_>) -> bool {
    health::has_fallen(&standings_of(activation.release.writers(), standings))
}

/// `None` also for one that has fallen: stable has its share until it is back.
fn canary(
    service: &Service,
    live: &Live,
    standings: Standings<'_>,
    secret: &FleetSecret,
) -> Option<snapshot::Canary> {
    let (canary, activation) = (service.canary.as_ref()?, live.canary.as_ref()?);
    if has_fallen(activation, standings) {
        return None;
    }
    let assignment = Assignment::new(
        secret,
        service.name.as_str(),
        &canary.rollout,
        canary.weight,
        service.policy.visitor.clone(),
        canary.overrides.clone(),
    );
    Some(snapshot::Canary { slot: slot(activation, Cohort::Canary, standings), assignment })
}

fn owners(view: &View) -> RouteTable<ServiceName> {
    let mut owners = RouteTable::default();
    for (service, _) in view.services() {
        let _ = owners.bind(&service.policy.hosts, &service.policy.path_prefixes, &service.name);
    }
    owners
}

/// A service below a path of another one's host obeys that one: a browser knows one policy per host.
fn redirects(view: &View, owners: &RouteTable<ServiceName>, service: &Service) -> bool {
    if let Some(tls) = &service.policy.tls {
        return tls.redirect;
    }
    let first = service.policy.hosts.first().map(|host| host.sample().to_string()).unwrap_or_default();
    match owners.lookup(&first, "/") {
        Lookup::Found { route: root, .. } => {
            let root = view.state.services.get(root);
            root.and_then(|root| root.policy.tls.as_ref()).is_some_and(|tls| tls.redirect)
        }
        Lookup::UnknownHost | Lookup::UnknownPath => false,
    }
}

/// What each name is shown, and beside it the RSA certificate for clients that cannot have that.
#[derive(Default)]
struct Certificates {
    first: HostMap<Option<Arc<CertifiedKey>>>,
    rsa: HostMap<Option<Arc<CertifiedKey>>>,
}

impl Certificates {
    /// Unless the name has one.
    fn show(
        &mut self,
        name: Option<&HostPattern>,
        first: &Arc<CertifiedKey>,
        rsa: Option<&Arc<CertifiedKey>>,
    ) {
        let known = self.first.bound_mut(name);
        if known.is_none() {
            *known = Some(Arc::clone(first));
            // Also where there is none, so that no wildcard's is taken for it.
            *self.rsa.bound_mut(name) = rsa.cloned();
        }
    }
}

/// Services may share a host. Its certificate is then the one from files, before a placeholder, and that of
/// the service at the root, before those below. What names below a service's own are shown comes last.
fn certificates(view: &View) -> Certificates {
    let mut ranked: Vec<_> = view
        .services()
        .filter_map(|(service, live)| live.certificate.as_ref().map(|certificate| (service, certificate)))
        .collect();
    let has_root = |service: &Service| service.policy.path_prefixes.iter().any(|prefix| prefix.is_root());
    ranked.sort_by_key(|(service, certificate)| (certificate.is_placeholder(), !has_root(service)));
    let (mut certificates, mut further) = (Certificates::default(), Vec::new());
    for (service, certificate) in ranked {
        let own = certificate.own().filter(|own| !own.is_empty());
        let shown = own.map(|own| own.shown(&service.policy.hosts)).unwrap_or_default();
        if shown.is_empty() {
            for name in patterns(service) {
                // One that came by itself takes the place of a placeholder.
                let managed = name
                    .filter(|_| certificate.is_placeholder())
                    .and_then(|host| view.managed.for_host(host));
                certificates.show(
                    name,
                    managed.map_or(&certificate.certified, |managed| &managed.certified),
                    None,
                );
            }
        }
        let (hosts, below): (Vec<_>, Vec<_>) =
            shown.into_iter().partition(|shown| patterns(service).contains(&shown.name.as_ref()));
        hosts
            .iter()
            .for_each(|shown| certificates.show(shown.name.as_ref(), &shown.first, shown.rsa.as_ref()));
        further.extend(below);
    }
    for shown in further {
        certificates.show(shown.name.as_ref(), &shown.first, shown.rsa.as_ref());
    }
    certificates
}

/// A host answers authorities by itself unless one of its services has automatic certificates.
fn challenges(view: &View) -> Challenges {
    let mut challenges =
        Challenges { thumbprint: view.managed.thumbprint.clone(), hosts: HostMap::default() };
    for (service, _) in view.services() {
        for pattern in patterns(service) {
            let is_provable = pattern.is_some_and(is_obtainable);
            *challenges.hosts.bound_mut(pattern) |= is_provable && is_automatic(&service.policy);
        }
    }
    challenges
}

fn certificate_ends(view: &View) -> Vec<CertificateEnd> {
    let managed = |(name, one): (&CertificateName, &ManagedCertificate)| {
        let service = view
            .services()
            .find(|(service, _)| one.hosts.iter().any(|host| service.policy.hosts.contains(host)));
        let service = service.map_or("", |(service, _)| service.name.as_str());
        let labels = CertificateLabels {
            name: name.as_str().into(),
            service: service.into(),
            source: Arc::clone(&one.directory),
        };
        CertificateEnd { labels, not_after_ms: one.not_after_ms }
    };
    let own = view.services().flat_map(|(service, live)| {
        let pairs =
            live.certificate.iter().flat_map(|certificate| certificate.own()).flat_map(|own| own.pairs());
        pairs.map(|pair| CertificateEnd {
            labels: CertificateLabels {
                name: own_certificates::name(pair).into(),
                service: service.name.as_str().into(),
                source: pair.files.certificate.to_string_lossy().into(),
            },
            not_after_ms: pair.facts.not_after_ms,
        })
    });
    view.managed.certificates.iter().map(managed).chain(own).collect()
}

/// `None` is any host.
pub(super) fn patterns(service: &Service) -> Vec<Option<&HostPattern>> {
    let hosts = &service.policy.hosts;
    if hosts.is_empty() { vec![None] } else { hosts.iter().map(Some).collect() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use model::health::State;
    use model::readers::Role;
    use model::service::{Policy, Release, TlsPolicy};

    use super::super::activations::Factory;
    use super::super::certificates;
    use super::*;
    use crate::adapters::state_file;
    use crate::release::Endpoint;
    use crate::telemetry::metrics::Metrics;

    /// `(name, host, prefix, redirect)`; two targets each.
    async fn view(rows: &[(&str, &str, &str, Option<bool>)]) -> View {
        let factory = Factory::new(Metrics::new(1), 1);
        let (mut services, mut live) = (BTreeMap::new(), BTreeMap::new());
        for (name, host, prefix, redirect) in rows {
            let name: ServiceName = name.parse().unwrap();
            let policy = Policy {
                hosts: host.parse().into_iter().collect(),
                path_prefixes: vec![prefix.parse().unwrap()],
                tls: redirect.map(|redirect| TlsPolicy { redirect, ..TlsPolicy::default() }),
                ..Policy::default()
            };
            let targets = vec!["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()];
            let release = Release { id: "r1".parse().unwrap(), targets, created_ms: 0, readers: Vec::new() };
            let endpoints = (1..=2).map(|port| Endpoint::Tcp(([127, 0, 0, 1], port).into())).collect();
            let stable = factory.activate(&name, Cohort::Stable, &release, endpoints);
            let service = Service::new(name.clone(), policy, release);
            let certificate = certificates::current(&service, []).await;
            let live_one = Live {
                stable,
                canary: None,
                held: None,
                certificate,
                pages: None,
                halt: None,
                client_auth: None,
            };
            live.insert(name.clone(), live_one);
            services.insert(name, service);
        }
        let state = Arc::new(state_file::State { generation: 1, services, ..Default::default() });
        View { state, live, ..View::default() }
    }

    fn route<'s>(snapshot: &'s Snapshot, host: &str, path: &str) -> &'s snapshot::Service {
        match snapshot.routes.lookup(host, path) {
            Lookup::Found { route, .. } => route,
            _ => panic!("{host}{path} leads nowhere"),
        }
    }

    #[tokio::test]
    async fn the_redirect_is_inherited_from_the_root_of_the_host() {
        let view = view(&[
            ("shop", "shop.test", "/", Some(true)),
            ("admin", "shop.test", "/admin", None),
            ("api", "shop.test", "/api", Some(false)),
            ("blog", "blog.test", "/", None),
            ("any", "", "/", None),
        ])
        .await;
        let snapshot = build(&view, &|_| Standing::BELIEVED, &FleetSecret::new(b"x"));
        for (host, path, want) in [
            ("shop.test", "/", true),
            ("shop.test", "/admin", true),
            ("shop.test", "/api", false),
            ("blog.test", "/", false),
            ("other.test", "/", false),
        ] {
            assert_eq!(route(&snapshot, host, path).redirect_to_https, want, "{host}{path}");
        }
        assert!(matches!(snapshot.certificates.best("shop.test"), Some(Some(_))));
        assert!(snapshot.certificates.best("blog.test").is_none());
    }

    #[tokio::test]
    async fn readers_are_left_out_one_by_one_and_writers_never_all() {
        let mut view = view(&[("shop", "shop.test", "/", None)]).await;
        let live = view.live.values_mut().next().unwrap();
        let readers = vec!["127.0.0.1:3".parse().unwrap(), "127.0.0.1:4".parse().unwrap()];
        let record = Release { readers, ..live.stable.record.clone() };
        let endpoints = (1..=4).map(|port| Endpoint::Tcp(([127, 0, 0, 1], port).into())).collect();
        let factory = Factory::new(Metrics::new(1), 1);
        live.stable = factory.activate(&"shop".parse().unwrap(), Cohort::Stable, &record, endpoints);
        let targets = live.stable.release.targets.clone();
        for (ejected, writers, readers) in [
            (&[][..], &["127.0.0.1:1", "127.0.0.1:2"][..], &["127.0.0.1:3", "127.0.0.1:4"][..]),
            (&[0, 2], &["127.0.0.1:2"], &["127.0.0.1:4"]),
            (&[2, 3], &["127.0.0.1:1", "127.0.0.1:2"], &[]),
            (&[0, 1], &["127.0.0.1:1", "127.0.0.1:2"], &["127.0.0.1:3", "127.0.0.1:4"]),
            (&[0, 1, 2, 3], &["127.0.0.1:1", "127.0.0.1:2"], &[]),
        ] {
            let gone: Vec<u64> = ejected.iter().map(|index: &usize| targets[*index].id).collect();
            let standings = |id| if gone.contains(&id) { EJECTED } else { Standing::BELIEVED };
            let snapshot = build(&view, &standings, &FleetSecret::new(b"x"));
            let slot = &route(&snapshot, "shop.test", "/").stable;
            let labels = |role| -> Vec<&str> { slot.of(role).iter().map(|one| &*one.label).collect() };
            assert_eq!(labels(Role::Writer), writers, "{ejected:?}");
            assert_eq!(labels(Role::Reader), readers, "{ejected:?}");
            let reads: Vec<&str> = slot.side(Role::Reader).0.iter().map(|one| &*one.label).collect();
            assert_eq!(reads, if readers.is_empty() { writers } else { readers }, "{ejected:?}");
            assert_eq!(slot.queues().count(), if readers.is_empty() { 1 } else { 2 }, "{ejected:?}");
        }
    }

    #[tokio::test]
    async fn ejected_targets_are_left_out_but_never_all() {
        let view = view(&[("shop", "shop.test", "/", None)]).await;
        let targets = view.live.values().next().unwrap().stable.release.targets.clone();
        for (ejected, want) in [(0, 2), (1, 1), (2, 2)] {
            let gone: Vec<u64> = targets.iter().take(ejected).map(|target| target.id).collect();
            let standings = |id| if gone.contains(&id) { EJECTED } else { Standing::BELIEVED };
            let snapshot = build(&view, &standings, &FleetSecret::new(b"x"));
            assert_eq!(route(&snapshot, "shop.test", "/").stable.targets.len(), want, "{ejected} ejected");
        }
    }

    const EJECTED: Standing = Standing { state: State::Ejected, fallen: true };
    const LAST_ONE_DOWN: Standing = Standing { state: State::Suspect, fallen: true };

    #[tokio::test]
    async fn a_dead_canary_leaves_its_share_to_stable() {
        let mut view = view(&[("shop", "shop.test", "/", None)]).await;
        let name: ServiceName = "shop".parse().unwrap();
        let mut state = (*view.state).clone();
        let release = Release { id: "c".parse().unwrap(), ..state.services[&name].stable.clone() };
        let factory = Factory::new(Metrics::new(1), 1);
        let endpoints = (3..=4).map(|port| Endpoint::Tcp(([127, 0, 0, 1], port).into())).collect();
        let activation = factory.activate(&name, Cohort::Canary, &release, endpoints);
        let targets: Vec<u64> = activation.release.targets.iter().map(|target| target.id).collect();
        view.live.get_mut(&name).unwrap().canary = Some(activation);
        state.services.get_mut(&name).unwrap().canary = Some(model::service::Canary {
            release,
            weight: model::weight::Weight::ALL,
            rollout: "c".into(),
            overrides: model::canary::Overrides::default(),
        });
        view.state = Arc::new(state);
        for (down, want) in [(&[][..], Some(2)), (&[EJECTED], Some(1)), (&[EJECTED, LAST_ONE_DOWN], None)] {
            let standings = |id| {
                let index = targets.iter().position(|target| *target == id);
                index.and_then(|index| down.get(index)).copied().unwrap_or(Standing::BELIEVED)
            };
            let snapshot = build(&view, &standings, &FleetSecret::new(b"x"));
            let shop = route(&snapshot, "shop.test", "/");
            assert_eq!(shop.canary.as_ref().map(|canary| canary.slot.targets.len()), want, "{down:?}");
            assert_eq!(shop.stable.targets.len(), 2);
        }
    }
}
