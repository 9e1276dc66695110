//! A Puma that is never overrun: no more requests at a time than it has threads, the rest in line, first come,
//! first served, and everybody else unharmed.

use std::thread::JoinHandle;

use harness::{Answer, App, Ask, Begun, Load, LoadPlan, Puma, Raw, Socket, World, eventually};
use model::protocol::{ReleaseStatus, SeatsStatus};

/// A world where `puma` serves `shop` with these flags.
fn protected(puma: &Puma, flags: &[&str]) -> World {
    let world = World::start();
    world.deploy_with(&puma.target(), flags);
    world
}

fn stable(world: &World) -> ReleaseStatus {
    world
        .daemon
        .status()
        .services
        .into_iter()
        .find(|one| one.name == "shop")
        .expect("shop is deployed")
        .stable
}

/// Waits until so many wait in line and so many seats of all targets are taken.
#[track_caller]
fn until(world: &World, taken: u32, waiting: u64) {
    eventually(&format!("{taken} seats are taken and {waiting} requests wait"), || {
        let stable = stable(world);
        let seats: u32 =
            stable.targets.iter().filter_map(|target| target.seats).map(|seats| seats.taken).sum();
        if (seats, stable.waiting) == (taken, waiting) { Ok(()) } else { Err(format!("{stable:?}")) }
    });
}

/// Nothing is left of whatever happened.
#[track_caller]
fn until_empty(world: &World) {
    until(world, 0, 0);
    eventually("nothing is in flight", || {
        let stable = stable(world);
        if stable.targets.iter().all(|target| target.in_flight == 0) {
            Ok(())
        } else {
            Err(format!("{stable:?}"))
        }
    });
}

fn work(n: usize) -> Ask {
    Ask::get("shop.test", &format!("/work?n={n}"))
}

/// The numbers of the requests that the app has seen, in the order of their arrival.
fn order(puma: &Puma) -> Vec<usize> {
    let crowd = puma.get("/crowd").json();
    let order = crowd["order"].as_array().expect("an order").iter();
    order.map(|n| n.as_u64().expect("a number") as usize).collect()
}

fn most_at_once(puma: &Puma) -> u64 {
    puma.get("/crowd").json()["max"].as_u64().expect("a number")
}

#[track_caller]
fn refused_with(answer: &Answer, reason: &str) {
    let seen = (answer.status.as_u16(), answer.header("x-portcullis-reason"), answer.header("retry-after"));
    assert_eq!(seen, (503, reason, "5"), "{answer}");
}

#[test]
fn five_hundred_at_once_are_served_five_at_a_time_and_in_their_order() {
    const BATCH: usize = 25;
    let (puma, other) = (Puma::start(App::Rack, "v1"), Puma::start(App::Rack, "calm"));
    let flags =
        ["--max-in-flight", "5", "--queue-max", "495", "--queue-timeout", "5m", "--target-timeout", "5m"];
    let world = protected(&puma, &flags);
    world
        .agentctl(["deploy", "calm", "--target", &other.target(), "--host", "calm.test", "--bake", "0s"])
        .succeeds();
    let calm = LoadPlan { host: "calm.test".to_owned(), ..LoadPlan::default() };
    let calm = Load::start(world.http(), calm);

    puma.get("/close");
    let mut crowd = Vec::new();
    for sent in (BATCH..=500).step_by(BATCH) {
        crowd.extend(
            (sent - BATCH..sent)
                .map(|_| Ask::get("shop.test", &format!("/work?s=0.01&n={sent}")).begin(world.http())),
        );
        until(&world, 5, sent as u64 - 5);
    }
    refused_with(&work(501).at(world.http()), "queue_full");
    calm.goes_on_for(50);
    puma.get("/open");
    for one in crowd {
        let answer = one.finish().expect("an answer");
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "v1"), "{answer}");
    }
    calm.finish().lost_nothing();

    assert_eq!(most_at_once(&puma), 5);
    let seen = order(&puma);
    assert_eq!(seen.len(), 500);
    // Five are under way at a time, and may meet in the app in any order.
    for (at, batch) in seen.iter().enumerate() {
        let from = batch - BATCH;
        assert!(
            (from.saturating_sub(10)..batch + 10).contains(&at),
            "one of {from}..{batch} came as number {at}"
        );
    }
    until_empty(&world);
    let waited = eventually("the log has all of them", || {
        let lines = world.daemon.access_log();
        let served = lines.iter().filter(|line| line["service"] == "shop" && line["status"] == 200);
        let served: Vec<_> = served.map(|line| line["queue_ms"].is_number()).collect();
        if served.len() == 500 {
            Ok(served.into_iter().filter(|waited| *waited).count())
        } else {
            Err(format!("{}", served.len()))
        }
    });
    assert_eq!(waited, 495);
}

