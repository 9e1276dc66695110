//! A service that lets nobody through for a while: paused, so that its visitors wait, or stopped, so that they see a
//! page. Nobody is lost, nobody is forgotten, and the team sees the app all the same.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use harness::{
    Answer, App, Ask, Begun, Crowd, DaemonOptions, Manner, Patient, Puma, Ran, Raw, Recorder, Socket,
    SocketEvent, World, eventually,
};
use model::protocol::{Event, HaltStatus, LoggedEvent, ServiceState, ServiceStatus};
use rustix::process::{Pid, Signal, kill_process};

fn shop(world: &World) -> ServiceStatus {
    let mut services = world.daemon.status().services;
    let at = services.iter().position(|one| one.name == "shop").expect("shop is deployed");
    services.swap_remove(at)
}

fn halt(world: &World) -> HaltStatus {
    shop(world).halt.expect("shop is paused or stopped")
}

/// Waits until so many requests wait for the end of the pause.
#[track_caller]
fn until_waiting(world: &World, count: u64) {
    eventually(&format!("{count} requests wait"), || {
        let halt = halt(world);
        if halt.waiting == count { Ok(()) } else { Err(format!("{halt:?}")) }
    });
}

/// Waits until so many requests are in flight on the stable release.
#[track_caller]
fn until_in_flight(world: &World, count: u64) {
    eventually(&format!("{count} requests are in flight"), || {
        let stable = shop(world).stable;
        let in_flight: u64 = stable.targets.iter().map(|target| target.in_flight).sum();
        if in_flight == count { Ok(()) } else { Err(format!("{stable:?}")) }
    });
}

#[track_caller]
fn until_state(world: &World, state: ServiceState) {
    eventually(&format!("shop is {state:?}"), || {
        let shop = shop(world);
        if shop.state == state { Ok(()) } else { Err(format!("{shop:?}")) }
    });
}

#[track_caller]
fn refused(answer: &Answer, status: u16, reason: &str) {
    let seen = (answer.status.as_u16(), answer.header("x-portcullis-reason"));
    assert_eq!(seen, (status, reason), "{answer}");
    assert_ne!(answer.header("retry-after"), "", "{answer}");
}

fn root() -> Ask {
    Ask::get("shop.test", "/")
}

/// A line of the access log for this path; waits for it.
#[track_caller]
fn logged(world: &World, path: &str) -> serde_json::Value {
    eventually(&format!("{path} is logged"), || {
        let lines = world.daemon.access_log();
        lines.iter().find(|line| line["path"] == path).cloned().ok_or_else(|| format!("{lines:?}"))
    })
}

#[test]
fn a_pause_under_load_with_a_deploy_inside_it_loses_nothing() {
    let (v1, v2) = (Puma::start(App::Rails, "v1"), Puma::start(App::Rails, "v2"));
    let world = World::start();
    world.deploy(&v1.target());
    let load = world.load("/");
    load.goes_on_for(30);
    let paused = Instant::now();
    let pause = world.agentctl(["pause", "shop", "--json"]).succeeds();
    let halted = pause
        .events()
        .into_iter()
        .any(|event| matches!(event, Event::Halted { state: ServiceState::Paused, .. }));
    assert!(halted, "{pause}");
    // Each connection of the load has one request that waits.
    until_waiting(&world, 6);
    world.deploy(&v2.target());
    assert_eq!(shop(&world).state, ServiceState::Paused, "a deploy does not resume");
    until_waiting(&world, 6);
    // The promise is for a pause of 5 s, whatever it has taken so far.
    std::thread::sleep(Duration::from_secs(5).saturating_sub(paused.elapsed()));
    let resumed = world.agentctl(["resume", "shop"]).succeeds();
    assert!(
        resumed.stdout().contains("serves again") && resumed.stdout().contains("6 requests waited"),
        "{resumed}"
    );
    load.goes_on_for(30);
    let seen = load.finish().lost_nothing();
    assert_eq!((seen.releases(), seen.last_body().as_str()), (vec!["v1", "v2"], "v2"), "{seen}");
    let longest = seen.samples.iter().map(|sample| sample.answered_ms - sample.sent_ms).max();
    assert!(longest >= Some(4_000), "some of them waited: {longest:?}");
    assert_eq!((shop(&world).state, shop(&world).halt), (ServiceState::Serving, None));
}

#[test]
fn a_pause_in_the_middle_of_a_deploy_holds_up_neither() {
    let v1 = Puma::start(App::Rack, "v1");
    let v2 = Puma::misbehaving(App::Rack, "v2", &[("BAD", "late_up")]);
    let world = World::start();
    world.deploy(&v1.target());
    let load = world.load("/");
    load.goes_on_for(10);
    let (operator, target) = (world.operator(), v2.target());
    let deploy = operator.start(["deploy", "shop", "--target", &target, "--bake", "0s"]);
    eventually("the deploy has the service", || shop(&world).operation.map(drop).ok_or_else(String::new));
    world.agentctl(["pause", "shop"]).succeeds();
    Ran::of(deploy).succeeds();
    world.agentctl(["resume", "shop"]).succeeds();
    load.goes_on_for(20);
    assert_eq!(load.finish().lost_nothing().last_body(), "v2");
}

