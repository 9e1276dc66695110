//! The control plane as a whole: its socket, real targets on loopback, a real state directory, and the
//! snapshot that the data plane would read.

mod crowd;
mod going_back;
mod world;

use model::protocol::{
    CanarySetRequest, DeploymentPhase, Done, Event, History, LoggedEvent, OutcomeName, Problem, ProblemCode,
    ServiceState, ServiceStatus, Status, TargetStateName,
};
use serde_json::json;

use self::world::{Target, World};
use crate::telemetry::metrics::Observation;

fn quick() -> serde_json::Value {
    json!({ "hosts": ["shop.test"], "bake": "0s", "deploy_timeout": "5s", "health_check_interval": "50ms",
            "drain_timeout": "5s" })
}

#[tokio::test]
async fn a_service_is_deployed_replaced_rolled_back_and_removed() {
    let world = World::start().await;
    let (one, two) = (Target::start(200).await, Target::start(200).await);
    let first = world.deploy("shop", &one, quick()).await;
    assert_eq!((first.stable.as_deref(), first.held, first.changed), (Some("r1"), None, true));
    assert_eq!(world.served("shop.test"), Some(("r1".into(), one.address.clone())));

    let again = world.deploy("shop", &one, quick()).await;
    assert!(!again.changed && again.generation == first.generation, "{again:?}");

    let second = world.deploy("shop", &two, json!({})).await;
    assert_eq!((second.stable.as_deref(), second.held.as_deref()), (Some("r2"), Some("r1")));
    assert_eq!(world.served("shop.test"), Some(("r2".into(), two.address.clone())));

    let back = world.post("/v1/services/shop/rollback", &json!({})).await;
    assert_eq!(back.done().stable.as_deref(), Some("r1"));
    assert!(!back.events.iter().any(|event| matches!(event, Event::Probed { .. })), "no gate in the way");
    assert_eq!(world.served("shop.test"), Some(("r1".into(), one.address.clone())));

    let history: History = world.get("/v1/services/shop/history").await.json();
    let outcomes: Vec<_> = history.entries.iter().map(|entry| entry.outcome).collect();
    assert_eq!(outcomes, [OutcomeName::RolledBack, OutcomeName::Deployed, OutcomeName::Deployed]);

    let status: Status = world.get("/v1/status").await.json();
    assert_eq!((status.services.len(), status.generation), (1, 3));
    assert_eq!(status.services[0].state, ServiceState::Serving);

    assert_eq!(world.delete("/v1/services/shop").await.done().stable, None);
    assert_eq!(world.served("shop.test"), None);
    let events = world.get("/v1/events").await;
    let kinds: Vec<String> = events.lines::<LoggedEvent>().into_iter().map(|event| event.kind).collect();
    let kinds: Vec<&str> = kinds.iter().map(String::as_str).filter(|kind| !kind.contains("target")).collect();
    assert_eq!(kinds, ["deploy", "deploy", "rollback", "remove"]);
}

#[tokio::test]
async fn a_release_that_fails_its_gate_changes_nothing() {
    let world = World::start().await;
    let (good, bad) = (Target::start(200).await, Target::start(500).await);
    world.deploy("shop", &good, quick()).await;
    let body = json!({ "targets": [bad.address], "policy": { "deploy_timeout": "400ms" } });
    let refused = world.post("/v1/services/shop/deploy", &body).await;
    let problem = refused.failed();
    assert_eq!(problem.code, ProblemCode::GateFailed);
    assert!(problem.diagnosis.is_some() && problem.hint.is_some(), "{problem:?}");
    assert_eq!(world.served("shop.test").unwrap().0, "r1");
    let history: History = world.get("/v1/services/shop/history").await.json();
    assert_eq!(history.entries[0].outcome, OutcomeName::Refused);
    // The settings of a refused deploy are not taken over either.
    let service: ServiceStatus = world.get("/v1/services/shop").await.json();
    assert_eq!(service.policy.deploy_timeout.as_deref(), Some("5s"));
}

