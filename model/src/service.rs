//! A service: what operators deploy to. Its policy, its releases in their slots, and the pure changes to them.
//!
//! How a change is stored (`state_file`) or carried out (`control_plane`) lives in the daemon.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use crate::canary::{Overrides, VisitorSource};
use crate::forwarded::ClientIpHeader;
use crate::halt::Halt;
use crate::name::{HostName, HostPattern, PathPrefix, ReleaseId, ServiceName, TargetAddress};
use crate::provenance::Provenance;
use crate::weight::Weight;

/// How many releases a service remembers, the newest first.
pub const HISTORY_MAX: usize = 20;

/// What an operator decides about a service; outlives every release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Empty: any host.
    pub hosts: Vec<HostPattern>,
    /// Never empty.
    pub path_prefixes: Vec<PathPrefix>,
    pub strip_path_prefix: bool,
    /// Every other host of the service is redirected here.
    pub canonical_host: Option<HostName>,
    pub tls: Option<TlsPolicy>,
    pub gate: GatePolicy,
    pub timeouts: Timeouts,
    pub concurrency: Concurrency,
    /// `Policy::UNLIMITED`: any length.
    pub request_body_bytes_max: u64,
    pub visitor: VisitorSource,
    /// Directory with pages for what Portcullis answers itself (`model::page`), read by the daemon.
    pub error_pages: Option<PathBuf>,
    /// Cookies of the app are bound to the prefix that is taken off (`model::cookie_scope`).
    pub scope_cookie_paths: bool,
    pub recording: Recording,
    /// Peers in private networks speak for their clients too, not only the process's trusted proxies.
    pub forward_headers: bool,
    /// Where trusted proxies name the client; `None`: as the process is told.
    pub client_ip_header: Option<ClientIpHeader>,
    pub buffering: Buffering,
    /// `Policy::UNLIMITED`: any length.
    pub response_body_bytes_max: u64,
    pub readers: ReaderPolicy,
}

/// What is written down of a service's requests beyond the ordinary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recording {
    /// Names in lower case; their values go into the access log.
    pub request_headers: Vec<String>,
    pub response_headers: Vec<String>,
    /// Paths as the app sees them; requests for exactly these are not counted in the metrics.
    pub uncounted_paths: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPolicy {
    /// Plain HTTP is redirected to HTTPS.
    pub redirect: bool,
    /// `None`: certificates come by themselves, from a certificate authority.
    pub files: Option<CertificateFiles>,
    /// Automatic certificates name all hosts of the service together, instead of one each.
    pub one_certificate: bool,
    /// Automatic certificates come from the authority's staging area, which browsers do not trust.
    pub staging: bool,
}

impl Default for TlsPolicy {
    fn default() -> Self {
        Self { redirect: true, files: None, one_certificate: false, staging: false }
    }
}

/// PEM files, read by the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatePolicy {
    pub path: String,
    /// `None`: the target's own port.
    pub port: Option<u16>,
    /// `None`: the service's first host, else the target's address.
    pub host: Option<HostName>,
    /// Probes begin 250 ms apart and slow down to this.
    pub interval: Duration,
    /// For every probe after the first pass; the first one that connects may take `GatePolicy::FIRST_TIMEOUT`.
    pub timeout: Duration,
    pub deploy_timeout: Duration,
    /// Passes in a row until healthy.
    pub rise: u32,
    /// Failures in a row until no longer healthy.
    pub fall: u32,
}

impl GatePolicy {
    /// Between probes of a booting target, growing to `interval`.
    pub const BOOT_INTERVAL: Duration = Duration::from_millis(250);
    /// The first request of a Rails process loads much of it.
    pub const FIRST_TIMEOUT: Duration = Duration::from_secs(10);
    /// Between probes of a target that serves.
    pub const STEADY_INTERVAL: Duration = Duration::from_secs(2);
    /// Between probes of a target that is held.
    pub const HELD_INTERVAL: Duration = Duration::from_secs(5);
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    /// Until the response head (`--target-timeout`).
    pub response_head: Duration,
    /// A body without progress, either way.
    pub body_idle: Duration,
    /// For requests; no time at all is none for sockets either.
    pub drain: Duration,
    /// Closing WebSockets and event streams is spread over at most this, however short `drain` is.
    pub socket_drain: Duration,
    pub bake: Duration,
}

