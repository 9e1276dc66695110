//! The proxies side by side: each in processes of its own, on the proxies' core, with its access log on.

mod floor;
mod haproxy;
mod nginx;
mod portcullis;

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub(crate) use self::floor::serve as serve_floor;
pub(crate) use self::portcullis::Build;
use crate::cpu::Processes;
use crate::failure::{Failure, Outcome, Tried};
use crate::machine::Cores;
use crate::world::World;

/// Who is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    Portcullis,
    /// Another build of Portcullis.
    Before,
    Haproxy,
    Nginx,
    /// A bare relay of our own: no proxy can be cheaper.
    Floor,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Portcullis => "portcullis",
            Self::Before => "before",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Floor => "floor",
        }
    }

    pub(crate) fn has_tls(self) -> bool {
        self != Self::Floor
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    pub plain: SocketAddr,
    pub tls: Option<SocketAddr>,
}

/// A running proxy, stopped when dropped.
pub(crate) struct Peer {
    pub kind: Kind,
    pub addresses: Addresses,
    pub processes: Processes,
    /// Emptied after each window, for a log of an hour at full speed fills a disk.
    access_log: Option<PathBuf>,
    _daemon: Daemon,
}

impl Peer {
    pub(crate) fn empty_access_log(&self) -> Outcome<()> {
        let Some(path) = &self.access_log else { return Ok(()) };
        let emptied = File::options().write(true).open(path).and_then(|file| file.set_len(0));
        emptied.tried(|| format!("empty {}", path.display()))
    }

    /// Whether requests are logged where we can see them: a peer that logs nothing is no peer.
    pub(crate) fn check_access_log(&self) -> Outcome<()> {
        let Some(path) = &self.access_log else { return Ok(()) };
        let length = std::fs::metadata(path).tried(|| format!("look at {}", path.display()))?.len();
        if length == 0 {
            return Err(Failure::new(format!(
                "{} has logged nothing to {}",
                self.kind.name(),
                path.display()
            )));
        }
        Ok(())
    }
}

/// What all peers are started with.
pub(crate) struct Ground {
    cores: Cores,
    dir: tempfile::TempDir,
    certificate: Certificate,
}

/// ECDSA P-256, self-signed, as PEM files.
struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    /// Both in one file, as haproxy wants them.
    both: PathBuf,
}

impl Ground {
    pub(crate) fn prepare(cores: Cores) -> Outcome<Self> {
        let dir = tempfile::Builder::new().prefix("bench").tempdir();
        let dir = dir.tried(|| "make a temporary directory".to_owned())?;
        let made = rcgen::generate_simple_self_signed([crate::visitor::HOST.to_owned()]);
        let made = made.tried(|| "make a certificate".to_owned())?;
        let file = |name, text: &str| write(dir.path(), name, text);
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let certificate = Certificate {
            chain: file("chain.pem", &chain)?,
            key: file("key.pem", &key)?,
            both: file("both.pem", &format!("{chain}{key}"))?,
        };
        Ok(Self { cores, dir, certificate })
    }

    /// Starts a peer and waits until it answers. `build` is which Portcullis, and with how many services.
    pub(crate) fn start(&self, world: &mut World, kind: Kind, build: &Build) -> Outcome<Peer> {
        let dir = tempfile::Builder::new().prefix(kind.name()).tempdir_in(self.dir.path());
        // It goes with the directory of the ground.
        let dir = dir.tried(|| "make a temporary directory".to_owned())?.keep();
        match kind {
            Kind::Portcullis | Kind::Before => portcullis::start(self, world, kind, build, &dir),
            Kind::Haproxy => haproxy::start(self, world, &dir),
            Kind::Nginx => nginx::start(self, world, &dir),
            Kind::Floor => floor::start(self, world),
        }
    }

    /// A daemon on the proxies' core whose words go to `log`.
    fn spawn(&self, mut command: Command, log: &Path, last_words: Signal) -> Outcome<Daemon> {
        let file = File::create(log).tried(|| format!("make {}", log.display()))?;
        let twin = file.try_clone().tried(|| format!("share {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file).stderr(twin);
        self.spawn_quiet(command, log, last_words)
    }

    fn spawn_quiet(&self, mut command: Command, log: &Path, last_words: Signal) -> Outcome<Daemon> {
        let child = self.cores.on_proxy_core(|| command.spawn().tried(|| format!("start {command:?}")))?;
        Ok(Daemon { child, log: log.to_owned(), last_words })
    }
}

fn write(dir: &Path, name: &str, text: &str) -> Outcome<PathBuf> {
    let path = dir.join(name);
    std::fs::write(&path, text).tried(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// The program ends with this process, even if that is killed: it gets `last_words`.
fn ends_with_us(program: &Path, last_words: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", last_words]).arg(program);
    command
}

/// Debian keeps servers out of the path of those who are not root.
fn server(name: &str) -> Outcome<PathBuf> {
    let found = ["/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin"]
        .map(|dir| Path::new(dir).join(name))
        .into_iter()
        .find(|path| path.is_file());
    found.ok_or_else(|| Failure::new(format!("there is no {name}: `bin/bench` installs it")))
}

struct Daemon {
    child: Child,
    log: PathBuf,
    last_words: Signal,
}

const PATIENCE: Duration = Duration::from_secs(20);

impl Daemon {
    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs; if not, its log says why.
    fn check(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            ended => Err(format!("it ended ({ended:?}):\n{}", self.words())),
        }
    }

    fn words(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Until every address takes connections.
    fn wait_for(&mut self, world: &mut World, what: &str, addresses: &[SocketAddr]) -> Outcome<()> {
        world.until(&format!("{what} listens"), PATIENCE, || {
            self.check()?;
            for address in addresses {
                TcpStream::connect(address).map_err(|error| format!("{address}: {error}"))?;
            }
            Ok(())
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // One that is gone has had its signal.
            let _ = kill_process(pid, self.last_words);
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            // The standard library waits for a child without a deadline only.
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
