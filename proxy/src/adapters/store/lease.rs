//! Leases: who may do something that only one VM may do, for as long as it says so again and again.
//!
//! Whether a holder still lives is told without clocks of other machines: a lease whose record has not changed for its whole
//! time, on this process's own clock, is over. Each new lease has a larger number than all before it, and a value that was
//! written under a larger number is never overwritten under a smaller one. So a holder that slept through its lease does
//! no harm when it wakes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::conditional::{self, Conditional, now_ms};
use super::{Expected, StoreError, Stored, Version};

/// The right to do what `name` stands for.
#[derive(Debug, Clone)]
pub struct Lease {
    pub name: String,
    pub owner: String,
    /// The fencing number: larger than that of every earlier lease of this name.
    pub number: u64,
    pub ttl: Duration,
}

pub(super) fn key(name: &str) -> String {
    format!("locks/{name}")
}

/// What the store holds for a lease. It stays when the lease ends, for its number.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    number: u64,
    /// `None`: released.
    owner: Option<String>,
    ttl_ms: u64,
}

/// Leases of others: the version of each when it was seen first, and when that was.
pub(super) type Sightings = Mutex<HashMap<String, (Version, Instant)>>;

pub(super) async fn acquire(
    store: &impl Conditional,
    name: &str,
    owner: &str,
    ttl: Duration,
) -> Result<Option<Lease>, StoreError> {
    let found = read(store, name).await?;
    if let Some((record, version)) = &found
        && record.owner.as_deref().is_some_and(|holder| holder != owner)
        && !store.is_private()
        && !is_over(store.sightings(), name, version, Duration::from_millis(record.ttl_ms))
    {
        return Ok(None);
    }
    // If the record was lost, the clock takes its place.
    let number = found.as_ref().map_or(0, |(record, _)| record.number + 1).max(now_ms());
    let lease = Lease { name: name.to_owned(), owner: owner.to_owned(), number, ttl };
    let version = found.map(|(_, version)| version);
    store.sightings().lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    Ok(write(store, &lease, Some(owner), version).await?.then_some(lease))
}

pub(super) async fn holder(store: &impl Conditional, name: &str) -> Result<Option<String>, StoreError> {
    Ok(read(store, name).await?.and_then(|(record, _)| record.owner))
}

pub(super) async fn renew(store: &impl Conditional, lease: &Lease) -> Result<bool, StoreError> {
    match ours(store, lease).await? {
        Some(version) => write(store, lease, Some(&lease.owner), Some(version)).await,
        None => Ok(false),
    }
}

pub(super) async fn release(store: &impl Conditional, lease: &Lease) -> Result<(), StoreError> {
    if let Some(version) = ours(store, lease).await? {
        // If another VM was faster, it has it already.
        write(store, lease, None, Some(version)).await?;
    }
    Ok(())
}

pub(super) async fn put_fenced(
    store: &impl Conditional,
    lease: &Lease,
    key: &str,
    bytes: &[u8],
) -> Result<Version, StoreError> {
    let fenced = || StoreError::Fenced { name: lease.name.clone() };
    // A later holder may not have written yet. What comes between this look and the write below is stopped there.
    if ours(store, lease).await?.is_none() {
        return Err(fenced());
    }
    conditional::put_fenced(store, key, bytes, lease.number).await?.ok_or_else(fenced)
}

/// The version of the lease's record, if it is still of this lease.
async fn ours(store: &impl Conditional, lease: &Lease) -> Result<Option<Version>, StoreError> {
    let found = read(store, &lease.name).await?;
    let is_ours = |record: &Record| record.number == lease.number && record.owner.is_some();
    Ok(found.filter(|(record, _)| is_ours(record)).map(|(_, version)| version))
}

async fn read(store: &impl Conditional, name: &str) -> Result<Option<(Record, Version)>, StoreError> {
    let key = key(name);
    let Some(Stored { bytes, version }) = conditional::get(store, &key).await? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(record) => Ok(Some((record, version))),
        Err(_) => Err(StoreError::Damaged { store: store.name(), key, why: "it is no record of a lease" }),
    }
}

/// Whether the record was still `before`.
async fn write(
    store: &impl Conditional,
    lease: &Lease,
    owner: Option<&str>,
    before: Option<Version>,
) -> Result<bool, StoreError> {
    let ttl_ms = u64::try_from(lease.ttl.as_millis()).unwrap_or(u64::MAX);
    let record = Record { number: lease.number, owner: owner.map(str::to_owned), ttl_ms };
    let text = serde_json::to_vec(&record).expect("a record has only texts and numbers");
    let expected = before.map_or(Expected::Absent, Expected::Version);
    match conditional::put(store, &key(&lease.name), &text, &expected).await {
        Ok(_) => Ok(true),
        Err(StoreError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the record has been this one for all of `ttl`.
fn is_over(sightings: &Sightings, name: &str, version: &Version, ttl: Duration) -> bool {
    let mut sightings = sightings.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    match sightings.get(name) {
        Some((seen, since)) if seen == version => now.duration_since(*since) >= ttl,
        _ => {
            sightings.insert(name.to_owned(), (version.clone(), now));
            false
        }
    }
}
