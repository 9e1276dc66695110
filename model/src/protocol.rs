//! What crosses the control socket: requests, replies, events and problems, as JSON (`/v1`).
//!
//! Only wire shapes live here. Durations are text (`30s`), weights are text (`5%`), names are text; the
//! daemon parses them into the types of the other modules before it does anything.
//!
//! | method and path | body | answer |
//! | --- | --- | --- |
//! | `GET /v1/status` | | `Status` |
//! | `GET /v1/services/NAME` | | `ServiceStatus` |
//! | `GET /v1/services/NAME/history` | | `History` |
//! | `POST /v1/services/NAME/deploy` | `DeployRequest` | NDJSON of `Event` |
//! | `POST /v1/services/NAME/rollback` | `RollbackRequest` | NDJSON of `Event` |
//! | `POST /v1/services/NAME/canary/start` | `CanaryStartRequest` | NDJSON of `Event` |
//! | `POST /v1/services/NAME/canary/set` | `CanarySetRequest` | `Done` |
//! | `POST /v1/services/NAME/canary/promote` | | NDJSON of `Event` |
//! | `POST /v1/services/NAME/canary/abort` | | NDJSON of `Event` |
//! | `DELETE /v1/services/NAME` | | NDJSON of `Event` |
//! | `POST /v1/services/NAME/pause` | `PauseRequest` | NDJSON of `Event` |
//! | `POST /v1/services/NAME/stop` | `StopRequest` | NDJSON of `Event` |
//! | `POST /v1/services/NAME/resume` | | `Done` |
//! | `GET /v1/events?follow=BOOL` | | NDJSON of `LoggedEvent` |
//! | `POST /v1/plan` | `DeclareRequest` | `Plan`; changes nothing |
//! | `POST /v1/apply` | `DeclareRequest` | `Applied` |
//! | `GET /v1/certificates` | | `Certificates` |
//! | `GET /v1/certificates/NAME` | | `CertificateStatus` |
//! | `POST /v1/certificates/NAME/renew` | | NDJSON of `Event` |
//! | `POST /v1/certificates/NAME/revoke` | `RevokeRequest` | NDJSON of `Event` |
//!
//! A refusal is an HTTP status ≥ 400 with a `Problem`; a failure after the answer began is the last line's
//! `Event::Failed`. The last line of every NDJSON operation is `Event::Done` or `Event::Failed`. Blank lines
//! mean nothing: one comes every 10 s while nothing happens, so that a long wait differs from a dead agent.

mod certificates;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::certificates::{
    CertificateFailure, CertificateState, CertificateStatus, Certificates, RevocationReason, RevokeRequest,
};

pub const API_VERSION: &str = "v1";

/// Request header with the caller's `SSH_CONNECTION`, for the audit log. A claim: anyone may write it.
pub const SSH_CONNECTION_HEADER: &str = "portcullis-ssh-connection";

