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
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

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

/// What the first certificate of a chain says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub not_before_ms: u64,
    pub not_after_ms: u64,
    pub id: Option<CertificateId>,
    /// DNS names and addresses.
    pub names: Vec<String>,
    /// The common name of who signed it, or the whole name.
    pub issuer: String,
    /// In hexadecimal.
    pub serial: String,
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

pub fn facts(chain_pem: &str) -> Result<Facts, UnusableCertificate> {
    let unusable = |why: &dyn fmt::Display| UnusableCertificate(format!("it cannot be read: {why}"));
    let der = CertificateDer::from_pem_slice(chain_pem.as_bytes()).map_err(|error| unusable(&error))?;
    let (_, parsed) = parse_x509_certificate(&der).map_err(|error| unusable(&error))?;
    let ms = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0) * 1000;
    let names = parsed.subject_alternative_name().map_err(|error| unusable(&error))?;
    let names = names.into_iter().flat_map(|names| &names.value.general_names);
    let issuer = parsed.issuer().iter_common_name().next().and_then(|name| name.as_str().ok());
    Ok(Facts {
        not_before_ms: ms(parsed.validity().not_before),
        not_after_ms: ms(parsed.validity().not_after),
        id: CertificateIdentifier::try_from(&der).ok().map(|id| CertificateId::new(id.to_string())),
        names: names.filter_map(name).collect(),
        issuer: issuer.map_or_else(|| parsed.issuer().to_string(), str::to_owned),
        serial: parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| std::net::IpAddr::from(bytes).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::IpAddr::from(bytes).to_string()),
            _ => None,
        },
        _ => None,
    }
}
