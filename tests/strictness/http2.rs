//! HTTP/2 requests that must not become HTTP/1.1 requests of another meaning (RFC 9113 §8).

use harness::{Fields, Frame, Frames, frame, headers};

use super::house::{Chapter, SMUGGLED};
use super::strict::Request;

/// How one request ends.
enum Want {
    /// By a reset, the end of the connection, or one of the statuses of a refusal.
    Refused,
    Passed,
    Either,
    /// By a reset; what had arrived until then may have been a whole request, without a body.
    Bodiless,
}

struct Row<'r> {
    id: &'r str,
    method: &'r str,
    /// Replaces those of `BASE` that have the same name, or stands beside them.
    fields: Vec<(&'r str, &'r str)>,
    data: Option<&'r str>,
    trailers: Option<Fields<'r>>,
    want: Want,
    check: fn(&Request) -> bool,
}

fn row<'r>(id: &'r str, fields: Fields<'r>, data: Option<&'r str>, want: Want) -> Row<'r> {
    let method = if data.is_some() { "POST" } else { "GET" };
    Row { id, method, fields: fields.to_vec(), data, trailers: None, want, check: |_| true }
}

impl Row<'_> {
    fn all_fields(&self) -> Vec<(&str, &str)> {
        let base =
            [(":method", self.method), (":scheme", "http"), (":path", "/t"), (":authority", "shop.test")];
        let replaced = |name: &str| self.fields.iter().any(|(n, _)| n.trim_end_matches('!') == name);
        let kept = base.into_iter().filter(|(name, _)| !replaced(name));
        // `!` is no value: the field is left out.
        kept.chain(self.fields.iter().copied().filter(|(name, _)| !name.ends_with('!'))).collect()
    }

    fn run(&self, chapter: &mut Chapter) -> Result<(), String> {
        chapter.recorder.forget();
        let n = chapter.number();
        let mut client = Frames::connect(chapter.world.http());
        let more = self.data.is_some() || self.trailers.is_some();
        client.send(headers(1, if more { 0 } else { Frame::END_STREAM }, &self.all_fields()));
        if let Some(data) = self.data {
            let flags = if self.trailers.is_some() { 0 } else { Frame::END_STREAM };
            client.send(frame(Frame::DATA, flags, 1, data.as_bytes()));
        }
        if let Some(trailers) = self.trailers {
            client.send(headers(1, Frame::END_STREAM, trailers));
        }
        let end = client.end_of(1);
        let is_open = end.as_ref().is_some_and(|end| end.kind != Frame::GOAWAY);
        let status = client.status_of(1);
        if is_open {
            let path = format!("/same-{n}");
            client.send(headers(
                3,
                Frame::END_STREAM,
                &[(":method", "GET"), (":scheme", "http"), (":path", &path), (":authority", "shop.test")],
            ));
            client.end_of(3);
            if client.body_of(3) != format!("GET {path} HTTP/1.1") {
                return Err(format!("the next stream got {:?}", client.seen));
            }
        }
        let upstream = chapter.upstream_of_case(is_open)?;
        if let Some(seen) = upstream.iter().find(|seen| seen.request_line().contains("smuggled")) {
            return Err(format!("it arrived upstream: {seen:#?}"));
        }
        let was_reset = end.as_ref().is_none_or(|end| end.error().is_some());
        let refused = (was_reset || status.is_some_and(|status| status >= 400))
            && upstream.iter().all(|seen| !seen.complete);
        let passed = match (status, &upstream[..]) {
            (Some(200), [received]) => Request::parse(received).and_then(|request| {
                let sound = request.body == self.data.unwrap_or_default() && (self.check)(&request);
                if sound { Ok(()) } else { Err(format!("{request:#?}")) }
            }),
            _ => Err(format!("status {status:?}, end {end:?}; {upstream:#?}")),
        };
        match (&self.want, refused, passed) {
            (Want::Refused, true, _) | (Want::Passed, _, Ok(())) | (Want::Either, _, Ok(())) => Ok(()),
            (Want::Either, true, _) => Ok(()),
            (Want::Bodiless, ..) if was_reset && upstream.iter().all(|seen| seen.body.is_empty()) => Ok(()),
            (_, refused, passed) => {
                Err(format!("refused: {refused}, passed: {passed:?}\n{:?}", self.all_fields()))
            }
        }
    }
}

