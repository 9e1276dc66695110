//! How the rest of the control plane reaches the manager of automatic certificates: what it knows, and what it is asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::Acme;
use model::certificate::CertificateName;
use model::protocol::{CertificateState, CertificateStatus, Problem, ProblemCode, RevocationReason};
use tokio::sync::{mpsc, oneshot, watch};

const REQUESTS_MAX: usize = 16;

/// What an operator asks the manager for.
pub enum Request {
    /// Have one issued now, due or not.
    Renew(CertificateName, oneshot::Sender<Result<(), Problem>>),
    /// Have it revoked, and another one issued.
    Revoke(CertificateName, RevocationReason, oneshot::Sender<Result<(), Problem>>),
    /// Look into the store: something was put there.
    Look,
}

/// What is known of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub status: CertificateStatus,
    /// Attempts of this process that have come to their end.
    pub ended: u64,
}

impl Known {
    /// Whether it is there, and shown to clients.
    pub fn serves(&self) -> bool {
        self.status.not_after_ms.is_some()
    }

    pub fn is_under_way(&self) -> bool {
        matches!(self.status.state, CertificateState::Issuing | CertificateState::Renewing)
    }
}

pub type AllKnown = Arc<BTreeMap<CertificateName, Known>>;

#[derive(Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    known: watch::Receiver<AllKnown>,
    /// `None`: nobody is asked for certificates.
    directory: Option<Arc<str>>,
    has_staging: bool,
}

/// The manager's side.
pub struct Desk {
    pub requests: mpsc::Receiver<Request>,
    pub known: watch::Sender<AllKnown>,
}

pub fn channel(authorities: Option<&Acme>) -> (Handle, Desk) {
    let (sender, requests) = mpsc::channel(REQUESTS_MAX);
    let (known, knowing) = watch::channel(AllKnown::default());
    let directory = authorities.map(|all| all.production.directory.as_str().into());
    let has_staging = authorities.is_some_and(|all| all.staging.is_some());
    (Handle { requests: sender, known: knowing, directory, has_staging }, Desk { requests, known })
}

impl Handle {
    pub fn directory(&self) -> Option<&str> {
        self.directory.as_deref()
    }

    pub fn is_on(&self) -> bool {
        self.directory.is_some()
    }

    pub fn has_staging(&self) -> bool {
        self.has_staging
    }

    /// What the manager knows now.
    pub fn known(&self) -> AllKnown {
        Arc::clone(&self.known.borrow())
    }

    /// For those who wait for changes.
    pub fn follow(&self) -> watch::Receiver<AllKnown> {
        self.known.clone()
    }

    pub async fn renew(&self, name: &CertificateName) -> Result<(), Problem> {
        self.ask(|answer| Request::Renew(name.clone(), answer)).await
    }

    pub async fn revoke(&self, name: &CertificateName, reason: RevocationReason) -> Result<(), Problem> {
        self.ask(|answer| Request::Revoke(name.clone(), reason, answer)).await
    }

    /// To be called after something was put into the store by other ways.
    pub async fn look(&self) {
        let _ = self.requests.send(Request::Look).await;
    }

    async fn ask(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<(), Problem>>) -> Request,
    ) -> Result<(), Problem> {
        let stopping =
            || Problem::new(ProblemCode::Aborted, "the daemon is shutting down; nothing was asked for");
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer)).await.map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())?
    }
}
