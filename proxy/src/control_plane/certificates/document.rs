//! A certificate as the store has it: what was issued with its key, and what was tried since. Every VM of a fleet reads
//! it, the one that holds the certificate's lease writes it.

use std::fmt;
use std::sync::Arc;

use model::certificate::WantedCertificate;
use model::issuing::{Attempts, Authorities, Next};
use model::name::{HostName, HostPattern};
use model::renewal::{self, CertificateId, Life, Window};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

use crate::adapters::acme::{self, Begun, SecretPem, UnusableCertificate};
use crate::config::Authority;

/// Of the documents that this build writes.
const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    version: u32,
    /// `None` until the first one is issued.
    pub issued: Option<Issued>,
    /// Since then, or from the beginning.
    #[serde(default)]
    pub attempts: Attempts,
    /// What went wrong last, for people.
    #[serde(default)]
    pub failure: Option<Failure>,
    /// An order that was begun, for whoever comes next.
    #[serde(default)]
    pub pending: Option<Pending>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    pub begun: Begun,
    /// Of the authority.
    pub directory: String,
    pub hosts: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// As patterns of hosts are written.
    pub hosts: Vec<String>,
    pub chain_pem: String,
    pub key_pem: SecretPem,
    /// Unix time in ms.
    pub not_before_ms: u64,
    /// Unix time in ms.
    pub not_after_ms: u64,
    /// When it was issued to us, Unix time in ms.
    pub at_ms: u64,
    /// Of the authority.
    pub directory: String,
    #[serde(default)]
    pub staging: bool,
    /// As renewal information calls it (RFC 9773 §4.1).
    #[serde(default)]
    pub id: Option<CertificateId>,
    /// The authority was told that it is not to be trusted.
    #[serde(default)]
    pub revoked: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Unix time in ms.
    pub at_ms: u64,
    pub message: String,
}

#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("it is no document of a certificate")]
    Parse(#[from] serde_json::Error),
    #[error("it is of version {0}, but this build reads at most {VERSION}; start the newer one")]
    TooNew(u32),
}

impl Default for Document {
    fn default() -> Self {
        Self { version: VERSION, issued: None, attempts: Attempts::default(), failure: None, pending: None }
    }
}

impl Document {
    /// Of a certificate that has just been issued, after these attempts.
    pub fn of(issued: Issued, mut attempts: Attempts) -> Self {
        attempts.succeeded();
        Self { issued: Some(issued), attempts, ..Self::default() }
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(bytes)?;
        if version > VERSION {
            return Err(DocumentError::TooNew(version));
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    pub fn print(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a document has text keys only")
    }

    /// When there should be another one: at once if this is not what is `wanted`.
    pub fn due_ms(&self, wanted: Option<&WantedCertificate>, window: Option<Window>) -> u64 {
        match &self.issued {
            Some(issued) if wanted.is_none_or(|wanted| issued.satisfies(wanted)) => {
                let seed = issued.id.as_ref().map_or(issued.chain_pem.as_str(), CertificateId::as_str);
                renewal::due_ms(issued.life(), window, seed)
            }
            _ => 0,
        }
    }

    /// Whom to ask for it, and from when on.
    pub fn next(&self, known: Authorities, now_ms: u64) -> Next {
        self.attempts.next(known, self.issued.as_ref().map(Issued::life), now_ms)
    }

    /// Which of two is the later one: by what was issued, then by what was tried.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        let age = |one: &Self| {
            let issued = one.issued.as_ref().map(|issued| (issued.at_ms, issued.revoked));
            (issued, one.failure.as_ref().map(|failure| failure.at_ms))
        };
        age(self) > age(other)
    }
}

impl Pending {
    /// Whether it leads to what is wanted.
    pub fn is_for(&self, wanted: &WantedCertificate, authority: &Authority) -> bool {
        self.directory == authority.directory
            && self.hosts.iter().map(String::as_str).eq(wanted.hosts.iter().map(HostName::as_str))
    }
}

impl Issued {
    /// For the handshake. Its key has to belong to it.
    pub fn certified(&self) -> Result<Arc<CertifiedKey>, UnusableCertificate> {
        acme::certified(&self.chain_pem, &self.key_pem)
    }

    pub fn life(&self) -> Life {
        Life { not_before_ms: self.not_before_ms, not_after_ms: self.not_after_ms }
    }

    pub fn patterns(&self) -> Vec<HostPattern> {
        self.hosts.iter().filter_map(|host| host.parse().ok()).collect()
    }

    /// Whether it is what is wanted, however long it lasts.
    pub fn satisfies(&self, wanted: &WantedCertificate) -> bool {
        let all = wanted.hosts.iter().all(|host| self.hosts.iter().any(|named| named == host.as_str()));
        all && self.staging == wanted.staging && !self.revoked
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("hosts", &self.hosts)
            .field("not_after_ms", &self.not_after_ms)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}
