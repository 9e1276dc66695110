//! Ways back that are none: what a rollback or a revert must not do.

use model::protocol::{
    DeploymentPhase, History, LoggedEvent, OutcomeName, Problem, ProblemCode, ServiceStatus,
};
use serde_json::json;

use super::quick;
use super::world::{Target, World};
use crate::telemetry::metrics::Observation;

/// Three in ten answers of the release that serves are gateway errors.
fn trouble(world: &World) {
    let bad = Observation { status: 502, ..Observation::default() };
    let good = Observation { status: 200, ..Observation::default() };
    let stats = &world.release("shop.test").targets[0].stats;
    (0..30).for_each(|n| stats.record(0, if n % 10 < 3 { &bad } else { &good }));
}

async fn until_served(world: &World, release: &str) {
    world.until(|| world.served("shop.test").is_some_and(|(served, _)| served == release)).await;
}

#[tokio::test]
async fn a_held_release_that_has_just_died_gets_no_traffic() {
    let world = World::start().await;
    let (one, two) = (Target::start(200).await, Target::start(200).await);
    world.deploy("shop", &one, quick()).await;
    world.deploy("shop", &two, json!({})).await;
    one.stop().await;
    // No probe of the monitor's has failed so often that it would know.
    let refused: Problem = world.post("/v1/services/shop/rollback", &json!({})).await.json();
    assert_eq!(refused.code, ProblemCode::Conflict);
    assert!(refused.causes[0].contains("connection refused"), "{refused:?}");
    assert_eq!(world.served("shop.test").unwrap().0, "r2");
}

#[tokio::test]
async fn a_bad_release_serves_on_if_the_old_one_is_gone() {
    let world = World::start().await;
    let (one, two) = (Target::start(200).await, Target::start(200).await);
    world.deploy("shop", &one, quick()).await;
    let body = json!({ "targets": [two.address], "policy": { "bake": "60s" } });
    let deploy = world.post("/v1/services/shop/deploy", &body);
    let meanwhile = async {
        until_served(&world, "r2").await;
        one.stop().await;
        trouble(&world);
    };
    let (deployed, ()) = tokio::join!(deploy, meanwhile);
    let problem = deployed.failed();
    assert_eq!(problem.code, ProblemCode::Aborted);
    assert!(problem.message.contains("`r2` of `shop` did badly but still serves"), "{problem:?}");
    assert_eq!(world.served("shop.test").unwrap().0, "r2");
    let events = world.get("/v1/events").await.lines::<LoggedEvent>();
    assert!(events.iter().any(|event| event.kind == "revert given up"), "{events:?}");
}

#[tokio::test]
async fn settings_are_taken_back_without_a_word_against_the_release() {
    let world = World::start().await;
    let one = Target::start(200).await;
    world.deploy("shop", &one, quick()).await;
    let body = json!({ "targets": [one.address], "policy": { "bake": "60s", "target_timeout": "1ms" } });
    let deploy = world.post("/v1/services/shop/deploy", &body);
    let meanwhile = async {
        world.until_operation("shop", DeploymentPhase::Baking).await;
        trouble(&world);
    };
    let (deployed, ()) = tokio::join!(deploy, meanwhile);
    let problem = deployed.failed();
    assert_eq!(problem.code, ProblemCode::Reverted);
    assert!(problem.message.starts_with("the new settings of `shop` were taken back"), "{problem:?}");
    let history: History = world.get("/v1/services/shop/history").await.json();
    let outcomes: Vec<_> = history.entries.iter().map(|entry| entry.outcome).collect();
    assert_eq!(outcomes, [OutcomeName::Deployed]);
    let service: ServiceStatus = world.get("/v1/services/shop").await.json();
    assert_eq!(service.policy.bake.as_deref(), Some("0s"));
}

