//! Builds every part, starts them in order and stops them in the opposite order.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use model::canary::FleetSecret;
use model::protocol::Listeners;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::adapters::buffer_dir::{BufferDir, BufferDirError};
use crate::certificate_asks::CertificateAsks;
use crate::config::Config;
use crate::control_plane::{ControlPlane, ControlPlaneConfig, ControlPlaneError};
use crate::data_plane::admission::Admission;
use crate::data_plane::buffering::room::Room;
use crate::data_plane::listener::{ListenError, Listening, listen};
use crate::data_plane::worker::{self, Setup};
use crate::metrics_server;
use crate::snapshot::Published;
use crate::telemetry::access_log;
use crate::telemetry::metrics::Metrics;
use crate::ticket_keys::TicketKeys;

#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    AccessLog(#[from] access_log::OpenError),
    #[error(transparent)]
    ControlPlane(#[from] ControlPlaneError),
    #[error(transparent)]
    BufferDir(#[from] BufferDirError),
    #[error("cannot start a thread or runtime")]
    Runtime(#[source] std::io::Error),
    #[error("worker {index} ended before its time")]
    Worker { index: usize },
}

impl AppError {
    /// What the person who started it can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        let error = match self {
            Self::Listen(error) => error,
            Self::BufferDir(_) => return Some(BufferDir::HINT),
            _ => return None,
        };
        match error.source.kind() {
            ErrorKind::PermissionDenied => Some(
                "ports below 1024 need the capability CAP_NET_BIND_SERVICE (the systemd unit gives it) or root; for a \
                 trial use --http 127.0.0.1:8080 --https 127.0.0.1:8443",
            ),
            ErrorKind::AddrInUse => {
                Some("another program listens there: `ss -ltnp` shows which; stop it, or choose another port")
            }
            ErrorKind::AddrNotAvailable => {
                Some("this machine does not have that address: `ip address` lists its own")
            }
            _ => None,
        }
    }
}

/// The soft limit of descriptors is for programs that use `select`; this one may have all of the hard one.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it is forbidden the soft limit stays, and the limit of connections is read from it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Runs until SIGTERM or SIGINT, then drains. A second signal ends it at once.
pub fn run(config: Config) -> Result<(), AppError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AppError::Runtime)?;
    let result = runtime.block_on(serve(Arc::new(config)));
    // A name that is being looked up would hold the process until the resolver gives up.
    runtime.shutdown_background();
    result
}

async fn serve(config: Arc<Config>) -> Result<(), AppError> {
    // First of all, so that no signal finds the default action in place.
    let signals = Signals::new().map_err(AppError::Runtime)?;
    let shutdown = CancellationToken::new();
    let published = Published::default();
    let ticket_keys = TicketKeys::default();
    let metrics = Metrics::new(config.workers);

    // The state comes first: no listener is open before the routes are there.
    let control = ControlPlane::restore(
        ControlPlaneConfig {
            control_path: config.control.clone(),
            state_dir: config.state_dir.clone(),
            workers: config.workers,
            groups: config.groups.clone(),
            fleet_secret: config.fleet_secret.as_ref().map(|secret| FleetSecret::new(secret.as_bytes())),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            buffers: config.buffers.directory.clone(),
            ticket_keys: ticket_keys.clone(),
            store: config.store.clone(),
            certificate_check_interval: config.certificate_check_interval,
            acme: config.acme.clone(),
        },
        published.clone(),
        Arc::clone(&metrics),
    )
    .await?;

    let (log_writer, log) = access_log::open(&config.access_log, Arc::clone(&metrics))?;
    let open = Open::all(&config)?;
    let listeners = open.listeners(&config.control);
    let (asks, asked) = CertificateAsks::new();
    let room = Room::new(config.buffers.clone(), Arc::clone(&metrics));
    prepare_buffers(&room, config.buffers.directory_is_named).await?;
    let setup = Setup {
        room,
        admission: Admission::new(&config.limits, config.workers, Arc::clone(&metrics)),
        config: Arc::clone(&config),
        published: published.clone(),
        metrics: Arc::clone(&metrics),
        log,
        shutdown: shutdown.clone(),
        https_port: open.https.as_ref().map(|(address, _)| address.port()),
        asks,
        ticket_keys,
    };
    let workers = start_workers(setup, open.http, open.https)?;
    announce(&listeners, &config);
    let serving = async {
        let served = {
            // Whatever ends first, the shutdown or a part that could not go on, ends the others.
            let _stop_the_rest = shutdown.clone().drop_guard();
            tokio::select! {
                served = control.serve(listeners, asked, shutdown.clone()) => served.map_err(AppError::from),
                () = metrics_server::serve(open.metrics, metrics, published) => Ok(()),
            }
        };
        let joined = tokio::task::spawn_blocking(move || join_workers(workers)).await;
        log_writer.finish();
        served.and(joined.unwrap_or(Ok(())))
    };
    tokio::select! {
        served = serving => {
            tracing::info!("stopped");
            served
        }
        second = signals.obey(&shutdown) => {
            tracing::warn!(signal = second, "stopped at once");
            std::process::exit(EXIT_INTERRUPTED)
        }
    }
}

