//! A store whose values are sealed: clear for those who use it, sealed for the disk, the network and the store.

use std::sync::Arc;
use std::time::Duration;

use super::seal::{StoreKey, StoreKeyError};
use super::{Expected, Lease, Store, StoreError, Stored, Version, Watch};

#[derive(Debug, Clone)]
pub struct Vault {
    store: Arc<Store>,
    key: Arc<StoreKey>,
}

impl Vault {
    pub fn new(store: Store, key: Arc<StoreKey>) -> Self {
        Self { store: Arc::new(store), key }
    }

    pub async fn get(&self, key: &str) -> Result<Option<Stored>, StoreError> {
        let Some(Stored { bytes, version }) = self.store.get(key).await? else { return Ok(None) };
        match self.key.open(key, &bytes) {
            Ok(bytes) => Ok(Some(Stored { bytes, version })),
            Err(reason) => Err(StoreError::Sealed { key: key.to_owned(), reason }),
        }
    }

    pub async fn put(&self, key: &str, bytes: &[u8], expected: Expected) -> Result<Version, StoreError> {
        self.store.put(key, &self.seal(key, bytes)?, expected).await
    }

    pub async fn put_expiring(&self, key: &str, bytes: &[u8], ttl: Duration) -> Result<(), StoreError> {
        self.store.put_expiring(key, &self.seal(key, bytes)?, ttl).await
    }

    pub async fn put_fenced(&self, lease: &Lease, key: &str, bytes: &[u8]) -> Result<Version, StoreError> {
        self.store.put_fenced(lease, key, &self.seal(key, bytes)?).await
    }

    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.store.delete(key).await
    }

    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.store.list(prefix).await
    }

    pub async fn acquire(&self, name: &str, owner: &str, ttl: Duration) -> Result<Option<Lease>, StoreError> {
        self.store.acquire(name, owner, ttl).await
    }

    pub async fn holder(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.store.holder(name).await
    }

    pub async fn renew(&self, lease: &Lease) -> Result<bool, StoreError> {
        self.store.renew(lease).await
    }

    pub async fn release(&self, lease: Lease) -> Result<(), StoreError> {
        self.store.release(lease).await
    }

    pub async fn notify(&self, topic: &str) {
        self.store.notify(topic).await;
    }

    pub fn watch(&self) -> Watch<'_> {
        self.store.watch()
    }

    fn seal(&self, key: &str, bytes: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.key.seal(key, bytes).map_err(|error: StoreKeyError| StoreError::Unavailable {
            store: self.store.to_string(),
            what: "seal a value",
            source: error.into(),
        })
    }
}
