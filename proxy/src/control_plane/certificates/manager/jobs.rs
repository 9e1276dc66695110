//! What takes the manager's time elsewhere: the store, and questions to authorities beside orders.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::certificate::CertificateName;
use model::renewal::{self, CertificateId, Window};

use super::super::attempt::Outcome;
use super::super::document::{Document, Failure};
use super::super::shelf::{Shelf, ShelfError, cause};
use super::{Manager, STORE_PAUSE_MS};
use crate::adapters::acme::{AccountKey, AcmeError, Client};
use crate::adapters::store::{Expected, StoreError};
use crate::config::Authority;

/// In the store, and copied to each VM: the thumbprint in every answer to a challenge is its.
const ACCOUNT: &str = "account";
/// An authority that refuses every account gets a new one so often and no more.
const REPLACE_PAUSE_MS: u64 = 6 * 60 * 60 * 1000;
/// After an authority said that it has no window.
const NO_WINDOW_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);
/// After an authority did not answer.
const WINDOW_RETRY: Duration = Duration::from_secs(60 * 60);

/// A job that has ended.
pub enum Job {
    Attempted(CertificateName, Box<Outcome>),
    Looked(Vec<(CertificateName, Result<Option<Document>, ShelfError>)>),
    Account(Result<Arc<AccountKey>, String>),
    Windows(Vec<(CertificateName, Told)>),
    Revoked(CertificateName, Option<Box<Document>>),
    Kept,
}

/// What an authority says of when to renew, and when it may be asked again.
pub struct Told {
    window: Option<Window>,
    again: Duration,
}

impl Manager {
    pub fn end(&mut self, job: Job) {
        match job {
            Job::Attempted(name, outcome) => self.ended(&name, *outcome),
            Job::Looked(found) => self.looked(found),
            Job::Account(account) => self.have_account(account),
            Job::Windows(told) => self.windows(told),
            Job::Revoked(name, document) => self.revoked(&name, document),
            Job::Kept => {}
        }
    }

    /// Looks into the store for what is there of the certificates that are wanted.
    pub fn look(&mut self) {
        if self.is_looking {
            self.looks_again = true;
            return;
        }
        self.is_looking = true;
        let (shelf, names) = (self.parts.shelf.clone(), self.entries.keys().cloned().collect::<Vec<_>>());
        self.jobs.spawn(async move {
            let mut found = Vec::with_capacity(names.len());
            for name in names {
                let read = shelf.read(&name).await;
                // One that is away stays away for the others, each with its own deadline.
                let is_outage = matches!(&read, Err(ShelfError::Store(error)) if error.is_outage());
                found.push((name, read));
                if is_outage {
                    break;
                }
            }
            Job::Looked(found)
        });
        if self.parts.shelf.is_shared() && self.account.is_some() {
            self.ask_for_account(None);
        }
    }

    fn looked(&mut self, found: Vec<(CertificateName, Result<Option<Document>, ShelfError>)>) {
        self.is_looking = false;
        for (name, read) in found {
            let Some(entry) = self.entries.get_mut(&name) else { continue };
            if entry.is_under_way {
                continue;
            }
            match read {
                Ok(found) => {
                    let stored = found.unwrap_or_default();
                    if stored.is_newer_than(&entry.document) {
                        self.take(&name, stored);
                    } else if entry.document.is_newer_than(&stored) {
                        // The store has lost it, or was away when it came.
                        entry.is_unsaved = true;
                    }
                }
                Err(ShelfError::Store(error)) if error.is_outage() => {
                    tracing::warn!(cause = cause(&error), "{error}; what is loaded goes on serving");
                }
                Err(error) => {
                    let at_ms = (self.parts.now_ms)();
                    let message = super::super::attempt::said(&error);
                    if entry.hindrance.as_ref().is_none_or(|known| known.message != message) {
                        tracing::error!(%name, "{message}");
                    }
                    entry.hindrance = Some(Failure { at_ms, message });
                }
            }
        }
        if std::mem::take(&mut self.looks_again) {
            self.look();
        }
    }

    /// Looks for the account in the store, and makes one if there is none. `refused`: thumbprint of one that is of no
    /// use any more.
    pub fn ask_for_account(&mut self, refused: Option<String>) {
        let shelf = self.parts.shelf.clone();
        self.jobs.spawn(async move { Job::Account(account(&shelf, refused).await) });
    }

    fn have_account(&mut self, account: Result<Arc<AccountKey>, String>) {
        let now_ms = self.now_ms();
        match account {
            Ok(account) => {
                self.account_failure = None;
                self.account = Some(account);
            }
            Err(why) => {
                if self.account_failure.as_ref() != Some(&why) {
                    tracing::warn!(why, "the account for certificate authorities is not at hand");
                }
                self.account_at_ms = Some(now_ms + STORE_PAUSE_MS);
                if self.account.is_none() {
                    for entry in self.entries.values_mut().filter(|entry| entry.wanted.is_some()) {
                        entry.hindrance = Some(Failure { at_ms: now_ms, message: why.clone() });
                    }
                }
                self.account_failure = Some(why);
            }
        }
    }