#[test]
fn a_stream_is_one_request() {
    use Want::{Bodiless, Either, Passed, Refused};
    let mut chapter = Chapter::begin("HTTP/2 requests");
    let (five, none) = (Some("hello"), None);
    let smuggled = Some(SMUGGLED);
    let many_names: Vec<String> = (0..300).map(|n| format!("x-{n}")).collect();
    let many: Vec<(&str, &str)> = many_names.iter().map(|name| (name.as_str(), "b")).collect();
    let long = "x".repeat(100_000);
    let too_long = [("x-a", long.as_str())];
    let tunnel = [(":method", "CONNECT"), (":protocol", "websocket")];
    let mut rows = vec![
        row("H04", &[("content-length", "5")], none, Refused),
        row("H05", &[("content-length", "3")], five, Refused),
        row("H06", &[("content-length", "10")], five, Refused),
        row("H07", &[("content-length", "5"), ("content-length", "6")], five, Refused),
        row("H08", &[("content-length", "+5")], five, Refused),
        row("H08a", &[("content-length", "5a")], five, Refused),
        row("H08b", &[("content-length", "5, 5")], five, Either),
        row("H08c", &[("content-length", "18446744073709551621")], five, Refused),
        row("H08d", &[("content-length", "5"), ("content-length", "5")], five, Either),
        row("H09", &[("content-length", "0")], smuggled, Bodiless),
        row("H10", &[("transfer-encoding", "chunked")], five, Refused),
        row("H10a", &[("transfer-encoding", "chunked")], none, Refused),
        row("H11", &[("transfer-encoding", "chunked"), ("content-length", "5")], five, Refused),
        row("H12", &[("connection", "close")], none, Refused),
        row("H12a", &[("connection", "x-hop"), ("x-hop", "1")], none, Refused),
        row("H13", &[("upgrade", "websocket")], none, Refused),
        row("H14", &[("proxy-connection", "keep-alive")], none, Refused),
        row("H15", &[("keep-alive", "timeout=5")], none, Refused),
        row("H16", &[("te", "gzip")], none, Refused),
        row("H17", &[("te", "trailers")], none, Passed),
        row("H18", &[("x-a", "b\r\nx-smuggled: c")], none, Refused),
        row("H18a", &[("x-a", "b\nx-smuggled: c")], none, Refused),
        row("H19", &[("x-a: b\r\nx-smuggled", "c")], none, Refused),
        row("H19a", &[("x-a ", "b")], none, Refused),
        row("H19b", &[("content-length ", "5")], five, Refused),
        row("H19c", &[("", "b")], none, Refused),
        row("H19d", &[("x:a", "b")], none, Refused),
        row("H20", &[("X-A", "b")], none, Refused),
        row("H21", &[(":path", "/t\nx")], none, Refused),
        row("H22", &[(":path", "/t HTTP/1.1\r\nHost: evil.test\r\n\r\nGET /smuggled")], none, Refused),
        row("H22a", &[(":path", "/t HTTP/1.1")], none, Refused),
        row("H22b", &[(":path", "/\u{e9}")], none, Refused),
        row("H22c", &[(":path", "/t#frag")], none, Either),
        row("H23", &[(":path", "foo")], none, Refused),
        row("H24", &[(":path", "http://evil.test/")], none, Refused),
        row("H25", &[(":path", "")], none, Refused),
        row("H25a", &[(":path", "*")], none, Refused),
        row("H26", &[(":method", "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\nGET")], none, Refused),
        row("H26a", &[(":method", "")], none, Refused),
        row("H26b", &[(":method", "TRACE")], none, Refused),
        row("H27", &[(":scheme", "http://evil.test/?")], none, Refused),
        row("H27a", &[(":scheme", "ftp")], none, Refused),
        row("H28", &[(":authority", "evil@shop.test")], none, Refused),
        row("H28a", &[(":authority", "shop.test:0")], none, Refused),
        row("H28b", &[(":authority", "shop.test:65616")], none, Refused),
        row("H28c", &[(":authority", "shop.test/x")], none, Refused),
        row("H28d", &[(":authority", "")], none, Refused),
        row("H28e", &[(":authority", "[::1")], none, Refused),
        row("H29", &[("host", "evil.test")], none, Either),
        row("H30", &[(":authority!", "")], none, Refused),
        row("H31", &[("host", "shop.test"), ("host", "shop.test")], none, Refused),
        row("H31a", &[(":authority!", ""), ("host", "shop.test"), ("host", "evil.test")], none, Refused),
        row("H32", &[(":authority", "shop.test evil.test")], none, Refused),
        row("H33", &[(":path", "/t"), (":path", "/x")], none, Refused),
        row("H33a", &[(":authority", "shop.test"), (":authority", "evil.test")], none, Refused),
        row("H34", &[("x-a", "b"), (":path", "/t")], none, Refused),
        row("H35", &[(":unknown", "x")], none, Refused),
        row("H36", &[(":path!", "")], none, Refused),
        row("H36a", &[(":method!", "")], none, Refused),
        row("H36b", &[(":scheme!", "")], none, Refused),
        row("H37", &[(":status", "200")], none, Refused),
        row(
            "H38",
            &[(":method", "CONNECT"), (":authority", "127.0.0.1:22"), (":path!", ""), (":scheme!", "")],
            none,
            Refused,
        ),
        row("H38a", &[(":method", "CONNECT")], none, Refused),
        row("H39", &[(":method", "CONNECT"), (":protocol", "connect-udp")], none, Refused),
        row("H39a", &[(":protocol", "websocket")], none, Refused),
        // The app answers with a page: what the client sends for a WebSocket is nobody's request.
        row("H39b", &tunnel, smuggled, Bodiless),
        row("H44", &[("x-a", "b\0c")], none, Refused),
        row("H45", &[("x-a", "b\rc")], none, Refused),
        row("H48", &many, none, Refused),
        row("H49", &too_long, none, Refused),
        row("H51", &[(":authority", "shop.test,evil.test")], none, Refused),
    ];
    for (id, fields, data, check) in [
        (
            "H40",
            &[("cookie", "a=1"), ("cookie", "b=2")][..],
            none,
            (|seen| seen.values("cookie") == ["a=1; b=2"]) as fn(&Request) -> bool,
        ),
        (
            "H41",
            &[("x-forwarded-for", "forged"), ("forwarded", "for=forged"), ("x-real-ip", "forged")],
            none,
            |seen| !seen.mentions("forged"),
        ),
        (
            "H42",
            &[("x-forwarded-proto", "forged"), ("x-forwarded-host", "forged"), ("x_forwarded_for", "forged")],
            none,
            |seen| !seen.mentions("forged"),
        ),
        (
            "H57",
            &[("client-ip", "forged"), ("proxy", "forged"), ("x-sendfile-type", "forged")],
            none,
            |seen| !seen.mentions("forged"),
        ),
        ("H43", &[("host", "shop.test")], none, |seen| seen.values("host") == ["shop.test"]),
        ("H43a", &[(":authority!", ""), ("host", "shop.test")], none, |seen| {
            seen.values("host") == ["shop.test"]
        }),
        ("H54", &[("content-length", "005")], five, |seen| seen.values("content-length") == ["5"]),
        ("H55", &[(":authority", "SHOP.TEST:8080")], none, |_| true),
        ("H56", &[("expect", "100-continue")], five, |seen| seen.values("expect").is_empty()),
        ("H56a", &[("http2-settings", "AAMAAABk")], none, |seen| seen.values("http2-settings").is_empty()),
    ] {
        rows.push(Row { check, ..row(id, fields, data, Passed) });
    }
    // A body of unknown length, and one where none is expected.
    rows.push(Row { method: "GET", ..row("H52", &[], smuggled, Either) });
    rows.push(Row { method: "HEAD", ..row("H52a", &[], smuggled, Either) });
    rows.push(row("H52b", &[], smuggled, Passed));
    rows.push(Row { method: "GET", ..row("H52c", &[("content-length", "54")], smuggled, Either) });
    for (id, trailers, want) in [
        ("H46", &[(":path", "/smuggled")][..], Either),
        ("H47", &[("content-length", "99"), ("host", "evil.test"), ("x-forwarded-for", "1.2.3.4")], Either),
        ("H47a", &[("transfer-encoding", "chunked")], Refused),
        ("H47b", &[("x-a", "b\r\nx: c")], Refused),
    ] {
        rows.push(Row { trailers: Some(trailers), ..row(id, &[], five, want) });
    }
    for row in &rows {
        let outcome = row.run(&mut chapter);
        chapter.record(row.id, outcome);
    }
    chapter.end();
}