#[tokio::test]
async fn what_can_be_refused_is_refused_before_the_wait() {
    let world = World::start().await;
    let target = Target::start(200).await;
    world.deploy("shop", &target, quick()).await;
    let with = |policy: serde_json::Value| json!({ "targets": [target.address], "policy": policy });
    for (path, body, status, code) in [
        ("/v1/services/blog/deploy", with(json!({ "hosts": ["shop.test"] })), 409, ProblemCode::Conflict),
        (
            "/v1/services/blog/deploy",
            with(json!({ "health_check_interval": "0s" })),
            422,
            ProblemCode::Invalid,
        ),
        ("/v1/services/blog/deploy", with(json!({ "bogus": 1 })), 422, ProblemCode::Invalid),
        ("/v1/services/blog/deploy", json!({ "targets": [] }), 422, ProblemCode::Invalid),
        ("/v1/services/blog/deploy", json!({ "targets": ["http://a:1"] }), 422, ProblemCode::Invalid),
        ("/v1/services/bl%20og/deploy", with(json!({})), 422, ProblemCode::Invalid),
        (
            "/v1/services/blog/deploy",
            with(
                json!({ "tls": true, "tls_certificate_path": "/no/c.pem", "tls_private_key_path": "/no/k.pem" }),
            ),
            422,
            ProblemCode::Certificate,
        ),
        ("/v1/services/blog/rollback", json!({}), 404, ProblemCode::NotFound),
        ("/v1/services/shop/rollback", json!({}), 409, ProblemCode::Conflict),
        ("/v1/services/shop/rollback", json!({ "release": "r9" }), 404, ProblemCode::NotFound),
        ("/v1/services/shop/canary/set", json!({ "weight": "5%" }), 404, ProblemCode::NotFound),
        ("/v1/services/shop/canary/set", json!({ "weight": "101%" }), 422, ProblemCode::Invalid),
        ("/v1/nonsense", json!({}), 404, ProblemCode::NotFound),
        ("/v1/status", json!({}), 405, ProblemCode::Invalid),
    ] {
        let answered = world.post(path, &body).await;
        let problem: Problem = answered.json();
        assert_eq!((answered.status, problem.code), (status, code), "{path} {body}: {problem:?}");
    }
    let status: Status = world.get("/v1/status").await.json();
    assert_eq!(status.generation, 1, "nothing changed");
    assert!(status.services[0].operation.is_none(), "nothing is left claimed");
}

#[tokio::test]
async fn web_pages_and_large_bodies_are_refused() {
    let world = World::start().await;
    let page = world.send("GET", "/v1/status", &[("origin", "https://evil.test")], String::new()).await;
    assert_eq!((page.status, page.json::<Problem>().code), (403, ProblemCode::Denied));
    let large = "x".repeat((1 << 20) + 1);
    let refused = world.send("POST", "/v1/services/shop/deploy", &[], large).await;
    assert_eq!(refused.json::<Problem>().code, ProblemCode::Invalid);
}

#[tokio::test]
async fn a_canary_is_started_weighed_and_promoted_or_given_up() {
    let world = World::start().await;
    let (stable, canary) = (Target::start(200).await, Target::start(200).await);
    world.deploy("shop", &stable, quick()).await;
    let start = json!({ "targets": [canary.address], "weight": "5%", "release": "next" });
    let started = world.post("/v1/services/shop/canary/start", &start).await.done();
    assert_eq!((started.canary.as_deref(), started.weight.as_deref()), (Some("next"), Some("5%")));
    assert_eq!(world.canary_weight("shop.test").as_deref(), Some("5%"));

    let twice = world.post("/v1/services/shop/canary/start", &start).await;
    assert_eq!(twice.json::<Problem>().code, ProblemCode::Conflict);
    let deploy = json!({ "targets": [canary.address] });
    let blocked = world.post("/v1/services/shop/deploy", &deploy).await;
    assert_eq!(blocked.json::<Problem>().code, ProblemCode::Conflict);

    let weight = serde_json::to_value(CanarySetRequest { weight: "50%".into() }).unwrap();
    let set: Done = world.post("/v1/services/shop/canary/set", &weight).await.json();
    assert!(set.changed && set.weight.as_deref() == Some("50%"));
    assert_eq!(world.canary_weight("shop.test").as_deref(), Some("50%"));

    let promoted = world.post("/v1/services/shop/canary/promote", &json!({})).await.done();
    assert_eq!((promoted.stable.as_deref(), promoted.held.as_deref()), (Some("next"), Some("r1")));
    assert_eq!((promoted.canary, world.canary_weight("shop.test")), (None, None));

    let start = json!({ "targets": [stable.address], "weight": "1%" });
    world.post("/v1/services/shop/canary/start", &start).await.done();
    let aborted = world.post("/v1/services/shop/canary/abort", &json!({})).await.done();
    assert_eq!((aborted.stable.as_deref(), aborted.canary), (Some("next"), None));
}

