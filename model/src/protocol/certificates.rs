//! Certificates on the wire: what there is, and what is asked for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Every certificate that the agent shows or waits for, as `agentctl certs list --json` prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Certificates {
    /// Of the authority that is asked first; `null`: automatic certificates are off.
    pub directory: Option<String>,
    /// By name.
    pub certificates: Vec<CertificateStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateStatus {
    /// Its first host; a wildcard's `*` is written `_`.
    pub name: String,
    pub hosts: Vec<String>,
    /// Whose hosts these are.
    pub services: Vec<String>,
    pub state: CertificateState,
    /// Directory of the authority that issued it, or the path of its file; `null`: a placeholder.
    #[serde(default)]
    pub source: Option<String>,
    /// Unix time in ms.
    #[serde(default)]
    pub not_before_ms: Option<u64>,
    /// Unix time in ms.
    #[serde(default)]
    pub not_after_ms: Option<u64>,
    /// When it is due to be issued again, Unix time in ms.
    #[serde(default)]
    pub renew_at_ms: Option<u64>,
    /// What went wrong last, if nothing has gone well since.
    #[serde(default)]
    pub failure: Option<CertificateFailure>,
    /// When the next attempt begins, Unix time in ms.
    #[serde(default)]
    pub next_attempt_ms: Option<u64>,
    /// Another VM that issues it at the moment.
    #[serde(default)]
    pub issued_by: Option<String>,
}

impl CertificateStatus {
    /// A placeholder for `hosts`.
    pub fn placeholder(name: String, hosts: Vec<String>, services: Vec<String>) -> Self {
        Self {
            name,
            hosts,
            services,
            state: CertificateState::Placeholder,
            source: None,
            not_before_ms: None,
            not_after_ms: None,
            renew_at_ms: None,
            failure: None,
            next_attempt_ms: None,
            issued_by: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CertificateState {
    /// Self-signed, because nobody is asked for a better one.
    Placeholder,
    /// Asked for; a placeholder serves meanwhile.
    Issuing,
    Valid,
    /// Asked for again; the present one serves meanwhile.
    Renewing,
    /// The last attempt failed; what there was serves.
    Failing,
    /// From files.
    Own,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateFailure {
    /// Unix time in ms.
    pub at_ms: u64,
    /// In the authority's words, where it said any.
    pub message: String,
    /// Attempts in a row that failed.
    pub attempts: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RevokeRequest {
    /// What the authority is told.
    pub reason: RevocationReason,
}

/// RFC 5280 §5.3.1, as far as it matters to authorities.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RevocationReason {
    #[default]
    Unspecified,
    KeyCompromise,
}