/// Settings that a deploy names; what it leaves out stays as it is (at first: the default).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyPatch {
    /// Replaces the list; empty means any host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_prefixes: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strip_path_prefix: Option<bool>,
    /// An empty text removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canonical_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_redirect: Option<bool>,
    /// Absolute path of a PEM file, read by the daemon; together with `tls_private_key_path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_certificate_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_private_key_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check_path: Option<String>,
    /// 0: the target's own port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check_port: Option<u16>,
    /// An empty text means the service's first host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check_interval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deploy_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_timeout: Option<String>,
    /// How long WebSockets and event streams may take to be closed one by one; never beyond `drain_timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_drain_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bake: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<String>,
    /// Until the response head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_idle_timeout: Option<String>,
    /// Requests that a target holds at most; 0: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<u32>,
    /// Requests that may wait for a free place; 0: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_max: Option<u32>,
    /// How long one of them waits at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_timeout: Option<String>,
    /// How long a target that joins others takes until it gets its full share; `0s`: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<String>,
    /// 0: any length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_request_body_bytes: Option<u64>,
    /// Request header that names the visitor for canaries; an empty text removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visitor_header: Option<String>,
    /// Cookie of the app that names the visitor for canaries; an empty text removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visitor_cookie: Option<String>,
    /// Whether Portcullis sets a cookie of its own while a canary runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visitor_set_cookie: Option<bool>,
    /// Absolute path of a directory with pages such as `503.html` and `5xx.html`, read by the daemon; an empty text removes
    /// it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_pages: Option<String>,
    /// Whether cookies of the app are bound to the path prefix that is taken off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope_cookie_paths: Option<bool>,
    /// Request header fields that the access log shows as well; replaces the list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_request_headers: Option<Vec<String>>,
    /// Response header fields that the access log shows as well; replaces the list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_response_headers: Option<Vec<String>>,
    /// Paths, as the app sees them, whose requests are not counted in the metrics; replaces the list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_metrics_paths: Option<Vec<String>>,
    /// Whether peers in private networks speak for their clients too, not only `trusted_proxies`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward_headers: Option<bool>,
    /// Request header in which trusted proxies name the client; an empty text means the process's own setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ip_header: Option<String>,
    /// Whether a request's body is kept here until it is whole, and only then sent to a target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffer_requests: Option<bool>,
    /// Whether an answer is taken from its target as fast as it comes, however fast the client reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffer_responses: Option<bool>,
    /// What one buffered body may take of the memory; the rest of it goes to disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffer_memory_bytes: Option<u64>,
    /// 0: any length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_response_body_bytes: Option<u64>,
    /// How long the reads of a visitor who has written go to the writers; `0s`: they do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writer_affinity_timeout: Option<String>,
    /// Whether WebSockets may be opened to read targets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_target_websockets: Option<bool>,
    /// Whether automatic certificates name all hosts together, instead of one each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_one_certificate: Option<bool>,
    /// Whether automatic certificates come from the authority's staging area, which browsers do not trust.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_staging: Option<bool>,
    /// Pairs of PEM files, of which a client is shown the one that names best what it asks for. Replaces all that were
    /// named before; besides the pair of `tls_certificate_path`, if that is named too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_certificates: Option<Vec<CertificatePair>>,
    /// Absolute path of a PEM file, read by the daemon: the authorities that clients have their certificates from. Empty:
    /// clients are not asked for any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_client_ca_path: Option<String>,
    /// `required` (at first) or `optional`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_client_auth: Option<String>,
    /// How long browsers are told to use nothing but HTTPS, such as `1y` or `180d`; `0s` has them forget it, and empty says
    /// nothing to them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hsts: Option<String>,
    /// Whether that goes for all subdomains, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hsts_subdomains: Option<bool>,
    /// Whether browsers may be shipped with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hsts_preload: Option<bool>,
}

