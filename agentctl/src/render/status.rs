//! The agent, its services and their targets.

use model::declared;
use model::protocol::{
    BypassBody, HaltStatus, Listeners, Operation, PolicyPatch, ReleaseStatus, SeatsStatus, ServiceStatus,
    Status, TargetRoleName, TargetStatus,
};

use super::age::age;
use super::certificates;
use super::clean;
use super::paint::{Paint, Tone};
use super::plan;
use super::table::{Cell, table};
use super::words::{
    self, counted, phase_text, service_state, state_text, target_state, target_tone, yes_or_no,
};

/// The whole agent: what it is, where it listens, what it serves.
pub(crate) fn agent(status: &Status, now_ms: u64, paint: Paint) -> String {
    let version = paint.paint(Tone::Strong, &format!("portcullis {}", clean::line(&status.version)));
    let up = age(now_ms, status.started_ms);
    format!(
        "{version} · up {up} · pid {} · {} · generation {}\n{}\n\n{}",
        status.pid,
        counted(u64::from(status.workers), "worker"),
        status.generation,
        listeners(&status.listeners),
        list(status, paint)
    )
}

fn listeners(listeners: &Listeners) -> String {
    let Listeners { http, https, metrics, control } = listeners;
    let all = [("http", http), ("https", https), ("metrics", metrics), ("control", control)];
    let shown = all.map(|(name, address)| format!("{name} {}", address.as_deref().unwrap_or("off")));
    clean::line(&shown.join(" · "))
}

/// One row for each service.
pub(crate) fn list(status: &Status, paint: Paint) -> String {
    let declared = declared(status);
    if status.services.is_empty() && declared.is_empty() {
        return "no services yet: `agentctl deploy NAME --target HOST:PORT` makes the first\n".to_owned();
    }
    if status.services.is_empty() {
        return declared;
    }
    let rows: Vec<_> = status.services.iter().map(list_row).collect();
    let table =
        table(["SERVICE", "STATE", "HOSTS", "PATHS", "TLS", "STABLE", "CANARY", "HELD", "NOW"], &rows, paint);
    table + &declared
}

/// The services that have a policy and no release yet.
fn declared(status: &Status) -> String {
    let names: Vec<&str> = status.declared.iter().map(|declared| declared.name.as_str()).collect();
    if names.is_empty() {
        return String::new();
    }
    format!("declared, without a release yet: {}\n", clean::line(&names.join(", ")))
}

fn list_row(service: &ServiceStatus) -> [Cell; 9] {
    let canary =
        service.canary.as_ref().map(|canary| format!("{} {}", canary.release.release, canary.weight));
    let held = service.held.as_ref().map(|held| held.release.as_str());
    let now = service.operation.as_ref().map(|operation| format!("{} {}", operation.verb, operation.release));
    [
        Cell::toned(Tone::Strong, &service.name),
        service_state(service.state),
        hosts(service).into(),
        service.path_prefixes.join(",").into(),
        yes_or_no(service.tls).into(),
        service.stable.release.as_str().into(),
        canary.unwrap_or_default().into(),
        held.unwrap_or_default().into(),
        now.unwrap_or_default().into(),
    ]
}

/// One service in detail.
pub(crate) fn service(service: &ServiceStatus, now_ms: u64, paint: Paint) -> String {
    let mut text = format!("{}\n", paint.paint(Tone::Strong, &clean::line(&service.name)));
    let mut add = |name: &str, value: &str| text.push_str(&format!("  {name:<10}{}\n", clean::line(value)));
    add("state", state_text(service.state));
    if let Some(halt) = &service.halt {
        for (name, value) in halt_lines(halt, now_ms) {
            add(name, &value);
        }
    }
    add("hosts", &hosts(service));
    add("paths", &service.path_prefixes.join(", "));
    add("tls", yes_or_no(service.tls));
    if let Some(canary) = &service.canary {
        add("canary", &format!("{} of the visitors, rollout {}", canary.weight, canary.rollout));
    }
    if let Some(operation) = &service.operation {
        add("now", &operation_text(operation, now_ms));
    }
    for one in &service.certificates {
        add("cert", &certificates::line(one, now_ms));
    }
    let waiting: Vec<_> = releases(service)
        .filter(|(_, release)| release.waiting > 0)
        .map(|(slot, release)| format!("{} for {slot}", counted(release.waiting, "request")))
        .collect();
    if !waiting.is_empty() {
        add("waiting", &waiting.join(", "));
    }
    format!("{text}\n{}\n{}", slots(service, now_ms, paint), settings(&service.policy, paint))
}

