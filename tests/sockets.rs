//! Thousands of WebSockets: what they cost, and how they come through a deploy.
//!
//! `PORTCULLIS_SOCKETS=5000 PORTCULLIS_SOCKET_SECONDS=60` is the full size; by default fewer go in less time.

use std::time::Duration;

use harness::{
    Ask, DaemonOptions, Echo, End, Flock, Raw, Socket, SocketEvent, World, eventually, raise_descriptor_limit,
};

/// Each takes four descriptors of this process and its daemon together, and the daemon keeps some for itself.
fn sockets_that_fit(wanted: usize) -> usize {
    let fit = raise_descriptor_limit().saturating_sub(1_000) / 2;
    if fit < wanted {
        println!("the limit of descriptors allows {fit} sockets of {wanted}");
    }
    wanted.min(fit)
}

fn setting(name: &str, default: usize) -> usize {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap_or_else(|error| panic!("{name} is {value}: {error}")))
}

/// The most that ended within any `time`.
fn most_within(ends: &[End], time: Duration) -> usize {
    let count = |at: usize| ends[at..].iter().take_while(|end| end.at - ends[at].at < time).count();
    (0..ends.len()).map(count).max().unwrap_or(0)
}

#[test]
fn a_deploy_closes_thousands_of_sockets_one_by_one_and_cuts_none() {
    let size = sockets_that_fit(setting("PORTCULLIS_SOCKETS", 600));
    let seconds = setting("PORTCULLIS_SOCKET_SECONDS", 10);
    let world = World::with_limits("connections_per_client = 0", DaemonOptions::default());
    let (old, new) = (Echo::start("v1"), Echo::start("v2"));
    world.deploy(&old.target());
    // What the first ones build once is not theirs.
    let warm = Flock::open(world.http(), "shop.test", 50);
    assert_eq!(warm.opened(), 50);
    let before = world.daemon.rss_kib();
    let flock = Flock::open(world.http(), "shop.test", size - 50);
    assert_eq!(flock.refused(), [""; 0]);
    let rss = world.daemon.rss_kib().saturating_sub(before);
    println!("{size} WebSockets, nearly all idle: {:.1} KiB of RSS each", rss as f64 / flock.size() as f64);

    let drain = format!("{seconds}s");
    // Of requests there are none, and the deadline of requests is none of theirs.
    let timeouts = ["--drain-timeout", "1s", "--socket-drain-timeout", &drain];
    std::thread::scope(|scope| {
        scope.spawn(|| world.deploy_with(&new.target(), &timeouts));
        closed(&[&flock, &warm], size / 4);
        let echoes = flock.echoes();
        eventually("those that are still open are heard", || match flock.echoes() {
            now if now > echoes => Ok(()),
            now => Err(format!("{now} echoes")),
        });
        let mut newcomer = Socket::open(world.http(), "shop.test", "/", &[]).expect("it opens");
        newcomer.say("hello");
        assert_eq!(
            newcomer.next_event(),
            SocketEvent::Text("v2:hello".into()),
            "new ones get the new release"
        );
        closed(&[&flock, &warm], size);
    });
    let mut ends = [flock.ends(), warm.ends()].concat();
    ends.sort_by_key(|end| end.at);
    for end in &ends {
        assert_eq!(end.how, SocketEvent::Closed(Some(1012)), "{ends:?}");
    }
    let tenth = Duration::from_secs(seconds as u64) / 10;
    let most = most_within(&ends, tenth);
    let most_in_a_second = most_within(&ends, Duration::from_secs(1));
    let longest_gap = ends.windows(2).map(|two| two[1].at - two[0].at).max().unwrap_or_default();
    println!(
        "none for {longest_gap:?} at most; of {size} at most {most_in_a_second} closed within a second and {most} within a tenth of {drain}, all in {:?}",
        ends[size - 1].at - ends[0].at
    );
    // A tenth of a minute at 2 % a second, and some for a machine that is busy.
    assert!(most * 100 <= size * 15, "{most} of {size} closed within {tenth:?}");
}

fn closed(flocks: &[&Flock], want: usize) {
    eventually("the sockets of the old release close", || {
        let closed: usize = flocks.iter().map(|flock| flock.ends().len()).sum();
        if closed >= want { Ok(()) } else { Err(format!("{closed} of {want}")) }
    });
}

#[test]
fn sockets_leave_places_for_those_who_ask_and_go() {
    let limits = "connections = 40\nconnections_per_client = 0";
    let world = World::with_limits(limits, DaemonOptions::default());
    let echo = Echo::start("v1");
    world.deploy(&echo.target());
    let flock = Flock::open(world.http(), "shop.test", 40);
    assert_eq!(
        (flock.opened(), flock.refused()),
        (30, vec!["answered 503 Service Unavailable".to_owned(); 10])
    );
    eventually("those who got none are in the log", || {
        let full = world.daemon.access_log().iter().filter(|line| line["reason"] == "sockets_full").count();
        if full == 10 { Ok(()) } else { Err(format!("{full} are")) }
    });

    // More of them than there are places: each gets one that another has left idle.
    let mut idle = Vec::new();
    for _ in 0..30 {
        let mut client = Raw::connect(world.http());
        client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n");
        client.read_until(|seen| seen.ends_with("v1"));
        idle.push(client);
    }
    assert_eq!(world.get("/").text(), "v1");
    let events = world.get("/events");
    assert_eq!((events.status.as_u16(), events.header("x-portcullis-reason")), (503, "sockets_full"));
    assert_eq!(flock.ends().len(), 0, "none went for them");

    // Nothing is lost when they leave, however they do.
    drop(flock);
    none_are_open(&world);
    let flock = Flock::open(world.http(), "shop.test", 30);
    assert_eq!(flock.opened(), 30);
    drop(flock);
    none_are_open(&world);
    // Those that the app does not answer with a socket keep no place either: it misses the version.
    for _ in 0..40 {
        let ask = Ask::get("shop.test", "/").header("connection", "upgrade").header("upgrade", "websocket");
        let answer = ask.header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==").at(world.http());
        assert_eq!(answer.header("x-portcullis-reason"), "upstream_closed", "{}", answer.text());
    }
    let flock = Flock::open(world.http(), "shop.test", 30);
    assert_eq!(flock.opened(), 30);
}

fn none_are_open(world: &World) {
    eventually("the sockets are gone", || {
        let open: u64 =
            world.daemon.status().services[0].stable.targets.iter().map(|one| one.in_flight).sum();
        if open == 0 { Ok(()) } else { Err(format!("{open} are open")) }
    });
}
