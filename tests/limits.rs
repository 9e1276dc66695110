//! The limits hold: whoever is slow, silent or too many costs the others nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use harness::{
    App, Ask, Crowd, DaemonOptions, Manner, Patient, Puma, Raw, Socket, SocketEvent, World, eventually,
    raise_descriptor_limit,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n";

/// Stories of this file that open thousands of sockets do so one after the other: the test process has one
/// limit of descriptors for all of them.
fn alone() -> MutexGuard<'static, ()> {
    static CROWDED: Mutex<()> = Mutex::new(());
    CROWDED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn limits(text: &str) -> World {
    World::with_limits(text, DaemonOptions::default())
}

/// A second service, at `slow.test`, for those who would hold all threads of a real Puma.
fn deploy_patient(world: &World, patient: &Patient) {
    let target = patient.target();
    let args = ["deploy", "slow", "--target", &target, "--host", "slow.test", "--bake", "0s"];
    world.operator().run(args.iter().chain(&["--body-idle-timeout", "3s"])).succeeds();
}

fn closed(world: &World, reason: &str) -> u64 {
    world.daemon.metric(&format!("portcullis_connections_closed_total{{reason=\"{reason}\"}}"))
}

fn refused(world: &World, reason: &str) -> u64 {
    world.daemon.metric(&format!("portcullis_connections_refused_total{{reason=\"{reason}\"}}"))
}

/// One request on a connection that stays.
#[track_caller]
fn ask(client: &mut Raw) {
    let answered = client.text().matches("HTTP/1.1 200").count();
    client.send(GET);
    client.read_until(|seen| seen.matches("HTTP/1.1 200").count() > answered && seen.ends_with("\r\n\r\nv1"));
}

#[test]
fn thousands_of_slow_clients_cost_the_others_nothing() {
    let _alone = alone();
    // A connection of ours, one of the daemon's to the app, and the app's end of that.
    let each = (raise_descriptor_limit() / 8).min(2_000);
    if each < 2_000 {
        eprintln!("SCALED DOWN: {each} slow clients of each kind instead of 2000 (ulimit -n)");
    }
    let world = limits(
        "request_head_timeout = \"3s\"\nstall_timeout = \"3s\"\nconnections_per_client = 0\nbuffered_bytes = 1073741824",
    );
    let (puma, patient) = (Puma::start(App::Rack, "v1"), Patient::start());
    world.deploy(&puma.target());
    deploy_patient(&world, &patient);
    let before = world.daemon.rss_kib();
    let load = world.load("/");
    load.goes_on_for(20);

    let (http, every) = (world.http(), Duration::from_secs(1));
    let slow = [
        ("head", Manner::SlowHead(every)),
        ("request_body", Manner::SlowBody { host: "slow.test", path: "/", every }),
        ("response", Manner::SlowRead { host: "slow.test", path: "/big?8", every }),
    ];
    let crowds = slow.map(|(reason, manner)| (reason, Crowd::start(http, each, manner).settles()));
    load.goes_on_for(100);
    for (reason, crowd) in &crowds {
        crowd.is_gone();
        assert_eq!(crowd.refused(), 0, "{crowd}");
        eventually("the agent counts them", || match closed(&world, reason) {
            count if count == each as u64 => Ok(()),
            count => Err(format!("{count} of {each} for {reason}: {crowd}")),
        });
    }
    let seen = load.finish().lost_nothing();
    eventually("nothing is held any more", || match world.daemon.metric("portcullis_held_bytes") {
        0 => Ok(()),
        held => Err(format!("{held} bytes")),
    });
    let (peak, after) = (world.daemon.peak_rss_kib(), world.daemon.rss_kib());
    println!("3 x {each} slow clients: RSS {before} KiB before, {peak} peak, {after} after; {seen}");
    let per_client = peak.saturating_sub(before) / (3 * each as u64);
    // Mostly what was read ahead from the target for the third that reads: up to 256 KiB each.
    assert!(per_client <= 192, "{per_client} KiB for each slow client");
}

