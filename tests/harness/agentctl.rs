//! Runs `agentctl` as an operator would and keeps all that it said.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use model::protocol::Event;
use serde_json::Value;

use crate::binaries::binary;
use crate::clock::now_ms;

/// `agentctl`, pointed at one control socket.
#[derive(Clone)]
pub struct Agentctl {
    control: PathBuf,
}

impl Agentctl {
    pub fn new(control: &Path) -> Self {
        Self { control: control.to_owned() }
    }

    /// Runs it to its end.
    pub fn run<I: AsRef<str>>(&self, args: impl IntoIterator<Item = I>) -> Ran {
        let mut command = self.command(args);
        let shown = format!("{command:?}");
        let started_ms = now_ms();
        let output = command.output().unwrap_or_else(|error| panic!("cannot start {shown}: {error}"));
        Ran { shown, started_ms, output }
    }

    /// Starts it and lets it run; `Ran::of` waits for it.
    pub fn start<I: AsRef<str>>(&self, args: impl IntoIterator<Item = I>) -> Child {
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
    }

    fn command<I: AsRef<str>>(&self, args: impl IntoIterator<Item = I>) -> Command {
        let mut command = Command::new(binary("agentctl"));
        command.arg("--control").arg(&self.control);
        command.args(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        // What it prints must not depend on who runs the tests.
        command.env_remove("GITHUB_ACTIONS").env_remove("PORTCULLIS_CONTROL").env("NO_COLOR", "1");
        command.env("COLUMNS", "100").stdin(Stdio::null());
        command
    }
}

/// What a run of `agentctl` came to.
pub struct Ran {
    shown: String,
    started_ms: u64,
    output: Output,
}

impl Ran {
    /// Waits for one that was started.
    pub fn of(child: Child) -> Self {
        let started_ms = now_ms();
        let output = child.wait_with_output().expect("a child's output can be read");
        Self { shown: "agentctl".to_owned(), started_ms, output }
    }

    /// `None`: it was killed by a signal.
    pub fn code(&self) -> Option<i32> {
        self.output.status.code()
    }

    /// Unix time in ms.
    pub fn started_ms(&self) -> u64 {
        self.started_ms
    }

    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    #[track_caller]
    pub fn succeeds(self) -> Self {
        self.fails_with(0)
    }

    #[track_caller]
    pub fn fails_with(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "{self}");
        self
    }

    /// The one JSON document on stdout.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.output.stdout)
            .unwrap_or_else(|error| panic!("not JSON: {error}\n{self}"))
    }

    /// The events on stdout, one JSON object a line.
    #[track_caller]
    pub fn events(&self) -> Vec<Event> {
        self.stdout()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}\n{self}")))
            .collect()
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ended with {}", self.shown, self.output.status)?;
        write!(f, "--- stdout\n{}--- stderr\n{}", self.stdout(), self.stderr())
    }
}
