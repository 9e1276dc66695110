//! A deploy loses no request: not a short one, not a long one, not an upload, not a stream, not a socket.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use harness::{App, Ask, LoadPlan, Puma, Raw, Recorder, Socket, SocketEvent, World, eventually};
use model::protocol::Event;

#[test]
fn a_hundred_cutovers_under_load_lose_nothing() {
    let world = World::start();
    let pumas = [Puma::start(App::Rails, "v1"), Puma::start(App::Rails, "v2")];
    world.deploy(&pumas[0].target());
    let load = world.load("/");
    let others = Others::start(world.http());
    for n in 1..=100 {
        world.deploy(&pumas[n % 2].target());
    }
    load.goes_on_for(20);
    let seen = load.finish().lost_nothing();
    assert_eq!((seen.releases(), seen.last_body().as_str()), (vec!["v1", "v2"], "v1"), "{seen}");
    // One more, so that the last stream and socket end too.
    let counts = others.finish(|| world.deploy(&pumas[1].target()));
    println!("100 cutovers: {seen}; {counts:?}");
    assert!(counts.iter().all(|(_, count)| *count >= 10), "{counts:?}");
}

/// What lasts longer than a request: slow answers, uploads, event streams and ActionCable sockets, each kind
/// again and again until the end, each checked for a proper end.
struct Others {
    over: Arc<AtomicBool>,
    kinds: Vec<(&'static str, thread::JoinHandle<u32>)>,
}

/// A name, and one round of it.
type Kind = (&'static str, fn(SocketAddr));

impl Others {
    fn start(http: SocketAddr) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let kinds: [Kind; 4] =
            [("slow", slow), ("upload", upload), ("event stream", event_stream), ("socket", socket)];
        let kinds = kinds.map(|(name, once)| {
            let over = Arc::clone(&over);
            let again_and_again = move || {
                let mut count = 0;
                while !over.load(Ordering::Relaxed) {
                    once(http);
                    count += 1;
                }
                count
            };
            (name, thread::spawn(again_and_again))
        });
        Self { over, kinds: kinds.into() }
    }

    fn finish<T>(self, end_streams: impl FnOnce() -> T) -> Vec<(&'static str, u32)> {
        self.over.store(true, Ordering::Relaxed);
        end_streams();
        self.kinds.into_iter().map(|(name, thread)| (name, thread.join().expect(name))).collect()
    }
}

fn slow(http: SocketAddr) {
    let answer = Ask::get("shop.test", "/slow?s=0.7").at(http);
    assert!(answer.status == 200 && answer.text().starts_with("slow answer of v"), "{answer}");
}

fn upload(http: SocketAddr) {
    let answer = Ask::post("shop.test", "/upload", vec![b'x'; 300_000]).method("PUT").at(http);
    assert!(answer.status == 200 && answer.json()["bytes"] == 300_000, "{answer}");
}

fn event_stream(http: SocketAddr) {
    let mut events = Raw::connect(http);
    events.send("GET /events HTTP/1.1\r\nHost: shop.test\r\nAccept: text/event-stream\r\n\r\n");
    let seen = events.read_until(|seen| seen.ends_with("\r\n0\r\n\r\n"));
    let releases = ["data: v1", "data: v2"].map(|data| seen.contains(data));
    assert!(seen.starts_with("HTTP/1.1 200") && releases != [true, true], "{seen}");
}

fn socket(http: SocketAddr) {
    let mut cable = Socket::open_cable(http, "shop.test");
    let release = cable.cable_echo("hello");
    assert!(release.starts_with('v'), "{release}");
    // 1012 is "service restart" (RFC 6455, IANA's registry of close codes): clients reconnect at once.
    assert_eq!(cable.wait_for_the_end(), SocketEvent::Closed(Some(1012)));
}

#[test]
fn the_old_puma_may_be_stopped_as_soon_as_deploy_returns() {
    // A boot of Rails each: by default as many as every run can afford.
    let rounds = std::env::var("STORY_CUTOVERS").map_or(12, |text| text.parse().expect("a number"));
    let world = World::start();
    let mut old = Puma::start(App::Rails, "v0");
    world.deploy(&old.target());
    let load = world.load("/");
    for n in 1..=rounds {
        let new = Puma::start(App::Rails, &format!("v{n}"));
        world.deploy(&new.target());
        old.stop();
        old = new;
    }
    load.goes_on_for(20);
    let seen = load.finish().lost_nothing();
    println!("{rounds} cutovers, each old Puma stopped at once: {seen}");
    assert_eq!(seen.last_body(), format!("v{rounds}"), "{seen}");
}

#[test]
fn a_slow_request_ends_where_it_began() {
    let world = World::start();
    let (old, new) = (Puma::start(App::Rails, "v1"), Puma::start(App::Rails, "v2"));
    world.deploy(&old.target());
    let http = world.http();
    let slow = thread::spawn(move || Ask::get("shop.test", "/slow?s=3").at(http));
    requests_in_flight(&world, 1);
    let deploy = world.deploy_with(&new.target(), &["--json", "--drain-timeout", "30s"]);
    let answer = slow.join().unwrap();
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "slow answer of v1"));
    assert_eq!(world.get("/").text(), "v2");
    let drained = deploy.events().into_iter().find_map(|event| match event {
        Event::Drained { cut, .. } => Some(cut),
        _ => None,
    });
    assert_eq!(drained, Some(0), "{deploy}");
}

