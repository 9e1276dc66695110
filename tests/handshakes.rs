//! Handshakes that are none, or come from nobody's browser: each ends at once, tells nothing, and costs the others nothing.

use std::net::SocketAddr;
use std::time::Duration;

use harness::{App, Ask, DaemonOptions, Puma, Raw, Visitor, World, eventually, handshake};

fn served() -> (World, Puma) {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--tls"]);
    (world, puma)
}

/// An alert of TLS as it stands in a record: fatal, and why.
fn alert(bytes: &[u8]) -> Option<u8> {
    match bytes {
        [21, 3, _, 0, 2, 2, why, ..] => Some(*why),
        _ => None,
    }
}

/// A record of TLS.
fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a record is short").to_be_bytes();
    [&[kind, 3, 1], &length[..], payload].concat()
}

/// A hello of TLS 1.2 with these versions at most, for `name`, with one good suite and group.
fn hello(version: [u8; 2], name: &str) -> Vec<u8> {
    let sized = |payload: &[u8]| {
        let length = u16::try_from(payload.len()).expect("an extension is short").to_be_bytes();
        [&length[..], payload].concat()
    };
    let extension = |kind: u16, payload: &[u8]| [&kind.to_be_bytes()[..], &sized(payload)].concat();
    let server_name = sized(&[&[0][..], &sized(name.as_bytes())].concat());
    let extensions = [
        extension(0, &server_name),
        extension(10, &sized(&[0, 29, 0, 23])),
        extension(11, &[1, 0]),
        extension(13, &sized(&[4, 3, 8, 4])),
    ];
    let body = [
        &version[..],
        &[7; 32],
        &[0],
        &sized(&[0xc0, 0x2b, 0xc0, 0x2f]),
        &[1, 0],
        &sized(&extensions.concat()),
    ]
    .concat();
    let length = u32::try_from(body.len()).expect("a hello is short").to_be_bytes();
    record(22, &[&[1][..], &length[1..], &body].concat())
}

/// What comes back for `bytes`, to the end of the connection.
fn answer(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut raw = Raw::connect(address);
    raw.flood(bytes);
    raw.read_to_end();
    raw.bytes().to_vec()
}

#[test]
fn what_is_no_handshake_is_closed_at_once() {
    let (world, _puma) = served();
    let address = world.daemon.https();
    let before = world.daemon.rss_kib();
    let (empty, warning) = (record(22, b""), record(21, &[1, 0]));
    for (label, bytes) in [
        ("plain HTTP", b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n".to_vec()),
        ("a long record", [&[22, 3, 1, 0xff, 0xff][..], &[0; 4096]].concat()),
        ("a handshake of 16 MB", record(22, &[1, 0xff, 0xff, 0xff, 3, 3])),
        ("empty records", empty.repeat(1000)),
        ("warnings", warning.repeat(1000)),
        ("application data first", record(23, &[0; 64])),
        ("SSL 2", vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10, 1, 0, 0x80]),
        ("TLS 1.0", hello([3, 1], "shop.test")),
        ("TLS 1.1", hello([3, 2], "shop.test")),
    ] {
        for _ in 0..20 {
            let came = answer(address, &bytes);
            assert!(came.is_empty() || alert(&came).is_some(), "{label}: {came:?}");
        }
    }
    // One that is good but for its patience shows that the others failed for their own faults.
    let mut good = Raw::connect(address);
    good.send(hello([3, 3], "shop.test"));
    good.read_some();
    assert_eq!(good.bytes()[..3], [22, 3, 3], "a server hello");
    assert_eq!(Ask::get("shop.test", "/").tls().at(address).text(), "v1");
    let grown = world.daemon.rss_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB more");
    assert!(world.daemon.metric("portcullis_handshakes_failed_total") >= 9 * 20);
}

#[test]
fn a_name_that_nobody_serves_learns_nothing_but_that() {
    let (world, _puma) = served();
    const UNRECOGNIZED_NAME: u8 = 112;
    for name in ["other.test", "sub.shop.test", "", "127.0.0.1"] {
        let came = answer(world.daemon.https(), &hello([3, 3], name));
        let why = alert(&came).unwrap_or_else(|| panic!("{name}: {came:?}"));
        // What is no name of a host is malformed.
        assert!(why == UNRECOGNIZED_NAME || name.is_empty(), "{name}: {why}");
        assert_eq!(came.len(), 7, "{name}");
    }
}

#[test]
fn a_challenge_that_nobody_ordered_gets_nothing() {
    let (world, _puma) = served();
    for name in ["shop.test", "other.test"] {
        let refused = handshake(world.daemon.https(), name, &["acme-tls/1"]).unwrap_err();
        assert!(refused.contains("UnrecognisedName"), "{refused}");
    }
    // Whoever offers more is a browser.
    let shown = handshake(world.daemon.https(), "shop.test", &["acme-tls/1", "h2"]).unwrap();
    assert_eq!(shown.alpn.as_deref(), Some("h2"));
}

#[test]
fn a_hello_that_trickles_is_over_in_time() {
    let world = World::with_limits("handshake_timeout = \"1s\"", DaemonOptions::default());
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--tls"]);
    let bytes = hello([3, 3], "shop.test");
    let mut trickling = Raw::connect(world.daemon.https());
    let failed = || world.daemon.metric("portcullis_handshakes_failed_total");
    let before = failed();
    let mut sent = 0;
    eventually("it is cut", || {
        // Each byte would be in time for a limit of a byte's own.
        if sent < bytes.len() - 1 {
            trickling.flood(&bytes[sent..=sent]);
            sent += 1;
        }
        // The pace of the one that trickles, which is what the story is about.
        std::thread::sleep(Duration::from_millis(20));
        if failed() > before { Ok(()) } else { Err(format!("{sent} bytes sent")) }
    });
    trickling.read_to_end();
    assert_eq!(Visitor::new().visit(world.daemon.https(), "shop.test", "/").unwrap().status, 200);
}
