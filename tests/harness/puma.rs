//! Real Pumas: one app, one release each, on a port that the kernel gave or on a unix socket.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use crate::exchange::{Answer, Ask};
use crate::ports::free_address;
use crate::wait::eventually;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum App {
    /// Plain Rack; boots in a third of a second.
    Rack,
    /// Rails 6.1 with ActionCable; boots in some two seconds.
    Rails,
}

/// A running Puma; killed with its workers when dropped.
pub struct Puma {
    child: Child,
    bind: Bind,
    pub release: String,
    log: PathBuf,
    _dir: TempDir,
}

#[derive(Clone)]
enum Bind {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What may differ from an ordinary release.
#[derive(Default)]
struct Options<'o> {
    env: &'o [(&'o str, &'o str)],
    unix: bool,
    /// Certificate and key: Puma itself speaks TLS on its port.
    tls: Option<(&'o Path, &'o Path)>,
    workers: u8,
}

impl Puma {
    pub fn start(app: App, release: &str) -> Self {
        Self::with(app, release, &Options::default())
    }

    /// With further environment variables, which is how an app is made to misbehave.
    pub fn misbehaving(app: App, release: &str, env: &[(&str, &str)]) -> Self {
        Self::with(app, release, &Options { env, ..Options::default() })
    }

    pub fn on_unix_socket(app: App, release: &str) -> Self {
        Self::with(app, release, &Options { unix: true, ..Options::default() })
    }

    pub fn in_cluster(app: App, release: &str, workers: u8) -> Self {
        Self::with(app, release, &Options { workers, ..Options::default() })
    }

    pub fn speaking_tls(app: App, release: &str, certificate: &Path, key: &Path) -> Self {
        Self::with(app, release, &Options { tls: Some((certificate, key)), ..Options::default() })
    }

    fn with(app: App, release: &str, options: &Options<'_>) -> Self {
        // Between asking the kernel for a port and Puma's binding it, somebody else may take it.
        for _ in 0..5 {
            match Self::try_start(app, release, options) {
                Ok(puma) => return puma,
                Err(log) if log.contains("Address already in use") => {}
                Err(log) => panic!("Puma ended while it booted:\n{log}"),
            }
        }
        panic!("five ports in a row were taken before Puma could bind them");
    }

    fn try_start(app: App, release: &str, options: &Options<'_>) -> Result<Self, String> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = dir.path().join("puma.log");
        let (bind, argument) = choose_bind(dir.path(), options);
        let out = File::create(&log).expect("a log in a fresh directory");
        let err = out.try_clone().expect("a second handle on the log");
        let mut command = Command::new("puma");
        command.args(["--quiet", "--environment", "production", "--threads", "2:16", "--bind", &argument]);
        if options.workers > 0 {
            command.args(["--workers", &options.workers.to_string()]);
        }
        command.arg(config_ru(app)).env("RELEASE", release).env("HARNESS_HOLDS_STDIN", "1");
        command.envs(options.env.iter().copied()).current_dir(dir.path());
        command.stdin(Stdio::piped()).stdout(out).stderr(err);
        // A group of its own, so that cluster workers can be killed with their master.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().expect("puma is installed (bin/test installs it)");
        let mut puma = Self { child, bind, release: release.to_owned(), log, _dir: dir };
        puma.wait_until_listening().map(|()| puma)
    }

    fn wait_until_listening(&mut self) -> Result<(), String> {
        eventually("Puma listens", || {
            if self.child.try_wait().expect("a child's status can be read").is_some() {
                return Ok(Err(self.log()));
            }
            // Puma binds before it loads the app; a connection waits in the backlog until then. But another
            // process may hold the port, so the log has to say that it is ours.
            let log = self.log();
            if !log.contains("Use Ctrl-C to stop") {
                return Err(log);
            }
            self.connect().map(Ok).map_err(|error| format!("{error}\n{}", self.log()))
        })
    }

    fn connect(&self) -> std::io::Result<()> {
        match &self.bind {
            Bind::Tcp(address) => TcpStream::connect(address).map(drop),
            Bind::Unix(path) => UnixStream::connect(path).map(drop),
        }
    }

    /// As `agentctl deploy --target` spells it.
    pub fn target(&self) -> String {
        match &self.bind {
            Bind::Tcp(address) => address.to_string(),
            Bind::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// Asks Puma itself, past the proxy.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        match &self.bind {
            Bind::Tcp(address) => Ask::get("shop.test", path).at(*address),
            Bind::Unix(socket) => Ask::get("shop.test", path)
                .try_at_socket(socket)
                .unwrap_or_else(|why| panic!("{path}: {why}")),
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGTERM, as a deploy tool stops the old container; waits for the end.
    pub fn stop(&mut self) {
        let pid = self.pid();
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = kill_process(pid, Signal::TERM);
        }
        eventually("Puma stops", || match self.child.try_wait() {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}\n{}", self.log())),
        });
    }

    /// Asks it to stop while it is at work, and waits until it takes no more connections. A process that is killed
    /// outright loses its sockets one by one, and a client may still be let in by the last of them.
    pub fn stop_listening(&self) {
        let _ = kill_process(self.pid(), Signal::TERM);
        eventually("Puma takes no more connections", || match self.connect() {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
            other => Err(format!("{other:?}\n{}", self.log())),
        });
    }

    /// As when the kernel's out-of-memory killer comes by.
    pub fn kill(&mut self) {
        // Already gone is fine.
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let _ = self.child.wait();
    }

    fn pid(&self) -> Pid {
        let raw = i32::try_from(self.child.id()).expect("a pid fits");
        Pid::from_raw(raw).expect("a child's pid is not zero")
    }
}

impl Drop for Puma {
    fn drop(&mut self) {
        self.kill();
    }
}

fn choose_bind(dir: &Path, options: &Options<'_>) -> (Bind, String) {
    if options.unix {
        let path = dir.join("puma.sock");
        let argument = format!("unix://{}", path.display());
        return (Bind::Unix(path), argument);
    }
    let address = free_address();
    let argument = match options.tls {
        None => format!("tcp://{address}"),
        Some((certificate, key)) => {
            format!("ssl://{address}?cert={}&key={}&verify_mode=none", certificate.display(), key.display())
        }
    };
    (Bind::Tcp(address), argument)
}

fn config_ru(app: App) -> PathBuf {
    let file = match app {
        App::Rack => "rack.ru",
        App::Rails => "rails.ru",
    };
    Path::new(env!("CARGO_MANIFEST_DIR")).join("apps").join(file)
}
