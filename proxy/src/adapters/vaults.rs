//! The vaults of a daemon, as its configuration says: the store, and a copy of it on this VM.

use std::path::Path;
use std::sync::Arc;

use super::redis::RedisFailure;
use super::store::dir::Timing;
use super::store::seal::{StoreKey, StoreKeyError};
use super::store::{Dir, RedisStore, Store, Vault};
use crate::config::{SharedStore, StoreConfig};

/// In the state directory.
const DIRECTORY: &str = "certs";

#[derive(Debug, Clone)]
pub struct Vaults {
    /// On this VM. What serves while a store that is shared is away, and after a restart without it.
    pub local: Vault,
    /// What counts, where VMs share a store.
    pub shared: Option<Vault>,
}

#[derive(Debug, thiserror::Error)]
pub enum VaultsError {
    #[error(transparent)]
    Key(#[from] StoreKeyError),
    #[error(transparent)]
    Redis(#[from] RedisFailure),
}

impl Vaults {
    /// Reads the store key. The store itself is reached when it is needed. Blocks.
    pub fn open(config: &StoreConfig, state_dir: &Path) -> Result<Self, VaultsError> {
        let (key, is_new) = StoreKey::load(&config.key)?;
        let directory = state_dir.join(DIRECTORY);
        if is_new && directory.exists() {
            tracing::warn!(
                directory = %directory.display(),
                "the store key was missing and a new one was made: what is sealed in the directory cannot be opened; \
                 stop, put the old store.key back and start again"
            );
        }
        let key = Arc::new(key);
        let timing = Timing { deadline: config.timeout, poll: config.poll };
        let local = Vault::new(Store::Dir(Dir::private(&directory, timing)), Arc::clone(&key));
        let shared = match &config.shared {
            None => None,
            Some(SharedStore::Dir(path)) => Some(Store::Dir(Dir::shared(path, timing))),
            Some(SharedStore::Redis(redis)) => {
                Some(Store::Redis(Box::new(RedisStore::new(redis, timing.deadline, timing.poll)?)))
            }
        };
        Ok(Self { local, shared: shared.map(|store| Vault::new(store, key)) })
    }
}
