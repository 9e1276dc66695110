//! Answers are checked like requests: the app is trusted, but it may be wrong, and the next client pays for it.

use std::io::Write;
use std::time::Duration;

use harness::{Ask, PATIENCE, Raw, Received, Recorder, World, eventually};
use socket2::SockRef;

use super::house::{Chapter, echo};
use super::strict::{self, Answer};

/// What the app does after its bytes.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Keep,
    Close,
    Reset,
}

/// What the client may get.
#[derive(Clone, Copy, Debug)]
enum Want {
    BadGateway,
    Body(&'static str),
    Either(&'static str),
    /// 502, or an answer without a clean end.
    Cut,
}

struct Row {
    id: &'static str,
    method: &'static str,
    answer: Vec<u8>,
    then: Then,
    want: Want,
}

fn row(id: &'static str, answer: impl Into<Vec<u8>>, then: Then, want: Want) -> Row {
    Row { id, method: "GET", answer: answer.into(), then, want }
}

const POISON: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";

fn rows() -> Vec<Row> {
    use Then::{Close, Keep, Reset};
    use Want::{BadGateway, Body, Cut, Either};
    let ok = |rest: &str| format!("HTTP/1.1 200 OK\r\n{rest}");
    let field = |field: &str| ok(&format!("{field}\r\nContent-Length: 2\r\n\r\nok"));
    let mut rows = vec![
        row(
            "R01",
            ok("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            Keep,
            Either("hello"),
        ),
        row(
            "R02",
            ok(&format!("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{POISON}")),
            Keep,
            Either(""),
        ),
        row("R03", ok("Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"), Keep, BadGateway),
        row("R03a", ok("Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"), Keep, Either("hello")),
        row("R04", ok("Content-Length: +5\r\n\r\nhello"), Keep, BadGateway),
        row("R05", ok("Content-Length: 5a\r\n\r\nhello"), Keep, BadGateway),
        row("R06", ok("Content-Length: 18446744073709551621\r\n\r\nhello"), Keep, BadGateway),
        row("R07", ok("Content-Length: 5, 6\r\n\r\nhello"), Keep, BadGateway),
        row("R07a", ok("Content-Length: \r\n\r\nhello"), Keep, BadGateway),
        row("R07b", ok("Content-Length: 005\r\n\r\nhello"), Keep, Either("hello")),
        row("R08", ok("Content-Length: 100\r\n\r\nhalf"), Close, Cut),
        row("R09", ok("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"), Close, Cut),
        row("R09a", ok("Transfer-Encoding: chunked\r\n\r\n5\r\nhel"), Close, Cut),
        row("R10", ok("Content-Length: 100\r\n\r\nhalf"), Reset, Cut),
        row("R10a", ok("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"), Reset, Cut),
        row("R11", ok("Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n"), Keep, Cut),
        row("R11a", ok("Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n"), Keep, Cut),
        row("R11b", ok("Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n"), Keep, Cut),
        row(
            "R11c",
            ok("Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n"),
            Keep,
            Cut,
        ),
        row("R12", "HTTP/1.1 200 OK\r\nContent-Le", Close, BadGateway),
        row("R12a", "", Close, BadGateway),
        row("R12b", "", Reset, BadGateway),
        row("R13", ok(&format!("Content-Length: 2\r\n\r\nok{POISON}")), Keep, Body("ok")),
        row(
            "R14",
            ok(&format!("Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{POISON}")),
            Keep,
            Body("ok"),
        ),
        row("R15", format!("HTTP/1.1 204 No Content\r\n\r\n{POISON}"), Keep, Body("")),
        row(
            "R15a",
            format!("HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\npoison{POISON}"),
            Keep,
            Body(""),
        ),
        row("R16", format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\n{POISON}"), Keep, Body("")),
        row("R16a", ok("Content-Length: 0\r\n\r\npoison"), Keep, Body("")),
        row("R19", field("X-A: a\0b"), Keep, BadGateway),
        row("R20", field("X-A: a\nX-B: b"), Keep, Either("ok")),
        // Two line feeds end the head: what follows is this answer's own body, and nobody else's.
        row("R20a", field("X-A: a\n\npoison"), Close, Either("poison\r\nContent-Length: 2\r\n\r\nok")),
        row("R21", field("X-A: a\rX-B: b"), Keep, BadGateway),
        row("R22", field("X-A: a\r\n folded: b"), Keep, Either("ok")),
        row("R23", field("X Y: b"), Keep, Either("ok")),
        row("R23a", field("X\u{1}: b"), Keep, BadGateway),
        row("R23b", field(": b"), Keep, BadGateway),
        row("R24", ok("Content-Length : 5\r\n\r\nhello"), Keep, BadGateway),
        row(
            "R25",
            format!(
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{}",
                field("X: y")
            ),
            Keep,
            Body("ok"),
        ),
        row(
            "R26",
            format!("{}{}", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(50), field("X: y")),
            Keep,
            Body("ok"),
        ),
        // A length in an interim answer would make the final one look like its body.
        row(
            "R26a",
            format!(
                "HTTP/1.1 103 Early Hints\r\nContent-Length: 70\r\nTransfer-Encoding: chunked\r\n\r\n{}",
                field("X: y")
            ),
            Keep,
            Body("ok"),
        ),
        row("R27", "SSH-2.0-OpenSSH_9.2p1\r\n\r\n", Keep, BadGateway),
        row("R27a", "\0\0\0\0\r\n\r\n", Keep, BadGateway),
        row("R28", "<html>hello</html>", Close, BadGateway),
        row("R29", "HTTP/1.1 99 Low\r\nContent-Length: 2\r\n\r\nok", Keep, BadGateway),
        row("R30", "HTTP/1.1 2000 High\r\nContent-Length: 2\r\n\r\nok", Keep, BadGateway),
        row("R30a", "HTTP/1.1 2x0 OK\r\nContent-Length: 2\r\n\r\nok", Keep, BadGateway),
        row("R31", "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok", Keep, BadGateway),
        row("R31a", "HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok", Keep, BadGateway),
        row("R32", "HTTP/1.0 200 OK\r\n\r\nold", Close, Body("old")),
        row("R32a", "HTTP/1.1 200 OK\r\n\r\nnew", Close, Body("new")),
        row(
            "R33",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            Close,
            Either("ok"),
        ),
        row("R34", ok("Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), Keep, BadGateway),
        row(
            "R35",
            ok("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            Keep,
            BadGateway,
        ),
        row("R36", ok("Transfer-Encoding: cow\r\n\r\nhello"), Keep, BadGateway),
        row("R36a", ok("Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello"), Keep, BadGateway),
        row("R36b", ok("Transfer-Encoding: \u{b}chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), Keep, BadGateway),
        row(
            "R37",
            field("Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: x"),
            Keep,
            Body("ok"),
        ),
        row("R38", field(&format!("X-A: {}", "x".repeat(100_000))), Keep, Either("ok")),
        row("R38a", field(&format!("X-A: {}", "x".repeat(1 << 20))), Keep, Either("ok")),
        row("R39", field(&["X-A: b"; 2_000].join("\r\n")), Keep, Either("ok")),
        row("R45", ok("Content-Length: 2\r\nConnection: close\r\n\r\nok"), Keep, Body("ok")),
    ];
    for (id, answer, want) in [
        ("R17", ok("Content-Length: 6\r\n\r\npoison"), Body("")),
        ("R18", ok(&format!("Content-Length: 6\r\n\r\n{POISON}")), Body("")),
        ("R18a", ok("Transfer-Encoding: chunked\r\n\r\n6\r\npoison\r\n0\r\n\r\n"), Body("")),
    ] {
        rows.push(Row { method: "HEAD", ..row(id, answer, Keep, want) });
    }
    rows
}

fn scripted() -> Recorder {
    let rows = rows();
    Recorder::scripted(move |seen: &Received, stream| {
        let id = seen.request_line().split(['/', ' ']).nth(2).unwrap_or_default();
        let Some(row) = rows.iter().find(|row| row.id == id) else { return echo(seen, stream) };
        let _ = stream.write_all(&row.answer);
        match row.then {
            Then::Keep => {}
            Then::Close => drop(stream.shutdown(std::net::Shutdown::Both)),
            Then::Reset => {
                // Shutting it down later does nothing to a socket that is reset.
                let _ = SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        }
    })
}

#[test]
fn answers_are_checked_like_requests() {
    let mut chapter = Chapter::on("answers", scripted());
    for row in rows() {
        let outcome = run(&chapter.world, &row);
        let answer = &row.answer[..row.answer.len().min(300)];
        chapter
            .record(row.id, outcome.map_err(|why| format!("{why}\nthe app sent: {}", answer.escape_ascii())));
    }
    chapter.end();
}

fn run(world: &World, row: &Row) -> Result<(), String> {
    let mut client = Raw::connect(world.http());
    client.send(format!("{} /{} HTTP/1.1\r\nHost: shop.test\r\n\r\n", row.method, row.id));
    let to_head = row.method == "HEAD";
    let is_final = |answer: &Answer| answer.status >= 200;
    let deadline = std::time::Instant::now() + PATIENCE / 4;
    let mut open = true;
    while open && !strict::answers(client.bytes(), to_head, false)?.iter().any(is_final) {
        if std::time::Instant::now() > deadline {
            return Err(format!("no answer: {:?}", client.text()));
        }
        open = client.read_some();
    }
    let same = format!("GET /same-{} HTTP/1.1", row.id);
    client.send(format!("{same}\r\nHost: shop.test\r\nConnection: close\r\n\r\n"));
    client.read_to_end();
    let mut answers = strict::answers(client.bytes(), to_head, true)?;
    let is_plain = |interim: &Answer| {
        ["content-length", "transfer-encoding"].iter().all(|name| interim.values(name).is_empty())
    };
    if let Some(interim) = answers.iter().find(|answer| !is_final(answer) && !is_plain(answer)) {
        return Err(format!("an interim answer with a body: {interim:?}"));
    }
    answers.retain(is_final);
    if answers.last().is_some_and(|last| last.body == same) {
        answers.pop();
    }
    let result = judge(row.want, &answers);
    // Whoever comes next on the worker's pool gets their own answer, over both protocols.
    for n in 0..3 {
        let path = format!("/fresh-{}-{n}", row.id);
        let ask = Ask::get("shop.test", &path);
        let got = if n == 2 { ask.h2() } else { ask }.try_at(world.http())?;
        if got.text() != format!("GET {path} HTTP/1.1") {
            return Err(format!("the next client got {got}"));
        }
    }
    result
}

fn judge(want: Want, answers: &[Answer]) -> Result<(), String> {
    let [answer] = answers else {
        // A client sees a cut in an answer whose head has not come, too.
        return if matches!(want, Want::Cut) && answers.is_empty() {
            Ok(())
        } else {
            Err(format!("{answers:#?}"))
        };
    };
    let hops = ["x-hop", "keep-alive", "proxy-authenticate"];
    let delivered = |body: &str| {
        !answer.cut
            && answer.status < 400
            && answer.body == body
            && hops.iter().all(|hop| answer.values(hop).is_empty())
    };
    let sound = match want {
        Want::BadGateway => answer.status == 502,
        Want::Body(body) => delivered(body),
        Want::Either(body) => answer.status == 502 || delivered(body),
        Want::Cut => answer.status == 502 || answer.cut,
    };
    if sound { Ok(()) } else { Err(format!("wanted {want:?}, got {answer:?}")) }
}

#[test]
fn answers_over_http2_are_the_same() {
    let mut chapter = Chapter::on("answers over HTTP/2", scripted());
    // R38 has more fields than this client takes.
    for row in rows().into_iter().filter(|row| row.id != "R38") {
        let ask = Ask::get("shop.test", &format!("/{}", row.id)).method(row.method).h2();
        let got = ask.try_at(chapter.world.http());
        let delivered = |body: &str| {
            let hops =
                ["connection", "x-hop", "keep-alive", "proxy-authenticate", "transfer-encoding", "upgrade"];
            let plain = |answer: &harness::Answer| hops.iter().all(|hop| !answer.headers.contains_key(*hop));
            got.as_ref()
                .is_ok_and(|answer| answer.text() == body && answer.status.as_u16() < 400 && plain(answer))
        };
        let refused = got.as_ref().is_ok_and(|answer| answer.status == 502);
        let sound = match row.want {
            Want::BadGateway => refused,
            Want::Body(body) => delivered(body),
            Want::Either(body) => refused || delivered(body),
            Want::Cut => refused || got.is_err(),
        };
        let next = chapter.world.get("/next").text();
        let sound = sound && next == "GET /next HTTP/1.1";
        let why = || format!("wanted {:?}, got {got:?}; the next client got {next:?}", row.want);
        chapter.record(row.id, if sound { Ok(()) } else { Err(why()) });
    }
    chapter.end();
}

#[test]
fn a_pooled_connection_is_silent_between_answers() {
    let mut chapter = Chapter::on(
        "late answers",
        Recorder::scripted(|seen, stream| {
            echo(seen, stream);
            let line = seen.request_line();
            let late: &[u8] = match () {
                () if line.contains("/late-answer") => POISON.as_bytes(),
                () if line.contains("/late-408") => {
                    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n"
                }
                () if line.contains("/late-byte") => b"\n",
                () => return,
            };
            // Usually the proxy has put the connection away by then. Where it has not, the bytes come with the answer, and the
            // same must hold.
            std::thread::sleep(Duration::from_millis(50));
            let _ = stream.write_all(late);
        }),
    );
    for (id, path) in [("R40", "/late-answer"), ("R41", "/late-408"), ("R42", "/late-byte")] {
        let first = chapter.world.get(path).text();
        // By then the bytes have come: the recorder reads again once they are sent.
        let before = chapter.recorder.settled().len();
        let mut outcome = if first == format!("GET {path} HTTP/1.1") { Ok(()) } else { Err(first) };
        for n in 0..5 {
            let path = format!("/next-{before}-{n}");
            let got = chapter.world.get(&path);
            if got.text() != format!("GET {path} HTTP/1.1") {
                outcome = Err(format!("the next client got {got}"));
            }
        }
        chapter.record(id, outcome);
    }
    chapter.end();
}

#[test]
fn what_is_not_safe_to_repeat_is_sent_once() {
    let mut chapter = Chapter::on(
        "requests that are dropped by the app",
        Recorder::scripted(|seen, stream| {
            if seen.request_line().contains("/dropped") {
                let _ = stream.shutdown(std::net::Shutdown::Both);
            } else {
                echo(seen, stream);
            }
        }),
    );
    for (id, method, body, pooled, arrivals) in [
        ("R43", "POST", "1 book", false, 1..=1),
        ("R44", "POST", "1 book", true, 1..=1),
        ("R44a", "PUT", "1 book", true, 1..=1),
        ("R44b", "DELETE", "", true, 1..=1),
        ("R44c", "PATCH", "x", true, 1..=1),
        ("R44d", "POST", "", true, 1..=1),
        ("R44e", "GET", "body", true, 1..=1),
        ("R44f", "GET", "", false, 1..=1),
        ("R44g", "GET", "", true, 1..=2),
    ] {
        if pooled {
            chapter.world.get("/warm");
        }
        chapter.recorder.forget();
        let ask = Ask::post("shop.test", "/dropped", body).method(method);
        let got = ask.try_at(chapter.world.http());
        let arrived = eventually("it arrived upstream", || match chapter.recorder.settled().len() {
            0 => Err("nothing".to_owned()),
            n => Ok(n),
        });
        let is_sound = got.as_ref().is_ok_and(|answer| answer.status == 502) && arrivals.contains(&arrived);
        chapter.record(id, if is_sound { Ok(()) } else { Err(format!("arrived {arrived} times; {got:?}")) });
    }
    chapter.end();
}

#[test]
fn old_clients_get_what_they_can_read() {
    let mut chapter = Chapter::on(
        "HTTP/1.0 clients",
        Recorder::scripted(|seen, stream| {
            let line = seen.request_line();
            let answer: &[u8] = match () {
                () if line.contains("/chunked") => {
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n"
                }
                () if line.contains("/hints") => {
                    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
                }
                () => return echo(seen, stream),
            };
            let _ = stream.write_all(answer);
        }),
    );
    for (id, path, fields) in [
        ("A10", "/chunked", ""),
        ("A10a", "/chunked", "Connection: keep-alive\r\n"),
        ("A11", "/hints", ""),
        ("A11a", "/hints", "Connection: keep-alive\r\n"),
    ] {
        let bytes = format!("GET {path} HTTP/1.0\r\nHost: shop.test\r\n{fields}\r\n");
        let mut client = Raw::connect(chapter.world.http());
        client.send(bytes).shut_write();
        client.read_to_end();
        let outcome = strict::answers(client.bytes(), false, true).and_then(|answers| match &answers[..] {
            [answer] if answer.body == "hello" && answer.values("transfer-encoding").is_empty() => Ok(()),
            other => Err(format!("{other:#?}")),
        });
        chapter.record(id, outcome);
    }
    chapter.end();
}
