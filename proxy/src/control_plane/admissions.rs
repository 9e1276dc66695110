//! Publishes a snapshot, and lets the lines in front of the targets follow it.
//!
//! Lines are opened before the snapshot that leads to them is there, and ended after: whoever finds a line
//! ended finds a newer snapshot too.

use std::sync::Arc;

use model::readers::Role;
use model::slow_start;

use super::snapshots::Standings;
use crate::release::{Admission, Endpoint, Queue, Target};
use crate::snapshot::{Published, Slot, Snapshot};

pub fn publish(published: &Published, next: Snapshot, standings: Standings<'_>) {
    let before = Arc::clone(&published.load());
    for service in next.services.values() {
        let was = before.services.get(&service.name);
        for slot in service.slots() {
            let admission = slot.release.queue.admission();
            let concurrency = &service.policy.concurrency;
            admission.limit(concurrency.max_in_flight, concurrency.slow_start);
            let predecessor = was.and_then(|was| was.slots().find(|one| one.cohort == slot.cohort));
            for role in [Role::Writer, Role::Reader] {
                let before = predecessor.map_or(&[][..], |before| before.of(role));
                spare_who_joins(admission, before, slot.of(role), standings);
            }
            let seats = |targets: &[Arc<Target>]| targets.iter().map(|one| Arc::clone(&one.seats)).collect();
            admission.open(&slot.release.queue, seats(&slot.targets));
            if !slot.readers.is_empty() {
                admission.open(&slot.release.reader_queue, seats(&slot.readers));
            }
        }
    }
    published.publish(next);
    let now = published.load();
    for (name, service) in &before.services {
        let open = now.services.get(name).into_iter().flat_map(|service| service.slots());
        let open: Vec<&Queue> = open.flat_map(Slot::queues).collect();
        service.slots().for_each(|slot| slot.release.queue.admission().keep_only(&open));
    }
}

/// A target that was not tried before, beside others that were and are well, starts slowly.
fn spare_who_joins(
    admission: &Admission,
    before: &[Arc<Target>],
    now: &[Arc<Target>],
    standings: Standings<'_>,
) {
    let is_well = |endpoint: &&Endpoint| {
        let mut same = now.iter().filter(|target| target.endpoint == **endpoint);
        same.any(|target| !standings(target.id).fallen)
    };
    let before: Vec<&Endpoint> = before.iter().map(|target| &target.endpoint).filter(is_well).collect();
    let endpoints: Vec<&Endpoint> = now.iter().map(|target| &target.endpoint).collect();
    for (target, joins) in now.iter().zip(slow_start::joining(&before, &endpoints)) {
        if joins {
            admission.begin_slow_start(&target.seats);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use model::canary::{Assignment, Cohort, FleetSecret, Overrides, VisitorSource};
    use model::health::Standing;
    use model::service::{Concurrency, Policy};
    use model::weight::Weight;

    use super::*;
    use crate::release::{CannotJoin, Release, Turn};
    use crate::snapshot::Canary;
    use crate::telemetry::metrics::TargetStats;

    fn stats() -> Arc<TargetStats> {
        Arc::new(TargetStats::new(1))
    }

    fn release(admission: &Arc<Admission>, ports: &[u16]) -> Arc<Release> {
        let target = |port: &u16| {
            let endpoint = Endpoint::Tcp(([127, 0, 0, 1], *port).into());
            let seats = admission.seats(&endpoint);
            Target::with_seats(&port.to_string(), endpoint, stats(), 1, seats)
        };
        let targets = ports.iter().map(target).collect();
        Release::with_queue("r", targets, Queue::new(Arc::clone(admission)), stats())
    }

    /// `release` with those of its targets that may be tried, four seats each.
    fn slot(cohort: Cohort, release: &Arc<Release>, eligible: &[usize]) -> Slot {
        let targets = eligible.iter().map(|index| Arc::clone(&release.targets[*index])).collect();
        Slot { cohort, release: Arc::clone(release), targets, readers: Box::default() }
    }

    fn snapshot(stable: Slot, canary: Option<Slot>) -> Snapshot {
        let (max_in_flight, slow_start) = (NonZeroU32::new(4), Duration::from_secs(3600));
        let concurrency = Concurrency { max_in_flight, slow_start, ..Concurrency::default() };
        let assignment = Assignment::new(
            &FleetSecret::new(b"x"),
            "shop",
            "c",
            Weight::ALL,
            VisitorSource::default(),
            Overrides::default(),
        );
        let service = crate::snapshot::Service {
            name: "shop".into(),
            policy: Policy { concurrency, ..Policy::default() },
            redirect_to_https: false,
            stable,
            canary: canary.map(|slot| Canary { slot, assignment }),
            pages: None,
            log_fields: crate::snapshot::LogFields::default(),
            halt: None,
            client_auth: None,
            hsts: None,
        };
        let services = [(Arc::clone(&service.name), Arc::new(service))].into();
        Snapshot { services, ..Snapshot::default() }
    }

    fn limits(release: &Release) -> Vec<Option<u32>> {
        release.targets.iter().map(|target| release.queue.admission().limit_of(&target.seats)).collect()
    }

    #[test]
    fn who_joins_others_starts_slowly_and_a_new_release_does_not() {
        let (published, admission) = (Published::default(), Admission::new());
        let well = |_| Standing::BELIEVED;
        let show = |release: &Arc<Release>, eligible: &[usize]| {
            publish(&published, snapshot(slot(Cohort::Stable, release, eligible), None), &well);
            limits(release)
        };
        let first = release(&admission, &[1, 2]);
        assert_eq!(show(&first, &[0, 1]), [Some(4), Some(4)], "the first release has all its load at once");
        assert_eq!(show(&first, &[0]), [Some(4), Some(4)]);
        assert_eq!(show(&first, &[0, 1]), [Some(4), Some(1)], "back from ejection");
        let wider = release(&admission, &[3, 1]);
        assert_eq!(show(&wider, &[0, 1]), [Some(1), Some(4)], "added beside one that stays");
        let next = release(&admission, &[5, 6]);
        assert_eq!(show(&next, &[0, 1]), [Some(4), Some(4)], "nobody else could take the load");
    }

    #[test]
    fn who_joins_only_sick_ones_takes_the_load() {
        let (published, admission) = (Published::default(), Admission::new());
        let fallen = |_| Standing { fallen: true, ..Standing::BELIEVED };
        let first = release(&admission, &[1, 2]);
        for eligible in [&[0][..], &[0, 1]] {
            publish(&published, snapshot(slot(Cohort::Stable, &first, eligible), None), &fallen);
        }
        assert_eq!(limits(&first), [Some(4), Some(4)]);
    }

    #[test]
    fn lines_end_with_what_they_lead_to() {
        let (published, admission) = (Published::default(), Admission::new());
        let (stable, canary) = (release(&admission, &[1]), release(&admission, &[2]));
        let show = |with_canary: bool| {
            let canary = with_canary.then(|| slot(Cohort::Canary, &canary, &[0]));
            publish(&published, snapshot(slot(Cohort::Stable, &stable, &[0]), canary), &|_| {
                Standing::BELIEVED
            });
        };
        let ended = |release: &Release| release.queue.join(&Turn::New, 9).err() == Some(CannotJoin::Ended);
        for with_canary in [true, false, true] {
            show(with_canary);
            assert_eq!((ended(&stable), ended(&canary)), (false, !with_canary), "{with_canary}");
        }
        publish(&published, Snapshot::default(), &|_| Standing::BELIEVED);
        assert!(ended(&stable) && ended(&canary));
    }
}