#[test]
fn one_at_a_time_is_strictly_in_order() {
    let puma = Puma::start(App::Rack, "v1");
    let world = protected(&puma, &["--max-in-flight", "1", "--queue-timeout", "5m"]);
    puma.get("/close");
    let crowd: Vec<Begun> = (0..40)
        .map(|n| {
            let ask = if n % 2 == 0 { work(n) } else { work(n).h2() };
            let begun = ask.begin(world.http());
            until(&world, 1, n as u64);
            begun
        })
        .collect();
    puma.get("/open");
    for one in crowd {
        assert_eq!(one.finish().expect("an answer").status, 200);
    }
    assert_eq!((order(&puma), most_at_once(&puma)), ((0..40).collect(), 1));
}

#[test]
fn who_waits_too_long_is_told_to_come_back() {
    let puma = Puma::start(App::Rack, "v1");
    let world = protected(&puma, &["--max-in-flight", "1", "--queue-timeout", "500ms"]);
    puma.get("/close");
    let held = work(0).begin(world.http());
    until(&world, 1, 0);
    let late: Vec<Begun> = (1..=3).map(|n| work(n).begin(world.http())).collect();
    for one in late {
        refused_with(&one.finish().expect("an answer"), "queue_timeout");
    }
    puma.get("/open");
    assert_eq!(held.finish().expect("an answer").status, 200);
    assert_eq!(order(&puma), [0], "the app never saw them");
    let waits: Vec<f64> = eventually("the log has them", || {
        let lines = world.daemon.access_log();
        let late = lines.iter().filter(|line| line["reason"] == "queue_timeout");
        let waits: Vec<f64> = late.filter_map(|line| line["queue_ms"].as_f64()).collect();
        if waits.len() == 3 { Ok(waits) } else { Err(format!("{lines:?}")) }
    });
    assert!(waits.iter().all(|ms| (500.0..2500.0).contains(ms)), "{waits:?}");
    let metrics = Ask::get("localhost", "/metrics").at(world.daemon.metrics()).text();
    let series = r#"service="shop",release="r1",cohort="stable""#;
    for line in [
        format!("portcullis_waiting{{{series}}} 0"),
        format!("portcullis_in_flight{{{series},target=\"{}\"}} 0", puma.target()),
        format!("portcullis_own_answers_total{{{series},target=\"\",reason=\"queue_timeout\"}} 3"),
        format!("portcullis_queue_seconds_count{{{series},target=\"\"}} 3"),
    ] {
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
}

#[test]
fn clients_that_leave_give_up_their_places() {
    let puma = Puma::start(App::Rack, "v1");
    let world =
        protected(&puma, &["--max-in-flight", "1", "--queue-timeout", "1h", "--tls", "--tls-redirect=false"]);
    puma.get("/close");
    let held = work(0).begin(world.http());
    until(&world, 1, 0);
    let (http, https) = (world.http(), world.daemon.https());
    for (ask, address) in
        [(work(1), http), (work(2).tls(), https), (work(3).h2(), http), (work(4).tls().h2(), https)]
    {
        let begun = ask.begin(address);
        until(&world, 1, 1);
        begun.leave();
        until(&world, 1, 0);
    }
    // A reset stream of a connection that lives on.
    let mut begun = work(5).tls().h2().begin(https);
    until(&world, 1, 1);
    begun.reset();
    until(&world, 1, 0);
    // Only the sending side is closed.
    let mut raw = Raw::connect(http);
    raw.send("GET /work?n=6 HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    until(&world, 1, 1);
    raw.shut_write();
    until(&world, 1, 0);
    assert_eq!(raw.read_to_end(), "");

    let patient = work(7).begin(http);
    until(&world, 1, 1);
    puma.get("/open");
    for one in [held, patient] {
        assert_eq!(one.finish().expect("an answer").status, 200);
    }
    assert_eq!(order(&puma), [0, 7]);
    until_empty(&world);
}

#[test]
fn what_the_app_works_on_keeps_its_seat_when_the_client_leaves() {
    let puma = Puma::start(App::Rack, "v1");
    let world = protected(&puma, &["--max-in-flight", "1", "--queue-timeout", "5m"]);
    puma.get("/close");
    let reloads: Vec<Begun> = (0..5)
        .map(|n| {
            let mut begun = work(n).h2().begin(world.http());
            // The first is worked on, the others wait.
            until(&world, 1, u64::from(n > 0));
            begun.reset();
            until(&world, 1, 0);
            begun
        })
        .collect();
    let last = work(9).begin(world.http());
    until(&world, 1, 1);
    puma.get("/open");
    assert_eq!(last.finish().expect("an answer").status, 200);
    assert_eq!((order(&puma), most_at_once(&puma)), (vec![0, 9], 1));
    drop(reloads);
    until_empty(&world);
}

#[test]
fn a_cutover_takes_those_in_line_along() {
    let (v1, v2) = (Puma::start(App::Rack, "v1"), Puma::start(App::Rack, "v2"));
    let world = protected(&v1, &["--max-in-flight", "2", "--queue-timeout", "5m", "--queue-max", "50"]);
    v1.get("/close");
    let held: Vec<Begun> = (0..2).map(|n| work(n).begin(world.http())).collect();
    until(&world, 2, 0);
    let waiting: Vec<Begun> = (0..50)
        .map(|n| {
            let begun = if n % 2 == 0 { work(100 + n) } else { work(100 + n).h2() }.begin(world.http());
            until(&world, 2, n as u64 + 1);
            begun
        })
        .collect();
    let operator = world.operator();
    let target = v2.target();
    let deploy: JoinHandle<_> =
        std::thread::spawn(move || operator.run(["deploy", "shop", "--target", &target, "--bake", "0s"]));
    for one in waiting {
        let answer = one.finish().expect("an answer");
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "v2"), "{answer}");
    }
    v1.get("/open");
    for one in held {
        assert_eq!(one.finish().expect("an answer").text(), "v1");
    }
    deploy.join().expect("agentctl ran").succeeds();
    assert_eq!((most_at_once(&v1), most_at_once(&v2)), (2, 2));
    until_empty(&world);
}

