//! The registry: the one owner of what the services are.
//!
//! Changes come through a bounded channel and are made one after another by `keeper`; readers load the
//! current view without asking anybody.

mod keeper;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use model::name::ServiceName;
use model::protocol::{Problem, ProblemCode};
use model::service::{Release as Record, Service};
use tokio::sync::{mpsc, oneshot, watch};

pub use self::keeper::{Keeper, Parts};
use super::activations::{Activation, Live};
use super::certificates::managed::Managed;
use super::changes::{Change, no_release, no_service};
use super::declarations::Policies;
use super::files::Files;
use super::monitor::Readings;
use super::own_certificates::Place;
use crate::adapters::state_file::State;
use crate::release::{Endpoint, Release};

/// The state, and what is at work for it. Replaced whole.
#[derive(Default)]
pub struct View {
    pub state: Arc<State>,
    pub live: BTreeMap<ServiceName, Live>,
    /// Certificates that came by themselves.
    pub managed: Arc<Managed>,
}

impl View {
    pub fn services(&self) -> impl Iterator<Item = (&Service, &Live)> {
        self.state.services.values().filter_map(|service| Some((service, self.live.get(&service.name)?)))
    }

    pub fn service(&self, name: &ServiceName) -> Result<(&Service, &Live), Problem> {
        let found = self.state.services.get(name).zip(self.live.get(name));
        let missing = || {
            if self.state.declared.contains_key(name) { no_release(name) } else { no_service(name) }
        };
        found.ok_or_else(missing)
    }
}

/// A change with all that it needs; made whole or not at all.
pub struct Commit {
    pub service: ServiceName,
    pub change: Change,
    pub actor: String,
    /// Of the audit log's line.
    pub kind: &'static str,
    pub message: String,
    /// Activations that may take a slot, besides those that are in one: gated, or in a slot before.
    pub known: Vec<Activation>,
    /// The policy's, when they were read anew.
    pub files: Files,
}

/// A change that is on disk and published.
pub struct Committed {
    pub generation: u64,
    /// When it was published, Unix time in ms.
    pub at_ms: u64,
    /// The service as it was, if it was.
    pub before: Option<(Service, Live)>,
    /// The service as it is, if it is.
    pub after: Option<(Service, Live)>,
    /// Closed already; to be drained by the caller.
    pub replaced: Vec<Arc<Release>>,
}

/// The whole policies of several services; made true together or not at all.
pub struct Declaration {
    pub policies: Policies,
    pub actor: String,
    /// Of the state that was looked at; refused if it has gone on.
    pub generation: u64,
    /// The policies', read anew.
    pub files: BTreeMap<ServiceName, Files>,
}

pub enum Command {
    Commit(Box<Commit>, oneshot::Sender<Result<Committed, Problem>>),
    /// The files of a service's policy were read anew.
    Files(ServiceName, Files, oneshot::Sender<()>),
    /// A release's names were looked up at last.
    Located(ServiceName, Record, Vec<Endpoint>),
    /// An operation has ended: forget what only it needed.
    Tidy,
    /// Certificates came, went, or are answered for anew.
    Managed(Arc<Managed>, oneshot::Sender<()>),
    Declare(Box<Declaration>, oneshot::Sender<Result<(u64, bool), Problem>>),
    /// Files of own certificates were looked at.
    Reloaded(Vec<Reloaded>),
}

/// What is known now of one pair of certificate files.
pub struct Reloaded {
    pub service: ServiceName,
    /// Among the service's.
    pub index: usize,
    pub place: Place,
    /// Of the audit log's line.
    pub kind: &'static str,
    pub message: String,
}

/// How the rest of the control plane reaches the registry.
#[derive(Clone)]
pub struct Registry {
    view: Arc<ArcSwap<View>>,
    commands: mpsc::Sender<Command>,
    readings: Readings,
    generations: watch::Receiver<u64>,
}

impl Registry {
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Wakes whenever the state has changed.
    pub fn generations(&self) -> watch::Receiver<u64> {
        self.generations.clone()
    }

    /// What probes say of the targets.
    pub fn readings(&self) -> &Readings {
        &self.readings
    }

    pub async fn commit(&self, commit: Commit) -> Result<Committed, Problem> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Commit(Box::new(commit), answer)).await?;
        answered.await.map_err(|_| stopping())?
    }

    /// The generation then, and whether anything was new.
    pub async fn declare(&self, declaration: Declaration) -> Result<(u64, bool), Problem> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Declare(Box::new(declaration), answer)).await?;
        answered.await.map_err(|_| stopping())?
    }

    /// Comes back once the files are in use: who has changed one may ask for it at once.
    pub async fn take_files(&self, service: ServiceName, files: Files) -> Result<(), Problem> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Files(service, files, answer)).await?;
        answered.await.map_err(|_| stopping())
    }

    pub async fn send(&self, command: Command) -> Result<(), Problem> {
        self.commands.send(command).await.map_err(|_| stopping())
    }
}

fn stopping() -> Problem {
    Problem::new(ProblemCode::Aborted, "the daemon is shutting down; nothing was changed")
        .hint("try again once it is back")
}
