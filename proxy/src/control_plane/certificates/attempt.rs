//! One attempt to have a certificate issued: by one VM of a fleet, with every step written down before the next one, so
//! that whoever comes after a crash goes on with the same order.

use std::sync::Arc;
use std::time::Duration;

use model::certificate::{CertificateName, WantedCertificate};
use model::issuing;
use model::renewal::Window;

use super::challenges::Board;
use super::document::{Document, Failure, Issued, Pending};
use super::shelf::{Shelf, ShelfError, cause};
use crate::adapters::acme::{self, AccountKey, AcmeError, Client};
use crate::adapters::store::{Lease, StoreError};
use crate::config::{Acme, Authority, ChallengeKind};

/// A VM that dies holds the others up for so long.
pub const LEASE: Duration = Duration::from_secs(30);
/// A certificate is kept for the store, if that is away when it comes.
const SAVE_TIMEOUT: Duration = Duration::from_secs(10);
const SAVE_PAUSE: Duration = Duration::from_secs(1);

pub struct Attempt {
    pub shelf: Shelf,
    pub authorities: Arc<Acme>,
    pub account: Arc<AccountKey>,
    pub board: Board,
    pub name: CertificateName,
    pub wanted: WantedCertificate,
    /// As this VM knows it.
    pub document: Document,
    /// When the authority says that it should be renewed.
    pub window: Option<Window>,
    /// Due or not.
    pub is_forced: bool,
    /// This process, and no other.
    pub owner: Arc<str>,
    pub now_ms: fn() -> u64,
}

#[derive(Debug)]
pub enum Outcome {
    /// Issued, and in the store.
    Issued(Document),
    /// Issued, and the store could not be told.
    Unsaved(Document, String),
    /// The store had a later one already.
    Taken(Document),
    /// Another VM does it.
    Held(String),
    /// The authority, or what it has to see, is at fault.
    Failed(Document, AcmeError),
    /// Nobody was asked.
    Hindered(String),
}

/// Why an order did not come to its end.
enum Stopped {
    Authority(issuing::Authority, AcmeError),
    /// Nothing may go on that is not written down.
    Store(ShelfError),
}

impl From<ShelfError> for Stopped {
    fn from(error: ShelfError) -> Self {
        Self::Store(error)
    }
}

/// The same, of an order whose authority is clear.
enum OrderStopped {
    Authority(AcmeError),
    Store(ShelfError),
}

impl From<AcmeError> for OrderStopped {
    fn from(error: AcmeError) -> Self {
        Self::Authority(error)
    }
}

impl From<ShelfError> for OrderStopped {
    fn from(error: ShelfError) -> Self {
        Self::Store(error)
    }
}

/// Whom there is to ask for what is `wanted`. A trial asks the staging area in place of all others.
pub fn known(authorities: &Acme, wanted: &WantedCertificate) -> issuing::Authorities {
    if wanted.staging {
        return issuing::Authorities::default();
    }
    issuing::Authorities { staging: authorities.staging.is_some(), fallbacks: authorities.fallback.len() }
}

fn authority<'a>(authorities: &'a Acme, wanted: &WantedCertificate, at: issuing::Authority) -> &'a Authority {
    let production = &authorities.production;
    let staging = authorities.staging.as_ref().unwrap_or(production);
    match at {
        issuing::Authority::Production if wanted.staging => staging,
        issuing::Authority::Production => production,
        issuing::Authority::Staging => staging,
        issuing::Authority::Fallback(n) => authorities.fallback.get(n).unwrap_or(production),
    }
}

impl Attempt {
    pub async fn run(self) -> Outcome {
        let store = self.shelf.store();
        let lease = match store.acquire(self.name.as_str(), &self.owner, LEASE).await {
            Ok(Some(lease)) => lease,
            Ok(None) => return Outcome::Held(self.holder().await),
            Err(error) => return hindered(&error),
        };
        let outcome = self.hold(&lease).await;
        // Where that fails it ends by itself.
        let _ = store.release(lease).await;
        if matches!(outcome, Outcome::Issued(_) | Outcome::Failed(..)) {
            store.notify("certificates").await;
        }
        outcome
    }

