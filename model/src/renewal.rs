//! When a certificate is due.
//!
//! Where its authority tells when (ARI, RFC 9773), at a point in that window; otherwise when two thirds of its life
//! are over, or half of it if that is short. A fleet renews together what it holds together, so the point depends on
//! the certificate alone and is the same on every VM and after every restart.

use serde::{Deserialize, Serialize};

/// What an authority calls a certificate (RFC 9773 §4.1): who signed it, and its number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CertificateId(String);

impl CertificateId {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// When the authority would like a certificate to be renewed; never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    start_ms: u64,
    end_ms: u64,
}

impl Window {
    /// `None` where it ends before it starts.
    pub fn new(start_ms: u64, end_ms: u64) -> Option<Self> {
        (start_ms < end_ms).then_some(Self { start_ms, end_ms })
    }
}
