//! Releases at work: which runtime object stands behind each slot of a service, and how it got there.
//!
//! What the slots should hold is decided in `changes`; this follows, and tells which activations have lost
//! their traffic and must be drained.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use model::canary::Cohort;
use model::name::{ServiceName, TargetAddress};
use model::service::{Release as Record, Service};

use super::certificates::ServiceCertificate;
use super::client_auth::ServiceClientAuth;
use super::pages::ServicePages;
use crate::halt::Halt;
use crate::release::{Admission, Endpoint, InFlightCount, Queue, Release, Target};
use crate::telemetry::metrics::{Labels, Metrics};

/// A release that is, was or is about to be in a slot.
#[derive(Clone)]
pub struct Activation {
    pub record: Record,
    pub release: Arc<Release>,
    /// Closed activations of the same targets. What is still in flight there may stay: its process serves on.
    earlier: Vec<Arc<Release>>,
}

/// A service at work.
#[derive(Clone)]
pub struct Live {
    pub stable: Activation,
    pub canary: Option<Activation>,
    pub held: Option<Activation>,
    pub certificate: Option<ServiceCertificate>,
    pub pages: Option<ServicePages>,
    /// Paused or stopped.
    pub halt: Option<Arc<Halt>>,
    pub client_auth: Option<ServiceClientAuth>,
}

impl Live {
    /// The same releases, with nothing in flight: what is in flight now stays where it is, to be closed and drained.
    pub fn renew(&mut self) {
        for activation in [Some(&mut self.stable), self.canary.as_mut()].into_iter().flatten() {
            let renewed = activation.release.renewed();
            activation.earlier.push(std::mem::replace(&mut activation.release, renewed));
        }
    }

    /// The halt that `rule` orders: the one at work, if it orders the same.
    pub fn halt(before: Option<&Self>, rule: Option<&model::halt::Halt>) -> Option<Arc<Halt>> {
        let rule = rule?;
        let current = before.and_then(|live| live.halt.as_ref()).filter(|halt| halt.rule == *rule);
        Some(current.cloned().unwrap_or_else(|| Halt::new(rule.clone())))
    }

    /// Closed activations of what serves, each once, that may still have something in flight.
    pub fn closed(&self) -> Vec<Arc<Release>> {
        let mut closed: Vec<Arc<Release>> = Vec::new();
        for release in std::iter::once(&self.stable).chain(&self.canary).flat_map(|one| &one.earlier) {
            if !closed.iter().any(|known| Arc::ptr_eq(known, release)) {
                closed.push(Arc::clone(release));
            }
        }
        closed
    }
}

/// Makes targets that count into the right series.
pub struct Factory {
    pub metrics: Arc<Metrics>,
    workers: usize,
    /// Those of services that are at work.
    admissions: Mutex<BTreeMap<ServiceName, Weak<Admission>>>,
}

impl Factory {
    pub fn new(metrics: Arc<Metrics>, workers: usize) -> Self {
        Self { metrics, workers, admissions: Mutex::default() }
    }

    /// The same one for all activations of a service.
    fn admission(&self, service: &ServiceName) -> Arc<Admission> {
        let mut admissions = self.admissions.lock().unwrap_or_else(PoisonError::into_inner);
        admissions.retain(|_, admission| admission.strong_count() > 0);
        if let Some(admission) = admissions.get(service).and_then(Weak::upgrade) {
            return admission;
        }
        let admission = Admission::new();
        admissions.insert(service.clone(), Arc::downgrade(&admission));
        admission
    }

    /// `endpoints` are those of all of the record's targets, in order.
    pub fn activate(
        &self,
        service: &ServiceName,
        cohort: Cohort,
        record: &Record,
        endpoints: Vec<Endpoint>,
    ) -> Activation {
        let admission = self.admission(service);
        let stats = |label: &str| {
            self.metrics.target(&Labels {
                service: service.as_str().into(),
                release: record.id.as_str().into(),
                cohort,
                target: label.into(),
            })
        };
        let target = |(address, endpoint): (&TargetAddress, Endpoint)| {
            let label = ToString::to_string(address);
            let seats = admission.seats(&endpoint);
            Target::with_seats(&label, endpoint, stats(&label), self.workers, seats)
        };
        let mut writers: Vec<_> = record.all_targets().zip(endpoints).map(target).collect();
        let readers = writers.split_off(record.targets.len());
        let (queue, unseated) = (Queue::new(Arc::clone(&admission)), stats(Labels::NO_TARGET));
        let release = Release::with_readers(record.id.as_str(), writers, readers, queue, unseated);
        Activation { record: record.clone(), release, earlier: Vec::new() }
    }

