//! Beyond the catalogue: what else a hostile client or a careless app might try.

use std::io::Write;

use harness::{Ask, Raw, Recorder, World};

use super::house::{Chapter, SMUGGLED, echo, get, post};
use super::strict::{self, Request};

#[test]
fn requests_are_told_apart() {
    let mut chapter = Chapter::begin("requests behind requests");
    // One write with many requests, and many writes with one.
    let mut client = Raw::connect(chapter.world.http());
    let requests: String =
        (0..50).map(|n| format!("GET /pipelined-{n} HTTP/1.1\r\nHost: shop.test\r\n\r\n")).collect();
    client.send(requests).send("GET /last HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n");
    client.read_to_end();
    let bodies: Vec<String> = strict::answers(client.bytes(), false, true)
        .map(|answers| answers.into_iter().map(|answer| answer.body).collect())
        .unwrap_or_default();
    let in_order = bodies.len() == 51
        && bodies[..50].iter().enumerate().all(|(n, body)| *body == format!("GET /pipelined-{n} HTTP/1.1"));
    chapter.record("X01", if in_order { Ok(()) } else { Err(format!("{bodies:#?}")) });

    let mut client = Raw::connect(chapter.world.http());
    chapter.recorder.forget();
    let dripped = post(
        "Transfer-Encoding: chunked\r\nConnection: close\r\n",
        "2\r\na\n\r\n3;x=y\r\n\nbc\r\n0\r\nX: y\r\n\r\n",
    );
    for byte in dripped {
        client.send([byte]);
    }
    client.read_to_end();
    let body = chapter.recorder.settled().first().map(Request::parse).transpose();
    let whole = body.as_ref().is_ok_and(|body| body.as_ref().is_some_and(|body| body.body == "a\n\nbc"));
    chapter.record("X02", if whole { Ok(()) } else { Err(format!("{body:?}")) });

    // A head that was half read while the request before it was answered: its body has bare line feeds.
    chapter.recorder.forget();
    let mut client = Raw::connect(chapter.world.http());
    client.send([get(""), b"POST /halved HTTP/1.1\r\nHost: shop.test\r\nContent-Le".to_vec()].concat());
    client.read_until(|seen| seen.ends_with("GET /t HTTP/1.1"));
    client.send("ngth: 8\r\nConnection: close\r\n\r\n\n\nhello\n");
    let answers = client.read_to_end();
    let received = chapter.recorder.settled();
    let body = received.last().map(|seen| seen.text()).unwrap_or_default();
    let whole = body == "\n\nhello\n" && answers.matches("HTTP/1.1 200").count() == 2;
    chapter.record("X18", if whole { Ok(()) } else { Err(format!("{body:?} {answers:?}")) });

    // A line end that old browsers put behind a body, and what looks like one request inside of another's body.
    let after_crlf = [post("Content-Length: 5\r\n", "hello\r\n"), get("")].concat();
    chapter.case("X03", after_crlf).judged(|seen| {
        let sound = seen.answers.iter().all(|answer| answer.status == 200) && seen.upstream.len() == 2;
        if sound { Ok(()) } else { Err("a line end was taken for something".to_owned()) }
    });
    let length = SMUGGLED.len();
    chapter.case("X04", post(&format!("Content-Length: {length}\r\n"), SMUGGLED)).passed(SMUGGLED);
    let chunked = format!("{length:x}\r\n{SMUGGLED}\r\n0\r\n\r\n");
    chapter.case("X05", post("Transfer-Encoding: chunked\r\n", &chunked)).passed(SMUGGLED);
    for (id, fields) in [
        // Codings of the content are no codings of the transfer.
        ("X06", "Content-Encoding: chunked\r\nContent-Length: 5\r\n"),
        ("X07", "TE: chunked\r\nContent-Length: 5\r\n"),
        // Whoever hides a length from the one does so from all.
        ("X08", "X-Content-Length: 3\r\nContent-Length: 5\r\n"),
        ("X09", "Connection: close, Content-Length, Transfer-Encoding\r\nContent-Length: 5\r\n"),
        ("X10", "CONTENT_LENGTH: 3\r\nContent-Length: 5\r\n"),
        ("X11", "Content-Length-: 3\r\nContent-Length: 5\r\n"),
    ] {
        let one_length = |request: &Request| {
            request.values("content-length") == ["5"] && !request.mentions("content_length")
        };
        chapter.case(id, post(fields, "hello")).checks(one_length).passed("hello");
    }
    let spaced = format!("Content-Length:{}5\r\n", " ".repeat(100));
    chapter.case("X12", post(&spaced, "hello")).either(&[400], "hello");
    let spaced = format!("Transfer-Encoding:{}chunked\r\n", " ".repeat(100));
    chapter.case("X13", post(&spaced, "5\r\nhello\r\n0\r\n\r\n")).either(&[400], "hello");
    // An upgrade, a body or many spaces do not hide a trailer section that would swallow the next request.
    for (id, fields) in [
        ("X14", "Upgrade: websocket\r\nTransfer-Encoding: chunked\r\n".to_owned()),
        ("X15", format!("Transfer-Encoding:{}chunked\r\n", " ".repeat(100))),
        ("X16", "Transfer-Encoding: chunked\r\nConnection: upgrade\r\nUpgrade: foo\r\n".to_owned()),
    ] {
        let bytes = post(&fields, &format!("5\r\nhello\r\n0\r\nX: y\n{SMUGGLED}"));
        chapter.case(id, bytes).refused(&[400]);
    }
    let behind_upgrade = format!(
        "GET /t HTTP/1.1\r\nHost: shop.test\r\nUpgrade: foo\r\n\r\n{}",
        String::from_utf8_lossy(&post(
            "Transfer-Encoding: chunked\r\n",
            &format!("5\r\nhello\r\n0\r\nX: y\n{SMUGGLED}")
        ))
    );
    chapter.case("X17", behind_upgrade).judged(|seen| {
        let statuses: Vec<u16> = seen.answers.iter().map(|answer| answer.status).collect();
        if statuses == [200, 400] && !seen.stayed_open {
            Ok(())
        } else {
            Err("the trailers swallowed it".to_owned())
        }
    });
    chapter.end();
}

