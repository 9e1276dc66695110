//! What can go wrong with an authority, in its own words.

use std::fmt;
use std::time::{Duration, Instant};

use model::issuing::Failure;
use serde::Deserialize;

const NAMESPACE: &str = "urn:ietf:params:acme:error:";
/// A problem's text ends up in logs and on terminals.
const WORDS_MAX: usize = 1_000;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcmeError {
    /// Nothing was answered, or that it cannot answer now.
    #[error("{authority} cannot be reached: {why}")]
    Unreachable { authority: String, why: String, retry_after: Option<Duration> },
    #[error("the authority refused: {0}")]
    Refused(Refusal),
    /// More of the same will be refused for some time, whatever is changed.
    #[error("the authority limits us: {0}")]
    RateLimited(Refusal),
    /// The account is unknown, deactivated or revoked; another key may be welcome.
    #[error("the authority does not accept our account: {0}")]
    Account(Refusal),
    /// The authority looked and did not find what proves that the host is ours.
    #[error("{host} could not be validated: {detail}")]
    Invalid { host: String, problem_type: String, detail: String },
    #[error("the authority offers no {kind} challenge for {host}, but {offered}")]
    NoChallenge { host: String, kind: String, offered: String },
    #[error("the challenge for {host} could not be made ready: {why}")]
    NotReady { host: String, why: String },
    #[error("the authority has no profile `{wanted}`; it has {known}")]
    Profile { wanted: String, known: String },
    /// An order that was begun earlier has expired or is not known any more.
    #[error("the order is gone: {0}")]
    Gone(String),
    #[error("the authority was not done with {what} within {} s", .within.as_secs())]
    TooSlow { what: &'static str, within: Duration, retry_after: Option<Duration> },
    #[error("the authority went on refusing our nonces")]
    BadNonce,
    #[error("what was issued cannot be used: {0}")]
    Unusable(String),
    #[error("the authority's answer is no ACME: {0}")]
    Malformed(String),
}

/// A problem document (RFC 7807, RFC 8555 §6.7).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    /// Without the namespace of ACME, such as `rejectedIdentifier`.
    pub problem_type: String,
    pub detail: String,
    /// The HTTP status; 0 where it stood in an order.
    pub status: u16,
    pub subproblems: Vec<Subproblem>,
    pub retry_after: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subproblem {
    pub host: String,
    pub problem_type: String,
    pub detail: String,
}

impl AcmeError {
    /// How long the authority asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unreachable { retry_after, .. } | Self::TooSlow { retry_after, .. } => *retry_after,
            Self::Refused(refusal) | Self::RateLimited(refusal) | Self::Account(refusal) => {
                refusal.retry_after
            }
            _ => None,
        }
    }

    /// What it means for the next attempt.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Unreachable { .. } | Self::TooSlow { .. } | Self::BadNonce | Self::Malformed(_) => {
                Failure::Away
            }
            Self::RateLimited(_) => Failure::Limited,
            Self::NotReady { .. } | Self::Account(_) | Self::Gone(_) => Failure::Ours,
            Self::Refused(_)
            | Self::Invalid { .. }
            | Self::NoChallenge { .. }
            | Self::Profile { .. }
            | Self::Unusable(_) => Failure::Rejected,
        }
    }

    /// Whether the order that was begun is of no use any more; otherwise it can be finished later.
    pub fn ends_the_order(&self) -> bool {
        !matches!(
            self,
            Self::Unreachable { .. }
                | Self::RateLimited(_)
                | Self::NotReady { .. }
                | Self::TooSlow { .. }
                | Self::BadNonce
        )
    }
}

impl Refusal {
    pub fn is(&self, problem_type: &str) -> bool {
        self.problem_type == problem_type
    }

    /// The problem document in an answer with an error status, or the little that such an answer tells.
    pub(super) fn from_answer(
        status: ::http::StatusCode,
        body: &[u8],
        retry_after: Option<Duration>,
    ) -> Option<Self> {
        let problem: instant_acme::Problem = serde_json::from_slice(body).ok()?;
        Some(Self { status: status.as_u16(), retry_after, ..Self::from(problem) })
    }

    /// What an answer with this problem means.
    pub(super) fn into_error(self) -> AcmeError {
        match self.problem_type.as_str() {
            "rateLimited" => AcmeError::RateLimited(self),
            _ if self.status == 429 => AcmeError::RateLimited(self),
            "accountDoesNotExist" => AcmeError::Account(self),
            "badNonce" => AcmeError::BadNonce,
            _ => AcmeError::Refused(self),
        }
    }
}

impl From<instant_acme::Problem> for Refusal {
    fn from(problem: instant_acme::Problem) -> Self {
        let subproblems = problem.subproblems.into_iter().map(|one| Subproblem {
            host: one.identifier.map(|id| words(&id.authorized(false).to_string())).unwrap_or_default(),
            problem_type: short(one.r#type.as_deref()),
            detail: words(&one.detail.unwrap_or_default()),
        });
        Self {
            problem_type: short(problem.r#type.as_deref()),
            detail: words(&problem.detail.unwrap_or_default()),
            status: problem.status.unwrap_or_default(),
            // An order has at most a hundred names.
            subproblems: subproblems.take(100).collect(),
            retry_after: None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = if self.detail.is_empty() { "no reason given" } else { &self.detail };
        f.write_str(detail)?;
        if !self.problem_type.is_empty() {
            write!(f, " ({})", self.problem_type)?;
        }
        for one in &self.subproblems {
            write!(f, "; {}: {} ({})", one.host, one.detail, one.problem_type)?;
        }
        Ok(())
    }
}

impl From<instant_acme::Error> for AcmeError {
    fn from(error: instant_acme::Error) -> Self {
        use instant_acme::Error;
        match error {
            Error::Api(problem) => Refusal::from(problem).into_error(),
            Error::Other(other) => match other.downcast::<Self>() {
                Ok(ours) => *ours,
                Err(other) => Self::Malformed(words(&other.to_string())),
            },
            Error::Timeout(next) => Self::TooSlow {
                what: "the order",
                within: super::order::PATIENCE,
                retry_after: next.map(|next| next.saturating_duration_since(Instant::now())),
            },
            other => Self::Malformed(words(&other.to_string())),
        }
    }
}

pub(super) fn is_bad_nonce(error: &instant_acme::Error) -> bool {
    matches!(error, instant_acme::Error::Api(problem) if short(problem.r#type.as_deref()) == "badNonce")
}

/// Whether an answer says no more than that its nonce was refused, which is dealt with on the floor below.
pub(super) fn speaks_of_nonces(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Typed {
        r#type: String,
    }
    serde_json::from_slice::<Typed>(body).is_ok_and(|problem| short(Some(&problem.r#type)) == "badNonce")
}

fn short(problem_type: Option<&str>) -> String {
    let problem_type = problem_type.unwrap_or_default();
    words(problem_type.strip_prefix(NAMESPACE).unwrap_or(problem_type))
}

/// Others' words, fit for a line of a log.
pub(super) fn words(text: &str) -> String {
    text.chars().take(WORDS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
