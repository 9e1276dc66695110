//! One `portcullis run` on ports of the kernel's choosing, in a temp directory.

use std::ffi::OsString;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use model::protocol::Status;
use rustix::process::{Pid, Signal, kill_process};

use crate::binaries::binary;
use crate::exchange::Ask;
use crate::wait::eventually;

/// How a daemon of a story differs from a plain one.
#[derive(Clone, Default)]
pub struct DaemonOptions {
    /// Further arguments of `portcullis run`.
    pub args: Vec<OsString>,
    pub env: Vec<(String, String)>,
    /// A command in front, such as `unshare -m sh -c …`, that ends by executing what follows it.
    pub wrapper: Vec<OsString>,
}

/// A running daemon, killed when dropped. `dir` outlives it, so that another can be started on the same state.
pub struct Daemon {
    child: Child,
    dir: PathBuf,
    options: DaemonOptions,
    status: Status,
}

impl Daemon {
    pub fn start(dir: &Path, options: DaemonOptions) -> Self {
        let child = spawn(dir, &options);
        let mut daemon = Self::not_yet_answering(child, dir, options);
        daemon.status = daemon.wait_until_it_answers();
        daemon
    }

    /// Starts one that is expected to refuse to run: its exit status and its log.
    pub fn start_in_vain(dir: &Path, options: &DaemonOptions) -> (ExitStatus, String) {
        let mut child = spawn(dir, options);
        let status = eventually("portcullis refuses to start", || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}\n{}", read_log(dir))),
        });
        (status, read_log(dir))
    }

    fn not_yet_answering(child: Child, dir: &Path, options: DaemonOptions) -> Self {
        let status = Status {
            version: String::new(),
            pid: 0,
            started_ms: 0,
            generation: 0,
            listeners: model::protocol::Listeners::default(),
            workers: 0,
            services: Vec::new(),
            declared: Vec::new(),
        };
        Self { child, dir: dir.to_owned(), options, status }
    }

    fn wait_until_it_answers(&mut self) -> Status {
        eventually("portcullis answers on its control socket", || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("portcullis ended with {status} while it started:\n{}", self.log());
            }
            // The process before this one may have left its socket and, for a moment, an answer.
            let status = self.try_status().map_err(|why| format!("{why}\n{}", self.log()))?;
            if status.pid == self.child.id() { Ok(status) } else { Err(format!("pid {}", status.pid)) }
        })
    }

    pub fn http(&self) -> SocketAddr {
        bound(self.status.listeners.http.as_deref(), "http")
    }

    pub fn https(&self) -> SocketAddr {
        bound(self.status.listeners.https.as_deref(), "https")
    }

    pub fn metrics(&self) -> SocketAddr {
        bound(self.status.listeners.metrics.as_deref(), "metrics")
    }

    pub fn control(&self) -> PathBuf {
        control_path(&self.dir)
    }

    pub fn state_dir(&self) -> PathBuf {
        state_dir(&self.dir)
    }

    /// What the control socket says now.
    #[track_caller]
    pub fn status(&self) -> Status {
        self.try_status().unwrap_or_else(|why| panic!("{why}\n{}", self.log()))
    }

    fn try_status(&self) -> Result<Status, String> {
        let answer = Ask::get("localhost", "/v1/status").try_at_socket(&self.control())?;
        serde_json::from_slice(&answer.body).map_err(|error| format!("{error}: {}", answer.text()))
    }

    pub fn log(&self) -> String {
        read_log(&self.dir)
    }

    /// The access log's lines so far.
    pub fn access_log(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.dir.join("access.log")).unwrap_or_default();
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        whole.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    /// A number of `/metrics`, such as `portcullis_connections_closed_total{reason="head"}`.
    #[track_caller]
    pub fn metric(&self, series: &str) -> u64 {
        let text = Ask::get("localhost", "/metrics").at(self.metrics()).text();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = line.unwrap_or_else(|| panic!("{series} is not in\n{text}"));
        value.parse().unwrap_or_else(|error| panic!("{series} is {value}: {error}"))
    }

    /// Resident memory.
    pub fn rss_kib(&self) -> u64 {
        self.memory_kib("VmRSS:")
    }

    /// The most that was ever resident.
    pub fn peak_rss_kib(&self) -> u64 {
        self.memory_kib("VmHWM:")
    }

    fn memory_kib(&self, field: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(path).expect("the daemon runs");
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let value = line.and_then(|line| line.trim().strip_suffix(" kB")).expect("the kernel tells");
        value.trim().parse().expect("a number")
    }

    pub fn open_descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("the daemon runs").count()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM; waits for the end.
    pub fn stop(&mut self) -> ExitStatus {
        self.terminate();
        self.wait_for_the_end()
    }

    /// SIGTERM alone.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub fn wait_for_the_end(&mut self) -> ExitStatus {
        eventually("portcullis ends after SIGTERM", || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}\n{}", self.log())),
        })
    }

    /// As when the power fails.
    pub fn kill_9(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("a killed child ends");
    }

    /// A new process on the same directory; the old one must have ended.
    pub fn start_again(&mut self) {
        assert!(self.child.try_wait().is_ok_and(|status| status.is_some()), "the old process still runs");
        self.child = spawn(&self.dir, &self.options);
        self.status = self.wait_until_it_answers();
    }

    fn signal(&self, signal: Signal) {
        let raw = i32::try_from(self.child.id()).expect("a pid fits");
        let pid = Pid::from_raw(raw).expect("a child's pid is not zero");
        // A process that is gone has had its signal.
        let _ = kill_process(pid, signal);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill_9();
        if std::thread::panicking() {
            eprintln!("--- log of portcullis\n{}", self.log());
            let requests: Vec<String> = self.access_log().iter().map(ToString::to_string).collect();
            eprintln!("--- access log\n{}", requests.join("\n"));
        }
    }
}

fn spawn(dir: &Path, options: &DaemonOptions) -> Child {
    let log = File::options().create(true).append(true).open(dir.join("portcullis.log"));
    let log = log.expect("the temp directory can be written");
    // It dies with the thread that started it, even when that is killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).args(&options.wrapper).arg(binary("portcullis")).arg("run");
    for listener in ["--http", "--https", "--metrics"] {
        command.args([listener, "127.0.0.1:0"]);
    }
    command.arg("--control").arg(control_path(dir)).arg("--state-dir").arg(state_dir(dir));
    command.arg("--access-log").arg(dir.join("access.log"));
    if !options.args.iter().any(|arg| arg == "--workers") {
        command.args(["--workers", "2"]);
    }
    // No story reaches the internet by accident: one that wants certificates names an authority of its own.
    command.env("PORTCULLIS_ACME_DIRECTORY", "off");
    command.args(&options.args).envs(options.env.iter().map(|(name, value)| (name, value)));
    let err = log.try_clone().expect("a second handle on the log");
    command.stdin(Stdio::null()).stdout(log).stderr(err);
    command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

fn bound(address: Option<&str>, listener: &str) -> SocketAddr {
    let address = address.unwrap_or_else(|| panic!("the {listener} listener is off"));
    address.parse().unwrap_or_else(|error| panic!("{listener} listens on {address}: {error}"))
}

fn control_path(dir: &Path) -> PathBuf {
    dir.join("control.sock")
}

fn state_dir(dir: &Path) -> PathBuf {
    dir.join("state")
}

fn read_log(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("portcullis.log")).unwrap_or_default()
}