#[test]
fn ten_thousand_idle_connections_are_no_burden() {
    let _alone = alone();
    // The daemon gives half of its descriptors to clients.
    let count = (raise_descriptor_limit() / 2).saturating_sub(200).min(10_000);
    let world = limits("connections_per_client = 0");
    let puma = Puma::start(App::Rack, "v1");
    world.deploy(&puma.target());
    let before = world.daemon.rss_kib();
    let crowd = Crowd::start(world.http(), count, Manner::KeepAlive { host: "shop.test" }).settles();
    assert_eq!((crowd.refused(), crowd.gone()), (0, 0), "{crowd}");
    let idle = world.daemon.metric("portcullis_connections_idle");
    assert!(idle >= count as u64, "{idle} of {count} are idle");
    let load = world.load("/");
    load.goes_on_for(200);
    let seen = load.finish().lost_nothing();
    assert_eq!(crowd.gone(), 0, "nobody had to go: {crowd}");
    let rss = world.daemon.rss_kib();
    println!("{count} idle connections: RSS {before} KiB before, {rss} with them; {seen}");
}

#[test]
fn at_the_limit_the_oldest_idle_connection_goes_first() {
    let world = limits("connections = 20\nconnections_per_client = 0");
    let puma = Puma::start(App::Rack, "v1");
    world.deploy(&puma.target());
    // The oldest of all, but it waits for its answer.
    let mut busy = Raw::connect(world.http());
    busy.send("GET /slow?s=8 HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    let mut idle: Vec<Raw> = Vec::new();
    for _ in 0..19 {
        let mut client = Raw::connect(world.http());
        ask(&mut client);
        idle.push(client);
    }
    // The first comes back, and so is the youngest.
    ask(&mut idle[0]);
    idle.rotate_left(1);
    let mut newcomers = Vec::new();
    for (gone, mut oldest) in idle.drain(..10).enumerate() {
        let mut newcomer = Raw::connect(world.http());
        ask(&mut newcomer);
        newcomers.push(newcomer);
        oldest.read_to_end();
        assert_eq!(closed(&world, "room"), gone as u64 + 1);
    }
    for client in idle.iter_mut().chain(&mut newcomers) {
        ask(client);
    }
    busy.read_until(|seen| seen.ends_with("slow answer of v1"));
    assert_eq!(refused(&world, "connections"), 0);
}

#[test]
fn when_nobody_is_idle_the_newcomer_is_refused() {
    let world = limits("connections = 16\nconnections_per_client = 0");
    let patient = Patient::start();
    deploy_patient(&world, &patient);
    let mut busy: Vec<Raw> = (0..16).map(|_| Raw::connect(world.http())).collect();
    for client in &mut busy {
        client.send("GET /drip?30 HTTP/1.1\r\nHost: slow.test\r\n\r\n");
        client.read_until(|seen| seen.contains("x\r\n"));
    }
    assert_eq!(Raw::connect(world.http()).read_to_end(), "");
    assert_eq!(refused(&world, "connections"), 1);
    for client in &mut busy {
        let answer = client.read_until(|seen| seen.ends_with("0\r\n\r\n"));
        assert_eq!(answer.matches("x\r\n").count(), 30, "{answer}");
    }
}

#[test]
fn one_client_cannot_take_all_places() {
    let world = limits("connections_per_client = 5");
    let puma = Puma::start(App::Rack, "v1");
    world.deploy(&puma.target());
    let mut inside: Vec<Raw> = (0..5).map(|_| Raw::connect(world.http())).collect();
    inside.iter_mut().for_each(ask);
    assert_eq!(Raw::connect(world.http()).read_to_end(), "");
    assert_eq!(refused(&world, "client"), 1);
    inside.iter_mut().for_each(ask);
    // A place is free as soon as one of them leaves.
    inside.pop();
    eventually("another may come", || Ask::get("shop.test", "/").try_at(world.http()));

    let args = ["--trusted-proxy", "127.0.0.0/8"].map(Into::into).to_vec();
    let world =
        World::with_limits("connections_per_client = 5", DaemonOptions { args, ..DaemonOptions::default() });
    world.deploy(&puma.target());
    let mut proxy: Vec<Raw> = (0..10).map(|_| Raw::connect(world.http())).collect();
    proxy.iter_mut().for_each(ask);
    assert_eq!(refused(&world, "client"), 0, "a proxy stands for many clients");
}

#[test]
fn a_client_that_says_nothing_is_no_idle_client() {
    let world = limits("request_head_timeout = \"1s\"\nkeep_alive_timeout = \"60s\"");
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--tls", "--tls-redirect=false"]);
    let mut kept = Raw::connect(world.http());
    ask(&mut kept);
    let silent = Crowd::start(world.http(), 20, Manner::Silent).settles();
    silent.is_gone();
    assert_eq!(closed(&world, "first_byte"), 20);
    ask(&mut kept);
}

#[test]
fn a_client_of_http2_that_answers_no_ping_is_gone() {
    let world = limits("stall_timeout = \"1s\"\nkeep_alive_timeout = \"60s\"");
    let mut vanished = Raw::connect(world.http());
    // The preface and empty settings (RFC 9113 §3.4, §6.5), and then nothing.
    vanished.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    vanished.read_to_end();
    assert_eq!(closed(&world, "keep_alive"), 0, "it was not the keep-alive");
}

#[test]
fn handshakes_that_do_not_end_keep_nobody_out() {
    let _alone = alone();
    let flood = (raise_descriptor_limit() / 8).min(1_000);
    let world = limits("handshakes = 32\nhandshake_timeout = \"60s\"\nconnections_per_client = 0");
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--tls"]);
    let load = world.load_over_tls("/");
    load.goes_on_for(20);
    let crowd = Crowd::start(world.daemon.https(), flood, Manner::Silent).settles();
    for _ in 0..20 {
        assert_eq!(Ask::get("shop.test", "/").tls().at(world.daemon.https()).text(), "v1");
    }
    eventually("those that are too many are dropped", || {
        let (open, gone) = (world.daemon.metric("portcullis_handshakes_open"), crowd.gone());
        if open <= 32 && gone >= flood - 32 { Ok(()) } else { Err(format!("{open} open, {crowd}")) }
    });
    assert!(world.daemon.metric("portcullis_handshakes_dropped_total") >= flood as u64 - 32);
    load.goes_on_for(20);
    load.finish().lost_nothing();
}

#[test]
fn clients_that_trickle_are_cut_and_apps_that_trickle_are_not() {
    let world = limits("stall_timeout = \"1s\"\nbytes_per_second_min = 500");
    let (rails, patient) = (Puma::start(App::Rails, "v1"), Patient::start());
    world.deploy(&rails.target());
    deploy_patient(&world, &patient);
    let http = world.http();
    let mut cable = Socket::open_cable(http, "shop.test");
    let mut streams: Vec<Raw> = ["/drip?60", "/events?60"]
        .iter()
        .map(|path| {
            let mut client = Raw::connect(http);
            client.send(format!("GET {path} HTTP/1.1\r\nHost: slow.test\r\n\r\n"));
            client
        })
        .collect();
    let drip_over_http2 = std::thread::spawn(move || Ask::get("slow.test", "/drip?60").h2().at(http));

    // Never a whole second without a byte, so never a stall; but far too little.
    let every = Duration::from_millis(100);
    let sender = Manner::SlowBody { host: "slow.test", path: "/", every };
    let reader = Manner::SlowRead { host: "slow.test", path: "/big?8", every };
    let crowds = [sender, reader].map(|manner| Crowd::start(http, 20, manner).settles());
    crowds.iter().for_each(Crowd::is_gone);
    for reason in ["request_body", "response"] {
        eventually("they are counted", || match closed(&world, reason) {
            20 => Ok(()),
            count => Err(format!("{count} for {reason}")),
        });
    }

    for client in &mut streams {
        let answer = client.read_until(|seen| seen.ends_with("0\r\n\r\n"));
        let pieces = answer.matches("\r\nx\r\n").count() + answer.matches("data: 1").count();
        assert_eq!(pieces, 60, "{answer}");
    }
    assert_eq!(drip_over_http2.join().unwrap().text(), "x".repeat(60));
    assert_eq!(cable.cable_echo("still there"), "v1", "silence is a WebSocket's good right");
    assert_eq!(closed(&world, "response"), 20, "nobody else was cut");
    world.daemon.terminate();
    assert!(matches!(cable.wait_for_the_end(), SocketEvent::Closed(Some(1012))));
}

#[test]
fn what_is_held_for_slow_readers_has_a_budget() {
    let budget = 1_u64 << 20;
    let world =
        limits(&format!("buffered_bytes = {budget}\nstall_timeout = \"50s\"\nconnections_per_client = 0"));
    let (puma, patient) = (Puma::start(App::Rack, "v1"), Patient::start());
    world.deploy(&puma.target());
    deploy_patient(&world, &patient);
    let load = world.load("/");
    let mut idle = Raw::connect(world.http());
    ask(&mut idle);
    let every = Duration::from_secs(1);
    let reader = Manner::SlowRead { host: "slow.test", path: "/big?8", every };
    let crowd = Crowd::start(world.http(), 200, reader).settles();
    eventually("the budget is kept", || {
        let (held, cut) = (world.daemon.metric("portcullis_held_bytes"), closed(&world, "memory"));
        if held <= budget && cut > 0 { Ok(()) } else { Err(format!("{held} bytes held, {cut} cut, {crowd}")) }
    });
    println!("{} of 200 slow readers went for a budget of {budget} bytes", closed(&world, "memory"));
    ask(&mut idle);
    load.goes_on_for(20);
    load.finish().lost_nothing();
}

#[test]
fn a_low_limit_of_descriptors_leaves_room_for_the_operator() {
    let wrapper = ["prlimit", "--nofile=256:256"].map(Into::into).to_vec();
    let options = DaemonOptions { wrapper, ..DaemonOptions::default() };
    let world = World::with_limits("connections = 10000\nconnections_per_client = 0", options);
    assert!(world.daemon.log().contains("limits.connections is lowered to 96"), "{}", world.daemon.log());
    let puma = Puma::start(App::Rack, "v1");
    world.deploy(&puma.target());
    let mut busy = Raw::connect(world.http());
    busy.send("GET /slow?s=3 HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    let crowd = Crowd::start(world.http(), 400, Manner::SlowHead(Duration::from_secs(1))).settles();
    for _ in 0..20 {
        assert_eq!(world.get("/").text(), "v1");
    }
    world.agentctl(["status"]).succeeds();
    world.deploy(&puma.target());
    println!("256 descriptors: {} in use, {crowd}", world.daemon.open_descriptors());
    busy.read_until(|seen| seen.ends_with("slow answer of v1"));
    assert_eq!(world.daemon.metric("portcullis_accept_errors_total"), 0, "it never comes so far");
}

#[test]
fn a_listener_survives_the_last_descriptor() {
    let world = limits("connections_per_client = 0\nrequest_head_timeout = \"60s\"");
    let puma = Puma::start(App::Rack, "v1");
    world.deploy(&puma.target());
    let mut kept: Vec<Raw> = (0..10).map(|_| Raw::connect(world.http())).collect();
    kept.iter_mut().for_each(ask);
    let set_limit = |limit: usize| {
        let pid = world.daemon.pid().to_string();
        let status = std::process::Command::new("prlimit")
            .args(["--pid", &pid, &format!("--nofile={limit}:")])
            .status()
            .expect("prlimit is part of util-linux");
        assert!(status.success());
    };
    let before = world.daemon.open_descriptors();
    set_limit(before + 20);
    // More than fit, and none of them idle: heads that have begun.
    let crowd = Crowd::start(world.http(), 60, Manner::SlowHead(Duration::from_secs(5)));
    // Those ten that are idle went first.
    kept.iter_mut().for_each(|client| drop(client.read_to_end()));
    eventually("those that do not fit are hung up on", || match crowd.gone() + crowd.refused() {
        0..20 => Err(crowd.to_string()),
        _ => Ok(()),
    });
    assert!(world.daemon.log().contains("cannot accept connections"), "{}", world.daemon.log());
    drop(crowd);
    // By itself, as soon as there are descriptors.
    eventually("it serves again", || Ask::get("shop.test", "/").try_at(world.http()));
    world.agentctl(["status"]).succeeds();
    set_limit(before + 2_000);
    let crowd = Crowd::start(world.http(), 100, Manner::KeepAlive { host: "shop.test" }).settles();
    assert_eq!((crowd.refused(), crowd.gone()), (0, 0), "{crowd}");
    // Whether a newcomer is hung up on or another one that has said nothing yet goes for it, the ten idle ones and the
    // twenty that did not fit are all counted.
    let (errors, turned_away, gone) = (
        world.daemon.metric("portcullis_accept_errors_total"),
        refused(&world, "descriptors"),
        closed(&world, "room"),
    );
    assert!(
        errors > 0 && turned_away + gone >= 30,
        "{errors} errors, {turned_away} turned away, {gone} closed"
    );
}