/// How much a target is given at a time, and what becomes of the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Concurrency {
    /// Requests that a target holds at most; `None`: no limit, and then nobody ever waits.
    pub max_in_flight: Option<NonZeroU32>,
    /// Requests of a release that may wait for a free place.
    pub queue_max: u32,
    /// How long one of them waits at most.
    pub queue_timeout: Duration,
    /// How long a target that joins others takes until it gets its full share (`model::slow_start`).
    pub slow_start: Duration,
}

impl Concurrency {
    /// Of `max_in_flight` and of `queue_max`: more than a machine can hold is a typo.
    pub const COUNT_MAX: u32 = 100_000;
}

/// Which bodies are kept here until they are whole, so that a slow client holds no thread of the app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffering {
    /// Before a target gets anything of them.
    pub requests: bool,
    /// As fast as the target sends them, however fast the client reads (`model::holding`).
    pub responses: bool,
    /// Of one body in memory; what is longer goes to disk.
    pub memory_bytes_max: u64,
}

/// How reads and writes part where a release has targets for reads alone (`model::readers`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReaderPolicy {
    /// How long the reads of a visitor who has written go to the writers; zero: they do not.
    pub writer_affinity: Duration,
    /// WebSockets are opened to readers, too.
    pub websockets: bool,
}

impl Policy {
    /// More than any body can have.
    pub const UNLIMITED: u64 = u64::MAX;
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            path_prefixes: vec![PathPrefix::root()],
            strip_path_prefix: true,
            canonical_host: None,
            tls: None,
            gate: GatePolicy::default(),
            timeouts: Timeouts::default(),
            concurrency: Concurrency::default(),
            request_body_bytes_max: 1 << 30,
            visitor: VisitorSource::default(),
            error_pages: None,
            scope_cookie_paths: false,
            recording: Recording::default(),
            forward_headers: false,
            client_ip_header: None,
            buffering: Buffering::default(),
            response_body_bytes_max: Self::UNLIMITED,
            readers: ReaderPolicy::default(),
        }
    }
}

impl Default for GatePolicy {
    fn default() -> Self {
        Self {
            path: "/up".to_owned(),
            port: None,
            host: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(2),
            deploy_timeout: Duration::from_secs(60),
            rise: 2,
            fall: 3,
        }
    }
}

impl Default for Concurrency {
    fn default() -> Self {
        Self {
            max_in_flight: None,
            queue_max: 1000,
            queue_timeout: Duration::from_secs(5),
            slow_start: Duration::from_secs(15),
        }
    }
}

impl Default for Buffering {
    fn default() -> Self {
        Self { requests: false, responses: false, memory_bytes_max: 1 << 20 }
    }
}

impl Default for ReaderPolicy {
    fn default() -> Self {
        Self { writer_affinity: Duration::from_secs(1), websockets: false }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            response_head: Duration::from_secs(30),
            body_idle: Duration::from_secs(30),
            drain: Duration::from_secs(30),
            socket_drain: Duration::from_secs(60),
            bake: Duration::from_secs(60),
        }
    }
}

/// An immutable set of targets that runs one version of the app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    pub id: ReleaseId,
    /// For reads and writes. Never empty.
    pub targets: Vec<TargetAddress>,
    /// Unix time in ms.
    pub created_ms: u64,
    /// Further targets, for reads alone.
    pub readers: Vec<TargetAddress>,
}

impl Release {
    /// The readers last.
    pub fn all_targets(&self) -> impl Iterator<Item = &TargetAddress> {
        self.targets.iter().chain(&self.readers)
    }

    /// Whether both run on the same addresses, in whatever order they were named, each for the same.
    pub fn has_targets_of(&self, other: &Self) -> bool {
        // Neither names one twice.
        let are_same = |own: &[TargetAddress], others: &[TargetAddress]| {
            own.len() == others.len() && own.iter().all(|target| others.contains(target))
        };
        are_same(&self.targets, &other.targets) && are_same(&self.readers, &other.readers)
    }

    /// Whether both run on some address.
    pub fn shares_a_target_with(&self, other: &Self) -> bool {
        self.all_targets().any(|target| other.all_targets().any(|one| one == target))
    }
}