#[test]
fn a_stream_that_is_reset_is_never_complete() {
    let mut chapter = Chapter::begin("HTTP/2 uploads that are given up");
    for (id, fields) in [("H53", &[("content-length", "10")][..]), ("H53a", &[])] {
        chapter.recorder.forget();
        let mut client = Frames::connect(chapter.world.http());
        let all = row(id, fields, Some(""), Want::Refused);
        client.send(headers(1, 0, &all.all_fields())).send(frame(Frame::DATA, 0, 1, b"hello"));
        // It is on its way upstream before it is given up.
        let begun = chapter.world.daemon.access_log().len();
        client.send(frame(Frame::PING, 0, 0, b"12345678"));
        client.read_until(|frame| (frame.kind, frame.flags) == (Frame::PING, Frame::ACK));
        client.send(frame(Frame::RST_STREAM, 0, 1, &8_u32.to_be_bytes()));
        harness::eventually("it is over", || {
            if chapter.world.daemon.access_log().len() > begun {
                Ok(())
            } else {
                Err("it goes on".to_owned())
            }
        });
        let outcome = chapter.upstream_of_case(false).and_then(|upstream| {
            let complete = upstream.iter().any(|seen| seen.complete);
            if complete { Err(format!("{upstream:#?}")) } else { Ok(()) }
        });
        chapter.record(id, outcome);
    }
    // A tunnel that announces a body: hyper ends the connection for it, without a word.
    chapter.recorder.forget();
    let mut client = Frames::connect(chapter.world.http());
    let fields = [(":method", "CONNECT"), (":protocol", "websocket"), ("content-length", "43")];
    let tunnel = row("H39c", &fields, Some(SMUGGLED), Want::Refused);
    client.send(headers(1, 0, &tunnel.all_fields()));
    client.send(frame(Frame::DATA, Frame::END_STREAM, 1, SMUGGLED.as_bytes()));
    client.read_to_end();
    let outcome = chapter.upstream_of_case(false).and_then(|upstream| match &upstream[..] {
        [] => Ok(()),
        upstream => Err(format!("{upstream:#?}")),
    });
    chapter.record("H39c", outcome);
    chapter.end();
}