/// Absolute paths of PEM files, read by the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificatePair {
    pub certificate: String,
    pub private_key: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// At least one.
    pub targets: Vec<String>,
    /// A git sha or image digest; without it the release is `r1`, `r2`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// A running canary is given up instead of refusing the deploy.
    #[serde(default)]
    pub replace_canary: bool,
    #[serde(default)]
    pub policy: PolicyPatch,
    /// Further targets, for reads alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read_targets: Vec<String>,
    /// The release gets the traffic at once, without passing the gate.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// The operation ends once the service's automatic certificates serve; `None`: it does not wait for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_tls: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RollbackRequest {
    /// `None`: the held release.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CanaryStartRequest {
    pub targets: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// Such as `5%`; 0 % sends only the overrides.
    pub weight: String,
    /// Who is picked depends on it; the same text on every VM. `None`: the release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<String>,
    #[serde(default)]
    pub overrides: OverridesBody,
    /// Further targets, for reads alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read_targets: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OverridesBody {
    /// `NAME=VALUE`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// `NAME=VALUE`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cookies: Vec<String>,
    /// CIDR
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub visitors: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CanarySetRequest {
    pub weight: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PauseRequest {
    /// For what is in flight; `None`: the service's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_timeout: Option<String>,
    /// How long a request waits at most; `None`: 30 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pause: Option<String>,
    /// How many may wait at a time; `None`: half of the connections that the agent allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_max: Option<u32>,
    pub bypass: BypassBody,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StopRequest {
    /// For what is in flight; `None`: the service's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_timeout: Option<String>,
    /// Plain text for the visitors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    pub bypass: BypassBody,
}

/// Requests that a paused or stopped service lets through.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BypassBody {
    /// `NAME=VALUE`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// `NAME=VALUE`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cookies: Vec<String>,
    /// CIDR
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
}

/// The whole agent, as `agentctl status --json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    /// Unix time in ms.
    pub started_ms: u64,
    /// Grows by one with every accepted change.
    pub generation: u64,
    pub listeners: Listeners,
    pub workers: u32,
    /// By name.
    pub services: Vec<ServiceStatus>,
    /// Services whose policy waits for a first release, by name.
    #[serde(default)]
    pub declared: Vec<DeclaredStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeclaredStatus {
    pub name: String,
    pub policy: PolicyPatch,
}

/// Bound addresses, such as `127.0.0.1:8080`; `null` where the listener is off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Listeners {
    pub http: Option<String>,
    pub https: Option<String>,
    pub metrics: Option<String>,
    pub control: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    pub name: String,
    pub state: ServiceState,
    /// Empty: any host.
    pub hosts: Vec<String>,
    pub path_prefixes: Vec<String>,
    pub tls: bool,
    pub stable: ReleaseStatus,
    pub canary: Option<CanaryStatus>,
    pub held: Option<ReleaseStatus>,
    /// The operation under way, if any.
    pub operation: Option<Operation>,
    pub policy: PolicyPatch,
    /// Only of a service that is paused or stopped.
    #[serde(default)]
    pub halt: Option<HaltStatus>,
    /// Those that the service's hosts have or wait for.
    #[serde(default)]
    pub certificates: Vec<CertificateStatus>,
}

