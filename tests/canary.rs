//! A canary is sticky, monotone, and the same on every VM of a fleet.

use std::collections::BTreeMap;

use harness::{App, Ask, Browser, DaemonOptions, Puma, Socket, SocketEvent, World};
use model::protocol::{ServiceState, TargetStateName};

/// The service `shop` with `stable` and, at `weight`, `canary`.
fn with_canary(world: &World, stable: &Puma, canary: &Puma, weight: &str, more: &[&str]) {
    world.deploy_with(&stable.target(), &["--visitor-header", "x-user"]);
    let target = canary.target();
    let args = ["canary", "start", "shop", "--target", &target, "--release", "next", "--weight", weight];
    world.operator().run(args.iter().chain(more)).succeeds();
}

fn pumas() -> (Puma, Puma) {
    (Puma::start(App::Rack, "stable"), Puma::start(App::Rack, "canary"))
}

fn release_of(world: &World, visitor: &str) -> String {
    let answer = Ask::get("shop.test", "/").header("x-user", visitor).at(world.http());
    assert_eq!(answer.status, 200, "{answer}");
    answer.text()
}

#[test]
fn two_machines_with_one_secret_agree_on_every_visitor() {
    let (stable, canary) = pumas();
    let options = || DaemonOptions {
        env: vec![("PORTCULLIS_FLEET_SECRET".to_owned(), "the same everywhere".to_owned())],
        ..DaemonOptions::default()
    };
    let worlds = [World::with(options()), World::with(options())];
    for world in &worlds {
        with_canary(world, &stable, &canary, "30%", &[]);
    }
    let chosen =
        |world: &World| -> Vec<String> { (1..=300).map(|n| release_of(world, &n.to_string())).collect() };
    let [here, there] = worlds.each_ref().map(chosen);
    assert_eq!(here, there);
    let share = here.iter().filter(|release| *release == "canary").count();
    // 3σ of 300 at 30 % is 24; the visitors are fixed by the secret, so this never flickers.
    assert!((66..=114).contains(&share), "{share} of 300");
}

#[test]
fn raising_the_weight_moves_nobody_back() {
    let world = World::start();
    let (stable, canary) = pumas();
    with_canary(&world, &stable, &canary, "0%", &[]);
    let mut before: BTreeMap<u32, String> = BTreeMap::new();
    for weight in ["0%", "0.5%", "5%", "25%", "50%", "100%"] {
        world.agentctl(["canary", "set", "shop", weight]).succeeds();
        for visitor in 1..=100 {
            let now = release_of(&world, &visitor.to_string());
            let was = before.insert(visitor, now.clone());
            assert!(was.as_deref() != Some("canary") || now == "canary", "visitor {visitor} at {weight}");
            assert!(weight != "0%" || now == "stable", "0 % admits nobody");
            assert!(weight != "100%" || now == "canary", "100 % admits everybody");
        }
    }
}

#[test]
fn a_browser_stays_where_it_is_across_reloads() {
    let world = World::start();
    let (stable, canary) = pumas();
    with_canary(&world, &stable, &canary, "50%", &[]);
    let mut seen = BTreeMap::new();
    for n in 0..20 {
        let mut browser = Browser::new(world.http(), "shop.test", &format!("browser {n}"));
        let first = browser.get("/").text();
        assert_eq!(browser.cookies.len(), 1, "one cookie: {:?}", browser.cookies);
        for _ in 0..5 {
            assert_eq!(browser.get("/").text(), first);
        }
        *seen.entry(first).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 2, "both releases have visitors: {seen:?}");
}

#[test]
fn no_cookie_is_set_unless_a_canary_runs() {
    let world = World::start();
    let (stable, canary) = pumas();
    with_canary(&world, &stable, &canary, "50%", &[]);
    let visitor_cookie = |world: &World| world.get("/").header("set-cookie").to_owned();
    let cookie = visitor_cookie(&world);
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
    world.agentctl(["canary", "abort", "shop"]).succeeds();
    assert_eq!(visitor_cookie(&world), "");
}

#[test]
fn overrides_come_before_the_weight() {
    let world = World::start();
    let (stable, canary) = pumas();
    let overrides = ["--header", "x-canary=yes", "--cookie", "preview=1", "--visitor", "boss"];
    with_canary(&world, &stable, &canary, "0%", &overrides);
    for (header, value, want) in [
        ("x-canary", "yes", "canary"),
        ("x-canary", "no", "stable"),
        ("cookie", "a=b; preview=1", "canary"),
        ("cookie", "preview=12", "stable"),
        ("x-user", "boss", "canary"),
        ("x-user", "boss2", "stable"),
    ] {
        let answer = Ask::get("shop.test", "/").header(header, value).at(world.http());
        assert_eq!(answer.text(), want, "{header}: {value}");
    }
}

