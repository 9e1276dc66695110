//! What no honest client sends, byte for byte, and what the app behind Portcullis gets to see of it.
//!
//! Each case is judged by what arrived upstream: a refusal must leave nothing complete there, and a request
//! that is let through must be exactly one, with its body, by the letter of RFC 9112. Afterwards a follow-up
//! must get its own answer. Cases are named as in the catalogue that they come from (B01, C05, …).

use harness::{Ask, Raw, Received, Recorder, World};

struct House {
    world: World,
    recorder: Recorder,
}

impl House {
    fn new() -> Self {
        let (world, recorder) = (World::start(), Recorder::start());
        world.deploy(&recorder.target());
        Self { world, recorder }
    }

    /// Sends the bytes, then nothing more; returns what came back and what arrived upstream.
    fn send(&self, bytes: &[u8]) -> (String, Vec<Received>) {
        self.recorder.forget();
        let answer = Raw::connect(self.world.http()).send(bytes).shut_write().read_to_end();
        // A fresh request is answered for itself: nothing stuck to the connections upstream.
        let follow_up = Ask::get("shop.test", "/follow-up").at(self.world.http());
        assert_eq!(follow_up.text(), "recorded", "after {}", bytes.escape_ascii());
        let mut received = self.recorder.settled();
        // What broke off may have been noticed after it.
        let at = received.iter().position(|seen| seen.request_line().starts_with("GET /follow-up "));
        received.remove(at.expect("the follow-up arrived"));
        (answer, received)
    }

    /// Refused with one of these statuses; upstream saw nothing complete.
    fn refuses(&self, id: &str, bytes: &[u8], statuses: &[u16]) {
        let (answer, received) = self.send(bytes);
        let status = answer.get(9..12).and_then(|digits| digits.parse::<u16>().ok());
        let refused = status.map_or(answer.is_empty(), |status| statuses.contains(&status));
        assert!(refused, "{id}: {} was answered {answer:?}", bytes.escape_ascii());
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{id}: one refusal, then the end: {answer:?}");
        assert!(received.iter().all(|seen| !seen.complete), "{id}: arrived upstream: {received:#?}");
    }

    /// Let through as one request; returns it.
    fn passes(&self, id: &str, bytes: &[u8]) -> Received {
        let (answer, mut received) = self.send(bytes);
        assert_eq!(received.len(), 1, "{id}: {} gave {received:#?}\n{answer}", bytes.escape_ascii());
        assert!(received[0].complete, "{id}: {received:#?}");
        received.remove(0)
    }
}

fn post(fields: &str, body: &str) -> Vec<u8> {
    format!("POST /t HTTP/1.1\r\nHost: shop.test\r\n{fields}\r\n{body}").into_bytes()
}

const CHUNKED: &str = "5\r\nhello\r\n0\r\n\r\n";
const SMUGGLED: &str = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: shop.test\r\n\r\n";

