//! Real Redis servers and Sentinels, in directories of their own.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use harness::eventually;
use tempfile::TempDir;

/// Killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    arguments: Vec<String>,
    dir: TempDir,
}

impl Server {
    pub(crate) fn start(further: &[&str]) -> Self {
        let mut arguments =
            vec!["--bind".to_owned(), "127.0.0.1".to_owned(), "--save".to_owned(), String::new()];
        arguments.extend(further.iter().map(|&argument| argument.to_owned()));
        Self::launch(arguments, |dir, _| dir)
    }

    /// One of those that watch `main`.
    pub(crate) fn sentinel(master: u16) -> Self {
        let arguments = vec!["sentinel.conf".to_owned(), "--sentinel".to_owned()];
        Self::launch(arguments, |dir, port| {
            let text = format!(
                "port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {master} 2\n\
                 sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n"
            );
            std::fs::write(dir.path().join("sentinel.conf"), text).unwrap();
            dir
        })
    }

    fn launch(arguments: Vec<String>, prepared: impl Fn(TempDir, u16) -> TempDir) -> Self {
        // Between asking for a port and binding it, somebody else may take it.
        for _ in 0..10 {
            let port = free_port();
            let dir = prepared(tempfile::tempdir().unwrap(), port);
            let child = spawn(&dir, port, &arguments);
            let mut server = Self { child, port, arguments: arguments.clone(), dir };
            if server.listens() {
                return server;
            }
        }
        panic!("ten ports in a row were taken");
    }

    /// As when the power fails.
    pub(crate) fn kill(&mut self) {
        // Already gone is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn start_again(&mut self) {
        self.child = spawn(&self.dir, self.port, &self.arguments);
        assert!(self.listens(), "it has the port for itself");
    }

    fn listens(&mut self) -> bool {
        eventually("Redis listens", || match self.child.try_wait() {
            Ok(Some(_)) => Ok(false),
            _ => {
                TcpStream::connect(("127.0.0.1", self.port)).map(|_| true).map_err(|error| error.to_string())
            }
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(dir: &TempDir, port: u16, arguments: &[String]) -> Child {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "redis-server"]).args(arguments);
    if !arguments.iter().any(|argument| argument == "--sentinel") {
        // Members of a cluster talk to each other on another port, which is 10 000 higher if nobody says so.
        command.args(["--port", &port.to_string()]);
        if arguments.iter().any(|argument| argument == "--cluster-enabled") {
            command.args(["--cluster-port", &free_port().to_string()]);
        }
    }
    command.current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("redis-server is installed (bin/test installs it)")
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn redis_cli(port: u16, arguments: &[&str]) -> String {
    let mut command = Command::new("redis-cli");
    command.args(["-p", &port.to_string(), "--no-auth-warning"]).args(arguments);
    let output = command.output().expect("redis-cli is installed (bin/test installs it)");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let is_refused = ["ERR", "NO", "WRONG"].iter().any(|code| text.starts_with(code));
    assert!(output.status.success() && !is_refused, "{arguments:?}: {text}");
    text
}