#[test]
fn resume_while_the_pause_drains_lets_everybody_through_and_cuts_nobody() {
    let puma = Puma::start(App::Rails, "v1");
    let world = World::start();
    world.deploy(&puma.target());
    let slow = Ask::get("shop.test", "/slow?s=9").begin(world.http());
    let mut cable = Socket::open_cable(world.http(), "shop.test");
    until_in_flight(&world, 2);
    let load = world.load("/");
    load.goes_on_for(10);
    // It would cut after five seconds.
    let pause = world.operator().start(["pause", "shop", "--drain-timeout", "5s"]);
    until_state(&world, ServiceState::Paused);
    until_waiting(&world, 6);
    world.agentctl(["resume", "shop"]).succeeds();
    let ended = Ran::of(pause).fails_with(6);
    assert!(ended.stderr().contains("it was resumed"), "{ended}");
    load.goes_on_for(20);
    load.finish().lost_nothing();
    let answer = slow.finish().expect("an answer");
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "slow answer of v1"));
    // The cable may have been told to go before: a pause spreads that over its drain.
    match cable.next_event() {
        SocketEvent::Text(_) => assert_eq!(cable.cable_echo("still there"), "v1"),
        end => assert_eq!(end, SocketEvent::Closed(Some(1012))),
    }
}