#[test]
fn a_body_has_one_length() {
    let house = House::new();
    // hyper drops the length of CL + TE and closes after the answer, which RFC 9112 §6.3 allows: what counts
    // is that no second request appears upstream.
    for (id, fields) in [
        ("B01", "Content-Length: 49\r\nTransfer-Encoding: chunked\r\n"),
        ("B02", "Transfer-Encoding: chunked\r\nContent-Length: 49\r\n"),
        ("B03", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"),
    ] {
        let (answer, received) = house.send(&post(fields, SMUGGLED));
        assert!(received.iter().all(|seen| !seen.head.contains("smuggled")), "{id}: {received:#?}");
        assert!(received.len() <= 1 && answer.matches("HTTP/1.1 ").count() <= 1, "{id}: {answer:?}");
    }
    for (id, length) in [
        ("B04", "5\r\nContent-Length: 56"),
        ("B07", "5, 6"),
        ("B08", "+5"),
        ("B09", "-5"),
        ("B10", "5 5"),
        ("B11", "0x5"),
        ("B12", "5;x"),
        ("B13", ""),
        ("B16", "99999999999999999999999"),
        ("B17", "18446744073709551621"),
        ("B20", "5.0"),
        ("B22", "1_0"),
        ("B23", "\"5\""),
    ] {
        house.refuses(id, &post(&format!("Content-Length: {length}\r\n"), "hello"), &[400, 413, 431]);
    }
    for (id, length) in [("B05", "5\r\nContent-Length: 5"), ("plain", "5")] {
        let seen = house.passes(id, &post(&format!("Content-Length: {length}\r\n"), "hello"));
        assert_eq!((seen.values("content-length"), seen.text().as_str()), (vec!["5"], "hello"), "{id}");
    }
}

#[test]
fn chunked_is_the_only_transfer_coding() {
    let house = House::new();
    for (id, coding) in [
        ("B30", "xchunked"),
        ("B31", "chunked, identity"),
        ("B32", "identity, chunked"),
        ("B33", "gzip, chunked"),
        ("B34", "chunked, chunked"),
        ("B37", "\"chunked\""),
        ("B38", "chunked;q=1"),
        ("B40", "chunked,"),
        ("B53", "chunked\r\nTransfer-Encoding: cow"),
        ("B54", "cow\r\nTransfer-Encoding: chunked"),
        ("B52", "chunked\r\nTransfer-Encoding: chunked"),
        ("B57", "\r\n chunked"),
    ] {
        house.refuses(id, &post(&format!("Transfer-Encoding: {coding}\r\n"), CHUNKED), &[400, 501]);
    }
    house.refuses("B55", &post("Transfer-Encoding : chunked\r\n", CHUNKED), &[400]);
    for (id, coding) in [("B50", "CHUNKED"), ("B51", "\t chunked \t")] {
        let seen = house.passes(id, &post(&format!("Transfer-Encoding: {coding}\r\n"), CHUNKED));
        assert_eq!(seen.values("transfer-encoding"), ["chunked"], "{id}");
        assert!(seen.text().contains("hello"), "{id}: {seen:?}");
    }
    // Twins with an underscore become the same CGI variable in Rack: they do not pass.
    let seen = house.passes("B59", &post("Transfer_Encoding: chunked\r\nContent-Length: 5\r\n", "hello"));
    assert_eq!(seen.values("transfer_encoding"), Vec::<&str>::new());
    let seen = house.passes("B60", &post("Content_Length: 9\r\nContent-Length: 5\r\n", "hello"));
    assert_eq!(seen.values("content_length"), Vec::<&str>::new());
}

#[test]
fn chunks_are_well_formed_or_nothing_is_complete() {
    let house = House::new();
    for (id, body) in [
        ("C01", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("C02", "+5\r\nhello\r\n0\r\n\r\n"),
        ("C06", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("C11", "5\nhello\r\n0\r\n\r\n"),
        ("C14", "6\r\nhello\r\n0\r\n\r\n"),
        ("C15", "4\r\nhello\r\n0\r\n\r\n"),
        ("C16", "5\r\nhel"),
        ("C37", "5\r\nhello\r\n"),
    ] {
        let (answer, received) = house.send(&post("Transfer-Encoding: chunked\r\n", body));
        assert!(received.iter().all(|seen| !seen.complete), "{id}: {received:#?}");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{id}: {answer:?}");
    }
    let seen = house.passes("C08", &post("Transfer-Encoding: chunked\r\n", "5;a=b\r\nhello\r\n0\r\n\r\n"));
    assert!(!seen.text().contains("a=b"), "extensions are not passed on: {seen:?}");
    let with_trailer = "5\r\nhello\r\n0\r\nX-Forwarded-For: 1.2.3.4\r\nAuthorization: x\r\n\r\n";
    let seen = house.passes("C19", &post("Transfer-Encoding: chunked\r\n", with_trailer));
    assert!(!seen.text().contains("1.2.3.4") && !seen.text().contains("Authorization"), "{seen:?}");
}

#[test]
fn a_request_has_one_host() {
    let house = House::new();
    for (id, fields) in [
        ("E01", ""),
        ("E02", "Host: shop.test\r\nHost: shop.test\r\n"),
        ("E03", "Host: shop.test\r\nHost: evil.test\r\n"),
        ("E04", "Host: \r\n"),
        ("E05", "Host: shop.test evil\r\n"),
        ("E06", "Host: shop.test, evil.test\r\n"),
        ("E07", "Host: evil@shop.test\r\n"),
        ("E08", "Host: shop.test/x\r\n"),
        ("E10", "Host: shop.test?x\r\n"),
        ("E11", "Host: shop.test#x\r\n"),
        ("E12", "Host: shop.test\\x\r\n"),
        ("E20", "Host: shop.test:abc\r\n"),
        ("E21", "Host: shop.test:65616\r\n"),
        ("E22", "Host: [::1\r\n"),
    ] {
        house.refuses(id, format!("GET / HTTP/1.1\r\n{fields}\r\n").as_bytes(), &[400, 421]);
    }
    for (id, host) in [("E24", "SHOP.TEST"), ("E25", "shop.test.")] {
        house.passes(id, format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
    }
}

#[test]
fn a_target_has_one_form() {
    let house = House::new();
    let line = |line: &str| format!("{line}\r\nHost: shop.test\r\n\r\n").into_bytes();
    for (id, request, statuses) in [
        ("D22", line("GET foo HTTP/1.1"), &[400][..]),
        ("D22b", line("GET foo/t HTTP/1.1"), &[400]),
        ("D23", line("GET * HTTP/1.1"), &[400]),
        ("D24", line("CONNECT 127.0.0.1:22 HTTP/1.1"), &[400, 405]),
        ("D25", line("CONNECT /t HTTP/1.1"), &[400, 405]),
        ("D26", line("TRACE / HTTP/1.1"), &[405]),
        ("D28", line("GET http://evil.test/ HTTP/1.1"), &[400, 404, 421]),
        ("D29", line("GET http://user@shop.test/ HTTP/1.1"), &[400]),
        ("D30", line("GET ftp://shop.test/ HTTP/1.1"), &[400]),
        ("D01", line("GET  / HTTP/1.1"), &[400]),
        ("D06", line("GET / HTTP/2.0"), &[400, 505]),
        ("D04", line("GET /"), &[400, 505]),
        ("D16", line("GET /a\u{1}b HTTP/1.1"), &[400]),
    ] {
        house.refuses(id, &request, statuses);
    }
    let seen = house.passes("D27", &line("GET http://shop.test/x?y HTTP/1.1"));
    assert_eq!(seen.request_line(), "GET /x?y HTTP/1.1");
    for path in ["//x", "/a/../b", "/%2e%2e/x", "/a%2fb", "/%00", "/%zz", "/%0d%0aX:y"] {
        let seen = house.passes(path, &line(&format!("GET {path} HTTP/1.1")));
        assert_eq!(seen.request_line(), format!("GET {path} HTTP/1.1"), "never decoded");
    }
}

#[test]
fn fields_are_well_formed() {
    let house = House::new();
    for (id, field) in [
        ("F01", "X-A : b"),
        ("F02", "X-A\t: b"),
        ("F03", "no colon"),
        ("F03b", ": empty"),
        ("F04", "X-A: a\0b"),
        ("F05", "X-A: a\rb"),
        ("F08", "X-A: a\r\n folded: b"),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: shop.test\r\n{field}\r\n\r\n");
        house.refuses(id, request.as_bytes(), &[400]);
    }
    let bare = b"GET / HTTP/1.1\nHost: shop.test\n\nGET /hidden HTTP/1.1\r\nHost: shop.test\r\n\r\n";
    house.refuses("F06", bare, &[400]);
    let many = "X-A: b\r\n".repeat(500);
    house.refuses("F11", format!("GET / HTTP/1.1\r\nHost: shop.test\r\n{many}\r\n").as_bytes(), &[431]);
    let long = "x".repeat(1 << 20);
    house.refuses(
        "F13",
        format!("GET / HTTP/1.1\r\nHost: shop.test\r\nX-A: {long}\r\n\r\n").as_bytes(),
        &[431],
    );
}

#[test]
fn who_the_client_is_is_not_the_clients_to_say() {
    let house = House::new();
    for field in [
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Forwarded-Ssl",
        "X-Forwarded-Scheme",
        "Forwarded",
        "X-Real-IP",
        "Client-IP",
        "X_Forwarded_For",
        "X_Forwarded_Proto",
        "X_Real_IP",
        "X-Forwarded_For",
        "Proxy",
        "X-Sendfile-Type",
        "X-Accel-Mapping",
        "X-Request-Start",
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: shop.test\r\n{field}: forged\r\n\r\n");
        let seen = house.passes(field, request.as_bytes());
        assert!(!seen.head.contains("forged"), "{field}: {}", seen.head);
    }
}

#[test]
fn what_binds_one_hop_ends_there() {
    let house = House::new();
    let request = b"GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: X-Hop, keep-alive, Host, X-Forwarded-For\r\n\
        X-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: trailers, gzip\r\nX-Kept: 1\r\n\r\n";
    let seen = house.passes("F15", request);
    for gone in ["x-hop", "keep-alive", "proxy-connection"] {
        assert_eq!(seen.values(gone), Vec::<&str>::new(), "{gone}: {}", seen.head);
    }
    assert!(!seen.values("te").iter().any(|te| te.contains("gzip")), "{}", seen.head);
    for kept in ["host", "x-forwarded-for", "x-kept"] {
        assert_eq!(seen.values(kept).len(), 1, "{kept}: {}", seen.head);
    }
}

#[test]
fn only_a_websocket_is_upgraded() {
    let house = House::new();
    let get = |fields: &str| format!("GET / HTTP/1.1\r\nHost: shop.test\r\n{fields}\r\n").into_bytes();
    let websocket =
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (id, request) in [
        ("G02", get("Connection: upgrade\r\nUpgrade: foo\r\n")),
        ("G04", get("Connection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n")),
        ("G05", get(websocket)),
        (
            "G06",
            format!("GET / HTTP/1.0\r\nHost: shop.test\r\nConnection: upgrade\r\n{websocket}\r\n")
                .into_bytes(),
        ),
    ] {
        let (answer, received) = house.send(&request);
        assert!(!answer.starts_with("HTTP/1.1 101"), "{id}: {answer}");
        for seen in &received {
            assert_eq!(seen.values("upgrade"), Vec::<&str>::new(), "{id}: {}", seen.head);
            assert_eq!(seen.values("http2-settings"), Vec::<&str>::new(), "{id}: {}", seen.head);
        }
    }
    // Upstream does not switch: what follows is the next request, never a tunnel.
    let mut request = get(&format!("Connection: upgrade\r\n{websocket}"));
    request.extend_from_slice(b"GET /next HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n");
    let (answer, received) = house.send(&request);
    assert!(answer.matches("HTTP/1.1 200").count() <= 2, "{answer}");
    for seen in received.iter().filter(|seen| seen.request_line().contains("/next")) {
        assert_eq!(seen.values("x-forwarded-for"), ["127.0.0.1"], "parsed, not tunnelled: {}", seen.head);
    }
}

#[test]
fn answers_are_checked_like_requests() {
    let ok = "HTTP/1.1 200 OK\r\n";
    for (id, answer, want) in [
        ("R03", "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", Some(502)),
        ("R04", "Content-Length: +5\r\n\r\nhello", Some(502)),
        ("R34", "Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Some(502)),
        ("R36", "Transfer-Encoding: cow\r\n\r\nhello", Some(502)),
        ("R19", "X-A: a\0b\r\nContent-Length: 2\r\n\r\nok", Some(502)),
        ("R01", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", None),
    ] {
        let bytes: &'static [u8] = Box::leak(format!("{ok}{answer}").into_bytes().into_boxed_slice());
        let recorder = Recorder::answering(bytes);
        let world = World::start();
        world.deploy(&recorder.target());
        let got = world.get("/");
        match want {
            Some(status) => assert_eq!(got.status, status, "{id}: {got}"),
            // Chunked wins, or the answer is refused; the length alone never does.
            None => assert!(got.status == 502 || got.text() == "hello", "{id}: {got}"),
        }
    }
}

#[test]
fn a_stray_answer_never_reaches_the_next_client() {
    for (id, answer) in [
        ("R13", &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"[..]),
        ("R15", b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"),
    ] {
        let recorder = Recorder::answering(answer);
        let world = World::with_args(["--workers", "1"]);
        world.deploy(&recorder.target());
        for n in 0..10 {
            let got = world.get("/");
            assert_ne!(got.text(), "poison", "{id}: request {n}");
        }
    }
}

#[test]
fn an_unasked_switch_of_protocols_is_a_bad_gateway() {
    let recorder = Recorder::answering(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    );
    let world = World::start();
    world.deploy(&recorder.target());
    assert_eq!(world.get("/").status, 502);
}

#[test]
fn a_post_is_sent_once() {
    let recorder = Recorder::scripted(|_, stream| drop(stream.shutdown(std::net::Shutdown::Both)));
    let world = World::start();
    world.deploy(&recorder.target());
    let answer = Ask::post("shop.test", "/order", "1 book").at(world.http());
    assert_eq!((answer.status.as_u16(), answer.header("x-portcullis-reason")), (502, "upstream_closed"));
    assert_eq!(recorder.received().len(), 1, "{:#?}", recorder.received());
}

#[test]
fn an_answer_that_breaks_off_looks_broken() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let recorder = Recorder::scripted(move |_, stream| {
            let _ = std::io::Write::write_all(stream, answer);
            let _ = stream.shutdown(std::net::Shutdown::Both);
        });
        let world = World::start();
        world.deploy(&recorder.target());
        for ask in [Ask::get("shop.test", "/"), Ask::get("shop.test", "/").h2()] {
            let got = ask.try_at(world.http());
            assert!(got.as_ref().map_or(true, |answer| answer.status == 502), "{got:?}");
        }
    }
}
