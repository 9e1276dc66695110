//! A certificate as an authority hands it out, and what it says of itself.

use std::fmt;
use std::sync::Arc;

use instant_acme::CertificateIdentifier;
use model::renewal::CertificateId;
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

/// A private key. Never in `Debug`; serialised for the vault alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretPem(String);

impl SecretPem {
    pub fn new(pem: String) -> Self {
        Self(pem)
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretPem(..)")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate first, then what signed it.
    pub chain_pem: String,
    pub key_pem: SecretPem,
    pub not_before_ms: u64,
    pub not_after_ms: u64,
    /// `None` where the certificate does not say who signed it.
    pub id: Option<CertificateId>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnusableCertificate(String);

/// As rustls wants it; the key must be the certificate's.
pub fn certified(chain_pem: &str, key_pem: &SecretPem) -> Result<Arc<CertifiedKey>, UnusableCertificate> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect();
    let chain = chain.map_err(|error| UnusableCertificate(format!("its chain is no PEM: {error}")))?;
    if chain.is_empty() {
        return Err(UnusableCertificate("its chain is empty".to_owned()));
    }
    // What is wrong with a key is nobody's business.
    let key = PrivateKeyDer::from_pem_slice(key_pem.expose().as_bytes())
        .map_err(|_| UnusableCertificate("its key is no PEM".to_owned()))?;
    let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
    certified.map(Arc::new).map_err(|error| UnusableCertificate(error.to_string()))
}

/// What authorities know the certificate by (RFC 9773 §4.1); `None` where it does not say who signed it.
pub(super) fn id(certified: &CertifiedKey) -> Option<CertificateId> {
    let id = CertificateIdentifier::try_from(certified.cert.first()?).ok()?;
    Some(CertificateId::new(id.to_string()))
}