#[tokio::test]
async fn a_restart_serves_what_was_acknowledged() {
    let world = World::start().await;
    let (one, two, three) = (Target::start(200).await, Target::start(200).await, Target::start(200).await);
    world.deploy("shop", &one, quick()).await;
    let tls = json!({ "tls": true, "hosts": ["shop.test", "www.shop.test"] });
    world.deploy("shop", &two, tls).await;
    let start =
        json!({ "targets": [three.address], "weight": "25%", "overrides": { "cookies": ["beta=1"] } });
    world.post("/v1/services/shop/canary/start", &start).await.done();
    let before: Status = world.get("/v1/status").await.json();

    let world = world.restart().await;
    assert_eq!(world.served("www.shop.test"), Some(("r2".into(), two.address.clone())));
    assert_eq!(world.canary_weight("shop.test").as_deref(), Some("25%"));
    assert!(world.has_certificate("shop.test") && !world.has_certificate("other.test"));
    let after: Status = world.get("/v1/status").await.json();
    let without_health = |status: &Status| {
        let mut services = status.services.clone();
        let releases = services.iter_mut().flat_map(|service| {
            let canary = service.canary.as_mut().map(|canary| &mut canary.release);
            std::iter::once(&mut service.stable).chain(canary).chain(service.held.as_mut())
        });
        releases.flat_map(|release| &mut release.targets).for_each(|target| target.last_probe = None);
        services
    };
    assert_eq!(after.generation, before.generation);
    assert_eq!(without_health(&after), without_health(&before));
    assert_eq!(
        world.post("/v1/services/shop/rollback", &json!({})).await.done().stable.as_deref(),
        Some("r1")
    );
}

#[tokio::test]
async fn a_bad_bake_takes_the_release_back() {
    let world = World::start().await;
    let (one, two) = (Target::start(200).await, Target::start(200).await);
    world.deploy("shop", &one, quick()).await;
    let body = json!({ "targets": [two.address], "policy": { "bake": "60s" } });
    let deploy = world.post("/v1/services/shop/deploy", &body);
    let trouble = async {
        world.until(|| world.served("shop.test").is_some_and(|(release, _)| release == "r2")).await;
        let bad = Observation { status: 502, ..Observation::default() };
        (0..30).for_each(|_| world.release("shop.test").targets[0].stats.record(0, &bad));
    };
    let (deployed, ()) = tokio::join!(deploy, trouble);
    let problem = deployed.failed();
    assert_eq!(problem.code, ProblemCode::Reverted);
    assert_eq!(world.served("shop.test"), Some(("r1".into(), one.address.clone())));
    let history: History = world.get("/v1/services/shop/history").await.json();
    assert_eq!(history.entries[0].outcome, OutcomeName::Reverted);
}

#[tokio::test]
async fn a_deploy_waits_for_those_in_flight_and_a_rollback_takes_it_over() {
    let world = World::start().await;
    let (one, two) = (Target::start(200).await, Target::start(200).await);
    world.deploy("shop", &one, quick()).await;
    let old = world.release("shop.test");
    let request = old.enter(&old.targets[0], 0).unwrap();
    let body = json!({ "targets": [two.address] });
    let deploy = world.post("/v1/services/shop/deploy", &body);
    let rollback = async {
        world.until(|| old.is_closed()).await;
        assert!(old.enter(&old.targets[0], 0).is_none(), "nobody enters what was replaced");
        world.until_operation("shop", DeploymentPhase::Draining).await;
        let other = world.post("/v1/services/shop/deploy", &body).await;
        assert_eq!(other.json::<Problem>().code, ProblemCode::Conflict);
        let rollback = world.post("/v1/services/shop/rollback", &json!({})).await;
        drop(request);
        rollback
    };
    let (deployed, rolled_back) = tokio::join!(deploy, rollback);
    assert_eq!(deployed.failed().code, ProblemCode::Reverted);
    assert_eq!(rolled_back.done().stable.as_deref(), Some("r1"));
    assert_eq!(world.served("shop.test").unwrap().0, "r1");
}