    /// The slots of `service`, out of what there was and what is `known` besides (just gated, or kept by the
    /// operation). `None` if the stable release is neither.
    pub fn follow(&self, service: &Service, before: Option<&Live>, known: &[Activation]) -> Option<Live> {
        let slots = |live: &Live| {
            let rest = live.canary.iter().chain(&live.held).cloned();
            std::iter::once(live.stable.clone()).chain(rest).collect::<Vec<_>>()
        };
        let candidates: Vec<Activation> =
            known.iter().cloned().chain(before.map(slots).unwrap_or_default()).collect();
        let find = |record: &Record| candidates.iter().find(|one| one.record == *record);
        let serving = |record: &Record, cohort, current: Option<&Activation>| {
            let mut activation = match current.filter(|current| current.record == *record) {
                Some(current) => current.clone(),
                None => self.ready(service, cohort, find(record)?, known),
            };
            activation.adopt(before, cohort);
            Some(activation)
        };
        let stable = serving(&service.stable, Cohort::Stable, before.map(|live| &live.stable))?;
        let canary = service.canary.as_ref().and_then(|canary| {
            serving(&canary.release, Cohort::Canary, before.and_then(|live| live.canary.as_ref()))
        });
        let held = service.held.as_ref().and_then(|record| find(record).cloned());
        Some(Live { stable, canary, held, certificate: None, pages: None, halt: None, client_auth: None })
    }

    /// A gated activation as it is; any other one anew, because it is closed or counts as another cohort.
    fn ready(
        &self,
        service: &Service,
        cohort: Cohort,
        found: &Activation,
        known: &[Activation],
    ) -> Activation {
        let fresh = known.iter().any(|one| Arc::ptr_eq(&one.release, &found.release));
        if fresh && !found.release.is_closed() {
            return found.clone();
        }
        self.activate(&service.name, cohort, &found.record, found.endpoints())
    }
}

impl Activation {
    /// Takes over what other activations of the same targets in serving slots still hold.
    fn adopt(&mut self, before: Option<&Live>, cohort: Cohort) {
        let serving = before.into_iter().flat_map(|live| {
            // A canary that starts on stable's own targets leaves them to stable.
            let stable = (cohort == Cohort::Stable).then_some(&live.stable);
            stable.into_iter().chain(&live.canary)
        });
        for other in serving {
            if other.runs_where(self) && !Arc::ptr_eq(&other.release, &self.release) {
                self.earlier.push(Arc::clone(&other.release));
                self.earlier.extend(other.earlier.iter().cloned());
            }
        }
        self.earlier.retain(|release| release.in_flight().total() > 0 || !release.is_closed());
    }

    /// Whether both stand for the same processes. A name may lead to another address than before: then the
    /// old process is as good as replaced, and must be drained.
    fn runs_where(&self, other: &Self) -> bool {
        self.record.has_targets_of(&other.record) && self.has_endpoints(&other.record, &other.endpoints())
    }

    /// Whether each target of `record`, which are our own in any order, is at work at its endpoint.
    pub fn has_endpoints(&self, record: &Record, endpoints: &[Endpoint]) -> bool {
        let own = || self.record.all_targets().zip(self.release.targets.iter());
        record.all_targets().zip(endpoints).all(|(address, endpoint)| {
            own().any(|(own_address, target)| own_address == address && target.endpoint == *endpoint)
        })
    }