    /// An account that the authority does not know any more is made anew.
    pub fn doubt_account(&mut self, name: &CertificateName, error: &AcmeError) {
        let now_ms = self.now_ms();
        let is_time = now_ms.saturating_sub(self.account_replaced_ms) >= REPLACE_PAUSE_MS;
        if !matches!(error, AcmeError::Account(_)) || !is_time {
            return;
        }
        let Some(refused) = self.account.take() else { return };
        self.account_replaced_ms = now_ms;
        if let Some(entry) = self.entries.get_mut(name) {
            // The back-off was for the old one.
            entry.is_forced = true;
        }
        let message = "the authority does not accept our account any more; a new one is made".to_owned();
        self.record(name, "account replaced", message);
        self.ask_for_account(Some(refused.thumbprint().to_owned()));
    }

    /// Asks authorities when the certificates should be renewed (RFC 9773).
    pub fn ask_for_windows(&mut self, account: &Arc<AccountKey>, now_ms: u64) {
        let Some(authorities) = self.parts.authorities.clone() else { return };
        let mut asked: BTreeMap<String, Vec<(CertificateName, CertificateId)>> = BTreeMap::new();
        for (name, entry) in &mut self.entries {
            if entry.ask_at_ms().is_none_or(|at_ms| at_ms > now_ms) {
                continue;
            }
            // Until the answer comes; without one, then.
            entry.ask_window_ms = now_ms + ms(WINDOW_RETRY);
            let issued = entry.issued();
            if let Some((directory, id)) =
                issued.and_then(|one| Some((one.directory.clone(), one.id.clone()?)))
            {
                asked.entry(directory).or_default().push((name.clone(), id));
            }
        }
        for (directory, certificates) in asked {
            let Some(authority) = authorities.find(&directory).cloned() else { continue };
            let account = Arc::clone(account);
            self.jobs.spawn(async move { Job::Windows(windows(&authority, &account, certificates).await) });
        }
    }

    fn windows(&mut self, told: Vec<(CertificateName, Told)>) {
        let now_ms = self.now_ms();
        for (name, Told { window, again }) in told {
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.window = window;
                entry.ask_window_ms = renewal::ask_again_ms(now_ms, again);
            }
        }
    }

    fn revoked(&mut self, name: &CertificateName, document: Option<Box<Document>>) {
        self.attempts -= 1;
        if let Some(entry) = self.entries.get_mut(name) {
            entry.is_under_way = false;
            if let Some(document) = document {
                entry.not_before_ms = 0;
                entry.take(name, *document);
            }
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn account(shelf: &Shelf, refused: Option<String>) -> Result<Arc<AccountKey>, String> {
    let said = |error: &dyn std::error::Error| match cause(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    let parse = |bytes: &[u8]| AccountKey::from_pkcs8(bytes).map_err(|error| said(&error));
    // Each turn, another VM was faster.
    for _ in 0..8 {
        let stored = shelf.store().get(ACCOUNT).await.map_err(|error| said(&error))?;
        let expected = match stored {
            Some(stored) => {
                let key = parse(&stored.bytes)?;
                if refused.as_deref() != Some(key.thumbprint()) {
                    shelf.keep_copy(ACCOUNT, &stored.bytes).await;
                    return Ok(Arc::new(key));
                }
                Expected::Version(stored.version)
            }
            None => Expected::Absent,
        };
        // A store that has lost it gets back what this VM knows.
        let copy = shelf.copy_of(ACCOUNT).await.ok().flatten();
        let known = copy.and_then(|bytes| AccountKey::from_pkcs8(&bytes).ok());
        let known = known.filter(|key| refused.as_deref() != Some(key.thumbprint()));
        let key = match known {
            Some(key) => key,
            None => AccountKey::generate().map_err(|error| said(&error))?,
        };
        match shelf.store().put(ACCOUNT, key.to_pkcs8(), expected).await {
            Ok(_) => {
                shelf.keep_copy(ACCOUNT, key.to_pkcs8()).await;
                return Ok(Arc::new(key));
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(said(&error)),
        }
    }
    Err("other VMs go on changing the account in the store".to_owned())
}

/// The account as this VM last knew it.
pub async fn account_at_hand(shelf: &Shelf) -> Option<Arc<AccountKey>> {
    match shelf.copy_of(ACCOUNT).await {
        Ok(found) => found.and_then(|bytes| AccountKey::from_pkcs8(&bytes).ok()).map(Arc::new),
        Err(error) => {
            tracing::error!(cause = cause(&error), "the account on this VM cannot be used: {error}");
            None
        }
    }
}

async fn windows(
    authority: &Authority,
    account: &AccountKey,
    certificates: Vec<(CertificateName, CertificateId)>,
) -> Vec<(CertificateName, Told)> {
    let mut told = Vec::new();
    let client = match Client::open(authority, account).await {
        Ok(client) => client,
        Err(error) => {
            tracing::info!(authority = authority.directory, "no renewal information: {error}");
            return told;
        }
    };
    for (name, id) in certificates {
        match client.renewal_info(&id).await {
            Ok(Some(info)) => {
                told.push((name, Told { window: Some(info.window), again: info.retry_after }));
            }
            Ok(None) => told.push((name, Told { window: None, again: NO_WINDOW_PAUSE })),
            // What was said before stays true for now.
            Err(error) => tracing::info!(%name, "no renewal information: {error}"),
        }
    }
    told
}