#[tokio::test]
async fn the_old_release_is_drained_and_what_stays_is_cut() {
    let world = World::start().await;
    let (one, two) = (Target::start(200).await, Target::start(200).await);
    world.deploy("shop", &one, quick()).await;
    let old = world.release("shop.test");
    let stuck = old.enter(&old.targets[0], 0).unwrap();
    let mut ending = old.ending();
    let leave_when_cut = async {
        let cut = |ending: &crate::release::Ending| *ending == crate::release::Ending::Cut;
        ending.wait_for(cut).await.unwrap();
        drop(stuck);
    };
    let body = json!({ "targets": [two.address], "policy": { "drain_timeout": "100ms" } });
    let (deployed, ()) = tokio::join!(world.post("/v1/services/shop/deploy", &body), leave_when_cut);
    assert!(deployed.events.iter().any(|event| matches!(event, Event::Drained { cut: 1, .. })));
    assert_eq!(deployed.done().stable.as_deref(), Some("r2"));
}

#[tokio::test]
async fn a_disk_that_refuses_changes_nothing_and_recovers() {
    let world = World::start().await;
    let (one, two) = (Target::start(200).await, Target::start(200).await);
    world.deploy("shop", &one, quick()).await;
    // Root writes everywhere: a directory where the unfinished file goes is an obstacle for root as well.
    let obstacle = world.state_dir().join(format!("state.json.tmp-{}", std::process::id()));
    std::fs::create_dir(&obstacle).unwrap();
    let refused = world.post("/v1/services/shop/deploy", &json!({ "targets": [two.address] })).await;
    assert_eq!(refused.failed().code, ProblemCode::Storage);
    assert_eq!(world.served("shop.test").unwrap().0, "r1");
    assert!(!world.release("shop.test").is_closed());
    std::fs::remove_dir(&obstacle).unwrap();
    assert_eq!(world.deploy("shop", &two, json!({})).await.stable.as_deref(), Some("r2"));
}

#[tokio::test]
async fn a_held_release_that_is_gone_is_not_flipped_to() {
    let world = World::start().await;
    let (one, two) = (Target::start(200).await, Target::start(200).await);
    world.deploy("shop", &one, quick()).await;
    world.deploy("shop", &two, json!({})).await;
    one.stop().await;
    world
        .until_async(async || {
            let events = world.get("/v1/events").await.lines::<LoggedEvent>();
            events.iter().any(|event| event.kind == "held target lost")
        })
        .await;
    let refused: Problem = world.post("/v1/services/shop/rollback", &json!({})).await.json();
    let hint = refused.hint.unwrap();
    assert!(hint.contains("agentctl rollback shop r1"), "{hint}");
    assert_eq!(world.served("shop.test").unwrap().0, "r2");
}

#[tokio::test]
async fn the_last_target_is_tried_although_it_is_sick() {
    let world = World::start().await;
    let target = Target::start(200).await;
    world.deploy("shop", &target, quick()).await;
    target.stop().await;
    world
        .until_async(async || {
            let service: ServiceStatus = world.get("/v1/services/shop").await.json();
            service.state == ServiceState::Degraded
                && service.stable.targets[0].state == TargetStateName::Suspect
        })
        .await;
    assert!(world.served("shop.test").is_some());
}

#[tokio::test]
async fn a_deploy_goes_on_without_its_caller() {
    let world = World::start().await;
    let target = Target::start(200).await;
    let body = json!({ "targets": [target.address], "policy": quick() });
    world.post_and_hang_up("/v1/services/shop/deploy", &body).await;
    world.until(|| world.served("shop.test").is_some()).await;
}

#[tokio::test]
async fn followers_hear_what_happens() {
    let world = World::start().await;
    let target = Target::start(200).await;
    let mut follower = world.follow("/v1/events?follow=true").await;
    world.deploy("shop", &target, quick()).await;
    let event: LoggedEvent = follower.next_line().await;
    assert_eq!((event.kind.as_str(), event.release.as_deref()), ("deploy", Some("r1")));
    assert_eq!(event.actor, world.actor());
}