#[test]
fn removing_a_service_answers_those_in_line() {
    let puma = Puma::start(App::Rack, "v1");
    let world = protected(&puma, &["--max-in-flight", "1", "--queue-timeout", "5m", "--drain-timeout", "1s"]);
    puma.get("/close");
    let held = work(0).begin(world.http());
    until(&world, 1, 0);
    let waiting = work(1).begin(world.http());
    until(&world, 1, 1);
    world.agentctl(["remove", "shop"]).succeeds();
    let answer = waiting.finish().expect("an answer");
    assert_eq!((answer.status.as_u16(), answer.header("x-portcullis-reason")), (404, "unknown_host"));
    let answer = held.finish().expect("an answer");
    assert_eq!((answer.status.as_u16(), answer.header("x-portcullis-reason")), (504, "drain_cut"));
}

#[test]
fn a_new_label_on_the_same_target_keeps_to_the_limit() {
    let puma = Puma::start(App::Rack, "v1");
    let world = protected(&puma, &["--max-in-flight", "2", "--queue-timeout", "5m"]);
    puma.get("/close");
    let mut all: Vec<Begun> = (0..3).map(|n| work(n).begin(world.http())).collect();
    until(&world, 2, 1);
    world.deploy_with(&puma.target(), &["--release", "again"]);
    // The one in line went along, and the two in flight still count.
    until(&world, 2, 1);
    all.push(work(3).begin(world.http()));
    until(&world, 2, 2);
    // The limit can be raised while requests wait.
    world.deploy_with(&puma.target(), &["--release", "wider", "--max-in-flight", "3"]);
    until(&world, 3, 1);
    puma.get("/open");
    for one in all {
        assert_eq!(one.finish().expect("an answer").status, 200);
    }
    assert_eq!(most_at_once(&puma), 3);
    until_empty(&world);
}