#[test]
fn a_socket_stays_open_when_the_weight_changes() {
    let world = World::start();
    let (stable, canary) = (Puma::start(App::Rails, "stable"), Puma::start(App::Rack, "canary"));
    with_canary(&world, &stable, &canary, "0%", &[]);
    let mut cable = Socket::open_cable(world.http(), "shop.test");
    assert_eq!(cable.cable_echo("before"), "stable");
    for weight in ["50%", "100%", "10%"] {
        world.agentctl(["canary", "set", "shop", weight]).succeeds();
        assert_eq!(cable.cable_echo(weight.trim_end_matches('%')), "stable", "it chose once, at the upgrade");
    }
    drop(stable);
    assert_ne!(cable.wait_for_the_end(), SocketEvent::Text(String::new()));
}

#[test]
fn a_promoted_canary_serves_everybody_and_the_old_release_is_held() {
    let world = World::start();
    let (stable, canary) = pumas();
    with_canary(&world, &stable, &canary, "10%", &[]);
    let load = world.load("/");
    world.agentctl(["canary", "promote", "shop"]).succeeds();
    assert_eq!(world.get("/").text(), "canary");
    world.agentctl(["rollback", "shop"]).succeeds();
    assert_eq!(world.get("/").text(), "stable");
    load.finish().lost_nothing();
}

#[test]
fn an_aborted_canary_loses_no_request() {
    let world = World::start();
    let (stable, canary) = pumas();
    with_canary(&world, &stable, &canary, "100%", &[]);
    let load = world.load("/");
    load.goes_on_for(10);
    world.agentctl(["canary", "abort", "shop"]).succeeds();
    load.goes_on_for(10);
    let seen = load.finish().lost_nothing();
    assert_eq!((seen.releases(), seen.last_body().as_str()), (vec!["canary", "stable"], "stable"), "{seen}");
}

#[test]
fn a_deploy_does_not_run_over_a_canary() {
    let world = World::start();
    let (stable, canary) = pumas();
    with_canary(&world, &stable, &canary, "10%", &[]);
    let next = Puma::start(App::Rack, "next");
    let target = next.target();
    let refused = world.agentctl(["deploy", "shop", "--target", &target, "--bake", "0s"]).fails_with(4);
    assert!(refused.stderr().contains("--replace-canary"), "{refused}");
    world.agentctl(["deploy", "shop", "--target", &target, "--bake", "0s", "--replace-canary"]).succeeds();
    assert_eq!(world.get("/").text(), "next");
    assert_eq!(world.daemon.status().services[0].canary, None);
}

#[test]
fn a_bad_canary_gets_nobody() {
    let world = World::start();
    let stable = Puma::start(App::Rack, "stable");
    world.deploy(&stable.target());
    let target = harness::free_address().to_string();
    let canary = ["canary", "start", "shop", "--target", &target, "--weight", "100%"];
    // The gate's patience is the service's.
    world.deploy_with(&stable.target(), &["--deploy-timeout", "1s"]);
    world.agentctl(canary).fails_with(5);
    assert_eq!(world.get("/").text(), "stable");
    assert_eq!(world.daemon.status().services[0].canary, None);
}

#[test]
fn a_dead_canary_leaves_its_share_to_stable() {
    let world = World::start();
    let (stable, mut canary) = pumas();
    with_canary(&world, &stable, &canary, "100%", &[]);
    assert_eq!(world.get("/").text(), "canary");
    canary.stop();
    harness::eventually("stable has the whole share", || match world.get("/") {
        answer if answer.status == 200 => {
            assert_eq!(answer.text(), "stable");
            Ok(())
        }
        answer => Err(answer.to_string()),
    });
    let load = world.load("/");
    load.goes_on_for(50);
    assert_eq!(load.finish().lost_nothing().releases(), ["stable"]);
    let shop = &world.daemon.status().services[0];
    assert_eq!(shop.state, ServiceState::Degraded, "{shop:#?}");
    assert_eq!(shop.stable.targets[0].state, TargetStateName::Serving, "{shop:#?}");
    let events = world.agentctl(["events"]).succeeds();
    assert!(events.stdout().contains("last target down"), "{events}");
}
