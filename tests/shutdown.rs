//! The end of the proxy itself: what is in flight finishes, and nobody has to wait longer than they want.

use std::thread;

use harness::{App, Ask, Puma, Raw, Socket, SocketEvent, World, eventually};

#[test]
fn requests_in_flight_finish_and_sockets_are_told_to_go() {
    let mut world = World::start();
    let puma = Puma::start(App::Rails, "v1");
    world.deploy(&puma.target());
    let http = world.http();
    let slow = thread::spawn(move || Ask::get("shop.test", "/slow?s=2").at(http));
    let mut cable = Socket::open_cable(http, "shop.test");
    let mut idle = Raw::connect(http);
    idle.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    idle.read_until(|seen| seen.ends_with("v1\r\n0\r\n\r\n"));
    in_flight(&world, 2);

    world.daemon.terminate();

    assert_eq!(cable.wait_for_the_end(), SocketEvent::Closed(Some(1012)));
    assert_eq!(slow.join().unwrap().text(), "slow answer of v1");
    assert!(idle.read_to_end().ends_with("v1\r\n0\r\n\r\n"), "an idle connection is closed and nothing else");
    assert!(world.daemon.wait_for_the_end().success());
    let statuses: Vec<_> = world.daemon.access_log().iter().map(|line| line["status"].clone()).collect();
    assert_eq!(statuses.len(), 3, "each request has its line: {statuses:?}");
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let mut world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy(&puma.target());
    let http = world.http();
    let slow = thread::spawn(move || Ask::get("shop.test", "/slow?s=50").try_at(http));
    in_flight(&world, 1);
    world.daemon.terminate();
    eventually("it drains", || match world.daemon.log() {
        log if log.contains("draining; a second signal") => Ok(()),
        log => Err(log),
    });
    world.daemon.terminate();
    let status = world.daemon.wait_for_the_end();
    assert_eq!(status.code(), Some(130), "{status}");
    assert!(slow.join().unwrap().is_err(), "nobody waited for it");
}

fn in_flight(world: &World, count: u64) {
    eventually("they are in flight", || {
        let status = world.daemon.status();
        let in_flight: u64 = status.services[0].stable.targets.iter().map(|target| target.in_flight).sum();
        if in_flight == count { Ok(()) } else { Err(format!("{status:#?}")) }
    });
}
