//! Upgrades (RFC 9110 §7.8): only to WebSockets, only when both sides have agreed, and nothing is a tunnel before.

use std::io::{Read, Write};

use harness::{Raw, Recorder};

use super::house::{Chapter, Seen, echo, get, is_passed, post};
use super::strict::Request;

const WEBSOCKET: &str =
    "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: shop.test\r\n\r\n";

fn asks_for_nothing(request: &Request) -> bool {
    ["upgrade", "http2-settings", "connection"].iter().all(|name| request.values(name).is_empty())
}

#[test]
fn only_a_websocket_is_upgraded() {
    let mut chapter = Chapter::begin("upgrades that are none");
    for (id, fields) in [
        ("G02", "Connection: upgrade\r\nUpgrade: foo\r\n".to_owned()),
        (
            "G04",
            "Connection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n".to_owned(),
        ),
        ("G04a", "Connection: upgrade\r\nUpgrade: h2c, websocket\r\nUpgrade: websocket\r\n".to_owned()),
        ("G05", WEBSOCKET.to_owned()),
        ("G05a", "Connection: keep-alive\r\nUpgrade: websocket\r\n".to_owned()),
        ("G05b", "Connection: upgrade\r\nUpgrade: TLS/1.0\r\n".to_owned()),
    ] {
        chapter.case(id, get(&fields)).checks(asks_for_nothing).passed("");
    }
    let old = format!("GET /t HTTP/1.0\r\nHost: shop.test\r\nConnection: upgrade\r\n{WEBSOCKET}\r\n");
    chapter.case("G06", old).checks(asks_for_nothing).passed("");
    let upgrade = format!("Connection: upgrade\r\n{WEBSOCKET}");
    chapter
        .case("G07", post(&format!("{upgrade}Content-Length: 5\r\n"), "hello"))
        .checks(asks_for_nothing)
        .passed("hello");
    let get_with = |fields: &str, body: &str| [get(&format!("{upgrade}{fields}")), body.into()].concat();
    chapter.case("G08", get_with("Content-Length: 5\r\n", "hello")).checks(asks_for_nothing).passed("hello");
    let chunked = get_with("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n");
    chapter.case("G10", chunked).checks(asks_for_nothing).passed("hello");
    chapter.case("G11", post(&upgrade, "")).checks(asks_for_nothing).passed("");
    // The app does not switch: what follows is a request like any other.
    for (id, fields) in [("G03", upgrade.as_str()), ("G02a", "Connection: upgrade\r\nUpgrade: foo\r\n")] {
        chapter.case(id, [get(fields), NEXT.into()].concat()).judged(|seen| {
            let next = seen.upstream.iter().find(|seen| seen.request_line().contains("/next"));
            let request = next.map(Request::parse).transpose()?;
            match request {
                Some(request) if request.values("x-forwarded-for") == ["127.0.0.1"] => Ok(()),
                other => Err(format!("the second one was not parsed: {other:?}")),
            }
        });
    }
    chapter.end();
}

/// Switches for whoever asks, says `hello`, and says again what it hears; `/plain` gets a 101 unasked.
fn switching(received: &harness::Received, stream: &mut std::net::TcpStream) {
    let asks = !received.values("upgrade").is_empty();
    if !asks && !received.request_line().contains("/unasked") {
        return echo(received, stream);
    }
    let kind = if received.request_line().contains("/other") { "other" } else { "websocket" };
    let head =
        format!("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: {kind}\r\n\r\nhello");
    let _ = stream.write_all(head.as_bytes());
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(n) if n > 0 => drop(stream.write_all(&buffer[..n])),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

#[test]
fn a_tunnel_begins_with_the_answer() {
    let mut chapter = Chapter::on("tunnels", Recorder::scripted(switching));
    let handshake = get(&format!("Connection: upgrade\r\n{WEBSOCKET}"));
    let mut client = Raw::connect(chapter.world.http());
    client.send(&handshake);
    // Bytes right behind the head belong to the tunnel, and so do bare line feeds and what looks like a request.
    client.read_until(|seen| seen.starts_with("HTTP/1.1 101 ") && seen.ends_with("\r\n\r\nhello"));
    let odd = "\n\n\0GET / HTTP/1.1\nHost: x\n\n";
    client.send(odd);
    client.read_until(|seen| seen.ends_with(odd));
    drop(client);
    chapter.record("G01", Ok(()));

    let is_bad_gateway = |seen: &Seen| match &seen.answers[..] {
        [answer] if answer.status == 502 => Ok(()),
        _ => Err("not a bad gateway".to_owned()),
    };
    for (id, bytes) in [
        ("G09", "GET /unasked HTTP/1.1\r\nHost: shop.test\r\n\r\n".to_owned()),
        (
            "G09a",
            "GET /unasked HTTP/1.1\r\nHost: shop.test\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n"
                .to_owned(),
        ),
        ("G09b", "POST /unasked HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 2\r\n\r\nok".to_owned()),
    ] {
        chapter.case(id, bytes).judged(is_bad_gateway);
    }
    chapter.end();
}

#[test]
fn an_upgrade_that_was_declined_leaves_a_connection() {
    let mut chapter = Chapter::begin("declined upgrades");
    let handshake = get(&format!("Connection: upgrade\r\n{WEBSOCKET}"));
    chapter.case("G12", handshake).judged(|seen| {
        let [received] = &seen.upstream[..] else { return Err("not one request".to_owned()) };
        let asked = received.values("upgrade") == ["websocket"];
        if asked && seen.answers.len() == 1 && seen.stayed_open {
            Ok(())
        } else {
            Err("it is no ordinary answer".to_owned())
        }
    });
    chapter.case("G13", get("")).judged(|seen| is_passed(seen, "").map(drop));
    chapter.end();
}