fn halt_lines(halt: &HaltStatus, now_ms: u64) -> Vec<(&'static str, String)> {
    let begun = format!("{} ago by {}", age(now_ms, halt.since_ms), halt.actor);
    let mut lines = vec![("since", begun)];
    if let Some(max_pause) = &halt.max_pause {
        let bound = halt.waiting_max.map(|max| format!(" of at most {max}")).unwrap_or_default();
        lines.push((
            "waiting",
            format!("{}{bound}, up to {max_pause} each", counted(halt.waiting, "request")),
        ));
    }
    lines.extend(halt.message.iter().map(|message| ("message", message.clone())));
    let BypassBody { headers, cookies, networks } = &halt.bypass;
    let bypass = [headers.as_slice(), cookies, networks].concat();
    if !bypass.is_empty() {
        lines.push(("bypass", bypass.join(", ")));
    }
    lines
}

fn operation_text(operation: &Operation, now_ms: u64) -> String {
    let Operation { verb, release, phase, actor, since_ms } = operation;
    format!("{verb} of {release} by {actor}, since {}, {}", age(now_ms, *since_ms), phase_text(*phase))
}

/// The releases in their slots, one row for each target.
fn slots(service: &ServiceStatus, now_ms: u64, paint: Paint) -> String {
    let rows: Vec<_> = releases(service)
        .flat_map(|(slot, release)| release.targets.iter().map(move |target| (slot, release, target)))
        .map(|(slot, release, target)| {
            let [address, state, in_flight, probe] = target_cells(target);
            let age = age(now_ms, release.created_ms);
            [slot.into(), release.release.as_str().into(), age.into(), address, state, in_flight, probe]
        })
        .collect();
    table(["SLOT", "RELEASE", "AGE", "TARGET", "STATE", "IN FLIGHT", "LAST PROBE"], &rows, paint)
}

/// The targets of several services, one row each.
pub(crate) fn targets(services: &[ServiceStatus], paint: Paint) -> String {
    let rows: Vec<_> = services
        .iter()
        .flat_map(|service| releases(service).map(move |(slot, release)| (service, slot, release)))
        .flat_map(|(service, slot, release)| {
            release.targets.iter().enumerate().map(move |(index, target)| {
                // The targets of a release share one line.
                let waiting = if index == 0 { release.waiting.to_string() } else { String::new() };
                let [address, state, in_flight, probe] = target_cells(target);
                let name = Cell::toned(Tone::Strong, &service.name);
                let release = release.release.as_str();
                [name, slot.into(), release.into(), address, state, in_flight, waiting.into(), probe]
            })
        })
        .collect();
    if rows.is_empty() {
        return "no targets: no service is deployed\n".to_owned();
    }
    let heads = ["SERVICE", "SLOT", "RELEASE", "TARGET", "STATE", "IN FLIGHT", "WAITING", "LAST PROBE"];
    table(heads, &rows, paint)
}

/// The targets of one release.
pub(crate) fn release_targets(release: &ReleaseStatus, paint: Paint) -> String {
    let rows: Vec<_> = release.targets.iter().map(target_cells).collect();
    table(["TARGET", "STATE", "IN FLIGHT", "LAST PROBE"], &rows, paint)
}

fn target_cells(target: &TargetStatus) -> [Cell; 4] {
    let probe = target.last_probe.as_deref().unwrap_or_default();
    [
        match target.role {
            TargetRoleName::Writer => target.target.as_str().into(),
            TargetRoleName::Reader => words::reader(&target.target).into(),
        },
        Cell::toned(target_tone(target.state), target_state(target.state)),
        in_flight(target).into(),
        clean::shorten(probe, 60).into(),
    ]
}

