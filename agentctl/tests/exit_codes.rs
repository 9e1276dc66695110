//! The real binary where the agent cannot be reached or the command line is wrong: exit codes, streams, hints.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn agentctl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agentctl"));
    command.env_remove("PORTCULLIS_CONTROL").env_remove("GITHUB_ACTIONS").stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Ran {
    let output = command.output().expect("the binary was built for this test");
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn status_at(socket: &Path) -> Ran {
    run(agentctl().arg("--control").arg(socket).arg("status"))
}

#[test]
fn help_and_version_are_data() {
    for argument in ["--help", "--version"] {
        let ran = run(agentctl().arg(argument));
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{argument}");
        assert!(ran.stdout.contains("agentctl"), "{argument}: {}", ran.stdout);
    }
}

#[test]
fn wrong_usage_is_exit_2_and_says_what_to_do() {
    for (line, want) in [
        ("", "Usage: agentctl"),
        ("deploy shop --target 127.0.0.1:3000 --frobnicate", "unexpected argument '--frobnicate'"),
        ("deploy shop --target 127.0.0.1:3000 --drain-timeout 30", "such as `30s`"),
        ("deploy shop --target 127.0.0.1:3000 --host no_host!", "such as `shop.example.com`"),
    ] {
        // No connection is made: this socket would be exit 3.
        let ran = run(agentctl().args(line.split_whitespace()).env("PORTCULLIS_CONTROL", "/nowhere/x.sock"));
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{line}");
        assert!(ran.stderr.contains(want), "{line}: {}", ran.stderr);
    }
}

#[test]
fn a_missing_agent_is_exit_3_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let left_over = folder.path().join("left-over.sock");
    drop(UnixListener::bind(&left_over).unwrap());
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for (socket, want) in [
        (folder.path().join("none.sock"), "there is no control socket"),
        (left_over, "nobody listens"),
        (file, "cannot reach the agent"),
        (folder.path().join("x".repeat(200)), "cannot connect"),
    ] {
        let ran = status_at(&socket);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(3), ""), "{socket:?}: {}", ran.stderr);
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains("hint:  "), "{}", ran.stderr);
        assert!(ran.stderr.contains(want) && ran.stderr.contains("--control"), "{}", ran.stderr);
    }
}

#[test]
fn the_environment_names_the_socket() {
    let ran = run(agentctl().arg("list").env("PORTCULLIS_CONTROL", "/nowhere/of-mine.sock"));
    assert!(ran.stderr.contains("`/nowhere/of-mine.sock`"), "{}", ran.stderr);
}

#[test]
fn failures_are_annotated_in_a_github_workflow() {
    for (line, want) in [
        ("rollback shop", "::error title=agentctl rollback shop::cannot reach the agent: there is no"),
        ("rollback", "::error title=agentctl::the following required arguments"),
    ] {
        let mut command = agentctl();
        command.args(["--control", "/nowhere/x.sock"]).args(line.split(' ')).env("GITHUB_ACTIONS", "true");
        let ran = run(&mut command);
        assert!(ran.stderr.lines().any(|line| line.starts_with(want)), "{}", ran.stderr);
        assert_eq!(ran.stdout, "");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    for line in [&["completions", "bash"][..], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ran = run(agentctl().args(line).stdout(writer));
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{line:?}");
    }
}

#[test]
fn an_interrupted_operation_says_that_the_agent_may_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut command = agentctl();
    command.arg("--control").arg(&socket).args(["rollback", "shop"]).stderr(Stdio::piped());
    let child = command.env("SSH_CONNECTION", "192.0.2.7 50022 10.0.0.5 22").spawn().unwrap();
    // Once the request is here, agentctl listens to signals too.
    let (mut connection, _) = listener.accept().unwrap();
    let mut request = [0; 4096];
    let length = connection.read(&mut request).unwrap();
    let request = String::from_utf8_lossy(&request[..length]);
    assert!(request.starts_with("POST /v1/services/shop/rollback HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("portcullis-ssh-connection: 192.0.2.7 50022 10.0.0.5 22\r\n"), "{request}");
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("`agentctl status shop`"), "{stderr}");
}