#[tokio::test]
async fn a_rollback_during_a_revert_does_not_go_two_back() {
    let world = World::start().await;
    let (one, two, three) = (Target::start(200).await, Target::start(200).await, Target::start(200).await);
    world.deploy("shop", &one, quick()).await;
    world.deploy("shop", &two, json!({})).await;
    let body = json!({ "targets": [three.address], "policy": { "bake": "60s" } });
    let deploy = world.post("/v1/services/shop/deploy", &body);
    let meanwhile = async {
        until_served(&world, "r3").await;
        let bad = world.release("shop.test");
        let request = bad.enter(&bad.targets[0], 0).unwrap();
        trouble(&world);
        until_served(&world, "r2").await;
        world.until_operation("shop", DeploymentPhase::Reverted).await;
        let refused: Problem = world.post("/v1/services/shop/rollback", &json!({})).await.json();
        assert_eq!(refused.code, ProblemCode::Conflict);
        drop(request);
    };
    let (deployed, ()) = tokio::join!(deploy, meanwhile);
    assert_eq!(deployed.failed().code, ProblemCode::Reverted);
    assert_eq!(world.served("shop.test").unwrap().0, "r2");
}

#[tokio::test]
async fn a_rollback_that_is_typed_twice_does_not_undo_itself() {
    let world = World::start().await;
    let (one, two) = (Target::start(200).await, Target::start(200).await);
    world.deploy("shop", &one, quick()).await;
    world.deploy("shop", &two, json!({})).await;
    let left = world.release("shop.test");
    let request = left.enter(&left.targets[0], 0).unwrap();
    let nameless = json!({});
    let first = world.post("/v1/services/shop/rollback", &nameless);
    let meanwhile = async {
        world.until_operation("shop", DeploymentPhase::Draining).await;
        let again: Problem = world.post("/v1/services/shop/rollback", &json!({})).await.json();
        assert_eq!(again.code, ProblemCode::Conflict);
        assert_eq!(world.served("shop.test").unwrap().0, "r1");
        // Who names a release means it, and the first one may not say that all is over.
        let named = world.post("/v1/services/shop/rollback", &json!({ "release": "r2" })).await;
        drop(request);
        named
    };
    let (first, named) = tokio::join!(first, meanwhile);
    assert_eq!(named.done().stable.as_deref(), Some("r2"));
    let problem = first.failed();
    assert_eq!(problem.code, ProblemCode::Reverted);
    assert!(problem.message.contains("a rollback took over"), "{problem:?}");
}

#[tokio::test]
async fn a_shutdown_is_no_success_while_the_old_release_holds_a_request() {
    let world = World::start().await;
    let (one, two) = (Target::start(200).await, Target::start(200).await);
    world.deploy("shop", &one, quick()).await;
    let old = world.release("shop.test");
    let request = old.enter(&old.targets[0], 0).unwrap();
    let body = json!({ "targets": [two.address] });
    let deploy = world.post("/v1/services/shop/deploy", &body);
    let meanwhile = async {
        world.until_operation("shop", DeploymentPhase::Draining).await;
        world.begin_to_stop();
    };
    let (deployed, ()) = tokio::join!(deploy, meanwhile);
    let problem = deployed.failed();
    assert_eq!(problem.code, ProblemCode::Aborted);
    assert!(problem.message.contains("`shop` runs release `r2`"), "{problem:?}");
    assert!(problem.message.contains("release `r1` still holds 1 request"), "{problem:?}");
    drop(request);
}

#[tokio::test]
async fn the_same_targets_in_another_order_are_the_same_release() {
    let world = World::start().await;
    let (one, two) = (Target::start(200).await, Target::start(200).await);
    let body =
        |targets: [&Target; 2]| json!({ "targets": targets.map(|one| &one.address), "policy": quick() });
    let first = world.post("/v1/services/shop/deploy", &body([&one, &two])).await.done();
    let again = world.post("/v1/services/shop/deploy", &body([&two, &one])).await.done();
    assert!(!again.changed && again.generation == first.generation, "{again:?}");
}

#[tokio::test]
async fn the_last_line_says_which_certificate_is_shown() {
    let world = World::start().await;
    let one = Target::start(200).await;
    let plain = world.deploy("shop", &one, quick()).await;
    assert!(!plain.message.contains("HTTPS"), "{plain:?}");
    for changed in [true, false] {
        let done = world.deploy("shop", &one, json!({ "tls": true })).await;
        assert_eq!(done.changed, changed);
        assert!(done.message.contains("HTTPS shows a self-signed placeholder"), "{done:?}");
    }
}