/// A second release that gets a share of the visitors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    pub release: Release,
    pub weight: Weight,
    /// Picks the visitors; the same on every VM of a fleet.
    pub rollout: String,
    pub overrides: Overrides,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub name: ServiceName,
    pub policy: Policy,
    pub stable: Release,
    pub canary: Option<Canary>,
    /// The previous stable, drained and kept warm.
    pub held: Option<Release>,
    /// Newest first, at most `HISTORY_MAX`; the stable release's own entry comes first.
    pub history: Vec<HistoryEntry>,
    /// Of the next release that brings no label.
    pub next_number: u64,
    /// Paused or stopped.
    pub halt: Option<Halt>,
    /// Who set what `policy` says.
    pub provenance: Provenance,
}

/// A policy that waits for the service's first release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    pub policy: Policy,
    pub provenance: Provenance,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    pub release: Release,
    pub outcome: Outcome,
    /// When `outcome` was reached, Unix time in ms.
    pub at_ms: u64,
    pub actor: String,
    /// Why it failed; one line.
    pub reason: Option<String>,
}

/// How a release's time ended, or that it has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Serves, or served until a later release took over.
    Deployed,
    /// Stable again by `rollback`.
    RolledBack,
    /// The gate stayed closed; it never served.
    Refused,
    /// Bake failed; the previous release serves again.
    Reverted,
    /// A canary that was given up.
    Aborted,
    /// A canary that became stable.
    Promoted,
}

impl Outcome {
    /// It never served, or no longer does, because it was no good.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Refused | Self::Reverted | Self::Aborted)
    }
}

impl Service {
    pub fn new(name: ServiceName, policy: Policy, stable: Release) -> Self {
        Self {
            name,
            policy,
            stable,
            canary: None,
            held: None,
            history: Vec::new(),
            next_number: 1,
            halt: None,
            provenance: Provenance::default(),
        }
    }

    /// `release` becomes stable and the stable one is held. A canary ends.
    ///
    /// Another label for the same targets replaces nothing that could be gone back to: what is held stays.
    pub fn cut_over(&mut self, release: Release) {
        let previous = std::mem::replace(&mut self.stable, release);
        if !previous.has_targets_of(&self.stable) {
            self.held = Some(previous);
        }
        self.canary = None;
    }

    /// The canary becomes stable and the stable one is held. `None` if there is no canary.
    pub fn promote(&mut self) -> Option<Release> {
        let canary = self.canary.take()?;
        self.cut_over(canary.release);
        Some(self.stable.clone())
    }

    /// Stable and held change places. `None` if nothing is held.
    pub fn roll_back(&mut self) -> Option<Release> {
        let held = self.held.take()?;
        self.cut_over(held);
        Some(self.stable.clone())
    }

    /// What was held cannot be gone back to once `other` has run on one of its addresses: whoever answers
    /// there now is not what was held.
    pub fn forget_held_if_replaced_by(&mut self, other: &Release) {
        let replaced = |held: &Release| held.id != other.id && held.shares_a_target_with(other);
        if self.held.as_ref().is_some_and(replaced) {
            self.held = None;
        }
    }

    /// Where there is no room for more, failures go first: a row of them must not push out what could be
    /// gone back to.
    pub fn remember(&mut self, entry: HistoryEntry) {
        self.history.insert(0, entry);
        while self.history.len() > HISTORY_MAX {
            let removable: Vec<usize> =
                (1..self.history.len()).rev().filter(|index| !self.tells_of_a_slot(*index)).collect();
            let failure = removable.iter().find(|index| self.history[**index].outcome.is_failure());
            // There are fewer slots than entries.
            let index = failure.or(removable.first()).copied().unwrap_or(HISTORY_MAX);
            self.history.remove(index);
        }
    }

    /// Whether the entry is the newest of a release that is in a slot.
    fn tells_of_a_slot(&self, index: usize) -> bool {
        let id = &self.history[index].release.id;
        let canary = self.canary.iter().map(|canary| &canary.release);
        let mut slots = std::iter::once(&self.stable).chain(canary).chain(&self.held);
        slots.any(|release| release.id == *id)
            && !self.history[..index].iter().any(|newer| newer.release.id == *id)
    }

