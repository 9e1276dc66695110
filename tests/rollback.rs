//! Going back is a pointer flip: no boot, no gate, at once; and it leads to somebody who is there.

use harness::{App, Puma, Recorder, Summary, World};
use model::protocol::Event;

#[test]
fn rollback_moves_every_new_request_at_once() {
    let world = World::start();
    let (v1, v2) = (Puma::start(App::Rack, "v1"), Puma::start(App::Rack, "v2"));
    world.deploy(&v1.target());
    world.deploy(&v2.target());
    let load = world.load("/");
    load.goes_on_for(50);
    let rollback = world.agentctl(["--json", "rollback", "shop"]).succeeds();
    load.goes_on_for(50);
    let seen = load.finish().lost_nothing();

    let events = rollback.events();
    let at_ms = switched_at_ms(&events);
    assert!(!events.iter().any(|event| matches!(event, Event::Probed { .. })), "no probe: {rollback}");
    moved_within_10_ms(&seen, at_ms, "v1");
    assert_eq!(seen.last_body(), "v1", "{seen}");
}

#[test]
fn a_held_release_that_has_just_died_gets_no_traffic() {
    let world = World::start();
    let (mut v1, v2) = (Puma::start(App::Rack, "v1"), Puma::start(App::Rack, "v2"));
    world.deploy(&v1.target());
    world.deploy(&v2.target());
    let load = world.load("/");
    v1.stop();
    let refused = world.agentctl(["rollback", "shop"]).fails_with(4);
    assert!(refused.stderr().contains("does not answer its probes"), "{refused}");
    load.goes_on_for(20);
    let seen = load.finish().lost_nothing();
    assert_eq!(seen.releases(), ["v2"], "{seen}");
}

#[test]
fn an_address_that_another_release_had_is_no_way_back() {
    let world = World::start();
    let puma = |name: &str| Puma::start(App::Rack, name);
    let (mut v1, v2) = (puma("v1"), puma("v2"));
    world.deploy(&v1.target());
    world.deploy(&v2.target());
    let target = v1.target();
    v1.stop();
    // Whoever answers there now is not what served before.
    let listener = std::net::TcpListener::bind(&target).expect("the address is free again");
    let bad = Recorder::on(listener, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    let args = ["deploy", "shop", "--target", &target, "--host", "shop.test", "--deploy-timeout", "2s"];
    world.agentctl(args).fails_with(5);
    let refused = world.agentctl(["rollback", "shop"]).fails_with(4);
    assert!(refused.stderr().contains("holds no previous release"), "{refused}");
    assert_eq!(world.get("/").text(), "v2");
    drop(bad);
}

#[test]
fn an_older_release_comes_back_through_the_gate() {
    let world = World::start();
    let pumas: Vec<_> = ["a", "b", "c"].map(|name| Puma::start(App::Rack, name)).into();
    for puma in &pumas {
        world.deploy_with(&puma.target(), &["--release", &puma.release]);
    }
    let load = world.load("/");
    world.agentctl(["rollback", "shop", "a"]).succeeds();
    assert_eq!(world.get("/").text(), "a");
    load.finish().lost_nothing();

    let history = world.agentctl(["--json", "history", "shop"]).succeeds().json();
    let newest = &history["entries"][0];
    assert_eq!((&newest["release"], &newest["outcome"]), (&"a".into(), &"rolled_back".into()), "{history}");
}

#[test]
fn an_older_release_that_is_gone_changes_nothing() {
    let world = World::start();
    let mut pumas: Vec<_> = ["a", "b", "c"].map(|name| Puma::start(App::Rack, name)).into();
    for puma in &pumas {
        world.deploy_with(&puma.target(), &["--release", &puma.release, "--deploy-timeout", "2s"]);
    }
    pumas[0].stop();
    let load = world.load("/");
    world.agentctl(["rollback", "shop", "a"]).fails_with(5);
    let seen = load.finish().lost_nothing();
    assert_eq!(seen.releases(), ["c"], "{seen}");
}

#[test]
fn there_must_be_something_to_go_back_to() {
    let world = World::start();
    let v1 = Puma::start(App::Rack, "v1");
    world.deploy(&v1.target());
    let refused = world.agentctl(["rollback", "shop"]);
    assert!(matches!(refused.code(), Some(1 | 4)), "{refused}");
    let unknown = world.agentctl(["rollback", "shop", "no-such-release"]).fails_with(1);
    assert!(unknown.stderr().contains("no-such-release"), "{unknown}");
}

fn switched_at_ms(events: &[Event]) -> u64 {
    let switched = events.iter().find_map(|event| match event {
        Event::Switched { at_ms, .. } => Some(*at_ms),
        _ => None,
    });
    switched.unwrap_or_else(|| panic!("no switch in {events:#?}"))
}

/// Every request that was *sent* 10 ms or more after the switch was answered by `release`.
///
/// The client's clock is the test: the app's own timestamp comes later than the routing by however long the
/// machine was busy. Both are on one machine, and the app's is printed.
fn moved_within_10_ms(seen: &Summary, at_ms: u64, release: &str) {
    let old_after = |from_ms: u64| {
        seen.samples.iter().filter(move |sample| sample.sent_ms >= from_ms).filter_map(|sample| {
            let answer = sample.result.as_ref().ok()?;
            let served_ms: u64 = answer.header("x-served-at-ms").parse().ok()?;
            (answer.header("x-release") != release).then_some(served_ms)
        })
    };
    let last_old_ms = old_after(0).max().unwrap_or_default();
    println!(
        "last request served by the old release: {} ms after the switch",
        last_old_ms as i64 - at_ms as i64
    );
    let late: Vec<_> = old_after(at_ms + 10).collect();
    assert!(late.is_empty(), "sent 10 ms after {at_ms} and answered by the old release: {late:?}");
}
