//! A service: what operators deploy to. Its policy, its releases in their slots, and the pure changes to them.
//!
//! How a change is stored (`state_file`) or carried out (`control_plane`) lives in the daemon.

use std::path::PathBuf;
use std::time::Duration;

use crate::canary::{Overrides, VisitorSource};
use crate::name::{HostName, HostPattern, PathPrefix, ReleaseId, ServiceName, TargetAddress};
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
    pub request_body_bytes_max: u64,
    pub visitor: VisitorSource,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPolicy {
    /// Plain HTTP is redirected to HTTPS.
    pub redirect: bool,
    /// `None`: a self-signed placeholder.
    pub files: Option<CertificateFiles>,
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
    pub drain: Duration,
    /// Closing WebSockets and event streams is spread over at most this (and at most `drain`).
    pub socket_drain: Duration,
    pub bake: Duration,
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
            request_body_bytes_max: 1 << 30,
            visitor: VisitorSource::default(),
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
    /// Never empty.
    pub targets: Vec<TargetAddress>,
    /// Unix time in ms.
    pub created_ms: u64,
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

impl Service {
    pub fn new(name: ServiceName, policy: Policy, stable: Release) -> Self {
        Self { name, policy, stable, canary: None, held: None, history: Vec::new(), next_number: 1 }
    }

    /// `release` becomes stable and the stable one is held. A canary ends.
    ///
    /// Another label for the same targets replaces nothing that could be gone back to: what is held stays.
    pub fn cut_over(&mut self, release: Release) {
        let previous = std::mem::replace(&mut self.stable, release);
        if previous.targets != self.stable.targets {
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

    pub fn remember(&mut self, entry: HistoryEntry) {
        self.history.insert(0, entry);
        self.history.truncate(HISTORY_MAX);
    }

    /// The release of the history that `rollback` means: the named one, newest entry first.
    pub fn remembered(&self, id: &ReleaseId) -> Option<&Release> {
        self.history.iter().map(|entry| &entry.release).find(|release| release.id == *id)
    }
}