    /// The release of the history that `rollback` means: the named one, newest entry first.
    pub fn remembered(&self, id: &ReleaseId) -> Option<&Release> {
        self.history.iter().map(|entry| &entry.release).find(|release| release.id == *id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn release(id: &str, ports: &[u16]) -> Release {
        let targets = ports.iter().map(|port| format!("127.0.0.1:{port}").parse().unwrap()).collect();
        Release { id: id.parse().unwrap(), targets, created_ms: 0, readers: Vec::new() }
    }

    fn entry(release: Release, outcome: Outcome) -> HistoryEntry {
        HistoryEntry { release, outcome, at_ms: 0, actor: "test".into(), reason: None }
    }

    fn service() -> Service {
        Service::new("shop".parse().unwrap(), Policy::default(), release("r1", &[1]))
    }

    #[test]
    fn the_order_of_targets_says_nothing() {
        for (one, other, same, shares) in [
            (&[1, 2][..], &[2, 1][..], true, true),
            (&[1], &[1], true, true),
            (&[1], &[1, 2], false, true),
            (&[1, 2], &[3], false, false),
        ] {
            let (one, other) = (release("a", one), release("b", other));
            assert_eq!(one.has_targets_of(&other), same, "{one:?} {other:?}");
            assert_eq!(one.shares_a_target_with(&other), shares, "{one:?} {other:?}");
        }
        let with_reader = |id: &str, ports: &[u16], reader: u16| Release {
            readers: vec![format!("127.0.0.1:{reader}").parse().unwrap()],
            ..release(id, ports)
        };
        for (one, other, same, shares) in [
            (with_reader("a", &[1], 2), with_reader("b", &[1], 2), true, true),
            (with_reader("a", &[1], 2), release("b", &[1, 2]), false, true),
            (with_reader("a", &[1], 2), with_reader("b", &[2], 1), false, true),
            (with_reader("a", &[1], 2), with_reader("b", &[3], 2), false, true),
            (with_reader("a", &[1], 2), with_reader("b", &[3], 4), false, false),
        ] {
            assert_eq!(one.has_targets_of(&other), same, "{one:?} {other:?}");
            assert_eq!(one.shares_a_target_with(&other), shares, "{one:?} {other:?}");
        }
        let mut service = service();
        service.cut_over(release("r2", &[2, 3]));
        service.cut_over(release("r3", &[3, 2]));
        assert_eq!(service.held, Some(release("r1", &[1])), "another label replaces nothing");
    }

    #[test]
    fn an_address_that_another_release_had_is_no_way_back() {
        for (other, stays) in
            [(release("r9", &[1]), false), (release("r9", &[7]), true), (release("r1", &[1]), true)]
        {
            let mut service = service();
            service.cut_over(release("r2", &[2]));
            service.forget_held_if_replaced_by(&other);
            assert_eq!(service.held.is_some(), stays, "{other:?}");
        }
    }

    #[test]
    fn twenty_refusals_push_out_one_good_release_at_most() {
        let mut service = service();
        for n in 1..=HISTORY_MAX {
            service.remember(entry(release(&format!("good{n}"), &[1]), Outcome::Deployed));
        }
        for n in 1..=2 * HISTORY_MAX {
            service.remember(entry(release(&format!("bad{n}"), &[1]), Outcome::Refused));
            assert_eq!(service.history[0].release.id.as_str(), format!("bad{n}"));
        }
        let good = service.history.iter().filter(|entry| entry.outcome == Outcome::Deployed);
        assert_eq!((good.count(), service.history.len()), (HISTORY_MAX - 1, HISTORY_MAX));
    }

    proptest! {
        #[test]
        fn the_history_never_forgets_what_is_in_a_slot(
            events in proptest::collection::vec((0u16..60, 0u8..4), 1..120),
        ) {
            use Outcome::{Aborted, Deployed, Refused, Reverted, RolledBack};
            let mut service = service();
            service.remember(entry(service.stable.clone(), Deployed));
            for (number, kind) in events {
                let next = release(&format!("r{number}"), &[number + 1]);
                let in_slot = service.stable.id == next.id
                    || service.held.as_ref().is_some_and(|held| held.id == next.id);
                match kind {
                    0 if !in_slot => {
                        service.cut_over(next.clone());
                        service.remember(entry(next, Deployed));
                    }
                    1 => {
                        if let Some(stable) = service.roll_back() {
                            service.remember(entry(stable, RolledBack));
                        }
                    }
                    2 if !in_slot => service.remember(entry(next, if number % 2 == 0 { Refused } else { Reverted })),
                    _ if !in_slot => service.remember(entry(next, Aborted)),
                    _ => {}
                }
                prop_assert!(service.history.len() <= HISTORY_MAX);
                for slot in std::iter::once(&service.stable).chain(&service.held) {
                    prop_assert!(service.remembered(&slot.id).is_some(), "{} is forgotten", slot.id);
                }
            }
        }
    }
}
