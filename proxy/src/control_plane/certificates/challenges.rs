//! TLS-ALPN-01: what a handshake of an authority is shown, on whichever VM it arrives (RFC 8737).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::name::HostName;
use rustls::sign::CertifiedKey;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::shelf::Shelf;
use crate::adapters::acme;
use crate::adapters::store::StoreError;
use crate::certificate_asks::CertificateAsk;

/// Longer than any order takes; what is left of a VM that died is gone then.
const TTL: Duration = Duration::from_secs(900);
/// Asks that look into the store at a time.
const LOOKING_MAX: usize = 16;

/// The open challenges: our own at hand, those of other VMs in the store.
#[derive(Clone)]
pub struct Board {
    own: Arc<Mutex<HashMap<HostName, String>>>,
    shelf: Shelf,
}

impl Board {
    pub fn new(shelf: Shelf) -> Self {
        Self { own: Arc::default(), shelf }
    }

    /// Returns once every VM can answer.
    pub async fn put_up(&self, host: &HostName, key_authorization: &str) -> Result<(), StoreError> {
        self.lock().insert(host.clone(), key_authorization.to_owned());
        if !self.shelf.is_shared() {
            return Ok(());
        }
        self.shelf.store().put_expiring(&key(host), key_authorization.as_bytes(), TTL).await
    }

    pub async fn take_down(&self, hosts: &[HostName]) {
        for host in hosts {
            let was_up = self.lock().remove(host).is_some();
            if was_up && self.shelf.is_shared() {
                // It goes by itself, later.
                let _ = self.shelf.store().delete(&key(host)).await;
            }
        }
    }

    async fn certificate(&self, host: &HostName) -> Option<Arc<CertifiedKey>> {
        let own = self.lock().get(host).cloned();
        let answer = match own {
            Some(answer) => answer,
            None if self.shelf.is_shared() => {
                let stored = self.shelf.store().get(&key(host)).await.ok()??;
                String::from_utf8(stored.bytes).ok()?
            }
            None => return None,
        };
        acme::challenge_certificate(host, &answer).ok()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<HostName, String>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(host: &HostName) -> String {
    format!("challenges/{host}")
}

/// Answers handshakes until `shutdown`.
pub async fn answer(board: Board, mut asks: mpsc::Receiver<CertificateAsk>, shutdown: CancellationToken) {
    let looking = TaskTracker::new();
    while let Some(Some(ask)) = shutdown.run_until_cancelled(asks.recv()).await {
        // Strangers can ask for any name; whoever is beyond the limit gets none.
        if ask.answer.is_closed() || looking.len() >= LOOKING_MAX {
            continue;
        }
        let board = board.clone();
        looking.spawn(async move {
            let found = board.certificate(&ask.name).await;
            // The handshake may have ended meanwhile.
            let _ = ask.answer.send(found);
        });
    }
}