/// Such as `3/5`, or `3/5 +2` where two upgraded connections take no seat.
fn in_flight(target: &TargetStatus) -> String {
    let Some(SeatsStatus { taken, limit }) = target.seats else { return target.in_flight.to_string() };
    match target.in_flight.saturating_sub(u64::from(taken)) {
        0 => format!("{taken}/{limit}"),
        others => format!("{taken}/{limit} +{others}"),
    }
}

fn releases(service: &ServiceStatus) -> impl Iterator<Item = (&'static str, &ReleaseStatus)> {
    let canary = service.canary.as_ref().map(|canary| ("canary", &canary.release));
    let held = service.held.as_ref().map(|held| ("held", held));
    std::iter::once(("stable", &service.stable)).chain(canary).chain(held)
}

/// Where the policy differs from that of a new service, as flags of `deploy` that would set it.
fn settings(policy: &PolicyPatch, paint: Paint) -> String {
    // What an agent of another version means is for that agent to say: everything is shown then.
    let told = declared::policy(policy).map_or_else(|_| policy.clone(), |policy| declared::shortest(&policy));
    let Ok(serde_json::Value::Object(settings)) = serde_json::to_value(told) else {
        return String::new();
    };
    // Shown above already.
    let shown = |name: &str| !matches!(name, "hosts" | "path_prefixes" | "tls");
    let rows: Vec<_> = settings
        .iter()
        .filter(|(name, value)| shown(name) && !declared::text(value).is_empty())
        .map(|(name, value)| {
            [Cell::from(plan::flag(name, value.is_array())), Cell::from(declared::text(value))]
        })
        .collect();
    if rows.is_empty() {
        return "all settings are those of a new service\n".to_owned();
    }
    table(["SETTING", "VALUE"], &rows, paint)
}

fn hosts(service: &ServiceStatus) -> String {
    if service.hosts.is_empty() { "any".to_owned() } else { service.hosts.join(",") }
}

#[cfg(test)]
mod tests {
    use model::policy_patch;
    use model::protocol::DeclaredStatus;
    use serde_json::json;

    use super::*;
    use crate::render::samples::{self, NOW_MS};

    const PLAIN: fn() -> Paint = || Paint::new(false);

