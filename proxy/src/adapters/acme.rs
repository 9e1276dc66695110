//! Certificate authorities that speak ACME (RFC 8555), by way of `instant-acme`.
//!
//! A client holds an account at one authority. An order has two steps: [`Client::begin`] makes it, and whoever has
//! kept what that returned can [`Client::finish`] it, even after this process has died. When to order, at which
//! authority, and what becomes of the certificate is decided by the control plane.

mod account;
mod alpn;
mod error;
mod http;
mod issued;
mod order;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::{Account, CertificateIdentifier, RevocationReason, RevocationRequest};
use model::name::HostName;
use model::renewal::{CertificateId, Window};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

pub use self::account::{AccountKey, InvalidAccountKey};
pub use self::alpn::{challenge_certificate, challenge_host};
pub use self::error::{AcmeError, Refusal, Subproblem};
use self::http::Http;
pub use self::issued::{Issued, SecretPem, UnusableCertificate, certified};
pub use self::order::{Begun, Challenge, Wanted};
use crate::config::Authority;

/// How often a step is tried whose nonce was refused. A busy authority behind a balancer refuses some; `instant-acme`
/// gives up after three in a row.
const NONCES_MAX: u32 = 12;

/// Repeats a step of `instant-acme` until its nonce is taken. Nothing has happened at the authority when it was not.
macro_rules! patiently {
    ($step:expr) => {{
        let mut left = $crate::adapters::acme::NONCES_MAX;
        loop {
            match $step {
                Err(error) if left > 0 && $crate::adapters::acme::error::is_bad_nonce(&error) => left -= 1,
                done => break done.map_err($crate::adapters::acme::AcmeError::from),
            }
        }
    }};
}
use patiently;

/// An account at one authority. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    account: Account,
    authority: Arc<Authority>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("account", &self.account_url()).finish_non_exhaustive()
    }
}

/// When the authority would like a certificate to be renewed (RFC 9773).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenewalInfo {
    pub window: Window,
    /// When to ask again.
    pub retry_after: Duration,
    /// Where the authority says why.
    pub explanation: Option<String>,
}

impl Client {
    /// Finds the account of this key at the authority, or registers it.
    ///
    /// [`AcmeError::Account`] says that the authority will not have this key: another one is needed.
    pub async fn open(authority: &Authority, key: &AccountKey) -> Result<Self, AcmeError> {
        let http = Http::new(authority)?;
        let registered = account::register(&http, authority, key).await?;
        let builder = Account::builder_with_http(Box::new(http));
        let opened = builder.from_parts(registered.url, key.pkcs8(), authority.directory.clone()).await;
        let client = Self { account: opened?, authority: Arc::new(authority.clone()) };
        if registered.wants_new_contact {
            let contact: Vec<&str> = authority.contact.iter().map(String::as_str).collect();
            patiently!(client.account.update_contacts(&contact).await)?;
        }
        Ok(client)
    }

    /// The authority's directory.
    pub fn directory(&self) -> &str {
        &self.authority.directory
    }

    /// Names the account at the authority, as its support and CAA's `accounturi` do (RFC 8657).
    pub fn account_url(&self) -> &str {
        self.account.id()
    }

    /// `None` where the authority has no opinion.
    pub async fn renewal_info(&self, id: &CertificateId) -> Result<Option<RenewalInfo>, AcmeError> {
        let Some((authority_key, serial)) = id.as_str().split_once('.') else { return Ok(None) };
        let id =
            CertificateIdentifier { authority_key_identifier: authority_key.into(), serial: serial.into() };
        let (info, retry_after) = match self.account.renewal_info(&id).await {
            Ok(told) => told,
            Err(instant_acme::Error::Unsupported(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let ms = |time: time::OffsetDateTime| u64::try_from(time.unix_timestamp_nanos() / 1_000_000);
        let window = info.suggested_window;
        let (Ok(start_ms), Ok(end_ms)) = (ms(window.start), ms(window.end)) else { return Ok(None) };
        // RFC 9773 §4.2: a window that ends before it starts is to be taken for none.
        let Some(window) = Window::new(start_ms, end_ms) else { return Ok(None) };
        let explanation = info.explanation_url.map(|url| error::words(&url));
        Ok(Some(RenewalInfo { window, retry_after, explanation }))
    }

    /// Revokes the first certificate of the chain. `compromised`: its key is known to others.
    pub async fn revoke(&self, chain_pem: &str, compromised: bool) -> Result<(), AcmeError> {
        let certificate = CertificateDer::from_pem_slice(chain_pem.as_bytes())
            .map_err(|error| AcmeError::Unusable(format!("no certificate to revoke: {error}")))?;
        let reason =
            if compromised { RevocationReason::KeyCompromise } else { RevocationReason::Unspecified };
        let request = RevocationRequest { certificate: &certificate, reason: Some(reason) };
        match patiently!(self.account.revoke(&request).await) {
            // What is revoked stays revoked.
            Err(AcmeError::Refused(refusal)) if refusal.is("alreadyRevoked") => Ok(()),
            other => other,
        }
    }
}

/// As identifiers have it: without the brackets of an IPv6 literal.
fn identifier(host: &HostName) -> &str {
    host.as_str().trim_matches(['[', ']'])
}
