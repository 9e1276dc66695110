//! Where certificates, the account and session-ticket keys live: a directory of this VM or of a shared folder, Redis, or a
//! bucket. One VM changes what all of them read.
//!
//! A store knows keys, versions, leases and notices. It never sees a secret in the clear: `vault` seals what goes in. Every
//! call ends by its own deadline, opening one never waits, and what is loaded already is nobody's business here.

mod conditional;
pub mod dir;
pub mod lease;
pub mod redis;
pub mod seal;
pub mod vault;

use std::error::Error;
use std::fmt;
use std::time::Duration;

pub use self::dir::Dir;
pub use self::lease::Lease;
pub use self::redis::RedisStore;
pub use self::vault::Vault;

/// Far above any certificate chain; a value that is larger is none of ours.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

#[derive(Debug)]
pub enum Store {
    Dir(Dir),
    Redis(Box<RedisStore>),
}

/// A value as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub bytes: Vec<u8>,
    pub version: Version,
}

/// Differs from that of every other value which the key has had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(String);

/// What a key has to hold for a change to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    Anything,
    Absent,
    Version(Version),
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Read it again, and decide anew.
    #[error("`{key}` in the store was changed by another VM meanwhile")]
    Conflict { key: String },
    /// What was to be written rests on a view that is older than another VM's.
    #[error("the lease of `{name}` has passed to another VM meanwhile")]
    Fenced { name: String },
    #[error("`{key}` in the store cannot be used: {reason}")]
    Sealed { key: String, reason: seal::SealError },
    #[error("{store} cannot be reached: {what}")]
    Unavailable { store: String, what: &'static str, source: Cause },
    #[error("{store} did not answer within {deadline:?}: {what}")]
    Slow { store: String, what: &'static str, deadline: Duration },
    #[error("`{key}` in {store} is damaged: {why}")]
    Damaged { store: String, key: String, why: &'static str },
    #[error("`{key}` cannot be a key of the store: {why}")]
    Key { key: String, why: &'static str },
}

/// Of whatever library speaks to the store.
pub type Cause = Box<dyn Error + Send + Sync>;

impl StoreError {
    /// The store may be back later; nothing is wrong with what is in it.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Slow { .. })
    }
}

impl Store {
    pub async fn get(&self, key: &str) -> Result<Option<Stored>, StoreError> {
        check_key(key)?;
        match self {
            Self::Dir(dir) => conditional::get(dir, key).await,
            Self::Redis(redis) => redis.get(key).await,
        }
    }

    /// Writes a value that stays until it is deleted.
    pub async fn put(&self, key: &str, bytes: &[u8], expected: Expected) -> Result<Version, StoreError> {
        check_value(key, bytes)?;
        match self {
            Self::Dir(dir) => conditional::put(dir, key, bytes, &expected).await,
            Self::Redis(redis) => redis.put(key, bytes, &expected).await,
        }
    }

    /// Writes a value that is gone after `ttl`, whatever the key held before.
    pub async fn put_expiring(&self, key: &str, bytes: &[u8], ttl: Duration) -> Result<(), StoreError> {
        check_value(key, bytes)?;
        match self {
            Self::Dir(dir) => conditional::put_expiring(dir, key, bytes, ttl).await,
            Self::Redis(redis) => redis.put_expiring(key, bytes, ttl).await,
        }
    }

    /// What is not there is deleted already.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        check_key(key)?;
        match self {
            Self::Dir(dir) => conditional::Conditional::remove(dir, key).await,
            Self::Redis(redis) => redis.delete(key).await,
        }
    }

    /// The keys that begin with `prefix`, which ends with a slash, in order.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        check_key(prefix.strip_suffix('/').unwrap_or_default())?;
        let mut keys = match self {
            Self::Dir(dir) => conditional::Conditional::keys(dir, prefix).await?,
            Self::Redis(redis) => redis.list(prefix).await?,
        };
        keys.sort_unstable();
        Ok(keys)
    }

    /// Takes the lease of `name` for `ttl`; `None` while another owner has it. `owner` is this process, not this VM: it
    /// must not find its own lease from before a restart.
    pub async fn acquire(&self, name: &str, owner: &str, ttl: Duration) -> Result<Option<Lease>, StoreError> {
        check_key(&lease::key(name))?;
        match self {
            Self::Dir(dir) => lease::acquire(dir, name, owner, ttl).await,
            Self::Redis(redis) => redis.acquire(name, owner, ttl).await,
        }
    }

    /// Who has the lease of `name`, as far as the store knows.
    pub async fn holder(&self, name: &str) -> Result<Option<String>, StoreError> {
        check_key(&lease::key(name))?;
        match self {
            Self::Dir(dir) => lease::holder(dir, name).await,
            Self::Redis(redis) => redis.holder(name).await,
        }
    }

    /// Whether the lease is still ours, and now for another `ttl`.
    pub async fn renew(&self, lease: &Lease) -> Result<bool, StoreError> {
        match self {
            Self::Dir(dir) => lease::renew(dir, lease).await,
            Self::Redis(redis) => redis.renew(lease).await,
        }
    }

    /// Lets others have it at once.
    pub async fn release(&self, lease: Lease) -> Result<(), StoreError> {
        match self {
            Self::Dir(dir) => lease::release(dir, &lease).await,
            Self::Redis(redis) => redis.release(&lease).await,
        }
    }

    /// Writes a value unless a later lease of the same name exists, or has written to `key`. A key is written under one
    /// name only.
    pub async fn put_fenced(&self, lease: &Lease, key: &str, bytes: &[u8]) -> Result<Version, StoreError> {
        check_value(key, bytes)?;
        match self {
            Self::Dir(dir) => lease::put_fenced(dir, lease, key, bytes).await,
            Self::Redis(redis) => redis.put_fenced(lease, key, bytes).await,
        }
    }

    /// Tells the other VMs that something has changed. They would notice by themselves, later.
    pub async fn notify(&self, topic: &str) {
        let told = match self {
            Self::Dir(dir) => dir.notify().await,
            Self::Redis(redis) => redis.notify(topic).await,
        };
        if let Err(error) = told {
            tracing::debug!(topic, %error, "others will see the change when they look next");
        }
    }

    /// What tells of changes from now on. Each of those who wait has one of its own.
    pub fn watch(&self) -> Watch<'_> {
        match self {
            Self::Dir(dir) => Watch::Dir(dir.watch()),
            Self::Redis(redis) => Watch::Redis(redis.watch()),
        }
    }
}

