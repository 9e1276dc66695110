//! One thread of the data plane: its own runtime, listeners, connections and upstream pools.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use model::balance::Random;
use tokio::runtime::LocalOptions;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::Admission;
use super::buffering::room::Room;
use super::listener::{self, Listening};
use super::roster::Roster;
use super::tls::handshake::Handshakes;
use super::upstream::pool::Pool;
use super::upstream::retry::RetryBudget;
use crate::certificate_asks::CertificateAsks;
use crate::config::Config;
use crate::snapshot::Published;
use crate::telemetry::access_log::{AccessLog, Sink};
use crate::telemetry::metrics::Metrics;

/// What a worker's tasks share.
pub struct Worker {
    pub index: usize,
    pub config: Arc<Config>,
    pub published: Published,
    pub metrics: Arc<Metrics>,
    pub log: AccessLog,
    pub pool: Pool,
    pub retries: RetryBudget,
    /// Clients' connections and tunnels: the worker ends when they have.
    pub tasks: TaskTracker,
    /// Stop taking requests, finish those in flight.
    pub shutdown: CancellationToken,
    /// Says the same at the price of a load. Set before `shutdown` wakes anybody.
    pub is_stopping: Cell<bool>,
    /// The end has been announced, and this VM should get no new work. Set before `is_stopping`.
    pub is_leaving: Cell<bool>,
    /// For redirects; `None` without an HTTPS listener.
    pub https_port: Option<u16>,
    pub handshakes: Handshakes,
    /// Requests that a target works on for nobody; nobody waits for them at shutdown.
    pub abandoned: TaskTracker,
    /// What latencies are timed by.
    pub epoch: Instant,
    pub random: Cell<Random>,
    pub roster: Rc<Roster>,
    /// For buffered bodies.
    pub room: Arc<Room>,
}

/// What every worker is built from; the same for all but the index and the sockets.
#[derive(Clone)]
pub struct Setup {
    pub config: Arc<Config>,
    pub published: Published,
    pub metrics: Arc<Metrics>,
    pub log: Sink,
    pub shutdown: CancellationToken,
    pub https_port: Option<u16>,
    pub admission: Arc<Admission>,
    pub room: Arc<Room>,
    /// For certificates that the snapshot does not hold.
    pub asks: CertificateAsks,
}

impl Worker {
    fn new(index: usize, setup: Setup) -> Rc<Self> {
        Rc::new(Self {
            index,
            roster: Roster::new(index, &setup.config, &setup.metrics, setup.admission),
            handshakes: Handshakes::new(
                setup.published.clone(),
                setup.asks,
                setup.config.limits.handshake_timeout,
            ),
            config: setup.config,
            published: setup.published,
            metrics: setup.metrics,
            log: AccessLog::new(setup.log),
            pool: Pool::default(),
            retries: RetryBudget::default(),
            tasks: TaskTracker::new(),
            // One of its own: polling it takes a lock, which the workers must not share.
            shutdown: CancellationToken::new(),
            is_stopping: Cell::new(false),
            is_leaving: Cell::new(false),
            https_port: setup.https_port,
            abandoned: TaskTracker::new(),
            epoch: Instant::now(),
            random: Cell::new(Random::new(random_seed())),
            room: setup.room,
        })
    }
}

/// Another one for each worker and VM, so that they do not pick in step. The standard library seeds each
/// hasher at random.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// Write and read files of buffered bodies. A disk does not become faster by more.
const DISK_THREADS: usize = 4;

/// Runs one worker on the calling thread until `setup.shutdown`, then until its connections have ended or
/// the shutdown timeout is over.
pub fn run(index: usize, setup: Setup, sockets: Vec<Listening>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(DISK_THREADS)
        .build_local(LocalOptions::default())?;
    let ended = runtime.block_on(async {
        let shutdown = setup.shutdown.clone();
        let worker = Worker::new(index, setup);
        let background = TaskTracker::new();
        let log = worker.log.clone();
        let flusher = background.spawn_local(async move { log.flush_regularly().await });
        let pool = worker.pool.clone();
        let sweeper = background.spawn_local(async move { pool.sweep_regularly().await });
        let roster = Rc::clone(&worker.roster);
        let usher = background.spawn_local(async move { tokio::join!(roster.obey(), roster.keep_budget()) });
        for socket in sockets {
            worker.tasks.spawn_local(listener::accept(Rc::clone(&worker), socket));
        }
        shutdown.cancelled().await;
        worker.is_leaving.set(true);
        // Balancers look only now and then, and go on sending until they have seen it.
        tokio::time::sleep(worker.config.shutdown_delay).await;
        worker.is_stopping.set(true);
        worker.shutdown.cancel();
        worker.tasks.close();
        // What does not end in time is dropped with the runtime.
        let _ = tokio::time::timeout(worker.config.shutdown_timeout, worker.tasks.wait()).await;
        usher.abort();
        sweeper.abort();
        flusher.abort();
        worker.log.flush();
        Ok(())
    });
    // A disk that hangs must not keep the process.
    runtime.shutdown_background();
    ended
}