    async fn holder(&self) -> String {
        let holder = self.shelf.store().holder(self.name.as_str()).await.ok().flatten();
        let machine = holder.as_deref().and_then(|owner| owner.split('/').next());
        machine.unwrap_or("another VM").to_owned()
    }

    /// Works for as long as the lease is ours.
    async fn hold(&self, lease: &Lease) -> Outcome {
        let kept = async {
            loop {
                tokio::time::sleep(LEASE / 3).await;
                // While the store is away nobody else can take it either.
                if let Ok(false) = self.shelf.store().renew(lease).await {
                    break;
                }
            }
        };
        tokio::select! {
            outcome = Box::pin(self.work(lease)) => outcome,
            () = kept => Outcome::Hindered("another VM has taken over".to_owned()),
        }
    }

    async fn work(&self, lease: &Lease) -> Outcome {
        let mut document = match self.shelf.read(&self.name).await {
            Ok(found) => found.unwrap_or_default(),
            Err(error) => return hindered(&error),
        };
        // The store was away when it came, or has lost it.
        if self.document.is_newer_than(&document) {
            document = self.document.clone();
            if let Err(error) = self.shelf.write(lease, &self.name, &document).await {
                return hindered(&error);
            }
        }
        if !self.is_needed(&document) {
            return Outcome::Taken(document);
        }
        match self.order(lease, &mut document).await {
            Ok(issued) => self.save(lease, Document::of(issued, document.attempts)).await,
            Err(Stopped::Store(error)) => hindered(&error),
            Err(Stopped::Authority(at, error)) => self.fail(lease, document, at, error).await,
        }
    }

    /// Whether what the store has still leaves something to do.
    fn is_needed(&self, document: &Document) -> bool {
        let at_ms = |document: &Document| document.issued.as_ref().map(|issued| issued.at_ms);
        if self.is_forced {
            return at_ms(document) == at_ms(&self.document);
        }
        let now_ms = (self.now_ms)();
        document.due_ms(Some(&self.wanted), self.window) <= now_ms
            && document.next(known(&self.authorities, &self.wanted), now_ms).at_ms <= now_ms
    }

    async fn order(&self, lease: &Lease, document: &mut Document) -> Result<Issued, Stopped> {
        let next = |document: &Document| {
            document.next(known(&self.authorities, &self.wanted), (self.now_ms)()).authority
        };
        if self.is_forced {
            document.attempts.hurry();
        }
        let mut at = next(document);
        if at == issuing::Authority::Staging {
            self.rehearse(document).await.map_err(|error| Stopped::Authority(at, error))?;
            document.attempts.rehearsed((self.now_ms)());
            self.shelf.write(lease, &self.name, document).await?;
            at = next(document);
        }
        let authority = authority(&self.authorities, &self.wanted, at);
        self.order_at(lease, document, authority).await.map_err(|stopped| match stopped {
            OrderStopped::Authority(error) => Stopped::Authority(at, error),
            OrderStopped::Store(error) => Stopped::Store(error),
        })
    }

    /// After a refusal, the staging area is asked first: what it issues is for nobody, but what it refuses costs nothing.
    async fn rehearse(&self, document: &Document) -> Result<(), AcmeError> {
        let authority = authority(&self.authorities, &self.wanted, issuing::Authority::Staging);
        let client = Client::open(authority, &self.account).await?;
        let wanted = self.wanted_of(authority, document);
        let begun = client.begin(&wanted).await?;
        self.finish(&client, &wanted, &begun).await.map(drop)
    }

