//! The harness must notice what the stories rely on it to notice; here it watches a real Puma, without a proxy.

use harness::{App, Ask, Load, LoadPlan, Puma, Recorder, Rogue, Socket, SocketEvent, free_address};

fn plan(path: &str) -> LoadPlan {
    // Puma speaks no HTTP/2.
    LoadPlan { http2_connections: 0, path: path.to_owned(), ..LoadPlan::default() }
}

#[test]
fn load_counts_by_release_and_loses_nothing_on_a_healthy_puma() {
    let puma = Puma::start(App::Rack, "v1");
    let load = Load::start(puma.target().parse().unwrap(), plan("/"));
    load.goes_on_for(50);
    let seen = load.finish().lost_nothing();
    assert_eq!((seen.releases(), seen.last_body().as_str()), (vec!["v1"], "v1"), "{seen}");
}

#[test]
fn load_notices_server_errors_cuts_and_refusals() {
    let puma = Puma::start(App::Rack, "v1");
    let rogue = Rogue::resetting();
    for (what, address, path) in [
        ("5xx", puma.target(), "/status?code=503"),
        ("reset", rogue.target(), "/"),
        ("refused", free_address().to_string(), "/"),
    ] {
        let load = Load::start(address.parse().unwrap(), plan(path));
        load.goes_on_for(20);
        let seen = load.finish();
        assert_eq!(seen.failed, seen.requests, "{what}: {seen}");
        assert_eq!(what == "5xx", seen.server_errors > 0, "{what}: {seen}");
    }
}

#[test]
fn a_rails_release_has_all_that_the_stories_ask_of_it() {
    let puma = Puma::start(App::Rails, "v1");
    let address = puma.target().parse().unwrap();
    assert_eq!(Ask::get("shop.test", "/up").at(address).status, 200);
    assert_eq!(Ask::post("shop.test", "/upload", vec![b'x'; 70_000]).at(address).json()["bytes"], 70_000);
    let mut cable = Socket::open_cable(address, "shop.test");
    assert_eq!(cable.cable_echo("hello"), "v1");
    drop(puma);
    assert!(matches!(cable.wait_for_the_end(), SocketEvent::Cut(_)));
}

#[test]
fn the_recorder_keeps_bytes_and_framing() {
    let recorder = Recorder::start();
    let address = recorder.target().parse().unwrap();
    assert_eq!(Ask::post("shop.test", "/t", "hello").at(address).text(), "recorded");
    let received = recorder.request(1);
    assert_eq!((received.request_line(), received.text().as_str()), ("POST /t HTTP/1.1", "hello"));
    assert_eq!(received.values("Host"), ["shop.test"]);
}