/// A pause or stop, and what it does at the moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HaltStatus {
    /// Who began it.
    pub actor: String,
    /// Unix time in ms.
    pub since_ms: u64,
    /// Requests that wait for `resume`.
    pub waiting: u64,
    /// Of a pause: how long each waits at most.
    pub max_pause: Option<String>,
    /// Of a pause: how many may wait; `null`: half of the connections that the agent allows.
    pub waiting_max: Option<u32>,
    /// Of a stop: what visitors are told.
    pub message: Option<String>,
    pub bypass: BypassBody,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Every target of the stable release is healthy, or not yet known to be otherwise.
    Serving,
    /// Some target is ejected, or the last one fails its probes and is tried all the same; or all targets of
    /// the canary fail theirs, and stable has its share meanwhile.
    Degraded,
    /// New requests wait, whatever the state of the targets.
    Paused,
    /// New requests are answered 503, whatever the state of the targets.
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseStatus {
    pub release: String,
    /// Unix time in ms.
    pub created_ms: u64,
    /// Requests that wait for a seat of one of the targets.
    #[serde(default)]
    pub waiting: u64,
    pub targets: Vec<TargetStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TargetStatus {
    pub target: String,
    pub state: TargetStateName,
    /// Requests and sockets it holds now.
    pub in_flight: u64,
    /// `null` where `max_in_flight` sets no limit.
    #[serde(default)]
    pub seats: Option<SeatsStatus>,
    /// What the last probe saw, such as `200 in 3ms` or `connection refused`.
    pub last_probe: Option<String>,
    /// What it is there for.
    #[serde(default)]
    pub role: TargetRoleName,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TargetRoleName {
    /// Reads and writes.
    #[default]
    Writer,
    /// Reads alone.
    Reader,
}

/// What a target may hold at a time. Upgraded connections take no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SeatsStatus {
    pub taken: u32,
    /// Below `max_in_flight` while the target is in its slow start.
    pub limit: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TargetStateName {
    Pending,
    Booting,
    Probing,
    Warming,
    Ready,
    Serving,
    Suspect,
    Ejected,
    Draining,
    Held,
    Retired,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CanaryStatus {
    #[serde(flatten)]
    pub release: ReleaseStatus,
    /// Such as `5%`.
    pub weight: String,
    pub rollout: String,
    pub overrides: OverridesBody,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Operation {
    /// `deploy`, `rollback`, `canary start`, …
    pub verb: String,
    pub release: String,
    pub phase: DeploymentPhase,
    pub actor: String,
    /// Unix time in ms.
    pub since_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeploymentPhase {
    Planned,
    Gating,
    Warming,
    Switching,
    /// The old release drains; the new one already has the traffic.
    Draining,
    Baking,
    Committed,
    Aborted,
    Reverted,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct History {
    pub service: String,
    /// Newest first.
    pub entries: Vec<HistoryItem>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryItem {
    pub release: String,
    pub targets: Vec<String>,
    pub outcome: OutcomeName,
    /// Unix time in ms.
    pub at_ms: u64,
    pub actor: String,
    pub reason: Option<String>,
    /// The slot that the release is in now, if any.
    pub slot: Option<Slot>,
    /// Targets for reads alone.
    #[serde(default)]
    pub readers: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeName {
    Deployed,
    RolledBack,
    Refused,
    Reverted,
    Aborted,
    Promoted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    Stable,
    Canary,
    Held,
}

/// One line of a long operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The operation may begin: nothing forbids it.
    Accepted {
        service: String,
        verb: String,
        release: String,
        targets: Vec<String>,
    },
    Phase {
        phase: DeploymentPhase,
    },
    /// One probe of one target.
    Probed {
        target: String,
        state: TargetStateName,
        outcome: String,
        passes: u32,
        rise: u32,
        elapsed_ms: u64,
    },
    /// New requests go to `release` from now on; `at_ms` is Unix time in ms.
    Switched {
        release: String,
        generation: u64,
        at_ms: u64,
    },
    /// The release that was replaced still holds these.
    Draining {
        release: String,
        requests: u64,
        sockets: u64,
    },
    /// `cut` requests or sockets did not end before the deadline and were cut.
    Drained {
        release: String,
        cut: u64,
    },
    Baking {
        remaining_ms: u64,
        requests: u64,
        gateway_errors: u64,
    },
    Done(Done),
    Failed {
        problem: Problem,
    },
    /// New requests wait or are refused from now on; `at_ms` is Unix time in ms.
    Halted {
        state: ServiceState,
        generation: u64,
        at_ms: u64,
    },
    /// How far a certificate is.
    Certificate {
        name: String,
        state: CertificateState,
        /// One line for people; a failure in the authority's words.
        message: String,
    },
}

/// The end of an operation that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Done {
    /// One sentence for people.
    pub message: String,
    pub service: String,
    /// The stable release now; `null` when the service is gone.
    pub stable: Option<String>,
    pub held: Option<String>,
    pub canary: Option<String>,
    pub weight: Option<String>,
    pub generation: u64,
    /// False when nothing had to change.
    pub changed: bool,
}

/// A line of the audit log, as `agentctl events` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LoggedEvent {
    /// Unix time in ms.
    pub at_ms: u64,
    pub generation: u64,
    /// `deploy`, `rollback`, `canary set`, `target ejected`, …
    pub kind: String,
    pub service: Option<String>,
    pub release: Option<String>,
    pub target: Option<String>,
    /// `root (uid 0)`, `deploy (uid 1001) from 192.0.2.7`, or `portcullis` for what it did by itself.
    pub actor: String,
    pub message: String,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    pub code: ProblemCode,
    /// What happened, to what.
    pub message: String,
    /// What it came from, one line each, the nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<DiagnosisBody>,
}

/// What the gate found out about a target that did not pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiagnosisBody {
    /// The signature's id, such as `redirect_to_https`.
    pub id: String,
    pub target: String,
    pub verdict: String,
    pub hint: String,
    /// What the probes saw, oldest first, repeats folded, such as `connection refused ×12`.
    pub timeline: Vec<String>,
    /// The beginning of the last answer's body, at most 2 KiB, control characters removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excerpt: Option<String>,
}

/// Codes are API: scripts compare them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProblemCode {
    /// The request itself is wrong: a bad name, duration, weight, target, path.
    Invalid,
    NotFound,
    /// Another operation runs, a route belongs to another service, a canary is in the way.
    Conflict,
    /// The certificate or key cannot be read or do not fit.
    Certificate,
    /// The gate stayed closed; traffic is unchanged.
    GateFailed,
    /// The new release was taken back; the previous one serves.
    Reverted,
    /// The operation was given up before it changed anything.
    Aborted,
    /// The caller's role does not allow this.
    Denied,
    /// The state, or a buffered body, could not be written; nothing changed.
    Storage,
    /// Too many connections to the control socket; nothing was looked at.
    Busy,
    Internal,
    /// What was asked for is done, but for a certificate that an authority has not issued.
    CertificatePending,
}

impl ProblemCode {
    /// The exit code of `agentctl`.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Invalid => 2,
            Self::NotFound | Self::Certificate | Self::Storage | Self::Busy | Self::Internal => 1,
            Self::Conflict => 4,
            Self::GateFailed => 5,
            Self::Reverted | Self::Aborted => 6,
            Self::CertificatePending => 7,
            Self::Denied => 8,
        }
    }

    /// The status of the control API.
    pub fn http_status(self) -> u16 {
        match self {
            Self::Invalid | Self::Certificate => 422,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::GateFailed | Self::Reverted | Self::Aborted | Self::CertificatePending => 424,
            Self::Denied => 403,
            Self::Storage => 507,
            Self::Busy => 503,
            Self::Internal => 500,
        }
    }
}

impl Problem {
    pub fn new(code: ProblemCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), causes: Vec::new(), hint: None, diagnosis: None }
    }

    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A problem from an error and its chain of sources.
    pub fn from_error(code: ProblemCode, error: &dyn std::error::Error) -> Self {
        let mut problem = Self::new(code, error.to_string());
        let mut source = error.source();
        while let Some(cause) = source {
            problem.causes.push(cause.to_string());
            source = cause.source();
        }
        problem
    }
}