    /// In the order of the record's targets.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.release.targets.iter().map(|target| target.endpoint.clone()).collect()
    }

    /// The current one first.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Release>> {
        std::iter::once(&self.release).chain(&self.earlier)
    }

    /// What the `index`th target holds.
    pub fn in_flight(&self, index: usize) -> InFlightCount {
        // Earlier ones may have had the same targets in another order.
        let label = self.release.targets.get(index).map(|target| &target.label);
        let targets = self.all().flat_map(|release| release.targets.iter());
        let counts = targets.filter(|target| Some(&target.label) == label);
        counts.map(|target| target.in_flight()).fold(InFlightCount::default(), |sum, count| InFlightCount {
            requests: sum.requests + count.requests,
            sockets: sum.sockets + count.sockets,
        })
    }
}

/// What a change took the traffic away from.
#[derive(Default)]
pub struct Replaced {
    /// No new requests; those in flight stay as long as they like.
    pub closed: Vec<Arc<Release>>,
    /// To be drained as well.
    pub drained: Vec<Arc<Release>>,
}

/// Compares the serving slots.
pub fn replaced(before: Option<&Live>, after: Option<&Live>) -> Replaced {
    let serving = |live: &'_ Live| -> Vec<Activation> {
        std::iter::once(&live.stable).chain(&live.canary).cloned().collect()
    };
    let before = before.map(serving).unwrap_or_default();
    let after = after.map(serving).unwrap_or_default();
    let is_current = |release: &Arc<Release>| after.iter().any(|one| Arc::ptr_eq(&one.release, release));
    let is_kept = |release: &Arc<Release>| {
        after.iter().flat_map(Activation::all).any(|kept| Arc::ptr_eq(kept, release))
    };
    // One that was closed before and has emptied since is only forgotten.
    let is_over = |release: &Release| release.is_closed() && release.in_flight().total() == 0;
    let mut replaced = Replaced::default();
    for release in before.iter().flat_map(Activation::all).filter(|release| !is_over(release)) {
        if !is_current(release) {
            replaced.closed.push(Arc::clone(release));
        }
        if !is_kept(release) {
            replaced.drained.push(Arc::clone(release));
        }
    }
    replaced
}

#[cfg(test)]
mod tests {
    use model::service::{Canary, Policy};

    use super::*;

    fn factory() -> Factory {
        Factory::new(Metrics::new(1), 1)
    }

    fn record(id: &str, port: u16) -> Record {
        let target = format!("127.0.0.1:{port}").parse().unwrap();
        Record { id: id.parse().unwrap(), targets: vec![target], created_ms: 0, readers: Vec::new() }
    }

    fn gated(factory: &Factory, record: &Record, cohort: Cohort) -> Activation {
        at(factory, record, cohort, [127, 0, 0, 1])
    }

    /// As if the names of `record` led to `ip`.
    fn at(factory: &Factory, record: &Record, cohort: Cohort, ip: [u8; 4]) -> Activation {
        let endpoint = |n: u16| Endpoint::Tcp((ip, n).into());
        let endpoints = (1..).take(record.targets.len()).map(endpoint).collect();
        factory.activate(&"shop".parse().unwrap(), cohort, record, endpoints)
    }

    struct World {
        factory: Factory,
        service: Service,
        live: Live,
    }

    fn world() -> World {
        let (factory, record) = (factory(), record("r1", 1));
        let service = Service::new("shop".parse().unwrap(), Policy::default(), record.clone());
        let first = gated(&factory, &record, Cohort::Stable);
        let live = factory.follow(&service, None, &[first]).unwrap();
        World { factory, service, live }
    }

    impl World {
        /// Moves on, and returns the ids of what is closed and what is drained.
        fn follow(&mut self, known: &[Activation]) -> (Vec<String>, Vec<String>) {
            let next = self.factory.follow(&self.service, Some(&self.live), known).unwrap();
            let replaced = replaced(Some(&self.live), Some(&next));
            self.live = next;
            replaced.closed.iter().for_each(|release| release.close());
            let ids = |releases: &[Arc<Release>]| releases.iter().map(|r| r.id.to_string()).collect();
            (ids(&replaced.closed), ids(&replaced.drained))
        }
    }