    async fn order_at(
        &self,
        lease: &Lease,
        document: &mut Document,
        authority: &Authority,
    ) -> Result<Issued, OrderStopped> {
        let client = Client::open(authority, &self.account).await?;
        let wanted = self.wanted_of(authority, document);
        if let Some(pending) = document.pending.clone().filter(|one| one.is_for(&self.wanted, authority)) {
            match self.finish(&client, &wanted, &pending.begun).await {
                Err(AcmeError::Gone(_)) => {}
                finished => return Ok(self.issued(authority, finished?)),
            }
        }
        let begun = client.begin(&wanted).await?;
        let hosts = self.wanted.hosts.iter().map(ToString::to_string).collect();
        document.pending =
            Some(Pending { begun: begun.clone(), directory: authority.directory.clone(), hosts });
        self.shelf.write(lease, &self.name, document).await?;
        let finished = self.finish(&client, &wanted, &begun).await?;
        Ok(self.issued(authority, finished))
    }

    async fn finish(
        &self,
        client: &Client,
        wanted: &acme::Wanted,
        begun: &acme::Begun,
    ) -> Result<acme::Issued, AcmeError> {
        let ready = |challenge: acme::Challenge| async move {
            match challenge.kind {
                // Any VM answers it, with what it knows already.
                ChallengeKind::Http01 => Ok(()),
                ChallengeKind::TlsAlpn01 => {
                    self.board.put_up(&challenge.host, &challenge.key_authorization).await
                }
            }
        };
        let finished = client.finish(wanted, begun, ready).await;
        self.board.take_down(&wanted.hosts).await;
        finished
    }

    fn wanted_of(&self, authority: &Authority, document: &Document) -> acme::Wanted {
        let current = document.issued.as_ref().filter(|issued| issued.directory == authority.directory);
        let kinds = &self.authorities.challenges;
        acme::Wanted {
            hosts: self.wanted.hosts.clone(),
            replaces: current.and_then(|issued| issued.id.clone()),
            // Where one way did not work, the other one may.
            challenge: kinds[document.attempts.failures as usize % kinds.len()],
        }
    }

    fn issued(&self, authority: &Authority, issued: acme::Issued) -> Issued {
        Issued {
            hosts: self.wanted.hosts.iter().map(ToString::to_string).collect(),
            chain_pem: issued.chain_pem,
            key_pem: issued.key_pem,
            not_before_ms: issued.not_before_ms,
            not_after_ms: issued.not_after_ms,
            at_ms: (self.now_ms)(),
            directory: authority.directory.clone(),
            staging: self.wanted.staging,
            id: issued.id,
            revoked: false,
        }
    }

    async fn save(&self, lease: &Lease, document: Document) -> Outcome {
        // First here: what is issued must not be lost, whatever happens to the store.
        self.shelf.keep(&self.name, &document).await;
        let deadline = tokio::time::Instant::now() + SAVE_TIMEOUT;
        loop {
            match self.shelf.write(lease, &self.name, &document).await {
                Ok(()) => return Outcome::Issued(document),
                Err(error) if tokio::time::Instant::now() >= deadline => {
                    return Outcome::Unsaved(document, said(&error));
                }
                // Another VM has the lease, and what it wrote is as good.
                Err(ShelfError::Store(error @ StoreError::Fenced { .. })) => {
                    return Outcome::Unsaved(document, said(&error));
                }
                Err(_) => tokio::time::sleep(SAVE_PAUSE).await,
            }
        }
    }

    async fn fail(
        &self,
        lease: &Lease,
        mut document: Document,
        at: issuing::Authority,
        error: AcmeError,
    ) -> Outcome {
        if at != issuing::Authority::Staging && error.ends_the_order() {
            document.pending = None;
        }
        let now_ms = (self.now_ms)();
        document.attempts.failed(self.name.as_str(), at, error.failure(), error.retry_after(), now_ms);
        document.failure = Some(Failure { at_ms: now_ms, message: error.to_string() });
        // The next attempt reads it again; where the store is away, this VM at least knows.
        if let Err(unsaved) = self.shelf.write(lease, &self.name, &document).await {
            tracing::warn!(name = %self.name, cause = cause(&unsaved), "the store does not know of a failure: {unsaved}");
        }
        Outcome::Failed(document, error)
    }
}

fn hindered(error: &(dyn std::error::Error + 'static)) -> Outcome {
    Outcome::Hindered(said(error))
}

pub fn said(error: &(dyn std::error::Error + 'static)) -> String {
    match cause(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