/// A file that `agentctl apply` takes, as TOML; `agentctl export` prints one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// By name. Each declares the whole policy: a setting that is left out is the default.
    pub service: BTreeMap<String, PolicyPatch>,
}

/// The whole policies of services: a setting that is left out is the default. Services that are not named stay
/// as they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeclareRequest {
    /// By name; at least one.
    pub services: BTreeMap<String, PolicyPatch>,
    /// Refused unless the state is of this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// Declared beside running, as `agentctl plan --json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// Of the state that was compared; `apply` with it changes this state or none.
    pub generation: u64,
    /// All that were declared, by name.
    pub services: Vec<ServicePlan>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServicePlan {
    pub service: String,
    pub state: DeclaredState,
    /// The last `apply`; `null`: nobody ever declared it.
    pub applied: Option<MarkBody>,
    /// What `apply` would change, by name.
    pub differences: Vec<DifferenceBody>,
    /// What was done by hand and no file declares, such as a running canary. `apply` leaves it alone.
    pub undeclared: Vec<DifferenceBody>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeclaredState {
    /// The agent has never heard of it.
    Absent,
    /// Its policy waits for the first release.
    Declared,
    Deployed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DifferenceBody {
    /// A key of the file, or what else differs, such as `canary`.
    pub setting: String,
    /// `null`: nothing.
    pub declared: Value,
    /// `null`: nothing.
    pub running: Value,
    /// Who changed it since the last `apply`; `null`: nobody did.
    pub by_hand: Option<MarkBody>,
}

/// Who changed something, when, and by which command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MarkBody {
    pub actor: String,
    /// Unix time in ms.
    pub at_ms: u64,
    /// `apply`, `deploy`, `canary set`, …
    pub by: String,
}

/// What an `apply` did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Applied {
    /// Of the state now.
    pub generation: u64,
    /// False when every service was as declared.
    pub changed: bool,
    /// All that were declared, by name, as they were before: `differences` are gone now, `undeclared` is not.
    pub services: Vec<ServicePlan>,
}