#[test]
fn a_request_beyond_the_drain_deadline_is_cut_and_counted() {
    let world = World::start();
    let (old, new) = (Puma::start(App::Rack, "v1"), Puma::start(App::Rack, "v2"));
    world.deploy(&old.target());
    let http = world.http();
    let slow = thread::spawn(move || Ask::get("shop.test", "/slow?s=60").try_at(http));
    requests_in_flight(&world, 1);
    let deploy = world.deploy_with(&new.target(), &["--json", "--drain-timeout", "1s"]);
    let cut = deploy.events().into_iter().any(|event| matches!(event, Event::Drained { cut: 1, .. }));
    assert!(cut, "{deploy}");
    let answer = slow.join().unwrap();
    assert!(answer.as_ref().is_ok_and(|a| a.status.is_server_error()) || answer.is_err(), "{answer:?}");
}

#[test]
fn an_upload_that_began_before_the_cutover_arrives_whole() {
    let world = World::start();
    let (old, new) = (Puma::start(App::Rails, "v1"), Puma::start(App::Rails, "v2"));
    world.deploy(&old.target());
    let piece = "0123456789abcdef".repeat(4096);
    let mut upload = Raw::connect(world.http());
    upload.send(format!(
        "PUT /upload HTTP/1.1\r\nHost: shop.test\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        piece.len() * 8
    ));
    upload.send(&piece);
    requests_in_flight(&world, 1);
    let operator = world.operator();
    let target = new.target();
    let deploy =
        operator.start(["deploy", "shop", "--target", &target, "--host", "shop.test", "--bake", "0s"]);
    eventually("new requests go to v2", || match world.get("/").text() {
        release if release == "v2" => Ok(()),
        release => Err(release),
    });
    for _ in 1..8 {
        upload.send(&piece);
    }
    let answer = upload.read_to_end();
    harness::Ran::of(deploy).succeeds();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains(r#""release":"v1","bytes":524288"#),
        "{answer}"
    );
    // SHA-256 of the eight pieces.
    assert!(answer.contains("1cf9a94189f11ea9f3d09c77889f372d82279e699330217ef111ee4b53e9f305"), "{answer}");
}

