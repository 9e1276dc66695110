//! Real Redis servers and Sentinels, in directories of their own.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::ports::free_address;
use crate::wait::eventually;

/// Killed when dropped.
pub struct Redis {
    child: Child,
    address: SocketAddr,
    arguments: Vec<String>,
    dir: TempDir,
}

impl Redis {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With further options of the command line. It saves nothing to disk unless told to.
    pub fn with(further: &[&str]) -> Self {
        let address = free_address();
        let port = address.port().to_string();
        let mut arguments = vec!["--bind", "127.0.0.1", "--port", &port, "--save", ""];
        // Members of a cluster talk to each other on another port, which is 10 000 higher if nobody says so.
        let bus = free_address().port().to_string();
        if further.contains(&"--cluster-enabled") {
            arguments.extend(["--cluster-port", &bus]);
        }
        arguments.extend(further);
        Self::launch(address, &arguments, |_| {})
    }

    /// One of those that watch the server at `master` under the name `main`; two of them have to agree.
    pub fn sentinel(master: &Self) -> Self {
        let (address, master) = (free_address(), master.address.port());
        Self::launch(address, &["sentinel.conf", "--sentinel"], |dir| {
            let text = format!(
                "port {}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {master} 2\n\
                 sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n",
                address.port(),
            );
            std::fs::write(dir.join("sentinel.conf"), text).expect("a fresh directory can be written");
        })
    }

    fn launch(address: SocketAddr, arguments: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        prepare(dir.path());
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect::<Vec<_>>();
        let child = spawn(&dir, &arguments);
        let mut redis = Self { child, address, arguments, dir };
        redis.listens();
        redis
    }

    pub fn target(&self) -> String {
        self.address.to_string()
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// As when the power fails.
    pub fn kill(&mut self) {
        // Already gone is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// On the same port, with what it has on disk.
    pub fn start_again(&mut self) {
        self.kill();
        self.child = spawn(&self.dir, &self.arguments);
        self.listens();
    }

    /// What `redis-cli` prints.
    #[track_caller]
    pub fn cli(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port().to_string(), "--no-auth-warning"]).args(arguments);
        let output = command.output().expect("redis-cli is installed (bin/test installs it)");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_refused = ["ERR", "NO", "WRONG"].iter().any(|code| text.starts_with(code));
        assert!(output.status.success() && !is_refused, "{arguments:?}: {text}");
        text
    }

    fn listens(&mut self) {
        eventually("Redis listens", || match self.child.try_wait() {
            Ok(Some(status)) => panic!("Redis ended: {status}"),
            _ => TcpStream::connect(self.address).map(drop).map_err(|error| error.to_string()),
        });
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(dir: &TempDir, arguments: &[String]) -> Child {
    // It dies with the thread that started it, even when that is killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "redis-server"]).args(arguments).current_dir(dir.path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("redis-server is installed (bin/test installs it)")
}