#[test]
fn two_targets_share_one_line_and_the_slow_one_gets_less() {
    let fast = Puma::misbehaving(App::Rack, "fast", &[("WORK_S", "0.01")]);
    let slow = Puma::misbehaving(App::Rack, "slow", &[("WORK_S", "0.2")]);
    let both = format!("{},{}", fast.target(), slow.target());
    for (flags, requests) in
        [(&["--max-in-flight", "2", "--queue-timeout", "5m"][..], 200), (&["--max-in-flight", "0"], 200)]
    {
        let world = World::start();
        world.deploy_with(&both, flags);
        let before = order(&slow).len();
        if flags[1] == "0" {
            let load = world.load("/work");
            load.goes_on_for(requests);
            load.finish().lost_nothing();
        } else {
            let crowd: Vec<Begun> = (0..requests).map(|n| work(n).begin(world.http())).collect();
            for one in crowd {
                assert_eq!(one.finish().expect("an answer").status, 200);
            }
            assert_eq!((most_at_once(&fast), most_at_once(&slow)), (2, 2));
        }
        let slow_ones = order(&slow).len() - before;
        assert!((1..requests / 3).contains(&slow_ones), "{flags:?}: {slow_ones} of {requests}");
        until_empty(&world);
    }
}

#[test]
fn a_killed_target_leaves_no_seat_behind() {
    let mut pumas = [Puma::start(App::Rack, "one"), Puma::start(App::Rack, "other")];
    let both = format!("{},{}", pumas[0].target(), pumas[1].target());
    let world = World::start();
    world.deploy_with(&both, &["--max-in-flight", "2", "--queue-timeout", "5m"]);
    for puma in &pumas {
        puma.get("/close");
    }
    let crowd: Vec<Begun> = (0..30).map(|n| work(n).begin(world.http())).collect();
    until(&world, 4, 26);
    let [dead, alive] = &mut pumas;
    dead.kill();
    alive.get("/open");
    let answers: Vec<Answer> = crowd.into_iter().map(|one| one.finish().expect("an answer")).collect();
    // What it had in hand is lost, and what it took while it died; whoever waited then is served by the other.
    let lost: Vec<&Answer> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert!((2..15).contains(&lost.len()), "{lost:#?}");
    assert!(lost.iter().all(|answer| answer.header("x-portcullis-reason") == "upstream_closed"), "{lost:#?}");
    assert_eq!(most_at_once(alive), 2);
    until_empty(&world);
    alive.kill();
    assert_eq!(world.get("/work").status, 502);
    until_empty(&world);
}

#[test]
fn a_websocket_gives_its_seat_back_and_an_event_stream_keeps_it() {
    let puma = Puma::start(App::Rails, "v1");
    let world = protected(&puma, &["--max-in-flight", "1", "--queue-timeout", "5m"]);
    let mut cable = Socket::open_cable(world.http(), "shop.test");
    until(&world, 0, 0);
    assert_eq!(stable(&world).targets[0].in_flight, 1);
    assert_eq!(world.get("/").text(), "v1");
    assert_eq!(cable.cable_echo("still there"), "v1");

    let mut events = Raw::connect(world.http());
    events.send("GET /events HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    events.read_until(|seen| seen.contains("data: v1"));
    assert_eq!(stable(&world).targets[0].seats, Some(SeatsStatus { taken: 1, limit: 1 }));
    let waiting = Ask::get("shop.test", "/").begin(world.http());
    until(&world, 1, 1);
    let shown = world.agentctl(["targets"]).succeeds();
    assert!(shown.stdout().contains("1/1 +1"), "{shown}");
    drop(events);
    assert_eq!(waiting.finish().expect("an answer").text(), "v1");
}

#[test]
fn a_limit_that_makes_no_sense_is_refused() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    for (flag, value, want) in [
        ("--max-in-flight", "100001", "max_in_flight: 100001 is too many"),
        ("--max-in-flight", "-1", "unexpected argument"),
        ("--queue-max", "1000000", "queue_max: 1000000 is too many"),
        ("--queue-timeout", "0s", "no time at all"),
        ("--slow-start", "25h", "longer than a day"),
    ] {
        let refused =
            world.agentctl(["deploy", "shop", "--target", &puma.target(), flag, value]).fails_with(2);
        assert!(refused.stderr().contains(want), "{flag} {value}: {refused}");
    }
}