/// Tells of changes in a store.
#[derive(Debug)]
pub enum Watch<'s> {
    Dir(dir::Watch<'s>),
    Redis(redis::Watch<'s>),
}

impl Watch<'_> {
    /// Comes back when another VM has changed something, or after the store's `poll`; the first time as soon as it listens, so
    /// that whoever reads the store after each call misses nothing. A notice that comes between two calls is not lost, nor
    /// is one when this future is dropped.
    pub async fn changed(&mut self) {
        match self {
            Self::Dir(watch) => watch.changed().await,
            Self::Redis(watch) => watch.changed().await,
        }
    }
}

/// For people: where it is, without secrets.
impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(dir) => dir.fmt(f),
            Self::Redis(redis) => redis.fmt(f),
        }
    }
}

/// Keys are paths of names, in every store the same.
fn check_key(key: &str) -> Result<(), StoreError> {
    let refused = |why| Err(StoreError::Key { key: key.to_owned(), why });
    // What a file name may have.
    if key.split('/').any(|name| name.is_empty() || name.len() > 255) {
        return refused("each name in it has 1 to 255 bytes");
    }
    if key.split('/').any(|name| name.starts_with('.')) {
        return refused("no name in it begins with a dot");
    }
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/.-_:[]".contains(&b);
    if !key.bytes().all(is_plain) {
        return refused("it is made of ASCII letters, digits and `.-_:[]`");
    }
    Ok(())
}

fn check_value(key: &str, bytes: &[u8]) -> Result<(), StoreError> {
    check_key(key)?;
    if bytes.len() > VALUE_BYTES_MAX {
        return Err(StoreError::Key { key: key.to_owned(), why: "its value is larger than 1 MiB" });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
