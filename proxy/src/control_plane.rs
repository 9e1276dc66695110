//! The careful half: it owns what the services are, and changes what the data plane believes.
//!
//! `registry` owns the state; `deploy`, `rollback`, `canary`, `pause`, `remove` and `apply` drive changes of it; `gate` and
//! `monitor` probe; `server` and `handlers` are the control API. Everything runs on one small runtime.

pub mod access;
pub mod activations;
pub mod admissions;
pub mod answers;
pub mod apply;
pub mod audit;
pub mod bake;
pub mod canary;
pub mod certificate_reload;
pub mod certificates;
pub mod changes;
pub mod client_auth;
pub mod context;
pub mod declarations;
pub mod deploy;
pub mod drain;
pub mod endpoints;
pub mod files;
pub mod gate;
pub mod handlers;
pub mod monitor;
pub mod operations;
pub mod own_certificates;
pub mod pages;
pub mod pause;
pub mod progress;
pub mod registry;
pub mod remove;
pub mod report;
pub mod restore;
pub mod revert;
pub mod rollback;
pub mod server;
pub mod snapshots;
pub mod socket;
pub mod status;
pub mod switch;
pub mod tickets;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::canary::FleetSecret;
use model::protocol::Listeners;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::activations::Factory;
use self::audit::Audit;
use self::certificates::challenges::{self, Board};
use self::certificates::handle;
use self::certificates::manager::{self, Found, Manager};
use self::certificates::shelf::Shelf;
use self::context::Context;
use self::handlers::Api;
use self::operations::Operations;
use self::registry::{Keeper, Parts, Registry};
use crate::adapters::accounts::Accounts;
use crate::adapters::buffer_dir::BufferDir;
use crate::adapters::fleet_key::{self, FleetKeyError};
use crate::adapters::state_dir::{StateDir, StateDirError};
use crate::adapters::state_file::{StateFile, StateFileError};
use crate::adapters::vaults::{Vaults, VaultsError};
use crate::certificate_asks::Asked;
use crate::config::{Acme, Groups, StoreConfig};
use crate::snapshot::Published;
use crate::telemetry::metrics::Metrics;
use crate::ticket_keys::TicketKeys;

pub use self::socket::SocketError;

pub struct ControlPlaneConfig {
    pub control_path: PathBuf,
    pub state_dir: PathBuf,
    pub workers: usize,
    pub groups: Groups,
    /// `None`: one of this VM's own, made at the first start.
    pub fleet_secret: Option<FleetSecret>,
    /// Of the daemon, for the status.
    pub version: String,
    /// Where buffered bodies go that do not fit into memory.
    pub buffers: PathBuf,
    /// Filled before the data plane listens, and turned from then on.
    pub ticket_keys: TicketKeys,
    pub store: StoreConfig,
    /// Between two looks at the files of own certificates.
    pub certificate_check_interval: Duration,
    /// `None`: automatic certificates are off.
    pub acme: Option<Acme>,
}

