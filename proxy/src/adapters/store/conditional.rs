//! A store out of one primitive: replace a value if it is still the one that was read.
//!
//! Directories and buckets have that and little else. Values carry a short head: the fencing number under which they were
//! written, and when they expire.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Expected, StoreError, Stored, VALUE_BYTES_MAX, Version};

/// Fencing number and time of expiry, both big-endian.
const HEAD: usize = 16;
/// What a file or an object may have at most.
pub(super) const BYTES_MAX: usize = VALUE_BYTES_MAX + HEAD + 256;
/// Each time another VM was faster. They cannot all be faster for ever.
const ATTEMPTS: usize = 16;

/// What a directory and a bucket can do.
pub(super) trait Conditional {
    /// For messages.
    fn name(&self) -> String;

    fn read(&self, key: &str) -> impl Future<Output = Result<Option<Stored>, StoreError>> + Send;

    /// Writes `bytes` if `key` still holds `expected`, or nothing. `Conflict` otherwise.
    fn replace(
        &self,
        key: &str,
        bytes: Vec<u8>,
        expected: Option<&Version>,
    ) -> impl Future<Output = Result<Version, StoreError>> + Send;

    fn remove(&self, key: &str) -> impl Future<Output = Result<(), StoreError>> + Send;

    fn keys(&self, prefix: &str) -> impl Future<Output = Result<Vec<String>, StoreError>> + Send;

    /// Whether only this process uses it, so that leases of others are left from before a restart.
    fn is_private(&self) -> bool;

    /// Which leases this process has seen, and since when.
    fn sightings(&self) -> &super::lease::Sightings;
}

/// A value with its head, expired or not.
pub(super) struct Entry {
    pub fence: u64,
    expires_ms: u64,
    pub bytes: Vec<u8>,
    pub version: Version,
}

impl Entry {
    fn is_gone(&self) -> bool {
        self.expires_ms != 0 && self.expires_ms <= now_ms()
    }
}

pub(super) async fn entry(store: &impl Conditional, key: &str) -> Result<Option<Entry>, StoreError> {
    let Some(Stored { mut bytes, version }) = store.read(key).await? else { return Ok(None) };
    let number = |range: std::ops::Range<usize>| {
        bytes.get(range).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes)
    };
    let (Some(fence), Some(expires_ms)) = (number(0..8), number(8..HEAD)) else {
        let why = "it is too short";
        return Err(StoreError::Damaged { store: store.name(), key: key.to_owned(), why });
    };
    bytes.drain(..HEAD);
    Ok(Some(Entry { fence, expires_ms, bytes, version }))
}

fn with_head(fence: u64, expires_ms: u64, bytes: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(HEAD + bytes.len());
    whole.extend_from_slice(&fence.to_be_bytes());
    whole.extend_from_slice(&expires_ms.to_be_bytes());
    whole.extend_from_slice(bytes);
    whole
}

pub(super) async fn get(store: &impl Conditional, key: &str) -> Result<Option<Stored>, StoreError> {
    let entry = entry(store, key).await?.filter(|entry| !entry.is_gone());
    Ok(entry.map(|Entry { bytes, version, .. }| Stored { bytes, version }))
}

pub(super) async fn put(
    store: &impl Conditional,
    key: &str,
    bytes: &[u8],
    expected: &Expected,
) -> Result<Version, StoreError> {
    let mut tried = 0;
    loop {
        let entry = entry(store, key).await?;
        let seen = entry.as_ref().filter(|entry| !entry.is_gone()).map(|entry| &entry.version);
        let fits = match expected {
            Expected::Anything => true,
            Expected::Absent => seen.is_none(),
            Expected::Version(version) => seen == Some(version),
        };
        if !fits {
            return Err(StoreError::Conflict { key: key.to_owned() });
        }
        let fence = entry.as_ref().map_or(0, |entry| entry.fence);
        let version = entry.as_ref().map(|entry| &entry.version);
        match store.replace(key, with_head(fence, 0, bytes), version).await {
            Err(StoreError::Conflict { .. }) if *expected == Expected::Anything && tried < ATTEMPTS => {
                tried += 1;
            }
            done => return done,
        }
    }
}

pub(super) async fn put_expiring(
    store: &impl Conditional,
    key: &str,
    bytes: &[u8],
    ttl: Duration,
) -> Result<(), StoreError> {
    // Such keys are few, and each comes with a name of its own; whoever adds one takes the old ones away.
    let siblings = match key.rsplit_once('/') {
        Some((parent, _)) => store.keys(&format!("{parent}/")).await?,
        None => Vec::new(),
    };
    for sibling in siblings.iter().filter(|sibling| *sibling != key) {
        if entry(store, sibling).await?.is_some_and(|entry| entry.is_gone()) {
            store.remove(sibling).await?;
        }
    }
    let expires_ms = now_ms().saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)).max(1);
    for _ in 0..ATTEMPTS {
        let version = entry(store, key).await?.map(|entry| entry.version);
        match store.replace(key, with_head(0, expires_ms, bytes), version.as_ref()).await {
            Err(StoreError::Conflict { .. }) => {}
            done => return done.map(drop),
        }
    }
    Err(StoreError::Conflict { key: key.to_owned() })
}

/// Writes `bytes` unless a later fencing number has been there. The comparison and the write are one step, because the
/// write fails if the value that was looked at is not there any more.
pub(super) async fn put_fenced(
    store: &impl Conditional,
    key: &str,
    bytes: &[u8],
    fence: u64,
) -> Result<Option<Version>, StoreError> {
    for _ in 0..ATTEMPTS {
        let entry = entry(store, key).await?;
        if entry.as_ref().is_some_and(|entry| entry.fence > fence) {
            return Ok(None);
        }
        let version = entry.map(|entry| entry.version);
        match store.replace(key, with_head(fence, 0, bytes), version.as_ref()).await {
            Err(StoreError::Conflict { .. }) => {}
            done => return done.map(Some),
        }
    }
    Err(StoreError::Conflict { key: key.to_owned() })
}

/// For what expires in minutes, and for fencing numbers that outlive the loss of a lock's record.
pub(super) fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