    #[test]
    fn a_cutover_drains_what_it_replaces_and_a_rollback_activates_it_anew() {
        let mut world = world();
        let first = Arc::clone(&world.live.stable.release);
        let second = gated(&world.factory, &record("r2", 2), Cohort::Stable);
        world.service.cut_over(second.record.clone());
        assert_eq!(world.follow(std::slice::from_ref(&second)), (vec!["r1".into()], vec!["r1".into()]));
        assert!(Arc::ptr_eq(&world.live.stable.release, &second.release), "what was gated serves");
        assert!(Arc::ptr_eq(&world.live.held.as_ref().unwrap().release, &first));

        world.service.roll_back();
        assert_eq!(world.follow(&[]), (vec!["r2".into()], vec!["r2".into()]));
        assert!(!Arc::ptr_eq(&world.live.stable.release, &first) && !world.live.stable.release.is_closed());
        assert_eq!(&*world.live.stable.release.id, "r1");
    }

    #[test]
    fn a_promoted_canary_keeps_what_is_in_flight_on_it() {
        let mut world = world();
        let canary = gated(&world.factory, &record("c", 2), Cohort::Canary);
        world.service.canary = Some(Canary {
            release: canary.record.clone(),
            weight: model::weight::Weight::ALL,
            rollout: String::new(),
            overrides: model::canary::Overrides::default(),
        });
        assert_eq!(world.follow(std::slice::from_ref(&canary)), (vec![], vec![]));
        let socket = canary.release.enter(&canary.release.targets[0], 0).unwrap().into_socket();

        world.service.promote();
        let (closed, drained) = world.follow(&[]);
        assert_eq!((closed, drained), (vec!["r1".into(), "c".into()], vec!["r1".into()]));
        assert_eq!(world.live.stable.in_flight(0).sockets, 1);
        drop(socket);
        assert_eq!(world.follow(&[]), (vec![], vec![]));
        assert_eq!(world.live.stable.all().count(), 1, "the empty one is forgotten");
    }

    #[test]
    fn a_pause_tells_what_was_in_flight_from_what_comes_later() {
        let mut world = world();
        let first = Arc::clone(&world.live.stable.release);
        let request = first.enter(&first.targets[0], 0).unwrap();
        let mut next = world.live.clone();
        next.renew();
        let replaced = replaced(Some(&world.live), Some(&next));
        assert!(Arc::ptr_eq(&replaced.closed[0], &first) && replaced.drained.is_empty());
        replaced.closed[0].close();
        world.live = next;
        assert!(Arc::ptr_eq(&world.live.closed()[0], &first));
        let stable = &world.live.stable;
        assert_eq!((stable.release.in_flight().total(), stable.in_flight(0).requests), (0, 1));

        // A deploy in the pause drains it with what it replaces.
        let second = gated(&world.factory, &record("r2", 2), Cohort::Stable);
        world.service.cut_over(second.record.clone());
        let (closed, drained) = world.follow(&[second]);
        assert_eq!((closed.len(), drained.len()), (2, 2));
        drop(request);
    }

    #[test]
    fn another_label_on_the_same_targets_interrupts_nobody() {
        let mut world = world();
        let renamed = gated(&world.factory, &record("r2", 1), Cohort::Stable);
        world.service.cut_over(renamed.record.clone());
        assert_eq!(world.follow(&[renamed]), (vec!["r1".into()], vec![]));
        assert!(world.live.held.is_none());
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_another_process() {
        let mut world = world();
        let moved = at(&world.factory, &record("r2", 1), Cohort::Stable, [127, 0, 0, 2]);
        world.service.cut_over(moved.record.clone());
        assert_eq!(world.follow(&[moved]), (vec!["r1".into()], vec!["r1".into()]));
        assert_eq!(world.live.stable.endpoints(), [Endpoint::Tcp(([127, 0, 0, 2], 1).into())]);
    }

    #[test]
    fn what_nobody_knows_cannot_serve() {
        let mut world = world();
        world.service.cut_over(record("r2", 2));
        assert!(world.factory.follow(&world.service, Some(&world.live), &[]).is_none());
    }
}