#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneError {
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    #[error(transparent)]
    StateFile(#[from] StateFileError),
    #[error(transparent)]
    FleetKey(#[from] FleetKeyError),
    #[error(transparent)]
    Vaults(#[from] VaultsError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("a part of the control plane broke while it started")]
    Task(#[from] tokio::task::JoinError),
}

/// Restored, and not yet reachable.
pub struct ControlPlane {
    config: ControlPlaneConfig,
    registry: Registry,
    keeper: Keeper,
    factory: Factory,
    audit: Audit,
    operations: Operations,
    unlocated: Vec<restore::Unlocated>,
    started_ms: u64,
    own: server::Own,
    vaults: Vaults,
    shelf: Shelf,
    found: Found,
    metrics: Arc<Metrics>,
    /// Locks the state directory for as long as this lives.
    _dir: StateDir,
}

impl ControlPlane {
    /// Loads the state and publishes the first snapshot, so that the data plane can listen.
    pub async fn restore(
        config: ControlPlaneConfig,
        published: Published,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ControlPlaneError> {
        let started_ms = now_ms();
        let (path, secret) = (config.state_dir.clone(), config.fleet_secret.clone());
        let store = config.store.clone();
        let (dir, file, loaded, secret, vaults) = tokio::task::spawn_blocking(move || {
            let dir = StateDir::open(&path)?;
            let file = StateFile::in_dir(dir.path());
            let loaded = file.load()?;
            let secret = secret.map_or_else(|| fleet_key::load_or_create(&dir), Ok)?;
            let vaults = Vaults::open(&store, dir.path())?;
            Ok::<_, ControlPlaneError>((dir, file, loaded, secret, vaults))
        })
        .await??;
        restore::report(&loaded);
        tickets::restore(&vaults, &config.ticket_keys).await;
        let shelf = Shelf::of(&vaults);
        let workers = config.workers;
        let factory = || Factory::new(Arc::clone(&metrics), workers);
        let (mut view, unlocated) = restore::view(loaded.state, &factory(), dir.path()).await;
        // From this VM's own disk: nobody else is waited for before HTTPS is there.
        let found = Found::on(&shelf).await;
        view.managed = Arc::new(found.managed(config.acme.is_some()));
        let (audit, operations) = (Audit::default(), Operations::default());
        let parts = Parts {
            file,
            factory: factory(),
            published,
            secret,
            audit: audit.clone(),
            operations: operations.clone(),
        };
        let (keeper, registry) = Keeper::new(parts, view);
        Ok(Self {
            config,
            registry,
            keeper,
            factory: factory(),
            audit,
            operations,
            unlocated,
            started_ms,
            own: server::Own::this_process(),
            vaults,
            shelf,
            found,
            metrics,
            _dir: dir,
        })
    }

    /// Opens the control socket and serves until `shutdown`, then until every operation has come to its end.
    pub async fn serve(
        self,
        listeners: Listeners,
        asked: Asked,
        shutdown: CancellationToken,
    ) -> Result<(), ControlPlaneError> {
        let Self { config, registry, keeper, factory, audit, operations, unlocated, started_ms, own, .. } =
            self;
        let Self { vaults, shelf, found, metrics, _dir, .. } = self;
        // Whoever may do more is in this group too: a socket has only one.
        let read = config.groups.read.clone();
        let group = tokio::task::spawn_blocking(move || Accounts::read().ok()?.group_id(&read)).await?;
        if group.is_none() {
            let read = &config.groups.read;
            tracing::info!("there is no group `{read}`: its role is for root and the daemon's user only");
        }
        let bound = socket::bind(&config.control_path, group)?;

        let tasks = TaskTracker::new();
        let authorities = config.acme.map(Arc::new);
        let (certificates, desk) = handle::channel(authorities.as_deref());
        let board = Board::new(shelf.clone());
        let Asked { challenges, on_demand } = asked;
        // No snapshot lists a name that is to be had on demand yet, so nobody asks.
        drop(on_demand);
        tasks.spawn(challenges::answer(board.clone(), challenges, shutdown.clone()));
        let parts = manager::Parts {
            shelf,
            authorities,
            registry: registry.clone(),
            desk,
            board,
            audit: audit.clone(),
            metrics,
            owner: manager::owner(),
            now_ms,
        };
        tasks.spawn(Manager::new(parts, &found).run(shutdown.clone()));
        let control = Some(config.control_path.display().to_string());
        let context = Arc::new(Context {
            registry: registry.clone(),
            operations,
            audit,
            factory,
            listeners: Listeners { control, ..listeners },
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
            buffers: BufferDir::at(&config.buffers),
            certificates,
        });
        let interval = config.certificate_check_interval;
        tasks.spawn(certificate_reload::run(registry.clone(), interval, shutdown.clone()));
        tasks.spawn(restore::locate(unlocated, registry, shutdown.clone()));
        tasks.spawn(tickets::keep(vaults, config.ticket_keys.clone(), shutdown.clone()));
        let api = Arc::new(Api {
            context,
            groups: config.groups,
            version: config.version,
            started_ms,
            workers: config.workers,
        });
        let serving = async {
            server::serve(bound, api, own, shutdown).await;
            // No new operation can begin; those under way end by themselves. With the last of them the
            // last handle of the registry goes, and the keeper ends.
            tasks.close();
            tasks.wait().await;
        };
        tokio::join!(keeper.run(), serving);
        Ok(())
    }
}

/// Unix time in ms: for people and for the log, never for a deadline.
fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
