//! The transport, against a socket that answers as told.

use super::*;
use crate::test_agent::{Answer, TestAgent};
use model::protocol::{Done, ProblemCode};

const DONE: &str = r#"{"message":"ok","service":"shop","stable":"r1","held":null,"canary":null,
    "weight":null,"generation":1,"changed":true}"#;

async fn document(answer: Answer) -> Result<Document<Done>, ClientError> {
    let agent = TestAgent::answering(answer);
    Client::new(&agent.socket).document(Call::get("/v1/x")).await
}

/// All lines until the end, and how it ended.
async fn lines(answer: Answer) -> (Vec<String>, Result<(), ClientError>) {
    let agent = TestAgent::answering(answer);
    let mut lines = Client::new(&agent.socket).lines(Call::get("/v1/x")).await.unwrap();
    let mut seen = Vec::new();
    loop {
        match lines.next().await {
            Ok(Some(line)) => seen.push(line),
            Ok(None) => return (seen, Ok(())),
            Err(error) => return (seen, Err(error)),
        }
    }
}

#[tokio::test]
async fn a_document_arrives_in_pieces() {
    let (first, second) = DONE.split_at(40);
    let document = document(Answer::new(200, &[first, second])).await.unwrap();
    assert_eq!((document.text.as_str(), document.value.message.as_str()), (DONE, "ok"));
}

#[tokio::test]
async fn lines_do_not_depend_on_chunks() {
    let (seen, ended) =
        lines(Answer::new(200, &["{\"a\":", "1}\n{\"b\":2}\n\n{", "}\n", "{\"last\":0}"])).await;
    assert_eq!(seen, ["{\"a\":1}", "{\"b\":2}", "{}", "{\"last\":0}"]);
    assert!(ended.is_ok());
}

#[tokio::test]
async fn a_cut_connection_is_told_from_an_end() {
    let (seen, ended) = lines(Answer::new(200, &["{}\n", "{\"half"]).then_cut()).await;
    // How much of a cut answer arrives is up to the sockets; a half line never does.
    assert!(seen.iter().all(|line| line == "{}"), "{seen:?}");
    assert!(matches!(ended, Err(ClientError::Cut { .. })), "{ended:?}");
}

#[tokio::test]
async fn a_line_without_end_is_given_up() {
    let chunk = "x".repeat(1 << 16);
    let (seen, ended) = lines(Answer::new(200, &vec![chunk.as_str(); 20])).await;
    assert!(seen.is_empty());
    assert!(matches!(ended, Err(ClientError::TooLong { bytes_max: LINE_BYTES_MAX })), "{ended:?}");
}

#[tokio::test]
async fn refusals_are_problems() {
    let body = r#"{"code":"conflict","message":"busy","causes":["deploy of r2"],"hint":"wait"}"#;
    match document(Answer::new(409, &[body])).await.err() {
        Some(ClientError::Problem(problem)) => {
            assert_eq!((problem.code, problem.message.as_str()), (ProblemCode::Conflict, "busy"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn answers_of_something_else_are_not_understood() {
    for (answer, want) in [
        (Answer::new(502, &["<html>Bad Gateway</html>"]), "(HTTP status 502 Bad Gateway)"),
        (Answer::new(200, &["[1, 2]"]), "(not the document asked for)"),
    ] {
        let error = document(answer).await.err().unwrap();
        assert!(matches!(error, ClientError::NotUnderstood { .. }), "{error:?}");
        assert!(error.to_string().contains(want), "{error}");
    }
}

#[tokio::test]
async fn a_socket_that_is_not_there_or_has_no_listener() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.sock");
    let error = Client::new(&missing).lines(Call::get("/")).await.unwrap_err();
    assert!(matches!(error, ClientError::Missing { .. }), "{error:?}");

    let left_over = folder.path().join("left-over.sock");
    drop(std::os::unix::net::UnixListener::bind(&left_over).unwrap());
    let error = Client::new(&left_over).lines(Call::get("/")).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_falls_silent_is_given_up() {
    let agent = TestAgent::answering(Answer::new(200, &["{}\n", "\n"]).then_silence());
    let mut lines = Client::new(&agent.socket).lines(Call::get("/v1/x")).await.unwrap();
    assert_eq!(lines.next().await.unwrap().as_deref(), Some("{}"));
    let began = Instant::now();
    let error = loop {
        // As the display does: it looks once a second whether something has come.
        match timeout(Duration::from_secs(1), lines.next()).await {
            Ok(ended) => break ended.unwrap_err(),
            Err(_) => assert!(began.elapsed() < SILENCE_MAX * 2),
        }
    };
    assert!(matches!(error, ClientError::Silent { after: SILENCE_MAX }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_answer_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("deaf.sock");
    // Connections wait in its queue and nobody takes them.
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let error = Client::new(&socket).lines(Call::get("/")).await.unwrap_err();
    assert!(matches!(error, ClientError::NoReply { after: REPLY_TIMEOUT }), "{error:?}");
}
