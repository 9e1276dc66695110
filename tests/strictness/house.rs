//! Where the cases are run: one daemon, one recorder behind it, and a list of what went wrong.

use std::io::Write;
use std::time::Instant;

use harness::{Ask, PATIENCE, Raw, Received, Recorder, World};

use super::strict::{self, Answer, Request};

pub(super) struct Chapter {
    name: &'static str,
    pub world: World,
    pub recorder: Recorder,
    count: usize,
    failures: Vec<String>,
}

/// What came of the bytes of one case, without its follow-ups.
pub(super) struct Seen {
    /// Interim answers are not among them.
    pub answers: Vec<Answer>,
    /// A further request on the connection was answered.
    pub stayed_open: bool,
    pub upstream: Vec<Received>,
}

impl Chapter {
    /// The app answers with the request line that it got.
    pub(super) fn begin(name: &'static str) -> Self {
        Self::on(name, Recorder::scripted(echo))
    }

    pub(super) fn on(name: &'static str, recorder: Recorder) -> Self {
        // One worker has one pool: whoever comes next gets the connection that the case before has used.
        let world = World::with_args(["--workers", "1"]);
        world.deploy(&recorder.target());
        Self { name, world, recorder, count: 0, failures: Vec::new() }
    }

    pub(super) fn case(&mut self, id: &'static str, bytes: impl Into<Vec<u8>>) -> Case<'_> {
        let bytes = bytes.into();
        Case { chapter: self, id, bytes, half_closes: false, must_close: false, checks: None }
    }

    /// A case that is told in the story's own words.
    pub(super) fn record(&mut self, id: &str, outcome: Result<(), String>) {
        self.count += 1;
        if let Err(why) = outcome {
            self.failures.push(format!("{id}: {why}"));
        }
    }

    /// Prints the count, and fails with all that went wrong.
    #[track_caller]
    pub(super) fn end(self) {
        println!("strictness: {} cases of {}", self.count, self.name);
        let failures = &self.failures;
        assert!(
            failures.is_empty(),
            "{} of {} failed:\n\n{}",
            failures.len(),
            self.count,
            failures.join("\n\n")
        );
    }

    fn run(&mut self, bytes: &[u8], half_closes: bool) -> Result<Seen, String> {
        let n = self.count;
        self.recorder.forget();
        let mut client = Raw::connect(self.world.http());
        client.send(bytes);
        if half_closes {
            client.shut_write();
        }
        let to_head = bytes.starts_with(b"HEAD ");
        let deadline = Instant::now() + PATIENCE / 4;
        let is_final = |answer: &Answer| answer.status >= 200;
        let mut open = true;
        while open && !strict::answers(client.bytes(), to_head, false)?.iter().any(is_final) {
            if Instant::now() > deadline {
                return Err(format!("no answer, and no end; {:?}", client.text()));
            }
            open = client.read_some();
        }
        let same = format!("GET /same-{n} HTTP/1.1");
        if open && !half_closes {
            client.send(format!("{same}\r\nHost: shop.test\r\nConnection: close\r\n\r\n"));
        }
        client.read_to_end();
        let mut answers = strict::answers(client.bytes(), to_head, true)?;
        answers.retain(is_final);
        let stayed_open = answers.iter().any(|answer| answer.body == same);
        if stayed_open && answers.pop().is_none_or(|last| last.body != same) {
            return Err(format!("an answer came late: {:?}", client.text()));
        }
        let upstream = self.upstream_of_case(stayed_open)?;
        Ok(Seen { answers, stayed_open, upstream })
    }

    /// The number that names the follow-ups of the present case.
    pub(super) fn number(&self) -> usize {
        self.count
    }

    /// What arrived upstream but the follow-ups: one on the same connection, if it stayed open, and one that this asks
    /// on a fresh connection.
    pub(super) fn upstream_of_case(&self, stayed_open: bool) -> Result<Vec<Received>, String> {
        let n = self.count;
        let (same, fresh) = (format!("GET /same-{n} HTTP/1.1"), format!("GET /fresh-{n} HTTP/1.1"));
        // A fresh request is answered for itself: nothing stuck to the connections upstream.
        let answer = Ask::get("shop.test", &format!("/fresh-{n}")).try_at(self.world.http())?;
        if answer.text() != fresh {
            return Err(format!("the next client got {answer}"));
        }
        // What broke off may have been noticed after it.
        let mut upstream = self.recorder.settled();
        for (line, expected) in [(&same, stayed_open), (&fresh, true)] {
            let follow_ups = upstream.iter().filter(|seen| seen.request_line() == line).count();
            if follow_ups != usize::from(expected) {
                return Err(format!("{line} arrived {follow_ups} times: {upstream:#?}"));
            }
            upstream.retain(|seen| seen.request_line() != line);
        }
        Ok(upstream)
    }
}

pub(super) fn echo(seen: &Received, stream: &mut std::net::TcpStream) {
    let line = seen.request_line();
    let body = if line.starts_with("HEAD ") { "" } else { line };
    // A proxy that has gone away is what some cases are about.
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", line.len());
}

type Check = Box<dyn Fn(&Request) -> bool>;

#[must_use]
pub(super) struct Case<'c> {
    chapter: &'c mut Chapter,
    id: &'static str,
    bytes: Vec<u8>,
    half_closes: bool,
    must_close: bool,
    checks: Option<Check>,
}

