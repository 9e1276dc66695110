//! What the manager knows of one certificate, and what follows from it: when to act, and what people are told.

use std::sync::Arc;

use model::certificate::{CertificateName, WantedCertificate};
use model::protocol::{CertificateFailure, CertificateState, CertificateStatus};
use model::renewal::Window;
use rustls::sign::CertifiedKey;

use super::document::{Document, Failure, Issued};
use super::handle::Known;
use super::managed::ManagedCertificate;
use crate::config::Acme;

#[derive(Default)]
pub struct Entry {
    /// `None`: no service wants it; it is kept, and left to end.
    pub wanted: Option<WantedCertificate>,
    pub document: Document,
    /// Of the document.
    pub certified: Option<Arc<CertifiedKey>>,
    pub is_under_way: bool,
    /// Due now, whatever its dates say.
    pub is_forced: bool,
    /// An issued certificate that this VM alone has: the store was away when it came.
    pub is_unsaved: bool,
    /// Another VM has the lease.
    pub issued_by: Option<String>,
    /// Not before, for a reason that is this VM's alone (Unix time in ms).
    pub not_before_ms: u64,
    /// What keeps this VM from trying at all.
    pub hindrance: Option<Failure>,
    /// When the authority says that it should be renewed.
    pub window: Option<Window>,
    /// When the authority is to be asked for that (Unix time in ms).
    pub ask_window_ms: u64,
    /// Attempts that have come to their end.
    pub ended: u64,
}

impl Entry {
    /// Takes over a document; a certificate that cannot be used is as good as none.
    pub fn take(&mut self, name: &CertificateName, document: Document) {
        let before = self.document.issued.as_ref().map(|issued| &issued.chain_pem);
        let now = document.issued.as_ref().map(|issued| &issued.chain_pem);
        if before != now || self.certified.is_none() {
            (self.window, self.ask_window_ms) = (None, 0);
            self.certified = document.issued.as_ref().and_then(|issued| match issued.certified() {
                Ok(certified) => Some(certified),
                Err(error) => {
                    tracing::error!(%name, cause = super::shelf::cause(&error), "the certificate in the store cannot be used: {error}");
                    None
                }
            });
        }
        self.document = document;
    }

    /// What serves now, if it is any good.
    pub fn issued(&self) -> Option<&Issued> {
        self.certified.as_ref().and(self.document.issued.as_ref())
    }

    pub fn managed(&self) -> Option<ManagedCertificate> {
        let issued = self.issued()?;
        Some(ManagedCertificate {
            hosts: issued.patterns(),
            certified: Arc::clone(self.certified.as_ref()?),
            not_after_ms: issued.not_after_ms,
            directory: issued.directory.as_str().into(),
            staging: issued.staging,
        })
    }

    /// When it should be there anew: now if it is not what is wanted.
    pub fn renew_at_ms(&self) -> u64 {
        if self.issued().is_none() {
            return 0;
        }
        self.document.due_ms(self.wanted.as_ref(), self.window)
    }

    /// When the next attempt may begin; `None`: never, or it has begun.
    pub fn attempt_at_ms(&self, authorities: &Acme, now_ms: u64) -> Option<u64> {
        let wanted = self.wanted.as_ref().filter(|_| !self.is_under_way)?;
        if self.is_forced || self.is_unsaved {
            return Some(self.not_before_ms);
        }
        let next = self.document.next(super::attempt::known(authorities, wanted), now_ms);
        Some(self.renew_at_ms().max(next.at_ms).max(self.not_before_ms))
    }

    /// When the authority should be asked for its window; `None` where there is nothing to ask for.
    pub fn ask_at_ms(&self) -> Option<u64> {
        let issued = self.issued()?;
        let asks = self.wanted.is_some() && !self.is_under_way && issued.id.is_some();
        asks.then_some(self.ask_window_ms)
    }

    pub fn known(&self, name: &CertificateName, authorities: Option<&Acme>, now_ms: u64) -> Known {
        let is_on = authorities.is_some();
        let issued = self.issued();
        let failure = self.hindrance.as_ref().or(self.document.failure.as_ref());
        let state = match (issued.is_some(), self.is_under_way || self.issued_by.is_some()) {
            (false, true) => CertificateState::Issuing,
            (true, true) => CertificateState::Renewing,
            _ if failure.is_some() && self.wanted.is_some() => CertificateState::Failing,
            (true, false) => CertificateState::Valid,
            (false, false) if is_on => CertificateState::Issuing,
            (false, false) => CertificateState::Placeholder,
        };
        let hosts = match (&self.wanted, issued) {
            (_, Some(issued)) => issued.hosts.clone(),
            (Some(wanted), None) => wanted.hosts.iter().map(ToString::to_string).collect(),
            (None, None) => vec![name.to_string()],
        };
        let services = self.wanted.iter().flat_map(|wanted| &wanted.services).map(ToString::to_string);
        let renews = is_on && self.wanted.is_some();
        let attempts = self.document.attempts.failures;
        let told = failure.filter(|_| self.wanted.is_some()).map(|Failure { at_ms, message }| {
            CertificateFailure { at_ms: *at_ms, message: message.clone(), attempts: attempts.max(1) }
        });
        let is_failing = told.is_some() && renews;
        Known {
            status: CertificateStatus {
                state,
                source: issued.map(|issued| issued.directory.clone()),
                not_before_ms: issued.map(|issued| issued.not_before_ms),
                not_after_ms: issued.map(|issued| issued.not_after_ms),
                renew_at_ms: issued.filter(|_| renews).map(|_| self.renew_at_ms()),
                failure: told,
                next_attempt_ms: authorities
                    .filter(|_| is_failing)
                    .and_then(|authorities| self.attempt_at_ms(authorities, now_ms)),
                issued_by: self.issued_by.clone(),
                ..CertificateStatus::placeholder(name.to_string(), hosts, services.collect())
            },
            ended: self.ended,
        }
    }
}