    #[test]
    fn a_whole_agent() {
        insta::assert_snapshot!(agent(&samples::status(), NOW_MS, PLAIN()), @r"
        portcullis 0.1.0 · up 3h · pid 812 · 2 workers · generation 7
        http 0.0.0.0:80 · https 0.0.0.0:443 · metrics off · control /run/portcullis/control.sock

        SERVICE  STATE     HOSTS                                PATHS  TLS  STABLE   CANARY         HELD     NOW
        docs     serving   any                                  /docs  no   r1       -              -        -
        shop     degraded  shop.example.com,*.shop.example.com  /      yes  3f9c2ab  c0ffee1 0.25%  77aa001  canary start c0ffee1
        ");
    }

    #[test]
    fn an_agent_without_services() {
        let status = Status { services: Vec::new(), workers: 1, ..samples::status() };
        insta::assert_snapshot!(agent(&status, NOW_MS, PLAIN()), @r"
        portcullis 0.1.0 · up 3h · pid 812 · 1 worker · generation 7
        http 0.0.0.0:80 · https 0.0.0.0:443 · metrics off · control /run/portcullis/control.sock

        no services yet: `agentctl deploy NAME --target HOST:PORT` makes the first
        ");
    }

    #[test]
    fn services_without_a_release() {
        let waiting = |name: &str| DeclaredStatus { name: name.into(), policy: PolicyPatch::default() };
        let mut status = Status {
            services: vec![samples::quiet_service()],
            declared: vec![waiting("blog"), waiting("wiki")],
            ..samples::status()
        };
        insta::assert_snapshot!(list(&status, PLAIN()), @r"
        SERVICE  STATE    HOSTS  PATHS  TLS  STABLE  CANARY  HELD  NOW
        docs     serving  any    /docs  no   r1      -       -     -
        declared, without a release yet: blog, wiki
        ");
        status.services.clear();
        assert_eq!(list(&status, PLAIN()), "declared, without a release yet: blog, wiki\n");
    }

    #[test]
    fn a_service_in_detail() {
        insta::assert_snapshot!(service(&samples::busy_service(), NOW_MS, PLAIN()), @r"
        shop
          state     degraded
          hosts     shop.example.com,*.shop.example.com
          paths     /
          tls       yes
          canary    0.25% of the visitors, rollout c0ffee1
          now       canary start of c0ffee1 by deploy (uid 1001) from 192.0.2.7, since 12s, gating
          waiting   17 requests for stable

        SLOT    RELEASE  AGE  TARGET          STATE    IN FLIGHT  LAST PROBE
        stable  3f9c2ab  42m  127.0.0.1:3001  serving  3/3 +1     200 in 3ms
        stable  3f9c2ab  42m  127.0.0.1:3002  ejected  4          connection refused\u{1b}[2J
        canary  c0ffee1  5m   127.0.0.1:3003  ready    4          200 in 4ms
        held    77aa001  2h   127.0.0.1:3000  held     4          200 in 2ms

        SETTING        VALUE
        max-in-flight  5
        ");
    }

    #[test]
    fn settings_that_differ_from_a_new_services() {
        let of = |policy: serde_json::Value| settings(&serde_json::from_value(policy).unwrap(), PLAIN());
        insta::assert_snapshot!(of(json!({})), @"all settings are those of a new service");
        let whole = policy_patch::from_policy(&declared::policy(&PolicyPatch::default()).unwrap());
        assert_eq!(settings(&whole, PLAIN()), of(json!({})), "the agent says all of them");
        insta::assert_snapshot!(
            of(json!({
                "hosts": ["a.test", "b.test"], "canonical_host": "a.test", "tls": true, "tls_redirect": false,
                "health_check_path": "/up", "bake": "0s", "max_request_body_bytes": 0, "buffer_requests": true,
                "log_request_headers": ["x-a", "x-b"],
            })),
            @r"
        SETTING             VALUE
        bake                0s
        buffer-requests     true
        canonical-host      a.test
        log-request-header  x-a,x-b
        max-request-body    0
        tls-redirect        false
        "
        );
        // No policy that this version knows.
        insta::assert_snapshot!(of(json!({ "bake": "a while", "health_check_path": "/up" })), @r"
        SETTING            VALUE
        bake               a while
        health-check-path  /up
        ");
    }

    #[test]
    fn a_service_that_lets_nobody_through() {
        let head = |halted: ServiceStatus| {
            let text = service(&halted, NOW_MS, PLAIN());
            text.split("\n\n").next().unwrap_or_default().to_owned()
        };
        insta::assert_snapshot!(head(samples::paused_service()), @r"
        docs
          state     paused
          since     5m ago by ann (uid 1001)
          waiting   12 requests of at most 500, up to 2m each
          bypass    x-team=1, 10.0.0.0/8
          hosts     any
          paths     /docs
          tls       no
        ");
        insta::assert_snapshot!(head(samples::stopped_service()), @r"
        docs
          state     stopped
          since     5m ago by ann (uid 1001)
          message   Back at 6:00. Sorry!
          hosts     any
          paths     /docs
          tls       no
        ");
    }

    #[test]
    fn all_targets() {
        insta::assert_snapshot!(targets(&samples::status().services, PLAIN()), @r"
        SERVICE  SLOT    RELEASE  TARGET          STATE    IN FLIGHT  WAITING  LAST PROBE
        docs     stable  r1       127.0.0.1:4000  serving  4          0        200 in 1ms
        shop     stable  3f9c2ab  127.0.0.1:3001  serving  3/3 +1     17       200 in 3ms
        shop     stable  3f9c2ab  127.0.0.1:3002  ejected  4          -        connection refused\u{1b}[2J
        shop     canary  c0ffee1  127.0.0.1:3003  ready    4          0        200 in 4ms
        shop     held    77aa001  127.0.0.1:3000  held     4          0        200 in 2ms
        ");
        insta::assert_snapshot!(targets(&[], PLAIN()), @"no targets: no service is deployed");
    }
}