#[test]
fn a_pause_drains_what_is_in_flight_before_it_ends() {
    let puma = Puma::start(App::Rails, "v1");
    let world = World::start();
    world.deploy(&puma.target());
    let slow = Ask::get("shop.test", "/slow?s=5").begin(world.http());
    let mut cable = Socket::open_cable(world.http(), "shop.test");
    let mut events = Raw::connect(world.http());
    events.send("GET /events HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    events.read_until(|seen| seen.contains("data: v1"));
    until_in_flight(&world, 3);
    let pause = world.agentctl(["pause", "shop", "--json"]).succeeds();
    until_in_flight(&world, 0);
    let drained = pause.events().into_iter().any(|event| matches!(event, Event::Drained { cut: 0, .. }));
    let draining = pause.events().into_iter().any(|event| matches!(event, Event::Draining { .. }));
    assert!(drained && draining, "{pause}");
    assert_eq!(slow.finish().expect("an answer").text(), "slow answer of v1");
    assert_eq!(cable.wait_for_the_end(), SocketEvent::Closed(Some(1012)));
    events.read_until(|seen| seen.ends_with("\r\n0\r\n\r\n"));
    // A browser's cable comes back at once, and waits like everybody.
    let mut back = Raw::connect(world.http());
    back.send(
        "GET /cable HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://shop.test\r\n\r\n",
    );
    until_waiting(&world, 1);
    world.agentctl(["resume", "shop"]).succeeds();
    back.read_until(|seen| seen.starts_with("HTTP/1.1 101"));
}

#[test]
fn an_operator_who_does_not_wait_for_the_drain_is_told_that_the_pause_holds() {
    let puma = Puma::start(App::Rack, "v1");
    let world = World::start();
    world.deploy(&puma.target());
    let slow = Ask::get("shop.test", "/slow?s=6").begin(world.http());
    until_in_flight(&world, 1);
    let pause = world.operator().start(["pause", "shop"]);
    until_state(&world, ServiceState::Paused);
    let pid = i32::try_from(pause.id()).ok().and_then(Pid::from_raw).expect("a child has a pid");
    kill_process(pid, Signal::INT).expect("it still runs");
    let ended = Ran::of(pause).fails_with(130);
    assert!(ended.stderr().contains("`agentctl resume shop` lets them through"), "{ended}");
    let waits = root().begin(world.http());
    until_waiting(&world, 1);
    assert_eq!(slow.finish().expect("an answer").status, 200);
    world.agentctl(["resume", "shop"]).succeeds();
    assert_eq!(waits.finish().expect("an answer").text(), "v1");
}

#[test]
fn what_does_not_drain_in_time_is_cut_and_told() {
    let puma = Puma::start(App::Rack, "v1");
    let world = World::start();
    world.deploy(&puma.target());
    let slow = Ask::get("shop.test", "/slow?s=60").begin(world.http());
    until_in_flight(&world, 1);
    let pause = world.agentctl(["pause", "shop", "--drain-timeout", "500ms"]).succeeds();
    assert!(pause.stdout().contains("1 in flight cut at the drain timeout"), "{pause}");
    refused(&slow.finish().expect("an answer"), 504, "drain_cut");
    // Repeating it changes nothing.
    let generation = world.daemon.status().generation;
    let again = world.agentctl(["pause", "shop"]).succeeds();
    assert!(!again.stdout().contains("cut"), "{again}");
    assert_eq!(world.daemon.status().generation, generation);
}

#[test]
fn who_waits_longer_than_the_pause_allows_is_told_to_come_back() {
    let app = Recorder::start();
    let world = World::start();
    world.deploy(&app.target());
    world.agentctl(["pause", "shop", "--max-pause", "500ms"]).succeeds();
    let late: Vec<Begun> = [root(), root().h2(), Ask::post("shop.test", "/", "order")]
        .iter()
        .map(|ask| ask.begin(world.http()))
        .collect();
    for one in late {
        refused(&one.finish().expect("an answer"), 504, "pause_timeout");
    }
    let line = logged(&world, "/");
    assert_eq!((&line["reason"], &line["service"]), (&"pause_timeout".into(), &"shop".into()));
    assert!(line["pause_ms"].as_f64().is_some_and(|ms| ms >= 500.0), "{line}");
    let series = r#"service="shop",release="r1",cohort="stable",target="",reason="pause_timeout""#;
    assert_eq!(world.daemon.metric(&format!("portcullis_own_answers_total{{{series}}}")), 3);
    assert_eq!(world.daemon.metric(r#"portcullis_paused_requests{service="shop"}"#), 0);
    // A longer one holds for those who come later, and the app has seen nobody.
    world.agentctl(["pause", "shop", "--max-pause", "5m"]).succeeds();
    let waits = root().begin(world.http());
    until_waiting(&world, 1);
    assert_eq!(world.daemon.metric(r#"portcullis_paused_requests{service="shop"}"#), 1);
    assert_eq!(world.daemon.metric(r#"portcullis_halted{service="shop",state="paused"}"#), 1);
    assert!(app.received().is_empty(), "{:?}", app.received());
    world.agentctl(["resume", "shop"]).succeeds();
    assert_eq!(waits.finish().expect("an answer").text(), "recorded");
}

#[test]
fn a_longer_pause_counts_for_those_who_wait_already() {
    let app = Recorder::start();
    let world = World::start();
    world.deploy(&app.target());
    world.agentctl(["pause", "shop", "--max-pause", "5s", "--max-waiting", "2"]).succeeds();
    let waits: Vec<Begun> = (0..2).map(|_| root().begin(world.http())).collect();
    until_waiting(&world, 2);
    // Those who wait are more than may wait now, and keep their places.
    world.agentctl(["pause", "shop", "--max-pause", "5m", "--max-waiting", "1"]).succeeds();
    until_waiting(&world, 2);
    refused(&root().at(world.http()), 503, "pause_full");
    // Longer than the first pause would have let them wait: that time must really pass in the daemon.
    std::thread::sleep(Duration::from_millis(5_500));
    assert_eq!(halt(&world).waiting, 2);
    world.agentctl(["resume", "shop"]).succeeds();
    for one in waits {
        assert_eq!(one.finish().expect("an answer").text(), "recorded");
    }
}

#[test]
fn what_will_be_refused_does_not_wait_for_it() {
    let app = Recorder::start();
    let world = World::start();
    world.deploy_with(&app.target(), &["--max-request-body", "10"]);
    world.agentctl(["pause", "shop", "--max-pause", "1h"]).succeeds();
    let answer = Ask::post("shop.test", "/", "more than ten").at(world.http());
    assert_eq!((answer.status.as_u16(), answer.header("x-portcullis-reason")), (413, "body_too_large"));
    let line = logged(&world, "/");
    assert_eq!((&line["service"], &line["pause_ms"]), (&"shop".into(), &serde_json::Value::Null), "{line}");
    assert_eq!(halt(&world).waiting, 0);
}

#[test]
fn pauses_leave_connections_for_the_other_services() {
    let app = Recorder::start();
    let world = World::with_limits("connections = 40\nconnections_per_client = 0", DaemonOptions::default());
    world.deploy(&app.target());
    for name in ["blog", "docs"] {
        let host = format!("{name}.test");
        let flags = ["--target", &app.target(), "--host", &host, "--bake", "0s"];
        world.operator().run(["deploy", name].iter().chain(&flags)).succeeds();
    }
    // Each by itself may keep more waiting than there is room for together: three quarters of the connections.
    for name in ["shop", "blog"] {
        world.agentctl(["pause", name, "--max-pause", "5m", "--max-waiting", "20"]).succeeds();
    }
    let mut waits: Vec<Begun> = (0..20).map(|_| root().begin(world.http())).collect();
    until_waiting(&world, 20);
    let blog = || Ask::get("blog.test", "/");
    waits.extend((0..10).map(|_| blog().begin(world.http())));
    eventually("so many wait for the other one, too", || {
        match world.daemon.metric(r#"portcullis_paused_requests{service="blog"}"#) {
            10 => Ok(()),
            other => Err(format!("{other}")),
        }
    });
    refused(&blog().at(world.http()), 503, "pause_full");
    assert_eq!(Ask::get("docs.test", "/").at(world.http()).text(), "recorded");
    // Who has a place keeps it, and gives it back in the end.
    world.agentctl(["pause", "shop", "--max-pause", "5m", "--max-waiting", "20"]).succeeds();
    until_waiting(&world, 20);
    world.agentctl(["resume", "shop"]).succeeds();
    waits.drain(..20).for_each(|one| assert_eq!(one.finish().expect("an answer").text(), "recorded"));
    let another = blog().begin(world.http());
    world.agentctl(["resume", "blog"]).succeeds();
    waits.into_iter().chain([another]).for_each(|one| {
        assert_eq!(one.finish().expect("an answer").text(), "recorded");
    });
}

#[test]
fn only_so_many_may_wait_and_who_leaves_makes_room() {
    let app = Recorder::start();
    let world = World::start();
    world.deploy_with(&app.target(), &["--tls", "--tls-redirect=false"]);
    world.agentctl(["pause", "shop", "--max-pause", "1h", "--max-waiting", "2"]).succeeds();
    let (http, https) = (world.http(), world.daemon.https());
    let stays = Ask::get("shop.test", "/stays").begin(http);
    until_waiting(&world, 1);
    for (ask, address) in
        [(root(), http), (root().tls(), https), (root().h2(), http), (root().tls().h2(), https)]
    {
        let leaves = ask.begin(address);
        until_waiting(&world, 2);
        refused(&root().at(http), 503, "pause_full");
        leaves.leave();
        until_waiting(&world, 1);
    }
    // A reset stream of a connection that lives on; and a client that closes its sending side only.
    let mut begun = root().tls().h2().begin(https);
    until_waiting(&world, 2);
    begun.reset();
    until_waiting(&world, 1);
    let mut raw = Raw::connect(http);
    raw.send("GET /left HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    until_waiting(&world, 2);
    raw.shut_write();
    until_waiting(&world, 1);
    // In the middle of an upload, most of which nobody has read, and behind it.
    for length in [1_000_000, 60_000] {
        let mut raw = Raw::connect(http);
        raw.send(format!("POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {length}\r\n\r\n"));
        raw.send(vec![b'x'; 60_000]);
        until_waiting(&world, 2);
        drop(raw);
        until_waiting(&world, 1);
    }
    let line = logged(&world, "/left");
    assert_eq!((&line["status"], &line["reason"]), (&499.into(), &"client_closed".into()), "{line}");
    assert!(line["pause_ms"].is_number(), "{line}");
    world.agentctl(["resume", "shop"]).succeeds();
    assert_eq!(stays.finish().expect("an answer").text(), "recorded");
    assert_eq!(app.received().len(), 1, "the app never sees those who left");
}

#[test]
fn stop_answers_those_who_wait_and_those_who_come() {
    let app = Recorder::start();
    let world = World::start();
    world.deploy(&app.target());
    world.agentctl(["pause", "shop", "--max-pause", "1h"]).succeeds();
    let waiting: Vec<Begun> = [root(), root().h2()].iter().map(|ask| ask.begin(world.http())).collect();
    until_waiting(&world, 2);
    world.agentctl(["stop", "shop", "--message", "Back at <b>noon</b>."]).succeeds();
    for one in waiting {
        let answer = one.finish().expect("an answer");
        refused(&answer, 503, "stopped");
        assert!(answer.text().contains("<p>Back at &lt;b&gt;noon&lt;/b&gt;.</p>"), "{answer}");
    }
    let answer = root().header("accept", "application/json").at(world.http());
    refused(&answer, 503, "stopped");
    assert_eq!(answer.json()["message"], "Back at <b>noon</b>.");
    let answer = Ask::post("shop.test", "/orders", vec![b'x'; 100_000]).at(world.http());
    refused(&answer, 503, "stopped");
    assert_eq!(logged(&world, "/orders")["reason"], "stopped");
    assert!(app.received().is_empty(), "{:?}", app.received());

    let shown = world.agentctl(["list"]).succeeds();
    assert!(shown.stdout().contains("stopped"), "{shown}");
    let shown = world.agentctl(["status", "shop"]).succeeds();
    assert!(shown.stdout().contains("message   Back at <b>noon</b>."), "{shown}");
    let events = world.agentctl(["events", "--json"]).succeeds();
    let events = events.stdout().lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
    let events: Vec<LoggedEvent> = events;
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["deploy", "pause", "stop"]);
    assert_eq!(events[2].actor, halt(&world).actor);

    world.agentctl(["resume", "shop"]).succeeds();
    assert_eq!(root().at(world.http()).text(), "recorded");
    let again = world.agentctl(["resume", "shop"]).succeeds();
    assert!(again.stdout().contains("nothing to do"), "{again}");
}

#[test]
fn the_team_sees_the_app_while_others_wait_or_see_the_page() {
    let app = Recorder::start();
    let world = World::with_args(["--trusted-proxy", "127.0.0.1/32"]);
    world.deploy(&app.target());
    let bypass = [
        "--bypass-header",
        "X-Team=blue",
        "--bypass-cookie",
        "team=4f1c",
        "--bypass-network",
        "192.0.2.0/24",
    ];
    for verb in ["pause", "stop"] {
        world.operator().run([verb, "shop"].iter().chain(&bypass)).succeeds();
        let member = |name: &str, value: &str| root().header(name, value);
        for ask in [
            member("x-team", "blue"),
            member("cookie", "a=b; team=4f1c"),
            member("x-forwarded-for", "192.0.2.7"),
            member("x-team", "blue").h2(),
        ] {
            let answer = ask.at(world.http());
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "recorded"), "{verb}");
        }
        let strangers =
            [member("x-team", "red"), member("cookie", "team=4f1"), member("x-forwarded-for", "192.0.3.7")];
        if verb == "pause" {
            let waiting: Vec<Begun> = strangers.iter().map(|ask| ask.begin(world.http())).collect();
            until_waiting(&world, 3);
            waiting.into_iter().for_each(Begun::leave);
        } else {
            strangers.iter().for_each(|ask| refused(&ask.at(world.http()), 503, "stopped"));
        }
    }
    assert_eq!(app.received().len(), 8);
    let line = logged(&world, "/");
    assert_eq!((&line["bypassed"], &line["status"]), (&true.into(), &200.into()), "{line}");
    let shown = world.agentctl(["status", "shop"]).succeeds();
    assert!(shown.stdout().contains("bypass    x-team=blue, team=4f1c, 192.0.2.0/24"), "{shown}");
}

#[test]
fn what_the_team_does_in_a_pause_is_not_drained_with_the_rest() {
    let puma = Puma::start(App::Rack, "v1");
    let world = World::start();
    world.deploy(&puma.target());
    let before = Ask::get("shop.test", "/slow?s=4").begin(world.http());
    until_in_flight(&world, 1);
    let pause = ["pause", "shop", "--drain-timeout", "8s", "--bypass-header", "x-team=1", "--json"];
    let pause = world.operator().start(pause);
    until_state(&world, ServiceState::Paused);
    // It begins while the pause drains, and takes longer than the drain may.
    let team = Ask::get("shop.test", "/slow?s=11").header("x-team", "1").begin(world.http());
    until_in_flight(&world, 2);
    let drained = |ran: &Ran| {
        ran.events().into_iter().find_map(|event| match event {
            Event::Drained { cut, .. } => Some(cut),
            _ => None,
        })
    };
    let pause = Ran::of(pause).succeeds();
    assert_eq!(drained(&pause), Some(0), "{pause}");
    assert_eq!(before.finish().expect("an answer").text(), "slow answer of v1");
    until_in_flight(&world, 1);
    let target = &shop(&world).stable.targets[0];
    assert!(target.last_probe.is_some(), "what probes saw is still known: {target:?}");
    // Another order drains what it finds closed, and nothing is.
    let stop = world.agentctl(["stop", "shop", "--drain-timeout", "0s", "--json"]).succeeds();
    assert_eq!(drained(&stop), None, "{stop}");
    assert_eq!(team.finish().expect("an answer").text(), "slow answer of v1");
}

#[test]
fn the_health_path_is_answered_for_whoever_balances() {
    let app = Recorder::start();
    let world = World::start();
    world.deploy_with(&app.target(), &["--health-check-path", "/up?full=1"]);
    let deploy = ["deploy", "admin", "--target", &app.target(), "--host", "shop.test", "--bake", "0s"];
    world.operator().run(deploy.iter().chain(&["--path-prefix", "/admin"])).succeeds();
    for order in [&["pause", "--max-pause", "300ms"][..], &["stop"]] {
        for service in ["shop", "admin"] {
            world.operator().run([order[0], service].iter().chain(&order[1..])).succeeds();
        }
        for path in ["/up", "/up?x=1", "/admin/up"] {
            for method in ["GET", "HEAD"] {
                let answer = Ask::get("shop.test", path).method(method).at(world.http());
                let seen = (answer.status.as_u16(), answer.text(), answer.header("x-portcullis-reason"));
                assert_eq!(seen, (200, String::new(), "halted_health"), "{method} {path}");
            }
        }
        let (status, reason) = if order[0] == "pause" { (504, "pause_timeout") } else { (503, "stopped") };
        for ask in [
            Ask::get("shop.test", "/upload"),
            Ask::get("shop.test", "/up/x"),
            Ask::get("shop.test", "/admin"),
            Ask::post("shop.test", "/up", ""),
        ] {
            refused(&ask.at(world.http()), status, reason);
        }
    }
    let probe = |line: &str| line.starts_with("GET /up?full=1 ");
    assert!(app.received().iter().all(|one| probe(one.request_line())), "{:?}", app.received());
    // A redirect comes first: a plain request to a service with TLS is not answered, but sent on.
    world.agentctl(["resume", "shop"]).succeeds();
    world.deploy_with(&app.target(), &["--tls"]);
    world.agentctl(["stop", "shop"]).succeeds();
    assert_eq!(Ask::get("shop.test", "/up").at(world.http()).status, 301);
    assert_eq!(Ask::get("shop.test", "/up").tls().at(world.daemon.https()).status, 200);
}

#[test]
fn a_pause_survives_a_kill_and_a_removed_service_forgets_it() {
    let app = Recorder::start();
    let mut world = World::start();
    world.deploy(&app.target());
    let order = ["pause", "shop", "--max-pause", "5m", "--max-waiting", "77", "--bypass-header", "x-team=1"];
    world.agentctl(order).succeeds();
    let before = halt(&world);
    world.daemon.kill_9();
    world.daemon.start_again();
    assert_eq!(halt(&world), before);
    let waits = root().begin(world.http());
    until_waiting(&world, 1);
    assert_eq!(root().header("x-team", "1").at(world.http()).text(), "recorded");
    world.agentctl(["resume", "shop"]).succeeds();
    assert_eq!(waits.finish().expect("an answer").text(), "recorded");

    world.agentctl(["stop", "shop", "--message", "Back soon."]).succeeds();
    let before = halt(&world);
    world.daemon.kill_9();
    world.daemon.start_again();
    assert_eq!((halt(&world), shop(&world).state), (before, ServiceState::Stopped));
    assert!(root().at(world.http()).text().contains("Back soon."));
    world.agentctl(["resume", "shop"]).succeeds();
    world.daemon.kill_9();
    world.daemon.start_again();
    assert_eq!(root().at(world.http()).text(), "recorded");

    world.agentctl(["pause", "shop"]).succeeds();
    let waits = root().begin(world.http());
    until_waiting(&world, 1);
    world.agentctl(["remove", "shop"]).succeeds();
    let answer = waits.finish().expect("an answer");
    assert_eq!((answer.status.as_u16(), answer.header("x-portcullis-reason")), (404, "unknown_host"));
    world.deploy(&app.target());
    assert_eq!(
        (shop(&world).state, root().at(world.http()).text()),
        (ServiceState::Serving, "recorded".to_owned())
    );
}

#[test]
fn deploys_rollbacks_and_canaries_go_on_and_do_not_resume() {
    let pumas = ["v1", "v2", "v3"].map(|release| Puma::start(App::Rack, release));
    let world = World::start();
    world.deploy(&pumas[0].target());
    world.agentctl(["stop", "shop", "--bypass-header", "x-team=1"]).succeeds();
    let seen = || {
        refused(&root().at(world.http()), 503, "stopped");
        root().header("x-team", "1").at(world.http()).text()
    };
    let told = |done: Ran| assert!(done.stdout().contains("`shop` is still stopped"), "{done}");
    told(world.deploy(&pumas[1].target()));
    assert_eq!(seen(), "v2");
    told(world.deploy(&pumas[1].target()));
    told(world.agentctl(["rollback", "shop"]).succeeds());
    assert_eq!(seen(), "v1");
    world
        .agentctl(["canary", "start", "shop", "--target", &pumas[2].target(), "--weight", "100%"])
        .succeeds();
    assert_eq!(seen(), "v3");
    world.agentctl(["canary", "abort", "shop"]).succeeds();
    assert_eq!(seen(), "v1");
    world.agentctl(["resume", "shop"]).succeeds();
    assert_eq!(root().at(world.http()).text(), "v1");
}

#[test]
fn those_who_waited_are_served_in_their_order_however_many_they_are() {
    let puma = Puma::start(App::Rack, "v1");
    let world = World::start();
    // Less than wait may stand in line, and for less time than it takes to serve them.
    let flags = ["--max-in-flight", "1", "--queue-max", "1", "--queue-timeout", "100ms"];
    world.deploy_with(&puma.target(), &flags);
    puma.get("/close");
    let first = Ask::get("shop.test", "/work?n=0").begin(world.http());
    until_in_flight(&world, 1);
    let pause = world.operator().start(["pause", "shop", "--max-pause", "5m"]);
    until_state(&world, ServiceState::Paused);
    let waiting: Vec<Begun> = (1..=60)
        .map(|n| {
            let ask = Ask::get("shop.test", &format!("/work?n={n}"));
            let begun = if n % 2 == 0 { ask } else { ask.h2() }.begin(world.http());
            until_waiting(&world, n);
            begun
        })
        .collect();
    puma.get("/open");
    assert_eq!(first.finish().expect("an answer").status, 200);
    Ran::of(pause).succeeds();
    puma.get("/close");
    world.agentctl(["resume", "shop"]).succeeds();
    // Longer than anybody else may stand there.
    eventually("all but one stand in line", || match shop(&world).stable.waiting {
        59 => Ok(()),
        other => Err(other.to_string()),
    });
    refused(&root().at(world.http()), 503, "queue_full");
    // Past the queue-timeout that holds for everybody else.
    std::thread::sleep(Duration::from_millis(500));
    puma.get("/open");
    for one in waiting {
        let answer = one.finish().expect("an answer");
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "v1"), "{answer}");
    }
    let crowd = puma.get("/crowd").json();
    let order: Vec<u64> = crowd["order"].as_array().unwrap().iter().filter_map(|n| n.as_u64()).collect();
    // Whoever woke first found the place free; the others had to stand in line, and stood in their order.
    assert_eq!((order.len(), order[0], &crowd["max"]), (61, 0, &1.into()), "{order:?}");
    assert!(order[2..].is_sorted(), "{order:?}");
}

#[test]
fn thousands_do_not_storm_the_app_at_once() {
    let (seen, door) = (Arc::new(AtomicUsize::new(0)), Arc::new((Mutex::new(false), Condvar::new())));
    let app = Recorder::scripted({
        let (seen, door) = (Arc::clone(&seen), Arc::clone(&door));
        move |_, stream| {
            seen.fetch_add(1, Ordering::SeqCst);
            let (open, opened) = &*door;
            drop(opened.wait_while(open.lock().expect("nobody panics"), |open| !*open));
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let world = World::start();
    world.deploy(&app.target());
    world.agentctl(["pause", "shop", "--max-pause", "1h"]).succeeds();
    let waiting: Vec<Begun> = (0..560).map(|_| root().begin(world.http())).collect();
    until_waiting(&world, 560);
    world.agentctl(["resume", "shop"]).succeeds();
    let count = || match seen.load(Ordering::SeqCst) {
        512.. => Ok(()),
        fewer => Err(fewer.to_string()),
    };
    eventually("the app has its hands full", count);
    // Newcomers need not wait for those who waited.
    let newcomer = root().begin(world.http());
    eventually("the newcomer is there", || match seen.load(Ordering::SeqCst) {
        513.. => Ok(()),
        fewer => Err(fewer.to_string()),
    });
    assert_eq!(seen.load(Ordering::SeqCst), 513);
    *door.0.lock().expect("nobody panics") = true;
    door.1.notify_all();
    for one in waiting.into_iter().chain([newcomer]) {
        assert_eq!(one.finish().expect("an answer").text(), "ok");
    }
}

#[test]
fn what_waits_for_a_place_when_the_pause_begins_waits_on() {
    let puma = Puma::start(App::Rack, "v1");
    let world = World::start();
    world.deploy_with(&puma.target(), &["--max-in-flight", "1", "--queue-timeout", "5m"]);
    puma.get("/close");
    let first = Ask::get("shop.test", "/work?n=0").begin(world.http());
    until_in_flight(&world, 1);
    let second = Ask::get("shop.test", "/work?n=1").begin(world.http());
    eventually("it stands in line", || match shop(&world).stable.waiting {
        1 => Ok(()),
        other => Err(other.to_string()),
    });
    let pause = world.operator().start(["pause", "shop", "--max-pause", "5m"]);
    until_state(&world, ServiceState::Paused);
    until_waiting(&world, 1);
    puma.get("/open");
    assert_eq!(first.finish().expect("an answer").status, 200);
    Ran::of(pause).succeeds();
    assert_eq!(puma.get("/crowd").json()["order"], serde_json::json!([0]), "the app is left alone");
    world.agentctl(["resume", "shop"]).succeeds();
    assert_eq!(second.finish().expect("an answer").status, 200);
}

#[test]
fn the_end_of_the_daemon_is_no_reason_to_wait() {
    let app = Recorder::start();
    let mut world = World::start();
    world.deploy(&app.target());
    world.agentctl(["pause", "shop", "--max-pause", "1h"]).succeeds();
    let waiting: Vec<Begun> = [root(), root().h2()].iter().map(|ask| ask.begin(world.http())).collect();
    until_waiting(&world, 2);
    world.daemon.terminate();
    for one in waiting {
        refused(&one.finish().expect("an answer"), 503, "shutting_down");
    }
    assert!(world.daemon.wait_for_the_end().success());
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let app = Recorder::start();
    let world = World::start();
    world.deploy(&app.target());
    for (args, code, says) in [
        (&["pause", "blog"][..], 1, "there is no service `blog`"),
        (&["stop", "blog"], 1, "there is no service `blog`"),
        (&["resume", "blog"], 1, "there is no service `blog`"),
        (&["pause", "shop", "--max-pause", "0s"], 2, "write more than zero"),
        (&["pause", "shop", "--drain-timeout", "30"], 2, "is not a duration"),
        (&["stop", "shop", "--message", "\u{1b}[2J"], 2, "control characters"),
        (&["stop", "shop", "--bypass-network", "office"], 2, "is not a network"),
    ] {
        let refused = world.operator().run(args).fails_with(code);
        assert!(refused.stderr().contains(says), "{args:?}: {refused}");
    }
    assert_eq!((world.daemon.status().generation, shop(&world).state), (1, ServiceState::Serving));
}

#[test]
fn a_stop_takes_over_from_a_pause_that_drains() {
    let puma = Puma::start(App::Rack, "v1");
    let world = World::start();
    world.deploy(&puma.target());
    let slow = Ask::get("shop.test", "/slow?s=6").begin(world.http());
    until_in_flight(&world, 1);
    let pause = world.operator().start(["pause", "shop"]);
    until_state(&world, ServiceState::Paused);
    let stop = world.agentctl(["stop", "shop", "--json"]).succeeds();
    let ended = Ran::of(pause).fails_with(6);
    assert!(ended.stderr().contains("a `stop` took over"), "{ended}");
    // It waits for the same request.
    assert!(stop.events().iter().any(|event| matches!(event, Event::Draining { requests: 1, .. })), "{stop}");
    assert_eq!(slow.finish().expect("an answer").text(), "slow answer of v1");
}

#[test]
fn the_process_has_a_health_url_of_its_own() {
    const PATH: &str = "/_portcullis/up";
    let args = ["--health-path", PATH, "--shutdown-delay", "1h"].map(Into::into).to_vec();
    let mut world = World::with(DaemonOptions { args, ..DaemonOptions::default() });
    let app = Patient::start();
    let http = world.http();
    // Before there is any service, for no host, any host, and one that is none.
    for head in [
        format!("GET {PATH} HTTP/1.0\r\n\r\n"),
        format!("HEAD {PATH}?from=lb HTTP/1.1\r\nConnection: close\r\n\r\n"),
        format!("GET {PATH} HTTP/1.1\r\nHost: 10.0.0.7\r\nConnection: close\r\n\r\n"),
        format!("GET {PATH} HTTP/1.1\r\nHost: a_b!\r\nConnection: close\r\n\r\n"),
    ] {
        let mut raw = Raw::connect(http);
        let answer = raw.send(&head).read_to_end();
        assert!(answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200"), "{head}: {answer}");
        assert!(answer.contains("x-portcullis-reason: process_health"), "{answer}");
    }
    assert_eq!(Ask::get("whoever.test", PATH).h2().at(http).status, 200);
    for (head, status) in [
        (format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"), "404"),
        (format!("GET {PATH}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), "404"),
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), "400"),
        (format!("GET {PATH} HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), "400"),
    ] {
        let answer = Raw::connect(http).send(&head).read_to_end();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {answer}");
    }
    // A service that is stopped says nothing about the process.
    world.deploy(&app.target());
    world.agentctl(["stop", "shop"]).succeeds();
    assert_eq!(Ask::get("shop.test", PATH).at(http).status, 200);
    world.agentctl(["resume", "shop"]).succeeds();

    // While the balancer takes its time to notice, everything goes on.
    world.daemon.terminate();
    eventually("the health URL says that the end is near", || {
        let answer = Ask::get("10.0.0.7", PATH).at(http);
        if answer.status == 503 { Ok(()) } else { Err(answer.to_string()) }
    });
    assert_eq!(root().at(http).text(), "patient");
    world.daemon.terminate();
    assert_eq!(world.daemon.wait_for_the_end().code(), Some(130), "a second signal ends it at once");
}

#[test]
fn without_a_health_path_there_is_none() {
    let world = World::start();
    assert_eq!(Ask::get("shop.test", "/_portcullis/up").at(world.http()).status, 404);
}

#[test]
fn slow_uploads_do_not_keep_others_waiting_behind_a_pause() {
    let app = Recorder::start();
    let limits = "bytes_per_second_min = 0\nconnections_per_client = 0";
    // One worker, so that they go on in the order in which they came.
    let options =
        DaemonOptions { args: ["--workers", "1"].map(Into::into).to_vec(), ..DaemonOptions::default() };
    let world = World::with_limits(limits, options);
    world.deploy(&app.target());
    world.agentctl(["pause", "shop", "--max-pause", "1h"]).succeeds();
    // More than may go on at a time, and none of them gets an answer.
    let every = Duration::from_secs(1);
    let slow = Manner::SlowBody { host: "shop.test", path: "/", every };
    let _crowd = Crowd::start(world.http(), 600, slow).settles();
    until_waiting(&world, 600);
    let last = root().begin(world.http());
    until_waiting(&world, 601);
    world.agentctl(["resume", "shop"]).succeeds();
    assert_eq!(last.finish().expect("an answer").text(), "recorded");
}
