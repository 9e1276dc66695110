//! What the data plane believes: one immutable value, replaced whole.
//!
//! A request loads it once, so that all its decisions rest on the same configuration. Nothing in it
//! changes in place; what changes by the request (who is in flight, counters) hangs below it in `release`
//! and `telemetry`.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use http::header::{HeaderName, HeaderValue};
use model::canary::{Assignment, Cohort};
use model::page::Pages;
use model::readers::Role;
use model::route::{HostMap, RouteTable};
use model::service::Policy;
use rustls::sign::CertifiedKey;

use crate::client_auth::{ClientAuth, HostAuth};
use crate::clock;
use crate::halt::Halt;
use crate::release::{Queue, Release, Target};
use crate::telemetry::metrics::{CertificateLabels, Gauges, Halted, Labels};

#[derive(Default)]
pub struct Snapshot {
    /// Grows by one with every accepted change.
    pub generation: u64,
    pub routes: RouteTable<Arc<Service>>,
    /// By name: those of `routes`.
    pub services: HashMap<Arc<str>, Arc<Service>>,
    /// By server name; every name of every service with TLS has one.
    pub certificates: HostMap<Option<Arc<CertifiedKey>>>,
    /// Names whose certificate is asked for at their first handshake; they have none in `certificates` until then.
    /// No policy offers that yet.
    pub on_demand: HostMap<bool>,
    /// How authorities are answered over HTTP.
    pub challenges: Challenges,
    /// When the certificates end; for the metrics.
    pub certificate_ends: Vec<CertificateEnd>,
    /// For clients that cannot have what is in `certificates`. Which certificate a name has is decided there; this one only
    /// stands in for it.
    pub rsa_certificates: HostMap<Option<Arc<CertifiedKey>>>,
    /// By server name: what handshakes ask their clients for.
    pub client_auth: HostMap<Option<Arc<HostAuth>>>,
}

/// When a certificate is not valid any more.
pub struct CertificateEnd {
    pub labels: CertificateLabels,
    /// Unix time in ms.
    pub not_after_ms: u64,
}

/// The answer to HTTP-01 challenges: the token and the thumbprint of our account (RFC 8555 §8.3). So any VM of a fleet
/// answers, whichever of them asked for the certificate.
#[derive(Default)]
pub struct Challenges {
    /// `None`: there is no account yet, or none is wanted.
    pub thumbprint: Option<Arc<str>>,
    /// Whether a host has automatic certificates; all others answer for themselves.
    pub hosts: HostMap<bool>,
}

/// A service as a request sees it.
pub struct Service {
    pub name: Arc<str>,
    pub policy: Policy,
    /// Plain HTTP is redirected to HTTPS: the service's own policy, or that of the service at the root of
    /// its first host.
    pub redirect_to_https: bool,
    pub stable: Slot,
    pub canary: Option<Canary>,
    /// For what Portcullis answers itself.
    pub pages: Option<Arc<Pages>>,
    pub log_fields: LogFields,
    /// Paused or stopped.
    pub halt: Option<Arc<Halt>>,
    /// Whose certificates its clients show.
    pub client_auth: Option<Arc<ClientAuth>>,
    /// `Strict-Transport-Security`.
    pub hsts: Option<HeaderValue>,
}

/// Header fields that the access log shows on request, each with its name there.
#[derive(Default)]
pub struct LogFields {
    pub request: Box<[(HeaderName, Box<str>)]>,
    pub response: Box<[(HeaderName, Box<str>)]>,
}

/// A release in the place where it gets its traffic.
pub struct Slot {
    pub cohort: Cohort,
    pub release: Arc<Release>,
    /// Writers that may be tried, never empty: the last one is never ejected.
    pub targets: Box<[Arc<Target>]>,
    /// Readers that are well; where there is none, the writers answer reads too.
    pub readers: Box<[Arc<Target>]>,
}

impl Slot {
    /// Where a request that wants `role` goes, and the line in front of it.
    pub fn side(&self, role: Role) -> (&[Arc<Target>], &Queue) {
        match role {
            Role::Reader if !self.readers.is_empty() => (&self.readers, &self.release.reader_queue),
            _ => (&self.targets, &self.release.queue),
        }
    }

    /// Those of `role` that may be tried.
    pub fn of(&self, role: Role) -> &[Arc<Target>] {
        match role {
            Role::Writer => &self.targets,
            Role::Reader => &self.readers,
        }
    }

    /// The lines that are open.
    pub fn queues(&self) -> impl Iterator<Item = &Queue> {
        let readers = (!self.readers.is_empty()).then_some(&self.release.reader_queue);
        std::iter::once(&self.release.queue).chain(readers)
    }
}

pub struct Canary {
    pub slot: Slot,
    pub assignment: Assignment,
}

impl Service {
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        std::iter::once(&self.stable).chain(self.canary.as_ref().map(|canary| &canary.slot))
    }
}

impl Snapshot {
    /// What the releases that serve hold now; what drains is not among them.
    pub fn gauges(&self) -> Gauges {
        let (mut in_flight, mut waiting) = (Vec::new(), Vec::new());
        for service in self.services.values() {
            for Slot { cohort, release, .. } in service.slots() {
                let labels = |target: &Arc<str>| Labels {
                    service: Arc::clone(&service.name),
                    release: Arc::clone(&release.id),
                    cohort: *cohort,
                    target: Arc::clone(target),
                };
                for target in &release.targets {
                    let count = target.in_flight();
                    in_flight.push((labels(&target.label), count.requests, count.sockets));
                }
                waiting.push((labels(&Labels::NO_TARGET.into()), release.waiting() as u64));
            }
        }
        let halted = self.services.values().filter_map(|service| {
            let halt = service.halt.as_ref()?;
            Some(Halted {
                service: Arc::clone(&service.name),
                is_pause: halt.rule.is_pause(),
                waiting: halt.waiting() as u64,
            })
        });
        let now_ms = u64::try_from(clock::unix_time().as_millis()).unwrap_or(u64::MAX);
        let left = |end: &CertificateEnd| {
            let left_ms = i128::from(end.not_after_ms) - i128::from(now_ms);
            (end.labels.clone(), i64::try_from(left_ms / 1000).unwrap_or(i64::MAX))
        };
        let certificates = self.certificate_ends.iter().map(left).collect();
        Gauges { in_flight, waiting, halted: halted.collect(), certificates }
    }
}

/// The snapshot's place: written by the control plane, read by every request.
#[derive(Clone, Default)]
pub struct Published(Arc<ArcSwap<Snapshot>>);

impl Published {
    /// Let the guard go before the first await.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.0.load()
    }

    pub fn publish(&self, snapshot: Snapshot) {
        self.0.store(Arc::new(snapshot));
    }
}
