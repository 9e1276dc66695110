//! Keeps the ring of ticket keys: turned with the periods, and the same on all VMs that share a store.
//!
//! The ring in the store is what all have; this VM's copy of it serves before the store is reached. While the store is
//! away each VM turns its own ring, and when it is back they are joined (`model::tickets`).

use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::tickets::{self, Ring, TicketKey};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::now_ms;
use crate::adapters::store::{Expected, StoreError, Vault};
use crate::adapters::vaults::Vaults;
use crate::ticket_keys::TicketKeys;

const KEY: &str = "tickets";
const VERSION: u32 = 1;
/// Others who write at the same moment, one after the other.
const CONFLICTS_MAX: usize = 10;

#[derive(Debug, thiserror::Error)]
enum TicketsError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the keys of session tickets in the store are none that this build knows")]
    Document,
    #[error("other VMs change the keys of session tickets in the store all the time")]
    Conflicts,
}

/// Takes what this VM had before its restart.
pub async fn restore(vaults: &Vaults, keys: &TicketKeys) {
    let found = read(&vaults.local).await;
    match found {
        Ok((ring, _)) => keys.replace(ring, now_ms()),
        Err(error) => tracing::warn!(%error, "sessions from before the restart are not resumed"),
    }
}

/// Turns the ring and joins it with the store's, until `shutdown`.
pub async fn keep(vaults: Vaults, keys: TicketKeys, shutdown: CancellationToken) {
    let mut watch = vaults.store().watch();
    let mut is_alone = false;
    loop {
        match join(&vaults, &keys).await {
            Ok(()) => is_alone = false,
            Err(error) => {
                if !std::mem::replace(&mut is_alone, true) {
                    tracing::warn!(%error, "session tickets of other VMs may not be good here, nor ours there");
                }
                turn_alone(&vaults, &keys).await;
            }
        }
        let news = async {
            tokio::select! {
                () = watch.changed() => {}
                () = tokio::time::sleep(tickets::until_next_period(now_ms())) => {}
            }
        };
        if shutdown.run_until_cancelled(news).await.is_none() {
            return;
        }
    }
}

async fn join(vaults: &Vaults, keys: &TicketKeys) -> Result<(), TicketsError> {
    for _ in 0..CONFLICTS_MAX {
        let (stored, expected) = read(vaults.store()).await?;
        let now_ms = now_ms();
        let ring = stored.joined(&keys.ring()).turned(now_ms, fresh);
        if ring != stored {
            match vaults.store().put(KEY, &print(&ring), expected).await {
                Ok(_) => vaults.store().notify(KEY).await,
                // Whoever was first has made the keys; ours of this try are forgotten.
                Err(StoreError::Conflict { .. }) => continue,
                Err(error) => return Err(error.into()),
            }
        }
        take(vaults, keys, ring, now_ms).await;
        return Ok(());
    }
    Err(TicketsError::Conflicts)
}

async fn turn_alone(vaults: &Vaults, keys: &TicketKeys) {
    let now_ms = now_ms();
    take(vaults, keys, keys.ring().turned(now_ms, fresh), now_ms).await;
}

async fn take(vaults: &Vaults, keys: &TicketKeys, ring: Ring, now_ms: u64) {
    let is_news = ring != keys.ring();
    let text = print(&ring);
    keys.replace(ring, now_ms);
    if let Some(copy) = vaults.copy().filter(|_| is_news)
        && let Err(error) = copy.put(KEY, &text, Expected::Anything).await
    {
        tracing::warn!(%error, "after a restart without the store, sessions from before it are not resumed");
    }
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    keys: Vec<KeyRecord>,
}

#[derive(Serialize, Deserialize)]
struct KeyRecord {
    period: u64,
    id: String,
    secret: String,
}

async fn read(vault: &Vault) -> Result<(Ring, Expected), TicketsError> {
    let Some(stored) = vault.get(KEY).await? else { return Ok((Ring::default(), Expected::Absent)) };
    let ring = parse(&stored.bytes).ok_or(TicketsError::Document)?;
    Ok((ring, Expected::Version(stored.version)))
}

