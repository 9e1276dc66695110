//! Replies to render in tests: a quiet service, and one with everything going on.

use model::protocol::{
    BypassBody, CanaryStatus, DeploymentPhase, HaltStatus, Listeners, Operation, OverridesBody, PolicyPatch,
    ReleaseStatus, SeatsStatus, ServiceState, ServiceStatus, Status, TargetRoleName, TargetStateName,
    TargetStatus,
};

pub(crate) const NOW_MS: u64 = 1_795_000_000_000;
const MINUTE_MS: u64 = 60_000;

pub(crate) fn status() -> Status {
    Status {
        version: "0.1.0".into(),
        pid: 812,
        started_ms: NOW_MS - 3 * 60 * MINUTE_MS,
        generation: 7,
        listeners: Listeners {
            http: Some("0.0.0.0:80".into()),
            https: Some("0.0.0.0:443".into()),
            metrics: None,
            control: Some("/run/portcullis/control.sock".into()),
        },
        workers: 2,
        services: vec![quiet_service(), busy_service()],
        declared: Vec::new(),
    }
}

pub(crate) fn quiet_service() -> ServiceStatus {
    ServiceStatus {
        name: "docs".into(),
        state: ServiceState::Serving,
        hosts: Vec::new(),
        path_prefixes: vec!["/docs".into()],
        tls: false,
        stable: release(
            "r1",
            9 * 24 * 60,
            &[target("127.0.0.1:4000", TargetStateName::Serving, "200 in 1ms")],
        ),
        canary: None,
        held: None,
        operation: None,
        policy: PolicyPatch::default(),
        halt: None,
        certificates: Vec::new(),
    }
}

pub(crate) fn busy_service() -> ServiceStatus {
    ServiceStatus {
        name: "shop".into(),
        state: ServiceState::Degraded,
        hosts: vec!["shop.example.com".into(), "*.shop.example.com".into()],
        path_prefixes: vec!["/".into()],
        tls: true,
        stable: crowded(release(
            "3f9c2ab",
            42,
            &[
                target("127.0.0.1:3001", TargetStateName::Serving, "200 in 3ms"),
                target("127.0.0.1:3002", TargetStateName::Ejected, "connection refused\x1b[2J"),
            ],
        )),
        canary: Some(canary()),
        held: Some(release("77aa001", 120, &[target("127.0.0.1:3000", TargetStateName::Held, "200 in 2ms")])),
        operation: Some(Operation {
            verb: "canary start".into(),
            release: "c0ffee1".into(),
            phase: DeploymentPhase::Gating,
            actor: "deploy (uid 1001) from 192.0.2.7".into(),
            since_ms: NOW_MS - 12_000,
        }),
        policy: PolicyPatch {
            max_in_flight: Some(5),
            hosts: Some(vec!["shop.example.com".into(), "*.shop.example.com".into()]),
            tls: Some(true),
            tls_redirect: Some(true),
            health_check_path: Some("/up".into()),
            drain_timeout: Some("30s".into()),
            max_request_body_bytes: Some(1 << 30),
            canonical_host: Some(String::new()),
            ..PolicyPatch::default()
        },
        halt: None,
        certificates: Vec::new(),
    }
}

pub(crate) fn paused_service() -> ServiceStatus {
    let bypass = BypassBody {
        headers: vec!["x-team=1".into()],
        networks: vec!["10.0.0.0/8".into()],
        ..BypassBody::default()
    };
    let (max_pause, waiting_max) = (Some("2m".into()), Some(500));
    let halt = HaltStatus { waiting: 12, max_pause, waiting_max, bypass, ..halt() };
    ServiceStatus { state: ServiceState::Paused, halt: Some(halt), ..quiet_service() }
}

pub(crate) fn stopped_service() -> ServiceStatus {
    let halt = HaltStatus { message: Some("Back at 6:00.\nSorry!".into()), ..halt() };
    ServiceStatus { state: ServiceState::Stopped, halt: Some(halt), ..quiet_service() }
}

fn halt() -> HaltStatus {
    HaltStatus {
        actor: "ann (uid 1001)".into(),
        since_ms: NOW_MS - 5 * MINUTE_MS,
        waiting: 0,
        max_pause: None,
        waiting_max: None,
        message: None,
        bypass: BypassBody::default(),
    }
}

pub(crate) fn canary() -> CanaryStatus {
    CanaryStatus {
        release: release("c0ffee1", 5, &[target("127.0.0.1:3003", TargetStateName::Ready, "200 in 4ms")]),
        weight: "0.25%".into(),
        rollout: "c0ffee1".into(),
        overrides: OverridesBody {
            headers: vec!["x-canary=1".into()],
            networks: vec!["10.0.0.0/8".into(), "fd00::/8".into()],
            ..OverridesBody::default()
        },
    }
}

fn release(name: &str, minutes_old: u64, targets: &[TargetStatus]) -> ReleaseStatus {
    let created_ms = NOW_MS - minutes_old * MINUTE_MS;
    ReleaseStatus { release: name.into(), created_ms, waiting: 0, targets: targets.to_vec() }
}

/// The first target's seats are all taken, one beside an upgraded connection.
fn crowded(mut release: ReleaseStatus) -> ReleaseStatus {
    let seats = SeatsStatus { taken: 3, limit: 3 };
    release.targets[0] = TargetStatus { seats: Some(seats), ..release.targets[0].clone() };
    ReleaseStatus { waiting: 17, ..release }
}

fn target(address: &str, state: TargetStateName, probe: &str) -> TargetStatus {
    let last_probe = Some(probe.into());
    TargetStatus {
        target: address.into(),
        state,
        in_flight: 4,
        seats: None,
        last_probe,
        role: TargetRoleName::Writer,
    }
}
