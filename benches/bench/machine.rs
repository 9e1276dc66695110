//! What the bench needs of the machine: two cores, descriptors, a higher priority, sockets on loopback.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::failure::{Failure, Outcome, Tried};

/// The two cores of the bench.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cores {
    /// Where the proxies run, one at a time.
    pub proxy: usize,
    /// Where origin and load run.
    pub load: usize,
}

impl Cores {
    /// The first two that this process may use, with itself on the second.
    pub(crate) fn claim() -> Outcome<Self> {
        let allowed = sched_getaffinity(None).tried(|| "learn which cores may be used".to_owned())?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let (Some(proxy), Some(load)) = (cores.next(), cores.next()) else {
            return Err(Failure::new("the bench needs two cores: one for the proxy, one for the load"));
        };
        let cores = Self { proxy, load };
        pin(cores.load)?;
        Ok(cores)
    }

    /// Calls `start` on the proxies' core: a child process stays where it was born.
    pub(crate) fn on_proxy_core<T>(self, start: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        pin(self.proxy)?;
        let started = start();
        pin(self.load)?;
        started
    }
}

fn pin(core: usize) -> Outcome<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).tried(|| format!("move to core {core}"))
}

/// A higher priority, so that other work on the machine disturbs less; children inherit it.
pub(crate) struct Priority {
    /// What the session had before.
    autogroup: Option<String>,
}

const AUTOGROUP: &str = "/proc/self/autogroup";

impl Priority {
    /// Ten steps up; `None` where that is not allowed.
    ///
    /// Linux first shares a core between sessions and only then looks at priorities within them, unless that is
    /// switched off; so the session gets its ten steps, too, until this is dropped.
    pub(crate) fn raise() -> Option<Self> {
        rustix::process::nice(-10).ok()?;
        let before = std::fs::read_to_string(AUTOGROUP).ok();
        let nice = before.as_deref().and_then(|text| text.trim().rsplit(' ').next()).map(str::to_owned);
        let raised = nice.is_some() && std::fs::write(AUTOGROUP, "-10").is_ok();
        Some(Self { autogroup: nice.filter(|_| raised) })
    }
}

/// This process and those that it starts run before all ordinary work. False where that is not allowed.
///
/// For latency only: an ordinary process that wakes may have to wait some ms for others, whatever its priority, and
/// would be measured for that. At full load it would take a core for itself, so Linux would slow it down.
pub(crate) fn run_before_others() -> bool {
    let this = std::process::id().to_string();
    let done = Command::new("chrt").args(["--rr", "--pid", "1", &this]).stderr(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}

impl Drop for Priority {
    fn drop(&mut self) {
        if let Some(nice) = &self.autogroup {
            // The worst that can happen is that the terminal stays a little faster.
            let _ = std::fs::write(AUTOGROUP, nice);
        }
    }
}

/// Thousands of connections with both ends in this process need as many descriptors.
pub(crate) fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it is forbidden the soft limit stays, and opening too many fails loudly.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// A listener on a port of the kernel's choosing.
pub(crate) fn listen() -> Outcome<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).tried(|| "listen on loopback".to_owned())?;
    listener.set_nonblocking(true).tried(|| "set up a listener".to_owned())?;
    Ok(listener)
}

/// A port that was free a moment ago, for servers that cannot choose one themselves.
pub(crate) fn free_port() -> Outcome<u16> {
    Ok(listen()?.local_addr().tried(|| "learn a free port".to_owned())?.port())
}

/// Small messages leave at once, and nothing blocks.
pub(crate) fn prepare(tcp: &TcpStream) -> Outcome<()> {
    let prepared = tcp.set_nodelay(true).and_then(|()| tcp.set_nonblocking(true));
    prepared.tried(|| "set up a connection".to_owned())
}