/// What the operator names has to be usable. What nobody named may be on a disk that became read-only, where services
/// that need no buffers are still to be served; a deploy that needs them is told.
async fn prepare_buffers(room: &Arc<Room>, is_named: bool) -> Result<(), AppError> {
    let dir = room.dir.clone();
    let prepared = tokio::task::spawn_blocking(move || dir.prepare()).await;
    match prepared.map_err(|error| AppError::Runtime(error.into()))? {
        Err(error) if !is_named => {
            tracing::warn!(source = %error.source, "{error}; {}", BufferDir::HINT);
            Ok(())
        }
        prepared => Ok(prepared?),
    }
}

type Sockets = (std::net::SocketAddr, Vec<std::net::TcpListener>);

/// The listening sockets, one per worker.
struct Open {
    http: Option<Sockets>,
    https: Option<Sockets>,
    metrics: Option<Sockets>,
}

impl Open {
    fn all(config: &Config) -> Result<Self, ListenError> {
        let open = |address: Option<_>, count| address.map(|address| listen(address, count)).transpose();
        Ok(Self {
            http: open(config.http, config.workers)?,
            https: open(config.https, config.workers)?,
            metrics: open(config.metrics, 1)?,
        })
    }

    fn listeners(&self, control: &std::path::Path) -> Listeners {
        let address = |sockets: &Option<Sockets>| sockets.as_ref().map(|(address, _)| address.to_string());
        Listeners {
            http: address(&self.http),
            https: address(&self.https),
            metrics: address(&self.metrics),
            control: Some(PathBuf::from(control).display().to_string()),
        }
    }
}

type Workers = Vec<JoinHandle<std::io::Result<()>>>;

fn start_workers(setup: Setup, http: Option<Sockets>, https: Option<Sockets>) -> Result<Workers, AppError> {
    let mut shares: Vec<Vec<Listening>> = (0..setup.config.workers).map(|_| Vec::new()).collect();
    let balancers = &setup.config.proxy_protocol;
    for (sockets, tls, balancers) in [(http, false, &balancers.http), (https, true, &balancers.https)] {
        for (share, socket) in shares.iter_mut().zip(sockets.into_iter().flat_map(|(_, sockets)| sockets)) {
            share.push(Listening { socket, tls, balancers: balancers.clone() });
        }
    }
    let start = |(index, share): (usize, Vec<Listening>)| {
        let setup = setup.clone();
        std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || worker::run(index, setup, share))
            .map_err(AppError::Runtime)
    };
    shares.into_iter().enumerate().map(start).collect()
}

fn join_workers(workers: Workers) -> Result<(), AppError> {
    let mut result = Ok(());
    for (index, worker) in workers.into_iter().enumerate() {
        match worker.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => result = Err(AppError::Runtime(error)),
            Err(_) => result = Err(AppError::Worker { index }),
        }
    }
    result
}

const EXIT_INTERRUPTED: i32 = 130;

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Begins the drain at the first signal, and is ready at the second.
    async fn obey(mut self, shutdown: &CancellationToken) -> &'static str {
        let first = self.next().await;
        tracing::info!(signal = first, "draining; a second signal ends the process at once");
        shutdown.cancel();
        self.next().await
    }

    async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                // A terminal that closes, or an operator who expects a reload, must not cut requests off. The control
                // plane hears it as well.
                _ = self.hang_up.recv() => tracing::info!("SIGHUP: certificate files are looked at; services are changed with agentctl"),
            }
        }
    }
}

/// For people and scripts that start it by hand; the same is in `agentctl status --json`.
fn announce(listeners: &Listeners, config: &Config) {
    let (limits, buffers) = (&config.limits, &config.buffers);
    tracing::info!(
        http = listeners.http,
        https = listeners.https,
        metrics = listeners.metrics,
        control = %config.control.display(),
        workers = config.workers,
        connections_max = limits.connections,
        connections_per_client_max = limits.connections_per_client,
        handshakes_max = limits.handshakes,
        buffered_bytes_max = limits.buffered_bytes,
        bytes_per_second_min = limits.bytes_per_second_min,
        buffer_memory_bytes_max = buffers.memory_bytes,
        buffer_disk_bytes_max = buffers.disk_bytes,
        buffer_directory = %buffers.directory.display(),
        version = env!("CARGO_PKG_VERSION"),
        "listening"
    );
}
