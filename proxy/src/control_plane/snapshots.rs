//! Builds the snapshot: what the data plane is to believe, out of the state, its activations and their health.

use std::collections::HashMap;
use std::sync::Arc;

use model::canary::{Assignment, Cohort, FleetSecret};
use model::health::{self, State as TargetState};
use model::name::{HostPattern, ServiceName};
use model::route::{HostMap, Lookup, RouteTable};
use model::service::Service;
use rustls::sign::CertifiedKey;

use super::activations::{Activation, Live};
use super::registry::View;
use crate::snapshot::{self, Slot, Snapshot};

/// The state of a target, by its id; one that is not known yet is believed to serve.
pub type States<'s> = &'s dyn Fn(u64) -> TargetState;

pub fn build(view: &View, states: States<'_>, secret: &FleetSecret) -> Snapshot {
    let owners = owners(view);
    let (mut routes, mut services) = (RouteTable::default(), HashMap::new());
    for (service, live) in view.services() {
        let route = Arc::new(snapshot::Service {
            name: service.name.as_str().into(),
            policy: service.policy.clone(),
            redirect_to_https: redirects(view, &owners, service),
            stable: slot(&live.stable, Cohort::Stable, states),
            canary: canary(service, live, states, secret),
        });
        if routes.bind(&service.policy.hosts, &service.policy.path_prefixes, &route).is_err() {
            // `changes` lets no conflict into the state, but a file may have been edited.
            tracing::error!(service = %service.name, "another service has its routes; it is not served");
            continue;
        }
        services.insert(Arc::clone(&route.name), route);
    }
    Snapshot { generation: view.state.generation, routes, services, certificates: certificates(view) }
}

fn slot(activation: &Activation, cohort: Cohort, states: States<'_>) -> Slot {
    let targets = &activation.release.targets;
    let known: Vec<_> = targets.iter().map(|target| states(target.id)).collect();
    let eligible = health::eligible(&known).into_iter().map(|index| Arc::clone(&targets[index])).collect();
    Slot { cohort, release: Arc::clone(&activation.release), targets: eligible }
}

fn canary(
    service: &Service,
    live: &Live,
    states: States<'_>,
    secret: &FleetSecret,
) -> Option<snapshot::Canary> {
    let (canary, activation) = (service.canary.as_ref()?, live.canary.as_ref()?);
    let assignment = Assignment::new(
        secret,
        service.name.as_str(),
        &canary.rollout,
        canary.weight,
        service.policy.visitor.clone(),
        canary.overrides.clone(),
    );
    Some(snapshot::Canary { slot: slot(activation, Cohort::Canary, states), assignment })
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

/// Services may share a host. Its certificate is then the one from files, before a placeholder, and that of
/// the service at the root, before those below.
fn certificates(view: &View) -> HostMap<Option<Arc<CertifiedKey>>> {
    let mut ranked: Vec<_> = view
        .services()
        .filter_map(|(service, live)| live.certificate.as_ref().map(|certificate| (service, certificate)))
        .collect();
    let has_root = |service: &Service| service.policy.path_prefixes.iter().any(|prefix| prefix.is_root());
    ranked.sort_by_key(|(service, certificate)| (certificate.is_placeholder(), !has_root(service)));
    let mut certificates: HostMap<Option<Arc<CertifiedKey>>> = HostMap::default();
    for (service, certificate) in ranked {
        for pattern in patterns(service) {
            certificates.bound_mut(pattern).get_or_insert_with(|| Arc::clone(&certificate.certified));
        }
    }
    certificates
}

/// `None` is any host.
fn patterns(service: &Service) -> Vec<Option<&HostPattern>> {
    let hosts = &service.policy.hosts;
    if hosts.is_empty() { vec![None] } else { hosts.iter().map(Some).collect() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use model::service::{Policy, Release, TlsPolicy};

    use super::super::activations::Factory;
    use super::super::certificates;
    use super::*;
    use crate::adapters::state_file::State;
    use crate::release::Endpoint;
    use crate::telemetry::metrics::Metrics;

    /// `(name, host, prefix, redirect)`; two targets each.
    async fn view(rows: &[(&str, &str, &str, Option<bool>)]) -> View {
        let factory = Factory { metrics: Metrics::new(1), workers: 1 };
        let (mut services, mut live) = (BTreeMap::new(), BTreeMap::new());
        for (name, host, prefix, redirect) in rows {
            let name: ServiceName = name.parse().unwrap();
            let policy = Policy {
                hosts: host.parse().into_iter().collect(),
                path_prefixes: vec![prefix.parse().unwrap()],
                tls: redirect.map(|redirect| TlsPolicy { redirect, files: None }),
                ..Policy::default()
            };
            let targets = vec!["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()];
            let release = Release { id: "r1".parse().unwrap(), targets, created_ms: 0 };
            let endpoints = (1..=2).map(|port| Endpoint::Tcp(([127, 0, 0, 1], port).into())).collect();
            let stable = factory.activate(&name, Cohort::Stable, &release, endpoints);
            let service = Service::new(name.clone(), policy, release);
            let certificate = certificates::current(&service, []).await;
            live.insert(name.clone(), Live { stable, canary: None, held: None, certificate });
            services.insert(name, service);
        }
        View { state: Arc::new(State { generation: 1, services }), live }
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
        let snapshot = build(&view, &|_| TargetState::Serving, &FleetSecret::new(b"x"));
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
    async fn ejected_targets_are_left_out_but_never_all() {
        let view = view(&[("shop", "shop.test", "/", None)]).await;
        let targets = view.live.values().next().unwrap().stable.release.targets.clone();
        for (ejected, want) in [(0, 2), (1, 1), (2, 2)] {
            let gone: Vec<u64> = targets.iter().take(ejected).map(|target| target.id).collect();
            let states = |id| if gone.contains(&id) { TargetState::Ejected } else { TargetState::Serving };
            let snapshot = build(&view, &states, &FleetSecret::new(b"x"));
            assert_eq!(route(&snapshot, "shop.test", "/").stable.targets.len(), want, "{ejected} ejected");
        }
    }
}