#[test]
fn what_we_write_ourselves_cannot_be_written_to() {
    let mut chapter = Chapter::begin("our own fields");
    let told =
        |name: &'static str, value: &'static str| move |request: &Request| request.values(name) == [value];
    chapter
        .case("X20", get("X-Forwarded-For: 1.2.3.4\r\n"))
        .checks(told("x-forwarded-for", "127.0.0.1"))
        .passed("");
    chapter
        .case("X21", get("X-Forwarded-For: 1.2.3.4, ::1\r\nX-Real-IP: x\r\n"))
        .checks(told("x-real-ip", "127.0.0.1"))
        .passed("");
    chapter
        .case("X22", get("X-Forwarded-Proto: https\r\n"))
        .checks(told("x-forwarded-proto", "http"))
        .passed("");
    chapter
        .case("X23", "GET https://shop.test/t HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        .checks(told("x-forwarded-proto", "http"))
        .either(&[400], "");
    chapter
        .case("X24", get("X-Forwarded-Host: evil.test\r\n"))
        .checks(told("x-forwarded-host", "shop.test"))
        .passed("");
    chapter
        .case("X25", get("x-request-id: abc\"}\r\n"))
        .checks(|request| !request.mentions("abc"))
        .passed("");
    // What the log says of a request is one line, whatever the request says.
    let odd = "\"},\"status\":500,\"x\":\"\u{202e}\\";
    chapter.case("X26", get(&format!("User-Agent: {odd}\r\nReferer: {odd}\r\n"))).passed("");
    let log = harness::eventually("the log has it", || {
        let lines = chapter.world.daemon.access_log();
        let line = lines
            .iter()
            .find(|line| line["user_agent"].as_str().is_some_and(|agent| agent.contains("status")));
        line.cloned().ok_or_else(|| format!("{lines:#?}"))
    });
    chapter.record("X27", if log["status"] == 200 { Ok(()) } else { Err(log.to_string()) });
    chapter.end();
}

#[test]
fn redirects_lead_where_we_say() {
    let mut chapter = Chapter::begin("redirects");
    let target = chapter.recorder.target();
    chapter.world.deploy_with(&target, &["--canonical-host", "shop.test", "--host", "www.shop.test"]);
    for (id, target) in [
        ("X30", "/%0d%0aSet-Cookie:%20a=1"),
        ("X31", "//evil.test/"),
        ("X32", "/\\evil.test"),
        ("X33", "/?%0d%0aX:y"),
        ("X34", "/@evil.test"),
        ("X35", "http://www.shop.test//evil.test/"),
    ] {
        let mut client = Raw::connect(chapter.world.http());
        client.send(format!("GET {target} HTTP/1.1\r\nHost: www.shop.test\r\nConnection: close\r\n\r\n"));
        client.read_to_end();
        let outcome = strict::answers(client.bytes(), false, true).and_then(|answers| match &answers[..] {
            [answer] if matches!(answer.status, 301 | 308 | 400) => {
                let here = answer
                    .values("location")
                    .iter()
                    .all(|location| location.starts_with("http://shop.test/"));
                if here && answer.values("set-cookie").is_empty() {
                    Ok(())
                } else {
                    Err(format!("{answer:?}"))
                }
            }
            other => Err(format!("{other:#?}")),
        });
        chapter.record(id, outcome);
    }
    chapter.end();
}

#[test]
fn an_app_cannot_split_its_answer() {
    let mut chapter = Chapter::on(
        "answers that would be two",
        Recorder::scripted(|seen, stream| {
            let line = seen.request_line();
            let answer: &[u8] = match () {
                // A field that was made from a parameter with line ends in it is two fields: the app's own words.
                () if line.contains("/split-field") => {
                    b"HTTP/1.1 302 Found\r\nLocation: /a\r\nSet-Cookie: b=c\r\nContent-Length: 0\r\n\r\n"
                }
                () if line.contains("/split-answer") => {
                    b"HTTP/1.1 302 Found\r\nLocation: /a\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison\r\nContent-Length: 0\r\n\r\n"
                }
                () if line.contains("/bare-return") => {
                    b"HTTP/1.1 302 Found\r\nLocation: /a\rSet-Cookie: b=c\r\nContent-Length: 0\r\n\r\n"
                }
                () if line.contains("/nul") => b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
                () if line.contains("/reason") => {
                    b"HTTP/1.1 200 OK\r X: y\r\nContent-Length: 2\r\n\r\nok"
                }
                () if line.contains("/upgrade") => {
                    b"HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nConnection: upgrade, close\r\nContent-Length: 2\r\n\r\nok"
                }
                () => return echo(seen, stream),
            };
            let _ = stream.write_all(answer);
        }),
    );
    for (id, path, statuses) in [
        ("X40", "/split-field", &[302][..]),
        ("X41", "/split-answer", &[302]),
        ("X42", "/bare-return", &[502]),
        ("X43", "/nul", &[502]),
        ("X44", "/reason", &[200, 502]),
        ("X45", "/upgrade", &[200]),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n");
        chapter.case(id, request).judged(|seen| match &seen.answers[..] {
            [answer] if statuses.contains(&answer.status) && answer.values("upgrade").is_empty() => Ok(()),
            _ => Err(format!("wanted one answer of {statuses:?}")),
        });
    }
    chapter.end();
}

/// The same request means the same over both protocols.
#[test]
fn both_protocols_agree() {
    let mut chapter = Chapter::begin("one request over two protocols");
    for (id, path, host) in [
        ("X50", "/a//b/../c", "shop.test"),
        ("X51", "/%2e%2e/%2F?%00", "shop.test"),
        ("X52", "/a;b", "SHOP.test"),
        ("X53", "/", "shop.test:443"),
    ] {
        let upstream = |world: &World, ask: Ask| {
            chapter.recorder.forget();
            ask.at(world.http());
            Request::parse(&chapter.recorder.request(1))
        };
        let ask = Ask::get(host, path);
        let (one, two) = (upstream(&chapter.world, ask.clone()), upstream(&chapter.world, ask.h2()));
        let outcome = one.and_then(|one| {
            let two = two?;
            let same = one.line == two.line && one.values("host") == two.values("host");
            if same { Ok(()) } else { Err(format!("{one:#?}\n{two:#?}")) }
        });
        chapter.record(id, outcome);
    }
    chapter.end();
}