impl Case<'_> {
    /// The client sends nothing more, as if it had left.
    pub(super) fn half_closes(mut self) -> Self {
        self.half_closes = true;
        self
    }

    /// Even if the request is passed, nothing may follow it.
    pub(super) fn must_close(mut self) -> Self {
        self.must_close = true;
        self
    }

    /// What else must be true of the request upstream.
    pub(super) fn checks(mut self, check: impl Fn(&Request) -> bool + 'static) -> Self {
        self.checks = Some(Box::new(check));
        self
    }

    /// With one of these statuses; upstream sees nothing complete.
    pub(super) fn refused(self, statuses: &[u16]) {
        self.judge(Some(statuses), None);
    }

    /// As one request with this body.
    pub(super) fn passed(self, body: &str) {
        self.judge(None, Some(body));
    }

    /// One or the other.
    pub(super) fn either(self, statuses: &[u16], body: &str) {
        self.judge(Some(statuses), Some(body));
    }

    fn judge(self, statuses: Option<&[u16]>, body: Option<&str>) {
        let (must_close, checks) = (self.must_close, self.checks);
        let outcome = self.chapter.run(&self.bytes, self.half_closes).and_then(|seen| {
            let refused =
                statuses.map_or(Err("it may not be refused".to_owned()), |ok| is_refused(&seen, ok));
            let passed = body.map_or(Err("it may not be passed".to_owned()), |body| {
                let request = is_passed(&seen, body)?;
                if must_close && seen.stayed_open {
                    return Err("the connection goes on".to_owned());
                }
                match &checks {
                    Some(check) if !check(&request) => Err(format!("not as it should be: {request:#?}")),
                    _ => Ok(()),
                }
            });
            match (refused, passed) {
                (Err(not_refused), Err(not_passed)) => Err(format!(
                    "refused? {not_refused}. passed? {not_passed}\nanswers: {:#?}\nupstream: {:#?}",
                    seen.answers, seen.upstream
                )),
                _ => Ok(()),
            }
        });
        let sent = &self.bytes[..self.bytes.len().min(400)];
        self.chapter.record(self.id, outcome.map_err(|why| format!("{why}\nsent: {}", sent.escape_ascii())));
    }

    /// By the story's own measure; returns what that says.
    pub(super) fn judged(self, judge: impl Fn(&Seen) -> Result<(), String>) {
        let outcome = self.chapter.run(&self.bytes, self.half_closes).and_then(|seen| {
            judge(&seen)
                .map_err(|why| format!("{why}\nanswers: {:#?}\nupstream: {:#?}", seen.answers, seen.upstream))
        });
        let sent = &self.bytes[..self.bytes.len().min(400)];
        self.chapter.record(self.id, outcome.map_err(|why| format!("{why}\nsent: {}", sent.escape_ascii())));
    }
}

/// Statuses after which the next request's beginning is beyond doubt, so that the connection may go on.
const SOUND: [u16; 4] = [404, 413, 417, 421];

fn is_refused(seen: &Seen, statuses: &[u16]) -> Result<(), String> {
    let [answer] = &seen.answers[..] else { return Err(format!("{} answers", seen.answers.len())) };
    if !statuses.contains(&answer.status) {
        return Err(format!("status {}, not one of {statuses:?}", answer.status));
    }
    if seen.stayed_open && !SOUND.contains(&answer.status) {
        return Err("the connection goes on".to_owned());
    }
    match seen.upstream.iter().find(|seen| seen.complete) {
        Some(_) => Err("it is complete upstream".to_owned()),
        None => Ok(()),
    }
}

pub(super) fn is_passed(seen: &Seen, body: &str) -> Result<Request, String> {
    let ([answer], [received]) = (&seen.answers[..], &seen.upstream[..]) else {
        return Err(format!("{} answers to {} requests", seen.answers.len(), seen.upstream.len()));
    };
    let request = Request::parse(received)?;
    if answer.status != 200 || answer.cut {
        return Err(format!("the answer is {answer:?}"));
    }
    if request.body != body {
        return Err(format!("the body is {:?}", request.body));
    }
    Ok(request)
}

/// A POST with these fields and this body.
pub(super) fn post(fields: &str, body: &str) -> Vec<u8> {
    format!("POST /t HTTP/1.1\r\nHost: shop.test\r\n{fields}\r\n{body}").into_bytes()
}

/// A GET with these fields.
pub(super) fn get(fields: &str) -> Vec<u8> {
    format!("GET /t HTTP/1.1\r\nHost: shop.test\r\n{fields}\r\n").into_bytes()
}

/// The request that must never run.
pub(super) const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: shop.test\r\n\r\n";