fn print(ring: &Ring) -> Vec<u8> {
    let record = |key: &TicketKey| KeyRecord {
        period: key.period,
        id: STANDARD.encode(key.id),
        secret: STANDARD.encode(key.secret),
    };
    let document = Document { version: VERSION, keys: ring.keys().iter().map(record).collect() };
    serde_json::to_vec(&document).expect("numbers and text become JSON")
}

/// `None` for what another build has written.
fn parse(bytes: &[u8]) -> Option<Ring> {
    let document: Document = serde_json::from_slice(bytes).ok()?;
    let key = |record: KeyRecord| {
        let id = STANDARD.decode(record.id).ok()?.try_into().ok()?;
        let secret = STANDARD.decode(record.secret).ok()?.try_into().ok()?;
        Some(TicketKey { period: record.period, id, secret })
    };
    let keys: Option<Vec<TicketKey>> = document.keys.into_iter().map(key).collect();
    keys.filter(|_| document.version == VERSION).map(Ring::new)
}

fn fresh(period: u64) -> TicketKey {
    let mut key = TicketKey { period, id: Default::default(), secret: Default::default() };
    let filled = rand::fill(&mut key.id).and_then(|()| rand::fill(&mut key.secret));
    filled.expect("the system gives random bytes, or there would be no TLS at all");
    key
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::config::{KeySource, SharedStore, StoreConfig};

    #[test]
    fn rings_print_what_they_parsed() {
        let ring = Ring::default().turned(now_ms(), fresh);
        assert_eq!(parse(&print(&ring)), Some(ring));
        for text in [
            &b""[..],
            b"{}",
            br#"{"version":2,"keys":[]}"#,
            br#"{"version":1,"keys":[{"period":1,"id":"AA==","secret":""}]}"#,
        ] {
            assert_eq!(parse(text), None, "{}", String::from_utf8_lossy(text));
        }
    }

    /// A VM of a fleet whose store is `shared`.
    fn vm(name: &str, dir: &Path, shared: &Path) -> (Vaults, TicketKeys) {
        let own = dir.join(name);
        std::fs::create_dir_all(&own).unwrap();
        let config = StoreConfig {
            shared: Some(SharedStore::Dir(shared.to_owned())),
            key: KeySource::OwnOf(dir.to_owned()),
            poll: Duration::from_secs(60),
            timeout: Duration::from_secs(10),
        };
        (Vaults::open(&config, &own).unwrap(), TicketKeys::default())
    }

    #[tokio::test]
    async fn vms_agree_part_and_agree_again() {
        let dir = tempfile::tempdir().unwrap();
        let (shared, away) = (dir.path().join("shared"), dir.path().join("away"));
        std::fs::create_dir(&shared).unwrap();
        let (one, two) = (vm("one", dir.path(), &shared), vm("two", dir.path(), &shared));
        let join = async |vm: &(Vaults, TicketKeys)| join(&vm.0, &vm.1).await;
        join(&one).await.unwrap();
        join(&two).await.unwrap();
        assert_eq!(one.1.ring(), two.1.ring());
        assert_eq!(one.1.ring().keys().len(), 2, "the second one made none");

        // The store is away: a third one makes keys of its own, the others go on.
        std::fs::rename(&shared, &away).unwrap();
        let three = vm("three", dir.path(), &shared);
        for vm in [&one, &three] {
            assert!(join(vm).await.is_err());
            turn_alone(&vm.0, &vm.1).await;
        }
        assert_eq!(one.1.ring(), two.1.ring());
        assert!(three.1.ring().keys().iter().all(|key| !one.1.ring().keys().contains(key)));
        let again = vm("three", dir.path(), &shared);
        restore(&again.0, &again.1).await;
        assert_eq!(again.1.ring(), three.1.ring(), "after a restart");

        std::fs::rename(&away, &shared).unwrap();
        for vm in [&three, &one, &two] {
            join(vm).await.unwrap();
        }
        assert_eq!(one.1.ring().keys().len(), 4);
        assert!(one.1.ring() == two.1.ring() && two.1.ring() == three.1.ring());
    }
}
