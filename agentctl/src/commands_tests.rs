//! What each verb asks for and prints, against a socket that answers as told.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

use clap::Parser;
use model::protocol::{Done, Event, Problem, ProblemCode};

use super::*;
use crate::progress::tests as sample_events;
use crate::render::samples;
use crate::test_agent::{Answer, TestAgent};

#[derive(Clone, Default)]
struct Written(Rc<RefCell<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Written {
    fn text(&self) -> String {
        String::from_utf8(self.0.borrow().clone()).unwrap()
    }
}

struct Closed(io::ErrorKind);

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Ran {
    code: u8,
    stdout: String,
    stderr: String,
    requests: Vec<String>,
}

/// Runs a command line against an agent that gives `answer`.
async fn run_line(line: &[&str], answer: Answer) -> Ran {
    let (stdout, stderr) = (Written::default(), Written::default());
    let (code, requests) = run_into(line, answer, Output::to(stdout.clone(), stderr.clone())).await;
    Ran { code, stdout: stdout.text(), stderr: stderr.text(), requests }
}

async fn run_into(line: &[&str], answer: Answer, output: Output) -> (u8, Vec<String>) {
    let agent = TestAgent::answering(answer);
    let socket = agent.socket.to_str().unwrap();
    let cli = Cli::try_parse_from(["agentctl", "--control", socket].iter().chain(line)).unwrap();
    let title = cli.title();
    let mut context = Context::new(&cli, output);
    let code = match run(&mut context, cli.verb).await {
        Ok(()) => context.exit_code,
        Err(failure) => context.output.fail(&title, &failure),
    };
    (code, agent.requests())
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

fn stream(events: &[Event]) -> Answer {
    let lines: Vec<String> = events.iter().map(|event| format!("{}\n", json(event))).collect();
    Answer::new(200, &lines.iter().map(String::as_str).collect::<Vec<_>>())
}

fn done(message: &str) -> Done {
    let none = || None;
    Done {
        message: message.to_owned(),
        service: "shop".into(),
        stable: Some("r2".into()),
        held: none(),
        canary: none(),
        weight: none(),
        generation: 8,
        changed: true,
    }
}

#[tokio::test]
async fn every_verb_asks_for_its_own_thing() {
    let ended = || stream(&[Event::Done(done("done"))]);
    let status = || Answer::new(200, &[&json(&samples::status())]);
    let service = || Answer::new(200, &[&json(&samples::busy_service())]);
    let history = || Answer::new(200, &[r#"{"service":"shop","entries":[]}"#]);
    for (line, answer, want) in [
        (&["status"][..], status(), "GET /v1/status"),
        (&["status", "shop"], service(), "GET /v1/services/shop"),
        (&["ls"], status(), "GET /v1/status"),
        (&["targets"], status(), "GET /v1/status"),
        (&["targets", "shop"], service(), "GET /v1/services/shop"),
        (&["history", "shop"], history(), "GET /v1/services/shop/history"),
        (&["rm", "shop"], ended(), "DELETE /v1/services/shop"),
        (&["rollback", "shop"], ended(), "POST /v1/services/shop/rollback {}"),
        (&["rollback", "shop", "r1"], ended(), r#"POST /v1/services/shop/rollback {"release":"r1"}"#),
        (&["canary", "status", "shop"], service(), "GET /v1/services/shop"),
        (
            &["canary", "set", "shop", "25"],
            Answer::new(200, &[&json(&done("done"))]),
            r#"POST /v1/services/shop/canary/set {"weight":"25%"}"#,
        ),
        (&["pause", "shop"], ended(), r#"POST /v1/services/shop/pause {"bypass":{}}"#),
        (
            &["pause", "shop", "--max-pause", "120s", "--max-waiting", "9", "--bypass-header", "x-team=1"],
            ended(),
            r#"POST /v1/services/shop/pause {"max_pause":"2m","waiting_max":9,"bypass":{"headers":["x-team=1"]}}"#,
        ),
        (
            &[
                "stop",
                "shop",
                "--message",
                "Back soon",
                "--drain-timeout",
                "0",
                "--bypass-network",
                "10.0.0.0/8,::1",
            ],
            ended(),
            r#"POST /v1/services/shop/stop {"drain_timeout":"0s","message":"Back soon","bypass":{"networks":["10.0.0.0/8","::1/128"]}}"#,
        ),
        (&["resume", "shop"], Answer::new(200, &[&json(&done("done"))]), "POST /v1/services/shop/resume"),
        (&["canary", "promote", "shop"], ended(), "POST /v1/services/shop/canary/promote"),
        (&["canary", "abort", "shop"], ended(), "POST /v1/services/shop/canary/abort"),
        (&["events"], Answer::new(200, &[]), "GET /v1/events?follow=false"),
        (
            &["deploy", "shop", "--target", "127.0.0.1:3001"],
            ended(),
            r#"POST /v1/services/shop/deploy {"targets":["127.0.0.1:3001"],"replace_canary":false,"policy":{}}"#,
        ),
        (
            &["canary", "start", "shop", "--target", "a.test:1", "--weight", "5"],
            ended(),
            r#"POST /v1/services/shop/canary/start {"targets":["a.test:1"],"weight":"5%","overrides":{}}"#,
        ),
    ] {
        let ran = run_line(line, answer).await;
        assert_eq!((ran.code, ran.requests), (0, vec![want.to_owned()]), "{line:?}: {}", ran.stderr);
    }
}

#[tokio::test]
async fn a_deploy_talks_on_stderr_and_ends_on_stdout() {
    let mut events = sample_events::deploy();
    events.push(Event::Done(done("`shop` now serves r2")));
    let ran = run_line(&["deploy", "shop", "--target", "127.0.0.1:3001"], stream(&events)).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "`shop` now serves r2\n"));
    assert!(ran.stderr.contains("switched: new requests go to r2") && !ran.stderr.contains('\x1b'));

    let ran = run_line(&["--json", "deploy", "shop", "--target", "127.0.0.1:3001"], stream(&events)).await;
    let printed: Vec<Event> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((ran.code, ran.stderr.as_str(), printed), (0, "", events));
}

#[tokio::test]
async fn failures_have_their_exit_codes() {
    let problem = |code| Problem::new(code, "no").because("why").hint("do this");
    for (code, want) in [(ProblemCode::GateFailed, 5), (ProblemCode::Reverted, 6), (ProblemCode::Conflict, 4)]
    {
        let refused = Answer::new(code.http_status(), &[&json(&problem(code))]);
        let failed = stream(&[Event::Failed { problem: problem(code) }]);
        for answer in [refused, failed] {
            let ran = run_line(&["rollback", "shop", "--json"], answer).await;
            assert_eq!((ran.code, ran.stderr.as_str()), (want, "error: no\ncause: why\nhint:  do this\n"));
            let last: Event = serde_json::from_str(ran.stdout.lines().last().unwrap()).unwrap();
            assert_eq!(last, Event::Failed { problem: problem(code) });
        }
        let refused = Answer::new(code.http_status(), &[&json(&problem(code))]);
        let ran = run_line(&["status", "--json"], refused).await;
        assert_eq!((ran.code, serde_json::from_str(&ran.stdout).ok()), (want, Some(problem(code))));
    }
}

#[tokio::test]
async fn an_agent_that_goes_away_is_exit_3() {
    let begun = sample_events::deploy();
    for answer in [stream(&begun), stream(&begun).then_cut()] {
        let ran = run_line(&["rollback", "shop"], answer).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (3, ""));
        assert!(ran.stderr.contains("error: the agent went away during the operation\n"), "{}", ran.stderr);
    }
    let ran = run_line(&["events", "--follow"], Answer::new(200, &[])).await;
    assert_eq!(ran.code, 3, "{}", ran.stderr);
}

#[tokio::test]
async fn events_of_a_newer_agent_are_passed_over() {
    let done = json(&Event::Done(done("ok")));
    let answer = Answer::new(200, &["{\"event\":\"sung\",\"song\":1}\n", &done, "\n"]);
    let ran = run_line(&["rm", "shop"], answer).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "ok\n"), "{}", ran.stderr);
    for line in ["{\"event\":\"done\"}\n", "hello\n"] {
        let ran = run_line(&["rm", "shop"], Answer::new(200, &[line])).await;
        assert_eq!(ran.code, 1, "{line}: {}", ran.stderr);
    }
}

#[tokio::test]
async fn json_is_printed_as_it_came() {
    let text = r#"{"service":"shop","entries":[],"of_a_newer_agent":[1, 2]}"#;
    let ran = run_line(&["history", "shop", "--json"], Answer::new(200, &[text])).await;
    assert_eq!(ran.stdout, format!("{text}\n"));
    let service = Answer::new(200, &[&json(&samples::quiet_service())]);
    assert_eq!(run_line(&["canary", "status", "docs", "--json"], service).await.stdout, "null\n");
}

#[tokio::test]
async fn nobody_has_to_listen_to_stdout() {
    let mut events = sample_events::deploy();
    events.push(Event::Failed { problem: Problem::new(ProblemCode::Reverted, "taken back") });
    let closed = || Output::to(Closed(io::ErrorKind::BrokenPipe), Written::default());
    // The outcome counts although nobody reads the events.
    assert_eq!(run_into(&["rm", "shop", "--json"], stream(&events), closed()).await.0, 6);
    let status = Answer::new(200, &[&json(&samples::status())]);
    assert_eq!(run_into(&["status"], status.clone(), closed()).await.0, 0);
    let full = Output::to(Closed(io::ErrorKind::StorageFull), Written::default());
    assert_eq!(run_into(&["status"], status, full).await.0, 1);
}

#[tokio::test]
async fn completions_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = run_line(&["completions", shell], Answer::new(500, &[])).await;
        assert!(ran.stdout.contains("rollback") && ran.stdout.contains("--drain-timeout") || shell == "fish");
        assert_eq!((ran.code, ran.requests.len()), (0, 0), "{shell}");
    }
}
