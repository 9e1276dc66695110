//! Many clients of the control socket, and bad ones: nobody is locked out, and the daemon always ends.

use model::protocol::{LoggedEvent, Problem, ProblemCode};
use serde_json::json;

use super::quick;
use super::world::{Target, World};

const FOLLOW: &str = "/v1/events?follow=true";

#[tokio::test]
async fn followers_leave_room_for_others() {
    let world = World::start().await;
    let mut followers = Vec::new();
    for _ in 0..16 {
        followers.push(world.follow(FOLLOW).await);
    }
    assert!(followers.iter().all(|follower| follower.status() == 200));
    let one_more = world.get(FOLLOW).await;
    assert_eq!((one_more.status, one_more.json::<Problem>().code), (503, ProblemCode::Busy));
    assert_eq!(world.get("/v1/status").await.status, 200);
    followers.pop();
    world.until_async(async || world.follow(FOLLOW).await.status() == 200).await;
}

#[tokio::test]
async fn one_client_too_many_is_told_so() {
    let world = World::start().await;
    let sick = Target::start(500).await;
    let mut watched = Vec::new();
    // Those that anybody may have, and those that are kept for root and the daemon's user.
    for nth in 0..36 {
        let policy = json!({ "deploy_timeout": "10m", "hosts": [format!("s{nth}.test")] });
        let body = json!({ "targets": [sick.address], "policy": policy });
        watched.push(world.post_and_watch(&format!("/v1/services/s{nth}/deploy"), &body).await);
    }
    assert!(watched.iter().all(|operation| operation.status() == 200));
    let one_more = world.get("/v1/status").await;
    let problem: Problem = one_more.json();
    assert_eq!((one_more.status, problem.code), (503, ProblemCode::Busy));
    assert!(problem.hint.is_some());
    watched.clear();
    world.until_async(async || world.get("/v1/status").await.status == 200).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_hold_the_daemon() {
    let world = World::start().await;
    let target = Target::start(200).await;
    // A status that is longer than the kernel's buffers of a socket.
    let hosts: Vec<String> = (0..8_000).map(|nth| format!("shop-{nth}.{}.test", "x".repeat(40))).collect();
    let mut policy = quick();
    policy["hosts"] = json!(hosts);
    world.deploy("shop", &target, policy).await;
    let _stuck = world.ask_only("/v1/status").await;
    let world = world.restart().await;
    assert_eq!(world.get("/v1/status").await.status, 200);
}

#[tokio::test]
async fn a_refused_first_release_is_in_the_audit_log() {
    let world = World::start().await;
    let sick = Target::start(500).await;
    let body = json!({ "targets": [sick.address], "policy": { "deploy_timeout": "200ms" } });
    assert_eq!(world.post("/v1/services/shop/deploy", &body).await.failed().code, ProblemCode::GateFailed);
    let events: Vec<LoggedEvent> = world.get("/v1/events").await.lines();
    assert_eq!(events.len(), 1, "{events:?}");
    let refused = &events[0];
    assert_eq!((refused.kind.as_str(), refused.service.as_deref()), ("refused", Some("shop")), "{refused:?}");
    assert_eq!((refused.release.as_deref(), &refused.actor), (Some("r1"), &world.actor()));
}