#[test]
fn event_streams_and_sockets_are_closed_properly_and_come_back_on_the_new_release() {
    let world = World::start();
    let (old, new) = (Puma::start(App::Rails, "v1"), Puma::start(App::Rails, "v2"));
    world.deploy(&old.target());
    let mut cable = Socket::open_cable(world.http(), "shop.test");
    assert_eq!(cable.cable_echo("before"), "v1");
    let mut events = Raw::connect(world.http());
    events.send("GET /events HTTP/1.1\r\nHost: shop.test\r\nAccept: text/event-stream\r\n\r\n");
    events.read_until(|seen| seen.matches("data: v1").count() >= 2);
    let ordinary = world.load("/");

    world.deploy_with(&new.target(), &["--drain-timeout", "5s"]);

    // 1012 is "service restart" (RFC 6455, IANA's registry of close codes): clients reconnect at once.
    assert_eq!(cable.wait_for_the_end(), SocketEvent::Closed(Some(1012)));
    let stream = events.read_until(|seen| seen.ends_with("\r\n0\r\n\r\n"));
    assert!(!stream.contains("data: v2"), "a stream never changes its release: {stream}");
    assert_eq!(Socket::open_cable(world.http(), "shop.test").cable_echo("after"), "v2");
    ordinary.finish().lost_nothing();
}

#[test]
fn cluster_mode_and_unix_sockets_are_targets_like_any_other() {
    let world = World::start();
    let (cluster, socket) = (Puma::in_cluster(App::Rack, "v1", 2), Puma::on_unix_socket(App::Rack, "v2"));
    world.deploy(&cluster.target());
    let load = world.load("/");
    for target in [socket.target(), cluster.target(), socket.target()] {
        world.deploy(&target);
    }
    load.goes_on_for(20);
    let seen = load.finish().lost_nothing();
    assert_eq!(seen.last_body(), "v2", "{seen}");
}

#[test]
fn several_targets_share_the_load_and_one_may_die() {
    let world = World::start();
    let (one, two) = (Puma::start(App::Rack, "one"), Puma::start(App::Rack, "two"));
    world.deploy_with(&one.target(), &["--target", &two.target()]);
    let load = world.load("/");
    load.goes_on_for(100);
    let seen = load.finish().lost_nothing();
    // How much each gets depends on how fast each was of late; that equal ones get equal shares is simulated in
    // `model::balance`, where nothing else disturbs them.
    assert_eq!(seen.releases(), ["one", "two"], "{seen}");
    drop(two);
    // A refused connection moves to the other target: nobody sees it, not even before the ejection.
    let plan = LoadPlan { pause: Duration::from_millis(20), ..LoadPlan::default() };
    let load = harness::Load::start(world.http(), plan);
    load.goes_on_for(200);
    let seen = load.finish().lost_nothing();
    assert_eq!(seen.releases(), ["one"], "{seen}");
}

#[test]
fn a_name_that_leads_to_a_new_address_is_a_new_release() {
    let hosts = tempfile::NamedTempFile::new().expect("a temporary file");
    let leads_to =
        |ip: &str| std::fs::write(hosts.path(), format!("127.0.0.1 localhost\n{ip} app.internal\n"));
    leads_to("127.0.0.1").expect("the file can be written");
    let Some(world) = World::with_hosts(hosts.path()) else { return };
    let old = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    let port = old.local_addr().expect("it is bound").port();
    let new = TcpListener::bind(("127.0.0.2", port)).expect("nobody else listens there");
    let _old = Recorder::on(old, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold");
    let _new = Recorder::on(new, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnew");
    let target = format!("app.internal:{port}");
    world.deploy(&target);
    assert_eq!(world.get("/").text(), "old");
    leads_to("127.0.0.2").expect("the file can be written");
    // Nothing but a setting is new, as it seems.
    world.deploy_with(&target, &["--drain-timeout", "5s"]);
    assert_eq!(world.get("/").text(), "new");
}

/// Waits until the stable release holds this many requests.
fn requests_in_flight(world: &World, count: u64) {
    eventually("the request is under way", || {
        let status = world.daemon.status();
        let in_flight: u64 = status.services[0].stable.targets.iter().map(|target| target.in_flight).sum();
        if in_flight >= count { Ok(()) } else { Err(format!("{status:#?}")) }
    });
}
